"""Context-free samples: their labels, their one BOS, what decides them; and the score identity at the base model."""

import math
from types import SimpleNamespace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.examples import Examples
from methods.forward import Forward
from methods.generation import Sampling, generate
from methods.kinds.causal import Causal
from methods.mix.context_free import ContextFree, ContextFreeConfig
from tests.methods.mix.fakes import BOS, EOS, FakeContext, byte_llama, lists
from tests.models import batches_of, tiny_llama


def mixed(context, **settings):
    mix = ContextFree(ContextFreeConfig(**{"samples": 40, "max_length": 12, "batch_size": 16, **settings}))
    return mix, mix.examples(context)


def often_ends(model):
    """A model that ends about every fifth token."""
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    with torch.no_grad():
        model.lm_head.bias[EOS] = 4.0
    return model


def test_labels_and_ends():
    """All after BOS carries loss; EOS stands where the model ended, and nowhere else."""
    _, examples = mixed(FakeContext(often_ends(byte_llama())))
    sequences = lists(examples)
    assert len(sequences) == 40
    assert all(target == 1 for target in examples.targets)
    assert all(sequence[0] == BOS and 2 <= len(sequence) <= 12 for sequence in sequences)
    ended = [sequence for sequence in sequences if sequence[-1] == EOS]
    cut = [sequence for sequence in sequences if sequence[-1] != EOS]
    assert ended and cut
    assert all(sequence.count(EOS) == 1 for sequence in ended)
    assert all(EOS not in sequence and len(sequence) == 12 for sequence in cut), "no EOS where the length limit cut"
    for batch in batches_of(examples, batch_size=40, micro=7).of_step(0):
        for row, example in enumerate(batch.example_S.tolist()):
            length = int(examples.lengths[example])
            assert batch.target_mask_BT[row].tolist() == [0 < t < length for t in range(batch.target_mask_BT.shape[1])]


def test_one_bos_that_the_tokenizer_did_not_double():
    context = FakeContext(byte_llama(), written=[[5, 6, EOS]] * 40)
    _, examples = mixed(context)
    assert lists(examples) == [[BOS, 5, 6, EOS]] * 40
    assert context.asked[0].prompts == [[BOS]] * 40


def test_drawn_as_the_model_draws_unless_told():
    context = FakeContext(byte_llama(), written=[[5]] * 40)
    mixed(context, seed=7)
    asked = context.asked[0]
    assert asked.sampling == Sampling(
        max_new_tokens=11, eos=EOS, pad=context.tokenizer.pad_token_id, temperature=1.0, top_p=1.0, top_k=0
    )
    assert (asked.what, asked.batch_size) == ("context-free-7", 16)
    mixed(context, temperature=0.5, top_p=0.9)
    assert (context.asked[1].sampling.temperature, context.asked[1].sampling.top_p) == (0.5, 0.9)
    assert context.asked[1].what != asked.what, "another seed is another sample"


def without_bos(context):
    context.tokenizer = SimpleNamespace(
        bos_token_id=None, eos_token_id=EOS, eos_token="<end>", pad_token_id=0, unk_token_id=9,
        convert_tokens_to_ids=lambda token: {"<end>": EOS, "<s>": 4}.get(token, 9),
    )  # fmt: skip
    return context


def test_tokenizer_without_bos():
    with pytest.raises(ValueError, match=r"^mix\.start_token=null: .*no BOS token.* such as mix\.start_token='<end>'$"):
        mixed(without_bos(FakeContext(byte_llama())))


def test_a_start_token_in_its_place():
    context = without_bos(FakeContext(byte_llama(), written=[[5]] * 40))
    _, examples = mixed(context, start_token="<s>")
    assert lists(examples) == [[4, 5]] * 40
    context = FakeContext(byte_llama(), written=[[5]] * 40)
    _, examples = mixed(context, start_token="<eos>")
    assert lists(examples) == [[BOS, 5]] * 40, "only where there is no BOS"


def test_unknown_start_token():
    with pytest.raises(ValueError, match=r"mix\.start_token=<nowhere>: the tokenizer has no such token"):
        mixed(without_bos(FakeContext(byte_llama())), start_token="<nowhere>")


