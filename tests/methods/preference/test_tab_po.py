"""TAB-PO: a worked example with its weights and barrier, where weights lie in a text, its limits."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evals.byte_tokenizer import byte_tokenizer
from methods.examples import Examples
from methods.forward import Forward
from methods.kinds.causal import Causal
from methods.preference.dpo import Dpo, DpoConfig
from methods.preference.tab_po import (
    TabPo,
    TabPoConfig,
    difference_weights,
    gated,
    normalised,
    tab_po_weights,
    token_barrier,
    token_spans,
    value_spans,
    value_weights,
)
from tests.methods.preference.extremes import check_extremes, check_pairs_are_apart
from tests.methods.preference.toy_tokens import pair_batch, random_pairs, responses_of
from tests.models import batches_of, tiny_llama

# Four tokens each; before they are normalised they weigh 1, 1.2 x 1.2, 1.1 and 1.
RAW = np.array([1, 1.44, 1.1, 1])
POLICY = [-0.1, -0.9, -0.2, -0.05, -0.1, -1.5, -0.2, -0.05]
REFERENCE = [-0.15, -1.2, -0.2, -0.05, -0.15, -1.1, -0.2, -0.05]
BATCH = pair_batch(([1, 2, 3, 4], [1, 5, 3, 4]))
KEYS = {"Code": 1.1, "Sub-code": 1.2, "Span": 1.1}


def method_of(weights=RAW, responses=2, **config):
    method = TabPo(TabPoConfig(**config))
    method._weights_M = torch.from_numpy(np.tile(normalised(np.asarray(weights, dtype=float)), responses))
    method._begin_n = torch.arange(responses) * len(weights)
    return method


def toy(logps=POLICY, batch=BATCH):
    logps_K = torch.tensor(logps, dtype=torch.float64, requires_grad=True)
    return responses_of(logps_K, torch.tensor(REFERENCE, dtype=torch.float64), batch), logps_K


def loss_of(method, **given):
    return method.loss_of(toy(**given)[0])


def test_weights_of_the_example():
    np.testing.assert_allclose(normalised(RAW), [0.881057, 1.268722, 0.969163, 0.881057], atol=5e-7)
    assert len(normalised(np.zeros(0))) == 0


def test_known_answers():
    weights_K = torch.from_numpy(np.tile(normalised(RAW), 2))
    averages = (weights_K * torch.tensor([POLICY, REFERENCE], dtype=torch.float64)).reshape(2, 2, 4).mean(-1)
    np.testing.assert_allclose(averages, [[-0.366960, -0.557269], [-0.473128, -0.441410]], atol=1e-6)
    without = loss_of(method_of(barrier=0.0))
    assert without.sum.item() == pytest.approx(0.639180, abs=6e-7)
    assert float(without.metrics["reward_margin"]) == pytest.approx(0.5 * 0.222026, abs=5e-7)
    whole = loss_of(method_of())
    assert whole.sum.item() == pytest.approx(1.089180, abs=6e-7)
    assert float(whole.metrics["barrier"]) == pytest.approx(0.9)
    assert float(whole.metrics["gated_share"]) == 0.25
    assert loss_of(method_of([1, 1, 1, 1], barrier=0.0)).sum.item() == pytest.approx(0.650354, abs=6e-7)
    assert loss_of(method_of([1, 1, 1, 1], barrier=0.0)).metrics["reward_margin"].item() == pytest.approx(0.5 * 0.175)


def test_gradient():
    """Of the average -sigmoid(-beta z) beta w / N; of the barrier -lambda on its one gated token, none by the gate."""
    responses, logps_K = toy()
    (gradient,) = torch.autograd.grad(method_of().loss_of(responses).sum, logps_K)
    slope = 0.5 / (1 + math.exp(0.5 * 0.222026)) * normalised(RAW) / 4
    expected = np.concatenate([-slope, slope])
    expected[1] -= 0.5
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_what_is_logged_of_log_probabilities_is_of_whole_responses():
    metrics = loss_of(method_of()).metrics
    assert float(metrics["chosen_logps"]) == pytest.approx(sum(POLICY[:4]))
    assert float(metrics["rejected_log_ratio"]) == pytest.approx(sum(POLICY[4:]) - sum(REFERENCE[4:]))


def test_gate_is_on_the_probability_before_weights():
    logps_K = torch.tensor([0.66, 0.65, 0.67, 1e-30, 1.0]).log()
    assert gated(logps_K, 0.66 - 1e-6).tolist() == [0, 1, 0, 1, 0]
    assert gated(logps_K, 0.0).tolist() == [0] * 5
    assert gated(logps_K, 1.0).tolist() == [1, 1, 1, 1, 0]


def test_gated_weight_below_1_is_not_divided_by():
    """A gated weight of 0.9 leaves 0.9 times the token's loss; two of 0.9 are a mean."""
    batch = pair_batch(([1, 2], [1, 3]))
    weights_K = torch.tensor([0.9, 1.1, 0.9, 0.9])
    logps_K = torch.tensor([-2.0, -0.1, -2.0, -3.0])
    np.testing.assert_allclose(token_barrier(logps_K, weights_K, batch, 0.66), [1.8, 2.5], rtol=1e-6)


