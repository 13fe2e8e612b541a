"""From settings to a reward: a function by its dotted path, or a sequence classifier with one output.

A reward is a function `(prompts, responses) -> numbers`. Of responses that are graded while a policy is trained
(`load_grader`), it may ask for more, by the names of its parameters: `answers` (what the data say is right), `tokens`
(how many each response has), `ended` (whether it came to its end), `groups` (which of them answer one prompt), `seed`.
Its other keyword parameters are options. It may return None or NaN for what cannot be scored, and `Graded` for a score
with feedback.

torch and transformers are imported when a reward model is loaded.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.rewards.graded import Graded

Reward = Callable[[Sequence[str], Sequence[str]], list[float]]

_DEFAULTS: dict[str, Any] = {"function": None, "model": None, "batch_size": 16, "chat": False}
_OF_A_GRADER: dict[str, Any] = {**_DEFAULTS, "weight": 1.0, "options": None}
_ASKED = ("answers", "tokens", "ended", "groups", "seed")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Responses to be graded, each with its prompt, and what else a reward may ask for; `seed` is one for all."""

    prompts: Sequence[str]
    responses: Sequence[str]
    answers: Sequence[str]
    tokens: Sequence[int]
    ended: Sequence[bool]
    groups: Sequence[int]
    seed: int


Grader = Callable[[Sampled], list[Graded]]


def check_grader(settings: Mapping[str, Any], key: str) -> None:
    """Check settings of one of the rewards of responses that are graded while a policy is trained.

    Args:
        settings: as of `check_reward`, with, if wanted, `weight` (finite) and `options` (keyword arguments).

    Raises:
        ValueError: one line that names key, value and rule.
    """
    weight, options = settings.get("weight", 1.0), settings.get("options") or {}
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ValueError(f"{key}.weight={weight}: must be a finite number")
    check_reward({name: value for name, value in settings.items() if name not in ("weight", "options")}, key)
    if not isinstance(options, Mapping) or (options and settings.get("function") is None):
        raise ValueError(f"{key}.options={options}: must be keyword arguments of a function")
    for name in options:
        known = _parameters(str(settings["function"]))
        if known is not None and name not in known:
            raise ValueError(
                f"{key}.options.{name}: {settings['function']} has no such option; it has {', '.join(known) or 'none'}"
            )


def load_grader(settings: Mapping[str, Any], key: str, device: Any = "cpu") -> Grader:
    """The reward of such settings, of everything that is known of a response. What cannot be scored is NaN.

    Raises:
        ValueError: as of `load_reward`.
    """
    check_grader(settings, key)
    chosen = {**_OF_A_GRADER, **settings}
    if chosen["function"] is None:
        scores = _RewardModel(chosen, f"{key}.model={chosen['model']}", device)
        return lambda sampled: [Graded(score) for score in scores(sampled.prompts, sampled.responses)]
    told = f"{key}.function={chosen['function']}"
    function, options = dotted_function(chosen["function"], told), dict(chosen["options"] or {})
    asked = [name for name in _ASKED if name in inspect.signature(function).parameters]

    def graded(sampled: Sampled) -> list[Graded]:
        more = {name: getattr(sampled, name) for name in asked}
        try:
            found = list(function(list(sampled.prompts), list(sampled.responses), **more, **options))
        except ValueError as error:
            raise ValueError(f"{told}: {error}") from error
        if len(found) != len(sampled.responses):
            raise ValueError(f"{told}: must give one for each of {len(sampled.responses)} responses, got {len(found)}")
        return [value if isinstance(value, Graded) else _plain(value, told) for value in found]

    return graded


def _plain(value: Any, told: str) -> Graded:
    score = math.nan if value is None else float(value)
    if math.isinf(score):
        raise ValueError(f"{told}: must be finite, got {score}")
    return Graded(score)


def _parameters(path: str) -> list[str] | None:
    """The options of a function, as its source names them; None: it is not in Python, or takes any."""
    source = _source(path.rpartition(".")[0])
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))) if source else ():
        if isinstance(node, ast.FunctionDef) and node.name == path.rpartition(".")[2] and node.args.kwarg is None:
            named = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)][2:]
            return [name for name in named if name not in _ASKED]
    return None


def check_reward(settings: Mapping[str, Any], key: str = "method.reward") -> None:
    """Check settings of a reward without importing or loading anything.

    Args:
        settings: `{function: module.function}`, or `{model: hub id or folder}` with, if wanted, `batch_size` (responses
            at a time) and `chat` (the prompt as a user's message and the response as the answer to it, in the reward
            model's own chat template; else one text, the response right after the prompt).
        key: where the settings stand, for the messages.

    Raises:
        ValueError: one line that names key, value and rule.
    """
    for name, value in settings.items():
        if name not in _DEFAULTS:
            raise ValueError(f"{key}.{name}={value}: unknown key; a reward has {', '.join(_DEFAULTS)}")
    function, model = settings.get("function"), settings.get("model")
    if (function is None) == (model is None):
        raise ValueError(f"{key}={dict(settings)}: must name either a function or a model")
    size, chat = settings.get("batch_size", 1), settings.get("chat", False)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{key}.batch_size={size}: must be a whole number >= 1")
    if not isinstance(chat, bool):
        raise ValueError(f"{key}.chat={chat}: must be true or false")
    if function is not None:
        check_function(str(function), f"{key}.function={function}")
    elif not Path(str(model)).is_dir() and not _HUB_ID.fullmatch(str(model)):
        raise ValueError(f"{key}.model={model}: neither a hub id nor an existing folder")


