"""DFT, dynamic fine-tuning: SFT with each token's loss multiplied by the token's probability.

Wu et al.: "On the Generalization of SFT: A Reinforcement Learning Perspective with Reward Rectification", ICLR 2026,
arXiv 2508.05629. A baseline of follow-ups of FLOW and TALR.

    L = sum_{t active} sg[p_theta(y_t | ...)] (-log p_theta(y_t | ...)) / N,       N = active tokens of the step

It cancels the factor 1/p by which SFT's gradient differs from a policy gradient with reward 1 for the demonstration.
It is TALR with tau = 1 and without floors, and couples no examples.
"""

from dataclasses import dataclass

from methods.finetune.sft import Sft, SftConfig
from methods.finetune.talr import talr_weights
from methods.forward import Forward
from methods.objective import Loss


@dataclass(frozen=True, kw_only=True)
class DftConfig(SftConfig):
    """No hyper-parameters of its own."""


class Dft(Sft):
    """DFT: each token's loss times its probability, without gradient through it (arXiv 2508.05629)."""

    config: DftConfig

    def loss(self, forward: Forward) -> Loss:
        """Sum of -sg[p] log p over the batch's target tokens."""
        logps_K = forward.token_logps()
        weights_K = talr_weights(logps_K, tau=1.0, w_min=0.0, p_min=0.0)
        return Loss((weights_K * -logps_K).sum(), {"unweighted_loss": -logps_K.detach().sum()})
