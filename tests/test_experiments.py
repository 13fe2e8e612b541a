"""Every experiment composes at every scale; every method and every full-scale row runs, small; what presets do.

The mini experiments themselves, from nothing to their tables, take minutes: `make test-all`.
"""

import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
import yaml
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from runners import record
from runners.compose import RunSpec, run_spec
from runners.expand import choices, config_roots, expand, load_experiment, parts_of, seeds_of, value_of
from runners.schema import PARTS
from runners.sweep import check_all
from tests.command import TINY, retable, write_plugin

ROOTS = config_roots([])
METHODS = choices("method", ROOTS)
EXPERIMENTS = {name: load_experiment(name, ROOTS) for name in choices("experiment", ROOTS)}
TABLES = [(name, scale) for name, experiment in EXPERIMENTS.items() for scale in experiment["scales"]]
MINI = [name for name, scale in TABLES if scale == "mini"]
ROWS = {name: [row for row in found["rows"] if not parts_of(found, row)] for name, found in EXPERIMENTS.items()}


def is_language_model(model: str | None) -> bool:
    """Whether a choice of `model=` is a language model: presets know how to make such a one small."""
    text = (ROOTS[0] / "model" / f"{model}.yaml").read_text()
    return re.search(r"^kind: (none|image)$", text, re.MULTILINE) is None


FULL_ROWS = [
    (name, row)
    for name, scale in TABLES
    if scale == "full"
    for row in ROWS[name]
    if is_language_model(value_of(expand([f"experiment={name}", "scale=full", f"row={row}"]), "model"))
]

ALLOWED = "evaluation.confirm_run_unsafe_code=true"


def model_type(model: str | None) -> str:
    """What transformers calls the architecture of a choice of `model=`."""
    return str(yaml.safe_load((ROOTS[0] / "model" / f"{model}.yaml").read_text())["model_type"])


def one_formula(method: str) -> bool:
    """Whether a method is a formula on pairs and nothing else, as DPO is: its own tests show what it does."""
    source = (ROOTS[0].parent / "methods" / f"{method}.py").read_text()
    own = re.search(r"def (prepare|arrange|responses|loss_of)", source)
    return method != "preference/dpo" and "(Paired)" in source and own is None


def only_options(method: str) -> bool:
    """Whether a method is another one with other defaults: that one's run shows that it runs."""
    return "def " not in (ROOTS[0].parent / "methods" / f"{method}.py").read_text()


# A method that writes several responses to each prompt, with fewer prompts.
WRITING = ["training.batch_size=8", "dataset.limit=64"]
# What the default data do not have: unit tests, labels, pairs.
OTHER = {
    "rl/murphy": ["method.rewards=[{function: evals.rewards.math_answer.correct}]"],
    "preference/implicit_prm": ["dataset=preference_labelled"],
    "preference/implicit_prm_kto": ["dataset=preference_pairs"],
}


def shown_by(name: str, row: str, *, apart: bool = False) -> set[str]:
    """What a full-scale row shows by running: its data set, and all else that it chooses, together or each by itself.

    Numbers do not count, nor does which model of a type.
    """
    elsewhere = ("experiment", "row", "scale", "seed", "evaluation", "model.id", "model.from_run", "dataset")
    chosen: dict[str, str] = {}
    words = expand([f"experiment={name}", "scale=full", f"row={row}"])
    for word in words:
        key, _, value = word.partition("=")
        if key == "model":
            chosen["model.model_type"] = model_type(value)
        elif key in elsewhere or key.startswith("evaluation."):
            continue
        elif not re.fullmatch(r"-?[\d.]+(e-?\d+)?", value):
            chosen[key] = value
    if apart:
        groups = (
            (*PARTS, "model.model_type") if one_formula(chosen["method"]) else ("method", *PARTS, "model.model_type")
        )
        found = {f"{key}={chosen[key]}" for key in groups if key in chosen}
        return found if chosen["method"] == "untrained" else {*found, f"dataset={value_of(words, 'dataset')}"}
    together = " ".join(f"{key}={value}" for key, value in sorted(chosen.items()))
    return {together} if chosen["method"] == "untrained" else {together, f"dataset={value_of(words, 'dataset')}"}


