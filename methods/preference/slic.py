"""SLiC-HF, sequence likelihood calibration: a margin of log-probabilities, and the likelihood of the chosen response.

Zhao et al.: "SLiC-HF: Sequence Likelihood Calibration with Human Feedback", arXiv 2305.10425.

    L = max(0, delta - W + L) - lambda W                                    mean over pairs

The paper's second term is on the answers of the supervised data; where there are only pairs it is on the chosen
response, as in the comparison of SimPO (arXiv 2405.14734), which tries delta in {0.1, 0.5, 1, 2} and lambda in {0.1,
0.5, 1, 10}.

Defaults: delta 1 and lambda 0.1, ours, of those.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from methods.preference.base import Paired, ReferenceFreeConfig, Side


@dataclass(frozen=True, kw_only=True)
class SlicConfig(ReferenceFreeConfig):
    """delta: margin of the log-probabilities, in nats. weight: lambda, of the chosen response's log-probability."""

    delta: NonNegativeFloat = 1.0
    weight: NonNegativeFloat = 0.1


def slic_loss(chosen_logps: Tensor, rejected_logps: Tensor, delta: float, weight: float) -> Tensor:
    """max(0, delta - W + L) - lambda W.

    Args:
        chosen_logps, rejected_logps: log-probabilities, summed over a response's tokens [P].
        delta, weight: >= 0.

    Returns:
        [P].
    """
    return F.relu(delta - chosen_logps + rejected_logps) - weight * chosen_logps


class Slic(Paired):
    """SLiC-HF: hinge loss on log-probabilities and the likelihood of the chosen response (arXiv 2305.10425)."""

    config: SlicConfig
    referenced = False

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return slic_loss(chosen.logps, rejected.logps, self.config.delta, self.config.weight)
