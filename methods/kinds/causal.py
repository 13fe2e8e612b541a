"""Causal language models: each token is predicted from those before it.

Legend: B rows, T tokens of a row, P tokens of the batch, K target tokens of it, C of them at a time, S sequences,
D width, V vocabulary.
"""

import logging
import re
import weakref
from collections.abc import Callable, Iterator
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
    so that no more than [C, V] of them are ever held; None: all at once. It changes memory and speed, not results. A
    model that does to its logits what is not known here is given all at once.
    """

    def __init__(self, logits_chunk: int | None = None) -> None:
        self.logits_chunk = logits_chunk
        # What the model of an output layer does to its logits; None: something that is not known here.
        self._finishes: weakref.WeakKeyDictionary[nn.Module, _Finish | None] = weakref.WeakKeyDictionary()

    def token_logps(self, model: nn.Module, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Log-probability of every target token given the tokens before it in its sequence. Returns [K], fp32.

        temperature: by which logits are divided, as where the tokens were sampled.
        """
        if self.logits_chunk is not None:
            # Asked whatever the batch: a sharded model is called by all processes or by none.
            finish = self._finish(model, batch.input_ids_BT[:1, :1])
            if finish is not None and batch.target_count > self.logits_chunk:
                return _chunked_logps(model, batch, self.logits_chunk, finish, temperature)
        return _logps(self.target_logits(model, batch), batch.targets_K, temperature)

    def target_logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits from which every target token is predicted. Returns [K, V], in the model's precision.

        Right padding needs no attention mask, because no target looks at what follows it; packed rows carry
        restarting position ids, from which `transformers` builds the block-diagonal mask (only without a cache).
        """
        mask_BT = source_mask(batch)

        def select(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden_BTD, *rest = inputs
            return (hidden_BTD[mask_BT], *rest)

        handle = _head(model).register_forward_pre_hook(select)
        try:
            return _call(model, batch)
        finally:
            handle.remove()

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The last hidden states of every sequence, their mean over its tokens. Returns [S, D], fp32."""
        shown: list[Tensor] = []

        def show(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden_BTD, *rest = inputs
            shown.append(hidden_BTD.float())
            return (hidden_BTD[:, :1], *rest)  # no logits are needed

        handle = _head(model).register_forward_pre_hook(show)
        try:
            _call(model, batch)
        finally:
            handle.remove()
        (hidden_BTD,) = shown
        held_BT = batch.sequence_BT >= 0
        sequence_P = batch.sequence_BT[held_BT]
        sums_SD = hidden_BTD.new_zeros(len(batch.example_S), hidden_BTD.shape[-1])
        sums_SD.index_add_(0, sequence_P, hidden_BTD[held_BT])
        return sums_SD / torch.bincount(sequence_P, minlength=len(sums_SD))[:, None]

    def _finish(self, model: nn.Module, token_11: Tensor) -> "_Finish | None":
        head = _head(model)
        if head not in self._finishes:
            self._finishes[head] = found = _finish_of(model, token_11)
            if found is None:
                name = type(getattr(model, "module", model)).__name__
                log.warning("%s changes its logits in a way of its own: engine.logits_chunk is not used", name)
        return self._finishes[head]


# What a model does to the logits of its output layer before it returns them.
_Finish = Callable[[Tensor], Tensor]


def _unchanged(logits: Tensor) -> Tensor:
    return logits


def _capped(cap: float) -> _Finish:
    return lambda logits: torch.tanh(logits / cap) * cap


def _finish_of(model: nn.Module, token_11: Tensor) -> _Finish | None:
    """What a model does to its logits: nothing, or capping them softly (Gemma 2); None: neither.

    It is shown made-up logits of a wide range in place of those of one token, so that neither the weights nor how large
    the logits happen to be can hide what it does.
    """
    made_up: list[Tensor] = []

    def show(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        range_V = torch.linspace(-60.0, 60.0, output.shape[-1], dtype=output.dtype, device=output.device)
        made_up.append(range_V.expand(output.shape).clone())
        return made_up[0].clone()  # a model may change it in place

    handle = _head(model).register_forward_hook(show)
    try:
        with frozen(model):  # without dropout, whose random numbers belong to the training
            returned = model(input_ids=token_11, use_cache=False).logits
    finally:
        handle.remove()
    (shown,) = made_up
    if returned.shape != shown.shape:
        return None
    if torch.equal(returned.float(), shown.float()):
        return _unchanged
    cap = getattr(getattr(getattr(model, "module", model), "config", None), "final_logit_softcapping", None)
    rounding = 4 * torch.finfo(shown.dtype).eps
    if cap is not None and torch.allclose(returned.float(), _capped(cap)(shown.float()), rtol=rounding, atol=rounding):
        return _capped(cap)
    return None


def _head(model: nn.Module) -> nn.Module:
    """The output layer."""
    inner: Any = getattr(model, "module", model)  # a DeepSpeed engine wraps the model
    head: nn.Module = inner.get_output_embeddings()
    return head


@contextmanager
def beside_head(model: nn.Module, part: str) -> Iterator[list[Any]]:
    """What a module that a method added to the model makes of the last hidden states [B, T, D], pass by pass.

    It is called inside the model's own pass, just before the output layer, so that sharded weights are gathered for it
    as for the rest. A pass of `Causal` may be preceded by one that only looks at the model: the last one counts.

    Args:
        part: its attribute (`Objective.parts`).
    """
    inner: Any = getattr(model, "module", model)
    module: nn.Module = getattr(inner, part)
    said: list[Any] = []

    def show(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        said.append(module(inputs[0]))

    handle = _head(model).register_forward_pre_hook(show)  # before those of the pass, which pick some of the states
    try:
        yield said
    finally:
        handle.remove()


def source_mask(batch: Batch) -> Tensor:
    """Where the hidden states stand that predict the target tokens: the one at t predicts the token at t + 1."""
    return F.pad(batch.target_mask_BT[:, 1:], (0, 1), value=False)


def _call(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False).logits
    assert isinstance(logits, Tensor)
    return logits


def _logps(logits_CV: Tensor, targets_C: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the targets. Returns [C], fp32; liger's kernel, where it is installed, on a GPU."""
    logits_CV = logits_CV.float()  # liger returns what it is given: in bf16 a sum over tokens would be coarse
    if temperature != 1.0:
        logits_CV = logits_CV / temperature
    if logits_CV.is_cuda and _liger_cross_entropy is not None and len(targets_C):
        logps_C: Tensor = -_liger_cross_entropy(logits_CV, targets_C, reduction="none")
        return logps_C
    return -F.cross_entropy(logits_CV, targets_C, reduction="none")


def _liger() -> Any:
    if not torch.cuda.is_available():
        return None
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy
    except ImportError:
        return None
    return liger_cross_entropy


_liger_cross_entropy = _liger()


def _chunked_logps(model: nn.Module, batch: Batch, chunk: int, finish: _Finish, temperature: float = 1.0) -> Tensor:
    """`Causal.token_logps`, with the logits of at most `chunk` target tokens at a time.

    It happens inside one call of the output layer, by its bare `forward`: before the hooks that let go of its weights
    (ZeRO 3) and after those that gather them, once in each pass whatever the number of chunks, as processes must that
    have more and fewer target tokens. What the layer returns is the log-probabilities, as if the vocabulary had one
    token.
    """
    head, mask_BT, targets_K = _head(model), source_mask(batch), batch.targets_K
    found: dict[str, Tensor] = {}

    def logps_of(hidden_CD: Tensor, targets_C: Tensor) -> Tensor:
        return _logps(finish(head.forward(hidden_CD)), targets_C, temperature)

    def select(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden_BTD, *rest = inputs
        found["hidden_KD"] = hidden_BTD[mask_BT]
        return (found["hidden_KD"][:1], *rest)  # of what the layer itself does, as little as can be

    def score(_module: nn.Module, _inputs: Any, _output: Tensor) -> Tensor:
        pieces = zip(found["hidden_KD"].split(chunk), targets_K.split(chunk), strict=True)
        if torch.is_grad_enabled():
            logps = [checkpoint(logps_of, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces]
        else:
            logps = [logps_of(*piece) for piece in pieces]
        found["logps_K1"] = torch.cat(logps).unsqueeze(-1)
        return found["logps_K1"]

    handles = [head.register_forward_pre_hook(select), head.register_forward_hook(score, prepend=True)]
    try:
        returned_K1 = _call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if finish is not _unchanged:
        # Capped once more by the model. The backward pass must still go through it: there the weights are gathered.
        returned_K1 = found["logps_K1"] + 0.0 * returned_K1
    return returned_K1.squeeze(-1)


def without_dropout(model: nn.Module) -> None:
    """Switch a model's own dropout off for good, in training too."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):  # of attention and layers, which have no module for it
            if isinstance(value, float) and re.search("dropout|layerdrop|pdrop", name):
                setattr(module, name, 0.0)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the model's own mode is put back afterwards."""
    was_training = getattr(model, "module", model).training  # a DeepSpeed engine's own mark does not change
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
