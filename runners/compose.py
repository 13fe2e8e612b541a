"""From overrides to a checked run: compose with Hydra, check every group, give the run its identity.

Nothing here imports torch or touches a model, so that all the cells of a sweep are checked before the first
one starts. Whatever is wrong is one line naming the key, the value and the rule.
"""

import copy
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runners import fingerprint, signatures
from runners.checks import check_groups, selector, validation_tasks
from runners.errors import UserError, nearest
from runners.expand import check_choices, choices, config_roots, expand, plugin_overrides, preset, value_of, without
from runners.schema import GROUPS, PARTS, SELECTION, TARGETS, Root

# Keys that say only where a run happens and where it is logged: not part of its identity.
_WHERE = {
    "evaluation": ("batch_size", "data_root", "include_path", "confirm_run_unsafe_code"),
    "engine": (
        "zero_stage",
        "offload",
        "activation_checkpointing",
        "logits_chunk",
        "threads",
        "sampler",
        "sampler_memory",
        "sampler_length",
    ),
    "training": ("micro_batch_size", "checkpoint_every", "checkpoint_minutes", "log_every", "profile"),
    "model": ("model_type",),  # says again what the weights say
    "dataset": ("data_root",),
}
# Keys of `evaluation.judge` that say only how it is reached.
_HOW_ASKED = ("endpoint", "api_key_env", "connections", "timeout", "retries")
# Root keys that a parent takes over from its child.
_INHERITED = (
    *("outputs", "runs_from", "plugins", "hydra.searchpath", "tracker", "rerun", "busy", "debug"),
    *("processes", "gpus", "nodes", "evaluation.confirm_run_unsafe_code"),
)
_IDENTITY_GROUPS = ("model", "dataset", "method", *PARTS, "optimizer", "training", "evaluation", "engine")


