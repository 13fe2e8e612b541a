"""`retable job=list`: every name that can be chosen, with one line on what it is."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from runners.expand import choices, config_roots, load_experiment

# In the order in which people look for them.
GROUPS = (
    "experiment",
    "method",
    "model",
    "dataset",
    "evaluation",
    "adapter",
    "penalty",
    "mix",
    "optimizer",
    "engine",
    "tracker",
    "scale",
    "debug",
)


def show(overrides: list[str]) -> None:
    """Print every choice of every group."""
    roots = config_roots(overrides)
    console = Console(highlight=False)
    for group in GROUPS:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, min_width=26)
        table.add_column(overflow="fold")
        for name in choices(group, roots):
            table.add_row(f"  {name}", describe(group, name, roots))
        console.print(f"[bold]{group}=[/bold]")
        console.print(table)
    console.print(
        "\nOne run: retable method=finetune/flow · a paper's table: retable -m experiment=flow/language scale=mini"
    )


def describe(group: str, name: str, roots: list[Path]) -> str:
    """One line on a choice: an experiment's title, paper and scales; else the comment at the top of its YAML."""
    if group == "experiment":
        experiment = load_experiment(name, roots)
        paper = experiment.get("paper") or {}
        cited = ", ".join(str(paper[key]) for key in ("table", "arxiv") if paper.get(key))
        scales = "/".join(experiment["scales"])
        return (
            f"{experiment['title']}{f' ({cited})' if cited else ''} · {scales} · rows: {', '.join(experiment['rows'])}"
        )
    path = next(root / group / f"{name}.yaml" for root in roots if (root / group / f"{name}.yaml").is_file())
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[0].removeprefix("#").strip() if lines and lines[0].startswith("#") else ""
