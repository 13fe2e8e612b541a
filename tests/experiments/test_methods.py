"""Every method runs, in two steps, in a row of a miniature that uses it."""

import json
from pathlib import Path

import pytest

from runners.expand import expand, value_of
from tests.experiments.every import (
    EXPERIMENTS,
    METHODS,
    MINI,
    ROWS,
    all_finite,
    measured_items,
    one_formula,
    only_options,
    ran,
    slow_unless,
)

# A method that writes several responses to each prompt, with fewer prompts.
WRITING = ["training.batch_size=8", "dataset.limit=64"]
# What the default data do not have: unit tests, labels, pairs.
OTHER = {
    "rl/murphy": ["method.rewards=[{function: evals.rewards.math_answer.correct}]"],
    "preference/implicit_prm": ["dataset=preference_labelled"],
    "preference/implicit_prm_kto": ["dataset=preference_pairs"],
}


def words_for(method: str) -> list[str]:
    """The first row of a mini experiment that uses a method, or else the default run with it."""
    for name in MINI:
        for row in ROWS[name]:
            words = [f"experiment={name}", "scale=mini", f"row={row}"]
            if value_of(expand(words), "method") == method:
                return words
    return [f"method={method}", *(WRITING if method.startswith("rl/") else []), *OTHER.get(method, [])]


RUN_ALONE = [method for method in METHODS if not one_formula(method) and not only_options(method)]


@pytest.mark.parametrize("method", [slow_unless(method in RUN_ALONE, method) for method in METHODS])
def test_every_method_runs_at_debug_fast(outputs: Path, method: str) -> None:
    spec, result = ran(*words_for(method), "debug=fast", f"outputs={outputs}")
    assert spec.choices["method"] == method == result["method"]
    if spec.config["model"]["kind"] == "none":  # it measures itself
        assert result["method_metrics"] and not result["metrics"]
    else:
        assert spec.config["training"]["steps"] == 2 == result["method_metrics"].get("train/steps", 2)
        assert result["metrics"] and measured_items(result) == {4}
    assert all(all_finite(values) for values in (result["method_metrics"], *result["metrics"].values()))


WITHOUT_MODEL = [
    name for name in MINI if value_of(expand([f"experiment={name}", f"row={ROWS[name][0]}"]), "model") == "none"
]


@pytest.mark.parametrize("name", WITHOUT_MODEL)
def test_a_method_without_a_model_reports_what_its_table_shows(outputs: Path, name: str) -> None:
    """By the group of each metric: of a shortened run the last part (rounds, iterations) may be another."""
    _, result = ran(f"experiment={name}", f"row={ROWS[name][0]}", "debug=fast", f"outputs={outputs}")
    columns = EXPERIMENTS[name]["columns"]["mini"].values()
    shown = {column["metric"].partition("/")[0] for column in columns if "metric" in column}
    assert shown <= {metric.partition("/")[0] for metric in result["method_metrics"]}


def test_runs_at_debug_fast_share_their_base(outputs: Path) -> None:
    """Of one preset, parents are trained once, and in two steps like the rest."""
    for seed in (1, 2):
        ran("method=untrained", "evaluation=none", "debug=fast", f"seed={seed}", f"outputs={outputs}")
    (base,) = outputs.glob("mini/pretraining/base-mini_random-*/result.json")
    assert json.loads(base.read_text())["method_metrics"]["train/steps"] == 2
