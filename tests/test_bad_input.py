"""What a user gets wrong: one line that names key, value and rule; exit code not 0; nothing finished is lost."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from evals.byte_tokenizer import BOS
from tests.command import TINY, UNTRAINED, forget_sources, retable

ON_FILE = (*(word for word in TINY if not word.startswith("dataset")), "dataset=file", "dataset.path=data.jsonl")


@pytest.fixture(autouse=True)
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a run that ended well: its result."""
    monkeypatch.chdir(tmp_path)
    forget_sources()
    result = tmp_path / "outputs" / "runs" / "finished-s1-00000000" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text('{"metrics": {}}')
    Path("data.jsonl").write_text(json.dumps({"prompt": "1+1=", "answer": "2"}) + "\n")
    yield result
    assert result.read_text() == '{"metrics": {}}'
    forget_sources()


def refused(*words: str) -> str:
    """The one line with which a command ends before anything starts."""
    ended = retable(*words)
    assert ended.code == 1
    assert len(ended.err.strip().splitlines()) == 1 and ended.err.startswith("retable: "), ended.err
    assert ended.out == ""
    assert [path.name for path in Path("outputs").rglob("*")] == ["runs", "finished-s1-00000000", "result.json"]
    return ended.error


def failed(*words: str) -> str:
    """The last line of a run that found its mistake in the data or the model; its folder says why it ended."""
    ended = retable(*words)
    assert ended.code == 1
    assert "Traceback" not in ended.err and ended.err.strip().splitlines()[-1].startswith("retable: ")
    (folder,) = (path for path in Path("outputs/runs").glob("[!.]*") if not path.name.startswith("finished"))
    assert not (folder / "result.json").exists() and not list(folder.glob(".result*"))
    assert ended.error in json.loads((folder / "failure.json").read_text())["error"]
    return ended.error


# More of these, without the command around them: tests/runners/test_compose.py, test_expand.py, test_plan.py.
@pytest.mark.parametrize(
    ("words", "message"),
    [
        # An unknown choice of a group, with the nearest names.
        (["method=flow"], "method=flow: no such choice (nearest: finetune/flow)"),
        (["experiment=flow/langauge"], "experiment=flow/langauge: no such experiment (nearest: flow/language"),
        (
            ["experiment=flow/language", "row=flwo"],
            "row=flwo: experiment flow/language has no such row (nearest: flow, lora); it has pretrained, sft, ",
        ),
        (["hydra/launcher=slrum"], "hydra/launcher=slrum: no such choice"),
        (["job=tabel"], "job=tabel: must be one of run, table, list"),
        # An unknown key, with and without +.
        (["trainig.steps=3"], "trainig.steps=3: no such key (nearest: training.steps"),
        (["+training.stepz=3"], "training.stepz=3: unknown key (nearest: steps"),
        (["+typo=1"], "typo=1: unknown key"),
        # A wrong type.
        (["training.steps=abc"], "training.steps=abc: should be a valid integer"),
        # A learning rate that is none.
        (["optimizer.lr=-1e-3"], "optimizer.lr=-0.001: must be a number greater than 0"),
        # A missing file or folder.
        (["dataset=file", "dataset.path=nowhere.jsonl"], "dataset.path=nowhere.jsonl: no such file"),
        (["plugins=nowhere"], "plugins="),
        # An unknown lm-eval task.
        (["evaluation.tasks=[gsm8kk]"], "evaluation.tasks: unknown lm-eval task 'gsm8kk' (nearest: gsm8k"),
        # Not key=value; several values without -m.
        (["dataset.prompt={question}"], "dataset.prompt={question}: must be key=value"),
        (["seed=1,2"], "seed=1,2: several values make a sweep, which needs -m"),
    ],
)
def test_refused_before_anything_starts(words: list[str], message: str) -> None:
    keys = {word.partition("=")[0] for word in words}
    base = [] if "experiment" in keys else [word for word in UNTRAINED if word.partition("=")[0] not in keys]
    if "dataset" in keys:
        base = [word for word in base if not word.startswith("dataset")]
    assert refused(*base, *words).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr=1e-3,-1"], "optimizer.lr=-1: must be a number greater than 0"),
        (["method=untrained,finetune/flwo"], "method=finetune/flwo: no such choice"),
        (["seed=1,two"], "seed=two: must be a whole number"),
        (["method=glob(nothing*)"], "method=glob(nothing*): must stand for at least one value"),
        (["experiment=flow/language,flow/nothing"], "experiment=flow/nothing: no such experiment"),
    ],
)
def test_one_bad_cell_refuses_the_sweep(words: list[str], message: str) -> None:
    keys = {word.partition("=")[0] for word in words}
    base = ["tracker=none"] if "experiment" in keys else [w for w in UNTRAINED if w.partition("=")[0] not in keys]
    assert refused("-m", *base, *words).startswith(message)


