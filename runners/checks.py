"""The rules for a composed configuration: every group by its own, parts and method together, data, evaluation.

Nothing here imports torch or touches a model. Whatever is wrong is one line naming the key, the value and the rule.
"""

import dataclasses
import json
import math
import re
from typing import Any

from pydantic import TypeAdapter, ValidationError

from evals import mini_world
from evals.rewards.load import check_function, check_grader, check_reward
from evals.task_index import TaskRequest, check_requests
from evals.worlds import WORLDS
from runners import fingerprint, signatures
from runners.errors import UserError, nearest
from runners.schema import GROUPS, PARTS, TARGETS, Problems, Root


def check_groups(data: dict[str, Any], chosen: dict[str, str]) -> dict[str, Any]:
    """Check a resolved configuration; return it with defaults filled in.

    Args:
        data: its groups and root keys.
        chosen: the choice made in each group.

    Raises:
        UserError: see `runners.compose.check`.
    """
    for group in (*GROUPS, *TARGETS, *PARTS):
        if group not in data:
            raise UserError(f"~{group}: must not be left out; `retable job=list` shows what it can be")
    root = {key: value for key, value in data.items() if key not in (*GROUPS, *TARGETS, *PARTS)}
    checked: dict[str, Any] = check_values("", Root, root)
    for group, schema in GROUPS.items():
        of_class = group == "dataset" and isinstance(data[group], dict) and "_target_" in data[group]
        checked[group] = check_target(group, data[group]) if of_class else check_values(group, schema, data[group])
    for group in (*TARGETS, *PARTS):
        checked[group] = check_target(group, data[group])
    _check_parts(checked, chosen)
    _check_combination(checked, chosen)
    return checked


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
    if config["model"]["kind"] == "none":
        _check_without_model(config, chosen)
    elif config["model"]["kind"] == "image":
        _check_images(config, chosen)
    if config["evaluation"]["accuracy"] is not None and config["model"]["kind"] != "image":
        raise UserError(
            f"evaluation={chosen['evaluation']}: measures image classifiers (evaluation.accuracy), got "
            f"model.kind={config['model']['kind']}"
        )
    _check_evaluation_data(config["evaluation"])
    fingerprint.check_files(config)
    _check_skill("dataset", config["dataset"])
    _check_data(config, chosen)
    _check_select(config, chosen)
    for key, reward in fingerprint.rewards(config):
        try:
            check_reward(reward, key)
        except ValueError as error:
            raise UserError(str(error)) from error
        _check_reward_chat(config, key, reward)
    _check_graders(config)
    _check_sampler(config)
    # Each on its own: other items of one task may choose, and measure.
    for key, tasks in (
        ("evaluation.tasks", config["evaluation"]["tasks"]),
        ("method.validation", validation_tasks(config)),
    ):
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


_OF_LANGUAGE_MODELS = ("tasks", "kl_to_base", "preference", "judge", "mauve", "problems", "problem_sets", "thoughts")


def _check_without_model(config: dict[str, Any], chosen: dict[str, str]) -> None:
    """What needs a model, or its training, is not asked for.

    Raises:
        UserError: it is.
    """
    for key in _OF_LANGUAGE_MODELS:
        if config["evaluation"][key]:
            raise UserError(
                f"evaluation={chosen['evaluation']}: measures a model (evaluation.{key}), and model=none is none; "
                "choose evaluation=none"
            )
    workers = max(config["gpus"], config["processes"]) * config["nodes"]
    if workers > 1:
        raise UserError(
            f"processes, gpus, nodes: method={chosen['method']} trains no model and runs in one process, got {workers}"
        )


