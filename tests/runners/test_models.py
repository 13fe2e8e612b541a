"""What is loaded is what the configuration says it is."""

from pathlib import Path

import pytest
from transformers import AutoConfig, LlamaForCausalLM

from evals.byte_tokenizer import byte_tokenizer
from runners.errors import UserError
from runners.models import load_model, load_tokenizer
from tests.models import tiny_llama


def settings_of(folder: Path, model_type: str | None) -> dict[str, object]:
    return {
        "kind": "causal", "id": str(folder), "revision": None, "model_type": model_type, "architecture": None,
        "tokenizer": None, "dtype": "float32", "attention": "sdpa", "trust_remote_code": False,
    }  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_llama(vocab_size=259).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("model_type", ["llama", None])
def test_model_of_the_type_that_is_named_is_loaded(saved: Path, model_type: str | None) -> None:
    assert isinstance(load_model(settings_of(saved, model_type), None, 259), LlamaForCausalLM)


def test_model_of_another_type_than_named_is_refused(saved: Path) -> None:
    with pytest.raises(UserError) as error:
        load_model(settings_of(saved, "qwen3"), None, 259)
    assert str(error.value) == f"model.model_type=qwen3: must be what {saved} is, got llama (or null)"


def test_of_another_run_nothing_is_said(saved: Path) -> None:
    """`model=mini model.from_run=[...]` starts from a run with any model."""
    (saved / "model").mkdir()
    for path in [path for path in saved.iterdir() if path.is_file()]:
        path.rename(saved / "model" / path.name)
    settings = {**settings_of(saved, "qwen3"), "id": None}
    assert isinstance(load_model(settings, saved, 259), LlamaForCausalLM)


@pytest.mark.parametrize("model_type", ["llama", "olmo", "gemma2", "gemma3_text", "qwen2", "qwen3"])
def test_tokenizer_of_another_run_is_the_one_it_has_saved(tmp_path: Path, model_type: str) -> None:
    """Whatever models of its type have: for qwen2 `AutoTokenizer` would add a token, and split words its way."""
    tokenizer, text = byte_tokenizer(), "Word  12345 é\n\n→"
    for generation in ("first", "second"):
        folder = tmp_path / generation / "model"
        AutoConfig.for_model(model_type).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        tokenizer = load_tokenizer({**settings_of(tmp_path, None), "id": None}, tmp_path / generation)
        assert tokenizer.get_vocab() == byte_tokenizer().get_vocab()
        assert tokenizer(text)["input_ids"] == byte_tokenizer()(text)["input_ids"]
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 257, 258)
