"""A pair that can be worked out by hand, the same pair with its gradients, and a policy over a few answers."""

import torch
from torch import Tensor

from methods.preference.base import Paired, Side

# log pi and log ref of the chosen and the rejected response, and their lengths: log-ratios 1 and -0.5.
W, L, W_REFERENCE, L_REFERENCE, W_TOKENS, L_TOKENS = -12.0, -15.0, -13.0, -14.5, 6, 5


def side(logps: object, reference: object, tokens: object = 1) -> Side:
    """Numbers, or lists of them, as a side [P] in fp64; tensors keep their gradient."""
    tensors = [torch.as_tensor(value, dtype=torch.float64).reshape(-1) for value in (logps, reference, tokens)]
    return Side(*torch.broadcast_tensors(*tensors))


def toy(**changed: float) -> tuple[Side, Side]:
    """The pair above, or one that differs in some of W, L, Wr, Lr, n_w, n_l."""
    of = {"W": W, "L": L, "Wr": W_REFERENCE, "Lr": L_REFERENCE, "n_w": W_TOKENS, "n_l": L_TOKENS, **changed}
    return side(of["W"], of["Wr"], of["n_w"]), side(of["L"], of["Lr"], of["n_l"])


def at_reference() -> tuple[Side, Side]:
    """The pair where the policy still is its reference."""
    return toy(W=W_REFERENCE, L=L_REFERENCE)


def loss_of(method: Paired, pair: tuple[Side, Side] | None = None) -> float:
    """The loss of one pair, the one above unless given."""
    (loss,) = method.losses(*(pair or toy()))
    return loss.item()


def gradient_of(method: Paired, pair: tuple[Side, Side] | None = None) -> tuple[float, float]:
    """Derivatives of the loss of one pair by log pi of its chosen and its rejected response."""
    chosen, rejected = pair or toy()
    leaves = [one.logps.clone().requires_grad_() for one in (chosen, rejected)]
    sides = [Side(leaf, one.reference, one.tokens) for leaf, one in zip(leaves, (chosen, rejected), strict=True)]
    found = torch.autograd.grad(method.losses(*sides).sum(), leaves, allow_unused=True)
    dW, dL = (0.0 if one is None else one.item() for one in found)
    return dW, dL


def random_sides(count: int = 7, seed: int = 0) -> tuple[Side, Side]:
    """Pairs with log-ratios of some nats and lengths of 1 to 9 tokens."""
    generator = torch.Generator().manual_seed(seed)
    reference = -20 + 5 * torch.randn(2, count, generator=generator, dtype=torch.float64)
    logps = reference + 3 * torch.randn(2, count, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 10, (2, count), generator=generator).double()
    chosen, rejected = (Side(logps[row], reference[row], tokens[row]) for row in range(2))
    return chosen, rejected


def optimum(method: Paired, reference_A: Tensor, reward_A: Tensor, tokens_A: Tensor | None = None) -> Tensor:
    """The policy over A answers to one prompt that minimises the expected loss. Returns its log-probabilities [A].

    All pairs of answers are asked for, and preferred with the probabilities of Bradley and Terry for these rewards.
    """
    count = len(reward_A)
    tokens_A = torch.ones_like(reward_A) if tokens_A is None else tokens_A
    first, second = (
        index.flatten() for index in torch.meshgrid(torch.arange(count), torch.arange(count), indexing="ij")
    )
    weight = torch.sigmoid(reward_A[first] - reward_A[second]) / count**2
    logits_A = reference_A.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits_A], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logps_A = logits_A.log_softmax(-1)
        sides = [Side(logps_A[index], reference_A[index], tokens_A[index]) for index in (first, second)]
        loss = (weight * method.losses(*sides)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits_A.detach().log_softmax(-1)
