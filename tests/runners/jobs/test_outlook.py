"""`job=plan`: what would run, what it needs, and how big that is estimated to be."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from runners import fingerprint, lock, record
from runners.compose import run_spec
from runners.jobs.hub import Hub
from runners.jobs.outlook import disk_of, memory_of, size_of
from runners.sweep import check_all
from tests.command import UNTRAINED, forget_sources, retable, write_plugin
from tests.runs import write_done


@pytest.fixture
def words(composer: Path) -> list[str]:
    """What names the made-up experiment: rows plain (seed 0), sft and flow (seeds 1, 2)."""
    return [f"plugins={write_plugin(composer / 'plugin')}", "experiment=tried/table", "tracker=none"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty hub cache, and a hub that must not be asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("RETABLE_DATA", raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: pytest.fail("the hub was asked"))
    yield tmp_path / "hub"
    fingerprint._hub_revision.cache_clear()  # what a made-up hub has answered


def planned(*words: str) -> list[str]:
    ended = retable(*words, "job=plan")
    assert ended.code == 0, ended.err
    assert "\x1b" not in ended.out and max(map(len, ended.out.splitlines())) <= 100
    return [" ".join(line.split()) for line in ended.out.splitlines() if line.strip()]


# What would run ----------------------------------------------------------------------------------------------


def test_cells_are_grouped_by_what_would_become_of_them(words: list[str]) -> None:
    ((_, (plain, sft1, sft2, flow1, _)),) = check_all(words)
    write_done(plain)
    record.write_json(write_done(sft1) / "result.json", {**(record.read_result(sft1.folder) or {}), "source": "old"})
    record.Recorder(sft2).open({})
    record.Recorder(sft2).failure(ValueError("no"))
    with lock.held(flow1.folder, patience=0):
        lines = planned("-m", *words)
    text = " ".join(lines)
    assert lines[0] == "tried/table, scale mini"
    assert "plain 0 skipped: done sft 1 skipped: stale; rerun=stale runs it again" in text
    assert "2 runs again, as it failed; 1 step of 64 examples flow 1 waits for process" in text
    assert lines[-1] == "3 of 5 cells would run"
    again = planned("-m", *words, "rerun=all", "row=plain,sft")
    assert (
        "plain 0 runs again; no training" in again
        and "sft 1 runs again, as it is stale; 1 step of 64 examples" in again
    )


def test_nothing_is_started_or_written(words: list[str]) -> None:
    planned("-m", *words)
    assert not Path("outputs").exists()


def test_a_refusal_is_foreseen(words: list[str]) -> None:
    from runners.sweep import left_to_run

    left_to_run(checked := check_all(words))
    for spec in checked[0][1]:
        write_done(spec)
    path = Path("plugin/conf/experiment/tried/table.yaml")
    path.write_text(path.read_text().replace("optimizer.lr=2e-3", "optimizer.lr=3e-3"))
    forget_sources()
    ended = retable("-m", *words, "job=plan")
    assert ended.code == 0 and ended.out.startswith(
        "The command would be refused: changed=refuse: cells of tried/table"
    )


def test_one_run_and_its_parent(composer: Path) -> None:
    words = ["model=hf", 'model.from_run=["model=mini_random","training.steps=9"]', "tracker=none"]
    lines = planned(*words)
    assert "default 1 runs; 300 steps of 64 examples" in lines
    assert any(line.startswith("finetune_sft-mini_random-s1-") and "9 steps" in line for line in lines)
    assert lines[-1] == "1 of 1 cell would run, and 1 parent first"


def test_what_is_done_needs_nothing(composer: Path) -> None:
    write_done(run_spec(list(UNTRAINED)))
    lines = planned(*UNTRAINED)
    assert lines[-1] == "0 of 1 cell would run" and not any("estimate" in line for line in lines)


def test_nothing_heavy_is_imported(composer: Path) -> None:
    code = "import sys; from runners.main import main; main(); assert not {'torch', 'transformers'} & set(sys.modules)"
    command = [sys.executable, "-c", code, "-m", "experiment=flow/language", "job=plan"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "31 of 31 cells would run, and 1 parent first" in done.stdout, done.stderr


# What is needed ----------------------------------------------------------------------------------------------


def test_a_full_scale_names_models_data_and_tasks(composer: Path, cache: Path) -> None:
    lines = planned("-m", "experiment=flow/language", "scale=full", "evaluation.confirm_run_unsafe_code=true")
    missing = "MISSING here; the hub was not asked (HF_HUB_OFFLINE)"
    for name in ("google/gemma-2-2b", "meta-math/MetaMathQA", "allenai/ai2_arc", "cais/mmlu", "openai/gsm8k"):
        assert f"{name} {missing}" in lines
    rows = "pretrained, sft, linear_probe, lora, l2, wise_ft, flow"
    text = " ".join(lines)
    assert f"Memory (estimate): unknown for {rows}: the model's size is not known here" in text


def test_data_of_a_mix_and_of_our_tasks_on_hub_sets_are_named_too(composer: Path, cache: Path) -> None:
    mixed = planned(*UNTRAINED[:4], "tracker=none", "mix=replay", "evaluation=none")
    assert "mini world, pretraining made here, nothing to download" in mixed
    words = ["mix.dataset.source=hub", "+mix.dataset.path=owner/texts", "evaluation=none"]
    missing = "MISSING here; the hub was not asked (HF_HUB_OFFLINE)"
    assert f"owner/texts {missing}" in planned(*UNTRAINED[:4], "tracker=none", "mix=replay", *words)
    lines = planned(*UNTRAINED[:4], "tracker=none", "method=untrained", "evaluation.tasks=[medcalc,mini_world_sort]")
    assert f"ncbi/MedCalc-Bench-v1.0 {missing}" in lines and "mini world made here, nothing to download" in lines


def test_local_copies_and_files_are_found(composer: Path, cache: Path) -> None:
    folder = composer / "data" / "gsm8k"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    words = [*UNTRAINED[:4], "tracker=none", "dataset=gsm8k", "evaluation=gsm8k"]
    roots = [f"dataset.data_root={composer / 'data'}", f"evaluation.data_root={composer / 'data'}"]
    text = " ".join(planned(*words, *roots)).replace(" ", "")
    assert f"openai/gsm8klocalcopy{folder}/train.jsonl" in text and f"openai/gsm8klocalcopy{folder}" in text
    lines = planned(*UNTRAINED[:4], "tracker=none", "dataset=file", f"dataset.path={folder}/train.jsonl")
    assert any(line.endswith("local file") for line in lines) and "mini world made here, nothing to download" in lines


def test_the_cache_is_looked_at_first(cache: Path) -> None:
    snapshot = cache / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    assert Hub().where("owner/name", "model").startswith("in the hub cache without its weights; MISSING here")
    (snapshot / "model.safetensors").write_text("")
    assert Hub().where("owner/name", "model") == "in the hub cache"
    assert Hub().where("owner/name", "model", "abc") == "in the hub cache"
    assert "MISSING" in Hub().where("owner/name", "model", "other")
    assert "MISSING" in Hub().where("owner/name", "dataset")
    (cache.parent / "datasets" / "owner___name").mkdir(parents=True)
    assert Hub().where("owner/name", "dataset") == "in the cache of prepared data sets"


def _answer(kind: type[Exception]) -> Exception:
    return kind("no", response=httpx.Response(403, request=httpx.Request("GET", "https://hub")))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("info", "access", "said"),
    [
        (SimpleNamespace(gated=False), None, "on the hub, will be downloaded"),
        (SimpleNamespace(gated="manual"), None, "on the hub, gated, and you may read it"),
        (SimpleNamespace(gated="auto"), _answer(GatedRepoError), "GATED on the hub: needs a login"),
        (_answer(RepositoryNotFoundError), None, "MISSING: not on the hub, or private"),
        (OSError("no network"), None, "not here; what the hub has cannot be known, it is not reachable"),
    ],
)
def test_what_the_hub_says(cache: Path, monkeypatch: pytest.MonkeyPatch, info: Any, access: Any, said: str) -> None:
    asked = []

    def answer(value: Any) -> Any:
        def tell(_: Any, name: str, **options: Any) -> Any:
            asked.append((name, options.get("timeout")))
            if isinstance(value, Exception):
                raise value
            return value

        return tell

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", answer(info))
    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", answer(access))
    hub = Hub()
    assert hub.where("owner/name", "model").startswith(said)
    assert asked[0] == ("owner/name", 5.0)
    before = len(asked)
    hub.where("owner/other", "model")
    assert (len(asked) == before) == ("not reachable" in said)  # an unreachable hub is asked once


def test_the_size_that_the_hub_tells_is_used(cache: Path, composer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = SimpleNamespace(gated=False, safetensors=SimpleNamespace(total=2_000_000_000), sha="a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: told)
    lines = planned("model=llama_3_2_1b", "tracker=none")
    assert any("2,000,000,000 8.0 GB 8.0 GB 16.0 GB 0 MB 32.0 GB" in line for line in lines)
    assert "without" in lines[-4] or "without activations" in " ".join(lines)


# Estimates ---------------------------------------------------------------------------------------------------


def test_the_estimate_of_the_mini_model(composer: Path) -> None:
    spec = run_spec(["model=mini_random", "training.max_length=100", "training.micro_batch_size=16"])
    size = size_of(spec, Hub())
    assert size.parameters == 1_022_016
    found = memory_of(spec, size)
    assert found is not None
    needed, assumed = found
    assert (needed.weights, needed.gradients, needed.optimizer) == (4_088_064, 4_088_064, 8_176_128)
    # 16 x 100 tokens: 68 bytes x 192 channels x 2 layers; of 1,024 at a time 8 bytes x 259 logits
    assert needed.activations == 1600 * 68 * 192 * 2 + 1024 * 8 * 259 and assumed == "16 x 100 tokens"
    disk = disk_of(spec, size)
    assert disk is not None and (disk.running, disk.done) == (4_088_064, 4_088_064)


def test_processes_share_what_zero_shards(composer: Path) -> None:
    words = ["model=mini_random", "engine=zero3", "processes=4", "nodes=2"]
    found = memory_of(spec := run_spec(words), size_of(spec, Hub()))
    assert found is not None and found[0].weights == 1_022_016 * 4 // 8
    assert found[1].startswith("8 x ")  # 64 examples on 8 processes


def test_an_untrained_run_needs_its_weights_alone(composer: Path) -> None:
    spec = run_spec(["model=mini_random", "method=untrained"])
    found = memory_of(spec, size_of(spec, Hub()))
    assert found is not None and found[0].total == 4_088_064
    disk = disk_of(spec, size_of(spec, Hub()))
    assert disk is not None and disk.running == disk.done == 0


def test_a_child_has_its_parents_size(composer: Path) -> None:
    spec = run_spec(["model=hf", 'model.from_run=["model=mini_random"]'])
    assert size_of(spec, Hub()).parameters == 1_022_016


def test_a_local_folder_is_measured(composer: Path) -> None:
    Path("mine").mkdir()
    architecture = run_spec(["model=mini_random"]).config["model"]["architecture"]
    Path("mine/config.json").write_text(json.dumps(architecture))
    spec = run_spec(["model=hf", "model.id=mine"])
    assert size_of(spec, Hub()).parameters == 1_022_016
