"""The model that a run's training starts from: what is measured, sampled and computed with it before training.

All of it is made once for a model, kept in `<outputs>/cache/` and shared by all runs (`runners/cache.py`).
"""

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from methods.batch import Batch
from methods.examples import Examples
from methods.generation import Sampling, generate
from methods.kinds.causal import frozen
from runners import cache, fingerprint, preemption, processes, record
from runners.batches import Batches
from runners.compose import RunSpec
from runners.engine import device, sum_over_processes
from runners.progress import progress

Tell = Callable[[int, int], None]


class Start:
    """What a run makes of the model that it starts from.

    Args:
        spec: the run.
        model: gives that model, ready to be called; it is asked only when something is to be made.
        tell: from the name of a phase to a function of (done, total), for `job=status`.
        rank, world: of this process.
        of: the run whose final model it is; None: it is the model that the run starts from.
    """

    def __init__(
        self,
        spec: RunSpec,
        model: Callable[[], nn.Module],
        tell: Callable[[str], Tell],
        rank: int,
        world: int,
        *,
        of: RunSpec | None = None,
    ) -> None:
        self._spec, self._model, self._tell, self._of = spec, model, tell, of
        self._rank, self._world = rank, world
        self._root = Path(spec.config["outputs"]).expanduser() / "cache"
        self._sharded = spec.config["engine"]["zero_stage"] == 3 and world > 1

    def cached(
        self,
        what: str,
        decides: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Tensor]],
        roots: Sequence[str],
    ) -> dict[str, Tensor]:
        """Tensors that depend on the model, on `decides`, and on the source of the modules `roots`."""
        return cache.shared(self._root, what, {**self._decides(roots), **decides}, make)

    def _decides(self, roots: Sequence[str]) -> dict[str, Any]:
        decided = self._spec.start
        own = fingerprint.sources([*roots, "methods.kinds.causal", "runners.models", "runners.start"])
        model = {key: value for key, value in decided.what_decides()["model"].items() if key != "reference_run"}
        content = {k: v for k, v in fingerprint.of_inputs(decided.config).items() if k.startswith("model")}
        parents = decided.parents
        if self._of is not None:
            # It is loaded as the run's own model is.
            loaded = {key: self._spec.config["model"][key] for key in ("dtype", "attention")}
            model = {"from_run": self._of.identity, **loaded}
            content, parents = {}, (self._of,)
        return {
            "model": model,
            "content": content,
            "parents": [parent.source for parent in parents],
            "precision": self._spec.config["engine"]["precision"],
            "source": fingerprint.of_data(own),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        }

    def measure(
        self,
        what: str,
        batches: Batches,
        values: Callable[[nn.Module, Batch], Tensor],
        per: Literal["example", "token"],
    ) -> NDArray[np.float64]:
        """`Context.measure`, over the examples of `batches`; a row for each where `values` gives rows."""
        examples = batches.examples
        ends_n = np.cumsum(examples.lengths - examples.targets)
        size = len(examples) if per == "example" else int(ends_n[-1])

        def make(_: Path) -> dict[str, Tensor]:
            model = self._model()
            found, known = torch.zeros(0), torch.zeros(size, dtype=torch.float64)
            tell, done = self._tell(what), 0
            with frozen(model), progress(what, len(examples)) as advance:
                for batch in batches.once():
                    self._stop_if_told(what)
                    measured = values(model, batch.to(device())).double().cpu()
                    places = batch.example_S if per == "example" else _token_places(batch, ends_n)
                    if not len(found):
                        found = torch.zeros((size, *measured.shape[1:]), dtype=torch.float64)
                    found[places], known[places] = measured, 1.0
                    done = min(done + self._world * len(batch.example_S), len(examples))
                    advance(len(batch.example_S) * self._world)
                    tell(done, len(examples))
            for tensor in (found, known):
                if self._world > 1:
                    sum_over_processes(tensor)
            # What two processes have both measured, the last of an uneven share, counts once.
            return {"values": found / known.view(-1, *[1] * (found.ndim - 1))}

        decides = {"per": per, "data": examples.digest()}
        return self.cached(what, decides, make, [values.__module__])["values"].numpy()

    def generate(self, what: str, prompts: Sequence[Sequence[int]], sampling: Sampling, batch_size: int) -> Examples:
        """`Context.generate`."""
        decides = {
            "prompts": fingerprint.of_data([list(prompt) for prompt in prompts]),
            "sampling": asdict(sampling),
            "batch_size": batch_size,
        }
        seed = int(fingerprint.of_data({"what": what, **decides})[:8], 16)

        def make(parts: Path) -> dict[str, Tensor]:
            begins = range(0, len(prompts), batch_size)
            todo = processes.first_decides(lambda: _missing(parts, len(begins)))
            with progress(what, len(begins)) as advance:
                advance(len(begins) - len(todo))
                tell = self._tell(what)
                for turn in range(-(-len(todo) // self._world)):
                    self._stop_if_told(what)
                    # Equally many turns for all, since a sharded model wants them in step.
                    place = turn * self._world + self._rank
                    number = todo[min(place, len(todo) - 1)]
                    chunk = prompts[begins[number] : begins[number] + batch_size]
                    written = generate(self._model(), chunk, sampling, seed + number, lockstep=self._sharded)
                    if place < len(todo):
                        record.write_json(parts / f"{number}.json", written)
                    advance(min(self._world, len(todo) - turn * self._world))
                    tell(len(begins) - len(todo) + min((turn + 1) * self._world, len(todo)), len(begins))
            processes.any_rank(False)  # all have written
            continuations: list[list[int]] = []
            for number in range(len(begins)):
                continuations += json.loads((parts / f"{number}.json").read_text())
            lengths = [len(continuation) for continuation in continuations]
            flat = [token for continuation in continuations for token in continuation]
            return {
                "tokens": torch.tensor(flat, dtype=torch.int32),
                "lengths": torch.tensor(lengths, dtype=torch.int64),
            }

        made = self.cached(what, decides, make, ["methods.generation"])
        lengths = made["lengths"].tolist()
        continuations = made["tokens"].split(lengths)
        sequences = [[*p, *c.tolist()] for p, c in zip(prompts, continuations, strict=True)]
        return Examples.of(sequences, [len(prompt) for prompt in prompts])

    def _stop_if_told(self, what: str) -> None:
        if processes.any_rank(preemption.requested()):
            raise processes.stop(f"before training, {what}")


def _missing(parts: Path, count: int) -> list[int]:
    """Which chunks are still to be generated."""
    parts.mkdir(parents=True, exist_ok=True)
    return [number for number in range(count) if not (parts / f"{number}.json").is_file()]


def _token_places(batch: Batch, ends_n: NDArray[np.int64]) -> Tensor:
    """For each target token of a batch of one example a row, its place among all target tokens of the data set."""
    places = []
    for example, count in zip(batch.example_S.tolist(), batch.target_mask_BT.sum(1).tolist(), strict=True):
        places.append(torch.arange(int(ends_n[example]) - count, int(ends_n[example])))
    return torch.cat(places)
