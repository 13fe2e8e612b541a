"""CARFT: vectors of chains, the contrastive loss by hand, ReFT without it, a step by an independent computation."""

import math

import pytest
import torch
import torch.nn.functional as F

from methods.forward import Forward
from methods.rl.carft import Carft, CarftConfig, chain_vectors, contrastive_loss
from methods.rl.ppo import Ppo, PpoConfig
from tests.methods.mix.fakes import EOS, TOKENIZER
from tests.methods.rl.running import RlContext, config_of, started, step

HEAD = {"head_features": 6, "head_dropout": 0.0, "epochs": 1, "group_size": 2}


def first_letters(prompts, responses):
    """About half of a random model's responses are right."""
    return [float(not response or ord(response[0]) < 128) for response in responses]


def carft(**settings):
    rewards = [{"function": "tests.methods.rl.test_carft.first_letters"}]
    return Carft(config_of(CarftConfig, **{**HEAD, "beta": 0.05, "rewards": rewards, **settings}))


def begun(method):
    """A method before its first step, and its context."""
    context = RlContext()
    return started(method, context), context


# Formulas -------------------------------------------------------------------------------------------------------------


def test_contrastive_loss_by_hand():
    cosine = torch.tensor([[0.8, 0.2], [0.1, 0.6]], dtype=torch.float64)
    own = torch.arange(2)
    first, second = (float(contrastive_loss(cosine, own, torch.eye(2)[row].double(), 0.1)) for row in range(2))
    assert first == pytest.approx(0.002476, abs=1e-6)
    assert second == pytest.approx(0.006715, abs=1e-6)
    both = torch.ones(2, dtype=torch.float64)
    assert float(contrastive_loss(cosine, own, both, 0.1)) == pytest.approx((first + second) / 2, rel=1e-6)
    assert float(contrastive_loss(cosine, own, both * 0, 0.1)) == 0


def test_released_code_sums_over_all():
    """A loss (B,) times a mask (B, 1), summed and divided as it is there."""
    generator = torch.Generator().manual_seed(0)
    cosine = torch.rand(4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    own = torch.arange(4)
    for correct in ([1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]):
        mask = torch.tensor(correct, dtype=torch.float64)
        losses = -(cosine.diag().clamp_max(0.9) / 0.2 - (cosine / 0.2).exp().sum(1).log())
        expected = (losses * mask[:, None]).sum() / (mask.sum() + 1e-8)
        found = contrastive_loss(cosine, own, mask, 0.2, compat_broadcast=True)
        assert float(found) == pytest.approx(float(expected))
    assert float(contrastive_loss(cosine, own, torch.ones(4).double(), 0.2, True)) == pytest.approx(float(losses.sum()))


@pytest.mark.parametrize(("cosine", "loss", "gradient"), [(-0.5, 0.0, 0.0), (0.7, 0.0, 0.0), (0.95, 0.5, 10.0)])
def test_one_pair_alone(cosine, loss, gradient):
    """max(0, cos - 0.9) / tau: nothing to be told apart, and above 0.9 it is pushed back."""
    cosine_11 = torch.tensor([[cosine]], dtype=torch.float64, requires_grad=True)
    found = contrastive_loss(cosine_11, torch.tensor([0]), torch.ones(1).double(), 0.1)
    found.backward()
    assert float(found.detach()) == pytest.approx(loss, abs=1e-8)
    assert float(cosine_11.grad) == pytest.approx(gradient, abs=1e-6)


def test_only_the_own_pair_is_clamped():
    cosine = torch.tensor([[0.99, 0.95]], dtype=torch.float64)
    expected = -math.log(math.exp(0.9 / 0.2) / (math.exp(0.99 / 0.2) + math.exp(0.95 / 0.2)))
    assert float(contrastive_loss(cosine, torch.tensor([0]), torch.ones(1).double(), 0.2)) == pytest.approx(expected)


def test_vectors_of_chains():
    """Constant values: the mean; more of all values: the same; and against a softmax of each by itself."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    values = torch.randn(7, generator=generator, dtype=torch.float64) * 30
    sequence = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    mean = chain_vectors(torch.full((7,), 5.0).double(), features, sequence, 3)
    torch.testing.assert_close(mean[0], features[:3].mean(0))
    assert (mean[1] == 0).all(), "without tokens"
    found = chain_vectors(values, features, sequence, 3)
    torch.testing.assert_close(found[2], values[3:].softmax(0) @ features[3:])
    torch.testing.assert_close(chain_vectors(values + 1000, features, sequence, 3), found)


# A step ---------------------------------------------------------------------------------------------------------------


def vectors(policy, prompt, chain):
    """z of a chain by itself, without padding."""
    states = policy.model(input_ids=torch.tensor([prompt + chain])).last_hidden_state[0, len(prompt) :]
    features = policy.critic.features(states)
    return policy.critic.value(features).squeeze(-1).softmax(0) @ features


def test_a_step_is_ppo_and_the_contrastive_loss():
    method, context = begun(carft(cl_coef=0.7))
    policy = context.roles["policy"]
    loss, gradients, (seen,) = step(method, context)
    batch = method.rollouts(context.batches(), 0)[0][0]
    plain = Ppo(config_of(PpoConfig, **{**HEAD, "beta": 0.05, "value_weight": 5.0, "rewards": method.config.rewards}))
    ppo_loss, expected, _ = step(started(plain, other := RlContext()), other)

    policy.zero_grad()
    sampled, annotated = [], []
    for row, example in enumerate(batch.example_S.tolist()):
        prompt, answer = context.texts[example]
        prompt, chain = TOKENIZER(prompt)["input_ids"], TOKENIZER(answer, add_special_tokens=False)["input_ids"]
        assert batch.input_ids_BT[row, : len(prompt)].tolist() == prompt
        annotated.append(vectors(policy, prompt, [*chain, EOS]).detach())
        sampled.append(vectors(policy, prompt, batch.input_ids_BT[row][batch.target_mask_BT[row]].tolist()))
    torch.testing.assert_close(batch.values_S["anchor"], torch.stack(annotated), atol=1e-5, rtol=1e-4)
    cosine = F.cosine_similarity(torch.stack(annotated)[:, None], torch.stack(sampled)[None], dim=-1)
    correct = (batch.values_S["reward"] > 0.5).float()
    assert 0 < correct.sum() < len(correct)
    terms = -(cosine.diag().clamp_max(0.9) / 0.2 - (cosine / 0.2).exp().sum(1).log())
    contrast = (terms * correct).sum() / correct.sum()
    (0.7 * contrast).backward()
    assert loss == pytest.approx(ppo_loss + 0.7 * contrast.item(), rel=1e-4)
    assert seen.means["contrastive"][0].item() == pytest.approx(contrast.item(), rel=1e-4)
    right, count = seen.means["cosine_right"]
    assert (right / count).item() == pytest.approx(
        (cosine.diag() * correct).sum().item() / correct.sum().item(), rel=1e-3
    )
    for name, weight in policy.named_parameters():
        own = weight.grad if weight.grad is not None else torch.zeros_like(weight)
        torch.testing.assert_close(gradients[name], expected[name] + own, atol=1e-5, rtol=1e-3)
    assert policy.critic.features.weight.grad.abs().max() > 1e-4


def test_without_the_term_it_is_reft():
    """Exactly, with the head's dropout drawn alike; and no annotated chain is looked at."""
    problems = [("copy 12:", ""), ("sort 321:", ""), ("flip 7:", "")]  # none would be refused otherwise
    dropout = {**HEAD, "head_dropout": 0.5, "beta": 0.05}
    found = []
    for method in (
        Carft(config_of(CarftConfig, **dropout, cl_coef=0.0)),
        Ppo(config_of(PpoConfig, **dropout, value_weight=5.0)),
    ):
        context = RlContext(problems)
        started(method, context)
        torch.manual_seed(5)
        found.append(step(method, context))
    (loss, gradients, _), (expected_loss, expected, _) = found
    assert loss == expected_loss
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients.items())


