"""From overrides to a checked run: compose with Hydra, check every group, give the run its identity.

Nothing here imports torch or touches a model, so that all the cells of a sweep are checked before the first
one starts. Whatever is wrong is one line naming the key, the value and the rule.
"""

import dataclasses
import json
import math
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
from pydantic import TypeAdapter, ValidationError

from evals import mini_world, preference_world
from evals.rewards.load import check_reward
from evals.task_index import TaskRequest, check_requests
from runners import fingerprint, signatures
from runners.errors import UserError, nearest
from runners.expand import check_choices, choices, config_roots, expand, plugin_overrides, preset, value_of, without
from runners.schema import GROUPS, PARTS, TARGETS, Root

# Keys that say only where a run happens and where it is logged: not part of its identity.
_WHERE = {
    "evaluation": ("batch_size", "data_root", "include_path", "confirm_run_unsafe_code"),
    "engine": ("zero_stage", "offload", "activation_checkpointing", "logits_chunk", "threads"),
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
        return tuple({spec.folder: spec for spec in (*self.named, *start)}.values())

    @property
    def named(self) -> tuple["RunSpec", ...]:
        """The runs that its configuration names: those it starts from, and that of its reference."""
        return (*self.parents, *([self.reference] if self.reference else []))

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
        roots = [self.config["method"]["_target_"].rpartition(".")[0], *fingerprint.ENGINE_MODULES]
        for part in PARTS:
            if self.config[part]["_target_"]:
                roots.append(self.config[part]["_target_"].rpartition(".")[0])
        reward = (self.config["evaluation"].get("preference") or {}).get("reward") or {}
        if reward.get("function"):
            roots.append(reward["function"].rpartition(".")[0])
        reward = self.config["method"].get("reward")
        if isinstance(reward, dict) and reward.get("function"):
            roots.append(reward["function"].rpartition(".")[0])
        tasks = [*self.config["evaluation"]["tasks"], *_validation(self.config)]
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
        for group in _IDENTITY_GROUPS:
            left_out = _WHERE.get(group, ())
            decides[group] = {key: value for key, value in self.config[group].items() if key not in left_out}
        if decides["model"]["from_run"]:
            decides["model"]["from_run"] = self.parents[0].identity
        if decides["model"].pop("from_runs"):
            decides["model"]["from_runs"] = [parent.identity for parent in self.parents]
        if decides["model"].pop("reference_run"):
            assert self.reference is not None
            decides["model"]["reference_run"] = self.reference.identity
        target = signatures.read(self.config["method"]["_target_"])
        if target.attributes.get("couples") == "micro-batch":
            # The micro-batch changes the result of an objective that couples its examples.
            decides["training"]["micro_batch_size"] = self.config["training"]["micro_batch_size"]
            decides["training"]["processes"] = max(self.config["gpus"], self.config["processes"]) * self.config["nodes"]
        decides["content"] = fingerprint.of_inputs(self.config)
        if isinstance(decides["mix"].get("dataset"), dict):
            decides["mix"]["dataset"] = _what_is_read(decides["mix"]["dataset"])
        rewarded = decides["method"].get("reward")
        if isinstance(rewarded, dict) and rewarded.get("model") and Path(rewarded["model"]).is_dir():
            decides["method"]["reward"] = {key: value for key, value in rewarded.items() if key != "model"}
        measured = decides["evaluation"].pop("preference", None)
        if measured:
            changed: dict[str, Any] = {"dataset": _what_is_read(measured["dataset"])}
            if (measured["reward"] or {}).get("model") and Path(measured["reward"]["model"]).is_dir():
                changed["reward"] = {key: value for key, value in measured["reward"].items() if key != "model"}
            decides["evaluation"]["preference"] = measured | changed
        judged = decides["evaluation"].pop("judge", None)
        if judged:
            left = {key: value for key, value in judged.items() if key not in _HOW_ASKED}
            decides["evaluation"]["judge"] = {**left, "dataset": _what_is_read(judged["dataset"])}
        # What lies at a local path decides, not where it lies.
        decides["dataset"] = _what_is_read(self.config["dataset"])
        for key in ("id", "tokenizer"):
            path = self.config["model"][key]
            if path is not None and Path(path).is_dir():
                del decides["model"][key]
        return decides


def _what_is_read(dataset: dict[str, Any]) -> dict[str, Any]:
    """A data set without what says only where it lies."""
    left_out = [*_WHERE["dataset"]]
    if dataset["source"] == "file":
        left_out.append("path")
    if dataset["data_dir"] is None:  # a later key: runs of before keep their identity
        left_out.append("data_dir")
    return {key: value for key, value in dataset.items() if key not in left_out}


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
    spec = RunSpec(checked, overrides, chosen, found, reference)
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
    origin: str, named: list[str], overrides: list[str], children: tuple[str, ...], parents: Parents
) -> RunSpec:
    key = " ".join(named)
    if key in children:
        raise UserError(f"model.{origin}={named}: must not lead back to the run itself")
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
        raise UserError(f"model.{origin}={named}: {error}") from error
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
    data = {str(key): value for key, value in data.items()}
    for group in (*GROUPS, *TARGETS, *PARTS):
        if group not in data:
            raise UserError(f"~{group}: must not be left out; `retable job=list` shows what it can be")
    root = {key: value for key, value in data.items() if key not in (*GROUPS, *TARGETS, *PARTS)}
    checked: dict[str, Any] = check_values("", Root, root)
    for group, schema in GROUPS.items():
        checked[group] = check_values(group, schema, data[group])
    for group in (*TARGETS, *PARTS):
        checked[group] = check_target(group, data[group])
    _check_parts(checked, chosen)
    _check_combination(checked, chosen)
    return checked


