"""Priors: how they are written, moments of what they draw, and what is refused."""

import math

import pytest
import torch

from methods.representation.priors import Dimension, Empirical, Factorised, drawn

HYBRID = ("uniform(-5,5)", "gaussian(0,2)", "mixture(5,-5,5)", "mixture(1,-10,10)", "mixture(1, -10, 10)")


def samples(written: str, count: int = 40_000) -> torch.Tensor:
    return drawn(Dimension.read(written), count, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("written", "mean", "sd"),
    [
        ("gaussian", 0, 1),
        ("gaussian(1, 2)", 1, 2),
        ("uniform", 0, 1),
        ("uniform(-5,5)", 0, 10 / math.sqrt(12)),
        ("mixture(1,-10,10)", 0, math.sqrt(101)),
        ("mixture(0,1,2,6)", 3, math.sqrt(14 / 3)),
    ],
)
def test_moments(written: str, mean: float, sd: float) -> None:
    found = samples(written)
    assert float(found.mean()) == pytest.approx(mean, abs=4 * sd / 200)
    assert float(found.std()) == pytest.approx(sd, rel=0.03)


def test_shapes() -> None:
    uniform, two = samples("uniform(-5,5)"), samples("mixture(1,-10,10)")
    assert float(uniform.min()) >= -5 and float(uniform.max()) <= 5
    assert float((uniform.abs() < 1).double().mean()) == pytest.approx(0.2, abs=0.01)
    assert float((two > 0).double().mean()) == pytest.approx(0.5, abs=0.01)
    assert float(two[two > 0].std()) == pytest.approx(1, rel=0.03) and float((two.abs() < 5).double().mean()) < 1e-4


def test_a_list_has_one_sampler_for_each_dimension_and_they_are_independent() -> None:
    prior = Factorised(Dimension.each(HYBRID, 5))
    found = prior.sample(20_000, torch.Generator().manual_seed(0))
    assert found.shape == (20_000, 5)
    expected = torch.tensor([10 / math.sqrt(12), 2, math.sqrt(50), math.sqrt(101), math.sqrt(101)])
    torch.testing.assert_close(found.std(0), expected, rtol=0.03, atol=0)
    assert float(torch.corrcoef(found.T).fill_diagonal_(0).abs().max()) < 0.03
    assert torch.equal(
        prior.sample(9, torch.Generator().manual_seed(3)), prior.sample(9, torch.Generator().manual_seed(3))
    )
    assert len(set(Dimension.each("gaussian", 3))) == 1


def test_saved_codes_are_drawn_with_replacement() -> None:
    codes = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    found = Empirical(codes).sample(3000, torch.Generator().manual_seed(0))
    rows, counts = found.unique(dim=0, return_counts=True)
    assert torch.equal(rows, codes) and int(counts.min()) > 850


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("laplace", r"method.prior=laplace: must be gaussian\(MEAN,SD\)"),
        ("gaussian(1)", r"method.prior=gaussian\(1\): must have two numbers, got 1"),
        ("gaussian(a,b)", "must have numbers between its brackets"),
        ("gaussian()", "must have numbers between its brackets"),
        ("gaussian(0,0)", "must have a standard deviation > 0"),
        ("gaussian(0,inf)", "must have finite numbers"),
        ("uniform(1,1)", "must have its lower end below its upper one"),
        ("mixture(1,2)", "must have a standard deviation >= 0 and two modes or more"),
        ("mixture", "must have a standard deviation >= 0 and two modes or more"),
        ("mixture(-1,2,3)", "must have a standard deviation >= 0 and two modes or more"),
    ],
)
def test_what_is_no_prior_is_refused(written: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Dimension.read(written)


def test_a_list_must_fit_the_latents_and_codes_must_be_some() -> None:
    with pytest.raises(ValueError, match=r"method.prior=\['gaussian'\]: must name a sampler for each of 2 latents"):
        Dimension.each(["gaussian"], 2)
    with pytest.raises(ValueError, match="saved codes must be finite numbers"):
        Empirical(torch.full((3, 2), math.nan))
