"""Runs without a model: identity, result, a table's metrics, what is refused, and that an interrupted one continues."""

import json
from pathlib import Path
from typing import Any

import pytest

from runners.compose import run_spec
from tests.command import forget_sources, retable
from tests.runners.tiny_run import refusal

STUDY = (
    "model=none", "dataset=bandits/actions", "method=preference/on_policy", "evaluation=none", "tracker=none",
    "method.steps=20", "dataset.actions=20", "dataset.peak=14",
)  # fmt: skip
PLUGIN = '''"""A walk that keeps its state every ten steps."""

from dataclasses import dataclass

from methods.dataset import Dataset
from methods.simulation import Simulation


@dataclass(frozen=True, kw_only=True)
class StepsConfig:
    """size: of a step."""

    size: int = 3


class Steps(Dataset):
    """Steps of one size."""

    config: StepsConfig
    type = "steps"

    def load(self, seed):
        return self.config.size + seed


@dataclass(frozen=True, kw_only=True)
class WalkConfig:
    """stop_at: fail there."""

    stop_at: int = 0


class Walk(Simulation):
    """A walk."""

    config: WalkConfig
    data = ("steps",)
    place = done = 0

    def run(self, context):
        context.restore(self)
        for step in range(self.done + 1, 31):
            if step == STOP:
                raise ValueError("method.stop_at: as if the power were cut")
            self.place, self.done = self.place + context.dataset, step
            context.log({"walk/place": self.place}, step)
            if step % 10 == 0:
                context.checkpoint(self, step)
        return {"walk/place": self.place}

    def state_dict(self):
        return {"place": self.place, "done": self.done}

    def load_state_dict(self, state):
        self.place, self.done = state["place"], state["done"]
'''


def results(outputs: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(outputs.glob("*/*/result.json"))]


def test_a_run_without_a_model_ends_with_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = retable(*STUDY)
    assert ended.code == 0, ended.err
    (result,) = results(tmp_path / "outputs")
    assert result["metrics"] == {} and 0 < result["method_metrics"]["policy/reward"] < 1
    assert "policy/reward" in ended.out
    assert "torch" not in retable(*STUDY).err  # done: nothing to do again


def test_a_sweep_without_a_model_has_a_table_of_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = retable("-m", *STUDY, "seed=1,2,3")
    assert ended.code == 0, ended.err
    assert "policy/reward" in ended.out and "±" in ended.out


@pytest.mark.usefixtures("composer")
def test_training_and_engine_do_not_decide_what_they_do_not_touch() -> None:
    plain = run_spec([*STUDY])
    assert run_spec([*STUDY, "training.batch_size=7", "engine=zero3"]).identity == plain.identity
    for word in ("dataset.peak=13", "method.lr=0.1", "seed=2"):
        assert run_spec([*STUDY, word]).identity != plain.identity, word


@pytest.mark.usefixtures("composer")
def test_its_source_is_that_of_method_and_data_alone() -> None:
    names = run_spec([*STUDY]).sources
    assert "methods.preference.on_policy" in names and "methods.simulation" in names
    assert not any(name.startswith("runners") for name in names)


@pytest.mark.usefixtures("composer")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=mini_random",), "fits models of kind none, got model.kind=causal"),
        (("dataset=relabelled_copy",), "dataset.type=completion: method=preference/on_policy needs actions"),
        (("evaluation=mini_world",), "evaluation=mini_world: measures a model (evaluation.tasks), and model=none"),
        (("adapter=lora",), "has nothing to act on, as method=preference/on_policy trains nothing"),
        (("method=finetune/sft",), "fits models of kind causal, image, got model.kind=none"),
        (("method=untrained",), "fits models of kind causal, image, got model.kind=none"),
        (("processes=2",), "runs in one process"),
        (("model.tokenizer=bytes",), "model.tokenizer: must be null with model.kind=none"),
        (("dataset.actions=1",), "dataset.actions=1: must be at least 2"),
        (("+dataset.colour=1",), "dataset.colour=1: unknown key"),
        (("dataset.width=0",), "dataset.width=0: should be greater than 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words: tuple[str, ...], said: str) -> None:
    base = tuple(word for word in STUDY if not (words[0].startswith("dataset=") and word.startswith("dataset.")))
    if words == ("method=finetune/sft",) or words == ("method=untrained",):
        base = tuple(word for word in base if not word.startswith("method."))
    assert said in refusal(*words, base=base)


@pytest.mark.usefixtures("composer")
def test_text_methods_refuse_data_that_are_no_text() -> None:
    assert "dataset.type=actions: method=finetune/sft needs completion" in refusal(
        "model=mini_random", "dataset=bandits/actions", "evaluation=none", base=()
    )


@pytest.mark.usefixtures("composer")
@pytest.mark.parametrize("preset", ["fast", "overfit", "profile", "random"])
def test_presets_leave_out_what_a_run_without_a_model_has_not(preset: str) -> None:
    run_spec([*STUDY, f"debug={preset}"])


@pytest.mark.usefixtures("clean_path")
def test_an_interrupted_walk_goes_on_where_it_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, text in {
        "walks.py": "import os\n\n" + PLUGIN.replace("STOP", 'int(os.environ.get("STOP_AT", "0"))'),
        "conf/method/walk.yaml": "_target_: walks.Walk\nstop_at: 0\n",
        "conf/dataset/steps.yaml": "_target_: walks.Steps\nsize: 3\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    forget_sources()
    words = (f"plugins={tmp_path}", "model=none", "dataset=steps", "method=walk", "evaluation=none", "tracker=none")
    monkeypatch.setenv("STOP_AT", "26")
    assert retable(*words).code != 0
    monkeypatch.delenv("STOP_AT")
    assert retable(*words).code == 0
    (result,) = results(tmp_path / "outputs")
    assert result["method_metrics"]["walk/place"] == 30 * 4
    lines = [json.loads(line) for path in (tmp_path / "outputs").glob("*/*/metrics.jsonl")
             for line in path.read_text().splitlines()]  # fmt: skip
    assert [line["step"] for line in lines] == list(range(1, 31))  # 21 to 25 are not there twice
