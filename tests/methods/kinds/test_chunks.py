"""Logits of few target tokens at a time: the numbers and gradients of all at once, in less memory."""

import logging

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from methods.finetune.sft import Sft, SftConfig
from methods.kinds.causal import Causal, frozen
from runners import processes
from runners.schema import Engine
from tests.curves import Curve
from tests.models import batches_of, random_examples, tiny_llama

SMALL = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "attn_implementation": "eager", "initializer_range": 0.5,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def gemma2():
    """A model that caps its logits: to 2, which cuts deep into those of these weights."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0))


def granite(scaling):
    from transformers import GraniteConfig, GraniteForCausalLM

    torch.manual_seed(0)
    return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=scaling))


def with_bias():
    model = tiny_llama()
    model.lm_head = torch.nn.Linear(16, 32, bias=True)
    return model


KNOWN = {
    "bare": tiny_llama,
    "tied": lambda: tiny_llama(tie_word_embeddings=True),
    "biased": with_bias,
    "softcapped": gemma2,
    "scaled by 1": lambda: granite(1.0),
}


def one_batch(packing=False, **changes):
    (batch,) = batches_of(random_examples(**changes), packing=packing, micro=100).of_step(0)
    return batch


def computed(model, batch, chunk):
    """Log-probabilities and the gradient of their weighted sum."""
    model.zero_grad()
    logps_K = Causal(chunk).token_logps(model, batch)
    (logps_K * torch.linspace(-1, 2, len(logps_K))).sum().backward()
    return logps_K.detach(), {name: value.grad.clone() for name, value in model.named_parameters()}


def assert_same(found, expected):
    (values, gradients), (values_of_all, gradients_of_all) = found, expected
    torch.testing.assert_close(values, values_of_all, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients_of_all.items():
        assert (gradients[name] - gradient).norm() < 1e-6 * gradient.norm(), name


def chunks_of(monkeypatch, model):
    """How many target tokens the output layer is given, call by call."""
    seen, head = [], model.get_output_embeddings()
    forward = head.forward
    monkeypatch.setattr(head, "forward", lambda hidden: (seen.append(hidden.shape[:-1].numel()), forward(hidden))[1])
    return seen


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("name", KNOWN)
def test_values_and_gradients_are_those_of_all_at_once(name, packing):
    model, batch = KNOWN[name](), one_batch(packing)
    expected = computed(model, batch, None)
    for chunk in (1, 7, batch.target_count - 1):
        assert_same(computed(model, batch, chunk), expected)


@pytest.mark.parametrize("name", KNOWN)
def test_no_call_of_the_output_layer_is_given_more_than_a_chunk(monkeypatch, name):
    model, batch = KNOWN[name](), one_batch()
    seen = chunks_of(monkeypatch, model)
    kind = Causal(7)
    kind.token_logps(model, batch)
    assert max(seen) == 7 and sum(seen) == batch.target_count + 2  # one made up, one for the layer itself
    kind.token_logps(model, batch)
    assert sum(seen) == 2 * batch.target_count + 3, "what the model does to its logits is found out once"


def test_few_target_tokens_are_taken_at_once(monkeypatch):
    model, batch = tiny_llama(), one_batch()
    seen = chunks_of(monkeypatch, model)
    Causal(batch.target_count).token_logps(model, batch)
    assert seen == [1, batch.target_count]


def test_batch_without_targets():
    batch = one_batch()
    batch.target_mask_BT[:] = False
    assert Causal(1).token_logps(tiny_llama(), batch).shape == (0,)


def cohere():
    from transformers import CohereConfig, CohereForCausalLM

    torch.manual_seed(0)
    return CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.0625))


def masked():
    """A model that forbids one token."""
    model = tiny_llama()
    forward = model.forward

    def masking(**inputs):
        output = forward(**inputs)
        output.logits[..., 3] = -1e4
        return output

    model.forward = masking
    return model


def renamed_cap():
    """A model that caps under a name of its own, and whose logits are so small that it hardly shows."""
    model = tiny_llama(initializer_range=1e-3)
    forward = model.forward

    def capping(**inputs):
        output = forward(**inputs)
        output.logits = torch.tanh(output.logits / 30) * 30
        return output

    model.forward = capping
    return model


@pytest.mark.parametrize("make", [cohere, lambda: granite(4.0), masked, renamed_cap])
def test_unknown_change_of_logits_is_told_and_scored_all_at_once(caplog, make):
    model, batch = make(), one_batch()
    expected = computed(model, batch, None)
    kind = Causal(3)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(kind.token_logps(model, batch), expected[0])
        assert torch.equal(kind.token_logps(model, batch), expected[0])
    (record,) = caplog.records
    assert "changes its logits in a way of its own: engine.logits_chunk is not used" in record.getMessage()
    assert type(model).__name__ in record.getMessage()


@pytest.mark.parametrize("name", ["bare", "softcapped"])
def test_without_gradients(name):
    model, batch = KNOWN[name](), one_batch()
    expected, _ = computed(model, batch, None)
    with frozen(model):
        logps_K = Causal(5).token_logps(model, batch)
    assert not logps_K.requires_grad
    torch.testing.assert_close(logps_K, expected, rtol=1e-6, atol=1e-6)


def test_finding_out_takes_no_random_number_and_leaves_nothing_behind():
    batch, given = one_batch(), {}
    for chunk in (None, 5):
        model = tiny_llama(attention_dropout=0.5)
        torch.manual_seed(1)
        given[chunk] = computed(model, batch, chunk)
        head = model.get_output_embeddings()
        assert model.training and not head._forward_pre_hooks and not head._forward_hooks
        assert model(input_ids=batch.input_ids_BT).logits.shape[-1] == 32
    assert_same(given[5], given[None])


# Precision and memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cast", ["autocast", "weights"])
def test_half_precision_gives_fp32_log_probabilities_of_the_same_logits(cast):
    model, batch = tiny_llama(tie_word_embeddings=True), one_batch()
    if cast == "weights":
        model = model.to(torch.bfloat16)
    found = []
    for chunk in (None, 5):
        with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
            model.zero_grad()
            logps_K = Causal(chunk).token_logps(model, batch)
        assert logps_K.dtype == torch.float32
        logps_K.sum().backward()
        found.append((logps_K.detach(), model.model.embed_tokens.weight.grad.float()))
    (whole, gradient), (pieces, gradient_of_pieces) = found
    torch.testing.assert_close(pieces, whole, rtol=1e-6, atol=1e-6)
    assert not torch.equal(whole, whole.bfloat16().float()), "not rounded to half precision"
    # Summed up chunk by chunk in half precision.
    torch.testing.assert_close(gradient_of_pieces, gradient, rtol=0.05, atol=0.05 * float(gradient.abs().max()))


class Largest(TorchDispatchMode):
    """Notes the most rows of any tensor over the vocabulary that an operation makes, forward and backward."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.ndim and tensor.shape[-1] == self.vocabulary:
                self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return made


