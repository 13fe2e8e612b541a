"""All experiments, their rows and scales, and how a test runs one of them."""

import math
import re
from typing import Any

import pytest
import yaml
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from runners import record
from runners.compose import RunSpec, run_spec
from runners.expand import choices, config_roots, expand, load_experiment, parts_of, value_of
from tests.command import retable

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


def slow_unless(quick: bool, *values: str) -> Any:
    """Parameters of a test that `make test` leaves out where others show nearly the same."""
    return pytest.param(*values, marks=[] if quick else pytest.mark.slow)


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