def test_tau_0_has_no_barrier_and_tau_1_is_weighted_sft():
    plain = loss_of(method_of(barrier=0.0)).sum.item()
    assert loss_of(method_of(tau=0.0)).sum.item() == plain
    sft = -(normalised(RAW) * POLICY[:4]).sum() / 4  # of weights with the sum 4
    assert loss_of(method_of(tau=1.0)).sum.item() == pytest.approx(plain + 0.5 * sft)


def test_without_weights_and_barrier_it_is_dpo_of_averages():
    """Of equal lengths N: DPO at beta / N."""
    responses, logps_K = toy()
    found = method_of([1] * 4, barrier=0.0, beta=0.4).loss_of(responses)
    expected = Dpo(DpoConfig(beta=0.1)).loss_of(responses)
    torch.testing.assert_close(found.sum, expected.sum)
    gradients = [torch.autograd.grad(loss.sum, logps_K, retain_graph=True)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)
    assert float(found.metrics["reward_margin"]) == pytest.approx(float(expected.metrics["reward_margin"]))


@pytest.mark.parametrize("far", [1e4, -1e4])
def test_finite_far_from_the_reference(far):
    logps_K = torch.tensor([far * sign for sign in (1, 1, 1, 1, -1, -1, -1, -1)]).clamp_max(-1e-6).requires_grad_()
    loss = method_of().loss_of(responses_of(logps_K, torch.tensor(REFERENCE), BATCH)).sum
    (gradient,) = torch.autograd.grad(loss, logps_K)
    assert loss.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("check", [check_extremes, check_pairs_are_apart])
def test_far_from_the_reference_and_apart(check):
    check(TabPo(TabPoConfig()))


# Where the weights lie ---------------------------------------------------------------------------------------------


def test_differences_are_by_place():
    """Up to the shorter length; after a token more everything differs."""
    chosen, rejected = difference_weights([1, 2, 3, 4], [1, 5, 3], 1.2)
    assert chosen.tolist() == [1, 1.2, 1, 1] and rejected.tolist() == [1, 1.2, 1]
    shifted, _ = difference_weights([1, 2, 3, 4], [9, 1, 2, 3, 4], 1.2)
    assert shifted.tolist() == [1.2] * 4
    assert difference_weights([1, 2], [], 1.2)[0].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"Code": "A1", "Sub-code": "B"}', ["A1"]),
        ('{"Code" : "a \\"b\\" c"}', ['a \\"b\\" c']),
        ('[{"Code": 12}, {"Code": -3.5e2}, {"Code":true}]', ["-3.5e2", "12", "true"]),
        ('{"Code": "A", "Span": "A says A"}', ["A", "A", "A"]),  # inside another value too
        ('{"Code": "", "Code": ["A"], "Code": {"x": "A"}, "code": "A", "Codes": "A"}', []),
        ("no JSON", []),
    ],
)
def test_values_of_a_key(text, values):
    assert [text[begin:end] for begin, end in value_spans(text, "Code")] == values


def test_a_token_weighs_what_the_largest_of_its_values_does():
    text = '{"Code": "A", "Sub-code": "B", "Span": "xBx"}'
    spans = [(place, place + 1) for place in range(len(text))]
    weights = value_weights(text, spans, KEYS)
    by_character = dict(zip(spans, weights, strict=True))
    span = text.index("xBx")
    heavy = {span: 1.1, span + 1: 1.2, span + 2: 1.1}
    heavy |= {place: 1.1 for place, sign in enumerate(text) if sign == "A"}
    heavy |= {place: 1.2 for place, sign in enumerate(text) if sign == "B"}
    assert {begin: weight for (begin, _), weight in by_character.items() if weight != 1} == heavy
    assert value_weights(text, spans, {"Code": 0.5}).min() == 0.5
    # Tokens of several characters, and of none.
    begin = text.index('"A"')
    several = [(begin - 3, begin + 2), (begin + 1, begin + 1), (begin + 2, begin + 4)]
    assert value_weights(text, several, KEYS).tolist() == [1.1, 1, 1]


TEXT = '{"Code": "né", "Span": "日本 né"}'


