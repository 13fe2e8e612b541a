"""Coverage-centric selection: what is dropped, and how the budget is shared among strata."""

import numpy as np
import pytest

from methods.selection import ccs
from methods.selection.ccs import Ccs, CcsConfig


def taken(scores: np.ndarray, k: int, cutoff: float, strata: int) -> np.ndarray:
    return ccs.select(scores, k, cutoff=cutoff, strata=strata, random=np.random.default_rng(0))


def test_the_hardest_are_dropped() -> None:
    scores = np.random.default_rng(1).permutation(100).astype(float)
    assert scores[taken(scores, 70, 0.3, 7)].max() == 69
    assert sorted(scores[taken(scores, 70, 0.3, 7)]) == list(range(70))


def test_every_stratum_gives_as_much() -> None:
    """900 scores in [0, 1), 60 in [1, 2), 4 in [2, 3]: of 100, all 4 of the last, and 48 of each of the others."""
    scores = np.concatenate([np.linspace(0, 0.99, 900), np.linspace(1, 1.99, 60), [2, 2.3, 2.6, 3]])
    chosen = scores[taken(scores, 100, 0.0, 3)]
    assert np.bincount(np.minimum(chosen.astype(int), 2)).tolist() == [48, 48, 4]


def test_one_stratum_is_random_selection_of_what_is_left() -> None:
    scores = np.arange(50.0)
    chosen = {
        tuple(sorted(ccs.select(scores, 3, cutoff=0.5, strata=1, random=np.random.default_rng(n)))) for n in range(9)
    }
    assert len(chosen) > 5 and max(map(max, chosen)) < 25


def test_equal_scores_are_one_stratum() -> None:
    assert len(set(taken(np.zeros(10), 10, 0.0, 50).tolist())) == 10


@pytest.mark.parametrize(
    ("scores", "k", "cutoff", "said"),
    [
        (np.arange(10.0), 8, 0.3, "^cutoff=0.3: must leave at least the 8 points to choose, got 7$"),
        (np.arange(10.0), 2, 1.0, "^cutoff=1.0: must be at least 0 and less than 1$"),
        (np.array([1.0, np.inf]), 1, 0.0, "^scores: must be finite, got inf$"),
    ],
)
def test_what_is_refused(scores: np.ndarray, k: int, cutoff: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        taken(scores, k, cutoff, 5)


def test_method_names_its_key() -> None:
    with pytest.raises(ValueError, match=r"^method.cutoff=0.3: must leave the 8 points to choose, got 7$"):
        Ccs(CcsConfig()).select(np.arange(10.0), 8, np.random.default_rng(0))
