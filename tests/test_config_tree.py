"""Every YAML under conf/ agrees with the signature it names, and every experiment with its table."""

import dataclasses
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from evals import task_index
from runners.compose import run_spec
from runners.expand import choices, config_roots, groups, load_experiment, parts_of, preset, seeds_of, value_of
from runners.plan import plans
from runners.schema import GROUPS, PARTS, TARGETS, Root
from runners.signatures import config_class, read
from runners.tables.table import Experiment

ROOTS = config_roots([])
CONF = ROOTS[0]
EXPERIMENTS = choices("experiment", ROOTS)

# What a choice cannot do without.
NEEDED = {
    ("model", "hf"): ["model.id=owner/name"],
    ("dataset", "file"): ["dataset.path=data.jsonl"],
    ("dataset", "hub"): ["dataset.path=openai/gsm8k"],
    **{
        ("method", name): ["dataset.loss_on=completion"]  # they answer the prompts
        for name in (
            "finetune/sdft",
            "preference/online_dpo",
            "preference/xpo",
            "preference/on_mc_po",
            *(f"rl/{path.stem}" for path in (CONF / "method" / "rl").glob("*.yaml")),
        )
    },
    ("method", "merging/model_soup"): [
        "model.from_run=null",
        "model.from_runs=[['experiment=mini/pretraining','seed=1'],['experiment=mini/pretraining','seed=2']]",
    ],
}


@pytest.fixture(autouse=True)
def composer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETABLE_DATA", raising=False)
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="conf", version_base="1.3"):
        yield tmp_path


def plain(path: Path) -> dict[str, Any]:
    """A YAML file as plain data; what is to be given (`???`) as "???"."""
    data = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items() if key != "defaults"}


