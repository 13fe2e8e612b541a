"""Divergences: worked numbers, limits, probabilities of 0, and other people's implementations."""

import math

import pytest
import torch
import torch.nn.functional as F

from methods.divergences import (
    exp_then_linear,
    expm1_then_linear,
    f_divergence,
    f_score,
    f_value,
    generalized_jsd,
    kl,
)

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


# f-divergences --------------------------------------------------------------------------------------------------------

# f(u) as the table of the module has it, in plain arithmetic.
GENERATORS = {
    "reverse_kl": lambda u: u * math.log(u),
    "forward_kl": lambda u: -math.log(u),
    "js": lambda u: u * math.log(u) - (u + 1) * math.log((u + 1) / 2),
    "alpha": lambda u: (u**0.7 - 0.7 * u - 0.3) / (0.3 * (0.3 - 1)),
    "pearson": lambda u: (u - 1) ** 2,
    "hellinger": lambda u: (math.sqrt(u) - 1) ** 2,
    "total_variation": lambda u: abs(u - 1) / 2,
}
EXTREMES = (-1e4, -100.0, -41.0, -40.0, -1.0, 0.0, 1.0, 39.0, 40.0, 41.0, 100.0, 1e4)


def with_gradient(function, divergence, log_u):
    leaf = log_u.clone().requires_grad_()
    value = function(divergence, leaf, 0.3)
    (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    return value.detach(), torch.zeros_like(leaf) if gradient is None else gradient


@pytest.mark.parametrize("divergence", GENERATORS)
def test_generator_and_its_derivative(divergence):
    """f against plain arithmetic, f(1) = 0; the score against finite differences of f, up to a constant."""
    f = GENERATORS[divergence]
    u = torch.tensor([1e-3, 0.2, 0.9, 1.0, 1.3, 4.0, 50.0], dtype=torch.float64)
    found = f_value(divergence, u.log(), 0.3)
    torch.testing.assert_close(found, torch.tensor([f(x) for x in u.tolist()], dtype=torch.float64))
    assert found[3] == 0
    slopes = torch.tensor([(f(x * 1.000001) - f(x * 0.999999)) / (2e-6 * x) for x in u.tolist()], dtype=torch.float64)
    constant = {"reverse_kl": 1.0}.get(divergence, 0.0)
    torch.testing.assert_close(f_score(divergence, u.log(), 0.3) + constant, slopes, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("divergence", "alpha", "chosen", "rejected"), [
    ("reverse_kl", 0.5, 1.0, -0.5),
    ("forward_kl", 0.5, -0.367879, -1.648721),
    ("js", 0.5, 0.379885, -0.280930),
    ("alpha", 0.1, 0.951626, -0.512711),
    ("alpha", 0.3, 0.863939, -0.539447),
    ("alpha", 0.5, 0.786939, -0.568051),
    ("alpha", 0.7, 0.719164, -0.598668),
    ("alpha", 0.9, 0.659367, -0.631458),
])  # fmt: skip
def test_scores_of_two_log_ratios(divergence, alpha, chosen, rejected):
    found = f_score(divergence, torch.tensor([1.0, -0.5], dtype=torch.float64), alpha)
    torch.testing.assert_close(found, torch.tensor([chosen, rejected], dtype=torch.float64), rtol=0, atol=5e-7)


@pytest.mark.parametrize("function", [f_value, f_score])
@pytest.mark.parametrize("divergence", GENERATORS)
def test_generator_far_from_1(divergence, function):
    """fp32: value and gradient finite at log u of +-10^4; scores increase, and their gradients can be squared."""
    value, gradient = with_gradient(function, divergence, torch.tensor(EXTREMES))
    assert torch.isfinite(value).all() and torch.isfinite(gradient).all()
    if function is f_score:
        assert (value.diff() >= 0).all() and (gradient >= 0).all()
        assert torch.isfinite(gradient.square().sum())


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha", "pearson", "hellinger"])
def test_score_beyond_the_limit_still_has_a_slope(divergence):
    """A clamp would have none: what has gone too far would not come back."""
    far = -1e4 if divergence != "pearson" else 1e4
    _, gradient = with_gradient(f_score, divergence, torch.tensor([far]))
    assert gradient.item() > 1


@pytest.mark.parametrize("divergence", ["js", "forward_kl", "alpha", "hellinger"])
def test_scores_that_are_bounded_above(divergence):
    """JS below log 2, forward KL below 0, alpha below 1/alpha, Hellinger below 1: margins saturate."""
    bound = {"js": math.log(2), "forward_kl": 0.0, "alpha": 1 / 0.3, "hellinger": 1.0}[divergence]
    found = f_score(divergence, torch.tensor([30.0, 200.0], dtype=torch.float64), 0.3)
    assert (found <= bound).all() and found[1].item() == pytest.approx(bound, abs=1e-12)


def test_alpha_lies_between_the_two_kls():
    """alpha -> 0: reverse KL, alpha -> 1: forward KL; scores (up to the constant) and divergences."""
    log_u = torch.linspace(-3, 3, 13, dtype=torch.float64)
    p, q = logps(10, 6, 9), logps(11, 6, 9)
    for alpha, name, constant in ((1e-7, "reverse_kl", 0.0), (1 - 1e-7, "forward_kl", 1.0)):
        torch.testing.assert_close(
            f_score("alpha", log_u, alpha), f_score(name, log_u) + constant, rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(f_divergence("alpha", p, q, alpha), f_divergence(name, p, q), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("divergence", GENERATORS)
def test_f_divergence_is_the_mean_of_f(divergence):
    """Under q; 0 for equals, > 0 for others; two-dimensional input."""
    p, q = logps(12, 5, 7), logps(13, 5, 7)
    expected = [
        sum(b * GENERATORS[divergence](a / b) for a, b in zip(x.exp().tolist(), y.exp().tolist(), strict=True))
        for x, y in zip(p, q, strict=True)
    ]
    found = f_divergence(divergence, p, q, 0.3)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(found, (q.exp() * f_value(divergence, p - q, 0.3)).sum(-1))
    assert (found > 0).all()
    assert (f_divergence(divergence, p, p, 0.3).abs() < 1e-12).all()


def test_f_divergences_known_answers():
    """p = (1/2, 1/2), q = (1/4, 3/4)."""
    p = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    q = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    expected = {
        "reverse_kl": 0.5 * math.log(4 / 3),
        "forward_kl": 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2),
        "pearson": 1 / 3,
        "hellinger": 2 - 2 * (math.sqrt(1 / 8) + math.sqrt(3 / 8)),
        "total_variation": 1 / 4,
        "js": 2 * generalized_jsd(p, q, 0.5).item(),
        "alpha": (2 - 2 * (math.sqrt(1 / 8) + math.sqrt(3 / 8))) * 2,  # alpha 1/2: twice the squared Hellinger distance
    }
    assert expected.keys() == GENERATORS.keys()
    for divergence, value in expected.items():
        assert f_divergence(divergence, p, q, 0.5).item() == pytest.approx(value, abs=1e-12), divergence


@pytest.mark.parametrize("divergence", GENERATORS)
def test_f_divergence_with_probabilities_of_zero(divergence):
    """Of both: nothing is added, and gradients are numbers. Of one: finite or infinite, as its formula says."""
    found = []
    for masked in (False, True):
        p = torch.tensor([0.2, -1.0, 0.5] + [-math.inf] * masked, requires_grad=True)
        q = torch.tensor([1.0, 0.3, -0.4] + [-math.inf] * masked, requires_grad=True)
        value = f_divergence(divergence, p.log_softmax(-1), q.log_softmax(-1), 0.3)
        value.backward()
        assert torch.isfinite(p.grad).all() and torch.isfinite(q.grad).all()
        found.append((value.detach(), p.grad[:3], q.grad[:3]))
    torch.testing.assert_close(found[0], found[1])
    one, both = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.5, 0.5]).log()
    infinite_at = {"reverse_kl": (False, True), "pearson": (False, True), "forward_kl": (True, False)}
    ends = [math.isinf(f_divergence(divergence, *pair, 0.3).item()) for pair in ((one, both), (both, one))]
    assert tuple(ends) == infinite_at.get(divergence, (False, False))


