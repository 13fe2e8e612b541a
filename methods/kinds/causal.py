"""Causal language models: each token is predicted from those before it.

Legend: B rows, T tokens of a row, K target tokens of the batch, D width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.batch import Batch


class Causal:
    """Adapter of causal LMs as `transformers` defines them (bare, or inside a DeepSpeed engine)."""

    def token_logps(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probability of every target token given the tokens before it in its sequence. Returns [K], fp32."""
        logits_KV = self.target_logits(model, batch)
        return -F.cross_entropy(logits_KV.float(), batch.targets_K, reduction="none")

    def target_logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits from which every target token is predicted. Returns [K, V], in the model's precision.

        Right padding needs no attention mask, because no target looks at what follows it; packed rows carry
        restarting position ids, from which `transformers` builds the block-diagonal mask (only without a cache).
        """
        # The hidden state at t predicts the token at t + 1.
        source_mask_BT = F.pad(batch.target_mask_BT[:, 1:], (0, 1), value=False)
        with _only_at(model, source_mask_BT):
            logits_KV = model(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False).logits
        assert isinstance(logits_KV, Tensor)
        return logits_KV


@contextmanager
def _only_at(model: nn.Module, mask_BT: Tensor) -> Iterator[None]:
    """Let the output layer see only the hidden states at `mask_BT`: logits come out as [K, V], not [B, T, V]."""
    inner: Any = getattr(model, "module", model)  # a DeepSpeed engine wraps the model
    head: nn.Module = inner.get_output_embeddings()

    def select(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTD, *rest = inputs
        return (hidden_BTD[mask_BT], *rest)

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the model's own mode is put back afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
