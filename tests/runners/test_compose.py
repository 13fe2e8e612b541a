"""From overrides to a run: what is filled in, which overrides and parents do not fit, what makes a run's identity."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest

from runners.compose import RunSpec, run_spec
from runners.errors import UserError
from tests.command import METHOD, TINY, write_plugin
from tests.runners.tiny_run import changed, refusal, spec

PARENT = ["model=mini", "method=untrained", "evaluation=none"]  # a run that starts from the pre-trained model


# What is filled in -------------------------------------------------------------------------------------------


def test_default_run_is_complete(composer: Path) -> None:
    run = run_spec([])
    assert run.choices["method"] == "finetune/sft" and run.choices["model"] == "mini"
    assert run.config["training"]["batch_size"] == 64 and run.config["evaluation"]["tasks"]
    assert run.experiment == "runs" and run.row is None and run.scale == "mini" and run.seed == 1
    assert run.parent is not None and run.parent.experiment == "mini/pretraining"
    json.dumps(run.config)  # plain data


def test_values_have_the_types_of_the_schema(composer: Path) -> None:
    run = spec("optimizer.lr=1e-3", "training.clip_norm=2", "training.steps=7")
    assert run.config["optimizer"]["lr"] == 0.001 and run.config["training"]["steps"] == 7
    assert run.config["training"]["clip_norm"] == 2.0


def test_a_task_may_be_named_alone(composer: Path) -> None:
    run = spec("evaluation.tasks=[mini_world_copy,{name:mini_world_sort,limit:3}]")
    named, limited = run.config["evaluation"]["tasks"]
    assert named == {"name": "mini_world_copy", "num_fewshot": None, "limit": None, "metadata": {}}
    assert limited["limit"] == 3


def test_name_says_what_it_is(composer: Path) -> None:
    run = spec("seed=7", "method=finetune/flow")
    assert run.name == f"finetune_flow-mini_random-s7-{run.identity[:8]}"
    assert run.folder == Path("outputs/runs") / run.name


def test_row_of_an_experiment(composer: Path, plugin: Path) -> None:
    words = [f"plugins={plugin}", "experiment=tried/table", "seed=2"]
    run = run_spec([*words, "row=flow"])
    assert run.row == "flow" and run.choices["method"] == "finetune/flow"
    assert run.name.startswith("flow-mini_random-s2-") and run.experiment == "tried/table"
    assert run_spec(words).row == "plain"  # the first


def test_the_user_wins_over_the_row(composer: Path, plugin: Path) -> None:
    run = run_spec([f"plugins={plugin}", "optimizer.lr=5e-3", "experiment=tried/table", "row=sft", "training.steps=4"])
    assert run.config["optimizer"]["lr"] == 5e-3 and run.config["training"]["steps"] == 4


# What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # An unknown choice, with the nearest names.
        ("method=finetune/flwo", "method=finetune/flwo: no such choice (nearest: finetune/flow"),
        ("hydra/launcher=slrum", "hydra/launcher=slrum: no such choice"),
        # An override that names no key, with and without +.
        ("trainig.steps=3", "trainig.steps=3: no such key (nearest: training.steps"),
        ("training.stepz=3", "training.stepz=3: no such key (nearest: steps"),
        ("+training.stepz=3", "training.stepz=3: unknown key (nearest: steps"),
        ("++training.stepz=3", "training.stepz=3: unknown key (nearest: steps"),
        ("sed=3", "sed=3: no such key (nearest: seed"),
        ("+sed=3", "sed=3: unknown key (nearest: seed"),
        ("method.temperature=2", "method.temperature=2: no such key"),
        ("+method.temperature=2", "method.temperature=2: unknown key"),
        ("+optimizer.learning_rate=1", "optimizer.learning_rate=1: torch.optim.AdamW takes no such key"),
        ("+adapter.rank=8", "adapter.rank=8: unknown key, as no adapter is chosen"),
        ("+seed=3", "seed=3: the key is there already, leave out the +"),
        # A whole group, or a choice of another kind.
        ("training=fast", "training=fast: must be a mapping of keys"),
        ("~method", "~method: must not be left out"),
        ("scale=full", "scale=full: only an experiment has a sourced full setting"),
        ("row=flow", "row=flow: only an experiment has rows"),
        ("optimizer._target_=torch.optim.SGD", "optimizer.betas=[0.9, 0.999]: torch.optim.SGD takes no such key"),
        # Not an override at all.
        ("training.steps", "training.steps: must be key=value"),
        ("dataset.prompt={question}", "dataset.prompt={question}: must be key=value; a value that holds"),
    ],
)
def test_override_that_does_not_fit(composer: Path, override: str, message: str) -> None:
    assert refusal(override).startswith(message)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("[]", "model.from_run=[]: "),
        ("[experiment=nope]", "model.from_run=['experiment=nope']: experiment=nope: no such experiment"),
        ("[training.steps=-3]", "model.from_run=['training.steps=-3']: training.steps=-3: should be greater than 0"),
        ("[word]", "model.from_run=['word']: word: must be key=value"),
        ("word", "model.from_run=word: should be a valid array"),
    ],
)
def test_parent_is_checked_too(composer: Path, named: str, message: str) -> None:
    quoted = ",".join(f'"{word}"' for word in named.strip("[]").split(",") if word)
    value = f"[{quoted}]" if named.startswith("[") else named
    assert refusal("model=mini", f"model.from_run={value}", base=("evaluation=none",)).startswith(message)


CIRCLE = """# @package experiment
name: tried/circle
title: A run that starts from itself
rows:
  only: {overrides: [model=hf, method=untrained, evaluation=none, 'model.from_run=["experiment=tried/circle"]']}
