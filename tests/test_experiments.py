"""The mini experiments themselves, from nothing to their table (minutes: `make test-all`)."""

import csv
import json
from pathlib import Path

import pytest

from tests.command import retable


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_flow_language_in_miniature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base masters at least three skills, and plain fine-tuning at the searched rate forgets at least 10 points.

    What FLOW does to it is the table's to say, not a test's.
    """
    monkeypatch.chdir(tmp_path)
    ended = retable("-m", "experiment=flow/language", "scale=mini", "tracker=none")
    assert ended.code == 0, ended.err
    (base,) = Path("outputs/mini/pretraining").glob("base-*/result.json")
    metrics = json.loads(base.read_text())["metrics"]
    skills = ("copy", "reverse", "increment", "sort", "rotate", "complement")
    assert sum(metrics[f"mini_world_{skill}"]["acc,none"] >= 0.9 for skill in skills) >= 3
    with Path("outputs/flow/language/table-mini/table.csv").open() as file:
        general = {row["row"]: float(row["mean"]) for row in csv.DictReader(file) if row["column"] == "general"}
    assert general["pretrained"] - general["sft"] >= 10
