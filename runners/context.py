"""What a run offers its method: data, models and engines, made when first asked for; training, logging, saving."""

import gc
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn

from methods.batch import Batch
from methods.kinds import Causal, adapter
from methods.method import Method
from methods.objective import Objective
from runners import checkpoints, preemption, processes, record, signatures, training
from runners.batches import Batches, make_batches
from runners.compose import RunSpec
from runners.data import Examples, load_rows, tokenize
from runners.engine import TrainingEngine, close_frozen, device, frozen_engine
from runners.errors import UserError
from runners.models import context_length, load_model, load_tokenizer
from runners.progress import progress
from runners.record import Recorder
from runners.tracker import Tracker

log = logging.getLogger(__name__)


class RunContext:
    """What a run offers its method (`methods.method.Context`); data and models are loaded when first asked for."""

    def __init__(self, spec: RunSpec, recorder: Recorder, tracker: Tracker, rank: int, world: int) -> None:
        self.spec, self.config, self.seed, self.folder = spec, spec.config, spec.seed, spec.folder
        self._recorder, self._tracker = recorder, tracker
        self._rank, self._world = rank, world
        self.kind: Causal = adapter(spec.config["model"]["kind"])
        self.parent = record.weights(spec.parent)[0] if spec.parent else None
        self.method = build_method(spec.config["method"])
        self._roles: dict[str, nn.Module] = {}
        self._engines: dict[str, TrainingEngine] = {}
        self.tokenizer = load_tokenizer(self.config["model"], self.parent)

    @cached_property
    def _data(self) -> Batches:
        training_settings = self.config["training"]
        rows = load_rows(self.config["dataset"])
        longest = training_settings["max_length"] or self._context_length
        if longest > self._context_length:
            raise UserError(f"training.max_length={longest}: the model takes at most {self._context_length} tokens")
        examples: Examples = tokenize(
            rows,
            self.config["dataset"],
            self.tokenizer,
            max_length=longest,
            too_long=training_settings["too_long"],
        )
        log.info(
            "%d training examples, %d tokens, longest %d",
            len(examples),
            len(examples.tokens),
            examples.lengths.max(),
        )
        assert isinstance(self.tokenizer.pad_token_id, int)
        return make_batches(
            examples,
            training_settings,
            pad_token=self.tokenizer.pad_token_id,
            max_length=longest,
            seed=self.seed,
            rank=self._rank,
            world=self._world,
        )

    @cached_property
    def _context_length(self) -> int:
        return context_length(self.config["model"], self.parent)

    @property
    def examples(self) -> int:
        """Number of training examples."""
        return len(self._data.examples)

    def role(self, name: str) -> nn.Module:
        """The model of a role: an engine that can be called like the model."""
        if name not in self._roles:
            _ = self._data  # a mistake in the data is told before a model is loaded
            model = load_model(self.config["model"], self.parent, len(self.tokenizer))
            if name in self.method.trained:
                engine = TrainingEngine(
                    model,
                    self.config["optimizer"],
                    self.config["engine"],
                    self.config["training"]["clip_norm"],
                    universal=self._resume is not None and self._resume.universal,
                )
                self._engines[name], self._roles[name] = engine, engine.engine
            else:
                self._roles[name] = frozen_engine(model, self.config["engine"])
        return self._roles[name]

    def batches(self, description: str) -> Iterator[Batch]:
        """All training examples once, in the order of the data set, in micro-batches."""
        with progress(description, self.examples) as advance:
            tell, done = self.tell(description), 0
            for batch in self._data.in_order():
                if processes.any_rank(preemption.requested()):
                    raise processes.stop(f"before training, {description}")
                yield batch.to(device())
                advance(len(batch.example_S))
                done += len(batch.example_S)
                tell(done, self.examples)

    @cached_property
    def _resume(self) -> training.Resume | None:
        """Where training continues; found once, by the first rank, for all."""
        return processes.first_decides(
            lambda: training.find_resume(self.folder, self._world, self.config["engine"]["zero_stage"])
        )

    def restore(self, method: Method) -> None:
        """Give a method back what it had computed before the run was interrupted."""
        resume = self._resume
        source = processes.first_decides(lambda: training.method_state_of(self.folder, resume))
        training.restore_method(method, source)

    def prepared(self, method: Method) -> None:
        """Keep what a method has computed before its training."""
        if self._rank == 0 and self._resume is None:
            training.save_prepared(method, self.folder)

    def train(self, objective: Method) -> Mapping[str, float]:
        """Minimise the objective on its trained role."""
        if not isinstance(objective, Objective) or len(objective.trained) != 1:
            raise UserError(f"method={type(objective).__name__}: an objective trains one role, got {objective.trained}")
        roles = {name: self.role(name) for name in (*objective.trained, *objective.frozen)}
        engine = self._engines[objective.trained[0]]
        done = training.restore(engine, self._resume, self.seed)
        self._recorder.forget_after(done.step)
        by_metric = self.config["best_metric"] if self.config["keep"] == "best" else None
        keep = training.Keep(self.config["keep"] == "all", by_metric, self.config["best_is"] == "lower")
        # One process's trace shows them all: they do the same work at the same time.
        traced = self.config["training"]["profile"] and self._rank == 0
        return training.train(
            objective,
            engine,
            roles,
            self._data,
            self.config["training"],
            self._log,
            lambda progress: self._save(engine, objective, progress, keep),
            done,
            self.tell("training"),
            self.folder / "profile" / "trace.json" if traced else None,
        )

    def _save(self, engine: TrainingEngine, objective: Method, done: training.Progress, keep: training.Keep) -> None:
        self._recorder.flush()  # the record of the steps must not end before the checkpoint of them
        training.save(engine, objective, self.folder, done, keep)

    def tell(self, phase: str) -> Callable[[int, int], None]:
        """A function of (done, total) that notes how far a phase of the run is, for `job=status`."""
        return self._recorder.progress(phase)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Record metrics that belong to no training step."""
        self._recorder.metrics(metrics, None)
        self._tracker.summary(dict(metrics))

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        self._recorder.metrics(metrics, step)
        self._tracker.log(dict(metrics), step)

    def save_model(self) -> None:
        """Write the trained policy and its tokenizer to `<run>/model`, as transformers loads them."""
        engine = self._engines[self.method.trained[0]]
        weights = engine.weights()  # gathered by all ranks
        if self._rank == 0:
            final = self.folder / "model"
            aside = checkpoints.written_aside(final)
            engine.engine.module.save_pretrained(aside, state_dict=weights, safe_serialization=True)
            self.tokenizer.save_pretrained(aside)
            checkpoints.seal(aside, final)
        torch.distributed.barrier()

    def close(self) -> None:
        """Free models and engines before the evaluation loads what was saved."""
        for name, role in self._roles.items():
            if name not in self._engines:
                close_frozen(role)
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._roles.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def build_method(settings: Mapping[str, Any]) -> Method:
    """Build the method that `method:` names, with its hyper-parameters in its own dataclass."""
    module_name, _, class_name = settings["_target_"].rpartition(".")
    module = importlib.import_module(module_name)
    class_ = getattr(module, class_name)
    config_type = signatures.config_class(class_)
    built = class_(config_type(**{key: value for key, value in settings.items() if key != "_target_"}))
    if not isinstance(built, Method):
        raise UserError(f"method._target_={settings['_target_']}: must be a subclass of methods.method.Method")
    return built