def _without_hydra(config: DictConfig) -> DictConfig:
    if "hydra" not in config:
        return config
    plain = config.copy()
    OmegaConf.set_struct(plain, False)
    plain.pop("hydra", None)
    assert isinstance(plain, DictConfig)
    return plain


def check_values(prefix: str, schema: type, values: Any) -> dict[str, Any]:
    """Check `values` against a dataclass; return them with its defaults filled in."""
    where = f"{prefix}." if prefix else ""
    if not isinstance(values, dict):
        raise UserError(f"{prefix}={values}: must be a mapping of keys")
    known = {field.name for field in dataclasses.fields(schema)}
    for key in values:
        if key not in known:
            raise UserError(f"{where}{key}={values[key]}: unknown key{nearest(str(key), known)}")
    try:
        # Through JSON: strict about types, yet a YAML list may stand for a tuple.
        built: Any = TypeAdapter(schema).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise UserError(_rule_broken(prefix, values, error)) from error
    return dataclasses.asdict(built)


def _rule_broken(prefix: str, values: dict[str, Any], error: ValidationError, key: str | None = None) -> str:
    """One line for the first value that pydantic refused: key, value, rule. `key`: the one that was checked."""
    problems = error.errors(include_url=False)
    first = problems[0]
    rule = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        outer, _, group = prefix.rpartition(".")
        return f"{outer}.{rule}" if outer and rule.startswith(f"{group}.") else rule
    # Beyond the value's own place, pydantic names the alternative of a union that was tried.
    place: list[str] = [] if key is None else [key]
    value: Any = values if key is None else values[key]
    depth = 0
    for part in first["loc"]:
        inside = (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int))
        if not inside:
            break
        value = value[part]
        place.append(str(part))
        depth += 1
    where = ".".join([*([prefix] if prefix else []), *place])
    rules = dict.fromkeys(
        item["msg"].removeprefix("Input ") for item in problems if item["loc"][:depth] == first["loc"][:depth]
    )
    return f"{where}={value}: {' or '.join(rules)}"


