"""What a run with a model offers its method: data, models and engines, made when first asked for; training, saving."""

import gc
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from methods.adapter.base import Adapter
from methods.batch import Batch
from methods.examples import Examples
from methods.generation import Sampling, Written, generate, write
from methods.kinds import Kind, adapter
from methods.method import Method
from methods.mix.base import Mix
from methods.objective import Objective
from methods.penalty.base import Penalty
from runners import checkpoints, processes, record, selecting, signatures, training
from runners.batches import Batches, make_batches
from runners.checks import selector
from runners.compose import RunSpec
from runners.context import RunContext, build
from runners.data import load_rows, texts, tokenize
from runners.engine import TrainingEngine, close_frozen, device, follow, frozen_engine
from runners.errors import UserError
from runners.measuring.tasks import by_lm_eval
from runners.models import context_length, load_model, load_tokenizer
from runners.record import Recorder
from runners.sampler import WeightCopy
from runners.start import Start
from runners.tracker import Tracker
from runners.vllm_sampler import VllmSampler, check_installed

log = logging.getLogger(__name__)


class ModelContext(RunContext):
    """What a run with a model offers its method; data and models are loaded when first asked for."""

    def __init__(self, spec: RunSpec, recorder: Recorder, tracker: Tracker, rank: int, world: int) -> None:
        super().__init__(spec, recorder, tracker, rank, world)
        self.kind: Kind = adapter(spec.config["model"]["kind"], spec.config["engine"]["logits_chunk"])
        self.parent = record.weights(spec.parent)[0] if spec.parent else None
        self.adapter = build(Adapter, "adapter", spec.config) if spec.config["adapter"]["_target_"] else None
        self.penalty = build(Penalty, "penalty", spec.config) if spec.config["penalty"]["_target_"] else None
        self.mix = build(Mix, "mix", spec.config) if spec.config["mix"]["_target_"] else None
        self._roles: dict[str, nn.Module] = {}
        self._engines: dict[str, TrainingEngine] = {}
        self._copies: dict[str, WeightCopy] = {}  # of trained roles, to write with
        self._served: dict[str, VllmSampler] = {}  # the same, by vLLM
        if spec.config["engine"]["sampler"] == "vllm":
            check_installed()
        self._reports: dict[str, float] = {}  # of the parts
        self._being_replaced = False
        self._training = False  # from then on no role is what training starts from
        _ = self.tokenizer  # a mistake in it is told at once
        self._first_role = next(iter((*self.method.trained, *self.method.frozen)), "policy")
        self.start = Start(spec, self._untrained, self.tell, rank, world)

    # The data --------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return load_tokenizer(self.config["model"], self.parent)

    @property
    def examples(self) -> Examples:
        """The training examples."""
        return (self._original if self._being_replaced else self._data).examples

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Prompt and completion of the training examples, before they were tokenised, in their order."""
        return self._texts(self.config["dataset"])

    @property
    def plain_texts(self) -> list[tuple[str, str]]:
        """As `texts`, with prompts as the data have them, in no chat template."""
        return self._texts({**self.config["dataset"], "chat": False})

    def _texts(self, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
        found = texts(load_rows(settings), settings, self.tokenizer)
        if len(found) != len(self._everything.examples):
            raise UserError(
                "training.too_long=drop: the texts of all examples are needed, and "
                f"{len(found) - len(self._everything.examples)} were dropped; set it to error or truncate"
            )
        return found if self._kept is None else [found[index] for index in self._kept]

    def tokenized(self, dataset: Mapping[str, Any]) -> Examples:
        """The examples of `dataset:` settings."""
        dropped: Counter[str] = Counter()
        examples = tokenize(
            load_rows(dataset),
            dataset,
            self.tokenizer,
            max_length=self._longest,
            too_long=self.config["training"]["too_long"],
            dropped=dropped,
        )
        if dropped:
            left_out = self._reports.get("data/rows_left_out", 0.0)  # of a mix's own data they count too
            self._reports["data/rows_left_out"] = left_out + float(sum(dropped.values()))
        log.info("%d sequences, %d tokens, longest %d", len(examples), len(examples.tokens), examples.lengths.max())
        return examples

    @cached_property
    def _everything(self) -> Batches:
        """The data set as it is."""
        return self._batches_of(self.tokenized(self.config["dataset"]))

    @cached_property
    def _original(self) -> Batches:
        """What `dataset.select` keeps of the data set."""
        everything = self._everything
        return everything if self._kept is None else self._batches_of(everything.examples.of_groups(self._kept))

    @cached_property
    def _kept(self) -> NDArray[np.int64] | None:
        """Which examples `dataset.select` keeps; None: all."""
        settings = self.config["dataset"]
        if not settings.get("select"):  # a class of images of one's own may have no such key
            return None
        kept = processes.first_decides(lambda: selecting.remembered(self.folder))
        if kept is None:
            kept = self._choose(settings)
            if self._rank == 0:
                selecting.remember(self.folder, kept)
        self._note_kept(kept)
        return kept

    def _choose(self, settings: Mapping[str, Any]) -> NDArray[np.int64]:
        """What the selector of `dataset:` settings keeps."""
        examples = self._everything.examples
        if signatures.read(selector(settings["select"])).attributes.get("blind"):
            nothing_N1 = np.zeros((examples.group_count, 1))
            return selecting.chosen(settings, nothing_N1, self._classes_to_select, self.seed)
        model: list[nn.Module] = []  # loaded where the embeddings are not in the cache

        def embedding_model() -> nn.Module:
            if not model:
                model.append(frozen_engine(self._selecting_model(), self.config["engine"]))
            return model[0]

        start = Start(self.spec, embedding_model, self.tell, self._rank, self._world, of=self.spec.selecting)
        embedding_SD = start.measure("embeddings to select by", self._everything, self.kind.embed, "example")
        for loaded in model:
            close_frozen(loaded)
        of_groups_ND = np.add.reduceat(embedding_SD, examples.groups[:-1]) / np.diff(examples.groups)[:, None]
        return selecting.chosen(settings, of_groups_ND, self._classes_to_select, self.seed)

    @property
    def _classes_to_select(self) -> NDArray[np.int64] | None:
        """The class of every example; text has none."""
        return None

    def _note_kept(self, kept_K: NDArray[np.int64]) -> None:
        """Report what was kept."""
        self._reports["data/kept"] = float(len(kept_K))

    def _selecting_model(self) -> nn.Module:
        """The model of the run of `dataset.select_run`, or that which training starts from."""
        run = self.spec.selecting
        return self._starting_model() if run is None else self._final_model(run, "dataset.select_run")

    @cached_property
    def _data(self) -> Batches:
        """What is trained on: the data set, what a mix puts in its place, or what the method makes of it."""
        data = self._original
        if self.mix is not None and self.mix.replaces:
            self._being_replaced = True
            examples = self.mix.examples(self)
            self._being_replaced = False
            self._reports |= self.mix.report(examples)
            data = self._batches_of(examples)
        if isinstance(self.method, Objective):
            arranged = self.method.arrange(self, data.examples)
            if arranged is not data.examples:
                data = self._batches_of(arranged)
        return data

    def _batches_of(self, examples: Examples, ratio: float = 1.0) -> Batches:
        assert isinstance(self.tokenizer.pad_token_id, int)
        longest, too_long = int(examples.lengths.max()), self.config["training"]["too_long"]
        if longest > self._longest:
            if too_long == "error":
                raise UserError(
                    f"training.max_length={self._longest}: a sequence has {longest} tokens; raise it, "
                    "or set training.too_long to truncate or drop"
                )
            examples = examples.within(self._longest, cut=too_long == "truncate")
        if not len(examples) or not examples.target_tokens:
            raise UserError(f"training.max_length={self._longest}: nothing is left to train on")
        return make_batches(
            examples,
            self.config["training"],
            pad_token=self.tokenizer.pad_token_id,
            max_length=self._longest,
            seed=self.seed,
            rank=self._rank,
            world=self._world,
            ratio=ratio,
            by_length=getattr(self.method, "couples", None) is None,
        )

    @property
    def _longest(self) -> int:
        longest = self.config["training"]["max_length"] or self._context_length
        if longest > self._context_length:
            raise UserError(f"training.max_length={longest}: the model takes at most {self._context_length} tokens")
        return int(longest)

    @cached_property
    def _context_length(self) -> int:
        return context_length(self.config["model"], self.parent)

    # The models ------------------------------------------------------------------------------------------------

    def role(self, name: str) -> nn.Module:
        """The model of a role: an engine that can be called like the model."""
        if name not in self._roles:
            _ = self._original  # a mistake in the data is told before a model is loaded
            other = name == "reference" and self.spec.reference is not None
            model = self._reference_model() if other else self._starting_model()
            if name in self.method.trained:
                model = self._prepared_to_train(model)
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

    def _reference_model(self) -> nn.Module:
        """The model of the run of `model.reference_run`."""
        assert self.spec.reference is not None
        return self._final_model(self.spec.reference, "model.reference_run")

    def _final_model(self, run: RunSpec, key: str) -> nn.Module:
        """The final model of another run, which the configuration names by `key`; loaded as the run's own is."""
        folder = record.weights(run)[0]
        settings = {**self.config["model"], "from_run": ["a run"], "id": None, "architecture": None, "classes": None}
        if self.tokenizer is not None:
            theirs = load_tokenizer({**settings, "tokenizer": None}, folder)
            if theirs.get_vocab() != self.tokenizer.get_vocab():
                group, _, name = key.partition(".")
                raise UserError(
                    f"{key}={self.config[group][name]}: must have the tokenizer of the model that is trained; it would "
                    "see other tokens"
                )
        return self.load(settings, folder)

    def load(self, settings: Mapping[str, Any], folder: Path | None, dtype: str | None = None) -> nn.Module:
        """The model of `model:` settings, or the final one of a run's folder."""
        return load_model(settings, folder, len(self.tokenizer), dtype)

    def _untrained(self) -> nn.Module:
        assert not self._training, "what the starting model is asked for must be asked before training"
        return self.role(self._first_role)

    def _starting_model(self) -> nn.Module:
        return self.load(self.config["model"], self.parent)

    def _prepared_to_train(self, model: nn.Module) -> nn.Module:
        """With what is not trained frozen, and the adapter's weights in it."""
        if isinstance(self.method, Objective):
            self.method.shape(model)
        if self.adapter is None:
            return model
        adapted = self.adapter.apply(model, self.seed)
        for part in self._parts:  # the adapter has frozen all but its own weights
            getattr(adapted, part).requires_grad_(True)
        return adapted

    @property
    def _parts(self) -> tuple[str, ...]:
        """Modules that the method adds to the model, which are not part of the final one."""
        return self.method.parts if isinstance(self.method, Objective) else ()

    def unsharded(self) -> nn.Module:
        """The model that training starts from, whole on every process."""
        return self._prepared_to_train(self._starting_model()).to(device()).eval()

    @property
    def trained_parameters(self) -> int:
        """How many numbers are trained."""
        self.role(self._first_role)
        trained = self._engines[self._first_role].trainable.values()
        return sum(int(getattr(value, "ds_numel", value.numel())) for value in trained)

    @property
    def trained_names(self) -> list[str]:
        """Names of the weights that are trained."""
        self.role(self._first_role)
        return list(self._engines[self._first_role].trainable)

    def share_of(self, full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's share of tensors that are shaped like the trained weights."""
        self.role(self._first_role)
        return self._engines[self._first_role].share_of(full)

    def follow(self, role: str, leader: str, rate: float) -> None:
        """Move a frozen role's weights the part `rate` of the way to those of a trained one."""
        follow(self.role(role), self._engines[leader], rate)

    def sample(self, role: str, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[list[int]]:
        """What a role's model, as it is now, continues this process's prompts with."""
        return generate(self.role(role), prompts, sampling, seed, lockstep=self._sharded)

    def write(self, role: str, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[Written]:
        """As `sample`, with how likely each token was."""
        model, lockstep = self.role(role), self._sharded
        if self.config["engine"]["sampler"] == "vllm" and role in self._engines:
            return self._vllm(role).write(prompts, sampling, seed)
        if self.config["engine"]["sampler"] == "copy" and role in self._engines:
            model, lockstep = self._copy(role).current(), False
        return write(model, prompts, sampling, seed, lockstep=lockstep, logps=True, tokenizer=self.tokenizer)

    def _copy(self, role: str) -> WeightCopy:
        """The copy of a trained role that writes."""
        if role not in self._copies:
            whole = self._prepared_to_train(self._starting_model()).to(device())
            self._copies[role] = WeightCopy(whole, self._engines[role])
        return self._copies[role]

    def _vllm(self, role: str) -> VllmSampler:
        """The vLLM engine that writes as a trained role."""
        if role not in self._served:
            like, engine = self._starting_model(), self._engines[role]
            longest = self.config["engine"]["sampler_length"] or self._context_length
            self._served[role] = VllmSampler(like, self.tokenizer, engine, self.config["engine"], longest)
        return self._served[role]

    @property
    def _sharded(self) -> bool:
        """Whether each process holds only a part of the models."""
        return bool(self.config["engine"]["zero_stage"] == 3 and self._world > 1)

    # What is made once with the model that training starts from -------------------------------------------------

    def measure(
        self,
        what: str,
        values: Callable[[nn.Module, Batch], Tensor],
        per: Literal["example", "token"] = "example",
        role: str | None = None,
    ) -> NDArray[np.float64]:
        """Measure every training example once; cached by model and data."""
        if role != "reference" or self.spec.reference is None:
            return self.start.measure(what, self._data, values, per)
        start = Start(
            self.spec, lambda: self.role("reference"), self.tell, self._rank, self._world, of=self.spec.reference
        )
        measured = start.measure(what, self._data, values, per)
        if "reference" in self._roles and "reference" not in self.method.frozen:  # it was needed for this alone
            close_frozen(self._roles.pop("reference"))
        return measured

    def generate(self, what: str, prompts: Sequence[Sequence[int]], sampling: Sampling, batch_size: int) -> Examples:
        """Let the model continue prompts; cached by model, prompts and settings."""
        limit = self._longest if self.config["training"]["too_long"] == "error" else self._context_length
        needed = max(len(prompt) for prompt in prompts) + sampling.max_new_tokens
        if needed > limit:
            raise UserError(
                f"training.max_length={limit}: {what} would be up to {needed} tokens long, the longest prompt and "
                f"{sampling.max_new_tokens} new ones; generate shorter ones"
            )
        return self.start.generate(what, prompts, sampling, batch_size)

    def cached(
        self, what: str, decides: Mapping[str, Any], make: Callable[[], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Tensors that depend on the model and on `decides` alone."""
        return self.start.cached(what, decides, lambda _: make(), [make.__module__])

    # Weights of finished runs ------------------------------------------------------------------------------------

    @property
    def run_count(self) -> int:
        """How many runs this one starts from."""
        return len(self.spec.parents)

    def run_weights(self, number: int = 0) -> dict[str, Tensor]:
        """The final weights of a run that this one starts from, on the CPU."""
        return self._model_of_run(number).state_dict()

    def _model_of_run(self, number: int = 0) -> nn.Module:
        settings = {**self.config["model"], "from_run": ["a run"], "from_runs": None}
        return self.load(settings, record.weights(self.spec.parents[number])[0])

    def start_weights(self) -> dict[str, Tensor]:
        """The weights that the run of `model.from_run` started from, on the CPU."""
        start = self.spec.start
        folder = record.weights(start.parent)[0] if start.parent else None
        return self.load(start.config["model"], folder).state_dict()

    def score(self, weights: Mapping[str, Tensor], task: Mapping[str, Any], metric: str) -> float:
        """What an lm-eval task (with the keys of one of `evaluation.tasks`) gives to weights."""
        model = self._model_of_run()
        model.load_state_dict(dict(weights))
        placed = model.to(device()).eval()
        found = by_lm_eval(placed, self.tokenizer, [task], self.config["evaluation"], self.seed).metrics
        name = task["name"]
        if metric not in found.get(name, {}):
            raise UserError(f"method.validation: task {name} has no metric {metric}; it has {', '.join(found[name])}")
        return float(found[name][metric])

    def save_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Make `weights` the run's final model."""
        model = self._model_of_run()
        model.load_state_dict(dict(weights))
        self._write_model(model)

    # Training ------------------------------------------------------------------------------------------------------

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
        # Before a checkpoint is loaded: both may ask the model that training starts from.
        data, mixed = self._data, self._mixed()
        frozen = () if self.penalty is None else self.penalty.frozen
        roles = {name: self.role(name) for name in (*objective.trained, *objective.frozen, *frozen)}
        engine = self._engines[objective.trained[0]]
        if self.penalty is not None:
            self._reports |= self.penalty.prepare(self)
        held = training.Held(self.penalty, engine) if self.penalty is not None else None
        done = training.restore(engine, self._resume, self.seed)
        self._training = True
        self._recorder.forget_after(done.step)
        by_metric = self.config["best_metric"] if self.config["keep"] == "best" else None
        keep = training.Keep(self.config["keep"] == "all", by_metric, self.config["best_is"] == "lower")
        # One process's trace shows them all: they do the same work at the same time.
        traced = self.config["training"]["profile"] and self._rank == 0
        trained = training.train(
            objective,
            engine,
            roles,
            data,
            self.config["training"],
            self.log,
            lambda progress: self._save(engine, objective, progress, keep),
            done,
            self.tell("training"),
            self.folder / "profile" / "trace.json" if traced else None,
            mixed,
            held,
        )
        return {**self._reports, **trained}

    def _mixed(self) -> training.Mixed | None:
        if self.mix is None or self.mix.replaces:
            return None
        examples = self.mix.examples(self)
        self._reports |= self.mix.report(examples)
        return training.Mixed(self.mix, self._batches_of(examples, self.mix.config.ratio))

    def _save(self, engine: TrainingEngine, objective: Method, done: training.Progress, keep: training.Keep) -> None:
        self._recorder.flush()  # the record of the steps must not end before the checkpoint of them
        training.save(engine, objective, self.folder, done, keep)

    def save_model(self) -> None:
        """Write the trained policy and its tokenizer to `<run>/model`, as transformers loads them."""
        engine = self._engines[self.method.trained[0]]
        weights = engine.weights()  # gathered by all ranks
        if self.adapter is None:
            added = tuple(f"{part}." for part in self._parts)
            own = {name: value for name, value in weights.items() if not name.startswith(added)}
            self._write_model(engine.engine.module, own)
            return
        merged: nn.Module | None = None
        if self._rank == 0:
            model = self._prepared_to_train(self._starting_model())
            model.load_state_dict(weights)
            merged = self.adapter.merge(model)
            for part in self._parts:
                delattr(merged, part)
        self._write_model(merged)

    def _write_model(self, model: Any, weights: dict[str, Tensor] | None = None) -> None:
        """Write a model (only rank 0 needs one) as the run's final one; `weights`: in place of its own."""
        if self._rank == 0:
            final = self.folder / "model"
            aside = checkpoints.written_aside(final)
            model.save_pretrained(aside, state_dict=weights, safe_serialization=True)
            self._save_tokenizer(aside)
            checkpoints.seal(aside, final)
        torch.distributed.barrier()

    def _save_tokenizer(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def close(self) -> None:
        """Free models and engines before the evaluation loads what was saved."""
        for name, role in self._roles.items():
            if name not in self._engines:
                close_frozen(role)
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._copies.clear()
        self._roles.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