def test_a_cell_whose_data_is_wrong_leaves_the_others_done() -> None:
    Path("other.jsonl").write_text('{"question": "x", "answer": "y"}\n')
    words = [word for word in ON_FILE if not word.startswith("dataset.path")]
    ended = retable("-m", *words, "dataset.path=other.jsonl,data.jsonl")
    assert ended.code == 1 and "1 of 2 cells failed:" in ended.err
    assert "the data set has no column 'prompt'" in ended.error
    assert len(list(Path("outputs/runs").glob("finetune_sft*/result.json"))) == 1


def test_data_set_without_the_columns_of_the_template() -> None:
    assert failed(*ON_FILE, "dataset.prompt='{question}'") == (
        "dataset.prompt='{question}': the data set has no column 'question'; it has prompt, answer"
    )


def test_row_without_a_value() -> None:
    with Path("data.jsonl").open("a") as file:
        file.write('{"prompt": "2+2=", "answer": null}\n')
    assert failed(*ON_FILE) == "dataset.completion='{answer}': example 1 has no 'answer'"


def test_pairs_of_which_none_can_be_used() -> None:
    rows = [{"prompt": "1+1=", "chosen": "2", "rejected": rejected} for rejected in ("2", "2", "")]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert failed(*ON_FILE, "dataset.type=pair", "method=preference/dpo") == (
        "dataset=data.jsonl: no row can be used (3 of 3 rows are left out; 2: chosen equals rejected; "
        "1: an empty response)"
    )


def test_data_that_the_method_cannot_use() -> None:
    assert refused(*ON_FILE, "method=preference/dpo") == (
        "dataset.type=completion: method=preference/dpo needs pair (prompts with a chosen and a rejected response)"
    )


@pytest.mark.parametrize("content", ["", "\n"])
def test_empty_data_set(content: str) -> None:
    Path("data.jsonl").write_text(content)
    assert failed(*ON_FILE) == "dataset.path=data.jsonl: the data set is empty"


def test_file_that_is_no_data() -> None:
    Path("data.jsonl").write_text("not json\n")
    assert failed(*ON_FILE).startswith("dataset.path=data.jsonl: cannot be loaded: ")


def test_sequence_longer_than_the_model_takes() -> None:
    assert failed(*ON_FILE, "model.architecture.max_position_embeddings=4") == (
        "training.max_length=4: example 0 has 7 tokens; raise it, or set training.too_long to truncate or drop"
    )


def test_training_length_beyond_what_the_model_takes() -> None:
    assert failed(*ON_FILE, "training.max_length=5000") == (
        "training.max_length=5000: the model takes at most 4096 tokens"
    )


def test_prompt_template_that_doubles_bos() -> None:
    assert failed(*ON_FILE, f"dataset.prompt='{BOS}{{prompt}}'").startswith(
        f"dataset.prompt: the text '{BOS}1+1=2' begins with BOS '{BOS}', which the tokenizer adds itself"
    )


def test_model_that_is_not_there() -> None:
    words = ["model=hf", "model.id=nobody/nothing", "method=untrained", "evaluation=none", "tracker=none"]
    assert failed(*words).startswith("model.tokenizer=nobody/nothing: cannot be loaded: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.architecture.hidden_size=abc", "model.architecture"),
        ("model.architecture.num_attention_heads=7", "model.architecture"),
        ("model.architecture.model_type=lama", "model.architecture.model_type=lama"),
        ("model.architecture.vocab_size=10", "model."),
        ("+model.architecture.hiden_size=64", "model.architecture.hiden_size=64"),
    ],
)
def test_architecture_that_cannot_be_built(override: str, message: str) -> None:
    error = failed(*ON_FILE, override)
    assert error.startswith(message) and len(error) < 400


def test_optimizer_that_refuses_its_settings() -> None:
    assert failed(*ON_FILE, "optimizer.weight_decay=-1").startswith("optimizer=torch.optim.AdamW: ")


def test_outputs_that_cannot_be_written() -> None:
    Path("file").write_text("")
    ended = retable(*UNTRAINED, "outputs=file/below")
    assert ended.code == 1 and ended.error == "file/below: Not a directory"
    assert "Traceback" not in ended.err


def test_unknown_flag() -> None:
    ended = retable("--multrun")
    assert ended.code == 2 and "unrecognized arguments: --multrun" in ended.err


def test_what_was_wrong_once_runs_when_it_is_mended() -> None:
    """A failed attempt leaves nothing in the way of the next."""
    failed(*ON_FILE, "training.max_length=4")
    Path("data.jsonl").write_text('{"prompt": "", "answer": "2"}\n')
    assert retable(*ON_FILE, "training.max_length=4").code == 0