def test_annotated_chains_are_seen_without_dropout():
    method, context = begun(carft(head_dropout=0.9))
    first, second = (method.rollouts(context.batches(), 0)[0][0].values_S["anchor"] for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert context.roles["policy"].critic.dropout.p == 0.9, "the model's own alone is switched off"


def test_samples_of_other_processes_are_negatives():
    """They stand in their places, and give this process's own samples no gradient of theirs."""
    method, context = begun(carft())
    batch = method.rollouts(context.batches(), 0)[0][0]
    forward = Forward(method.kind, context.roles, batch)
    alone = method.loss(forward).means["contrastive"][0]
    others = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    gathered, context.rank = context.gathered, 1
    context.gathered = lambda value: [others, value] if isinstance(value, torch.Tensor) else gathered(value)
    own = torch.randn(2, 6, requires_grad=True)
    before, everywhere = method._from_all(own)
    assert before == 5
    torch.testing.assert_close(everywhere[5:], own)
    assert torch.equal(everywhere[:5], others)
    (gradient,) = torch.autograd.grad(everywhere.sum(), own)
    assert (gradient == 1).all()
    more = method.loss(Forward(method.kind, context.roles, batch)).means["contrastive"][0]
    assert float(more) > float(alone), "there is more to be told apart"


def test_company_takes_part_in_the_exchange():
    method, context = begun(carft())
    context.gathered = lambda value: [value] if not isinstance(value, int) else [value, 99]
    company = next(batch for batch in method.rollouts(context.batches(), 0)[0] if not batch.target_count)
    shown = []
    context.gathered = lambda value: shown.append(value) or [value]
    loss = method.loss(Forward(method.kind, context.roles, company))
    assert [tuple(value.shape) for value in shown] == [(0, 6)]
    assert float(loss.sum.detach()) == 0


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match=r"method\.head_features=null: with method\.cl_coef=1\.0"):
        carft(head_features=None)
    with pytest.raises(ValueError, match=r"dataset\.completion: the answer of example 1 is empty"):
        started(carft(), RlContext([("copy 12:", "12"), ("sort 321:", "")]))
    with pytest.raises(ValueError, match=r"method\.cl_coef=1\.0: the longest prompt with its annotated chain"):
        started(carft(), RlContext([("copy 12:", "1" * 300)]))
