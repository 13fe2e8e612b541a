"""RLP: the formulas by hand, the whole method one thought at a time, where gradients go, the slow copy."""

import pytest
import torch
from pydantic import TypeAdapter

from methods.examples import Examples
from methods.forward import Forward
from methods.generation import Written
from methods.rl.advantages import centred
from methods.rl.likelihood_rewards import likelihoods, marginal_log_prob
from methods.rl.rlp import Rlp, RlpConfig, drawn_position, information_gain
from tests.methods.mix.fakes import EOS, TOKENIZER, byte_llama
from tests.methods.rl.running import RlContext, started, step

TEXTS = ["47+38=85", "12+30=42 and so on", "9"]
OPENING, CLOSING = ([*TOKENIZER(text, add_special_tokens=False)["input_ids"]] for text in ("[", "]"))


class TextContext(RlContext):
    """Plain texts, all of whose tokens carry loss; the teacher is another model than the policy, as after a while."""

    def __init__(self, texts=TEXTS, teacher=2, **config):
        super().__init__(**{"problems": [("", text) for text in texts], "policy": None, **config})
        sequences = [[*TOKENIZER(text)["input_ids"], EOS] for text in texts]
        self.examples = Examples.of(sequences, [1] * len(texts))
        self.config["engine"] = {"zero_stage": 0}
        self.roles["teacher"] = byte_llama(teacher).requires_grad_(False).eval()


def of(context, **settings):
    small = {"group_size": 4, "max_new_tokens": 6, "opening": "[", "closing": "]", "temperature": 1.0}
    return started(Rlp(RlpConfig(**{**small, **settings})), context)


def token_logps(model, before, after, temperature=1.0):
    """Of tokens after others, one sequence in one pass. Returns [tokens]."""
    logits = model(input_ids=torch.tensor([[*before, *after]])).logits[0, len(before) - 1 : -1] / temperature
    return logits.log_softmax(-1)[torch.arange(len(after)), torch.tensor(after)]


# Formulas -------------------------------------------------------------------------------------------------------------