def different(rows: list[tuple[str, str]], *, apart: bool = False) -> list[tuple[str, str]]:
    """The rows that show something which none before them shows: there are too many to run them all."""
    shown: set[str] = set()
    found = []
    for name, row in rows:
        if not (own := shown_by(name, row, apart=apart)) <= shown:
            shown |= own
            found.append((name, row))
    return found


def slow_unless(quick: bool, *values: str) -> Any:
    """Parameters of a test that `make test` leaves out where others show nearly the same."""
    return pytest.param(*values, marks=[] if quick else pytest.mark.slow)


DIFFERENT_ROWS = different(FULL_ROWS)
QUICK_ROWS = different(FULL_ROWS, apart=True)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETABLE_DATA", raising=False)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of runs for all tests here, so that what they start from is trained once."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture
def composer() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="conf", version_base="1.3"):
        yield


def composed(*words: str) -> RunSpec:
    """The run that words mean, as a command would compose it."""
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="conf", version_base="1.3"):
        return run_spec(list(words))


def ran(*words: str) -> tuple[RunSpec, dict[str, Any]]:
    """Run a command in this process; what it means, and its result, which may be that of another experiment."""
    ended = retable(*words)
    assert ended.code == 0, ended.err
    spec = composed(*words)
    known = record.status(spec)
    assert known.state == "done" and known.result is not None
    return spec, known.result


def measured_items(result: dict[str, Any]) -> set[int]:
    """How many items were evaluated of the tasks of a result."""
    return {count["effective"] for count in result["samples"].values()}


def all_finite(values: dict[str, Any]) -> bool:
    return all(math.isfinite(value) for value in values.values() if isinstance(value, float))


# Every experiment, at every scale -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "scale"), TABLES)
def test_every_row_composes_and_passes_the_check(composer: None, name: str, scale: str) -> None:
    """At its first seed; of a row's sweep the first value."""
    experiment = EXPERIMENTS[name]
    firsts = {experiment["rows"][row].get("group") or row: row for row in reversed(ROWS[name])}
    rows = [row for row in ROWS[name] if row in firsts.values()]
    seeds = {row: seeds_of(experiment, row, scale)[0] for row in rows}
    for seed in set(seeds.values()):
        of_seed = [row for row in rows if seeds[row] == seed]
        words = [f"experiment={name}", f"scale={scale}", f"row={','.join(of_seed)}", f"seed={seed}", ALLOWED]
        ((plan, specs),) = check_all(words)
        assert [(spec.row, spec.seed) for spec in specs] == [(row, seed) for row in of_seed]
        assert plan.scale == scale and {(spec.experiment, spec.scale) for spec in specs} == {(name, scale)}
        assert len({spec.identity for spec in specs}) == len(specs)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), TABLES)
def test_every_cell_composes_and_passes_the_check(composer: None, name: str, scale: str) -> None:
    experiment = EXPERIMENTS[name]
    ((plan, specs),) = check_all([f"experiment={name}", f"scale={scale}", ALLOWED])
    assert [(spec.row, spec.seed) for spec in specs] == [
        (row, seed) for row in ROWS[name] for seed in seeds_of(experiment, row, scale)
    ]
    assert plan.scale == scale and {(spec.experiment, spec.scale) for spec in specs} == {(name, scale)}
    assert len({spec.folder for spec in specs}) == len(specs)