@dataclass(frozen=True)
class RunSpec:
    """One checked run: everything that decides its result, and where it is kept."""

    config: dict[str, Any]  # resolved; groups filled with their defaults
    overrides: list[str]  # what composes it again
    choices: dict[str, str]  # group -> chosen name
    parents: tuple["RunSpec", ...] = ()  # the run that model.from_run names, or those of model.from_runs
    reference: "RunSpec | None" = None  # the run that model.reference_run names
    selecting: "RunSpec | None" = None  # the run that dataset.select_run names

    @property
    def experiment(self) -> str:
        """The folder's name: the experiment's, or `runs` for a run of no experiment."""
        experiment = self.config["experiment"]
        return experiment["name"] if experiment else "runs"

    @property
    def row(self) -> str | None:
        return self.config["row"]

    @property
    def scale(self) -> str:
        return self.config["scale"]["name"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def parent(self) -> "RunSpec | None":
        """The run that it starts from; of a soup the first."""
        return self.parents[0] if self.parents else None

    @property
    def start(self) -> "RunSpec":
        """The run whose `model:` is what training started from: itself, or of a merger the run that it takes up."""
        merges = signatures.read(self.config["method"]["_target_"]).attributes.get("merges")
        return self.parents[0].start if merges else self

    @property
    def needed(self) -> tuple["RunSpec", ...]:
        """The runs whose final weights it reads."""
        start = self.start.parents if self.start is not self else ()
        before = self.before_new_head
        asked = before.parents if before and (self.config["evaluation"]["accuracy"] or {}).get("source") else ()
        return tuple({spec.folder: spec for spec in (*self.named, *start, *asked)}.values())

    @property
    def before_new_head(self) -> "RunSpec | None":
        """The run that gave an image classifier its head: this one, or the nearest that it starts from."""
        spec: RunSpec | None = self
        while spec is not None and spec.config["model"]["classes"] is None:
            spec = spec.parent
        return spec

    @property
    def named(self) -> tuple["RunSpec", ...]:
        """The runs that its configuration names: those it starts from, that of its reference, that of its selector."""
        return (*self.parents, *(spec for spec in (self.reference, self.selecting) if spec is not None))

    @cached_property
    def identity(self) -> str:
        """Hash of the resolved configuration without what says only where it runs and is logged."""
        return fingerprint.of_data(self.what_decides())

    @cached_property
    def source(self) -> str:
        """Fingerprint of the code that produces the result; a done run with another one is stale."""
        own = fingerprint.of_data(self.sources)
        return fingerprint.of_data([own, *(parent.source for parent in self.named)]) if self.named else own

    @cached_property
    def sources(self) -> dict[str, str]:
        """The fingerprints that `source` is made of, by module, without the parent's."""
        roots = [self.config["method"]["_target_"].rpartition(".")[0]]
        if self.config["model"]["kind"] != "none":
            roots += fingerprint.ENGINE_MODULES
        if "_target_" in self.config["dataset"]:
            roots.append(self.config["dataset"]["_target_"].rpartition(".")[0])
        for _, dataset in fingerprint.data_sets(self.config):
            if dataset.get("reference"):
                roots.append(dataset["reference"].rpartition(".")[0])
        if self.config["dataset"].get("select"):
            roots += [selector(self.config["dataset"]["select"]).rpartition(".")[0], "runners.selecting"]
        for part in PARTS:
            if self.config[part]["_target_"]:
                roots.append(self.config[part]["_target_"].rpartition(".")[0])
        for _, reward in [*fingerprint.rewards(self.config), *fingerprint.graders(self.config)]:
            if reward.get("function"):
                roots.append(reward["function"].rpartition(".")[0])
        roots += [path.rpartition(".")[0] for _, path in fingerprint.environments(self.config)]
        tasks = [*self.config["evaluation"]["tasks"], *validation_tasks(self.config)]
        return fingerprint.sources(roots, fingerprint.task_sources({**self.config["evaluation"], "tasks": tasks}))

    @property
    def name(self) -> str:
        """Readable and unique: `flow-mini-s1-1a2b3c4d`."""
        parts = [self.choices[part].replace("/", "_") for part in PARTS if self.config[part]["_target_"]]
        what = self.row or "+".join([self.choices["method"].replace("/", "_"), *parts])
        return f"{what}-{self.choices['model'].replace('/', '_')}-s{self.seed}-{self.identity[:8]}"

    @property
    def folder(self) -> Path:
        return self.folder_below(self.config["outputs"])

    def folder_below(self, outputs: str) -> Path:
        """The run's folder below a folder like `outputs`."""
        return Path(outputs).expanduser() / self.experiment / self.name

    def what_decides(self) -> dict[str, Any]:
        """The resolved configuration without what says only where it runs and is logged: what the identity hashes."""
        decides: dict[str, Any] = {"seed": self.seed}
        if self.config["model"]["kind"] == "none":  # nothing is trained and no model measured
            found = {group: copy.deepcopy(self.config[group]) for group in ("dataset", "method")}
            return {**decides, **_without_places(found), "content": fingerprint.of_inputs(self.config)}
        for group in _IDENTITY_GROUPS:
            left_out = _WHERE.get(group, ())
            kept = {key: value for key, value in self.config[group].items() if key not in left_out}
            decides[group] = copy.deepcopy(kept)
        if self.config["engine"]["sampler"] == "vllm":  # it draws other tokens than the others, which draw the same
            decides["engine"]["sampler"] = "vllm"
        if decides["model"]["from_run"]:
            decides["model"]["from_run"] = self.parents[0].identity
        if decides["model"].pop("from_runs"):
            decides["model"]["from_runs"] = [parent.identity for parent in self.parents]
        if decides["model"].pop("reference_run"):
            assert self.reference is not None
            decides["model"]["reference_run"] = self.reference.identity
        if decides["dataset"].get("select_run"):
            assert self.selecting is not None
            decides["dataset"]["select_run"] = self.selecting.identity
        target = signatures.read(self.config["method"]["_target_"])
        if target.attributes.get("couples") == "micro-batch" or decides["model"]["kind"] == "image":
            # The micro-batch changes the result of an objective that couples its examples, and batch norms couple them.
            decides["training"]["micro_batch_size"] = self.config["training"]["micro_batch_size"]
            decides["training"]["processes"] = max(self.config["gpus"], self.config["processes"]) * self.config["nodes"]
        decides["content"] = fingerprint.of_inputs(self.config)
        for name in ("preference", "judge", "mauve", "problems", "problem_sets", "thoughts", "accuracy"):
            if not decides["evaluation"][name]:
                del decides["evaluation"][name]
        if decides["model"]["classes"] is None:
            del decides["model"]["classes"]
        if decides["training"]["schedule"] != "step":
            del decides["training"]["milestones"], decides["training"]["decay"]
        for key in _HOW_ASKED:
            decides["evaluation"].get("judge", {}).pop(key, None)
        _without_places(decides)
        local = [(decides["model"], "id"), (decides["model"], "tokenizer")]
        local += [(one, "model") for _, one in [*fingerprint.rewards(decides), *fingerprint.graders(decides)]]
        local.append((decides["evaluation"].get("mauve", {}), "embedding"))
        for settings, key in local:
            if settings.get(key) is not None and Path(settings[key]).is_dir():
                del settings[key]
        return decides


def _without_places(decides: dict[str, Any]) -> dict[str, Any]:
    """What lies at a local path decides, not where it lies; what selects decides only where something is selected."""
    for key, _ in fingerprint.files(decides):
        del decides["method"][key.removeprefix("method.")]
    for _, dataset in fingerprint.data_sets(decides):
        if not dataset.get("select"):
            for key in SELECTION:
                dataset.pop(key, None)
        if dataset.get("reference", "") is None:
            del dataset["reference"]
        for key in (*_WHERE["dataset"], *(("path",) if dataset.get("source") == "file" else ())):
            dataset.pop(key, None)
    return decides


Composed = tuple[DictConfig, dict[str, str]]  # a configuration, and the choice made in each group


Parents = dict[tuple[str, ...], RunSpec]  # by their overrides


def run_spec(
    overrides: list[str],
    *,
    composed: Composed | None = None,
    children: tuple[str, ...] = (),
    parents: Parents | None = None,
) -> RunSpec:
    """Compose and check the run that `overrides` name (its experiment's row included).

    Args:
        overrides: what names the run.
        composed: what Hydra has already made of them.
        children: the runs, by what names them, of which this one is a parent.
        parents: those that other runs of the command have; they are checked once, and added here.

    Raises:
        UserError: anything wrong with it.
    """
    overrides = expand(plugin_overrides(without(overrides, "job")))
    config, chosen = composed or _compose_seeded(overrides)
    checked = check(config, chosen)
    parents = {} if parents is None else parents
    model = checked["model"]
    one, several = model["from_run"], model["from_runs"]
    named = [("from_run", one)] if one else [("from_runs", words) for words in several or ()]
    found = tuple(_parent(key, words, overrides, children, parents) for key, words in named)
    other = model["reference_run"]
    reference = _parent("reference_run", other, overrides, children, parents) if other else None
    by = checked["dataset"].get("select_run")
    selecting = _parent("select_run", by, overrides, children, parents, group="dataset") if by else None
    spec = RunSpec(checked, overrides, chosen, found, reference, selecting)
    _check_parents(spec)
    return spec


def _check_parents(spec: RunSpec) -> None:
    """A merger merges what was trained, and nothing else starts from several runs."""
    merges = signatures.read(spec.config["method"]["_target_"]).attributes.get("merges")
    method, several = spec.choices["method"], spec.config["model"]["from_runs"]
    if several and merges != "runs":
        raise UserError(f"model.from_runs: only a method that merges several runs takes it, got method={method}")
    if merges == "runs" and not several:
        raise UserError(f"method={method}: needs model.from_runs, a list of runs (each a list of overrides)")
    if merges == "run" and not spec.parents:
        raise UserError(f"method={method}: needs model.from_run, the overrides of the run whose weights it takes")
    if not merges:
        return
    for parent in spec.parents:
        if not signatures.read(parent.config["method"]["_target_"]).attributes.get("trained"):
            raise UserError(
                f"method={method}: takes the weights of runs that trained, got method={parent.choices['method']}"
            )
    if len({parent.identity for parent in spec.parents}) < len(spec.parents):
        raise UserError("model.from_runs: must name different runs, got one of them twice")


def _parent(
    origin: str,
    named: list[str],
    overrides: list[str],
    children: tuple[str, ...],
    parents: Parents,
    *,
    group: str = "model",
) -> RunSpec:
    key = " ".join(named)
    if key in children:
        raise UserError(f"{group}.{origin}={named}: must not lead back to the run itself")
    # Where things are kept and logged is the child's choice; what is computed is the parent's own.
    inherited = [
        word
        for word in overrides
        if word.partition("=")[0] in _INHERITED or word.startswith(("tracker.", "engine.threads"))
    ]
    try:
        # Of a debug run the parent is one too, whatever its own words say of its length.
        words = (*inherited, *named, *preset(expand([*inherited, *named])))
        if words not in parents:
            parents[words] = run_spec(list(words), children=(*children, key), parents=parents)
    except UserError as error:
        raise UserError(f"{group}.{origin}={named}: {error}") from error
    return parents[words]


def _compose_seeded(overrides: list[str]) -> Composed:
    """Compose; runs that differ only in their seed are composed once, which is what makes long sweeps quick."""
    seed = value_of(overrides, "seed") or ""
    if not re.fullmatch(r"\d+", seed) or any(word.startswith(("+seed=", "++seed=", "~seed")) for word in overrides):
        return _compose(tuple(overrides))
    config, chosen = _compose((*without(overrides, "seed"), "seed=0"))
    # What refers to it (`${seed}`) is resolved in `check`, which follows at once: the next run sets its own.
    config["seed"] = int(seed)
    return config, chosen


@lru_cache(maxsize=64)  # all the cells of a table have the same few parents
def _compose(overrides: tuple[str, ...]) -> Composed:
    check_choices(list(overrides))
    try:
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, overrides)) from error
    chosen = {str(key): str(value) for key, value in config.hydra.runtime.choices.items()}
    return _without_hydra(config), chosen


