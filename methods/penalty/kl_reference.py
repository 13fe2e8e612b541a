"""KL to the reference: the tuned model's predictions stay near the base model's on the fine-tuning inputs.

    L + beta (1/N) sum_{t active} KL(p_theta0(. | c_t) || p_theta(. | c_t)),      N = active tokens of the step

theta0 is the model that training starts from, frozen, in evaluation mode. The baseline "SFT with KL" of papers on
fine-tuning without forgetting; it sees the contexts of the fine-tuning data alone, which is what context-free synthetic
data (arXiv 2505.13811) argues against.
"""

from dataclasses import dataclass

from pydantic import NonNegativeFloat, PositiveFloat

from methods.divergences import kl
from methods.forward import Forward
from methods.objective import Loss
from methods.penalty.base import Penalty


@dataclass(frozen=True, kw_only=True)
class KlReferenceConfig:
    """weight: beta. temperature: of both distributions, before they are compared."""

    weight: NonNegativeFloat = 0.1
    temperature: PositiveFloat = 1.0


class KlReference(Penalty):
    """KL of the base model's next-token distributions to the tuned model's, on the fine-tuning inputs."""

    config: KlReferenceConfig
    kinds = ("causal",)
    frozen = ("reference",)

    def loss(self, forward: Forward) -> Loss:
        """beta times the divergence, summed over the target tokens."""
        reference_KV = forward.distribution_logps("reference").detach()
        policy_KV = forward.distribution_logps("policy")
        temperature = self.config.temperature
        if temperature != 1.0:
            reference_KV = (reference_KV / temperature).log_softmax(-1)
            policy_KV = (policy_KV / temperature).log_softmax(-1)
        divergence = kl(reference_KV, policy_KV).sum()
        return Loss(self.config.weight * divergence, {"kl_to_reference": divergence.detach()})