def odd_tokenizer():
    """Bytes, and pairs that its own merges never make of a text: no text is split into the tokens it was made of."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: number for number, sign in enumerate(alphabet)}
    for pair in ("Co", "de", '":', "n" + "\u00c3"):  # the last: half of é
        vocabulary[pair] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>"), vocabulary


def test_spans_of_tokens_by_tokenising_again():
    tokenizer = byte_tokenizer()
    tokens = tokenizer("code: " + TEXT)["input_ids"] + [tokenizer.eos_token_id]
    text, spans = token_spans(tokenizer, tokens, 7)  # after BOS
    assert text == TEXT + "<eos>" and len(spans) == len(tokens) - 7
    e = TEXT.index("é")
    assert [text[begin:end] for begin, end in spans[e - 1 : e + 3]] == ["n", "é", "é", '"']
    assert spans[-1] == (len(TEXT), len(TEXT) + 5)


def test_spans_of_tokens_that_their_text_is_not_split_into():
    """By what each adds to the text: parts of a character have the whole of it, and a special token nothing."""
    tokenizer, vocabulary = odd_tokenizer()
    plain = tokenizer.encode(TEXT)
    signs = tokenizer.convert_ids_to_tokens(plain)
    joined, place = [], 0
    while place < len(signs):
        pair = "".join(signs[place : place + 2])
        taken = 2 if pair in vocabulary else 1
        joined.append(vocabulary[pair if taken == 2 else signs[place]])
        place += taken
    tokens = [5, 6, *joined, tokenizer.eos_token_id]
    assert len(joined) < len(plain) and tokenizer.encode(tokenizer.decode(joined)) == plain
    text, spans = token_spans(tokenizer, tokens, 2)
    assert text == TEXT and len(spans) == len(tokens) - 2
    assert spans[-1] == (len(TEXT), len(TEXT))
    pieces = [text[begin:end] for begin, end in spans[:-1]]
    assert pieces[:4] == ["{", '"', "Co", "de"]
    first = TEXT.index("né")
    assert [pieces[at] for at, span in enumerate(spans) if first <= span[0] < first + 2] == ["né", "é"]
    weights = value_weights(text, spans, {"Code": 1.5})
    assert [piece for piece, weight in zip(pieces, weights, strict=False) if weight > 1] == ["né", "é", "né", "é"]


def json_pairs():
    tokenizer = byte_tokenizer()
    prompt, chosen, rejected = "x:", '{"Code": "A", "n": 1}', '{"Code": "B", "n": 1}'
    sequences = [[*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id] for answer in (chosen, rejected)]
    return Examples.of(sequences, [3, 3], [2], [1.0, 0.0]), tokenizer, chosen


def test_weights_of_a_data_set():
    examples, tokenizer, chosen = json_pairs()
    weights = tab_po_weights(examples, 1.2, {"Code": 1.1}, tokenizer)
    expected = np.ones(len(chosen) + 1)
    expected[chosen.index("A")] = 1.1 * 1.2
    np.testing.assert_allclose(weights, np.tile(expected, 2))
    expected[chosen.index("A")] = 1.2
    np.testing.assert_allclose(tab_po_weights(examples, 1.2, {}, tokenizer), np.tile(expected, 2))


def test_a_key_that_no_response_has():
    examples, tokenizer, _ = json_pairs()
    with pytest.raises(ValueError, match=r"method\.key_weights: no response has a value of the JSON key 'Span'"):
        tab_po_weights(examples, 1.2, {"Code": 1.1, "Span": 1.1}, tokenizer)


def prepared(examples, **config):
    method = TabPo(TabPoConfig(reference="live", **config))
    method.kind = Causal()
    context = SimpleNamespace(examples=examples, tokenizer=byte_tokenizer())
    return method, method.prepare(context)


def test_prepared_weights_have_mean_1_over_each_response():
    examples = random_pairs(20)
    method, reported = prepared(examples, difference_weight=3.0)
    counts = examples.lengths - examples.targets
    means = [part.mean().item() for part in method._weights_M.split(counts.tolist())]
    assert means == pytest.approx([1.0] * len(counts), abs=1e-6)
    assert method._weights_M.std() > 0.1
    assert 0 < reported["tab_po/weighted_tokens"] < 1
    again, _ = prepared(examples, difference_weight=3.0)  # as a run that is continued does
    assert torch.equal(again._weights_M, method._weights_M)


@pytest.mark.parametrize("layout", [{"micro": 1}, {"micro": 3}, {"packing": True, "row_length": 64}, {"seed": 5}])
def test_layout_and_order_change_nothing(layout):
    examples = random_pairs(8, most=12)
    method, _ = prepared(examples)

    def total(**layout):
        roles = {"policy": tiny_llama(1), "reference": tiny_llama(0).requires_grad_(False)}
        batches = batches_of(examples, **layout).of_step(0)
        loss = sum(method.loss(Forward(method.kind, roles, batch)).sum for batch in batches)
        loss.backward()
        return loss.item(), [value.grad for value in roles["policy"].parameters()]

    expected, found = total(), total(**layout)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [{"tau": 1.1}, {"tau": -0.1}, {"barrier": -1.0}, {"difference_weight": 0.0}, {"key_weights": {"Code": 0.0}}],
)
def test_configuration_out_of_range(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(TabPoConfig).validate_python(wrong)