@pytest.mark.parametrize(("name", "scale"), [slow_unless(table[0] == "flow/language", *table) for table in TABLES])
@pytest.mark.parametrize("preset", choices("debug", ROOTS))
def test_a_preset_makes_other_runs_and_another_table_of_it(composer: None, name: str, scale: str, preset: str) -> None:
    words = [f"experiment={name}", f"scale={scale}", f"row={next(iter(EXPERIMENTS[name]['rows']))}", ALLOWED]
    ((plan, specs),) = check_all(words)
    ((debug_plan, debug_specs),) = check_all([*words, f"debug={preset}"])
    assert not {spec.folder for spec in specs} & {spec.folder for spec in debug_specs}
    assert debug_plan.variant not in ("", plan.variant)
    assert debug_plan.experiment["title"] == f"{EXPERIMENTS[name]['title']} (debug={preset})"
    assert all(entry["scale"] == "full, unchanged" for entry in debug_plan.experiment["published"])
    for spec in debug_specs:
        assert spec.choices["debug"] == preset and spec.config["tracker"]["name"] == "none"
        if spec.parent is not None:
            assert spec.parent.choices["debug"] == preset
            assert spec.parent.config["training"]["steps"] == spec.config["training"]["steps"]


def test_a_parent_is_a_debug_run_whatever_its_own_words_say(composer: None) -> None:
    words = ["model=hf", 'model.from_run=["experiment=mini/pretraining","training.steps=700","optimizer.lr=1e-4"]']
    (real, debug) = (run_spec([*words, *typed]).parent for typed in ([], ["debug=fast", "training.steps=5"]))
    assert real is not None and debug is not None and real.folder != debug.folder
    steps = [parent.config["training"]["steps"] for parent in (real, debug)]
    assert steps == [700, 2] and debug.config["optimizer"]["lr"] == 1e-4


# Every method, in miniature -----------------------------------------------------------------------------------


def words_for(method: str) -> list[str]:
    """The first row of a mini experiment that uses a method, or else the default run with it."""
    for name in MINI:
        for row in ROWS[name]:
            words = [f"experiment={name}", "scale=mini", f"row={row}"]
            if value_of(expand(words), "method") == method:
                return words
    return [f"method={method}", *(WRITING if method.startswith("rl/") else []), *OTHER.get(method, [])]


RUN_ALONE = [method for method in METHODS if not one_formula(method) and not only_options(method)]


@pytest.mark.parametrize("method", [slow_unless(method in RUN_ALONE, method) for method in METHODS])
def test_every_method_runs_at_debug_fast(outputs: Path, method: str) -> None:
    spec, result = ran(*words_for(method), "debug=fast", f"outputs={outputs}")
    assert spec.choices["method"] == method == result["method"]
    if spec.config["model"]["kind"] == "none":  # it measures itself
        assert result["method_metrics"] and not result["metrics"]
    else:
        assert spec.config["training"]["steps"] == 2 == result["method_metrics"].get("train/steps", 2)
        assert result["metrics"] and measured_items(result) == {4}
    assert all(all_finite(values) for values in (result["method_metrics"], *result["metrics"].values()))


WITHOUT_MODEL = [
    name for name in MINI if value_of(expand([f"experiment={name}", f"row={ROWS[name][0]}"]), "model") == "none"
]


@pytest.mark.parametrize("name", WITHOUT_MODEL)
def test_a_method_without_a_model_reports_what_its_table_shows(outputs: Path, name: str) -> None:
    """By the group of each metric: of a shortened run the last part (rounds, iterations) may be another."""
    _, result = ran(f"experiment={name}", f"row={ROWS[name][0]}", "debug=fast", f"outputs={outputs}")
    columns = EXPERIMENTS[name]["columns"]["mini"].values()
    shown = {column["metric"].partition("/")[0] for column in columns if "metric" in column}
    assert shown <= {metric.partition("/")[0] for metric in result["method_metrics"]}


def test_runs_at_debug_fast_share_their_base(outputs: Path) -> None:
    """Of one preset, parents are trained once, and in two steps like the rest."""
    for seed in (1, 2):
        ran("method=untrained", "evaluation=none", "debug=fast", f"seed={seed}", f"outputs={outputs}")
    (base,) = outputs.glob("mini/pretraining/base-mini_random-*/result.json")
    assert json.loads(base.read_text())["method_metrics"]["train/steps"] == 2


