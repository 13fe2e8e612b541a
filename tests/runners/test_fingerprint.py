"""What makes a done run stale, and what does not."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runners import fingerprint, record, signatures
from runners.compose import run_spec
from runners.errors import UserError
from runners.fingerprint import ENGINE_MODULES, of_data, of_sources, task_sources
from tests.command import METHOD, UNTRAINED, forget_sources, write_plugin

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of our packages that may be edited."""
    folder = tmp_path_factory.mktemp("sources")
    for package in ("methods", "runners", "evals"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


class Sources:
    """The copy, read in place of the installed packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before: dict[Path, str] = {}

    def module_path(self, module: str) -> Path | None:
        base = self.folder.joinpath(*module.split("."))
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / name
        text = self.before.setdefault(path, path.read_text())
        assert old in text, f"{name} no longer has {old!r}"
        path.write_text(text.replace(old, new, 1))
        signatures._tree.cache_clear()

    def put_back(self) -> None:
        for path, text in self.before.items():
            path.write_text(text)


@pytest.fixture
def sources(copied: Path, clean_path: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sources]:
    found = Sources(copied)
    monkeypatch.setattr(signatures, "module_path", found.module_path)
    monkeypatch.setattr(fingerprint, "module_path", found.module_path)
    signatures._tree.cache_clear()
    yield found
    found.put_back()


def fingerprints() -> dict[str, str]:
    return {name: of_sources([f"methods.finetune.{name}", *ENGINE_MODULES]) for name in ("sft", "flow")}


def test_order_of_keys_does_not_matter() -> None:
    assert of_data({"a": 1, "b": {"c": 2, "d": 3}}) == of_data({"b": {"d": 3, "c": 2}, "a": 1})
    assert of_data({"a": 1}) != of_data({"a": 2}) and of_data([1, 2]) != of_data([2, 1])
    assert of_data({"a": 1}) != of_data({"a": True}) and of_data({"a": None}) != of_data({})


def test_methods_differ(sources: Sources) -> None:
    assert len(set(fingerprints().values())) == 2


def test_editing_a_method_changes_it_and_no_other(sources: Sources) -> None:
    before = fingerprints()
    sources.edit("methods/finetune/flow.py", "np.exp(-losses_M / temperature)", "np.exp(-losses_M * temperature)")
    after = fingerprints()
    assert after["flow"] != before["flow"] and after["sft"] == before["sft"]


def test_editing_what_a_method_builds_on_changes_both(sources: Sources) -> None:
    before = fingerprints()
    sources.edit("methods/finetune/sft.py", "Loss(-forward", "Loss(-2 * forward")
    after = fingerprints()
    assert after["flow"] != before["flow"] and after["sft"] != before["sft"]


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("runners/training.py", "def rate(", "def rate_of(step): ...\n\n\ndef rate("),
        ("runners/data.py", "_CHUNK = 1000", "_CHUNK = 999"),
        ("evals/mini_world.py", "\nimport random\n", "\nimport random\nchanged = 1\n"),
        ("methods/kinds/causal.py", "import torch\n", "import torch\nchanged = 1\n"),
    ],
)
def test_editing_engine_data_or_evaluation_changes_every_method(
    sources: Sources, module: str, old: str, new: str
) -> None:
    before = fingerprints()
    sources.edit(module, old, new)
    after = fingerprints()
    assert after["flow"] != before["flow"] and after["sft"] != before["sft"]


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("methods/finetune/flow.py", '"""FLOW: fine-tune on', '"""Another docstring. FLOW: fine-tune on'),
        ("methods/finetune/flow.py", "class Flow(Sft):\n", "class Flow(Sft):\n    # a comment\n\n"),
        (
            "methods/finetune/flow.py",
            "(losses_M: Losses, temperature: float)",
            "(\n    losses_M: Losses,\n    temperature: float\n)",
        ),
        ("runners/training.py", '"""The one training loop', '"""The training loop'),
        # What only shows or keeps a result.
        ("runners/tracker.py", "import", "changed = 1\nimport"),
        ("runners/record.py", "import", "changed = 1\nimport"),
        ("runners/progress.py", "from rich", "changed = 1\nfrom rich"),
        ("runners/tables/table.py", "import", "changed = 1\nimport"),
        # A method that these do not use.
        ("methods/untrained.py", "return {}", "return {'a': 1.0}"),
    ],
)
def test_comments_layout_and_neutral_modules_do_not_count(sources: Sources, module: str, old: str, new: str) -> None:
    before = fingerprints()
    sources.edit(module, old, new)
    assert fingerprints() == before


def test_a_string_that_is_no_docstring_counts(sources: Sources) -> None:
    before = fingerprints()
    sources.edit("methods/finetune/flow.py", '"flow/temperature"', '"flow/tau"')
    assert fingerprints()["flow"] != before["flow"]


def test_what_newer_pythons_add_to_a_syntax_tree_does_not_count() -> None:
    """Python 3.12 gives every function an empty list of type parameters, and a nested format an empty constant more."""
    source = "def f(a: int = 1) -> str:\n    return f'{a:<{a}} {None}'\n"
    tree, newer = ast.parse(source), ast.parse(source)
    for node in ast.walk(newer):
        if isinstance(node, ast.FunctionDef):
            node.type_params = []
        if isinstance(node, ast.JoinedStr):
            node.values.append(ast.Constant(""))
    assert fingerprint._written(newer) == fingerprint._written(tree)
    for changed in (source.replace("1", "2"), source.replace("None", "0"), source.replace(": int", "")):
        assert fingerprint._written(ast.parse(changed)) != fingerprint._written(tree)


# Tasks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of the user's with two tasks."""
    for name in ("mine", "other"):
        folder = tmp_path / "tasks" / name
        folder.mkdir(parents=True)
        (folder / f"{name}.yaml").write_text(
            f"# A task.\ntask: {name}_task\nrepeats: 1\nprocess: !function code.score\n"
        )
        (folder / "code.py").write_text("def score(x):\n    return x\n")
    return tmp_path / "tasks"


def of_task(tasks: Path) -> str:
    evaluation = {"tasks": [{"name": "mine_task"}], "include_path": [str(tasks)]}
    return of_sources([], task_sources(evaluation))


def test_tasks_that_a_run_uses_are_part_of_its_source(tasks: Path) -> None:
    before = of_task(tasks)
    (tasks / "mine" / "mine.yaml").write_text("task: mine_task\nrepeats: 2\nprocess: !function code.score\n")
    edited = of_task(tasks)
    (tasks / "mine" / "code.py").write_text("def score(x):\n    return -x\n")
    assert len({before, edited, of_task(tasks)}) == 3


def test_comments_in_a_task_and_other_tasks_are_not(tasks: Path) -> None:
    before = of_task(tasks)
    (tasks / "mine" / "mine.yaml").write_text("task: mine_task\n\nrepeats: 1  # once\nprocess: !function code.score\n")
    (tasks / "other" / "other.yaml").write_text("task: other_task\nrepeats: 7\n")
    assert of_task(tasks) == before


def test_only_our_tasks_and_the_users_are_read() -> None:
    own = task_sources({"tasks": [{"name": "mini_world_copy"}], "include_path": []})
    assert [path.name for path in own] == ["mini_world"]
    assert task_sources({"tasks": [{"name": "arc_easy"}], "include_path": []}) == []
    assert task_sources({"tasks": [], "include_path": []}) == []


# A run -------------------------------------------------------------------------------------------------------


def test_run_goes_stale_with_its_method(composer: Path, tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path / "plugin", "ageing")
    write_plugin(plugin, "fresh")

    def spec_of(name: str):
        forget_sources()
        return run_spec([*UNTRAINED[:-1], f"plugins={plugin}", f"method=private/{name}"])

    for name in ("ageing", "fresh"):
        spec = spec_of(name)
        assert record.status(spec).state == "missing"
        spec.folder.mkdir(parents=True)
        record.Recorder(spec).result({"metrics": {}})
        assert record.status(spec).state == "done"
    (plugin / "ageing.py").write_text(METHOD.replace("A private method.", "Another docstring.") + "# a comment\n")
    assert record.status(spec_of("ageing")).state == "done"
    (plugin / "ageing.py").write_text(METHOD.replace("self.config.scale *", "2 * self.config.scale *"))
    stale = record.status(spec_of("ageing"))
    assert stale.state == "stale" and "source" in stale.reason and stale.result is not None
    assert record.status(spec_of("fresh")).state == "done"
    # A stale run keeps its folder: the same settings, done anew.
    assert spec_of("ageing").folder.is_dir()


def test_child_goes_stale_with_its_parents_method(composer: Path, tmp_path: Path) -> None:
    plugin = write_plugin(tmp_path / "plugin", "parental")
    tiny = [word for word in UNTRAINED[:-1] if not word.startswith("tracker")]
    words = [f'model.from_run=[{",".join(repr(word) for word in (*tiny, "method=private/parental"))}]',
             f"plugins={plugin}", "model=hf", "method=untrained", "evaluation=none"]  # fmt: skip
    before = run_spec(words)
    source = before.source  # read when first asked for, which a run does when it starts
    (plugin / "parental.py").write_text(METHOD.replace("self.config.scale *", "2 * self.config.scale *"))
    forget_sources()
    after = run_spec(words)
    assert before.parent is not None and after.parent is not None
    assert after.identity == before.identity and after.source != source


def test_environment_names_versions_hardware_and_commit() -> None:
    found = fingerprint.environment()
    assert set(found) == {"git", "python", "packages", "hardware"}
    assert {"torch", "transformers", "deepspeed", "lm_eval", "hydra-core"} <= set(found["packages"])
    assert found["hardware"]["cores"] >= 1 and found["hardware"]["machine"]
    assert set(found["git"]) == {"commit", "dirty"}


@pytest.mark.usefixtures("composer")
def test_saved_codes_count_by_their_content(tmp_path: Path) -> None:
    def identity(path: Path) -> str:
        words = ["model=none", "evaluation=none", "dataset=representation/discs", "method=representation/autoencoder"]
        return run_spec([*words, "method.loss=ae_mmd", "tracker=none", f"method.prior_codes={path}"]).identity

    codes = np.random.default_rng(0).standard_normal((20, 3))
    for name, saved in (("a", codes), ("copy", codes), ("b", codes + 1)):
        np.save(tmp_path / f"{name}.npy", saved)
    found = [identity(tmp_path / f"{name}.npy") for name in ("a", "copy", "b")]
    assert found[0] == found[1] != found[2]
    with pytest.raises(UserError, match=r"^method.prior_codes=\S+: no such file$"):
        identity(tmp_path / "none.npy")
