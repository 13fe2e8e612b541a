"""What all algorithms share: regret, its summary, rounds played at once, longer runs, interrupted ones."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from methods.bandits import base
from methods.bandits.base import Policy, logged_rounds, milestones, standard_error, summary
from methods.bandits.environment import Arms, Array, Bandit, Seen
from methods.bandits.lp_tracking import LpTracking, LpTrackingConfig
from methods.bandits.thompson import Thompson, ThompsonConfig
from methods.bandits.ucb import Ucb, UcbConfig
from methods.bandits.ucb_n import UcbN
from methods.bandits.wu import Wu, WuConfig
from runners.compose import run_spec
from tests.command import retable

ALGORITHMS: dict[str, Callable[[], Policy]] = {
    "ucb": lambda: Ucb(UcbConfig()),
    "ucb_n": lambda: UcbN(UcbConfig()),
    "thompson": lambda: Thompson(ThompsonConfig()),
    "lp_tracking": lambda: LpTracking(LpTrackingConfig()),
    "wu": lambda: Wu(WuConfig(q=1.0)),
}


class Third(Policy):
    """Plays the third arm in every third round, else the first."""

    def choose(self, now: int, seen: Seen, draws_RK: Array) -> Arms:
        return np.full(len(seen.means_RK), 2 if now % 3 == 0 else 0)

    def repeats(self, now_B11: Array, seen: Seen, draws_BRK: Array, arm_R: Arms) -> Any:
        return np.where(now_B11[..., 0] % 3 == 0, 2, 0) == arm_R


def test_regret_is_what_the_plays_cost(bandit: Callable[..., Bandit], playing: Any) -> None:
    context = playing(bandit("standard", horizon=1000))
    found = Third(None).run(context)
    plays = [1 + 666 - 1 - 1 + 1, 1, 333]  # once each in rounds 1 to 3, then by rule
    assert sum(plays) == 1000
    regret = plays[1] * 0.5 + plays[2] * 0.8
    assert found["regret/1000"] == found["regret/mean"] == found["regret/largest"] == pytest.approx(regret)
    assert found["regret/100"] == pytest.approx(0.5 + 33 * 0.8)
    assert found["regret/slope"] == pytest.approx((333 - 33) * 0.8 / math.log(10))
    assert found["regret/over_log"] == pytest.approx(regret / math.log(1000))
    assert found["regret/se"] == found["regret/slope_se"] == 0
    assert found["regret/lower_bound"] == pytest.approx(6.5)
    last = context.logged[1000]
    assert last["regret/lower_bound"] == pytest.approx(6.5 * math.log(1000))
    assert last["regret/mean"] == pytest.approx(regret) and last["regret/bound_over_log"] == pytest.approx(6.5)
    assert tuple(context.logged) == logged_rounds(1000) and "regret/over_log" not in context.logged[1]


def test_summary_by_hand() -> None:
    noted = {100: np.array([1.0, 2.0]), 10: np.array([0.0, 0.5])}
    found = summary(noted, 100, 3.0)
    assert found == {
        "regret/100": 1.5, "regret/mean": 1.5, "regret/se": pytest.approx(0.5), "regret/largest": 2.0,
        "regret/over_log": pytest.approx(1.5 / math.log(100)), "regret/slope": pytest.approx(1.25 / math.log(10)),
        "regret/slope_se": pytest.approx(0.25 / math.log(10)), "regret/lower_bound": 3.0,
        "regret/slope_above_bound": pytest.approx(1.25 / math.log(10) - 3.0),
    }  # fmt: skip
    assert standard_error(np.array([1.0, 2.0, 6.0])) == pytest.approx(math.sqrt(7 / 3))
    assert standard_error(np.array([1.0])) == 0


def test_logged_rounds() -> None:
    assert milestones(20_000) == [100, 200, 500, 1000, 2000, 5000, 10_000, 20_000]
    assert milestones(700) == [100, 200, 500, 700] and milestones(100) == [100]
    rounds = logged_rounds(3000)
    assert rounds == tuple(sorted(set(rounds))) and rounds[0] == 1 and rounds[-1] == 3000
    assert {100, 200, 500, 300, 1000, 2000} <= set(rounds)


@pytest.mark.parametrize("instance", ["standard", "neighbour", "revealing"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_rounds_played_at_once_are_played_as_one_at_a_time(
    name: str, instance: str, bandit: Callable[..., Bandit], playing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bandit(instance, horizon=1500, repetitions=3)
    ahead: list[int] = []
    play_ahead = Policy._play_ahead

    def counted(self: Policy, *args: Any) -> int:
        ahead.append(play_ahead(self, *args))
        return ahead[-1]

    monkeypatch.setattr(Policy, "_play_ahead", counted)
    fast, slow = ALGORITHMS[name](), ALGORITHMS[name]()
    fast_found = fast.run(playing(data))
    # Or nothing was tested; where Thompson sampling knows little for long, it never settles on its arms.
    assert sum(ahead) > 20 or (name, instance) == ("thompson", "revealing")
    monkeypatch.setattr(type(slow), "repeats", lambda self, now, seen, draws, arms: np.zeros((len(now), 3), dtype=bool))
    assert slow.run(playing(data)) == fast_found
    np.testing.assert_array_equal(slow.plays_RK, fast.plays_RK)
    np.testing.assert_array_equal(slow.seen.weighted_RK, fast.seen.weighted_RK)  # to the last bit


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_longer_run_begins_like_a_shorter_one(name: str, bandit: Callable[..., Bandit], playing: Any) -> None:
    short, long = (ALGORITHMS[name]().run(playing(bandit("neighbour", horizon=h))) for h in (200, 500))
    assert short["regret/200"] == long["regret/200"] and short["regret/100"] == long["regret/100"]
    other = ALGORITHMS[name]().run(playing(bandit("neighbour", horizon=200), seed=2))
    assert other["regret/200"] != short["regret/200"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    name: str, bandit: Callable[..., Bandit], playing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_LONGEST_BLOCK", 50)
    data = bandit("revealing", horizon=230)
    whole = playing(data)
    expected = ALGORITHMS[name]().run(whole)
    monkeypatch.setattr(base, "_CHECKPOINT_SECONDS", -1)  # after every block

    class Interrupted(playing):  # type: ignore[misc]
        def checkpoint(self, method: Policy, step: int) -> None:
            super().checkpoint(method, step)
            if step == 150:
                raise KeyboardInterrupt

    first = Interrupted(data)
    with pytest.raises(KeyboardInterrupt):
        ALGORITHMS[name]().run(first)
    second = playing(data, kept=first.kept)
    assert ALGORITHMS[name]().run(second) == expected
    assert min(second.logged) > 150 and {**first.logged, **second.logged} == whole.logged


def test_a_command_ends_with_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("model=none", "dataset=bandits/revealing_arm", "evaluation=none", "tracker=none", "dataset.repetitions=3")
    ended = retable(*words, "method=bandits/lp_tracking", "dataset.horizon=150")
    assert ended.code == 0, ended.err
    (path,) = tmp_path.glob("outputs/*/*/result.json")
    found = json.loads(path.read_text())["method_metrics"]
    assert found["regret/lower_bound"] == pytest.approx(4) and found["regret/150"] > found["regret/100"] > 0
    logged = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == list(logged_rounds(150))


@pytest.mark.usefixtures("composer")
def test_horizon_and_repetitions_are_part_of_a_run_s_identity() -> None:
    words = ["model=none", "dataset=bandits/gaussian", "method=bandits/ucb", "evaluation=none", "tracker=none"]
    plain = run_spec(words)
    for changed in ("dataset.horizon=30000", "dataset.repetitions=7", "dataset.sigma=2.0", "method=bandits/ucb_n"):
        assert run_spec([*words, changed]).identity != plain.identity, changed


def test_the_more_informative_feedback_the_less_regret(bandit: Callable[..., Bandit], playing: Any) -> None:
    standard, full = (
        UcbN(UcbConfig()).run(playing(bandit(name, horizon=2000, repetitions=40))) for name in ("standard", "full")
    )
    assert full["regret/mean"] < standard["regret/mean"] / 2
    assert full["regret/slope"] < 0.1 * standard["regret/slope"]  # it does not grow any more
