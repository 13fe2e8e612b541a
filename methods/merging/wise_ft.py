"""WiSE-FT: the mean of the weights before and after fine-tuning.

Wortsman et al.: "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv 2109.01903; a baseline of FLOW
(arXiv 2502.02797, Tables 1 and 3) and of TALR (arXiv 2509.20758).

    theta = (1 - alpha) theta_0 + alpha theta_FT

theta_FT are the final weights of the run in `model.from_run`, theta_0 those that it started from. alpha is the weight
of the fine-tuned model: 0 is the base model, 1 the fine-tuned one, bit for bit. FLOW's averaging script has it the
other way round (alpha is the base model's); at 0.5 the two agree. Integer buffers are the fine-tuned model's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from methods.merger import Merger, Weights, between, check_alike
from methods.method import Context


@dataclass(frozen=True, kw_only=True)
class WiseFtConfig:
    """alpha: weight of the fine-tuned model."""

    alpha: Annotated[float, Ge(0.0), Le(1.0)] = 0.5


def interpolate(start: Weights, tuned: Weights, alpha: float) -> Weights:
    """(1 - alpha) start + alpha tuned, tensor by tensor, each stored as in `tuned`.

    Args:
        start, tuned: weights of the same names and shapes; both are used up.
        alpha: in [0, 1].

    Raises:
        ValueError: the two have not the same tensors.
    """
    check_alike(start, tuned, ("the model that training started from", "the fine-tuned model"))
    for name, end in tuned.items():
        tuned[name] = between(start.pop(name), end, alpha).to(end.dtype)
    return tuned


class WiseFt(Merger):
    """WiSE-FT: the weighted mean of a fine-tuned model and the model it started from (arXiv 2109.01903)."""

    config: WiseFtConfig
    merges = "run"

    def merge(self, context: Context) -> tuple[Weights, Mapping[str, float]]:
        """Interpolate between the two ends of the run."""
        return interpolate(context.start_weights(), context.run_weights(), self.config.alpha), {}
