"""Linear probe: what is trained moves, all else stays bit for bit; a tied head gets a weight of its own."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM

from methods.finetune.linear_probe import LinearProbe, LinearProbeConfig, chosen_names, untie
from methods.forward import Forward
from methods.kinds.causal import Causal
from runners import processes
from tests.curves import Curve
from tests.models import batches_of, random_examples, tiny_llama

LAST_MLP = {f"model.layers.1.mlp.{name}_proj.weight" for name in ("up", "down", "gate")}


@pytest.fixture(scope="module", autouse=True)
def joined(tmp_path_factory):
    processes.join(tmp_path_factory.mktemp("run") / "run")


def shaped(model, train=None):
    method = LinearProbe(LinearProbeConfig(train=train))
    method.shape(model)
    return method


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def a_few_steps(model, steps=3):
    """Plain AdamW on what is trainable."""
    batches = batches_of(random_examples(), batch_size=6, micro=6)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    method = LinearProbe(LinearProbeConfig())
    for step in range(steps):
        for batch in batches.of_step(step):
            method.loss(Forward(Causal(), {"policy": model}, batch)).sum.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_only_the_head_is_trained_in_the_real_loop(tmp_path):
    model = tiny_llama()
    before = weights_of(model)
    curve = Curve(tmp_path, model=model, start_method=shaped(model), steps=4)
    assert moved(before, curve.weights) == {"lm_head.weight"}
    assert curve.losses[-1] != curve.losses[0]


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_only_the_head_is_trained_when_sharded(tmp_path, zero_stage):
    from runners.schema import Engine

    model = tiny_llama()
    before = weights_of(model)
    curve = Curve(tmp_path, model=model, start_method=shaped(model), steps=2, engine=Engine(zero_stage=zero_stage))
    assert moved(before, curve.weights) == {"lm_head.weight"}


def test_tied_head_gets_a_weight_of_its_own(tmp_path):
    """Same output at first; then the head moves and the embeddings stay, also in the real loop."""
    model, (batch,) = tiny_llama(tie_word_embeddings=True), batches_of(random_examples()).of_step(0)
    before = Causal().token_logps(model, batch)
    embeddings = model.model.embed_tokens.weight
    method = shaped(model)
    assert model.lm_head.weight is not embeddings and model.model.embed_tokens.weight is embeddings
    assert torch.equal(Causal().token_logps(model, batch), before)
    assert trainable(model) == {"lm_head.weight"} and not model.config.tie_word_embeddings
    start = weights_of(model)
    curve = Curve(tmp_path, model=model, start_method=method, steps=2)
    assert moved(start, curve.weights) == {"lm_head.weight"}


def test_untied_model_loads_as_it_was_saved(tmp_path):
    """From its own weights, and from weights that are handed to `save_pretrained`, as the end of a run does."""
    model = tiny_llama(tie_word_embeddings=True)
    shaped(model)
    a_few_steps(model)
    (batch,) = batches_of(random_examples()).of_step(0)
    expected = Causal().token_logps(model.eval(), batch)
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    for number, given in enumerate([None, state]):
        model.save_pretrained(tmp_path / str(number), state_dict=given and dict(given), safe_serialization=True)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(number)).eval()
        assert not loaded.config.tie_word_embeddings
        assert not moved(state, loaded.state_dict())
        assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)
        assert torch.equal(Causal().token_logps(loaded, batch), expected)


def test_untied_model_stays_untied_when_its_weights_are_tied_again():
    """`transformers` ties weights again when embeddings are resized or a model is initialised."""
    model = tiny_llama(tie_word_embeddings=True)
    shaped(model)
    model.tie_weights()
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert model.all_tied_weights_keys == {}


def test_gemma_2_is_untied_too():
    """One of the papers' models: tied by default."""
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
        )
    )  # fmt: skip
    assert model.lm_head.weight is model.model.embed_tokens.weight
    shaped(model)
    assert trainable(model) == {"lm_head.weight"}


@pytest.mark.parametrize(
    ("train", "tied", "expected"),
    [
        ([r"lm_head\.weight"], False, {"lm_head.weight"}),
        ([".*norm.*", "lm_head.*"], False, "norms and head"),
        ([r"model\.layers\.1\.mlp\..*"], False, LAST_MLP),
        ([r"model\.layers\.1\.mlp\..*"], True, LAST_MLP),
        ([r"lm_head\.weight"], True, {"lm_head.weight"}),
        ([r"model\.embed_tokens\.weight"], True, {"model.embed_tokens.weight"}),
    ],
)  # fmt: skip
def test_what_patterns_choose(train, tied, expected):
    model = tiny_llama(tie_word_embeddings=tied)
    if expected == "norms and head":
        expected = {name for name, _ in model.named_parameters() if "norm" in name or name == "lm_head.weight"}
        assert len(expected) == 6
    shaped(model, train)
    assert trainable(model) == expected
    before = weights_of(model)
    a_few_steps(model)
    assert moved(before, weights_of(model)) == expected


def test_tied_weight_stays_one_where_both_ends_are_trained_or_neither():
    for train in ([".*"], [r"model\.embed_tokens\.weight", r"lm_head\.weight"], [".*norm.*"]):
        model = tiny_llama(tie_word_embeddings=True)
        shaped(model, train)
        assert model.lm_head.weight is model.model.embed_tokens.weight and model.config.tie_word_embeddings


def test_all_parameters_is_sft():
    model = tiny_llama()
    shaped(model, [".*"])
    assert trainable(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("pattern", ["lm_head", "layers.1", "head\\.weight", "nothing"])
def test_pattern_that_matches_nothing_is_told_with_some_names(pattern):
    with pytest.raises(ValueError, match=r"^method\.train=.*: must match the whole name .* lm_head\.weight$") as error:
        shaped(tiny_llama(), [r"lm_head\.weight", pattern])
    assert f"method.train={pattern}:" in str(error.value) and "model.embed_tokens.weight" in str(error.value)


def test_names_keep_their_order_and_come_once():
    assert chosen_names(["a.weight", "b.bias", "b.weight"], ["b.*", ".*weight"]) == ["a.weight", "b.bias", "b.weight"]


@pytest.mark.parametrize("train", [[], ["("]])
def test_patterns_that_make_no_sense_are_refused(train):
    with pytest.raises(ValidationError, match=r"method\.train must hold"):
        TypeAdapter(LinearProbeConfig).validate_python({"train": train})


def test_untying_leaves_the_numbers_alone():
    model = tiny_llama(tie_word_embeddings=True)
    before = weights_of(model)
    untie(model)
    assert not moved(before, weights_of(model))


def test_lora_is_excluded():
    assert set(LinearProbe.excludes) == {"adapter=lora"}