# Every full-scale row, with a small model of the same architecture --------------------------------------------

# What `debug=random` may change of a full-scale run. Its data and its evaluation are the test's own.
CHANGED = {
    "model": {"id", "from_run", "architecture", "tokenizer"},
    "training": {"steps", "epochs", "batch_size", "micro_batch_size", "too_long", "log_every", "checkpoint_every"},
    "method": {"max_new_tokens"},
    "optimizer": set(),
    "engine": set(),
    "adapter": set(),
    "penalty": {"samples", "max_length"},
    "mix": {"samples", "max_length", "max_new_tokens", "dataset"},
}


# The evaluation of these tests, also where a scale has changed keys of its own.
MEASURED = [
    "evaluation=mini_world_validation",
    "evaluation.tasks=[{name:mini_world_general,metadata:{split:validation}},"
    "{name:mini_world_relabelled_copy,metadata:{split:validation}}]",
    "evaluation.preference=null",
    "evaluation.apply_chat_template=false",
]


# What rows hold that a function makes an answer of (`dataset.reference`).
REFERRED = {
    "evals.rewards.code.kodcode_reference": {"test": "from solution import f\n\ndef test_f():\n    assert f(1) == 1\n"},
}


def write_local_copy(dataset: dict[str, Any], root: Path) -> None:
    """A local copy of a hub set, with the columns that its templates name; one text is too long for any training."""
    columns = {
        field
        for value in dataset.values()
        if isinstance(value, str) and "{" in value
        for _, field, _, _ in Formatter().parse(value)
        if field
    }
    repeats = [1 + number % 4 for number in range(15)] + [1000]
    # What an answer is checked against is part of no training sequence: nothing there can be too long.
    checked = dataset["completion"] if dataset["type"] == "problem" else ""
    short = {field for _, field, _, _ in Formatter().parse(checked) if field}
    rows: list[dict[str, Any]] = [
        {column: f"{column} {number} " * (1 if column in short else times) for column in columns}
        for number, times in enumerate(repeats)
    ]
    if dataset["layout"] == "dialogue":  # a column is a whole dialogue
        rows = [
            {column: f"\n\nHuman: prompt {number}\n\nAssistant: {text}" for column, text in row.items()}
            for number, row in enumerate(rows)
        ]
    if dataset["layout"] == "messages":  # a column is a whole chat
        rows = [
            {
                column: [{"role": "user", "content": f"prompt {number}"}, {"role": "assistant", "content": text}]
                for column, text in row.items()
            }
            for number, row in enumerate(rows)
        ]
    rows = [{**row, **REFERRED.get(dataset["reference"], {}), **(dataset["where"] or {})} for row in rows]
    folder = root / dataset["path"].rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{dataset['split']}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_method_part_model_type_and_data_set_is_among_the_rows_that_run() -> None:
    def choices_of(rows: list[tuple[str, str]]) -> tuple[set[tuple[str | None, ...]], set[str | None]]:
        words = [expand([f"experiment={name}", "scale=full", f"row={row}"]) for name, row in rows]
        combinations = {
            (*(value_of(of_row, group) for group in ("method", *PARTS)), model_type(value_of(of_row, "model")))
            for of_row in words
        }
        trained = [of_row for of_row in words if value_of(of_row, "method") != "untrained"]
        return combinations, {value_of(of_row, "dataset") for of_row in trained}

    assert len(QUICK_ROWS) < len(DIFFERENT_ROWS) < len(FULL_ROWS)
    assert choices_of(DIFFERENT_ROWS) == choices_of(FULL_ROWS)