scales:
  mini: {setting: ours, seeds: [1]}
columns: {}
"""


def test_parents_must_not_go_in_a_circle(composer: Path, plugin: Path) -> None:
    (plugin / "conf" / "experiment" / "tried" / "circle.yaml").write_text(CIRCLE)
    message = refusal(base=(f"plugins={plugin}", "experiment=tried/circle"))
    assert message.endswith("model.from_run=['experiment=tried/circle']: must not lead back to the run itself")


def test_a_parent_may_have_a_parent(composer: Path) -> None:
    named = 'model.from_run=["model=mini","method=untrained","evaluation=none"]'
    run = run_spec(["model=hf", named, "method=untrained", "evaluation=none"])
    assert run.parent is not None and run.parent.parent is not None
    assert run.parent.parent.experiment == "mini/pretraining"


def listed(*words: str) -> str:
    """A run's overrides as a value of `model.from_run`."""
    return f"[{','.join(map(repr, words))}]"


TRAINED = ("model=mini_random", "training.steps=3", "evaluation=none")


def test_a_soup_has_its_runs_as_parents_and_starts_from_the_first(composer: Path) -> None:
    runs = [listed(*TRAINED, f"seed={seed}") for seed in (4, 5)]
    words = ["method=merging/model_soup", "model.from_run=null", "tracker=none"]
    soup = run_spec([*words, f"model.from_runs=[{','.join(runs)}]"])
    assert [parent.seed for parent in soup.parents] == [4, 5] and soup.parent == soup.start == soup.parents[0]
    assert soup.needed == soup.parents
    other = run_spec([*words, f"model.from_runs=[{','.join(reversed(runs))}]"])
    longer = run_spec([*words, f"model.from_runs=[{runs[0]},{listed(*TRAINED, 'seed=5', 'optimizer.lr=1e-5')}]"])
    assert len({soup.identity, other.identity, longer.identity}) == 3


def test_the_task_by_which_a_soup_chooses_is_checked_like_those_that_measure_it(composer: Path) -> None:
    runs = ",".join(listed(*TRAINED, f"seed={seed}") for seed in (4, 5))
    words = ["method=merging/model_soup", "method.recipe=greedy", "model.from_run=null", f"model.from_runs=[{runs}]",
             "tracker=none"]  # fmt: skip

    def greedy(task: str, *more: str) -> RunSpec:
        validation = f"method.validation={{task:{task},metric:'acc,none',metadata:{{split:validation}}}}"
        return run_spec([*words, validation, *more])

    # Other items of a task that measures it too.
    assert greedy("mini_world_sort", "evaluation.tasks=[mini_world_sort]").config["method"]["recipe"] == "greedy"
    assert (
        greedy("mini_world_sort", "evaluation=none").identity != greedy("mini_world_copy", "evaluation=none").identity
    )
    with pytest.raises(UserError, match=r"^method\.validation: unknown lm-eval task 'mini_world_srot'"):
        greedy("mini_world_srot")


def test_a_merging_run_needs_what_its_run_started_from_too(composer: Path) -> None:
    tuned = ["model=hf", f"model.from_run={listed(*TRAINED)}", "training.steps=2", "evaluation=none"]
    merged = run_spec(["method=merging/wise_ft", f"model.from_run={listed(*tuned)}", "tracker=none"])
    assert merged.parent is not None and merged.start == merged.parent and merged.parent.parent is not None
    assert merged.needed == (merged.parent, merged.parent.parent)
    alone = run_spec(["method=untrained", f"model.from_run={listed(*tuned)}", "tracker=none"])
    assert alone.start is alone and alone.needed == alone.parents


