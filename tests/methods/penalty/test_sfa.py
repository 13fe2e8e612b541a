"""SFA: at which steps it averages, and its limits beta 0 and 1."""

import pytest
import torch

from methods.penalty.sfa import Sfa, SfaConfig


def steps_of(total, **settings):
    penalty = Sfa(SfaConfig(**settings))
    return [step for step in range(1, total + 1) if penalty.pull(step, total, 0.1)]


def trained(total, **settings):
    """Steps of +1 from theta0 = 0, averaged as SFA says."""
    penalty, start, theta, path = Sfa(SfaConfig(**settings)), torch.zeros(1), torch.zeros(1), []
    for step in range(1, total + 1):
        theta = theta + 1
        by = penalty.pull(step, total, 0.1)
        theta = by * start + (1 - by) * theta
        path.append(theta.item())
    return path


@pytest.mark.parametrize(("total", "frequency", "expected"), [
    (300, 0.25, [75, 150, 225, 300]),
    (8, 0.25, [2, 4, 6, 8]),
    (8, 0.5, [4, 8]),
    (8, 1.0, [8]),
    (3, 0.25, [1, 2, 3]),  # not more often than every step
])  # fmt: skip
def test_steps(total, frequency, expected):
    assert steps_of(total, frequency=frequency) == expected


def test_beta_zero_is_plain_training():
    assert steps_of(8, beta=0.0) == []
    assert trained(8, beta=0.0) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_beta_one_returns_to_the_start():
    """After the last average there are only the steps since; here it is the last step itself."""
    assert trained(8, frequency=0.5, beta=1.0) == [1, 2, 3, 0, 1, 2, 3, 0]


def test_beta_half_by_hand():
    assert trained(4, frequency=0.5, beta=0.5) == [1, 1, 2, 1.5]


def test_weights_are_not_penalised_in_the_loss():
    assert Sfa(SfaConfig()).on_weights("w", torch.ones(2), torch.zeros(2)) is None
