"""Load models and tokenizers: from the hub or a folder, from another run, or with random weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

import methods.kinds.small_resnet  # noqa: F401  it makes its type known to transformers
from evals.byte_tokenizer import byte_tokenizer
from methods.kinds.image import Image
from runners.errors import UserError, nearest

# Its bars for reading and writing weights end up in the middle of ours.
transformers_logging.disable_progress_bar()


def load_tokenizer(settings: Mapping[str, Any], parent: Path | None) -> PreTrainedTokenizerFast:
    """The tokenizer of `model:` settings, with a padding token (EOS where it has none of its own).

    Args:
        settings: `model:`.
        parent: the folder of the run that `model.from_run` names.

    Raises:
        UserError: it cannot be loaded, or is not a fast one (offsets into the text are needed).
    """
    if settings["tokenizer"] == "bytes":
        return byte_tokenizer()
    source = str(parent / "model") if parent else settings["tokenizer"] or settings["id"]
    revision = settings["revision"] if source == settings["id"] else None
    loader = PreTrainedTokenizerFast if _is_generic(Path(source)) else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(source, revision=revision, trust_remote_code=settings["trust_remote_code"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model.tokenizer={source}: cannot be loaded: {_first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(f"model.tokenizer={source}: must be a fast tokenizer (from the `tokenizers` library)")
    if tokenizer.eos_token_id is None:
        raise UserError(f"model.tokenizer={source}: must define an EOS token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _is_generic(folder: Path) -> bool:
    """Whether a tokenizer was saved that is of no model's own class; `AutoTokenizer` would go by the model's type."""
    try:
        noted = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return noted.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")


def load_model(
    settings: Mapping[str, Any], parent: Path | None, vocabulary: int, dtype: str | None = None
) -> nn.Module:
    """The model of `model:` settings on the CPU, in training mode.

    Args:
        settings: `model:`.
        parent: the folder of the run that `model.from_run` names.
        vocabulary: tokens of the tokenizer; the model must hold as many.
        dtype: overrides `model.dtype`.

    Raises:
        UserError: it cannot be loaded or built, or does not fit the tokenizer.
    """
    options = {
        "attn_implementation": settings["attention"],
        "dtype": getattr(torch, dtype or settings["dtype"]),
    }
    if settings["architecture"] is not None:
        config = architecture(settings)
        if config.vocab_size < vocabulary:
            raise UserError(f"model.architecture.vocab_size={config.vocab_size}: the tokenizer has {vocabulary} tokens")
        model = _random(AutoModelForCausalLM, config, settings["init_seed"], options)
    else:
        model = _stored(AutoModelForCausalLM, settings, parent, options)
    if model.get_input_embeddings().num_embeddings < vocabulary:
        raise UserError(
            f"model.tokenizer: has {vocabulary} tokens, the model only {model.get_input_embeddings().num_embeddings}"
        )
    assert isinstance(model, nn.Module)
    return model.train()


def load_classifier(settings: Mapping[str, Any], parent: Path | None, dtype: str | None = None) -> nn.Module:
    """The image classifier of `model:` settings, as `load_model`; with a new head where `model.classes` asks for one.

    Raises:
        UserError: it cannot be loaded or built.
    """
    options = {"dtype": getattr(torch, dtype or settings["dtype"])}
    if settings["architecture"] is not None:
        model = _random(AutoModelForImageClassification, architecture(settings), settings["init_seed"], options)
    else:
        model = _stored(AutoModelForImageClassification, settings, parent, options)
    if settings["classes"] is not None:
        head = Image.head(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings["init_seed"])
            new = nn.Linear(head.in_features, settings["classes"], dtype=head.weight.dtype)
        name = next(name for name, module in model.named_modules() if module is head)
        model.set_submodule(name, new)
        model.config.num_labels = settings["classes"]
    assert isinstance(model, nn.Module)
    return model.train()


def _stored(loader: Any, settings: Mapping[str, Any], parent: Path | None, options: dict[str, Any]) -> Any:
    """A model of the hub, of a folder or of another run."""
    source = str(parent / "model") if parent else settings["id"]
    try:
        model = loader.from_pretrained(
            source,
            revision=settings["revision"] if not parent else None,
            trust_remote_code=settings["trust_remote_code"],
            use_safetensors=True,
            **options,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"model.id={source}: cannot be loaded: {_first_line(error)}") from error
    _check_type(model, settings, source)
    return model


def _check_type(model: Any, settings: Mapping[str, Any], source: str) -> None:
    """What is said of a model of the hub is true of it, so that `debug=random` tries out the right architecture."""
    said = settings.get("model_type")
    if said is not None and settings["id"] is not None and model.config.model_type != said:
        raise UserError(f"model.model_type={said}: must be what {source} is, got {model.config.model_type} (or null)")


def architecture(settings: Mapping[str, Any]) -> Any:
    """The `transformers` configuration that `model.architecture` describes.

    Raises:
        UserError: unknown model type or key, or values that its class refuses.
    """
    arguments = {key: value for key, value in settings["architecture"].items() if key != "model_type"}
    model_type = settings["architecture"]["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise UserError(
            f"model.architecture.model_type={model_type}: transformers knows no such type"
            f"{nearest(model_type, CONFIG_MAPPING.keys())}"
        )
    known = {**AutoConfig.for_model(model_type).to_dict(), "num_labels": None}  # a property of every configuration
    heads = arguments.get("num_attention_heads")
    if "num_key_value_heads" not in known and arguments.get("num_key_value_heads", heads) == heads:
        arguments.pop("num_key_value_heads", None)  # as many as heads is what a type without the key has
    for key, value in arguments.items():
        if key not in known:
            raise UserError(
                f"model.architecture.{key}={value}: a {model_type} configuration has no such key{nearest(key, known)}"
            )
    try:
        return AutoConfig.for_model(model_type, **arguments)
    except Exception as error:  # transformers' validators raise types of their own
        rule = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise UserError(f"model.architecture: {rule}") from error


def _random(loader: Any, config: Any, seed: int, options: dict[str, Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return loader.from_config(config, **options)


def context_length(settings: Mapping[str, Any], parent: Path | None) -> int:
    """Tokens that the model of `model:` settings takes at most, from its configuration alone."""
    if settings["architecture"] is not None:
        config = architecture(settings)
    else:
        source = str(parent / "model") if parent else settings["id"]
        revision = settings["revision"] if not parent else None
        try:
            config = AutoConfig.from_pretrained(
                source, revision=revision, trust_remote_code=settings["trust_remote_code"]
            )
        except (OSError, ValueError) as error:
            raise UserError(f"model.id={source}: cannot be loaded: {_first_line(error)}") from error
    return int(getattr(config, "max_position_embeddings", None) or 2048)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