@pytest.mark.parametrize(("name", "row"), [slow_unless(row in QUICK_ROWS, *row) for row in DIFFERENT_ROWS])
def test_every_full_scale_row_runs_with_a_small_random_model(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, row: str
) -> None:
    words = [f"experiment={name}", "scale=full", f"row={row}", ALLOWED]
    full = composed(*words)
    local = []
    for group, dataset in (("dataset", full.config["dataset"]), ("mix.dataset", full.config["mix"].get("dataset"))):
        if dataset and dataset["source"] == "hub":
            write_local_copy(dataset, tmp_path / "data")
            local.append(f"{'+' if group != 'dataset' else ''}{group}.data_root={tmp_path / 'data'}")
    if full.choices["method"].startswith("merging/"):  # the run it takes up has data and an evaluation of its own
        monkeypatch.setenv("RETABLE_DATA", str(tmp_path / "data"))
        named = [*full.config["model"]["from_run"], *MEASURED]
        local.append(f"model.from_run=[{','.join(repr(word) for word in named)}]")
    spec, result = ran(*words, *local, *MEASURED, "debug=random", f"outputs={outputs}")

    for group, changed in CHANGED.items():
        differs = {key for key, value in spec.config[group].items() if value != full.config[group][key]}
        assert differs <= changed
    own, of_full = (found.config["mix"].get("dataset") or {} for found in (spec, full))
    assert {**own, "data_root": None} == {**of_full, "data_root": None}
    architecture = spec.start.config["model"]["architecture"]
    assert architecture["model_type"] == full.config["model"]["model_type"]
    assert result["method_metrics"].get("train/steps", 2) == 2
    assert measured_items(result) == {4}
    assert all(all_finite(values) for values in (result["method_metrics"], *result["metrics"].values()))
    saved = record.status(spec).folder / "model" / "config.json"
    if saved.is_file():
        built = json.loads(saved.read_text())
        assert (built["model_type"], built["num_hidden_layers"]) == (architecture["model_type"], 2)


@pytest.mark.parametrize("model", choices("model", ROOTS))
def test_random_builds_every_model_small(model: str) -> None:
    """Every architecture that a model's YAML names can be built so, and takes a training step in both layers."""
    import torch

    if not is_language_model(model):
        pytest.skip("no language model")
    from runners.models import load_model

    needed = ["model.model_type=llama"] if model == "hf" else []
    settings = composed(f"model={model}", *needed, "debug=random").config["model"]
    built: Any = load_model(settings, None, 259)
    tokens = torch.arange(24).reshape(2, 12)
    built(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    assert built.config.model_type == settings["model_type"]
    assert built.config._attn_implementation == settings["attention"]
    layers = built.base_model.layers
    assert len(layers) == 2
    assert sum(weight.numel() for weight in built.parameters()) < 1_000_000
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in layers.parameters())


# Presets ------------------------------------------------------------------------------------------------------


def test_the_users_words_win_over_the_preset() -> None:
    _, result = ran(*TINY, "training.steps=3", "debug=fast")
    assert result["method_metrics"]["train/steps"] == 3


def test_overfit_learns_its_one_batch_by_heart() -> None:
    spec, result = ran("model=mini_random", "debug=overfit")
    lines = [json.loads(line) for line in (spec.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines]
    assert len(losses) == 50 and losses[0] > 4  # nats per byte of an untrained model: ln 259 = 5.6
    assert losses[-1] < losses[0] / 100
    assert len({line["train/learning_rate"] for line in lines}) == 1
    assert result["metrics"] == {}


def test_profile_leaves_a_trace_of_three_steps() -> None:
    spec, _ = ran("model=mini_random", "debug=profile")
    events = json.loads((spec.folder / "profile" / "trace.json").read_text())["traceEvents"]
    steps = {name for event in events if (name := event.get("name", "")).startswith("ProfilerStep#")}
    assert steps == {"ProfilerStep#2", "ProfilerStep#3", "ProfilerStep#4"}


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["debug=fats"], "debug=fats: no such choice (nearest: fast)"),
        (["experiment=flow/language", "debug=overfti"], "debug=overfti: no such choice (nearest: overfit)"),
        (["debug=_base"], "debug=_base: no such choice"),
        (["debug=fast,overfit"], "debug=fast,overfit: several values make a sweep, which needs -m"),
        (
            ["debug=random", "model=hf"],
            "model.architecture must name its model_type (that of debug=random is model.model_type)",
        ),
    ],
)
def test_what_is_wrong_with_a_preset_is_one_line(typed: list[str], message: str) -> None:
    ended = retable(*typed)
    assert ended.code == 1 and ended.error.startswith(message)
    assert len(ended.err.strip().splitlines()) == 1


