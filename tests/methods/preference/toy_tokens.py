"""Pairs token by token: what their target tokens are, and what policy and reference say there, given by hand."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from methods.batch import Batch
from methods.examples import Examples
from methods.forward import Forward
from methods.kinds.causal import Causal

PROMPT = 3  # tokens


def pair_batch(*pairs: tuple[list[int], list[int]], padding: int = 0, first_example: int = 0) -> Batch:
    """Pairs of responses, one a row, chosen and rejected in turn."""
    responses = [response for pair in pairs for response in pair]
    width = PROMPT + max(map(len, responses)) + padding
    sequence_BT = torch.full((len(responses), width), -1)
    input_ids_BT = torch.zeros(len(responses), width, dtype=torch.long)
    target_mask_BT = torch.zeros(len(responses), width, dtype=torch.bool)
    for row, response in enumerate(responses):
        sequence_BT[row, : PROMPT + len(response)] = row
        input_ids_BT[row, PROMPT : PROMPT + len(response)] = torch.tensor(response)
        target_mask_BT[row, PROMPT : PROMPT + len(response)] = True
    order = torch.arange(len(responses))
    return Batch(
        input_ids_BT,
        None,
        target_mask_BT,
        sequence_BT,
        order + first_example,
        group_S=order // 2,
        label_S=1.0 - order % 2,
    )


def random_pairs(count: int = 6, seed: int = 0, vocabulary: int = 32, most: int = 9) -> Examples:
    """Pairs of responses of 1 to `most` random tokens, chosen first."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(shortest: int, longest: int) -> list[int]:
        length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
        return torch.randint(1, vocabulary, (length,), generator=generator).tolist()

    sequences, targets = [], []
    for _ in range(count):
        prompt = tokens(1, 4)
        sequences += [prompt + tokens(1, most), prompt + tokens(1, most)]
        targets += [len(prompt)] * 2
    return Examples.of(sequences, targets, [2] * count, [1.0, 0.0] * count)


class Told(nn.Module):
    """A model that gives these logits at the target tokens."""

    def __init__(self, logits_KV: Tensor) -> None:
        super().__init__()
        self.logits_KV = nn.Parameter(logits_KV)


class ToldKind(Causal):
    """Asks such models."""

    def target_logits(self, model: Any, batch: Batch) -> Tensor:
        logits_KV: Tensor = model.logits_KV
        return logits_KV


def told(policy_KV: Tensor, reference_KV: Tensor, batch: Batch) -> Forward:
    """Policy and reference by their logits at the target tokens; `.roles["policy"].logits_KV` gets the gradient."""
    return Forward(ToldKind(), {"policy": Told(policy_KV), "reference": Told(reference_KV)}, batch)


def responses_of(logps_K: Tensor, reference_K: Tensor, batch: Batch) -> Any:
    """What a method sees of given token log-probabilities (`methods.preference.base.Responses`)."""
    from methods.preference.base import Responses

    forward: Any = SimpleNamespace(batch=batch, token_logps=lambda role="policy": logps_K)
    return Responses(forward, reference_K)


# Next-token distributions over four tokens, as logits: of a chosen response of two tokens, and a rejected one of three.
CHOSEN, REJECTED = [0, 1], [2, 0, 1]
POLICY = [[1, 0, 0, -1], [0, 2, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 2]]
REFERENCE = [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]


def toy_forward(policy: Any = POLICY, reference: Any = REFERENCE) -> Forward:
    """The worked example above."""
    batch = pair_batch((CHOSEN, REJECTED))
    return told(torch.as_tensor(policy).float().clone(), torch.as_tensor(reference).float().clone(), batch)


def loss_and_gradient(method: Any, forward: Forward) -> tuple[float, Tensor]:
    """The loss of a micro-batch, and its gradient by the policy's logits [K, V]."""
    found = method.loss(forward).sum
    (gradient,) = torch.autograd.grad(found, forward.roles["policy"].logits_KV)
    return found.item(), gradient
