"""`method.reward`: checked before anything starts, part of what a run is and of the source that its result has."""

import json
from pathlib import Path

import pytest

from runners.compose import RunSpec, run_spec
from runners.errors import UserError
from tests.command import TINY, forget_sources

ONLINE = (*TINY, "method=preference/online_dpo", "dataset=preference_pairs")


def spec(*words: str) -> RunSpec:
    return run_spec([*ONLINE, *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.reward.function=evals.nowhere.reward"], "there is no module evals.nowhere"),
        (["method.reward.model=owner/name"], "must name either a function or a model"),
        (["method.reward.function=null", "method.reward.model=./nowhere/at/all"], "neither a hub id nor an existing"),
    ],
)
def test_refused_before_anything_starts(composer: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        spec(*words)
    assert str(error.value).startswith("method.reward") and message in str(error.value)


def test_a_function_of_the_users_own_is_part_of_the_source(composer: Path, plugin: Path) -> None:
    """Changed, it makes a done run stale."""
    judge = plugin / "own_judge.py"
    judge.write_text("def judge(prompts, responses):\n    return [0.0] * len(prompts)\n")
    words = f"plugins={plugin}", "method.reward.function=own_judge.judge"
    before = spec(*words)
    assert "own_judge" in before.sources
    judge.write_text("def judge(prompts, responses):\n    return [1.0] * len(prompts)\n")
    forget_sources()
    after = spec(*words)
    assert after.identity == before.identity and after.source != before.source


def test_a_local_model_counts_by_what_it_is(composer: Path) -> None:
    """Not by where it lies."""
    found = {}
    for place, content in (("a", 1), ("b", 1), ("c", 2)):
        Path(place).mkdir()
        (Path(place) / "config.json").write_text(json.dumps({"content": content}))
        found[place] = spec("method.reward.function=null", f"method.reward.model={place}").identity
    assert found["a"] == found["b"] != found["c"]
    assert spec().identity not in found.values()
