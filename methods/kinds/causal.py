"""Causal language models: each token is predicted from those before it.

Legend: B rows, T tokens of a row, K target tokens of the batch, C of them at a time, D width, V vocabulary.
"""

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from methods.batch import Batch

log = logging.getLogger(__name__)


class Causal:
    """Adapter of causal LMs as `transformers` defines them (bare, or inside a DeepSpeed engine).

    logits_chunk: of more target tokens than this, the logits are made chunk by chunk, and again in the backward pass,
    so that no more than [C, V] of them are ever held; None: all at once. It changes memory and speed, not results.
    """

    def __init__(self, logits_chunk: int | None = None) -> None:
        self.logits_chunk = logits_chunk
        # Output layers whose model does something to their logits that is not known here.
        self._whole_only: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def token_logps(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probability of every target token given the tokens before it in its sequence. Returns [K], fp32."""
        chunk = self.logits_chunk
        if chunk is not None and batch.target_count > chunk and _head(model) not in self._whole_only:
            logps_K = _chunked_logps(model, batch, chunk)
            if logps_K is not None:
                return logps_K
            self._whole_only.add(_head(model))
            log.warning("%s changes its logits in a way of its own: engine.logits_chunk is not used", type(model))
        return _logps(self.target_logits(model, batch), batch.targets_K)

    def target_logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits from which every target token is predicted. Returns [K, V], in the model's precision.

        Right padding needs no attention mask, because no target looks at what follows it; packed rows carry
        restarting position ids, from which `transformers` builds the block-diagonal mask (only without a cache).
        """
        mask_BT = _source_mask(batch)

        def select(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden_BTD, *rest = inputs
            return (hidden_BTD[mask_BT], *rest)

        handle = _head(model).register_forward_pre_hook(select)
        try:
            return _call(model, batch)
        finally:
            handle.remove()


def _head(model: nn.Module) -> nn.Module:
    """The output layer."""
    inner: Any = getattr(model, "module", model)  # a DeepSpeed engine wraps the model
    head: nn.Module = inner.get_output_embeddings()
    return head


def _source_mask(batch: Batch) -> Tensor:
    """Where the hidden states stand that predict the target tokens: the one at t predicts the token at t + 1."""
    return F.pad(batch.target_mask_BT[:, 1:], (0, 1), value=False)


def _call(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False).logits
    assert isinstance(logits, Tensor)
    return logits


def _logps(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """Log-probabilities of the targets. Returns [C], fp32; liger's kernel, where it is installed, on a GPU."""
    if logits_CV.is_cuda and _liger_cross_entropy is not None and len(targets_C):
        return -_liger_cross_entropy(logits_CV, targets_C, reduction="none").float()
    return -F.cross_entropy(logits_CV.float(), targets_C, reduction="none")


def _liger() -> Any:
    if not torch.cuda.is_available():
        return None
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy
    except ImportError:
        return None
    return liger_cross_entropy


_liger_cross_entropy = _liger()


def _chunked_logps(model: nn.Module, batch: Batch, chunk: int) -> Tensor | None:
    """`Causal.token_logps`, with the logits of at most `chunk` target tokens at a time.

    It happens inside the model's own forward pass, where weights are gathered and precision is set: the output layer
    is given one position, and called again on the others. What the model makes of that one says whether it changes its
    logits further; None, where it does so in a way that is not known.
    """
    head, mask_BT, targets_K = _head(model), _source_mask(batch), batch.targets_K
    inner: Any = getattr(model, "module", model)
    cap = getattr(inner.config, "final_logit_softcapping", None)
    found: dict[str, Tensor] = {}
    calling = False

    def finished(hidden_CD: Tensor) -> Tensor:
        logits_CV: Tensor = head(hidden_CD)
        return logits_CV if cap is None else torch.tanh(logits_CV / cap) * cap

    def logps_of(hidden_CD: Tensor, targets_C: Tensor) -> Tensor:
        return _logps(finished(hidden_CD), targets_C)

    def select(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if calling:
            return None
        hidden_BTD, *rest = inputs
        found["hidden_KD"] = hidden_BTD[mask_BT]
        return (found["hidden_KD"][:1], *rest)

    def go_on(_module: nn.Module, _inputs: Any, output_1V: Tensor) -> None:
        nonlocal calling
        if calling:
            return
        calling = True
        pieces = zip(found["hidden_KD"].split(chunk), targets_K.split(chunk), strict=True)
        if torch.is_grad_enabled():
            logps = [checkpoint(logps_of, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
        else:
            logps = [logps_of(*piece) for piece in pieces]
        found["logps_K"] = torch.cat(logps)
        with torch.no_grad():
            found["first_1V"] = output_1V if cap is None else torch.tanh(output_1V / cap) * cap
        calling = False

    handles = [head.register_forward_pre_hook(select), head.register_forward_hook(go_on)]
    try:
        returned_1V = _call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if not torch.allclose(returned_1V.detach(), found["first_1V"], rtol=1e-3, atol=1e-3):
        return None
    return found["logps_K"]


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