def test_advantages_are_leave_one_out():
    rewards, together = torch.tensor([0.3, -0.1, 0.2, 0.0], dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    expected = [0.266667, -0.266667, 0.133333, -0.133333]
    assert centred(rewards, together, "leave_one_out").tolist() == pytest.approx(expected, abs=5e-7)
    assert (4 / 3 * (rewards - rewards.mean())).tolist() == pytest.approx(expected, abs=5e-7)


def test_information_gain_of_several_tokens():
    own, other = [torch.tensor([-0.5, -1.0]), torch.tensor([-2.0])], [torch.tensor([-1.0, -2.0]), torch.tensor([-1.0])]
    assert information_gain(own, other).tolist() == [1.5, -1.0]
    assert information_gain(own, own).tolist() == [0.0, 0.0]


def test_its_mean_is_a_difference_of_cross_entropies():
    generator = torch.Generator().manual_seed(0)
    truth, with_thought, without = torch.randn(3, 7, generator=generator, dtype=torch.float64).softmax(-1)
    gain = information_gain(list(with_thought.log()[:, None]), list(without.log()[:, None]))
    expected = -(truth @ without.log()) + truth @ with_thought.log()
    assert (truth @ gain).item() == pytest.approx(expected.item(), abs=1e-12)


def test_the_mean_over_thoughts_is_below_their_mixture():
    generator = torch.Generator().manual_seed(1)
    log_probs = likelihoods(list(torch.randn(16, 1, generator=generator) - 3), "log_prob")
    assert log_probs.mean() < marginal_log_prob(log_probs)
    assert marginal_log_prob(log_probs[:1]).item() == pytest.approx(log_probs[0].item())


def test_positions():
    found = [drawn_position(2, 5, seed) for seed in range(300)]
    assert {2: found.count(2) > 70, 3: found.count(3) > 70, 4: found.count(4) > 70} == {2: True, 3: True, 4: True}
    assert set(found) == {2, 3, 4} and found == [drawn_position(2, 5, seed) for seed in range(300)]
    for first, length in ((0, 5), (5, 5)):
        with pytest.raises(ValueError, match=f"^first={first}: must be > 0 and below the document's length"):
            drawn_position(first, length, 0)


# The method -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro", [None, 1])
@pytest.mark.parametrize("settings", [
    {}, {"temperature": 0.7}, {"horizon": 3, "max_context": 4}, {"minibatches": 1, "epochs": 2, "temperature": 0.7},
])  # fmt: skip
def test_one_thought_at_a_time(micro, settings):
    """Loss, gradients and what is logged, from single passes and nothing of the method's own."""
    context = TextContext()
    method = of(context, **settings)
    seen = []
    keep = method.keep
    method.keep = lambda episodes, advantages: seen.append(episodes) or keep(episodes, advantages)
    loss, found, losses = step(method, context, micro=micro)
    (episodes,) = seen
    policy, teacher = context.roles["policy"], context.roles["teacher"]
    policy.zero_grad()
    horizon, most = settings.get("horizon", 1), settings.get("max_context", 2048)
    rewards, thoughts = [], []
    for place, (prompt, one) in enumerate(zip(episodes.prompts, episodes.written, strict=True)):
        text = context.examples.sequence(int(episodes.example_N[place])).tolist()
        before = prompt[:-1]
        assert prompt[-1:] == OPENING and len(before) <= most
        # The context lies where the text has it; which of several such places it is, the draw says.
        (at,) = {
            len(whole)
            for whole in (text[:end] for end in range(1, len(text)))
            if whole[-most:] == before and method.observed(context.examples, int(episodes.example_N[place]))[1]
            == text[len(whole) : len(whole) + horizon]
        }  # fmt: skip
        observed = text[at : at + horizon]
        closed = CLOSING[0] in one.tokens
        shown = [token for token in one.tokens if token != EOS]
        with torch.no_grad():
            own = token_logps(policy, [*prompt, *shown, *([] if closed else CLOSING)], observed).sum()
            other = token_logps(teacher, before, observed).sum()
        rewards.append(float(own - other))
        thoughts.append((prompt, one.tokens))
    assert episodes.reward_N.tolist() == pytest.approx(rewards, abs=1e-3)
    assert max(map(abs, rewards)) > 0.02
    total = 0.0
    for place, (prompt, tokens) in enumerate(thoughts):
        group = rewards[place // 4 * 4 : place // 4 * 4 + 4]
        advantage = 4 / 3 * (rewards[place] - sum(group) / 4)
        logps = token_logps(policy, prompt, tokens, settings.get("temperature", 1.0))
        total = total - ((logps - logps.detach()).exp() * advantage).mean()
    (total / 12).backward()
    assert loss == pytest.approx(total.item() / 12, abs=1e-4)
    largest = max(float(weight.grad.abs().max()) for weight in policy.parameters())
    for name, weight in policy.named_parameters():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-2, atol=1e-3 * largest)
    sums = {
        name: sum(loss.means[name][0].item() for loss in losses) for name in ("nll_with_thought", "nll_without_thought")
    }
    assert sums["nll_without_thought"] - sums["nll_with_thought"] == pytest.approx(sum(rewards), abs=2e-3)


def test_what_is_observed_is_never_shown():
    """A prompt ends before the position, and the policy writes after it alone."""
    context = TextContext()
    method = of(context)
    places = set()
    for turn in range(40):
        method.turn = turn
        for index in range(3):
            before, observed = method.observed(context.examples, index)
            text = context.examples.sequence(index).tolist()
            assert [*before, *observed] == text[: len(before) + 1] and before
            places.add((index, len(before)))
    assert {place for index, place in places if index == 0} == set(range(1, len(TEXTS[0]) + 2)), "EOS is predicted too"
    context.written.clear()
    method.episodes(context.batches(), 3)
    (asked,) = context.written
    expected = [[*method.observed(context.examples, index)[0], *OPENING] for index in range(3)]
    assert sorted(asked[::4]) == sorted(expected), "batches are shuffled"


def test_no_gradient_reaches_what_is_only_scored():
    """What the loss sees are thoughts alone: the scored token, its delimiter and the teacher are not in it."""
    context = TextContext()
    method = of(context)
    method.write = lambda prompts, seed: [
        Written([65 + at % 4], False, [-5.5]) for _ in prompts for at in range(4)
    ]  # never closed: the delimiter is put there to score
    method.max_sampler_gap = 99.0
    (batches,) = method.rollouts(context.batches(), 0)
    found = {}

    class Watched(Forward):
        def token_logps(self, role="policy", temperature=1.0):
            found["logps"] = super().token_logps(role, temperature)
            found["logps"].retain_grad()
            return found["logps"]

    (batch,) = batches
    assert batch.targets_K.tolist() == [65, 66, 67, 68] * 3 and not bool((batch.input_ids_BT == CLOSING[0]).any())
    method.loss(Watched(method.kind, context.roles, batch)).sum.backward()
    advantage_S = centred(batch.values_S["reward"].double(), batch.values_S["group"], "leave_one_out").float()
    torch.testing.assert_close(found["logps"].grad, -advantage_S, rtol=1e-4, atol=1e-6)
    assert advantage_S.abs().max() > 1e-3
    assert all(weight.grad is None for weight in context.roles["teacher"].parameters())


def test_thoughts_that_do_not_matter_have_no_gradient():
    """Whatever the thought, the next token is as likely: nothing is preferred."""
    context = TextContext()
    method = of(context)
    method.asked = lambda role, episodes, places=None, **asked: [
        torch.tensor([-1.0]) for _ in (range(len(episodes)) if places is None else places)
    ]
    loss, gradients, losses = step(method, context)
    assert abs(loss) < 1e-6 and all(gradient.abs().max() < 1e-6 for gradient in gradients.values())
    assert losses[0].means["reward"][0].item() == 0.0


def test_a_thought_that_is_not_read_gains_nothing():
    """A model of the last token alone, also as teacher: after a delimiter all thoughts are worth as much."""
    policy = byte_llama(0)
    for layer in policy.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)  # no token sees another
    context = TextContext(policy=policy)
    context.roles["teacher"] = policy
    method = of(context)
    episodes = method.episodes(context.batches(), 0)
    for place in range(0, 12, 4):
        assert episodes.reward_N[place : place + 4].std().item() < 1e-5
    loss, gradients, _ = step(method, context)
    assert abs(loss) < 1e-4 and all(gradient.abs().max() < 1e-3 for gradient in gradients.values())


