"""One micro-batch under the models of a run: what the objective and its penalty see.

Legend: K target tokens of the batch, V vocabulary.
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from methods.batch import Batch
from methods.kinds import Kind


class Forward:
    """The models' view of a micro-batch; objective and penalty share one pass of each model.

    batch: the sequences. roles: the models by role, ready to be called.
    """

    def __init__(self, kind: Kind, roles: Mapping[str, nn.Module], batch: Batch) -> None:
        self.batch = batch
        self.roles = roles
        self._kind = kind
        self._distributions: dict[str, Tensor] = {}
        self._token_logps: dict[tuple[str, float], Tensor] = {}

    def token_logps(self, role: str = "policy", temperature: float = 1.0) -> Tensor:
        """Log-probability of every target token given those before it in its sequence. Returns [K], fp32.

        temperature: of the sampling, by which logits are divided.
        """
        key = (role, temperature)
        if key not in self._token_logps:
            if role in self._distributions and temperature == 1.0:
                targets_K1 = self.batch.targets_K.unsqueeze(-1)
                self._token_logps[key] = self._distributions[role].gather(-1, targets_K1).squeeze(-1)
            else:
                self._token_logps[key] = self._kind.token_logps(self.roles[role], self.batch, temperature)
        return self._token_logps[key]

    def distribution_logps(self, role: str = "policy") -> Tensor:
        """Log-probabilities of the whole vocabulary at every target token's place. Returns [K, V], fp32.

        Ask for it before `token_logps`, which then costs no pass of its own.
        """
        if role not in self._distributions:
            logits_KV = self._kind.target_logits(self.roles[role], self.batch)
            self._distributions[role] = F.log_softmax(logits_KV.float(), dim=-1)
        return self._distributions[role]