@pytest.mark.parametrize("chunk", [16, None])
def test_no_tensor_of_all_target_tokens_over_the_vocabulary_is_made_or_kept(chunk):
    model, batch = tiny_llama(vocab_size=1000), one_batch()
    kind = Causal(chunk)
    kept = 0

    def keep(tensor):
        nonlocal kept
        if tensor.numel() >= 16 * 1000 and tensor.data_ptr() not in weights:
            kept += tensor.numel()
        return tensor

    weights = {parameter.data_ptr() for parameter in model.parameters()}
    # The output layer's weight has 16 rows over the vocabulary when transposed.
    with Largest(1000) as largest, saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = kind.token_logps(model, batch).sum()
        if chunk is not None:
            assert kept == 0
            assert largest.rows <= chunk
        loss.backward()
    if chunk is None:
        assert kept >= batch.target_count * 1000 and largest.rows == batch.target_count, "the test sees them"
    else:
        assert largest.rows <= chunk


# In training ---------------------------------------------------------------------------------------------------


CHUNK = 12
LAYOUT = {"batch_size": 7, "micro": 2}  # seven examples: of two processes one has fewer


class Whole(Sft):
    """SFT with all logits at once."""

    chunk = None

    def __setattr__(self, name, value):
        super().__setattr__(name, Causal(self.chunk) if name == "kind" else value)


class Chunked(Whole):
    """SFT with few at a time."""

    chunk = CHUNK


def trained(folder, tied, engine):
    """Losses and weights after two steps, of all at once and of few at a time."""
    processes.join(folder / "run")
    found = []
    for method in (Whole, Chunked):
        # More weights in the output layer than DeepSpeed keeps whole under ZeRO 3.
        model = tiny_llama(vocab_size=4096, hidden_size=32, tie_word_embeddings=tied)
        start = method(SftConfig())
        curve = Curve(folder / method.__name__, steps=2, model=model, start_method=start, engine=engine, **LAYOUT)
        found.append((torch.tensor(curve.losses), curve.weights))
    return found


def assert_trained_alike(found):
    (losses, weights), (losses_of_few, weights_of_few) = found
    torch.testing.assert_close(losses_of_few, losses, rtol=1e-5, atol=0)
    for name, value in weights.items():
        torch.testing.assert_close(weights_of_few[name].float(), value.float(), rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("engine", [Engine(zero_stage=3), Engine(activation_checkpointing=True)])
def test_training_is_the_same(tmp_path, engine):
    assert_trained_alike(trained(tmp_path, False, engine))


@pytest.mark.parametrize("engine", [Engine(precision="bf16_autocast"), Engine(zero_stage=3, precision="bf16")])
def test_training_in_half_precision_has_nearly_the_same_losses(tmp_path, engine):
    """Gradients are summed in another order, and Adam's first steps turn a sign that is not sure into a whole step."""
    (losses, _), (losses_of_few, _) = trained(tmp_path, True, engine)
    torch.testing.assert_close(losses_of_few, losses, rtol=2e-3, atol=0)


def test_two_processes_with_other_numbers_of_chunks_at_zero_3(tmp_path):
    """One of them none, in some micro-batch: all must gather the weights equally often."""
    examples = random_examples(48)
    counts = [
        [batch.target_count for batch in batches_of(examples, rank=rank, world=2, **LAYOUT).of_step(0)]
        for rank in (0, 1)
    ]
    assert any(min(pair) <= CHUNK < max(pair) for pair in zip(*counts, strict=True))
    assert_trained_alike(processes.launch(2, 1, trained, tmp_path, True, Engine(zero_stage=3)))
