"""RPO, regularised preference optimisation: DPO with SFT on the chosen responses.

Liu et al.: "Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer",
NeurIPS 2024, arXiv 2405.16436.

    L = -log sigmoid(beta [(W - Wr) - (L - Lr)]) - eta W/n_w                mean over pairs

The SFT term is what remains of an adversary that chooses the least favourable reward among those that fit the pairs.

It is the mean over the tokens of each chosen response, and then over pairs (ours, because it couples no pairs; TRL's
mean is over all chosen tokens of a micro-batch, the same where the responses are equally long).

Defaults: eta 0.005 and beta 0.01 of the paper.
"""

from dataclasses import dataclass

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from methods.preference.base import BetaConfig, Paired, Side
from methods.preference.dpo import dpo_loss


@dataclass(frozen=True, kw_only=True)
class RpoConfig(BetaConfig):
    """eta: weight of the SFT loss on chosen responses; 0 is DPO."""

    beta: PositiveFloat = 0.01
    eta: NonNegativeFloat = 0.005


class Rpo(Paired):
    """RPO: DPO plus the negative log-likelihood of the chosen responses (arXiv 2405.16436)."""

    config: RpoConfig

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        preference = dpo_loss(chosen.log_ratio, rejected.log_ratio, self.config.beta)
        return preference - self.config.eta * chosen.mean_logps
