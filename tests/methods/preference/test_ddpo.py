"""DDPO: the deviations step by step, the worked pair, DPO as the limit, and which pair gets which weight."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.forward import Forward
from methods.kinds.causal import Causal, frozen
from methods.preference.ddpo import Ddpo, DdpoConfig, ddpo_loss
from methods.preference.deviation import (
    combined,
    deviations,
    embedding,
    mean_distances,
    mean_one,
    ngram_vectors,
    of_responses,
    scaled,
)
from methods.preference.dpo import Dpo, DpoConfig
from tests.methods.preference.deviating import TEXTS, Context, example_pairs, vectors_of
from tests.methods.preference.toy_pair import random_sides, toy
from tests.models import batches_of, tiny_llama

HERE = "tests.methods.preference.deviating"

# Deviations --------------------------------------------------------------------------------------------------


def test_scores_become_weights_with_mean_1():
    delta = mean_one(np.array([-1, -0.2, 0.4, 1]))
    np.testing.assert_allclose(delta, [0, 0.761905, 1.333333, 1.904762], atol=5e-7)
    assert delta.mean() == pytest.approx(1.0)


def test_two_embeddings_are_combined_by_the_geometric_mean():
    g = combined(np.array([[-1, 0, 0.5, 1], [0.2, -1, 1, 0.4]]))
    np.testing.assert_allclose(g, [-1, -1, 0.732051, 0.673320], atol=5e-7)
    np.testing.assert_allclose(mean_one(g), [0, 0, 2.034493, 1.965507], atol=5e-7)


def test_one_embedding_is_itself():
    scores = np.array([-1, -0.2, 0.4, 1])
    np.testing.assert_allclose(combined(scores[None]), scores, atol=1e-15)
    np.testing.assert_allclose(combined(np.stack([scores, scores, scores])), scores, atol=1e-15)


def test_scaled_to_minus_1_and_1():
    np.testing.assert_allclose(scaled(np.array([0.2, 0.3, 0.6])), [-1, -0.5, 1])
    assert scaled(np.array([0.3, 0.3, 0.3 + 1e-15])).tolist() == [0, 0, 0]


def test_scores_that_are_all_equal():
    """As in the authors' code: 1 + g."""
    assert mean_one(np.zeros(3)).tolist() == [1, 1, 1]
    assert mean_one(np.full(3, -1.0)).tolist() == [0, 0, 0]


def test_mean_distances():
    """Two texts in the same direction, one across, one opposite."""
    vectors = np.array([[1, 0], [3, 0], [0, 2], [-1, 0]], dtype=np.float32)
    np.testing.assert_allclose(mean_distances(vectors), [(0 + 1 + 2) / 3, (0 + 1 + 2) / 3, 1, (2 + 2 + 1) / 3])
    np.testing.assert_allclose(mean_distances(np.array([[1.0, 0], [0, 0]])), [1, 1])


def test_of_one_or_two_texts_the_weight_is_1():
    generator = np.random.default_rng(0)
    assert deviations([generator.normal(size=(1, 5))]).tolist() == [1]
    for _ in range(50):
        two = deviations([generator.normal(size=(2, 5)), generator.normal(size=(2, 3))])
        np.testing.assert_allclose(two, [1, 1], rtol=1e-12)


def test_all_steps_together():
    """The odd one out gets all the weight that the least odd one loses."""
    vectors = np.array([[1.0, 0.0], [0.9, 0.2], [0.95, 0.1], [0.0, 1.0]])
    raw = mean_distances(vectors)
    v = 2 * (raw - raw.min()) / (raw.max() - raw.min()) - 1
    expected = 4 * (1 + v) / (4 + v.sum())
    found = deviations([vectors])
    np.testing.assert_allclose(found, expected)
    assert found.argmax() == 3 and found.min() == 0 and found.mean() == pytest.approx(1)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(deviations([vectors[order]]), found[order])
    np.testing.assert_allclose(deviations([10 * vectors]), found)


# Embeddings --------------------------------------------------------------------------------------------------