def defaults(schema: type) -> dict[str, Any]:
    """A dataclass's fields and defaults, as JSON has them; "???" where there is none."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        if field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
        else:
            found[field.name] = "???"
    return json.loads(json.dumps(found))


# Groups ------------------------------------------------------------------------------------------------------


def test_every_group_is_known_to_the_schema() -> None:
    assert groups(ROOTS) == {*GROUPS, *TARGETS, *PARTS, "experiment", "debug"} - {"training"}


CHOSEN = {group: choices(group, ROOTS) for group in (*GROUPS, *TARGETS) if group != "training"}
CHOSEN_PARTS = [(group, name) for group in PARTS for name in choices(group, ROOTS)]


@pytest.mark.parametrize("number", range(max(map(len, CHOSEN.values()))))
def test_every_choice_composes_and_passes_the_check(number: int) -> None:
    """The first choice of every group together, the second of every group, ...: each at least once."""
    chosen = {group: names[number % len(names)] for group, names in CHOSEN.items()}
    if chosen["scale"] == "full":  # only an experiment has one; those are tested below
        chosen["scale"] = "mini"
    if chosen["method"].startswith("merging/"):  # what it takes are runs
        chosen["model"] = "mini"
    runs = fitted(chosen)
    for group in ("method", "dataset", "model"):
        assert chosen[group] in {fitting[group] for fitting in runs}
    for fitting in runs:
        words = [f"{group}={name}" for group, name in fitting.items()]
        needed = [word for choice in fitting.items() for word in NEEDED.get(choice, [])]
        spec = run_spec([*words, *needed, "evaluation.confirm_run_unsafe_code=true"])
        assert {group: spec.choices[group] for group in fitting} == fitting


@cache
def data_of(method: str) -> tuple[str, ...]:
    return tuple(read(target_of("method", method)[0]).attributes.get("data") or ())


@cache
def kinds_of(method: str) -> tuple[str, ...]:
    return tuple(read(target_of("method", method)[0]).attributes["kinds"])


@cache
def kind_of(model: str) -> str:
    loaded: Any = OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{model}.yaml"), resolve=False)
    return str(loaded.get("kind", "causal"))


@cache
def type_of(dataset: str) -> str:
    loaded: Any = OmegaConf.to_container(OmegaConf.load(CONF / "dataset" / f"{dataset}.yaml"), resolve=False)
    if "_target_" in loaded:
        return str(read(loaded["_target_"]).attributes["type"])
    others = [name for name in loaded.get("defaults", []) if name not in ("_base", "_self_")]
    return str(loaded.get("type") or (type_of(others[-1]) if others else "completion"))


# A model of each kind, and what is measured of it.
KINDS = {"causal": ("mini", "none"), "image": ("digits_cnn", "images"), "none": ("none", "none")}


def fitted(chosen: dict[str, str]) -> list[dict[str, str]]:
    """Choices that go together: those, or several with some of those each and others that fit them."""

    def fits(method: str, dataset: str, kind: str) -> bool:
        found = type_of(dataset)
        of_kind = kind == "none" or (found == "images") == (kind == "image")
        return of_kind and (not data_of(method) or found in data_of(method))

    found: list[dict[str, str]] = []
    # The kind of the chosen model first: where the others fit it, one run has them all.
    for kind in sorted(KINDS, key=lambda kind: kind != kind_of(chosen["model"])):
        model, evaluation = KINDS[kind]
        own = {"model": chosen["model"] if kind_of(chosen["model"]) == kind else model, "evaluation": evaluation}
        if kind == "causal" and chosen["evaluation"] != "images":
            own["evaluation"] = chosen["evaluation"]
        methods = [
            name for name in CHOSEN["method"] if kind in kinds_of(name) and "merging" not in name and data_of(name)
        ]
        datasets = [name for name in CHOSEN["dataset"] if any(fits(method, name, kind) for method in methods)]

        def missing(group: str) -> bool:
            return chosen[group] not in {fitting[group] for fitting in found}

        if missing("method") and kind in kinds_of(chosen["method"]):
            candidates = [name for name in (chosen["dataset"], *datasets) if fits(chosen["method"], name, kind)]
            found.append({**chosen, **own, "dataset": candidates[0]})
        if missing("dataset") and chosen["dataset"] in datasets:
            method = next(name for name in methods if fits(name, chosen["dataset"], kind))
            found.append({**chosen, **own, "method": method})
        if missing("model") and own["model"] == chosen["model"]:
            method = next(name for name in methods if fits(name, datasets[0], kind))
            found.append({**chosen, **own, "method": method, "dataset": datasets[0]})
    return found


@pytest.mark.parametrize(("group", "name"), CHOSEN_PARTS)
def test_every_part_composes_and_passes_the_check(group: str, name: str) -> None:
    assert run_spec([f"{group}={name}"]).choices[group] == name


@pytest.mark.parametrize("group", ["model", "dataset", "evaluation"])
def test_base_has_the_keys_and_defaults_of_the_schema(group: str) -> None:
    assert plain(CONF / group / "_base.yaml") == defaults(GROUPS[group])


@pytest.mark.parametrize(("group", "name"), [("engine", "default"), ("tracker", "wandb")])
def test_default_choice_has_the_keys_and_defaults_of_the_schema(group: str, name: str) -> None:
    assert plain(CONF / group / f"{name}.yaml") == defaults(GROUPS[group])


def test_training_has_the_keys_and_defaults_of_the_schema() -> None:
    training = plain(CONF / "config.yaml")["training"]
    expected = defaults(GROUPS["training"])
    assert list(training) == list(expected)
    # One of steps and epochs must be chosen; the schema leaves both open.
    assert training == {**expected, "steps": training["steps"]} and training["steps"] > 0


def test_root_has_the_keys_and_defaults_of_the_schema() -> None:
    root = {key: value for key, value in plain(CONF / "config.yaml").items() if key not in ("training", "hydra")}
    assert {**root, "experiment": None, "debug": None} == defaults(Root)


def test_every_key_of_the_default_configuration_has_its_explanation() -> None:
    """A user reads `_base.yaml` to learn what there is: each line with a value says what it means, or its name does."""
    for group in ("model", "dataset", "evaluation"):
        lines = [line for line in (CONF / group / "_base.yaml").read_text().splitlines() if ":" in line]
        assert sum("#" in line for line in lines) >= len(lines) / 2


@pytest.mark.parametrize("name", choices("debug", ROOTS))
def test_every_word_of_a_preset_has_its_effect(name: str) -> None:
    """None of them is undone by a later one, and each is a key or a choice that there is."""
    words = preset([f"debug={name}"])
    spec = run_spec([f"debug={name}"])
    assert words and spec.config["debug"]["overrides"][0] == words[0]
    for key in {word.partition("=")[0] for word in words}:
        group, _, inner = key.partition(".")
        value = value_of(words, key)
        if not inner:
            assert spec.choices[group] == value
        elif inner != "architecture":
            assert spec.config[group][inner] == yaml.safe_load(value or "null")


# Targets -----------------------------------------------------------------------------------------------------

OURS = [("method", name) for name in choices("method", ROOTS)]
OURS += [(group, name) for group, name in CHOSEN_PARTS if name != "none"]
DATA = [
    ("dataset", name) for name in CHOSEN["dataset"] if "_target_" in (CONF / "dataset" / f"{name}.yaml").read_text()
]


def target_of(group: str, name: str) -> tuple[str, dict[str, Any]]:
    values = plain(CONF / group / f"{name}.yaml")
    return values.pop("_target_"), values


@pytest.mark.parametrize(("group", "name"), DATA)
def test_yaml_of_data_has_keys_of_its_dataclass(group: str, name: str) -> None:
    """What a data set is, its YAML says; what it does not say is as in the dataclass."""
    path, values = target_of(group, name)
    config = read(path).config
    assert config is not None and values.keys() <= defaults(config).keys()


@pytest.mark.parametrize(("group", "name"), OURS)
def test_yaml_has_the_keys_and_defaults_of_its_dataclass(group: str, name: str) -> None:
    """A default that the dataclass does not have is the YAML's own, such as a number that is our guess."""
    path, values = target_of(group, name)
    config = read(path).config
    assert config is not None, f"{path} must annotate `config` with its dataclass"
    expected = defaults(config)
    assert values.keys() == expected.keys()
    assert {key: value for key, value in values.items() if expected[key] != "???"} == {
        key: value for key, value in expected.items() if value != "???"
    }