def test_leave_to_execute_what_a_model_wrote_reaches_parents(composer: Path) -> None:
    coding = listed("model=mini_random", "evaluation.tasks=[mbpp]")
    child = ["model=hf", f"model.from_run={listed('model=hf', f'model.from_run={coding}')}", "tracker=none"]
    with pytest.raises(UserError, match=r"evaluation\.confirm_run_unsafe_code must be true for mbpp"):
        run_spec(child)
    allowed = run_spec([*child, "evaluation.confirm_run_unsafe_code=true"])
    for run in (allowed, allowed.parents[0], allowed.parents[0].parents[0]):
        assert run.config["evaluation"]["confirm_run_unsafe_code"]


def test_a_preset_makes_the_runs_of_a_merging_row_small_and_leaves_its_model(composer: Path) -> None:
    row = ["experiment=flow/combinations", "scale=full", "row=flow_wise_ft"]
    merged = run_spec([*row, "debug=random", "evaluation.confirm_run_unsafe_code=true"])
    assert merged.choices["method"] == "merging/wise_ft" and merged.config["model"]["from_run"] is not None
    assert merged.parent is not None and merged.parent.choices["method"] == "finetune/flow"
    assert merged.parent.choices["debug"] == "random" and merged.parent.config["training"]["steps"] == 2
    architecture = merged.parent.config["model"]["architecture"]
    assert (architecture["model_type"], architecture["num_hidden_layers"]) == ("gemma2", 2)


def test_limits_of_a_preset_reach_the_mix_of_a_parent(composer: Path) -> None:
    mixed = listed("model=mini_random", "mix=context_free", "mix.samples=700")
    child = ["model=hf", f"model.from_run={mixed}", "mix=none", "tracker=none"]
    whole, debug = (run_spec([*child, *words]).parents[0] for words in ([], ["debug=fast"]))
    assert whole.config["mix"]["samples"] == 700 and debug.config["mix"]["samples"] == 64


@cache
def identity_of_tiny() -> str:
    return changed("training.steps=2").identity


# Identity ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "seed=2",
        "optimizer.lr=2e-3",
        "optimizer.betas=[0.9,0.95]",
        "optimizer.weight_decay=0.1",
        "training.batch_size=32",
        "training.steps=3",
        "training.schedule=constant",
        "training.clip_norm=null",
        "training.too_long=drop",
        "engine.precision=bf16_autocast",
        "model.architecture.num_attention_heads=2",
        "model.dtype=bfloat16",
        "model.init_seed=5",
        "dataset.size=65",
        "dataset.seed=9",
        "dataset.skill=sort",
        "dataset.loss_on=all",
        "dataset.data_dir=harmless-base",
        "evaluation.tasks=[mini_world_copy]",
        "evaluation.limit=3",
    ],
)
def test_what_changes_the_identity(override: str) -> None:
    assert changed(override).identity != identity_of_tiny()


@pytest.mark.parametrize(
    "override",
    [
        "outputs=elsewhere",
        "tracker.name=wandb",
        "tracker.project=other",
        "engine.zero_stage=3",
        "engine.threads=1",
        "engine.activation_checkpointing=true",
        "training.micro_batch_size=8",
        "training.log_every=1",
        "training.checkpoint_every=1",
        "evaluation.batch_size=1",
        "evaluation.data_root=.",
        "keep=none",
        "rerun=all",
    ],
)
def test_what_does_not_change_the_identity(override: str) -> None:
    assert changed(override).identity == identity_of_tiny()


def test_choices_of_groups_are_part_of_it_or_not(composer: Path) -> None:
    for override in ("method=untrained", "method=finetune/flow", "evaluation=mini_world", "engine=bf16_autocast"):
        assert spec(override).identity != identity_of_tiny(), override
    for override in ("engine=zero3", "tracker=wandb", "hydra/launcher=basic", "hydra.verbose=true"):
        assert spec(override).identity == identity_of_tiny(), override


def test_order_of_overrides_does_not_matter(composer: Path) -> None:
    assert run_spec(list(reversed(TINY))).identity == run_spec(list(TINY)).identity == identity_of_tiny()


