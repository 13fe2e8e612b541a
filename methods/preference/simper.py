"""SimPER: raise the inverse perplexity of the chosen response, lower that of the rejected one; nothing to tune.

Xiao et al.: "SimPER: A Minimalist Approach to Preference Alignment without Hyperparameters", ICLR 2025, arXiv
2502.00883.

    L = -exp(W / n_w) + exp(L / n_l)                                        mean over pairs

A response's gradient is weighed by its own inverse perplexity: one that the model finds very unlikely is left alone,
the rejected one on its way down, and the chosen one too. The loss is between -1 and 1; nothing overflows.
"""

from dataclasses import dataclass

from torch import Tensor

from methods.preference.base import Paired, ReferenceFreeConfig, Side


@dataclass(frozen=True, kw_only=True)
class SimperConfig(ReferenceFreeConfig):
    """No hyper-parameters."""


def simper_loss(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor) -> Tensor:
    """-exp(W / n_w) + exp(L / n_l), of log-probabilities per token [P]. Returns [P]."""
    return rejected_mean_logps.exp() - chosen_mean_logps.exp()


class Simper(Paired):
    """SimPER: difference of inverse perplexities, no reference, no hyper-parameter (arXiv 2502.00883)."""

    config: SimperConfig
    referenced = False

    def losses(self, chosen: Side, rejected: Side) -> Tensor:
        """The loss of each pair. Returns [P]."""
        return simper_loss(chosen.mean_logps, rejected.mean_logps)

    def rewards(self, side: Side) -> Tensor:
        """The inverse perplexity. Returns [P]."""
        return side.mean_logps.exp()
