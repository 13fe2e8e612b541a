"""Token log-probabilities of causal LMs: against transformers' own loss, and whatever the layout."""

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from methods.batch import mean_by_sequence
from methods.kinds.causal import Causal, frozen, without_dropout
from tests.models import VOCABULARY, batches_of, random_examples, tiny_llama


def by_example(batch, values_K):
    """{example: its values in order}."""
    return {int(e): values_K[batch.example_K == e] for e in batch.example_S}


def reference(model, examples):
    """One sequence at a time through the whole forward pass, logits shifted by hand."""
    found = {}
    for index in range(len(examples)):
        ids = torch.from_numpy(examples.sequence(index)).long()
        logps = F.log_softmax(model(input_ids=ids[None]).logits[0].float(), dim=-1)
        begin = int(examples.targets[index])
        found[index] = logps[begin - 1 : -1].gather(1, ids[begin:, None])[:, 0]
    return found


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("micro", [1, 3, 12])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_equals_one_sequence_at_a_time(packing, micro, mode):
    model, examples = tiny_llama(), random_examples()
    getattr(model, mode)()
    expected = reference(model, examples)
    seen = set()
    for batch in batches_of(examples, micro=micro, packing=packing).of_step(0):
        for example, logps in by_example(batch, Causal().token_logps(model, batch)).items():
            torch.testing.assert_close(logps, expected[example], rtol=1e-4, atol=1e-5)
            seen.add(example)
    assert seen == set(range(len(examples)))


def test_packed_rows_do_not_see_each_other():
    """Changing one document of a packed row changes no other's log-probabilities."""
    model, examples = tiny_llama(), random_examples(4, longest=8)
    (batch,) = batches_of(examples, batch_size=4, packing=True, row_length=64).of_step(0)
    assert batch.input_ids_BT.shape[0] == 1
    before = by_example(batch, Causal().token_logps(model, batch))
    first = int(batch.example_S[0])
    batch.input_ids_BT[batch.sequence_BT == 0] = 7
    after = by_example(batch, Causal().token_logps(model, batch))
    assert not torch.allclose(before[first], after[first])
    for example in before:
        if example != first:
            torch.testing.assert_close(before[example], after[example], rtol=1e-5, atol=1e-6)


def test_gradient_equals_that_of_transformers_loss():
    examples = random_examples(5)
    (batch,) = batches_of(examples, batch_size=5).of_step(0)
    ours, theirs = tiny_llama(), tiny_llama()
    (-Causal().token_logps(ours, batch).sum()).backward()
    labels = batch.input_ids_BT.masked_fill(~batch.target_mask_BT, -100)
    attention = (batch.sequence_BT >= 0).long()
    loss = theirs(input_ids=batch.input_ids_BT, attention_mask=attention, labels=labels, num_items_in_batch=1).loss
    loss.backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_softcapped_logits_are_kept():
    """A model that changes its logits after the output layer (Gemma 2) is scored by its own forward pass."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        final_logit_softcapping=0.01,
        attn_implementation="eager",
    )
    model, examples = Gemma2ForCausalLM(config).eval(), random_examples(3)
    expected = reference(model, examples)
    (batch,) = batches_of(examples, batch_size=3).of_step(0)
    for example, logps in by_example(batch, Causal().token_logps(model, batch)).items():
        torch.testing.assert_close(logps, expected[example], rtol=1e-4, atol=1e-5)


def test_no_hook_is_left_behind():
    model, examples = tiny_llama(), random_examples(3)
    (batch,) = batches_of(examples, batch_size=3).of_step(0)
    Causal().token_logps(model, batch)
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert model(input_ids=batch.input_ids_BT).logits.ndim == 3


def test_mean_by_sequence_and_empty_sequences():
    examples = random_examples(4)
    (batch,) = batches_of(examples, batch_size=4).of_step(0)
    values = torch.arange(batch.target_count, dtype=torch.float32)
    batch.target_mask_BT[batch.sequence_BT == 2] = False
    values = values[: batch.target_count]
    means = mean_by_sequence(values, batch)
    assert torch.isnan(means[2])
    for sequence in (0, 1, 3):
        torch.testing.assert_close(means[sequence], values[batch.sequence_K == sequence].mean())


def test_frozen_restores_mode_even_after_an_error():
    model = tiny_llama().train()
    with pytest.raises(RuntimeError), frozen(model):
        assert not model.training and not torch.is_grad_enabled()
        raise RuntimeError
    assert model.training and torch.is_grad_enabled()


def gpt2(dropout):
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32,
            attn_pdrop=dropout, embd_pdrop=dropout, resid_pdrop=dropout,
        )
    )  # fmt: skip


@pytest.mark.parametrize("make", [gpt2, lambda rate: tiny_llama(attention_dropout=rate)])
def test_without_dropout_training_and_evaluation_are_the_same(make):
    (batch,) = batches_of(random_examples(3), batch_size=3).of_step(0)
    model = make(0.5)
    assert not torch.equal(*(Causal().token_logps(model.train(mode), batch) for mode in (True, False)))
    without_dropout(model)
    torch.testing.assert_close(*(Causal().token_logps(model.train(mode), batch) for mode in (True, False)))


def test_frozen_inside_frozen_stays_frozen():
    """Also of a DeepSpeed engine, which hands its mode on to its model and keeps none itself."""

    class Engine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = torch.nn.Dropout(0.5)

        def train(self, mode=True):
            self.module.train(mode)

    for model in (Engine(), torch.nn.Dropout(0.5)):
        inner = getattr(model, "module", model)
        with frozen(model):
            with frozen(model):
                assert not inner.training
            assert not inner.training
        assert inner.training