def test_hyper_parameters_of_the_method_are_part_of_it(composer: Path) -> None:
    median = spec("method=finetune/flow").identity
    assert spec("method=finetune/flow", "method.temperature=0.5").identity != median
    assert spec("method=finetune/flow", "method.normalize=true").identity != median


@pytest.mark.parametrize(("couples", "same"), [("None", True), ("'micro-batch'", False), ("'global'", True)])
def test_micro_batch_is_part_of_it_where_the_objective_couples_examples(
    composer: Path, tmp_path: Path, couples: str, same: bool
) -> None:
    method = METHOD.replace("    config: MineConfig\n", f"    config: MineConfig\n    couples = {couples}\n")
    words = [f"plugins={write_plugin(tmp_path / 'coupled', 'coupled', method)}", "method=private/coupled"]
    assert (spec(*words).identity == spec(*words, "training.micro_batch_size=8").identity) is same
    assert (spec(*words).identity == spec(*words, "processes=2").identity) is same


def test_seed_of_the_parent_is_part_of_it(composer: Path) -> None:
    own = run_spec(PARENT)
    other = run_spec([*PARENT, 'model.from_run=["experiment=mini/pretraining","seed=5"]'])
    assert own.parent is not None and other.parent is not None
    assert (own.parent.seed, other.parent.seed) == (0, 5)
    assert own.identity != other.identity


def test_seed_of_the_child_is_not_part_of_the_parent(composer: Path) -> None:
    one, two = run_spec([*PARENT, "seed=1"]), run_spec([*PARENT, "seed=2"])
    assert one.parent is not None and two.parent is not None
    assert one.parent.identity == two.parent.identity and one.identity != two.identity


def test_parent_is_kept_where_the_child_is(composer: Path) -> None:
    child = run_spec([*PARENT, "outputs=elsewhere", "tracker=none", "rerun=stale"])
    assert child.parent is not None
    assert child.parent.folder.parts[0] == "elsewhere"
    assert child.parent.config["tracker"]["name"] == "none" and child.parent.config["rerun"] == "stale"


@pytest.fixture
def data_file(composer: Path) -> Path:
    path = composer / "data.jsonl"
    path.write_text('{"prompt": "1+1=", "answer": "2"}\n')
    return path


def of_file(path: Path | str) -> str:
    base = ("model=mini_random", "evaluation=none", "dataset=file")
    return spec(f"dataset.path={path}", base=base).identity


def test_content_of_a_data_file_is_part_of_it(data_file: Path) -> None:
    before = of_file(data_file)
    data_file.write_text('{"prompt": "1+1=", "answer": "3"}\n')
    assert of_file(data_file) != before


def test_place_of_a_data_file_is_not(data_file: Path) -> None:
    shutil.copy(data_file, data_file.with_name("copy.jsonl"))
    assert of_file(data_file) == of_file("data.jsonl") == of_file("copy.jsonl")


def test_local_copy_of_a_hub_set_enters_by_content(composer: Path) -> None:
    base = ("model=mini_random", "evaluation=none", "dataset=gsm8k", "dataset.data_root=null")
    hub = spec(base=base).identity
    folder = composer / "data" / "gsm8k"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    local = spec("dataset.data_root=data", base=base).identity
    (folder / "train.jsonl").write_text('{"question": "1+1?", "answer": "3"}\n')
    assert len({hub, local, spec("dataset.data_root=data", base=base).identity}) == 3
    with pytest.raises(
        UserError, match=r"dataset\.split=tset: the local copy of openai/gsm8k below data has only train"
    ):
        _ = spec("dataset.data_root=data", "dataset.split=tset", base=base).identity


def test_content_of_a_local_model_is_part_of_it_and_its_place_is_not(composer: Path) -> None:
    base = ("model=hf", "method=untrained", "evaluation=none", "tracker=none")
    for name in ("one", "two"):
        (composer / name).mkdir()
        (composer / name / "config.json").write_text("{}")
    one = spec("model.id=./one", base=base).identity
    assert spec("model.id=./two", base=base).identity == one
    (composer / "one" / "config.json").write_text('{"model_type": "llama"}')
    assert spec("model.id=./one", base=base).identity != one


def test_all_rows_and_seeds_differ(composer: Path, plugin: Path) -> None:
    words = [f"plugins={plugin}", "experiment=tried/table"]
    runs = [run_spec([*words, f"row={row}", f"seed={seed}"]) for row in ("plain", "sft", "flow") for seed in (1, 2)]
    assert len({run.identity for run in runs}) == len({run.folder for run in runs}) == 6
