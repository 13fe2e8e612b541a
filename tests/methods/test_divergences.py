"""Divergences: worked numbers, limits, probabilities of 0, and other people's implementations."""

import math

import pytest
import torch
import torch.nn.functional as F

from methods.divergences import generalized_jsd, kl

P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
UNIFORM = torch.full((4,), 0.25, dtype=torch.float64)


def logps(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)


def by_definition(p, q):
    """KL as sums of Python floats."""
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p.tolist(), q.tolist(), strict=True) if a > 0)


def test_kl_of_one_step():
    """p* = [.5, .3, .15, .05] against uniform: KL = 0.244174 = cross-entropy 1.386294 - entropy 1.142120."""
    assert kl(P.log(), UNIFORM.log()).item() == pytest.approx(0.244174, abs=5e-7)
    entropy = -(P * P.log()).sum().item()
    assert entropy == pytest.approx(1.142120, abs=5e-7)
    assert math.log(4) - entropy == pytest.approx(kl(P.log(), UNIFORM.log()).item(), abs=1e-12)


def test_kl_of_two_tokens_is_not_that_after_the_first():
    """Chain rule on p(z1) = [.6, .4], p(z2|z1) = [[.9, .1], [.2, .8]]: 0.318072; given the first symbol, 0.368064."""
    first = torch.tensor([0.6, 0.4], dtype=torch.float64)
    second = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    half = torch.full_like(second, 0.5).log()
    conditional = kl(second.log(), half)
    whole = kl(first.log(), half[0]) + (first * conditional).sum()
    assert whole.item() == pytest.approx(0.318072, abs=5e-7)
    assert conditional[0].item() == pytest.approx(0.368064, abs=5e-7)
    joint = (first[:, None] * second).flatten()
    assert kl(joint.log(), torch.full_like(joint, 0.25).log()).item() == pytest.approx(whole.item(), abs=1e-12)
    entropy = -(first * first.log()).sum() - (first[:, None] * second * second.log()).sum()
    assert entropy.item() == pytest.approx(1.068222, abs=5e-7)


@pytest.mark.parametrize(("temperature", "tempered", "expected"), [
    (0.5, [0.684932, 0.246575, 0.061644, 0.006849], 0.134262),
    (2.0, [0.378996, 0.293569, 0.207585, 0.119849], 0.052595),
])  # fmt: skip
def test_kl_to_the_tempered_model(temperature, tempered, expected):
    found = (P.log() / temperature).log_softmax(-1)
    torch.testing.assert_close(found.exp(), torch.tensor(tempered, dtype=torch.float64), rtol=0, atol=5e-7)
    assert kl(P.log(), found).item() == pytest.approx(expected, abs=5e-7)


def test_kl_equals_torch_and_is_zero_only_for_equals():
    p, q = logps(0, 5, 7), logps(1, 5, 7)
    torch.testing.assert_close(kl(p, q), F.kl_div(q, p, reduction="none", log_target=True).sum(-1))
    assert (kl(p, q) > 0).all()
    assert (kl(p, p) == 0).all()


def test_probabilities_of_zero():
    """0 log 0 is 0; what q rules out and p does not is infinitely far; gradients stay numbers."""
    p = torch.tensor([1.0, 0.0, 0.0]).log()
    q = torch.tensor([0.5, 0.5, 0.0]).log()
    assert kl(p, q).item() == pytest.approx(math.log(2))
    assert kl(q, p).item() == math.inf
    logits = torch.tensor([0.3, -0.2, -math.inf], requires_grad=True)
    other = torch.tensor([0.1, 0.4, -math.inf], requires_grad=True)
    (kl(logits.log_softmax(-1), other.log_softmax(-1))).backward()
    assert torch.isfinite(logits.grad).all() and torch.isfinite(other.grad).all()
    two = torch.tensor([0.3, -0.2], requires_grad=True)
    kl(two.log_softmax(-1), other.detach()[:2].log_softmax(-1)).backward()
    torch.testing.assert_close(logits.grad[:2], two.grad)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_jsd_by_direct_computation(alpha):
    teacher, student = logps(2, 6, 9), logps(3, 6, 9)
    for row in range(6):
        t, s = teacher[row].exp(), student[row].exp()
        mixture = (1 - alpha) * s + alpha * t
        expected = (1 - alpha) * by_definition(s, mixture) + alpha * by_definition(t, mixture)
        if alpha in (0.0, 1.0):
            expected = by_definition(*((t, s) if alpha == 0 else (s, t)))
        assert generalized_jsd(teacher[row], student[row], alpha).item() == pytest.approx(expected, abs=1e-12)


def test_jsd_symmetry_bound_and_zero():
    teacher, student = 20 * logps(4, 50, 9), 20 * logps(5, 50, 9)
    teacher, student = teacher.log_softmax(-1), student.log_softmax(-1)
    found = generalized_jsd(teacher, student, 0.5)
    torch.testing.assert_close(found, generalized_jsd(student, teacher, 0.5))
    assert (found <= math.log(2) + 1e-12).all() and (found > 0).all()
    apart = torch.tensor([0.0, -math.inf]), torch.tensor([-math.inf, 0.0])
    assert generalized_jsd(*apart, 0.5).item() == pytest.approx(math.log(2))
    for alpha in (0.0, 0.2, 0.5, 1.0):
        torch.testing.assert_close(generalized_jsd(teacher, teacher, alpha), torch.zeros(50, dtype=torch.float64))


def test_jsd_tends_to_the_two_kls():
    """The mixture form tends to 0 at both ends; divided by alpha, resp. 1 - alpha, to the two KLs."""
    teacher, student = logps(6, 3, 9), logps(7, 3, 9)
    small = 1e-6
    low, high = generalized_jsd(teacher, student, small), generalized_jsd(teacher, student, 1 - small)
    assert low.max() < 1e-4 and high.max() < 1e-4
    torch.testing.assert_close(low / small, kl(teacher, student), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(high / small, kl(student, teacher), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.3, 0.5])
def test_jsd_where_both_rule_a_token_out(alpha):
    """A masked token adds nothing, and its gradient is a number."""
    found = []
    for masked in (False, True):
        student = torch.tensor([0.2, -1.0, 0.5] + [-math.inf] * masked, requires_grad=True)
        teacher = torch.tensor([1.0, 0.3, -0.4] + [-math.inf] * masked).log_softmax(-1)
        value = generalized_jsd(teacher, student.log_softmax(-1), alpha)
        value.backward()
        assert torch.isfinite(student.grad).all()
        found.append((value.detach(), student.grad[:3]))
    torch.testing.assert_close(found[0], found[1])


def test_alpha_out_of_range():
    with pytest.raises(ValueError, match=r"alpha must be between 0 and 1, got 1\.5"):
        generalized_jsd(P.log(), P.log(), 1.5)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_jsd_equals_trl(alpha):
    theirs = pytest.importorskip("trl.experimental.sdft.loss_utils").compute_divergence
    teacher, student = logps(8, 4, 11), logps(9, 4, 11)
    torch.testing.assert_close(generalized_jsd(teacher, student, alpha), theirs(student, teacher, alpha))
