"""Claims, judged on pairs of runs worked out by hand."""

import copy
import math

import pytest

from runners.tables.table import build_table
from tests.runners.tables.experiments import CLAIM, CONFIG, config, run, runs


def claim(results, *entries, **changes):
    return build_table(config(claims=list(entries) or [CLAIM], **changes), "mini", results).claims


def test_a_claim_holds_by_hand():
    # Differences 4, 4, 6 points: t = 7 with 2 degrees of freedom, p = 1 - 7 / sqrt(51) = 0.0198.
    results = [*runs("flow", [0.05, 0.06, 0.09]), *runs("sft", [0.01, 0.02, 0.03])]
    (found,) = claim(results)
    assert (found.verdict, found.n) == ("holds", 3)
    assert found.mean == pytest.approx(14 / 3)
    assert found.adjusted_p == pytest.approx(1 - 7 / math.sqrt(51))
    assert found.half_width == pytest.approx(4.30265 * 2 / 3, abs=1e-4)


def test_a_claim_does_not_hold_when_the_mean_is_below_the_margin():
    results = [*runs("flow", [0.01, 0.02, 0.03]), *runs("sft", [0.05, 0.06, 0.09])]
    assert claim(results)[0].verdict == "does not hold"
    # Better, but not by 20 points.
    results = [*runs("flow", [0.05, 0.06, 0.09]), *runs("sft", [0.01, 0.02, 0.03])]
    assert claim(results, {**CLAIM, "by": 20.0})[0].verdict == "does not hold"


def test_lower_is_better_turns_the_difference_round():
    perplexities = {"flow": (1, 2), "sft": (2, 4)}
    results = [
        run(row, seed, perplexity=math.exp(slope * seed + offset))
        for row, (offset, slope) in perplexities.items()
        for seed in (1, 2, 3)
    ]
    (found,) = claim(results, {**CLAIM, "column": "nll"})
    assert found.mean == pytest.approx(5.0)  # (2 + 4 s) - (1 + 2 s) = 1 + 2 s, for s = 1, 2, 3


def test_claims_are_corrected_together():
    results = [*runs("flow", [0.05, 0.06, 0.09]), *runs("sft", [0.01, 0.02, 0.03])]
    p = 1 - 7 / math.sqrt(51)
    other = {**CLAIM, "text": "the target too", "column": "target"}
    found = claim(results, CLAIM, other)
    assert [c.adjusted_p for c in found] == pytest.approx([2 * p, 2 * p])
    third = {**CLAIM, "text": "and on average", "column": "average"}
    found = claim(results, CLAIM, other, third)
    assert [c.verdict for c in found] == ["inconclusive"] * 3  # 3 * 0.0198 = 0.059
    assert [c.p_value for c in found] == pytest.approx([p, p, p])


def test_claims_of_other_scales_are_neither_shown_nor_corrected_for():
    results = [*runs("flow", [0.05, 0.06, 0.09]), *runs("sft", [0.01, 0.02, 0.03])]
    found = claim(results, CLAIM, {**CLAIM, "column": "target", "scales": ["full"]})
    assert len(found) == 1 and found[0].adjusted_p == found[0].p_value


def test_a_claim_that_cannot_be_tested_does_not_count_in_the_correction():
    results = [*runs("flow", [0.05, 0.06, 0.09]), *runs("sft", [0.01, 0.02, 0.03])]
    first, second = claim(results, CLAIM, {**CLAIM, "beats": "base"})
    assert first.adjusted_p == first.p_value
    assert (second.verdict, second.p_value, second.mean) == ("inconclusive", None, None)
    assert "Pre-trained seed 0 missing" in second.reason


def test_one_pair_is_inconclusive():
    (found,) = claim([run("flow", 1, 0.9), run("sft", 1, 0.1)], scales={"mini": {"seeds": [1]}})
    assert (found.verdict, found.n, found.adjusted_p) == ("inconclusive", 1, None)
    assert "1 pair, a test needs at least 2" in found.reason


def test_a_partial_claim_is_inconclusive_with_its_numbers():
    results = [*runs("flow", [0.9, 0.91, 0.92]), *runs("sft", [0.1, 0.12])]
    (found,) = claim(results)
    assert (found.verdict, found.n, found.expected) == ("inconclusive", 2, 3)
    assert found.adjusted_p < 0.05 and found.mean > 70
    assert "2 of 3 pairs: Standard FT seed 3 missing" in found.reason


def test_differences_without_variance():
    results = [*runs("flow", [0.5, 0.6, 0.7]), *runs("sft", [0.4, 0.5, 0.6])]
    (found,) = claim(results)
    assert (found.verdict, found.half_width, found.adjusted_p) == ("holds", 0.0, 0.0)
    assert claim(results, {**CLAIM, "by": 20.0})[0].verdict == "does not hold"
    (equal,) = claim(results, {**CLAIM, "by": 10.0})
    assert (equal.verdict, equal.adjusted_p) == ("inconclusive", 1.0)
    assert "exactly the margin" in equal.reason


def test_a_column_this_scale_does_not_have_is_inconclusive():
    columns = copy.deepcopy(CONFIG["columns"])
    columns["full"]["mmlu"] = {"label": "MMLU", "metric": "mmlu/acc,none", "better": "higher"}
    (found,) = claim([], {**CLAIM, "column": "mmlu"}, columns=columns)
    assert (found.verdict, found.reason) == ("inconclusive", "scale mini has no column mmlu")


def test_a_deterministic_row_can_be_beaten():
    (found,) = claim([run("base", 0, 0.1), *runs("flow", [0.5, 0.6, 0.7])], {**CLAIM, "beats": "base"})
    assert (found.n, found.verdict) == (3, "holds")
