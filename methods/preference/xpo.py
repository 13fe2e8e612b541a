"""XPO, exploratory preference optimisation: online DPO that lowers the likelihood of what the reference writes.

Xie, Foster, Krishnamurthy, Rosset, Awadallah, Rakhlin: "Exploratory Preference Optimization: Harnessing Implicit
Q*-Approximation for Sample-Efficient RLHF", arXiv 2405.21046.

    y ~ pi(.|x), y~ ~ ref(.|x);    a reward orders the two: y_w, y_l
    L = -log sigmoid(beta [(W - Wr) - (L - Lr)]) + alpha log pi(y~|x)       mean over prompts

The last term, over whole responses, is taken on y~ whether it won or lost; it makes the policy leave what is known to
the reference: optimism. The loss is **unbounded below**: too large an alpha destroys the policy. The term grows with
the length of y~. The paper sums over all pairs since the beginning; here, as in TRL, over those of the step. alpha 0
is `online_dpo` with `second: reference`.

alpha may be a list: one value for each pass over the data, the last one goes on. Defaults: alpha, beta and
max_new_tokens of TRL (the paper's algorithm names no numbers); its temperature is 0.9, here 1 draws from the models
themselves. Of equal rewards TRL prefers the policy's response, here (`ties: skip`, ours) DPO's term is 0.
"""

from dataclasses import dataclass

from pydantic import NonNegativeFloat
from torch import Tensor

from methods.objective import Loss
from methods.preference.base import Responses
from methods.preference.online import OnlinePairs, OnlinePairsConfig, pair_loss


@dataclass(frozen=True, kw_only=True)
class XpoConfig(OnlinePairsConfig):
    """alpha: weight of the reference's responses; a list: for each epoch."""

    alpha: NonNegativeFloat | list[NonNegativeFloat] = 1e-5

    def __post_init__(self) -> None:
        if self.alpha == []:
            raise ValueError("method.alpha=[]: must be a number, or a list of one or more")


def xpo_losses(margin: Tensor, decided: Tensor, bonus_logps: Tensor, beta: float, alpha: float, loss: str) -> Tensor:
    """DPO's or IPO's loss plus alpha log pi(y~).

    Args:
        margin: log-ratio of the chosen minus that of the rejected response [P].
        decided: 1 or 0: whether one of them is preferred [P].
        bonus_logps: log pi of the reference's response, summed over its tokens [P].
        beta, alpha: > 0, >= 0.
        loss: sigmoid | ipo.

    Returns:
        [P].
    """
    return pair_loss(margin, beta, loss) * decided + alpha * bonus_logps


class Xpo(OnlinePairs):
    """XPO: online DPO with an exploration bonus on the reference's responses (arXiv 2405.21046)."""

    config: XpoConfig
    second = "reference"

    def alpha_now(self) -> float:
        """alpha in the epoch of the step under way."""
        alpha = self.config.alpha
        return alpha[min(self.epoch(self._step), len(alpha) - 1)] if isinstance(alpha, list) else alpha

    def loss_of(self, responses: Responses) -> Loss:
        """Sum over the prompts."""
        config = self.config
        chosen, rejected, decided_P = self.ordered(responses)
        bonus_P = responses.all.logps.view(-1, 2)[:, 1]
        margin_P = chosen.log_ratio - rejected.log_ratio
        losses_P = xpo_losses(margin_P, decided_P, bonus_P, config.beta, self.alpha_now(), config.loss)
        metrics = self.metrics(responses, chosen, rejected, decided_P)
        return Loss(losses_P.sum(), {**metrics, "reference_sample_logps": bonus_P.detach().sum()})
