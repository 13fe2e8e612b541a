"""Task lookup: agreement with lm-eval's own index, precedence, the cache, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evals import task_index
from evals.mini_world import SKILLS
from evals.task_index import TaskRequest, check_requests, check_tasks, find_task, scan, task_folders

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory):
    """A cache of the module's own: one scan of lm-eval serves all tests, and the user's cache is not used."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setattr(task_index, "_memory", {})
        patch.setattr(task_index, "_scanned", set())
        yield folder


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


# All ways to name things that lm-eval's files use.
TREE = {
    "plain.yaml": "task: plain\ndataset_path: a/b\n",
    "quoted.yaml": '"dataset_name": x\n\'task\': "quoted"  # a comment\n',
    "tagged.yaml": "tag:\n  - first tag\n  - 'second'  # of two\ntask: tagged\n",
    "dashes.yaml": "task: dashes\ntag:\n# about tags\n- second\ndoc_to_text: |\n  task: not this\n",
    "inline.yaml": "tag: [second, third]\ntask: inline # the name\n",
    "hash.yaml": "task: has#hash\ntag: third\n",
    "sub/_template": "tag: from template\ndoc_to_text: hello\n",
    "sub/includes.yaml": "include: _template\ntask: includes\n",
    "sub/overrides.yaml": "include: _template\ntask: overrides\ntag: own tag\n",
    "sub/deeper/both.yaml": "include:\n  - ../_template\n  - ../../tagged.yaml\ntask: both\n",
    "group.yaml": "group: group\ntag: ignored\ntask:\n  - plain\n  - group: inner\n    task: [quoted]\n",
    "python.yaml": "task: python\nclass: !function here.Task\ngroup: not a group\ntag: second\n",
    "z_duplicate.yaml": "task: plain\ntag: of the duplicate\n",
    "nameless.yaml": "dataset_path: a/b\n",
    ".ipynb_checkpoints/hidden.yaml": "task: hidden\n",
    "text.txt": "task: text\n",
}


def lm_eval_index(folder: Path) -> dict[str, list[str]]:
    from lm_eval.tasks._index import TaskIndex

    index = TaskIndex.build([folder])
    files = {}
    for name, entry in index.items():
        paths = [entry.yaml_path] if entry.yaml_path else [index[task].yaml_path for task in entry.tags]
        files[name] = sorted(path.relative_to(folder).as_posix() for path in paths)
    return files


def test_scan_finds_what_lm_eval_finds_in_all_ways_of_writing(tmp_path):
    names = scan(write(tmp_path, TREE))
    assert {name: sorted(files) for name, files in names.items()} == lm_eval_index(tmp_path)
    assert names["second"] == [
        "dashes.yaml",
        "inline.yaml",
        "python.yaml",
        "sub/deeper/both.yaml",
        "tagged.yaml",
    ]
    assert names["plain"] == ["plain.yaml"]  # the first of two
    assert "hidden" not in names and "ignored" not in names


@pytest.mark.parametrize(
    "folder", ["mmlu", "arc", "super_glue", "bbh", "leaderboard", "gsm8k", "scrolls", "benchmarks"]
)
def test_scan_finds_what_lm_eval_finds_in_its_own_folders(folder):
    root = task_index._lm_eval_tasks() / folder
    assert {name: sorted(files) for name, files in scan(root).items()} == lm_eval_index(root)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("gsm8k", "gsm8k"),
        ("mmlu", "mmlu/default"),
        ("mmlu_anatomy", "mmlu/default"),
        ("arc_easy", "arc"),
        ("arc_challenge", "arc"),
        ("ai2_arc", "arc"),  # a tag
        ("hellaswag", "hellaswag"),
        ("piqa", "piqa"),
        ("social_iqa", "siqa"),
        ("openbookqa", "openbookqa"),
        ("mbpp", "mbpp"),
        ("ifeval", "ifeval"),
    ],
)
def test_find_task_in_lm_eval(name, folder):
    assert find_task(name) == task_index._lm_eval_tasks() / folder


