"""Ra-DPO: TDPO with a risk measure of the log-ratio in the place of each token's KL.

"Risk-aware Direct Preference Optimization under Nested Risk Measure", arXiv 2505.20359.

    Z_v   = log ref(v | s_t) - log pi(v | s_t)                              of the next token v at a position
    R(y)  = sum_t Phi[Z],  v ~ ref(. | s_t)                                 the sequential risk ratio
    version 1   L = -log sigmoid(beta [m_w - m_l - (R_l - R_w)])            m: see `methods/preference/tdpo.py`
    version 2   L = -log sigmoid(beta [m_w - m_l - alpha (R_l - sg R_w)])

With the expectation for Phi, R is the forward KL, and this is TDPO. `risk` chooses Phi:

    coded_cvar   sum of ref(v) Z_v over the tokens with Z_v > q, not divided by their mass; q: (1 - level)-quantile of Z
                 over the vocabulary, every token counting the same; with `split` one of each half of the vocabulary
    cvar         mean of Z over the worst (largest) `level` of ref's probability mass,
                 min_z z + E_ref[(Z - z)^+] / level; level 1 is the mean
    erm          (1 / level) log E_ref[exp(level Z)]; towards level 0 the mean
    mean         sum of ref(v) Z_v, the KL

The paper speaks of CVaR and of the entropic measure; the authors' code (zlj123-max/Ra-DPO) has `coded_cvar`, which is
neither: it leaves out the few tokens that the policy raised most. Where pi = ref nothing is above the quantile, and R
is 0. The paper's levels are not in our sources, so the default is what that code runs.

Defaults: all of the authors' code (beta 0.1, alpha 0.5, level 0.95, split, version 1).

Legend: C positions, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from methods.divergences import kl
from methods.preference.tdpo import Tdpo, TdpoConfig


@dataclass(frozen=True, kw_only=True)
class RaDpoConfig(TdpoConfig):
    """version, alpha: as in TDPO. risk: the measure. level: its parameter, at most 1 but for `erm`.

    split: `coded_cvar` takes the quantile of each half of the vocabulary by itself.
    """

    version: Literal[1, 2] = 1
    risk: Literal["coded_cvar", "cvar", "erm", "mean"] = "coded_cvar"
    level: PositiveFloat = 0.95
    split: bool = True

    def __post_init__(self) -> None:
        if self.risk in ("coded_cvar", "cvar") and self.level > 1:
            raise ValueError(f"method.level={self.level}: must be at most 1 with method.risk={self.risk}")


def coded_cvar(policy_logps: Tensor, reference_logps: Tensor, level: float, split: bool) -> Tensor:
    """Sum of ref(v) Z_v over the tokens whose Z is above its (1 - level)-quantile over the vocabulary.

    Args:
        policy_logps, reference_logps: log-probabilities [C, V].
        level: in (0, 1].
        split: the first V // 2 tokens and the others have a quantile each.

    Returns:
        [C].
    """
    reference, differences = _differences(policy_logps, reference_logps)
    vocabulary = differences.shape[-1]
    halves = (vocabulary // 2, vocabulary - vocabulary // 2) if split else (vocabulary,)
    parts = []
    for part in differences.split(halves, dim=-1):
        # Torch's limit of 2^24 elements is one on the vocabulary, not on its product with the positions.
        threshold = part.detach().quantile(1 - level, dim=-1, keepdim=True)
        parts.append(torch.where(part > threshold, part, 0.0))
    return (reference * torch.cat(parts, dim=-1)).sum(-1)


def cvar(policy_logps: Tensor, reference_logps: Tensor, level: float) -> Tensor:
    """Mean of Z over the largest values that hold `level` of ref's probability mass. From [C, V] to [C].

    level: in (0, 1].
    """
    reference, differences = _differences(policy_logps, reference_logps)
    values = differences.detach()
    ordered, order = values.sort(dim=-1, descending=True)
    masses = reference.gather(-1, order)
    before = masses.cumsum(-1) - masses
    last = ((before < level).sum(-1, keepdim=True) - 1).clamp_min(0)
    threshold = ordered.gather(-1, last)
    # What each token takes of the mass, which is constant around almost every Z. Of equal values each takes the same
    # part: where pi = ref the gradient is that of the mean, 0.
    above = reference * (values > threshold)
    at = reference * (values == threshold)
    rest = (level - above.sum(-1, keepdim=True)).clamp_min(0.0)
    taken = above + at * rest / at.sum(-1, keepdim=True).clamp_min(torch.finfo(at.dtype).tiny)  # there may be no mass
    # Rounding of the sums over a large vocabulary must not change the mean of what is taken.
    return (taken * differences).sum(-1) / taken.sum(-1)


def entropic_risk(policy_logps: Tensor, reference_logps: Tensor, level: float) -> Tensor:
    """(1 / level) log sum_v ref(v) exp(level Z_v), a Rényi divergence of order 1 + level. From [C, V] to [C].

    level: > 0; where it is small, the logarithm of a sum near 1 loses digits.
    """
    possible = reference_logps > -torch.inf
    exponents = torch.where(possible, (1 + level) * reference_logps - level * policy_logps, -torch.inf)
    return exponents.logsumexp(-1) / level


def _differences(policy_logps: Tensor, reference_logps: Tensor) -> tuple[Tensor, Tensor]:
    """ref(v) and Z_v, which is 0 where ref(v) is. Both [C, V]."""
    reference = reference_logps.exp()
    return reference, torch.where(reference > 0, reference_logps - policy_logps, torch.zeros_like(reference))


class RaDpo(Tdpo):
    """Ra-DPO: TDPO with a risk measure of the log-ratio for each token's KL (arXiv 2505.20359)."""

    config: RaDpoConfig

    def divergence(self, policy_logps_CV: Tensor, reference_logps_CV: Tensor) -> Tensor:
        """The risk at each position. Returns [C]."""
        risk, level = self.config.risk, self.config.level
        if risk == "coded_cvar":
            return coded_cvar(policy_logps_CV, reference_logps_CV, level, self.config.split)
        if risk == "cvar":
            return cvar(policy_logps_CV, reference_logps_CV, level)
        if risk == "erm":
            return entropic_risk(policy_logps_CV, reference_logps_CV, level)
        return kl(reference_logps_CV, policy_logps_CV)
