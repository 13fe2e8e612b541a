"""L2 to the start: the toy problem's minimisers, both reductions and norms, the decoupled form."""

from types import SimpleNamespace

import pytest
import torch

from methods.penalty.l2_sp import L2Sp, L2SpConfig, distance_to_start


def prepared(parameters=1, **settings):
    penalty = L2Sp(L2SpConfig(**settings))
    penalty.prepare(SimpleNamespace(trained_parameters=parameters))
    return penalty


def minimised(penalty, rate=0.01, steps=5000):
    """theta of f = (theta - 1)^2 plus the penalty, by gradient descent from theta0 = 0."""
    theta, start = torch.zeros(1), torch.zeros(1)
    for step in range(1, steps + 1):
        found = penalty.on_weights("w", theta, start)
        gradient = 2 * (theta - 1) + (0 if found is None else found[1])
        theta = theta - rate * gradient
        theta = theta + penalty.pull(step, steps, rate) * (start - theta)
    return theta.item()


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 0.5), (0.0, 1.0), (3.0, 0.25), (90.0, 1 / 91)])
def test_toy_minimiser(weight, expected):
    """f = (theta - 1)^2, sum form: 1 / (1 + lambda); lambda 1 gives 0.5, 0 gives 1, infinity the start."""
    assert minimised(prepared(weight=weight, reduction="sum")) == pytest.approx(expected, abs=1e-5)


def test_decoupled_has_the_same_minimiser_of_half_the_weight():
    """theta - lr lambda (theta - theta0) is the gradient of (lambda / 2) (theta - theta0)^2."""
    penalty = prepared(weight=2.0, reduction="sum", decoupled=True)
    assert penalty.on_weights("w", torch.ones(1), torch.zeros(1)) is None
    assert penalty.pull(1, 10, 0.25) == 0.5
    assert minimised(penalty, rate=1e-3) == pytest.approx(0.5, abs=2e-3)


def test_coupled_pulls_nothing():
    assert prepared(weight=1.0, reduction="sum").pull(1, 10, 0.1) == 0.0


def test_mean_divides_by_the_trained_parameters():
    weights, start = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    whole = prepared(3, weight=0.6, reduction="sum").on_weights("w", weights, start)
    mean = prepared(3, weight=0.6, reduction="mean").on_weights("w", weights, start)
    assert whole[0].item() == pytest.approx(0.6 * (1 + 9))
    assert mean[0].item() == pytest.approx(0.2 * (1 + 9))
    torch.testing.assert_close(whole[1], torch.tensor([1.2, -3.6, 0.0]))
    torch.testing.assert_close(mean[1] * 3, whole[1])


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_gradient_is_that_of_the_value(norm):
    torch.manual_seed(0)
    weights, start = torch.randn(6).requires_grad_(), torch.randn(6)
    value, gradient = distance_to_start(weights, start, norm)
    torch.testing.assert_close(torch.autograd.grad(value, weights)[0], gradient)


def test_l1_by_hand():
    value, gradient = distance_to_start(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([0.0, 1.0, 3.0]), "l1")
    assert value.item() == 4.0
    assert gradient.tolist() == [1.0, -1.0, 0.0]


def test_at_the_start_there_is_no_penalty():
    weights = torch.randn(4)
    for norm in ("l1", "l2"):
        value, gradient = prepared(4, weight=1.0, norm=norm).on_weights("w", weights, weights)
        assert value == 0 and not gradient.any()


@pytest.mark.parametrize("settings", [{"norm": "l1", "reduction": "sum"}, {"norm": "l2", "reduction": "mean"}])
def test_decoupled_is_of_the_sum_of_squares_alone(settings):
    with pytest.raises(ValueError, match=r"penalty\.decoupled=true: needs penalty\.norm=l2"):
        L2SpConfig(decoupled=True, **settings)