def test_own_tasks_are_named_like_their_files():
    """And there is one for each skill of the mini world, and for each part of its main target."""
    files = {path.stem for path in task_index.OWN_TASKS.rglob("*.yaml") if not path.stem.startswith("_")}
    assert set(scan(task_index.OWN_TASKS)) == files
    names = [*SKILLS, *(f"relabelled_copy_{part}" for part in SKILLS["relabelled_copy"].parts)]
    assert {f"mini_world_{name}" for name in names} <= files
    assert find_task("mini_world_copy") == task_index.OWN_TASKS / "mini_world"


@pytest.mark.parametrize("name", ["mmlu", "openllm", "mini_world_general", "ai2_arc"])
def test_task_folders_hold_all_members_wherever_they_are(name):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=list(task_folders([name])), include_defaults=False)
    expected = {config["task"] for _, config in task_index._leaves(name, task_index._roots(None))}
    assert expected and {name, *expected} <= set(manager.all_tasks)


def test_members_are_found_across_folders_and_in_written_out_groups(tmp_path):
    write(
        tmp_path,
        {
            "top/all.yaml": "group: all\ntask:\n  - {task: one, num_fewshot: 3}\n"
            "  - group: inner\n    task: [two, a tag]\n",
            "one/one.yaml": "task: one\n",
            "two/two.yaml": "task: two\n",
            "three/deep/three.yaml": "task: three\ntag: a tag\n",
            "four/four.yaml": "task: four\n",
        },
    )
    folders = task_folders(["all"], [tmp_path])
    assert [folder.relative_to(tmp_path).as_posix() for folder in folders] == [
        "one",
        "three/deep",
        "top",
        "two",
    ]


def test_nested_folders_are_read_once(tmp_path):
    write(tmp_path, {"outer.yaml": "task: outer\n", "inner/inner.yaml": "task: inner\n"})
    assert task_folders(["outer", "inner"], tmp_path) == [tmp_path]


def test_the_users_folder_wins_and_comes_last(tmp_path):
    write(tmp_path, {"mine.yaml": "task: gsm8k\n"})
    assert find_task("gsm8k", [tmp_path]) == tmp_path
    assert task_folders(["gsm8k", "mini_world_copy", "piqa"], [tmp_path]) == [
        task_index._lm_eval_tasks() / "piqa",
        task_index.OWN_TASKS / "mini_world",
        tmp_path,
    ]