def check_target(group: str, values: Any) -> dict[str, Any]:
    """Check a group entry against the signature of the target it names."""
    if not isinstance(values, dict) or "_target_" not in values:
        raise UserError(f"{group}={values}: must be a mapping with a _target_")
    path = values["_target_"]
    own = {key: value for key, value in values.items() if key != "_target_"}
    if path is None:
        for key in own:
            raise UserError(f"{group}.{key}={own[key]}: unknown key, as no {group} is chosen")
        return {"_target_": None}
    target = signatures.read(str(path))
    if target.config is not None:
        return {"_target_": path, **check_values(group, target.config, own)}
    _check_parameters(group, target, own)
    if group == "optimizer":
        rate = own.get("lr")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf:
            raise UserError(f"optimizer.lr={rate}: must be a number greater than 0")
    return {"_target_": path, **own}


def _check_parameters(group: str, target: signatures.Target, values: dict[str, Any]) -> None:
    """Check values against the keyword parameters of the target's __init__."""
    known = target.parameters
    if known is None:
        return
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{group}.{key}={value}: {target.path} takes no such key{nearest(key, known)}")
        try:
            TypeAdapter(known[key]).validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            raise UserError(_rule_broken(group, values, error, key)) from error


def _check_combination(config: dict[str, Any], chosen: dict[str, str]) -> None:
    """Rules over several groups."""
    if config["experiment"] is None and config["scale"]["name"] == "full":
        raise UserError("scale=full: only an experiment has a sourced full setting; name one (experiment=...)")
    method = signatures.read(config["method"]["_target_"])
    kinds = method.attributes.get("kinds")
    if kinds and config["model"]["kind"] not in kinds:
        raise UserError(
            f"method={config['method']['_target_']}: fits models of kind {', '.join(kinds)}, "
            f"got model.kind={config['model']['kind']}"
        )
    _check_evaluation_data(config["evaluation"])
    fingerprint.check_files(config)
    _check_skill("dataset", config["dataset"])
    _check_data(config, chosen)
    reward = config["method"].get("reward")
    if isinstance(reward, dict):
        try:
            check_reward(reward)
        except ValueError as error:
            raise UserError(str(error)) from error
    # Each on its own: other items of one task may choose, and measure.
    for key, tasks in (("evaluation.tasks", config["evaluation"]["tasks"]), ("method.validation", _validation(config))):
        try:
            requests = [TaskRequest(**task) for task in tasks]
            if requests:
                check_requests(
                    requests,
                    config["evaluation"]["include_path"],
                    confirm_run_unsafe_code=config["evaluation"]["confirm_run_unsafe_code"],
                )
        except ValueError as error:
            raise UserError(str(error).replace("evaluation.tasks", key)) from error


def _check_evaluation_data(evaluation: dict[str, Any]) -> None:
    """Check the data sets of an evaluation, and its reward; the data sets' defaults are filled in.

    Raises:
        UserError: with the reason.
    """
    for name, needed in (("preference", "pair"), ("judge", "completion")):
        if evaluation[name] is None:
            continue
        where, data = f"evaluation.{name}.dataset", evaluation[name]["dataset"]
        if not data.get("source"):
            raise UserError(f"{where}={data}: must name its source (mini_world, hub or file)")
        try:
            data = check_values(where, GROUPS["dataset"], {"data_root": evaluation["data_root"], **data})
        except UserError as error:  # a rule over several keys names them as those of the training data
            raise UserError(re.sub(r"^dataset\b", where, str(error))) from error
        evaluation[name]["dataset"] = data
        _check_skill(where, data)
        if data["type"] != needed:
            raise UserError(f"{where}.type={data['type']}: must be {needed} ({_NEEDS[needed]})")
        if name == "judge" and data["layout"] != "columns":
            raise UserError(
                f"{where}.layout={data['layout']}: must be columns, as the judge is shown the prompt's text"
            )
    reward = (evaluation["preference"] or {}).get("reward")
    if reward is not None:
        try:
            check_reward(reward, "evaluation.preference.reward")
        except ValueError as error:
            raise UserError(str(error)) from error


_NEEDS = {
    "completion": "prompts with a completion to imitate",
    "pair": "prompts with a chosen and a rejected response",
    "labelled": "responses with a label, good or bad",
    "negative": "bad responses alone",
    "ranked": "prompts with several scored responses",
    "groups": "prompts with a group of chosen and one of rejected responses",
}


