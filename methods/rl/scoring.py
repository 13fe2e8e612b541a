"""What methods share that ask models about the responses of a turn before anything is trained on them.

How likely an answer is after a chain of thought, what a reference or an anchor says of a response: it is asked by the
engine that trains, in passes of which every process makes as many, and the batches of the loss may hold more rows than
those of the responses (`rows_of` takes some of them).

Legend: N responses of a process, K target tokens, S sequences.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from methods.batch import Batch, continued
from methods.rl.base import PolicyGradient
from methods.rl.episodes import Episodes


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch that has one sequence a row, in their order, as a batch of their own.

    rows: bool [S].
    """
    kept_K = rows[batch.sequence_K]
    number_S = rows.cumsum(0) - 1
    sequence_BT = batch.sequence_BT[rows]
    return replace(
        batch,
        input_ids_BT=batch.input_ids_BT[rows],
        target_mask_BT=batch.target_mask_BT[rows],
        sequence_BT=torch.where(sequence_BT >= 0, number_S[sequence_BT], -1),
        example_S=batch.example_S[rows],
        values_K={name: values_K[kept_K] for name, values_K in batch.values_K.items()},
        values_S={name: values_S[rows] for name, values_S in batch.values_S.items()},
    )


class Scoring(PolicyGradient):
    """Base of methods that ask a role about the responses of a turn, or about other texts in their place."""

    def episodes(self, batches: Sequence[Batch], turn: int) -> Episodes:
        """As of the base; a batch is kept for passes that others wait for."""
        self._company = replace(batches[0], target_mask_BT=torch.zeros_like(batches[0].target_mask_BT))
        return super().episodes(batches, turn)

    def asked(
        self,
        role: str,
        episodes: Episodes,
        places: Sequence[int] | None = None,
        prompts: Sequence[list[int]] | None = None,
        continuations: Sequence[list[int]] | None = None,
    ) -> list[Tensor]:
        """Log-probabilities of continuations of prompts under a role's model, without gradient, on the CPU.

        All processes must call it equally often.

        Args:
            role: whose.
            episodes: of this process.
            places: which of them are asked about; None: all.
            prompts, continuations: in the place of those of the episodes, each [N].

        Returns:
            For each place the float [tokens] of its continuation.
        """
        places = range(len(episodes)) if places is None else places
        prompts = episodes.prompts if prompts is None else prompts
        written = [one.tokens for one in episodes.written] if continuations is None else continuations
        found: dict[int, Tensor] = {}
        for piece in self._pieces(episodes, places):
            if not piece:
                self._scored(role, self._company)
                continue
            example_S = episodes.example_N[list(piece)]
            batch = continued([prompts[place] for place in piece], [written[place] for place in piece], example_S)
            logps_K = self._scored(role, batch.to(self._company.input_ids_BT.device))[0].cpu()
            told = logps_K.split([len(written[place]) for place in piece])
            found |= dict(zip(piece, told, strict=True))
        return [found[place] for place in places]

    def asked_whole(self, role: str, episodes: Episodes, places: Sequence[int] | None = None) -> Tensor:
        """Log-probabilities of whole responses, as `asked`. Returns float64 [places]."""
        of_tokens = self.asked(role, episodes, places)
        return torch.tensor([float(logps_K.double().sum()) for logps_K in of_tokens], dtype=torch.float64)