def test_ngrams_count_characters_and_their_neighbours():
    same, reordered, other = ngram_vectors(["abc", "cba", "xyz"])
    assert same.sum() == 3 + 2 + 1  # lengths 1, 2 and 3
    alike = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in ((same, reordered), (same, other))]
    assert 0 < alike[0] < 1 and alike[1] == 0
    assert ngram_vectors([""]).sum() == 0


def test_ngrams_are_the_same_everywhere():
    """CRC-32, not Python's hash, which every process seeds anew."""
    (vector,) = ngram_vectors(["a"])
    assert np.flatnonzero(vector).tolist() == [0xE8B7BE43 % 4096]


def test_function_by_its_dotted_path():
    assert embedding(f"{HERE}.vectors_of") is vectors_of


@pytest.mark.parametrize(
    "name", ["ngram", "no.such.module", f"{HERE}.nothing", f"{HERE}.TEXTS", "model", ".ngrams", "a."]
)
def test_what_is_no_embedding_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match=rf"^method.embedding={name}: must be [^\n]*$"):
        embedding(name)


def test_a_model_without_sentence_transformers_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match=r"method.embedding=model:a/b: needs sentence-transformers .*or give ngrams"):
        embedding("model:a/b")


def test_a_model_by_sentence_transformers(monkeypatch):
    class SentenceTransformer:
        def __init__(self, name):
            if name != "a/b":
                raise ValueError("needs code of its own\nand more")

        def encode(self, texts, convert_to_numpy, show_progress_bar):
            return vectors_of(texts)

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=SentenceTransformer))
    np.testing.assert_array_equal(embedding("model:a/b")(TEXTS), vectors_of(TEXTS))
    with pytest.raises(ValueError, match=r"^method.embedding=model:c/d: must be a model .* \(needs code of its own\)$"):
        embedding("model:c/d")


# Loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("delta", "loss"), [(0.5, 0.310479), (1.0, 0.620957), (1.5, 0.931436)])
def test_known_answers(delta, loss):
    chosen, rejected = toy()
    weights = torch.tensor([delta], dtype=torch.float64)
    assert ddpo_loss(chosen.log_ratio, rejected.log_ratio, weights, 0.1).item() == pytest.approx(loss, abs=5e-7)


def test_weights_of_1_are_dpo():
    chosen, rejected = random_sides()
    found = Ddpo(DdpoConfig(embedding="ngrams")).weighted_losses(chosen, rejected, torch.ones(7))
    assert torch.equal(found, Dpo(DpoConfig()).losses(chosen, rejected))


def test_extremes():
    ratios = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    for weights in (torch.zeros(3), torch.tensor([0.0, 2.0, 1.0])):
        loss = ddpo_loss(ratios, -ratios, weights, 0.1).sum()
        (gradient,) = torch.autograd.grad(loss, ratios)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()


# Pairs of a data set -----------------------------------------------------------------------------------------


def test_pairs_with_one_prompt_share_their_texts():
    """Prompt 5: texts a, b, c in two pairs, of which b is in both; prompt 7: one pair."""
    examples, texts = example_pairs()
    found = of_responses(examples, texts, [vectors_of])
    a, b, c = deviations([vectors_of(["a", "b", "c"])])
    np.testing.assert_allclose(found, [a, b, 1, 1, b, c])
    assert len({a, b, c}) == 3


def test_two_embeddings_of_the_texts():
    examples, texts = example_pairs()
    found = of_responses(examples, texts, [vectors_of, ngram_vectors])
    a, b, c = deviations([vectors_of(["a", "b", "c"]), ngram_vectors(["a", "b", "c"])])
    np.testing.assert_allclose(found, [a, b, 1, 1, b, c])


def test_long_data_sets_are_embedded_part_by_part(monkeypatch):
    examples, texts = example_pairs()
    whole = of_responses(examples, texts, [vectors_of])
    asked = []

    def embed(some):
        asked.append(list(some))
        return vectors_of(some)

    monkeypatch.setattr("methods.preference.deviation._AT_A_TIME", 2)
    np.testing.assert_array_equal(of_responses(examples, texts, [embed]), whole)
    assert asked == [["a", "b", "c"], ["d", "a"]]


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((2, 3)), np.full((5, 3), np.nan)])
def test_vectors_that_are_none_are_refused(wrong):
    examples, texts = example_pairs()
    with pytest.raises(ValueError, match=r"method.embedding: must give a finite vector for each of 5 texts"):
        of_responses(examples, texts, [lambda _: wrong])


