"""Whole runs through the command: what they leave behind, what is skipped, what survives a failure."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from runners import tracker
from tests.command import TINY, retable, write_plugin

DATA = os.environ.get("RETABLE_DATA")
MEASURED = [word for word in TINY if word != "evaluation=none"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def only_run(pattern: str = "outputs/runs/*") -> Path:
    (folder,) = (path for path in Path.cwd().glob(pattern) if not path.name.startswith(("table", ".")))
    return folder


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_a_run_leaves_its_whole_record(tmp_path):
    ended = retable(*MEASURED, "method=finetune/flow", "evaluation.limit=5", "training.log_every=1")
    assert ended.code == 0, ended.err
    folder = only_run()
    result = result_of(folder)
    assert folder.name.endswith(result["identity"][:8]) and result["seed"] == 1
    assert set(result["metrics"]) >= {"mini_world_general", "mini_world_sort", "mini_world_relabelled_copy"}
    assert {"acc,none", "acc_stderr,none", "nll,none"} <= set(result["metrics"]["mini_world_sort"])
    assert result["samples"]["mini_world_sort"] == {"original": 250, "effective": 5}
    assert result["cut_prompts"]["mini_world_sort"] == 0
    assert result["method_metrics"]["flow/temperature"] > 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["packages"]["torch"] and environment["hardware"]["cores"] and environment["seed"] == 1
    assert len((folder / "samples" / "mini_world_sort.jsonl").read_text().splitlines()) == 5
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        AutoTokenizer.from_pretrained(folder / "model"),
    )
    assert model.config.hidden_size == 32 and tokenizer("hé")["input_ids"][0] == tokenizer.bos_token_id
    assert not (folder / "failure.json").exists() and "result.json" in ended.out


def test_a_done_run_is_skipped_and_a_stale_one_waits_for_rerun():
    first = retable(*TINY)
    assert first.code == 0, first.err
    folder = only_run()
    written = (folder / "result.json").stat().st_mtime_ns
    assert "skipped" in retable(*TINY).err
    assert (folder / "result.json").stat().st_mtime_ns == written
    result = result_of(folder)
    (folder / "result.json").write_text(json.dumps({**result, "source": "another"}))
    assert "stale" in retable(*TINY).err
    assert result_of(folder)["source"] == "another"
    again = retable(*TINY, "rerun=stale")
    assert again.code == 0 and result_of(folder)["source"] == result["source"]
    kept = [path for path in folder.parent.glob("[!.]*") if path != folder]
    assert len(kept) == 1 and result_of(kept[0])["source"] == "another", "the former result is kept"


def test_the_same_run_twice_gives_the_same_weights():
    for number in (1, 2):
        assert retable(*TINY, f"outputs=o{number}", "training.steps=4", "method=finetune/flow").code == 0
    weights = [next(Path.cwd().glob(f"o{n}/runs/*/model/model.safetensors")).read_bytes() for n in (1, 2)]
    assert weights[0] == weights[1]
    results = [result_of(only_run(f"o{n}/runs/*"))["method_metrics"] for n in (1, 2)]
    for name in ("train/loss", "flow/temperature"):
        assert results[0][name] == results[1][name]


def from_run(overrides: list[str]) -> str:
    return "model.from_run=[" + ",".join(f"'{word}'" for word in overrides) + "]"


PARENT = [word for word in TINY if not word.startswith(("model=", "tracker"))]


def test_a_parent_runs_first_once_and_its_weights_are_taken():
    parent = ["model=mini_random", "dataset=mini_pretraining", "seed=7", *PARENT]
    child = ["model=mini", from_run(parent), "dataset.size=8", "training.steps=1", "evaluation=none",
             "tracker=none"]  # fmt: skip
    ended = retable("-m", *child, "seed=1,2")
    assert ended.code == 0, ended.err
    parents = [path for path in Path("outputs/runs").glob("[!.]*") if "mini_random-s7" in path.name]
    children = [path for path in Path("outputs/runs").glob("[!.]*") if "-mini-s" in path.name]
    assert len(parents) == 1 and len(children) == 2
    assert ended.err.count("which runs first") == 1
    assert all(result_of(path)["parent"] == parents[0].name for path in children)
    untrained = retable(*child, "method=untrained", "keep=last")
    assert untrained.code == 0


def test_a_parent_that_another_experiment_has_done_is_taken(tmp_path):
    """Its weights are loaded from where they lie; where it has kept none, it is run again in its own place."""
    plugin = write_plugin(tmp_path / "plugin")
    table = plugin / "conf/experiment/tried/table.yaml"
    (plugin / "conf/experiment/other.yaml").write_text(table.read_text().replace("name: tried/table", "name: other"))
    plugins = f"plugins={plugin}"
    done = retable(plugins, "experiment=tried/table", "row=sft", "seed=2", "tracker=none")
    assert done.code == 0, done.err
    theirs = only_run("outputs/tried/table/sft-*")
    child = ["model=mini", from_run(["experiment=other", "row=sft", "seed=2"]), "method=untrained", "evaluation=none",
             "tracker=none", "keep=last", plugins]  # fmt: skip
    ended = retable(*child)
    assert ended.code == 0, ended.err
    assert "which runs first" not in ended.err and not Path("outputs/other").exists()
    shutil.rmtree(theirs / "model")
    again = retable(*child, "seed=2")
    assert again.code == 0, again.err
    assert "holds no final weights" in again.err and "it is run again" in again.err
    own = only_run("outputs/other/sft-*")
    assert (own / "model").is_dir() and not (theirs / "model").exists()
    assert result_of(own)["identity"] == result_of(theirs)["identity"]
    for number in (1, 2):
        assert "which runs first" not in retable(*child, f"seed={2 + number}").err


def test_a_stale_parent_is_refused_with_the_way_out():
    parent = ["model=mini_random", "dataset=mini_pretraining", *PARENT]
    child = ["model=mini", from_run(parent), "dataset.size=8", "training.steps=1", "evaluation=none",
             "tracker=none"]  # fmt: skip
    assert retable(*child).code == 0
    folder = next(path for path in Path("outputs/runs").glob("[!.]*") if "mini_random" in path.name)
    result = result_of(folder)
    (folder / "result.json").write_text(json.dumps({**result, "source": "another"}))
    refused = retable(*child, "seed=2")
    assert refused.code == 1 and "stale" in refused.error and "rerun=stale" in refused.error
    assert retable(*child, "seed=2", "rerun=stale").code == 0


def test_numbers_that_diverge_are_one_line_and_keep_the_last_checkpoint():
    words = [*TINY, "optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps", "optimizer.lr=1e6",
             "training.clip_norm=null", "training.steps=20", "training.checkpoint_every=1",
             "training.warmup_ratio=0"]  # fmt: skip
    ended = retable(*words)
    assert ended.code == 1
    assert "not finite" in ended.error or "loss is" in ended.error
    assert "step" in ended.error
    folder = only_run()
    assert not (folder / "result.json").exists()
    last = max((folder / "checkpoints").glob("step-*"))
    assert (last / "COMPLETE.json").is_file()
    weights = torch.load(last / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    assert "step" in json.loads((folder / "failure.json").read_text())["error"]
    assert "Traceback" in (folder / "run.log").read_text()


def test_a_local_model_and_file_run(tmp_path):
    assert retable(*TINY).code == 0
    model = only_run() / "model"
    rows = [{"question": f"{number} + 1?", "answer": str(number + 1)} for number in range(20)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["model=hf", f"model.id={model}", "dataset=file", "dataset.path=sums.jsonl", "dataset.prompt='{question} '",
             "training.steps=2", "training.packing=true", "training.max_length=64", "evaluation=none", "tracker=none",
             "outputs=two"]  # fmt: skip
    ended = retable(*words)
    assert ended.code == 0, ended.err
    assert result_of(only_run("two/runs/*"))["method_metrics"]["train/steps"] == 2


def test_the_table_of_a_sweep_is_written_and_mirrored_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker, "INIT_SECONDS", 120.0)  # many tests may run beside this one
    words = [word for word in MEASURED if word != "tracker=none"]
    words += ["method=finetune/sft,finetune/flow", "seed=1,2", "evaluation.limit=4"]
    opened = tracker.WandbTracker._open

    def not_a_table(self):
        if self._run["job_type"] == "table":
            raise OSError("no space left")
        return opened(self)

    with monkeypatch.context() as once:
        once.setattr(tracker.WandbTracker, "_open", not_a_table)
        ended = retable("-m", *words)
    assert ended.code == 0, ended.err
    (folder,) = Path("outputs/runs").glob("table-mini*")
    assert {"table.md", "table.csv", "table.tex", "table.html"} <= {path.name for path in folder.iterdir()}
    assert "method=finetune/flow" in (folder / "table.md").read_text()
    assert len(list(Path("outputs/runs").glob("*/wandb/offline-run-*"))) == 4
    for _ in range(2):  # sent once it can be, and then no more
        again = retable("-m", *words, "job=table")
        assert again.code == 0 and len(list(folder.glob("wandb/offline-run-*"))) == 1, again.err


@pytest.mark.skipif(not DATA, reason="RETABLE_DATA does not name a folder with gsm8k")
def test_real_gsm8k_through_lm_evals_own_task():
    words = [*(word for word in MEASURED if not word.startswith("dataset.size")), "dataset=gsm8k", "evaluation=gsm8k",
             "evaluation.limit=2", "training.batch_size=4", "training.micro_batch_size=2"]  # fmt: skip
    ended = retable(*words)
    assert ended.code == 0, ended.err
    result = result_of(only_run())
    metrics = result["metrics"]["gsm8k"]
    assert {"exact_match,strict-match", "exact_match,flexible-extract"} <= set(metrics)
    assert result["samples"]["gsm8k"] == {"original": 1319, "effective": 2}
    assert result["evaluation"]["num_fewshot"]["gsm8k"] == 5


WITH_REFERENCE = '''"""A private method with a frozen role."""

from methods.finetune.sft import Sft, SftConfig
from methods.objective import Loss


class Mine(Sft):
    """SFT that also reports how far the policy is from the frozen reference."""

    config: SftConfig
    frozen = ("reference",)

    def loss(self, forward):
        policy, reference = forward.token_logps(), forward.token_logps("reference")
        assert policy.requires_grad and not reference.requires_grad
        return Loss(-policy.sum(), {"gap": (policy - reference).detach().abs().sum()})
'''


@pytest.mark.parametrize("engine", ["default", "zero3"])
def test_a_frozen_role_stays_as_it_was_loaded(tmp_path, engine):
    plugin = write_plugin(tmp_path / "plugin", module=f"reference_{engine}", method=WITH_REFERENCE)
    yaml = plugin / f"conf/method/private/reference_{engine}.yaml"
    yaml.write_text(yaml.read_text().replace("scale: 1.0\n", ""))
    ended = retable(*TINY, f"plugins={plugin}", f"method=private/reference_{engine}", f"engine={engine}",
                    "training.steps=3",
                    "training.log_every=1", "optimizer.lr=1e-2", "training.warmup_ratio=0")  # fmt: skip
    assert ended.code == 0, ended.err
    lines = (only_run() / "metrics.jsonl").read_text().splitlines()
    gaps = [json.loads(line)["train/gap"] for line in lines]
    assert gaps[0] == pytest.approx(0, abs=1e-5), "both start from the same weights"
    assert gaps[2] > gaps[1] > 1e-3, "only the policy moves"
