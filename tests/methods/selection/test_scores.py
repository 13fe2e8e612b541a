"""Scores of difficulty by hand, and which are kept."""

import numpy as np
import pytest

from methods.selection import scores
from methods.selection.ccs import CcsConfig


def test_forgetting_events_by_hand() -> None:
    right = np.array(
        [
            [1, 1, 0, 0, 1],
            [0, 1, 0, 1, 1],
            [1, 1, 0, 0, 1],
            [0, 1, 0, 1, 0],
        ],
        dtype=bool,
    )
    assert scores.forgetting(right).tolist() == [2, 0, np.inf, 1, 1]
    assert scores.forgetting(right[:1]).tolist() == [0, 0, np.inf, np.inf, 0]


def test_el2n_by_hand() -> None:
    probabilities = np.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
    kept = probabilities.copy()
    np.testing.assert_allclose(scores.el2n(probabilities, np.array([0, 1])), [(0 + np.sqrt(2)) / 2, np.sqrt(0.5)])
    assert (probabilities == kept).all()


def test_grand_is_a_mean_over_networks() -> None:
    assert scores.grand(np.array([[1.0, 2.0], [3.0, 6.0]])).tolist() == [2, 4]


def test_the_highest_are_kept() -> None:
    assert scores.select(np.array([1.0, np.inf, 3.0, 1.0]), 3).tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match=r"^scores: must be numbers, got nan at 1$"):
        scores.select(np.array([1.0, np.nan]), 1)


def test_one_pass_shows_no_forgetting() -> None:
    for config in (scores.ScoredConfig, CcsConfig):
        with pytest.raises(ValueError, match=r"^method.proxy_passes=1: must be at least 2 for method.score=forgetting"):
            config(score="forgetting", proxy_passes=1)
    assert scores.ScoredConfig(score="el2n", proxy_passes=1).proxy_passes == 1
    with pytest.raises(ValueError, match=r"^method.k=\[\]: must list at least one size, each once$"):
        scores.ScoredConfig(k=[])


def test_never_learnt_is_one_more_than_any_other() -> None:
    assert scores._finite(np.array([0.0, np.inf, 3.0])).tolist() == [0, 4, 3]
    assert scores._finite(np.array([np.inf])).tolist() == [1]