def prepared(**config):
    method = Ddpo(DdpoConfig(**{"embedding": f"{HERE}.vectors_of", **config}))
    method.kind = Causal()
    return method, method.prepare(Context(tiny_llama(seed=1)))


def test_prepare_weighs_pairs_by_their_chosen_response():
    a, b, _ = deviations([vectors_of(["a", "b", "c"])])
    _, report = prepared()
    assert report["deviation/weight_mean"] == pytest.approx((a + 1 + b) / 3)
    assert report["deviation/weight_max"] == pytest.approx(max(a, 1, b))
    assert report["deviation/zero_share"] == pytest.approx(1 / 3)


def test_the_smallest_weight():
    plain, _ = prepared()
    raised, report = prepared(weight_min=0.2)
    assert report["deviation/zero_share"] == 0
    examples, _ = example_pairs()
    losses = [total(method, examples) for method in (plain, raised)]
    # The pair with weight 0 gets 0.2; the others, above it, stay.
    a, b, _ = deviations([vectors_of(["a", "b", "c"])])
    assert min(a, b) == 0 and losses[1] > losses[0]


def total(method, examples, **layout):
    model = tiny_llama()
    loss = 0.0
    for batch in batches_of(examples, batch_size=3, **layout).of_step(0):
        found = method.loss(Forward(Causal(), {"policy": model}, batch))
        assert found.metrics["weight"].item() >= 0
        loss += found.sum.item()
    return loss


@pytest.mark.parametrize("layout", [{"micro": 12}, {"micro": 1}, {"micro": 2, "packing": True}])
def test_each_pair_gets_its_own_weight_whatever_the_layout(layout):
    examples, _ = example_pairs()
    method, _ = prepared()
    a, b, _ = deviations([vectors_of(["a", "b", "c"])])
    expected = 0.0
    with frozen(model := tiny_llama()), frozen(reference := tiny_llama(seed=1)):
        for pair, delta in enumerate([a, 1, b]):
            ratios = []
            for index in (2 * pair, 2 * pair + 1):
                ids = torch.from_numpy(examples.sequence(index)).long()[None]
                begin = int(examples.targets[index])
                logps = [
                    one(input_ids=ids).logits[0, begin - 1 : -1].log_softmax(-1).gather(1, ids[0, begin:, None]).sum()
                    for one in (model, reference)
                ]
                ratios.append(logps[0] - logps[1])
            expected += delta * -torch.nn.functional.logsigmoid(0.1 * (ratios[0] - ratios[1])).item()
    assert total(method, examples, **layout) == pytest.approx(expected, rel=1e-5)


def test_state_survives_and_nothing_is_embedded_again():
    first, report = prepared()
    second = Ddpo(DdpoConfig(embedding="no.such.function"))
    second.kind = Causal()
    second.load_state_dict(first.state_dict())
    assert second.prepare(Context(tiny_llama(seed=1))) == report
    assert total(second, example_pairs()[0]) == total(first, example_pairs()[0])


def test_one_pair_for_each_prompt_is_dpo_and_says_so(caplog):
    examples, _ = example_pairs(prompts=(5, 6, 7))
    method = Ddpo(DdpoConfig(embedding="ngrams"))
    method.kind = Causal()
    report = method.prepare(Context(tiny_llama(seed=1), examples))
    assert report["deviation/weight_mean"] == report["deviation/weight_max"] == 1
    assert "all 3 pairs have the weight 1" in caplog.text


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"weight_min": -0.1}, {"weight_min": 1.1}, {"embedding": []}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(DdpoConfig).validate_python(wrong)


def test_the_paper_has_two_embeddings():
    assert [name.partition(":")[0] for name in DdpoConfig().embedding] == ["model", "model"]
    assert isinstance(TypeAdapter(DdpoConfig).validate_python({"embedding": "ngrams"}).embedding, str)