@pytest.mark.parametrize(("key", "value"), [
    ("ratio", 0.0), ("ratio", 17.0), ("weight", -1.0), ("top_p", 0.0), ("top_p", 1.1), ("max_length", 1),
    ("samples", 0), ("temperature", -0.1), ("batch_size", 0),
])  # fmt: skip
def test_out_of_range(key, value):
    """As a configuration is checked before a run."""
    settings = {"samples": 1, "max_length": 2}
    assert TypeAdapter(ContextFreeConfig).validate_python(settings)
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(ContextFreeConfig).validate_python({**settings, key: value})
    assert caught.value.errors()[0]["loc"] == (key,)


def test_report():
    mix, examples = mixed(FakeContext(byte_llama(), written=[[5], [5], [6, 7], [8, EOS]]), samples=4)
    assert mix.report(examples) == {"mix/examples": 4.0, "mix/target_tokens": 6.0, "mix/distinct": 0.75}


def test_loss_is_the_negative_log_likelihood_of_all_tokens():
    model = byte_llama().eval()
    mix, examples = mixed(FakeContext(model, written=[[5, 6], [7, 8, 9]]), samples=2)
    (batch,) = batches_of(examples, batch_size=2, micro=2).of_step(0)
    loss = mix.loss(Forward(Causal(), {"policy": model}, batch))
    expected = 0.0
    for sequence in lists(examples):
        ids = torch.tensor([sequence])
        expected += model(input_ids=ids, labels=ids, num_items_in_batch=1).loss.item()
    assert loss.sum.item() == pytest.approx(expected, rel=1e-5)
    assert mix.count(batch) == 5 and mix.replaces is False


def test_at_the_base_model_gradient_vanishes_and_loss_is_the_entropy():
    """Score identity: E_{z~p*}[grad log p*(z)] = 0, so the mean over n samples shrinks like 1/sqrt(n).

    E|mean of n|^2 = E|g|^2 / n. And the loss per sequence estimates the entropy of p* (here by enumeration).
    """
    vocabulary, length = 5, 3
    model = tiny_llama(7, vocab_size=vocabulary).eval()
    sampling = Sampling(max_new_tokens=length, eos=99, pad=0)
    parameters = list(model.parameters())

    def mean_gradient(rows):
        ids = torch.tensor([[1, *row] for row in rows])
        examples = Examples.of(ids.tolist(), [1] * len(rows))
        (batch,) = batches_of(examples, batch_size=len(rows), micro=len(rows)).of_step(0)
        mix = ContextFree(ContextFreeConfig(samples=1, max_length=4))
        loss = mix.loss(Forward(Causal(), {"policy": model}, batch)).sum / len(rows)
        gradient = torch.autograd.grad(loss, parameters)
        return torch.cat([part.flatten() for part in gradient]).double(), loss.item()

    rows = generate(model, [[1]] * 2048, sampling, seed=3)
    single = torch.stack([mean_gradient([row])[0] for row in rows[:256]])
    scale = single.square().sum(1).mean().sqrt().item()
    for size in (8, 32, 128):
        norms = torch.stack([mean_gradient(rows[b : b + size])[0].square().sum() for b in range(0, 2048, size)])
        assert norms.mean().sqrt().item() == pytest.approx(scale / math.sqrt(size), rel=0.25), size
    # Samples of another distribution leave a gradient that no number of them takes away.
    generator = torch.Generator().manual_seed(0)
    other = torch.randint(vocabulary, (2048, length), generator=generator).tolist()
    assert mean_gradient(other)[0].norm().item() > 5 * mean_gradient(rows)[0].norm().item()

    whole = torch.cartesian_prod(*[torch.arange(vocabulary)] * length)
    ids = torch.cat([torch.ones(len(whole), 1, dtype=torch.long), whole], 1)
    with torch.no_grad():
        logps = model(input_ids=ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].sum(1).double()
    assert logps.exp().sum().item() == pytest.approx(1, abs=1e-5)
    entropy = -(logps.exp() * logps).sum().item()
    spread = (logps.exp() * (logps + entropy).square()).sum().sqrt().item()
    assert mean_gradient(rows)[1] == pytest.approx(entropy, abs=4 * spread / math.sqrt(2048))