def check_function(path: str, told: str) -> None:
    """A function can be found by its dotted path, without importing it.

    Raises:
        ValueError: it cannot; begins with `told`.
    """
    module, _, name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        raise ValueError(f"{told}: must be the dotted path of a function (module.function)")
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise ValueError(f"{told}: there is no module {top}")
    source = _source(module)
    if source is None:
        if rest and spec.submodule_search_locations:
            raise ValueError(f"{told}: there is no module {module}")
        return  # not in Python: only importing it tells
    if name not in _names(ast.parse(source.read_text(encoding="utf-8"))):
        raise ValueError(f"{told}: the module has no {name}")


def _source(module: str) -> Path | None:
    """The file of a module, found without importing it; None: it is not in Python, or not there."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    places = [Path(root).joinpath(*rest) for root in spec.submodule_search_locations or []]
    sources = [found for at in places for found in (at.with_name(at.name + ".py"), at / "__init__.py")]
    return next((path for path in sources if path.is_file()), None)


def _names(tree: ast.Module) -> set[str]:
    """What a module defines, assigns or imports at its top level."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def load_reward(settings: Mapping[str, Any], key: str = "method.reward", device: Any = "cpu") -> Reward:
    """The reward that settings describe (see `check_reward`); `device`: where a reward model computes.

    Raises:
        ValueError: the settings are wrong, or the function or model cannot be loaded. The reward itself raises it for a
            wrong number of rewards and for one that is not finite (it names the first prompt), in one line each.
    """
    check_reward(settings, key)
    chosen = {**_DEFAULTS, **settings}
    if chosen["function"] is not None:
        told = f"{key}.function={chosen['function']}"
        return _checked(dotted_function(chosen["function"], told), told)
    told = f"{key}.model={chosen['model']}"
    return _checked(_RewardModel(chosen, told, device), told)


def check_model(settings: Mapping[str, Any], key: str) -> None:
    """What a reward model's configuration and tokenizer tell, before hours of training; its weights are not read.

    Raises:
        ValueError: they cannot be loaded, or do not fit.
    """
    _tokenizer_and_outputs({**_DEFAULTS, **settings}, f"{key}.model={settings['model']}")


def _tokenizer_and_outputs(settings: Mapping[str, Any], told: str) -> Any:
    """The tokenizer of a reward model, once it is known that its model has one output."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(settings["model"])
        outputs = AutoConfig.from_pretrained(settings["model"]).num_labels
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{told}: cannot be loaded: {_first_line(error)}") from error
    if outputs != 1:
        raise ValueError(f"{told}: must have one output, got {outputs}")
    if settings["chat"] and tokenizer.chat_template is None:
        raise ValueError(f"{told}: has no chat template, which chat: true needs")
    return tokenizer


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def dotted_function(path: str, told: str) -> Callable[..., Any]:
    """The function of a dotted path.

    Raises:
        ValueError: there is none; begins with `told`.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{told}: cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"{told}: must be a function, got {type(found).__name__}")
    return found


def _checked(reward: Callable[..., Any], told: str) -> Reward:
    def rewards(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        try:
            found = [float(value) for value in reward(list(prompts), list(responses))]
        except ValueError as error:
            raise ValueError(f"{told}: {error}") from error
        if len(found) != len(responses):
            raise ValueError(f"{told}: must give a number for each of {len(responses)} responses, got {len(found)}")
        wrong = next((place for place, value in enumerate(found) if not math.isfinite(value)), None)
        if wrong is not None:
            raise ValueError(f"{told}: must be finite, got {found[wrong]} for prompt {prompts[wrong]!r}")
        return found

    return rewards


class _RewardModel:
    """A sequence classifier with one output, in evaluation mode."""

    def __init__(self, settings: Mapping[str, Any], told: str, device: Any) -> None:
        from transformers import AutoModelForSequenceClassification

        self._batch_size, self._chat = settings["batch_size"], settings["chat"]
        self._tokenizer: Any = _tokenizer_and_outputs(settings, told)
        try:
            loaded, told_of_weights = AutoModelForSequenceClassification.from_pretrained(
                settings["model"], output_loading_info=True, use_safetensors=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{told}: cannot be loaded: {_first_line(error)}") from error
        if told_of_weights["missing_keys"]:
            missing = ", ".join(sorted(told_of_weights["missing_keys"])[:3])
            raise ValueError(f"{told}: has no weights for {missing}; it was not trained to give rewards")
        if self._tokenizer.pad_token is None:
            # By padding it finds the last token, so that EOS cannot be it; one text at a time needs none.
            self._batch_size = 1
        self._tokenizer.padding_side = "right"
        loaded.config.pad_token_id = self._tokenizer.pad_token_id
        self._longest, self._told = getattr(loaded.config, "max_position_embeddings", None), told
        self._model: Any = loaded.to(device).eval()
        self._device = device

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        import torch

        texts = [self._text(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
        found: list[float] = []
        with torch.no_grad():
            for begin in range(0, len(texts), self._batch_size):
                encoded = self._tokenizer(
                    texts[begin : begin + self._batch_size],
                    padding=self._batch_size > 1,
                    return_tensors="pt",
                    add_special_tokens=not self._chat,  # the template has them
                )
                tokens = encoded["input_ids"].shape[1]
                if self._longest is not None and tokens > self._longest:
                    raise ValueError(
                        f"{self._told}: takes at most {self._longest} tokens, a prompt with its response has {tokens}"
                    )
                inputs = {name: encoded[name].to(self._device) for name in ("input_ids", "attention_mask")}
                found += self._model(**inputs).logits[:, 0].float().tolist()
        return found

    def _text(self, prompt: str, response: str) -> str:
        if not self._chat:
            return prompt + response
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False))