def _check_data(config: dict[str, Any], chosen: dict[str, str]) -> None:
    """Method and parts can be trained on the type of data.

    Raises:
        UserError: they cannot; says what they need.
    """
    given = config["dataset"]["type"]
    for group in ("method", *PARTS):
        target = config[group]["_target_"]
        attributes = signatures.read(target).attributes if target else {}
        needed = attributes.get("data") or ()
        if needed and given not in needed and (group != "method" or attributes.get("trained")):
            told = " or ".join(f"{name} ({_NEEDS[name]})" for name in needed)
            raise UserError(f"dataset.type={given}: {group}={chosen[group]} needs {told}")
    mixed = config["mix"].get("dataset")
    if isinstance(mixed, dict) and mixed["type"] != "completion":
        raise UserError(
            f"mix.dataset.type={mixed['type']}: mix={chosen['mix']} needs completion ({_NEEDS['completion']})"
        )


def _validation(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The lm-eval task by which a method chooses, where it has one, as `evaluation.tasks` has them."""
    chosen = config["method"].get("validation")
    if not chosen:
        return []
    keys = ("num_fewshot", "limit", "metadata")
    return [{"name": chosen["task"], **{key: chosen[key] for key in keys if key in chosen}}]


def _check_skill(group: str, dataset: dict[str, Any]) -> None:
    if dataset["source"] != "mini_world":
        return
    skill, known = dataset["skill"], [*mini_world.SKILLS, *preference_world.SKILLS]
    if skill not in ("pretraining", *known):
        raise UserError(
            f"{group}.skill={skill}: no such skill{nearest(skill, known)}; pretraining, or one of {', '.join(known)}"
        )
    if skill in preference_world.SKILLS:
        try:
            preference_world.check_options(skill, dataset["options"])
        except ValueError as error:
            raise UserError(f"{group}.options.{error}") from error
    elif dataset["options"]:
        raise UserError(f"{group}.options={dataset['options']}: only preference skills have options, got {skill}")


def _check_parts(config: dict[str, Any], chosen: dict[str, str]) -> None:
    """Parts fit the method, the model and one another.

    Raises:
        UserError: they do not, with the reason.
    """
    method = signatures.read(config["method"]["_target_"]).attributes
    used = [group for group in PARTS if config[group]["_target_"]]
    for group in used:
        if not method.get("trained"):
            raise UserError(
                f"{group}={chosen[group]}: has nothing to act on, as method={chosen['method']} trains nothing"
            )
        kinds = signatures.read(config[group]["_target_"]).attributes.get("kinds")
        if kinds and config["model"]["kind"] not in kinds:
            raise UserError(
                f"{group}={chosen[group]}: fits models of kind {', '.join(kinds)}, "
                f"got model.kind={config['model']['kind']}"
            )
    for group in ("method", *used):
        prompted = signatures.read(config[group]["_target_"]).attributes.get("prompted")
        if prompted and config["dataset"]["loss_on"] == "all":
            raise UserError(
                f"dataset.loss_on=all: {group}={chosen[group]} answers the data set's prompts, and so there is none"
            )
    for group in ("method", *used):
        excludes = signatures.read(config[group]["_target_"]).attributes.get("excludes") or {}
        for word, reason in excludes.items():
            other, _, name = word.partition("=")
            if chosen[other] == name:
                raise UserError(f"{group}={chosen[group]} does not combine with {word}: {reason}")
    ratio, size = config["mix"].get("ratio"), config["training"]["batch_size"]
    if ratio is not None and round(ratio * size) < 1:
        raise UserError(f"mix.ratio={ratio}: must give at least one example a step, with training.batch_size={size}")
    if isinstance(config["mix"].get("dataset"), dict):
        if not config["mix"]["dataset"].get("source"):
            raise UserError(f"mix.dataset={config['mix']['dataset']}: must name its source (mini_world, hub or file)")
        config["mix"]["dataset"].setdefault("data_root", config["dataset"]["data_root"])
        config["mix"]["dataset"] = check_values("mix.dataset", GROUPS["dataset"], config["mix"]["dataset"])
        _check_skill("mix.dataset", config["mix"]["dataset"])


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
