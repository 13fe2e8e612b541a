"""The environment: its kinds, what plays tell, and what it refuses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from methods.bandits.environment import (
    Bandit,
    BanditConfig,
    Feedback,
    GaussianBandit,
    Seen,
    precisions,
    random_instance,
)
from runners.compose import run_spec
from tests.runners.tiny_run import refusal


def matrix(kind: str, **settings: Any) -> Any:
    return precisions(BanditConfig(kind=kind, **settings))  # type: ignore[arg-type]


def test_standard_full_and_graph_feedback_are_matrices() -> None:
    inf = float("inf")
    np.testing.assert_array_equal(matrix("standard", sigma=2.0), np.eye(3) / 4)
    np.testing.assert_array_equal(matrix("full", sigma=2.0), np.ones((3, 3)) / 4)
    graph = matrix("graph", sigma=2.0, graph=((0, 1), (1,), (0, 2)))
    np.testing.assert_array_equal(graph, np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]]) / 4)
    rows = ((2.0, 2.0, None), (None, 2.0, inf), (2.0, None, 2.0))
    np.testing.assert_array_equal(matrix("matrix", sigma=rows), graph)


def test_lower_bound_is_loaded_with_the_instance(bandit: Callable[..., Bandit]) -> None:
    assert bandit("standard").lower_bound == pytest.approx(6.5)
    assert bandit("blind").lower_bound == pytest.approx(8)
    assert bandit("blind", constraint="joint").lower_bound == pytest.approx(16, rel=1e-6)
    np.testing.assert_allclose(bandit("standard").regrets_K, [0, 0.5, 0.8])


def test_random_instances() -> None:
    means, precision_KK = random_instance(50, 0.3, 0.2, 2.0, np.random.default_rng(1))
    told = precision_KK > 0
    assert told.diagonal().all() and 0.25 < told[~np.eye(50, dtype=bool)].mean() < 0.35
    sigma = 1 / np.sqrt(precision_KK[told])
    assert 1 <= sigma.min() < 1.1 and 3.9 < sigma.max() <= 4
    assert sorted(means)[-1] == 1 and sorted(means)[-2] <= 0.8
    config = BanditConfig(kind="random", means=None, arms=5, seed=3)
    first, second = (GaussianBandit(config).load(seed) for seed in (1, 2))  # the run's seed does not matter
    assert np.array_equal(first.means_K, second.means_K) and np.array_equal(first.precision_KK, second.precision_KK)
    other = GaussianBandit(BanditConfig(kind="random", means=None, arms=5, seed=4)).load(1)
    assert not np.array_equal(first.means_K, other.means_K)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_estimates_are_precision_weighted_means_of_what_was_observed(kind: str) -> None:
    random = np.random.default_rng(1)
    means = random.normal(size=4)
    sigma = random.uniform(0.3, 2, (4, 4))
    if kind == "sparse":  # rows of one, two, three and no other arm
        sigma[0, 1:] = sigma[1, 2:] = sigma[2, 0] = sigma[3, [0, 1, 2]] = np.inf
    repetitions, rounds = 3, 12
    feedback = Feedback(means, 1 / sigma**2, repetitions)
    assert feedback.told == (3 if kind == "sparse" else 4)
    seen = Seen(np.zeros((repetitions, 4)), np.zeros((repetitions, 4)))
    observed: list[list[list[tuple[float, float]]]] = [[[] for _ in range(4)] for _ in range(repetitions)]
    for played in range(rounds):
        arm_R, noise_RD = (np.arange(repetitions) + played) % 4, random.standard_normal((repetitions, feedback.told))
        feedback.add(seen, arm_R, noise_RD)
        for repetition, arm in enumerate(arm_R):
            finite = np.flatnonzero(np.isfinite(sigma[arm]))
            # A row that tells about fewer arms leaves out draws: those of the columns that fill it up.
            columns = sorted([*finite, *[j for j in range(4) if j not in finite][: feedback.told - len(finite)]])
            for draw, j in zip(noise_RD[repetition], columns, strict=True):
                if j in finite:
                    observed[repetition][j].append((means[j] + sigma[arm, j] * draw, sigma[arm, j]))
    for repetition, arms in enumerate(observed):
        for j, pairs in enumerate(arms):
            weights = np.array([1 / s**2 for _, s in pairs])
            assert seen.information_RK[repetition, j] == pytest.approx(weights.sum())
            expected = sum(w * x for w, (x, _) in zip(weights, pairs, strict=True)) / weights.sum()
            assert seen.means_RK[repetition, j] == pytest.approx(expected)


def test_estimates_have_the_variance_of_their_information() -> None:
    repetitions, random = 20_000, np.random.default_rng(1)
    precision_KK = np.array([[1.0, 4.0, 0.0], [0.0, 0.5, 2.0], [0.3, 0.0, 1.0]])
    feedback = Feedback(np.array([1.0, 0.0, -1.0]), precision_KK, repetitions)
    seen = Seen(np.zeros((repetitions, 3)), np.zeros((repetitions, 3)))
    for arm in (0, 1, 1, 2):
        feedback.add(seen, np.full(repetitions, arm), random.standard_normal((repetitions, feedback.told)))
    np.testing.assert_allclose(seen.information_RK[0], [1.3, 5.0, 5.0])
    errors = (seen.means_RK - [1.0, 0.0, -1.0]) * np.sqrt(seen.information_RK)
    np.testing.assert_allclose(errors.mean(0), 0, atol=5 / repetitions**0.5)
    np.testing.assert_allclose(errors.var(0), 1, atol=5 * (2 / repetitions) ** 0.5)


def test_nothing_is_seen_where_sigma_is_infinite() -> None:
    feedback = Feedback(np.array([1.0, 2.0]), np.array([[0.0, 1.0], [0.0, 1.0]]), 1)
    seen = Seen(np.zeros((1, 2)), np.zeros((1, 2)))
    feedback.add(seen, np.array([0]), np.array([[0.5]]))
    assert seen.information_RK.tolist() == [[0, 1]] and seen.weighted_RK.tolist() == [[0, 2.5]]


@pytest.mark.parametrize("precision", [np.diag([1.0, 4.0]), np.array([[1.0, 2.0], [3.0, 4.0]])])
def test_many_plays_at_once_are_as_many_single_ones(precision: Any) -> None:
    feedback, random = Feedback(np.array([0.3, 0.7]), precision, 3), np.random.default_rng(1)
    seen = Seen(random.random((3, 2)), random.random((3, 2)))
    noise_BRD, arm_R = random.standard_normal((5, 3, feedback.told)), np.array([0, 1, 0])
    ahead = feedback.ahead(seen, arm_R, noise_BRD)
    for played in range(6):
        for now, all_rounds in zip(seen, ahead, strict=True):
            np.testing.assert_array_equal(now, all_rounds[played])  # to the last bit
        if played < 5:
            feedback.add(seen, arm_R, noise_BRD[played])


SQUARE = ((1.0, None), (None, 1.0))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"means": (1.0, 0.5, 1.0)}, "dataset.means=[1.0, 0.5, 1.0]: must have one best arm, got arms 0 and 2"),
        ({"means": (1.0,)}, "dataset.means=[1.0]: must be at least two finite numbers"),
        ({"means": (1.0, float("nan"))}, "dataset.means=[1.0, nan]: must be at least two finite numbers"),
        ({"means": None}, "dataset.means=None: must be at least two finite numbers"),
        ({"sigma": 0.0}, "dataset.sigma=0.0: must be a number from 1e-06 to 1000000.0"),
        ({"sigma": -1.0}, "dataset.sigma=-1.0: must be a number from 1e-06 to 1000000.0"),
        ({"sigma": SQUARE}, "dataset.sigma: must be a number for kind standard, got a matrix"),
        ({"kind": "matrix"}, "dataset.sigma: must be a matrix for kind matrix, got 1.0"),
        ({"kind": "matrix", "sigma": SQUARE}, "must be a square matrix of 3 rows (one for each of dataset.means)"),
        (
            {"kind": "matrix", "means": (1.0, 0.0), "sigma": ((1.0, 1.0), (1.0,))},
            "and as many columns, got 2 rows of 1 and 2 columns",
        ),
        (
            {"kind": "matrix", "means": (1.0, 0.0), "sigma": ((1.0, None), (-2.0, 1.0))},
            "dataset.sigma[1][0]=-2.0: must be greater than 0, or null where arm 1 tells nothing about arm 0",
        ),
        (
            {"kind": "matrix", "means": (1.0, 0.0), "sigma": ((1.0, 0.0), (None, 1.0))},
            "dataset.sigma[0][1]=0.0: must be greater than 0",
        ),
        (
            {"kind": "matrix", "means": (1.0, 0.0), "sigma": ((1.0, float("nan")), (None, 1.0))},
            "dataset.sigma[0][1]=nan: must be greater than 0",
        ),
        (
            {"kind": "matrix", "means": (1.0, 0.0), "sigma": ((1.0, None), (1.0, float("inf")))},
            "dataset.sigma: some arm must tell about arm 1, got none in its column",
        ),
        ({"kind": "graph"}, "dataset.graph=None: must be given for kind graph"),
        ({"graph": ((0,), (1,), (2,))}, "must be null but for kind graph"),
        ({"kind": "graph", "graph": ((0,), (1,))}, "must list, for each of 3 arms, arms from 0 to 2"),
        ({"kind": "graph", "graph": ((0,), (1,), (3,))}, "must list, for each of 3 arms, arms from 0 to 2"),
        ({"kind": "graph", "graph": ((0, 1), (1,), (1,))}, "some arm must tell about arm 2"),
        ({"kind": "random", "arms": 5}, "dataset.means=[1.0, 0.5, 0.2]: must be null for kind random"),
        ({"kind": "random", "means": None}, "dataset.arms=None: must be given for kind random"),
        ({"arms": 3}, "dataset.arms=3: must be null but for kind random"),
        ({"means": tuple(map(float, range(20))), "horizon": 150}, "must be at least ten times the 20 arms"),
    ],
)
def test_bad_instances_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        BanditConfig(**settings)
    assert said in str(error.value) and str(error.value).startswith("dataset.")


RUN = ("model=none", "dataset=bandits/gaussian", "method=bandits/ucb", "evaluation=none", "tracker=none")


@pytest.mark.usefixtures("composer")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("dataset.means=[1.0,1.0,0.0]",), "dataset.means=[1.0, 1.0, 0.0]: must have one best arm, got arms 0 and 1"),
        (
            ("dataset.kind=matrix", "dataset.means=[1.0,0.0]", "dataset.sigma=[[1.0,null],[-1.0,1.0]]"),
            "dataset.sigma[1][0]=-1.0: must be greater than 0",
        ),
        (("dataset.kind=matrix", "dataset.sigma=[[1.0,null],[null,1.0]]"), "must be a square matrix of 3 rows"),
        (("dataset.horizon=50",), "dataset.horizon=50: should be greater than or equal to 100"),
        (("dataset.repetitions=0",), "dataset.repetitions=0: should be greater than 0"),
        (("dataset.kind=partial",), "dataset.kind=partial"),
        (("dataset.means=[1.0,a]",), "should be a valid number"),
        (("method.width=0",), "method.width=0: should be greater than 0"),
        (("method=bandits/wu", "method.a=0.7"), "method.a=0.7: should be less than or equal to 0.5"),
        (("method=bandits/wu", "method.b=1.0"), "method.b=1.0: should be less than 1"),
        (("method=bandits/lp_tracking", "method.constraint=both"), "method.constraint=both"),
        (("dataset=bandits/actions",), "dataset.type=actions: method=bandits/ucb needs bandit"),
    ],
)
def test_a_command_that_does_not_fit_is_refused_in_one_line(words: tuple[str, ...], said: str) -> None:
    chosen = {word.partition("=")[0] for word in words}
    assert said in refusal(*words, base=tuple(word for word in RUN if word.partition("=")[0] not in chosen))


@pytest.mark.usefixtures("composer")
@pytest.mark.parametrize("name", ["gaussian", "informative_neighbour", "revealing_arm", "blind_best_arm", "random"])
def test_every_instance_composes(name: str) -> None:
    spec = run_spec([*RUN, f"dataset=bandits/{name}"])
    config = BanditConfig(**{key: value for key, value in spec.config["dataset"].items() if key != "_target_"})
    bounds = {"gaussian": 6.5, "informative_neighbour": 4, "revealing_arm": 4, "blind_best_arm": 16}
    found = GaussianBandit(config).load(1).lower_bound
    assert found == pytest.approx(bounds[name], rel=1e-6) if name in bounds else found > 0