def test_pearson_of_probabilities_that_underflow():
    """p = e^-55, q = e^-110 for one token: p^2/q is 1, although q is no number of fp32."""
    p, q = torch.tensor([0.0, -55.0]), torch.tensor([0.0, -110.0])
    assert f_divergence("pearson", p, q).item() == pytest.approx(1.0)


def test_exponentials_with_a_tangent():
    """Exact below the limit, in value and in gradient, down to where expm1's own gradient has no digits left."""
    x = torch.tensor([-30.0, -1.0, -1e-6, 0.0, 1e-6, 3.0, 40.0, 41.0, 50.0], requires_grad=True)
    exact = x.detach().double().exp()
    exact[-2:] = math.exp(40) * torch.tensor([2.0, 11.0], dtype=torch.float64)
    slope = x.detach().double().exp().clamp_max(math.exp(40))
    for function, shift in ((exp_then_linear, 0.0), (expm1_then_linear, 1.0)):
        value = function(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        torch.testing.assert_close(value.double(), exact - shift, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(gradient.double(), slope, rtol=1e-5, atol=0)
    assert expm1_then_linear(x)[2].item() == pytest.approx(-1e-6, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5])
def test_alpha_divergence_out_of_range(alpha):
    for call in (lambda: f_value("alpha", P, alpha), lambda: f_score("alpha", P, alpha),
                 lambda: f_divergence("alpha", P.log(), P.log(), alpha)):  # fmt: skip
        with pytest.raises(ValueError, match="alpha must be between 0 and 1, neither of them, got"):
            call()


def test_unknown_divergence():
    for call in (f_value, f_score):
        with pytest.raises(ValueError, match=r"divergence must be one of reverse_kl, .*total_variation, got chi"):
            call("chi", P)
    with pytest.raises(ValueError, match="got chi"):
        f_divergence("chi", P.log(), P.log())
