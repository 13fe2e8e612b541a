"""TRL's `DPOTrainer` and a method of ours on the same weights and pairs: loss, and the gradient of every weight."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.batch import Batch
from methods.examples import Examples
from methods.forward import Forward
from methods.kinds.causal import Causal
from methods.preference.base import Preference
from tests.models import PAD, VOCABULARY, batches_of, tiny_llama

Found = tuple[Tensor, dict[str, Tensor]]  # loss, and gradients by the name of their weight


def random_pairs(count: int = 6, seed: int = 0, shortest: int = 1, longest: int = 9) -> Examples:
    """Pairs of random tokens after a prompt of one to four; the chosen response comes first, or second."""
    generator = np.random.default_rng(seed)
    sequences, targets, labels = [], [], []
    for number in range(count):
        prompt = generator.integers(1, VOCABULARY, generator.integers(1, 5))
        for place in range(2):
            response = generator.integers(1, VOCABULARY, generator.integers(shortest, longest + 1))
            sequences.append(np.concatenate([prompt, response]))
            targets.append(len(prompt))
            labels.append(float(place == number % 2))
    return Examples.of(sequences, targets, [2] * count, labels)


def policy() -> Any:
    """The model that is trained: some steps away from its reference."""
    model = tiny_llama(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return model


def reference() -> Any:
    """Its reference."""
    return tiny_llama(0).eval().requires_grad_(False)


def one_batch(examples: Examples, **layout: Any) -> Batch:
    """All pairs in one micro-batch."""
    count = len(examples.groups) - 1
    (batch,) = batches_of(examples, batch_size=count, micro=count, **layout).of_step(0)
    return batch


def ours(method: Preference, batches: list[Batch]) -> Found:
    """Mean loss over the pairs of all micro-batches."""
    model = policy()
    roles = {"policy": model, "reference": reference()}
    count = sum(method.count(batch) for batch in batches)
    losses = [method.loss(Forward(Causal(), roles, batch)).sum / count for batch in batches]
    total = torch.stack(losses).sum()
    total.backward()
    return total.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def theirs(trl: Any, examples: Examples, folder: str, **config: Any) -> Found:
    """DPOTrainer's loss on the same pairs; `config` is that of DPOConfig."""
    import datasets
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w1"))
    model = policy()
    arguments = {"output_dir": folder, "use_cpu": True, "bf16": False, "report_to": "none", "max_length": None}
    trainer = trl.DPOTrainer(
        model,
        reference(),
        trl.DPOConfig(**arguments, **config),
        train_dataset=datasets.Dataset.from_list([{"prompt": "w2", "chosen": "w3", "rejected": "w4"}]),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token=f"w{PAD}", eos_token="w1"),
    )
    pairs = []
    assert examples.labels is not None
    for first in range(0, len(examples), 2):
        chosen, rejected = (first, first + 1) if examples.labels[first] == 1 else (first + 1, first)
        pairs.append({
            "prompt_ids": examples.prompt(first).tolist(),
            "chosen_ids": examples.response(chosen).tolist(),
            "rejected_ids": examples.response(rejected).tolist(),
        })  # fmt: skip
    loss = trainer.compute_loss(model, trainer.data_collator(pairs))
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}