@pytest.mark.parametrize(("group", "name"), [*OURS, *DATA])
def test_dataclass_that_is_read_is_the_running_one(group: str, name: str) -> None:
    path, _ = target_of(group, name)
    module, _, class_name = path.rpartition(".")
    class_ = getattr(importlib.import_module(module), class_name)
    target, running = read(path), config_class(class_)
    assert target.config is not None
    assert get_type_hints(target.config, include_extras=True) == get_type_hints(running, include_extras=True)
    assert defaults(target.config) == defaults(running)
    for attribute in ("kinds", "trained", "frozen", "couples", "merges", "excludes", "data", "type"):
        assert target.attributes.get(attribute) == getattr(class_, attribute, None)


@pytest.mark.parametrize(("group", "name"), OURS)
def test_it_lies_where_its_name_says(group: str, name: str) -> None:
    path, _ = target_of(group, name)
    folder = "methods" if group == "method" else f"methods.{group}"
    assert path.rpartition(".")[0] == f"{folder}.{name.replace('/', '.')}"
    assert read(path).doc


# Experiments -------------------------------------------------------------------------------------------------

TABLES = [(name, scale) for name in EXPERIMENTS for scale in load_experiment(name, ROOTS)["scales"]]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_table_of_an_experiment_fits_together(name: str) -> None:
    experiment = load_experiment(name, ROOTS)
    assert experiment["name"] == name and experiment.get("title")
    built = Experiment.from_config(experiment)
    assert set(built.columns) == set(built.scales) and set(built.scales) <= {"mini", "full"}
    allowed = {"label", "seeds", "overrides", "group", "group_label", "mean_of", "baseline", *built.scales}
    for row, definition in experiment["rows"].items():
        assert set(definition) <= allowed, f"{row}: {sorted(set(definition) - allowed)}"


@pytest.mark.parametrize(("name", "scale"), TABLES)
def test_experiment_means_its_rows_times_its_seeds(name: str, scale: str) -> None:
    experiment = load_experiment(name, ROOTS)
    (plan,) = plans([f"experiment={name}", f"scale={scale}"])
    assert [(cell.row, cell.seed) for cell in plan.cells] == [
        (row, seed)
        for row in experiment["rows"]
        if not parts_of(experiment, row)
        for seed in seeds_of(experiment, row, scale)
    ]
    assert plan.variant == "" and plan.scale == scale


@pytest.mark.parametrize(("name", "scale"), TABLES)
def test_columns_are_measured_by_the_evaluation(name: str, scale: str) -> None:
    experiment = load_experiment(name, ROOTS)
    spec = run_spec([f"experiment={name}", f"scale={scale}", "evaluation.confirm_run_unsafe_code=true"])
    asked = {task["name"] for task in spec.config["evaluation"]["tasks"]}
    asked |= {
        name
        for name in ("kl_to_base", "preference", "judge", "mauve", "problems", "thoughts", "accuracy")
        if spec.config["evaluation"][name]
    }
    asked |= set(spec.config["evaluation"]["problem_sets"] or {})
    measured = asked | {leaf["task"] for name in asked for _, leaf in task_index._leaves(name, task_index._roots(None))}
    metrics = [column["metric"] for column in experiment["columns"][scale].values() if "metric" in column]
    if spec.config["model"]["kind"] == "none":  # the method's own, which are known when it has run
        assert not measured
        return
    assert {metric.partition("/")[0] for metric in metrics} <= measured | {"train", "data"}


# Imports -----------------------------------------------------------------------------------------------------

CHECK = """
import sys
import runners.main
import runners.completion
from hydra import initialize_config_module
from runners.sweep import check_all
with initialize_config_module(config_module="conf", version_base="1.3"):
    ((plan, specs),) = check_all(["experiment=flow/language", "scale=mini", "row=pretrained,flow", "seed=1"])
    assert len(specs) == 2, len(specs)
    for spec in specs:
        spec.identity, spec.source, spec.folder
heavy = {"torch", "transformers", "datasets", "deepspeed", "lm_eval", "wandb", "tokenizers"} & set(sys.modules)
assert not heavy, sorted(heavy)
"""

LIGHT = """
import sys
import runners.main
heavy = {"torch", "numpy", "pydantic", "rich", "scipy", "runners.compose"} & set(sys.modules)
assert not heavy, sorted(heavy)
"""


@pytest.mark.parametrize("code", [CHECK, LIGHT], ids=["checking a sweep", "the command"])
def test_what_comes_before_a_run_imports_no_torch(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