@pytest.mark.parametrize(("thought", "before", "closed"), [
    ([65, 66], [65, 66, *CLOSING], False),
    ([65, EOS], [65, *CLOSING], False),
    ([65, *CLOSING], [65, *CLOSING], True),
    ([*CLOSING], [*CLOSING], True),
    ([EOS], [*CLOSING], False),
])  # fmt: skip
def test_thoughts_are_closed_before_they_are_scored(thought, before, closed):
    context = TextContext()
    method = of(context)
    method.write = lambda prompts, seed: [
        Written(list(thought), closed or thought[-1] == EOS, [-1.0] * len(thought)) for _ in prompts for _ in range(4)
    ]
    asked = []
    whole = method.asked
    method.asked = lambda role, episodes, places=None, **told: (
        asked.append((role, told)) or whole(role, episodes, places, **told)
    )
    episodes = method.episodes(context.batches(), 0)
    (policy, told), (teacher, bare) = asked
    assert (policy, teacher) == ("policy", "teacher")
    assert told["prompts"] == [[*prompt, *before] for prompt in episodes.prompts]
    assert bare["prompts"] == [prompt[:-1] for prompt in episodes.prompts], "the teacher sees no delimiter"
    assert method._closed_N.tolist() == [float(closed)] * 12


def test_sampling_stops_at_the_delimiter():
    context = TextContext()
    assert of(context, stop=["x"]).sampling.stop == ("]", "x")
    assert of(context).sampling.stop == ("]",)


def test_a_process_without_documents_takes_part():
    """Its batch is there for company: passes are made, and nothing is added."""
    context = TextContext()
    method = of(context)
    (batch,) = context.batches()
    batch.target_mask_BT[:] = False
    (batches,) = method.rollouts([batch], 0)
    assert [method.count(one) for one in batches] == [0]
    assert len(context.written) == 1


