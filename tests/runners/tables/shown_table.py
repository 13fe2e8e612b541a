"""A table with every kind of cell, and a label that tries to break every form, for the tests of the forms."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runners.tables.measurements import CellRun
from runners.tables.table import Table, build_table

NASTY = 'A<b>&"x"|_50%_ $\\alpha$ [red]~^#{1}'


def config(label: str = "FLOW", published: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    return {
        "name": "flow/language",
        "title": "Fine-tuning & forgetting",
        "paper": {"title": "Upweighting", "authors": "Sanyal et al.", "arxiv": "2502.02797", "table": "Table 2"},
        "scales": {"mini": {"note": "a <miniature>", "seeds": [1, 2, 3]}},
        "rows": {
            "base": {"label": "Pre-trained", "seeds": [0]},
            "sft": {"label": "Standard FT"},
            "flow": {"label": label},
        },
        "columns": {
            "mini": {
                "general": {"label": "General_skills", "metric": "world/acc,none", "better": "higher", "percent": True},
                "nll": {"label": "NLL", "metric": "world/nll", "better": "lower"},
                "part": {"label": "Part", "metric": "world/nll", "better": "lower", "hidden": True},
            }
        },
        "published": list(published),
        "claims": [
            {"text": "FLOW keeps more", "row": "flow", "beats": "sft", "column": "general"},
            {"text": "FLOW learns as much", "row": "flow", "beats": "sft", "column": "nll", "by": 0.5},
            {"text": "FLOW beats the base", "row": "flow", "beats": "base", "column": "nll"},
        ],
        "plots": [{"x": "nll", "y": "general", "title": "Trade_off $x$ <i>"}, {"x": "nll", "y": "general"}],
        "baseline": "sft",
    }


def run(row: str, seed: int, general: float, nll: float, status: str = "done", reason: str = "") -> CellRun:
    metrics = {"world": {"acc,none": general, "nll": nll}} if status == "done" else None
    return CellRun(row, seed, status, metrics, f"outputs/{row}-{seed}", reason)


RUNS = [
    run("base", 0, 0.9, 3.0),
    *(run("sft", seed, 0.50 + seed / 100, 1.0 + seed / 10) for seed in (1, 2, 3)),
    run("flow", 1, 0.71, 1.2),
    run("flow", 2, 0.70, 1.25),
    run("flow", 3, 0, 0, "failed", "loss is not finite"),
]
PUBLISHED: list[dict[str, Any]] = [
    {"row": "sft", "column": "general", "value": 52.0, "scale": "mini", "source": "Table 2, p. 7", "tolerance": 9},
    {"row": "flow", "column": "general", "value": 60.5, "scale": "full"},
    {"row": "flow", "minus": "sft", "column": "general", "value": 5.42, "scale": "full"},
    {"row": "flow", "over": "sft", "column": "general", "value": 1.3, "scale": "full"},
    {"row": "flow", "column": "nll", "value": 1.1, "scale": "mini"},
    {"row": "sft", "column": "nll", "value": 1.2, "scale": "mini"},
]


def table(
    label: str = "FLOW", runs: Iterable[CellRun] = RUNS, published: Sequence[Mapping[str, Any]] = PUBLISHED
) -> Table:
    return build_table(config(label, published), "mini", runs)
