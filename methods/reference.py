"""The log-probabilities of the data under a reference, measured once before training and looked up in every step.

Legend: K target tokens of a micro-batch, n sequences of the data set, M their target tokens.
"""

import numpy as np
import torch
from torch import Tensor

from methods.batch import Batch, place_in_sequence
from methods.kinds import Kind
from methods.method import Context


class CachedReference:
    """Log-probabilities of all target tokens of the data set under the run's reference.

    Args:
        token_logps_M: one example after the other.
        counts_n: target tokens of each.
    """

    def __init__(self, token_logps_M: Tensor, counts_n: Tensor) -> None:
        self.token_logps_M = token_logps_M
        self.first_n = counts_n.cumsum(0) - counts_n

    @classmethod
    def measured(cls, context: Context, kind: Kind) -> "CachedReference":
        """Measure them, or take what another run has measured.

        Raises:
            ValueError: a log-probability is not finite; names the first such response.
        """
        counts_n = context.examples.lengths - context.examples.targets
        found_M = context.measure("reference log-probabilities", kind.token_logps, per="token", role="reference")
        if not np.isfinite(found_M).all():
            first = int(np.searchsorted(np.cumsum(counts_n), np.flatnonzero(~np.isfinite(found_M))[0], side="right"))
            raise ValueError(f"the reference's log-probabilities must be finite, got others for response {first}")
        return cls(torch.from_numpy(found_M).float(), torch.from_numpy(counts_n))

    def token_logps(self, batch: Batch) -> Tensor:
        """Those of a batch's target tokens. Returns [K], fp32."""
        device = batch.input_ids_BT.device
        self.token_logps_M, self.first_n = self.token_logps_M.to(device), self.first_n.to(device)  # moved once
        return self.token_logps_M[self.first_n[batch.example_K] + place_in_sequence(batch)]