# The teacher ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [1.0, 0.75, 0.0])
def test_the_teacher_follows(tau):
    """1: frozen; 0: the policy as it is. An interrupted run has it again."""
    context = TextContext()
    before = {name: value.clone() for name, value in context.roles["teacher"].state_dict().items()}
    method = of(context, tau=tau)
    method.after_step(0)
    policy = context.roles["policy"].state_dict()
    for name, value in context.roles["teacher"].state_dict().items():
        torch.testing.assert_close(value, tau * before[name] + (1 - tau) * policy[name])
    state = method.state_dict()
    assert ("teacher" in state) == (tau < 1)
    again = Rlp(method.config)
    again.load_state_dict(state)
    other = TextContext()
    started(again, other)
    for name, value in context.roles["teacher"].state_dict().items():
        assert torch.equal(other.roles["teacher"].state_dict()[name], value)
    assert ("teacher" in again.state_dict()) == (tau < 1)


def test_a_turn_is_a_function_of_weights_seed_and_turn():
    context = TextContext()
    method = of(context)
    first, again, next_turn = (method.rollouts(context.batches(), turn)[0][0] for turn in (0, 0, 1))
    assert torch.equal(first.input_ids_BT, again.input_ids_BT)
    assert torch.equal(first.values_K["advantage"], again.values_K["advantage"])
    assert first.input_ids_BT.shape != next_turn.input_ids_BT.shape or not torch.equal(
        first.input_ids_BT, next_turn.input_ids_BT
    )


def test_mean_reward_over_the_data_is_a_difference_of_losses():
    """Over x_t of a uniform document distribution, by enumeration of tokens: E r = CE(phi) - CE(theta after c)."""
    policy, teacher = byte_llama(0), byte_llama(2)
    before, thought = TOKENIZER("47+")["input_ids"], [*OPENING, 65, *CLOSING]
    everything = [[token] for token in range(policy.config.vocab_size)]
    with torch.no_grad():
        own = [token_logps(policy, [*before, *thought], token) for token in everything]
        other = [token_logps(teacher, before, token) for token in everything]
    gain = information_gain(own, other)
    cross = [-torch.cat(side).double().mean().item() for side in (other, own)]
    assert gain.mean().item() == pytest.approx(cross[0] - cross[1], abs=1e-9)


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "message"), [
    ({"dynamic_sampling": 2}, r"method\.dynamic_sampling=2: must be 0"),
    ({"combine": "normalise_then_sum"}, r"method\.combine=normalise_then_sum: must be sum_then_normalise"),
    ({"rewards": [{"function": "tests.methods.rl.running.early_letters"}]}, "rewards"),
    ({"group_size": 1}, "group_size"),
    ({"tau": 1.5}, "tau"),
    ({"tau": -0.1}, "tau"),
    ({"horizon": 0}, "horizon"),
    ({"max_context": 0}, "max_context"),
    ({"closing": ""}, "closing"),
])  # fmt: skip
def test_settings_that_do_not_go(settings, message):
    with pytest.raises(ValueError, match=message):
        TypeAdapter(RlpConfig).validate_python(settings)


@pytest.mark.parametrize(("config", "message"), [
    ({"engine": {"zero_stage": 3}}, r"^method\.tau=0\.999: the teacher goes into the checkpoint whole.*got 3$"),
    ({"engine": {"zero_stage": 0, "precision": "bf16"}}, r"^method\.tau=0\.999: steps of 0\.001 of the way are lost"),
    ({"adapter": {"_target_": "some"}}, r"^method\.tau=0\.999: the teacher follows the weights themselves"),
])  # fmt: skip
def test_a_teacher_that_cannot_follow(config, message):
    context = TextContext()
    context.config |= config
    with pytest.raises(ValueError, match=message):
        of(context)
    of(context, tau=1.0)


def test_thoughts_that_do_not_fit():
    context = TextContext()
    limit = context.roles["policy"].config.max_position_embeddings
    longest = int(context.examples.lengths.max()) - 1
    room = limit - longest - 3  # two delimiters and the next token
    of(context, max_new_tokens=room)
    with pytest.raises(ValueError, match=rf"^method\.max_new_tokens={room + 1}: .*that is {limit + 1} tokens"):
        of(context, max_new_tokens=room + 1)
    of(context, max_new_tokens=room + 1, max_context=longest - 1)


def test_a_document_with_nothing_to_predict():
    context = TextContext()
    context.examples = Examples.of([[256, 65, 66], [256, 67]], [1, 2])
    with pytest.raises(ValueError, match=r"^dataset\.completion: example 1 has no token that carries loss"):
        of(context)
