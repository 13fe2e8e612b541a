"""Online DPO: in every step a pair of new responses, ordered by a reward, and DPO's loss on it.

Guo et al.: "Direct Language Model Alignment from Online AI Feedback", 2024, arXiv 2402.04792 (with a judge as the
reward).

    y_1 ~ pi(.|x), y_2 ~ pi(.|x) or ref(.|x);    y_w the one with the larger reward
    L = -log sigmoid(beta [(W - Wr) - (L - Lr)])                            mean over prompts

or IPO's (D - 1/(2 beta))^2. With `second: reference` it is XPO without its bonus (`methods/preference/xpo.py`).

Defaults: beta and max_new_tokens of TRL; its temperature is 0.9, here 1 draws from the policy itself. Of equal rewards
TRL prefers the first, here (`ties: skip`, ours) the pair's loss is 0.
"""

from dataclasses import dataclass
from typing import Literal

from methods.preference.online import OnlinePairs, OnlinePairsConfig


@dataclass(frozen=True, kw_only=True)
class OnlineDpoConfig(OnlinePairsConfig):
    """second: who writes the second response, policy | reference."""

    second: Literal["policy", "reference"] = "policy"


class OnlineDpo(OnlinePairs):
    """Online DPO: DPO on pairs that the policy writes and a reward orders, new in every step (arXiv 2402.04792)."""

    config: OnlineDpoConfig

    def second_role(self) -> str:
        """Whose the second response is."""
        return self.config.second
