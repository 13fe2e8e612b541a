"""Herding: its order by hand, what it keeps exactly, its rate, and that looking ahead picks the same points."""

import numpy as np
import pytest
from numpy.typing import NDArray

from methods.selection import gm_matching, herding
from methods.selection.geometric_median import weiszfeld

SIX = np.array([(2, 0), (0, 2), (-2, 0), (0, -2), (1, 1), (3, 1)], dtype=float)


def greedy(points: NDArray[np.float64], target: NDArray[np.float64], k: int) -> list[int]:
    """Step T + 1 maximises <mu, x> - (1 / (T + 1)) sum <x, x_t>: what theta_0 = mu comes to."""
    taken: list[int] = []
    for step in range(k):
        scores = points @ target - points @ points[taken].sum(0) / (step + 1)
        scores[taken] = -np.inf
        taken.append(int(np.argmax(scores)))
    return taken


def test_order_of_six_points() -> None:
    np.testing.assert_allclose(SIX.mean(0), [2 / 3, 1 / 3])
    assert herding.select(SIX, 6).tolist() == [5, 2, 0, 1, 3, 4]


def test_steps_are_those_of_the_objective_it_stands_for() -> None:
    points = np.random.default_rng(0).standard_normal((80, 3)) + 1
    assert herding.select(points, 40).tolist() == greedy(points, points.mean(0), 40)


def test_theta_is_its_start_and_k_targets_less_the_chosen() -> None:
    """At every step: what the next pick maximises is that theta."""
    points = np.random.default_rng(1).standard_normal((50, 4))
    target, start = points.mean(0), points[3]
    picks = herding.herd(points, target, 50, start)
    for step in range(50):
        theta = start + step * target - points[picks[:step]].sum(0)
        open_ = np.setdiff1d(np.arange(50), picks[:step])
        assert (points[picks[step]] @ theta) == pytest.approx((points[open_] @ theta).max(), rel=1e-9, abs=1e-12)


def test_order_turns_with_the_points_but_does_not_move_with_them() -> None:
    random = np.random.default_rng(2)
    points = random.standard_normal((60, 3))
    turn, _ = np.linalg.qr(random.standard_normal((3, 3)))
    order = herding.select(points, 60).tolist()
    assert herding.select(points @ turn, 60).tolist() == order
    assert herding.select(points + 5, 60).tolist() != order


def test_the_target_is_left_as_it_was() -> None:
    """An in-place update of theta would change the target that it starts as."""
    points, target = SIX.copy(), SIX.mean(0)
    herding.match(points, target, 4)
    assert points.tolist() == SIX.tolist() and target.tolist() == SIX.mean(0).tolist()


def test_rate_is_one_over_k_and_of_random_points_one_over_its_root() -> None:
    """5000 points of N(0, I_8): k times the error stays within a band, and at k = 640 it is far below random's."""
    points = np.random.default_rng(0).standard_normal((5000, 8))
    target = weiszfeld(points)
    picks = herding.match(points, target, 640)
    sizes = (10, 20, 40, 80, 160, 320, 640)
    scaled = [k * np.linalg.norm(points[picks[:k]].mean(0) - target) for k in sizes]
    assert min(scaled) > 1.6 and max(scaled) < 3.65
    assert np.linalg.norm(points[picks].mean(0) - target) == pytest.approx(0.0026, abs=5e-5)
    for k in (10, 160, 640):
        draws = [np.random.default_rng(seed).permutation(5000)[:k] for seed in range(100)]
        errors = [np.linalg.norm(points[draw].mean(0) - points.mean(0)) for draw in draws]
        assert np.sqrt(k) * np.mean(errors) == pytest.approx(2.74 * np.sqrt(1 - k / 5000), rel=0.08)


def test_l2_takes_the_nearest_to_theta() -> None:
    points = np.random.default_rng(4).standard_normal((40, 3)) * [1, 2, 3]
    theta, taken, target = points.mean(0), [], points.mean(0)
    for _ in range(40):
        away = np.linalg.norm(points - theta, axis=1)
        away[taken] = np.inf
        taken.append(int(np.argmin(away)))
        theta = theta + target - points[taken[-1]]
    assert herding.select(points, 40, similarity="l2").tolist() == taken


def test_cosine_is_herding_on_the_sphere_with_a_target_computed_before() -> None:
    points = np.random.default_rng(5).standard_normal((40, 3)) + np.array([2, 0, 1])
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    target = points.mean(0) / np.linalg.norm(points.mean(0))
    assert not np.allclose(target, unit.mean(0))
    assert herding.select(points, 20, similarity="cosine").tolist() == greedy(unit, target, 20)
    lengths = np.random.default_rng(6).uniform(0.1, 10, (40, 1))
    assert herding.match(points * lengths, points.mean(0), 20, similarity="cosine").tolist() == greedy(unit, target, 20)


