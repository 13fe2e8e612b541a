"""`job=export`: a folder that transformers loads, and a card that says what it is."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from runners.compose import run_spec
from runners.jobs.export import card
from tests.command import TINY, UNTRAINED, forget_sources, retable, write_plugin
from tests.runs import write_done

TRAINED = (*TINY, "training.steps=1", "dataset.size=8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory in which one run was trained."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        forget_sources()
        ended = retable(*TRAINED)
        assert ended.code == 0, ended.err
    yield folder
    forget_sources()


@pytest.fixture
def run(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's folder; its working directory is entered."""
    monkeypatch.chdir(trained)
    (result,) = Path("outputs/runs").glob("*/result.json")
    return result.parent


def test_transformers_loads_what_was_exported(run: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    to = tmp_path / "mine" / "model"
    ended = retable(*TRAINED, "job=export", f"to={to}")
    assert ended.code == 0, ended.err
    assert ended.out.strip() == f"Model written to {to} (from {run})"
    model = AutoModelForCausalLM.from_pretrained(to, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(to)
    ours = AutoModelForCausalLM.from_pretrained(run / "model")
    tokens = torch.tensor([tokenizer("copy abc =")["input_ids"]])
    assert torch.equal(model(tokens).logits, ours(tokens).logits)
    assert sorted(path.name for path in to.parent.iterdir()) == ["model"]
    assert not (to / "COMPLETE.json").exists()


def test_the_card_says_what_it_is(run: Path, tmp_path: Path) -> None:
    assert retable("job=export", f"runs=[{run}]", f"to={tmp_path / 'model'}").code == 0
    _, front, text = (tmp_path / "model" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["retable", "finetune-sft", "scale-mini"],
    }
    result = json.loads((run / "result.json").read_text())
    made = json.loads((run / "environment.json").read_text())
    for said in (
        "**This is a miniature**",
        "starting from random weights",
        "`finetune/sft`: Supervised fine-tuning",
        f"`{result['identity']}`",
        f"`{result['source']}`",
        "| Seed | 1 |",
        "mini_world: relabelled_copy, 8 items",
        f"torch {made['packages']['torch']}",
        f"| train | loss | {result['method_metrics']['train/loss']:.4g} |",
        "retable model=mini_random model.architecture.hidden_size=32",
    ):
        assert said in text


def test_the_command_of_the_card_names_the_same_run(run: Path, tmp_path: Path) -> None:
    import shlex

    retable(*TRAINED, "job=export", f"to={tmp_path / 'model'}")
    text = (tmp_path / "model" / "README.md").read_text()
    words = shlex.split(text.split("```\n")[1].splitlines()[0])
    assert words[0] == "retable" and not [word for word in words if word.startswith(("job=", "to="))]
    again = retable(*words[1:])
    assert again.code == 0 and f"skipped: {run.name} is done" in again.err


def test_what_is_there_is_never_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    ended = retable(*TRAINED, "job=export", f"to={tmp_path / 'full'}")
    assert ended.error == f"to={tmp_path / 'full'}: must be a new or an empty folder" and ended.code == 1
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert retable(*TRAINED, "job=export", f"to={tmp_path / 'empty'}").code == 0
    assert (tmp_path / "empty" / "model.safetensors").is_file()


def test_mistakes_are_one_line(run: Path, tmp_path: Path) -> None:
    to = f"to={tmp_path / 'model'}"
    assert retable(*TRAINED, "job=export").error.startswith("to=null: job=export needs the folder to write")
    assert retable(*TRAINED, "seed=7", "job=export", to).error.endswith("is not done: it has not run")
    assert retable("job=export", "runs=[nowhere]", to).error == "runs=nowhere: no such folder"
    assert retable("job=export", f"runs=[{run},{run}]", to).error.endswith("job=export writes one run")
    assert retable(*UNTRAINED).code == 0
    assert "holds no final weights (nothing was trained, or keep=none)" in retable(*UNTRAINED, "job=export", to).error
    assert not (tmp_path / "model").exists()


def test_the_base_model_is_at_the_beginning_of_the_chain(composer: Path) -> None:
    chain = ["model=hf", """model.from_run=['model=hf','model.from_run=["model=qwen3_0_6b"]']"""]
    child = run_spec([*chain, "tracker=none"])
    assert child.parent is not None and child.parent.parent is not None
    folder = write_done(child)
    assert "base_model" not in card(folder)  # its parents are not here
    write_done(child.parent)
    write_done(child.parent.parent)
    assert "base_model: Qwen/Qwen3-0.6B-Base\n" in card(folder)
    assert "starting from `Qwen/Qwen3-0.6B-Base`" in card(folder) and child.parent.name in card(folder)


def test_the_base_model_of_a_soup_is_that_of_its_runs(composer: Path) -> None:
    runs = ",".join(f"['model=qwen3_0_6b','seed={seed}']" for seed in (1, 2))
    words = ["method=merging/model_soup", "model.from_run=null", f"model.from_runs=[{runs}]", "tracker=none"]
    soup = run_spec(words)
    folder = write_done(soup)
    assert "base_model" not in card(folder)
    for parent in soup.parents:
        write_done(parent)
    assert "base_model: Qwen/Qwen3-0.6B-Base\n" in card(folder)


def test_a_row_of_an_experiment_cites_its_table_and_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plugin = write_plugin(tmp_path / "plugin")
    words = [f"plugins={plugin}", "experiment=tried/table", "row=sft", "seed=2", "tracker=none"]
    assert retable(*words).code == 0
    assert retable(*words, "job=export", "to=model").code == 0
    text = Path("model/README.md").read_text()
    assert "Row *SFT* of the table *A table of three rows* (`tried/table`, scale `mini`)." in text
    assert "| Seed | 2 |" in text and "experiment=tried/table" in text
