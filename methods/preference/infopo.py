"""InfoPO: mutual information of response and preference, bounded otherwise than DPO does; no Bradley-Terry model.

Xiao, Ge, Sanghavi, Wang, Katz-Samuels, Versage, Cui, Chilimbi: "InfoPO: On Mutual Information Maximization for Large
Language Model Alignment", NAACL 2025, arXiv 2505.08507.

    L = -W + exp(L - Lr)                                                    mean over pairs

Where it comes from. C says whether a response is preferred. A critic f(x, y) bounds I(Y; C | X) from below, with a_w =
W - Wr and a_l = L - Lr:

    InfoNCE, one positive and one negative, f = beta a:     log sigmoid(beta (a_w - a_l))         this is DPO
    NWJ (Nguyen, Wainwright, Jordan):                       E_w[f] - exp(-1) E_l[exp(f)]
        with f = 1 + a:                                     a_w + 1 - exp(a_l)                    this is InfoPO

and -a_w + exp(a_l) differs from L by Wr, a constant in theta. No beta, no margin, no length normalisation.

    grad L = -grad W + exp(a_l) grad L

The chosen response is pulled with weight 1, whatever the margin; the rejected one is pushed with the likelihood ratio
exp(a_l): 1 at the start, and ever less as it becomes unlikely. Its push switches itself off and the pull stays, so
that the chosen likelihood does not fall along with the rejected one's, as it can under DPO (whose two weights are
always the same number). It is no guarantee: at the start the weights are equal, and tokens that both responses share
get no push.

Over positive ratios the minimum is pi / ref = p_w / p_l; with pi normalised, pi = p_w / (p_l / ref + mu), where mu
makes it sum to 1. Rejected responses that come from ref give pi = p_w: the chosen distribution, imitated.

What is known, and what is not. That the method keeps the pairs and drops Bradley-Terry for another estimator of mutual
information, and that the chosen likelihood is not to fall, is in the abstract. That the estimator is NWJ is said by a
third party; the loss above follows from it, and is the `ukl` of DIL (methods/preference/dil.py) by the same first
author. Whether the paper adds a coefficient, a clamp or a length normalisation, and all of its hyper-parameters, are
not known to us, and no code of the authors is public.

-W is a sum over tokens: learning rates are those of DPO (1e-7 to 1e-6) rather than those of fine-tuning.

`exponent_max` (ours): beyond it exp goes on as its tangent, so that a rejected response that has become e^40 times as
likely as under the reference still gives finite numbers in fp32 (with its squared norm), and a push in the same
direction. Below it the formula is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Le
from torch import Tensor

from methods.divergences import exp_then_linear
from methods.preference.base import Paired, PreferenceConfig, Side


@dataclass(frozen=True, kw_only=True)
class InfopoConfig(PreferenceConfig):
    """exponent_max: where exp of the log-ratio goes on as its tangent, in nats."""

    exponent_max: Annotated[float, Gt(0.0), Le(80.0)] = 40.0


def infopo_loss(chosen_logps: Tensor, rejected_log_ratio: Tensor, exponent_max: float = 40.0) -> Tensor:
    """-W + exp(a_l).

    Args:
        chosen_logps: log pi(y_w | x), summed over the tokens [P].
        rejected_log_ratio: log pi(y_l | x) - log ref(y_l | x) [P].
        exponent_max: as in `InfopoConfig`.

    Returns:
        [P].
    """
    return -chosen_logps + exp_then_linear(rejected_log_ratio, exponent_max)


class Infopo(Paired):
    """InfoPO: -log pi of the chosen response plus pi / ref of the rejected one (arXiv 2505.08507; loss derived)."""

    config: InfopoConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return infopo_loss(chosen.logps, rejected.log_ratio, self.config.exponent_max)

    def metrics(self, chosen: Side, rejected: Side) -> Mapping[str, Tensor]:
        """Besides the others: mean of the rejected weight exp(a_l), and of the largest in each micro-batch."""
        with torch.no_grad():
            weights_P = rejected.log_ratio.clamp_max(self.config.exponent_max).exp()
            return {
                **super().metrics(chosen, rejected),
                "rejected_ratio": weights_P.sum(),
                "rejected_ratio_max": weights_P.max() * len(weights_P),  # the log divides by the pairs
            }
