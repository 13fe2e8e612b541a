"""The mini experiments themselves, from nothing to their tables: minutes each, `make test-all`."""

import csv
import json
import math
from pathlib import Path

import pytest

from runners.expand import seeds_of
from tests.command import retable
from tests.experiments.every import (
    EXPERIMENTS,
    MINI,
)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the mini experiments, so that their base is trained once."""
    return tmp_path_factory.mktemp("tables")


def table_of(name: str, tables: Path) -> list[dict[str, str]]:
    """Run a mini experiment; the cells of its table."""
    ended = retable("-m", f"experiment={name}", "scale=mini", "tracker=none", f"outputs={tables}")
    assert ended.code == 0, ended.err
    with (tables / name / "table-mini" / "table.csv").open() as file:
        return [cell for cell in csv.DictReader(file) if cell["kind"] == "row"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MINI)
def test_mini_experiment_ends_in_a_complete_table(tables: Path, name: str) -> None:
    experiment = EXPERIMENTS[name]
    own = {(cell["row"], cell["column"]): cell for cell in table_of(name, tables)}
    assert set(own) == {(row, column) for row in experiment["rows"] for column in experiment["columns"]["mini"]}
    for (row, _), cell in own.items():
        assert math.isfinite(float(cell["mean"]))
        assert int(cell["n"]) == int(cell["expected"]) == len(seeds_of(experiment, row, "mini"))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_flow_language_in_miniature(tables: Path) -> None:
    """The base masters at least three skills, and plain fine-tuning at the searched rate forgets at least 10 points.

    What FLOW does to it is the table's to say, not a test's.
    """
    cells = table_of("flow/language", tables)
    (base,) = tables.glob("mini/pretraining/base-*/result.json")
    metrics = json.loads(base.read_text())["metrics"]
    skills = ("copy", "reverse", "increment", "sort", "rotate", "complement")
    assert sum(metrics[f"mini_world_{skill}"]["acc,none"] >= 0.9 for skill in skills) >= 3
    general = {cell["row"]: float(cell["mean"]) for cell in cells if cell["column"] == "general"}
    assert general["pretrained"] - general["sft"] >= 10