def test_the_table_of_a_debug_run_leaves_the_real_one_alone(tmp_path: Path) -> None:
    words = [f"plugins={write_plugin(tmp_path / 'plugin')}", "experiment=tried/table", "row=sft", "seed=1"]
    real = retable("-m", *words, "tracker=none")
    assert real.code == 0, real.err
    folder = Path("outputs/tried/table/")
    (runs,) = folder.glob("sft-*")
    (own,) = folder.glob("table-*")
    written = (own / "table.csv").read_text()
    debug = retable("-m", *words, "debug=fast")
    assert debug.code == 0 and "A table of three rows (debug=fast)" in debug.out
    assert len(list(folder.glob("sft-*"))) == len(list(folder.glob("table-*"))) == 2
    assert (own / "table.csv").read_text() == written and runs.is_dir()
    # Once both have run, a table is built again from its own runs.
    again = retable(*words, "debug=fast", "job=table")
    assert again.code == 0 and len(list(folder.glob("table-*"))) == 2


def test_presets_can_be_swept() -> None:
    ended = retable("-m", *TINY, "debug=fast,overfit")
    assert ended.code == 0, ended.err
    assert "debug=fast" in ended.out and "debug=overfit" in ended.out  # a row each
    results = [json.loads(path.read_text()) for path in Path("outputs/runs").glob("finetune_sft-*/result.json")]
    # TINY's two steps are the user's words, and win; what they do not say is the preset's.
    assert sorted(result["method_metrics"]["train/units"] for result in results) == [2 * 8 * 6, 2 * 64 * 6]


# The mini experiments -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the mini experiments, so that their base is trained once."""
    return tmp_path_factory.mktemp("tables")


def table_of(name: str, tables: Path) -> list[dict[str, str]]:
    """Run a mini experiment; the cells of its table."""
    ended = retable("-m", f"experiment={name}", "scale=mini", "tracker=none", f"outputs={tables}")
    assert ended.code == 0, ended.err
    with (tables / name / "table-mini" / "table.csv").open() as file:
        return [cell for cell in csv.DictReader(file) if cell["kind"] == "row"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MINI)
def test_mini_experiment_ends_in_a_complete_table(tables: Path, name: str) -> None:
    experiment = EXPERIMENTS[name]
    own = {(cell["row"], cell["column"]): cell for cell in table_of(name, tables)}
    assert set(own) == {(row, column) for row in experiment["rows"] for column in experiment["columns"]["mini"]}
    for (row, _), cell in own.items():
        assert math.isfinite(float(cell["mean"]))
        assert int(cell["n"]) == int(cell["expected"]) == len(seeds_of(experiment, row, "mini"))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_flow_language_in_miniature(tables: Path) -> None:
    """The base masters at least three skills, and plain fine-tuning at the searched rate forgets at least 10 points.

    What FLOW does to it is the table's to say, not a test's.
    """
    cells = table_of("flow/language", tables)
    (base,) = tables.glob("mini/pretraining/base-*/result.json")
    metrics = json.loads(base.read_text())["metrics"]
    skills = ("copy", "reverse", "increment", "sort", "rotate", "complement")
    assert sum(metrics[f"mini_world_{skill}"]["acc,none"] >= 0.9 for skill in skills) >= 3
    general = {cell["row"]: float(cell["mean"]) for cell in cells if cell["column"] == "general"}
    assert general["pretrained"] - general["sft"] >= 10
