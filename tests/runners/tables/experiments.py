"""An experiment and runs of it, written by hand, for the tests of tables."""

import copy
import math
from collections.abc import Sequence
from typing import Any

from runners.tables.cells import Cell
from runners.tables.measurements import CellRun
from runners.tables.table import Table

CONFIG: dict[str, Any] = {
    "name": "flow/language",
    "title": "FLOW",
    "paper": {"title": "Upweighting", "authors": "Sanyal et al.", "arxiv": "2502.02797", "table": "Table 2"},
    "scales": {
        "mini": {"setting": "ours", "note": "a miniature", "overrides": [], "seeds": [1, 2, 3]},
        "full": {"overrides": [], "seeds": [1, 2, 3]},
    },
    "rows": {
        "base": {"label": "Pre-trained", "overrides": ["x=1"], "seeds": [0]},
        "sft": {"label": "Standard FT", "overrides": []},
        "flow": {"label": "FLOW", "overrides": []},
    },
    "columns": {
        scale: {
            "general": {"label": "General", "metric": "world/acc,none", "better": "higher", "percent": True},
            "target": {"label": "Target", "metric": "math/acc,none", "better": "higher", "percent": True},
            "nll": {"label": "NLL", "metric": "world/perplexity,none", "better": "lower", "transform": "log"},
            "average": {"label": "Average", "mean_of": ["general", "target"]},
        }
        for scale in ("mini", "full")
    },
    "baseline": "sft",
}
VALUE = {"row": "flow", "column": "general", "value": 60.0, "scale": "full", "source": "Table 2"}
GAP = {"row": "flow", "minus": "sft", "column": "general", "value": 10.0, "scale": "full"}
CLAIM = {"text": "FLOW keeps more", "row": "flow", "beats": "sft", "column": "general", "by": 0.0}


def config(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CONFIG), **changes}


def run(
    row: str, seed: int, general: Any = 0.5, target: float = 0.5, perplexity: float = math.e, **changes: Any
) -> CellRun:
    metrics = {"world": {"acc,none": general, "perplexity,none": perplexity}, "math": {"acc,none": target}}
    given: dict[str, Any] = {"row": row, "seed": seed, "status": "done", "metrics": metrics, **changes}
    return CellRun(**given)


def runs(row: str, generals: Sequence[float], targets: Sequence[float] | None = None) -> list[CellRun]:
    """Done runs of seeds 1, 2, ... with these accuracies."""
    targets = targets or generals
    return [run(row, seed, g, t) for seed, (g, t) in enumerate(zip(generals, targets, strict=True), start=1)]


def cell(table: Table, row: str, column: str) -> Cell | None:
    found = next(r for r in (*table.rows, *table.relations) if r.key == row)
    return found.cell(column)