def _check_images(config: dict[str, Any], chosen: dict[str, str]) -> None:
    """An image classifier is trained on images, and measured on them.

    Raises:
        UserError: it is not.
    """
    if data_type(config["dataset"]) != "images":
        raise UserError(
            f"dataset={chosen['dataset']}: model.kind=image needs a data set of images, got "
            f"{data_type(config['dataset'])}"
        )
    for key in _OF_LANGUAGE_MODELS:
        if config["evaluation"][key]:
            raise UserError(
                f"evaluation={chosen['evaluation']}: measures a language model (evaluation.{key}), got "
                "model.kind=image; choose evaluation=images or none"
            )
    accuracy = config["evaluation"]["accuracy"]
    if accuracy is not None and accuracy["source"] is not None:
        source = {"_target_": "methods.images.Images", **accuracy["source"]}
        accuracy["source"] = check_target("evaluation.accuracy.source", source)
        if config["model"]["classes"] is None and not config["model"]["from_run"]:
            raise UserError(
                f"evaluation.accuracy.source={accuracy['source']['source']}: needs a model whose head was replaced "
                "(model.classes, of the run or of one that it starts from)"
            )


def _check_reward_chat(config: dict[str, Any], key: str, reward: dict[str, Any]) -> None:
    """A prompt that is in a chat template already must not be put into another one."""
    of_method = key.startswith("method.")
    where = "dataset" if of_method else "evaluation.preference.dataset"
    data = config["dataset"] if of_method else config["evaluation"]["preference"]["dataset"]
    written = "layout" if data["layout"] != "columns" else "chat" if of_method and data["chat"] else None
    if reward.get("chat") and written:
        raise UserError(
            f"{key}.chat=true: the prompts of {where}.{written}={data[written]} are in a chat template already, "
            "that of the model; the reward model would see two"
        )


# What `evaluation:` asks of data, by the type of data that it needs.
_EVALUATED = {"preference": "pair", "judge": "completion", "mauve": "completion", "thoughts": "completion"}


def _check_sampler(config: dict[str, Any]) -> None:
    """What vLLM writes can be scored by the trained model."""
    if config["engine"]["sampler"] != "vllm":
        return
    if config["model"]["kind"] != "causal":
        raise UserError(f"engine.sampler=vllm: writes with causal language models, got {config['model']['kind']}")
    if config["adapter"]["_target_"]:
        raise UserError(
            "engine.sampler=vllm: takes whole weights; with an adapter set engine.sampler to in_place or copy"
        )
    if config["method"].get("top_p", 1.0) != 1.0:
        raise UserError(
            f"method.top_p={config['method']['top_p']}: must be 1 with engine.sampler=vllm, whose log-probabilities "
            "are those of what is left after the cut"
        )


def _check_graders(config: dict[str, Any]) -> None:
    """There are rewards where they are asked for, and each can be found, as environments can."""
    if config["method"].get("rewards") == []:
        raise UserError("method.rewards=[]: must name at least one reward, as [{function: module.function}]")
    try:
        for key, settings in fingerprint.graders(config):
            check_grader(settings, key)
        for key, path in fingerprint.environments(config):
            check_function(path, f"{key}={path}")
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_evaluation_data(evaluation: dict[str, Any]) -> None:
    """Check the data sets of an evaluation; their defaults, and those of sets of problems, are filled in.

    Raises:
        UserError: with the reason.
    """
    asked = [(f"evaluation.{name}", evaluation[name], needed) for name, needed in _EVALUATED.items()]
    if evaluation["problem_sets"]:
        _complete_problem_sets(evaluation)
    asked += [(key, own, "problem") for _, key, own in fingerprint.problem_sets({"evaluation": evaluation})]
    for key, settings, needed in asked:
        if settings is None:
            continue
        where, data = f"{key}.dataset", settings["dataset"]
        if not data.get("source"):
            raise UserError(f"{where}={data}: must name its source (mini_world, hub or file)")
        try:
            data = check_values(where, GROUPS["dataset"], {"data_root": evaluation["data_root"], **data})
        except UserError as error:  # a rule over several keys names them as those of the training data
            raise UserError(re.sub(r"^dataset\b", where, str(error))) from error
        settings["dataset"] = data
        _check_skill(where, data)
        if data["type"] != needed:
            raise UserError(f"{where}.type={data['type']}: must be {needed} ({_NEEDS[needed]})")
        if key in ("evaluation.judge", "evaluation.mauve") and data["layout"] != "columns":
            raise UserError(f"{where}.layout={data['layout']}: must be columns, as the prompt's text is looked at")