def test_unknown_task_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"^evaluation\.tasks: unknown lm-eval task 'gsm8kk' \(nearest: gsm8k[,)]"
    ) as caught:
        check_tasks(["gsm8k", "gsm8kk"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="mini_world_copy"):
        find_task("mini_world_cpy")
    with pytest.raises(ValueError, match=r"unknown lm-eval task 'qqqqqqqqqq'$"):
        task_folders(["qqqqqqqqqq"])


def test_missing_include_path(tmp_path):
    with pytest.raises(ValueError, match=r"evaluation\.include_path must name existing folders, got .*nowhere"):
        check_tasks(["gsm8k"], tmp_path / "nowhere")


@pytest.mark.parametrize("included", ["key: [1, 2\n", "- a list\n", "\ttab: 1\n"])
def test_broken_yaml_is_named(tmp_path, included):
    write(tmp_path, {"task.yaml": "include: broken\ntask: broken\n", "broken": included})
    with pytest.raises(
        ValueError, match=r"^evaluation\.tasks: .*/broken must (be readable YAML|hold a mapping), got "
    ) as caught:
        check_requests([TaskRequest("broken")], tmp_path)
    assert "\n" not in str(caught.value)


# The cache --------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_process(monkeypatch, tmp_path):
    """A small stand-in for lm-eval's folder, an empty cache, and a function to forget like a new process."""
    root = write(tmp_path / "tasks", {"old.yaml": "task: old\n"})
    monkeypatch.setattr(task_index, "_lm_eval_tasks", lambda: root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def forget():
        monkeypatch.setattr(task_index, "_memory", {})
        monkeypatch.setattr(task_index, "_scanned", set())

    forget()
    return forget


def count_scans(monkeypatch) -> list[Path]:
    scanned = []
    real = scan

    def counting(folder):
        if folder == task_index._lm_eval_tasks():
            scanned.append(folder)
        return real(folder)

    monkeypatch.setattr(task_index, "scan", counting)
    return scanned


def test_cache_saves_the_scan_of_the_next_process(fresh_process, monkeypatch, tmp_path):
    scanned = count_scans(monkeypatch)
    check_tasks(["old"])
    check_tasks(["old"])
    assert len(scanned) == 1
    (file,) = (tmp_path / "cache" / "retable").iterdir()
    assert json.loads(file.read_text()) == {"old": ["old.yaml"]}
    fresh_process()
    check_tasks(["old"])
    assert len(scanned) == 1


def test_outdated_cache_is_noticed(fresh_process, monkeypatch):
    check_tasks(["old"])
    root = task_index._lm_eval_tasks()
    (root / "old.yaml").rename(root / "moved.yaml")
    (root / "new.yaml").write_text("task: new\n")
    fresh_process()
    scanned = count_scans(monkeypatch)
    check_tasks(["new", "old"])
    with pytest.raises(ValueError, match="unknown"):
        check_tasks(["absent"])
    assert len(scanned) == 1


@pytest.mark.parametrize("damage", ["", "[]", '{"old": '])
def test_damaged_cache_is_replaced(fresh_process, tmp_path, damage):
    check_tasks(["old"])
    (file,) = (tmp_path / "cache" / "retable").iterdir()
    file.write_text(damage)
    fresh_process()
    check_tasks(["old"])
    assert json.loads(file.read_text()) == {"old": ["old.yaml"]}


def test_unwritable_cache_is_skipped(fresh_process, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    check_tasks(["old"])


# Requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "evaluation.tasks: a task's name must be a non-empty string, got ''"),
        (
            {"name": "t", "num_fewshot": -1},
            "evaluation.tasks.t.num_fewshot must be a whole number >= 0, got -1",
        ),
        (
            {"name": "t", "num_fewshot": 1.5},
            "evaluation.tasks.t.num_fewshot must be a whole number >= 0, got 1.5",
        ),
        ({"name": "t", "limit": 0}, "evaluation.tasks.t.limit must be a whole number >= 1, got 0"),
        ({"name": "t", "limit": True}, "evaluation.tasks.t.limit must be a whole number >= 1, got True"),
        (
            {"name": "t", "metadata": [1]},
            "evaluation.tasks.t.metadata must be a mapping of names to values, got [1]",
        ),
    ],
)
def test_request_out_of_range(arguments, message):
    with pytest.raises(ValueError) as caught:
        TaskRequest(**arguments)
    assert str(caught.value) == message


def test_no_request():
    with pytest.raises(ValueError, match="must name at least one task"):
        check_requests([])


def test_unknown_metadata():
    check_requests([TaskRequest("mini_world_general", metadata={"split": "validation", "count": 3, "seed": 1})])
    with pytest.raises(
        ValueError, match=r"mini_world_copy\.metadata must have keys out of split, count, seed, got 'skill'"
    ):
        check_requests([TaskRequest("mini_world_copy", metadata={"skill": "sort"})])
    with pytest.raises(ValueError, match=r"gsm8k\.metadata must be left out: .* got \{'split': 'test'\}"):
        check_requests([TaskRequest("gsm8k", metadata={"split": "test"})])


def test_metadata_of_foreign_custom_data_is_free(tmp_path):
    write(tmp_path, {"task.yaml": "task: foreign\ncustom_dataset: !function data.make\n"})
    check_requests([TaskRequest("foreign", metadata={"anything": 1})], tmp_path)


def test_task_asked_for_twice():
    with pytest.raises(ValueError, match="once, got mini_world_sort in mini_world_general and mini_world_sort"):
        check_requests([TaskRequest("mini_world_general"), TaskRequest("mini_world_sort")])


def test_unsafe_task_must_be_confirmed():
    with pytest.raises(ValueError, match=r"evaluation\.confirm_run_unsafe_code must be true for mbpp, .*, got false"):
        check_requests([TaskRequest("mbpp")])
    check_requests([TaskRequest("mbpp")], confirm_run_unsafe_code=True)


def test_lookup_needs_neither_torch_nor_lm_eval():
    code = (
        "import sys; from evals.task_index import check_tasks; from evals.harness import evaluate\n"
        "check_tasks(['gsm8k'])\n"
        "print(sorted({'torch', 'transformers', 'lm_eval', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
