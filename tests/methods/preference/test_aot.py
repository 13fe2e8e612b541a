"""AOT: two worked pairs, DPO as the limit of single ones, and that quantiles of any pairs are compared."""

import pytest
import torch

from methods.preference.aot import Aot, AotConfig, aot_loss
from methods.preference.base import Side
from methods.preference.cdpo import CDpo, CDpoConfig
from methods.preference.dpo import Dpo, DpoConfig
from tests.methods.preference.toy_pair import loss_of, random_sides, side

PAIRED = Aot(AotConfig(beta=0.1))
UNPAIRED = Aot(AotConfig(beta=0.1, variant="unpaired"))
TWO = side([-12.0, -9.0], [-13.0, -9.5]), side([-15.0, -8.0], [-14.5, -8.5])


def test_known_answers():
    losses = PAIRED.losses(*TWO)
    torch.testing.assert_close(losses, torch.tensor([0.6931471806, 0.6209570478], dtype=torch.float64))
    assert losses.mean().item() == pytest.approx(0.6570521142, abs=1e-10)
    assert UNPAIRED.losses(*TWO).mean().item() == pytest.approx(0.6564281540, abs=1e-10)


@pytest.mark.parametrize("method", [PAIRED, UNPAIRED])
def test_of_a_single_pair_it_is_dpo(method):
    assert loss_of(method) == pytest.approx(loss_of(Dpo(DpoConfig())), abs=1e-12)
    smoothed = Aot(AotConfig(beta=0.1, variant=method.config.variant, label_smoothing=0.1))
    assert loss_of(smoothed) == pytest.approx(loss_of(CDpo(CDpoConfig())), abs=1e-12)
    sides = random_sides()
    assert method.losses(*sides).sum() != pytest.approx(Dpo(DpoConfig()).losses(*sides).sum().item(), abs=1e-4)


def test_values_that_are_sorted_alike_need_no_sorting():
    values = torch.tensor([0.3, -1.0, 2.0, 0.1], dtype=torch.float64)
    other = 0.5 * values - 1
    expected = Dpo(DpoConfig()).losses(side(values, 0.0), side(other, 0.0))
    torch.testing.assert_close(aot_loss(values, other, 0.1), expected.sort(descending=True).values)


def test_unpaired_sees_no_pairs():
    """Rejected responses of other prompts in their place: the paired variant and DPO notice, the unpaired does not."""
    chosen, rejected = random_sides()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    mixed = Side(rejected.logps[order], rejected.reference[order], rejected.tokens[order])
    torch.testing.assert_close(UNPAIRED.losses(chosen, mixed), UNPAIRED.losses(chosen, rejected))
    assert not torch.allclose(PAIRED.losses(chosen, mixed), PAIRED.losses(chosen, rejected))


def test_a_constant_of_all_prompts_cancels_in_the_paired_variant():
    chosen, rejected = random_sides()
    shift = torch.linspace(-3, 3, 7, dtype=torch.float64)
    moved = [Side(one.logps + shift, one.reference, one.tokens) for one in (chosen, rejected)]
    torch.testing.assert_close(PAIRED.losses(*moved), PAIRED.losses(chosen, rejected))
    assert not torch.allclose(UNPAIRED.losses(*moved), UNPAIRED.losses(chosen, rejected))


@pytest.mark.parametrize("method", [PAIRED, UNPAIRED])
def test_gradients_reach_the_responses_they_are_of(method):
    """By finite differences, through the sort."""
    chosen, rejected = random_sides()
    leaf = chosen.logps.clone().requires_grad_()

    def total(logps):
        return method.losses(Side(logps, chosen.reference, chosen.tokens), rejected).sum()

    (gradient,) = torch.autograd.grad(total(leaf), leaf)
    for place in range(len(leaf)):
        step = torch.zeros_like(leaf)
        step[place] = 1e-6
        slope = (total(leaf.detach() + step) - total(leaf.detach() - step)) / 2e-6
        assert gradient[place].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-9)


def test_the_micro_batch_is_the_scope_of_the_sort():
    """Part of the run's identity therefore."""
    assert Aot.couples == "micro-batch"
    chosen, rejected = random_sides()
    parts = [
        PAIRED.losses(*(Side(one.logps[s], one.reference[s], one.tokens[s]) for one in (chosen, rejected))).sum()
        for s in (slice(0, 3), slice(3, 7))
    ]
    assert sum(parts).item() != pytest.approx(PAIRED.losses(chosen, rejected).sum().item(), abs=1e-6)
