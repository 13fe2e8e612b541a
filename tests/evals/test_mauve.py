"""MAUVE from embeddings: the authors' package, the estimators without clusters, embeddings and their cache."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evals import frontier, mauve
from evals.byte_tokenizer import byte_tokenizer


def embedded(seed: int, shift: float = 0.0, number: int = 200, width: int = 6) -> np.ndarray:
    """Directions around one that `shift` moves."""
    centre = np.zeros(width)
    centre[:2] = 2.0, shift
    return centre + np.random.default_rng(seed).standard_normal((number, width))


P, NEAR, FAR = embedded(0), embedded(1), embedded(2, 4.0)


# By clusters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [NEAR, FAR])
def test_scores_are_those_of_the_authors_package(q: np.ndarray) -> None:
    from mauve import compute_mauve

    theirs = compute_mauve(p_features=P, q_features=q)
    ours = mauve.quantised(P, q)
    assert ours.p_counts_K is not None and ours.q_counts_K is not None
    assert len(ours.p_counts_K) == theirs.num_buckets == 20
    np.testing.assert_array_equal(ours.p_counts_K, np.rint(theirs.p_hist * len(P)))
    assert ours.mauve == pytest.approx(theirs.mauve, abs=1e-9)
    assert ours.mauve_star == pytest.approx(theirs.mauve_star, abs=1e-9)
    assert ours.frontier_integral == pytest.approx(theirs.frontier_integral, abs=1e-9)
    assert ours.frontier_integral_star == pytest.approx(theirs.frontier_integral_star, abs=1e-9)
    # Theirs lists the end points first and last as well, in the same order.
    np.testing.assert_allclose(ours.curve, theirs.divergence_curve, atol=1e-12)


def test_equal_sets_score_one_and_distant_ones_less() -> None:
    same = mauve.quantised(P, P, clusters=10)
    assert same.mauve == pytest.approx(1) and same.frontier_integral == 0
    near, far = (mauve.quantised(P, q, clusters=10) for q in (NEAR, FAR))
    assert far.mauve < 0.3 < 0.8 < near.mauve and near.frontier_integral < far.frontier_integral


def test_scores_of_counts() -> None:
    found = mauve.of_counts([5, 5, 0], [0, 5, 5])
    assert found.mauve == pytest.approx(0.092572, abs=6e-7) and found.frontier_integral == pytest.approx(0.5)
    assert found.mauve_star == pytest.approx(0.301060, abs=6e-7)
    assert found.frontier_integral_star == pytest.approx(0.292375, abs=6e-7)


def test_components_are_of_scaled_rows_and_reach_the_share() -> None:
    p, q = mauve.principal_components(P, FAR, 0.9)
    rows = np.concatenate([FAR, P])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    centred = rows - rows.mean(0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    kept = int(np.searchsorted(np.cumsum(variances) / variances.sum(), 0.9)) + 1
    assert p.shape == (200, kept) and q.shape == (200, kept)
    assert np.concatenate([q, p]).var(0).sum() == pytest.approx(variances[:kept].sum() / len(rows))


# Without clusters --------------------------------------------------------------------------------------------


def gaussians(shift: float, number: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """N(0, I) and N(shift, I) in two dimensions, the shift in the first."""
    random = np.random.default_rng(3)
    p, q = random.standard_normal((2, number, 2))
    return p, q + np.array([shift, 0])


def true_scores(shift: float) -> tuple[float, float]:
    """Of these Gaussians, on a fine grid of the one direction in which they differ."""
    x = np.linspace(-10, 10 + shift, 4001)
    p, q = (np.exp(-((x - centre) ** 2) / 2) for centre in (0.0, shift))
    return frontier.mauve(p / p.sum(), q / q.sum()), frontier.frontier_integral(p / p.sum(), q / q.sum())


ESTIMATORS = {
    "neighbours": lambda p, q: mauve.neighbour_logratios(p, q),
    "classifier": lambda p, q: mauve.classifier_logratios(p, q),
    "gaussian": lambda p, q: mauve.gaussian_logratios(p, q),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shift", [0.5, 1.5])
def test_estimators_find_the_frontier_of_two_gaussians(estimator: str, shift: float) -> None:
    score, integral = true_scores(shift)
    ratios = ESTIMATORS[estimator](*gaussians(shift))
    # The sample's own error; neighbours also see noise in every ratio, which looks like a difference.
    allowed = 0.15 if estimator == "neighbours" else 0.035
    assert frontier.area(frontier.frontier_of_ratios(*ratios)) == pytest.approx(score, abs=allowed)
    assert frontier.frontier_integral_of_ratios(*ratios) == pytest.approx(integral, abs=allowed / 2)


def test_classifier_and_gaussians_find_the_ratio_itself() -> None:
    """log p/q = shift^2 / 2 - shift x; unequal numbers of samples do not change it."""
    p, q = gaussians(1.5)
    of_p, of_q = mauve.classifier_logratios(p[:1000], q)
    np.testing.assert_allclose(of_p, 1.5**2 / 2 - 1.5 * p[:1000, 0], atol=0.6)
    assert len(of_q) == 2000
    drawn, _ = mauve.gaussian_logratios(p, q, draws=4000)
    assert drawn.mean() == pytest.approx(1.5**2 / 2, abs=0.1)  # KL(p || q)


def test_neighbours_by_brute_force() -> None:
    p, q = gaussians(1.0, number=30)
    p = p[:20]
    of_p, of_q = mauve.neighbour_logratios(p, q, neighbours=7)

    def near_of_p(sample: np.ndarray) -> int:
        distances = [(np.linalg.norm(sample - other), mine) for mine, side in ((1, p), (0, q)) for other in side]
        return sum(mine for _, mine in sorted(distances)[1:8])  # the nearest is the sample

    for i in (0, 4):
        count = near_of_p(p[i])
        assert of_p[i] == pytest.approx(math.log((count + 0.5) / 19 / ((7 - count + 0.5) / 30)))
        count = near_of_p(q[i])
        assert of_q[i] == pytest.approx(math.log((count + 0.5) / 20 / ((7 - count + 0.5) / 29)))


@pytest.mark.parametrize("estimator", ["neighbours", "classifier", "gaussian"])
def test_every_estimator_tells_near_from_far(estimator: str) -> None:
    near, far = (mauve.of_ratios(P, q, estimator) for q in (NEAR, FAR))  # type: ignore[arg-type]
    assert 0 < far.mauve < near.mauve <= 1 and 0 <= near.frontier_integral < far.frontier_integral <= 1
    assert near.mauve_star is None and near.curve.shape == (27, 2)


# Embeddings --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_does_not_change_an_embedding(model: LlamaForCausalLM, pooling: str) -> None:
    texts = ["a", "a longer text", "bc"]
    tokenizer = byte_tokenizer()
    together = mauve.hidden_states(model, tokenizer, texts, pooling=pooling)  # type: ignore[arg-type]
    for text, found in zip(texts, together, strict=True):
        tokens = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            hidden = model(tokens, output_hidden_states=True).hidden_states[-1][0]
        expected = hidden[-1] if pooling == "last" else hidden.mean(0)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_long_texts_are_cut(model: LlamaForCausalLM) -> None:
    tokenizer = byte_tokenizer()
    cut = mauve.hidden_states(model, tokenizer, ["abcdef", "abcxyz"], max_length=4)  # BOS and three bytes
    np.testing.assert_allclose(cut[0], cut[1], atol=1e-6)


def test_characters_tell_alphabets_apart() -> None:
    random = np.random.default_rng(0)

    def texts(alphabet: str) -> list[str]:
        return ["".join(random.choice(list(alphabet), 20)) for _ in range(60)]

    same = mauve.quantised(*mauve.term_features(texts("abc"), texts("abc"), dimensions=5), clusters=5)
    other = mauve.quantised(*mauve.term_features(texts("abc"), texts("abd"), dimensions=5), clusters=5)
    assert other.mauve < 0.05 and same.mauve > 0.7


def test_embeddings_are_made_once_for_texts_and_what_decides(tmp_path: Path) -> None:
    made = []

    def make(texts) -> list[list[float]]:
        made.append(len(texts))
        return [[len(text), 1.0] for text in texts]

    first = mauve.cached_features(tmp_path, {"model": "a"}, ["x", "yy"], make)
    again = mauve.cached_features(tmp_path, {"model": "a"}, ["x", "yy"], make)
    np.testing.assert_array_equal(first, again)
    assert first.tolist() == [[1, 1], [2, 1]] and made == [2]
    mauve.cached_features(tmp_path, {"model": "b"}, ["x", "yy"], make)
    mauve.cached_features(tmp_path, {"model": "a"}, ["yy", "x"], make)
    assert made == [2, 2, 2]
    for path in tmp_path.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:60])  # cut off
    assert mauve.cached_features(tmp_path, {"model": "a"}, ["x", "yy"], make).tolist() == first.tolist()
    assert made == [2, 2, 2, 2] and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: mauve.quantised(P, P[:, :2]), "embeddings must be two or more for P and for Q, all of one width"),
        (lambda: mauve.quantised(P, P[:1]), "embeddings must be two or more for P and for Q"),
        (lambda: mauve.quantised(P, P * math.nan), "embeddings must be finite numbers"),
        (lambda: mauve.quantised(np.ones((5, 2)), np.ones((5, 2))), "embeddings must differ"),
        (lambda: mauve.quantised(P, P, clusters=1), "clusters=1: must be from 2 to the number of texts, 400"),
        (lambda: mauve.quantised(P, P, clusters=401), "clusters=401: must be from 2 to the number of texts, 400"),
        (lambda: mauve.quantised(P, NEAR, variance=2.0), "variance=2.0: must be above 0 and below 1"),
        (lambda: mauve.quantised(P, NEAR, restarts=0), "restarts=0: must be at least 1"),
        (lambda: mauve.of_counts([0, 0], [1, 2]), "counts must hold at least one text of each set"),
        (lambda: mauve.of_ratios(P, P, "trees"), "estimator=trees: must be neighbours, classifier or gaussian"),
        (lambda: mauve.principal_components(P, P, 1.0), "variance=1.0: must be above 0 and below 1"),
        (lambda: mauve.neighbour_logratios(P[:4], P[:5], neighbours=9), "neighbours=9: must be from 1 to less than"),
        (lambda: mauve.classifier_logratios(P[:3], P, folds=5), "folds=5: must be from 2 to the number of texts, 3"),
        (lambda: mauve.gaussian_logratios(P, P, draws=0), "draws=0: must be at least 1"),
        (lambda: mauve.term_features([], ["a"]), "texts must be at least one of each set"),
        (lambda: mauve.term_features(["a"], ["b"]), "dimensions=50: must be fewer than the different strings"),
        (lambda: mauve.hidden_states(None, byte_tokenizer(), ["a", ""]), "texts must be at least one, each with"),
        (
            lambda: mauve.hidden_states(None, byte_tokenizer(), ["a"], pooling="max"),
            "pooling=max: must be last or mean",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_a_set_whose_texts_are_all_the_same() -> None:
    """As greedy decoding writes them: far from the others, and no error."""
    same = np.full((50, P.shape[1]), 3.0)
    found = mauve.of_ratios(P, same, "gaussian")
    assert 0 < found.mauve < 0.05 and found.frontier_integral > 0.9


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ValueError, match=r"pip install 'retable\[mauve\]'"):
        mauve.quantised(P, NEAR)


def test_a_cache_needs_a_row_for_each_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="features must be a row for each of 2 texts"):
        mauve.cached_features(tmp_path, {}, ["a", "b"], lambda texts: [[1.0]])