def _complete_problem_sets(evaluation: dict[str, Any]) -> None:
    """Give every set of problems all of its settings; what it does not say is that of `problems`, which it replaces."""
    common = evaluation["problems"] or {}
    taken = {*_EVALUATED, *(task["name"] for task in evaluation["tasks"])}
    for name, own in evaluation["problem_sets"].items():
        key = f"evaluation.problem_sets.{name}"
        if not re.fullmatch(r"[A-Za-z]\w*", name) or name in taken:
            raise UserError(f"{key}: must be named by letters, digits and _, as nothing else that is measured")
        try:
            evaluation["problem_sets"][name] = check_values(key, Problems, {**common, **own})
        except UserError as error:  # a rule over several keys names them as those of the only set
            raise UserError(str(error).replace("evaluation.problems.", f"{key}.")) from error
    evaluation["problems"] = None


_NEEDS = {
    "completion": "prompts with a completion to imitate",
    "problem": "prompts with an answer that a response is checked against",
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
    for key, dataset in fingerprint.data_sets(config):
        if dataset.get("reference"):
            try:
                check_function(dataset["reference"], f"{key}.reference={dataset['reference']}")
            except ValueError as error:
                raise UserError(str(error)) from error
    given, kind = data_type(config["dataset"]), config["model"]["kind"]
    if given == "images" and kind == "causal":
        raise UserError("dataset.type=images: needs model.kind=image, or a method without a model, got causal")
    for group in ("method", *PARTS):
        target = config[group]["_target_"]
        attributes = signatures.read(target).attributes if target else {}
        needed = attributes.get("data") or ()
        if kind != "none":
            needed = [name for name in needed if (name == "images") == (kind == "image")]
        if needed and given not in needed:
            told = " or ".join(f"{name} ({_NEEDS[name]})" if name in _NEEDS else str(name) for name in needed)
            raise UserError(f"dataset.type={given}: {group}={chosen[group]} needs {told}")
    mixed = config["mix"].get("dataset")
    if isinstance(mixed, dict) and mixed["type"] != "completion":
        raise UserError(
            f"mix.dataset.type={mixed['type']}: mix={chosen['mix']} needs completion ({_NEEDS['completion']})"
        )


def selector(name: str) -> str:
    """The dotted path of the class of a selector that `dataset.select` names."""
    return name if "." in name else f"methods.selection.{name}.{''.join(part.capitalize() for part in name.split('_'))}"


def _check_select(config: dict[str, Any], chosen: dict[str, str]) -> None:
    """A selector is there, chooses by embeddings alone, and has these hyper-parameters.

    Raises:
        UserError: with the reason.
    """
    for group, dataset in fingerprint.data_sets(config):
        if dataset.get("select") and group != "dataset":
            raise UserError(f"{group}.select={dataset['select']}: only training examples (dataset.select) are selected")
    dataset = config["dataset"]
    name, options = dataset.get("select"), dataset.get("select_options")
    if not name:
        for key in ("select_options", "select_run"):
            if dataset.get(key):
                raise UserError(f"dataset.{key}={dataset[key]}: needs dataset.select, the selector that it is for")
        return
    trained = signatures.read(config["method"]["_target_"]).attributes.get("trained")
    if config["model"]["kind"] == "none" or not trained:
        raise UserError(f"dataset.select={name}: method={chosen['method']} trains no model on examples; leave it out")
    try:
        target = signatures.read(selector(name))
    except UserError as error:
        folder = signatures.module_path("methods.selection")
        known = [path.stem for path in folder.parent.glob("*.py")] if folder else []
        raise UserError(f"dataset.select={name}: no such selector{nearest(name, known)} ({error})") from error
    if "features" not in (target.attributes.get("data") or ()) or target.config is None:
        raise UserError(
            f"dataset.select={name}: must choose by embeddings alone, as gm_matching does; a selector that trains a "
            f"network of its own runs as method=selection/{name}"
        )
    # What all selectors have besides is for the runs in which they are the method.
    base = signatures.read("methods.selection.base.Embedded").config
    assert base is not None
    others = {field.name for field in dataclasses.fields(base)}
    if config["model"]["kind"] == "image":
        others -= {"per_class"}
    for key in options or {}:
        if key in others:
            raise UserError(f"dataset.select_options.{key}: is of no use here; leave it out")
    check_values("dataset.select_options", target.config, options or {})


def data_type(dataset: dict[str, Any]) -> str:
    """`dataset.type`; of a data set that is no text, what its class says."""
    if "_target_" in dataset:
        return str(signatures.read(dataset["_target_"]).attributes.get("type"))
    return str(dataset["type"])


def validation_tasks(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The lm-eval task by which a method chooses, where it has one, as `evaluation.tasks` has them."""
    chosen = config["method"].get("validation")
    if not chosen:
        return []
    keys = ("num_fewshot", "limit", "metadata")
    return [{"name": chosen["task"], **{key: chosen[key] for key in keys if key in chosen}}]


def _check_skill(group: str, dataset: dict[str, Any]) -> None:
    if dataset.get("source") != "mini_world":
        return
    skill, known = dataset["skill"], [*mini_world.SKILLS, *WORLDS]
    if skill not in ("pretraining", *known):
        raise UserError(
            f"{group}.skill={skill}: no such skill{nearest(skill, known)}; pretraining, or one of {', '.join(known)}"
        )
    if skill in WORLDS:
        try:
            WORLDS[skill].check_options(skill, dataset["options"] or {})
        except ValueError as error:
            raise UserError(f"{group}.options.{error}") from error
    elif dataset["options"]:
        raise UserError(f"{group}.options={dataset['options']}: skill {skill} has none")


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
        if prompted and config["dataset"].get("loss_on") == "all":
            raise UserError(
                f"dataset.loss_on=all: {group}={chosen[group]} answers the data set's prompts, and so there is none"
            )
    for group in ("method", *used):
        excludes = signatures.read(config[group]["_target_"]).attributes.get("excludes") or {}
        for word, reason in excludes.items():
            other, _, name = word.partition("=")
            if chosen[other] == name:
                raise UserError(f"{group}={chosen[group]} does not combine with {word}: {reason}")
    # What a method counts in may be an option of it.
    units = {"sequence": "sequences"}.get(str(config["method"].get("level")), method.get("units"))
    if "mix" in used and config["mix"].get("weight", 0) is None and units in ("groups", "sequences"):
        of = "groups of responses" if units == "groups" else "sequences"
        raise UserError(
            f"mix.weight=null: one mean over all tokens, and method={chosen['method']} takes its mean over {of}; "
            "set a number"
        )
    asked = [signatures.read(config[group]["_target_"]).attributes for group in ("method", *used)]
    referenced = any(of.get("referenced") or "reference" in (of.get("frozen") or ()) for of in asked)
    if config["model"]["reference_run"] and not referenced:
        raise UserError(
            f"model.reference_run={config['model']['reference_run']}: method={chosen['method']} and its parts have no "
            "reference; leave it out"
        )
    ratio, size = config["mix"].get("ratio"), config["training"]["batch_size"]
    if ratio is not None and round(ratio * size) < 1:
        raise UserError(f"mix.ratio={ratio}: must give at least one example a step, with training.batch_size={size}")
    if isinstance(config["mix"].get("dataset"), dict):
        if not config["mix"]["dataset"].get("source"):
            raise UserError(f"mix.dataset={config['mix']['dataset']}: must name its source (mini_world, hub or file)")
        config["mix"]["dataset"].setdefault("data_root", config["dataset"]["data_root"])
        config["mix"]["dataset"] = check_values("mix.dataset", GROUPS["dataset"], config["mix"]["dataset"])
        _check_skill("mix.dataset", config["mix"]["dataset"])
