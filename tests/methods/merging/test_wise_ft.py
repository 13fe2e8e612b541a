"""WiSE-FT: exact at its ends, linear in between; what is no weight is not averaged."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from methods.merger import between, check_alike
from methods.merging.wise_ft import WiseFt, WiseFtConfig, interpolate
from tests.models import batches_of, random_examples, tiny_llama

AWKWARD = torch.tensor([0.0, -0.0, 1e-38, 3.0, -1e30, 0.1])


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


class Run:
    """A context with a finished run."""

    def __init__(self, start, tuned):
        self.start, self.tuned, self.saved = start, tuned, None

    def start_weights(self):
        return dict(self.start)

    def run_weights(self, number=0):
        return dict(self.tuned)

    def save_weights(self, weights):
        self.saved = weights


def test_known_answer():
    """alpha is the weight of the fine-tuned model."""
    found = interpolate({"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([1.0, 8.0])}, 0.25)
    assert found["w"].tolist() == [0.25, 5.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_ends_are_the_two_models_bit_for_bit(dtype):
    start, tuned = AWKWARD.to(dtype), AWKWARD.flip(0).to(dtype)
    for alpha, expected in ((0.0, start), (1.0, tuned)):
        assert same_bits(interpolate({"w": start.clone()}, {"w": tuned.clone()}, alpha)["w"], expected)


def test_a_run_at_both_ends_and_what_it_saves():
    start, tuned = weights_of(tiny_llama(0)), weights_of(tiny_llama(1))
    for alpha, expected in ((0.0, start), (1.0, tuned)):
        context = Run(start, tuned)
        assert WiseFt(WiseFtConfig(alpha=alpha)).run(context) == {}
        assert context.saved.keys() == expected.keys()
        assert all(same_bits(context.saved[name], expected[name]) for name in expected)
    assert WiseFt.merges == "run"


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_two_equal_models_are_that_model(alpha):
    for dtype in (torch.float32, torch.bfloat16):
        weights = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
        assert same_bits(interpolate({"w": weights.clone()}, {"w": weights.clone()}, alpha)["w"], weights)


def test_predictions_of_a_linear_model_interpolate():
    torch.manual_seed(0)
    models = [nn.Linear(6, 3).double() for _ in range(3)]
    merged = interpolate(weights_of(models[0]), weights_of(models[1]), 0.3)
    models[2].load_state_dict(merged)
    x = torch.randn(10, 6, dtype=torch.float64)
    torch.testing.assert_close(models[2](x), 0.7 * models[0](x) + 0.3 * models[1](x), rtol=1e-12, atol=1e-12)


def test_half_precision_is_averaged_in_fp32_and_rounded_once():
    start, tuned = torch.tensor([256.0], dtype=torch.bfloat16), torch.tensor([258.0], dtype=torch.bfloat16)
    found = interpolate({"w": start}, {"w": tuned}, 0.75)["w"]
    assert found.dtype == torch.bfloat16
    assert same_bits(found, torch.tensor([257.5]).bfloat16())
    assert between(start, tuned, 0.75).item() == 257.5


def test_what_is_not_a_float_is_the_fine_tuned_models():
    start = {"steps": torch.tensor(3), "mask": torch.tensor([True]), "w": torch.tensor([1.0])}
    tuned = {"steps": torch.tensor(8), "mask": torch.tensor([False]), "w": torch.tensor([2.0])}
    for alpha in (0.0, 0.5, 1.0):
        found = interpolate(dict(start), dict(tuned), alpha)
        assert found["steps"].item() == 8 and found["steps"].dtype == torch.int64
        assert found["mask"].tolist() == [False]


def test_batch_norm_counter_is_not_averaged():
    models = [nn.BatchNorm1d(4), nn.BatchNorm1d(4)]
    for _ in range(5):
        models[1](torch.randn(8, 4))
    merged = interpolate(weights_of(models[0]), weights_of(models[1]), 0.5)
    assert merged["num_batches_tracked"].item() == 5
    torch.testing.assert_close(merged["running_mean"], models[1].running_mean / 2)


def test_a_tensor_on_one_side_is_refused_by_name():
    probe, tied = {"e": torch.zeros(2), "lm_head.weight": torch.zeros(2)}, {"e": torch.zeros(2)}
    with pytest.raises(
        ValueError, match=r"the fine-tuned model has lm_head\.weight, the model that training .* has not"
    ):
        interpolate(dict(tied), dict(probe), 0.5)
    with pytest.raises(
        ValueError, match=r"the model that training .* has lm_head\.weight, the fine-tuned model has not"
    ):
        interpolate(dict(probe), dict(tied), 0.5)


def test_another_shape_is_refused_by_name():
    with pytest.raises(ValueError, match=r"same shape; e is \[2\] in the first, \[3\] in the second"):
        check_alike({"e": torch.zeros(2)}, {"e": torch.zeros(3)}, ("the first", "the second"))


def test_nothing_is_kept_of_the_start_and_inputs_stay_as_they_are():
    """At most two whole copies: a tensor of the start is let go when its mean is there."""
    start, tuned = {"a": torch.zeros(3), "b": torch.zeros(3)}, {"a": torch.ones(3), "b": torch.ones(3)}
    kept = dict(tuned)
    found = interpolate(start, tuned, 0.5)
    assert start == {} and found is tuned
    assert kept["a"].tolist() == [1, 1, 1], "made anew, not written over"


def test_merged_language_model_lies_between():
    """Also through a model with tied embeddings, whose weight has two names."""
    (batch,) = batches_of(random_examples()).of_step(0)
    start, tuned = (tiny_llama(seed, tie_word_embeddings=True) for seed in (0, 1))
    merged = interpolate(weights_of(start), weights_of(tuned), 0.5)
    model = tiny_llama(2, tie_word_embeddings=True)
    model.load_state_dict(merged)
    half = (start.lm_head.weight + tuned.lm_head.weight) / 2
    torch.testing.assert_close(model.lm_head.weight, half)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.isfinite(model(input_ids=batch.input_ids_BT).logits).all()


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_outside_is_refused(alpha):
    with pytest.raises(ValidationError):
        TypeAdapter(WiseFtConfig).validate_python({"alpha": alpha})