def check(config: DictConfig, chosen: dict[str, str]) -> dict[str, Any]:
    """Check a composed configuration group by group; return it resolved, with defaults filled in.

    Args:
        config: as Hydra composed it.
        chosen: the choice made in each group.

    Raises:
        UserError: an unknown key, a wrong type, a value out of range, an unknown lm-eval task, a method that
            does not fit the model's kind, a missing file.
    """
    try:
        data = OmegaConf.to_container(_without_hydra(config), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from error
    assert isinstance(data, dict)
    return check_groups({str(key): value for key, value in data.items()}, chosen)


def _without_hydra(config: DictConfig) -> DictConfig:
    if "hydra" not in config:
        return config
    plain = config.copy()
    OmegaConf.set_struct(plain, False)
    plain.pop("hydra", None)
    assert isinstance(plain, DictConfig)
    return plain


def explain(error: Exception, overrides: Sequence[str] = ()) -> str:
    """One line for an error of Hydra or OmegaConf in composing `overrides`."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_choice(str(error.missing_cfg_file), error.options or [])
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: must be key=value; a value that holds any of ()[]{{}}=,: is quoted twice, "
            "as in 'key=\"value\"'"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    for pattern, rule in _HYDRA_RULES.items():
        found = re.match(pattern, first)
        if found:
            key, given, value = found.group(1).partition("=")
            value = value if given else value_of(list(overrides), key)
            return f"{key}={value}: {rule}{_nearest_key(key) if rule == _NO_KEY else ''}"
    key_line = next((line.partition(":")[2].strip() for line in lines if line.startswith("full_key:")), "")
    return f"{key_line}: {first}" if key_line else first


_NO_KEY = "no such key"

# What Hydra says of an override, and what we say instead.
_HYDRA_RULES = {
    r"Could not override '([^']+)'": _NO_KEY,
    r"Could not append to config. An item is already at '([^']+)'": "the key is there already, leave out the +",
    r"Ambiguous value for argument '([^']+)'": "several values make a sweep, which needs -m",
}


def _explain_choice(missing: str, options: Sequence[str]) -> str:
    depth = 2 if missing.startswith("hydra/") else 1
    words = missing.split("/")
    group, choice = "/".join(words[:depth]), "/".join(words[depth:])
    return f"{group}={choice}: no such choice{nearest(choice, [*choices(group, config_roots([])), *options])}"


def _nearest_key(key: str) -> str:
    """The known keys most like `key`: those of its group where there is such a group."""
    group, dot, name = key.partition(".")
    if dot and group in GROUPS:
        return nearest(name, [field.name for field in dataclasses.fields(GROUPS[group])])
    if dot and group in (*TARGETS, *PARTS):
        return ""
    known = [field.name for field in dataclasses.fields(Root)]
    for group, schema in GROUPS.items():
        known += [f"{group}.{field.name}" for field in dataclasses.fields(schema)]
    return nearest(key, [name for name in known if name != key])


def setting(overrides: list[str], key: str) -> str | None:
    """The value `overrides` give to a root key, experiment's rows included."""
    return value_of(expand(overrides), key)
