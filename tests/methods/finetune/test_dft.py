"""DFT: known answers, TALR's special case, and equality with TRL's implementation."""

import numpy as np
import pytest
import torch

from methods.finetune.dft import Dft, DftConfig
from methods.finetune.talr import Talr, TalrConfig
from methods.forward import Forward
from methods.kinds.causal import Causal
from tests.methods.finetune.test_talr import FOUR, given, gradients
from tests.models import PAD, VOCABULARY, batches_of, random_examples, tiny_llama


def test_known_answer():
    forward = given([FOUR])
    loss = Dft(DftConfig()).loss(forward)
    assert loss.sum.item() / 4 == pytest.approx(0.150284, abs=5e-7)
    loss.sum.backward()
    np.testing.assert_allclose(forward.logps_K.grad, [-p for p in FOUR])  # -sg[p] for each log p


@pytest.mark.parametrize("micro", [12, 3])
def test_is_talr_at_tau_one_without_floors(micro):
    """Bit for bit, value and gradient; it couples nothing, so micro-batches do not matter."""
    batches = batches_of(random_examples(), micro=micro).of_step(0)
    dft = gradients(Dft(DftConfig()), tiny_llama(), batches)
    talr = gradients(Talr(TalrConfig(tau=1.0, w_min=0.0, p_min=0.0)), tiny_llama(), batches)
    assert dft[0] == talr[0]
    assert all(torch.equal(a, b) for a, b in zip(dft[1], talr[1], strict=True))
    assert Dft.couples is None


@pytest.mark.parametrize("loss_type", ["dft", "nll"])
def test_equals_trl(tmp_path, loss_type):
    """Value and gradient of SFTTrainer's loss on the same weights and labels; with nll, plain SFT, the two differ."""
    trl = pytest.importorskip("trl")
    import datasets
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w1"))
    theirs = tiny_llama()
    trainer = trl.SFTTrainer(
        theirs,
        trl.SFTConfig(output_dir=str(tmp_path), loss_type=loss_type, use_cpu=True, bf16=False, report_to="none"),
        train_dataset=datasets.Dataset.from_list([{"text": "w2 w3"}]),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1"),
    )
    (batch,) = batches_of(random_examples(5), batch_size=5).of_step(0)
    inputs = {
        "input_ids": batch.input_ids_BT,
        "attention_mask": (batch.sequence_BT >= 0).long(),
        "labels": batch.input_ids_BT.masked_fill(~batch.target_mask_BT, -100),
    }
    assert PAD == 0
    expected = trainer.compute_loss(theirs, inputs, num_items_in_batch=batch.target_count)
    expected.backward()
    ours = tiny_llama()
    loss = Dft(DftConfig()).loss(Forward(Causal(), {"policy": ours}, batch)).sum / batch.target_count
    loss.backward()
    pairs = [(loss, expected)] + [(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]
    alike = [torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs]
    assert all(alike) if loss_type == "dft" else not any(alike)