def test_starts() -> None:
    points = np.random.default_rng(7).standard_normal((30, 3))
    target = np.array([1.0, 2.0, 3.0])
    assert herding.match(points, target, 9).tolist() == herding.herd(points, target, 9, target).tolist()
    by_mean = herding.match(points, target, 9, init="mean").tolist()
    assert by_mean == herding.herd(points, target, 9, points.mean(0)).tolist()
    drawn = {herding.match(points, target, 1, init="random", random=np.random.default_rng(n))[0] for n in range(20)}
    own = {int(np.argmax(points @ start)) for start in points}
    assert len(drawn) > 1 and drawn <= own


def test_batches_pick_their_shares_with_one_theta() -> None:
    points = np.random.default_rng(8).standard_normal((20, 3))
    target = points.mean(0)
    found = herding.match(points, target, 8, batches=3, random=np.random.default_rng(1))
    batches = np.array_split(np.random.default_rng(1).permutation(20), 3)
    theta, expected = target, []
    for batch, share in zip(batches, (3, 3, 2), strict=True):
        left = [int(index) for index in batch]
        for _ in range(share):
            best = max(left, key=lambda index: points[index] @ theta)
            left.remove(best)
            expected.append(best)
            theta = theta + target - points[best]
    assert found.tolist() == expected
    assert sorted(herding.match(points, target, 20, batches=3).tolist()) == list(range(20))
    with pytest.raises(ValueError, match=r"^batches=9: must be from 1 to 8, the number that is picked$"):
        herding.match(points, target, 8, batches=9)


CLOUDS = {
    "normal": lambda random, n, d: random.standard_normal((n, d)),
    "apart": lambda random, n, d: (
        random.standard_normal((n, d)) + 30 * random.standard_normal((5, d))[np.arange(n) % 5]
    ),
    "one far": lambda random, n, d: np.concatenate([random.standard_normal((n - 1, d)), np.full((1, d), 1e6)]),
    "huge": lambda random, n, d: 1e60 * random.standard_normal((n, d)),
    "tiny": lambda random, n, d: 1e-60 * random.standard_normal((n, d)),
    "whole numbers": lambda random, n, d: random.integers(-2, 3, (n, d)).astype(float),
}


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize("by_distance", [False, True])
@pytest.mark.filterwarnings("error")
def test_looking_ahead_picks_the_same(cloud: str, by_distance: bool) -> None:
    for seed, (n, d) in enumerate([(1, 2), (30, 3), (500, 5), (1500, 20)]):
        points = CLOUDS[cloud](np.random.default_rng(seed), n, d)
        bias = -np.einsum("nd,nd->n", points, points) / 2 if by_distance else np.zeros(n)
        k = n if n < 100 else n // 3
        # Whole numbers all through: products and sums are exact, ties as well, and the first of equals is taken.
        target = np.ones(d) if cloud == "whole numbers" else points.mean(0)
        for start in (target, points[0], np.zeros(d)):
            plain = herding.step_by_step(points, target, k, start, bias)
            ahead = herding.look_ahead(points, target, k, start, bias)
            assert ahead.tolist() == plain.tolist()


def test_many_points_are_looked_ahead_for(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).standard_normal((3000, 400)) + np.eye(400)[0] * 5
    assert points.size > herding._PLAIN
    plain = herding.step_by_step(points, points.mean(0), 60, points.mean(0), np.zeros(3000))
    monkeypatch.setattr(herding, "step_by_step", None)
    assert herding.select(points, 60).tolist() == plain.tolist()


def sorted_at_every_step(points: NDArray[np.float64], target: NDArray[np.float64], k: int) -> list[int]:
    """Herding from theta_0 = mu, with a sort of all inner products and a list of the taken."""
    theta, taken = target.copy(), []
    for _ in range(k):
        order = np.argsort(-(points @ theta), kind="stable")
        taken.append(next(int(index) for index in order if index not in taken))
        theta = theta + target - points[taken[-1]]
    return taken


@pytest.mark.parametrize("far", [0.0, 20.0])
def test_picks_are_those_of_a_sort_at_every_step(far: float) -> None:
    points = np.random.default_rng(0).standard_normal((3000, 400)) + np.eye(400)[0] * 5
    points[:600, -1] += far
    assert points.size > herding._PLAIN
    target = weiszfeld(points)
    expected = sorted_at_every_step(points, target, 150)
    start, bias = target, np.zeros(3000)
    assert herding.herd(points, target, 150, start).tolist() == expected
    assert herding.look_ahead(points, target, 150, start, bias).tolist() == expected
    assert gm_matching.select(points, 150).tolist() == expected
