"""Claims, judged by paired seeds.

A claim is a two-sided paired t-test over the seeds of its two rows, oriented by the column's `better`, against the
claim's `by`, with Holm's correction over the claims tested at this scale. A claim of which some pairs are not done is
*inconclusive*: the seeds left out may be those that went badly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from runners.tables.experiment import Claim
from runners.tables.measurements import Measurements, Sample, count, describe
from runners.tables.statistics import PairedTest, holm, paired_test

SIGNIFICANCE = 0.05

Pairs = Sample[tuple[float, float]]


@dataclass(frozen=True)
class ClaimResult:
    """A claim judged: *holds*, *does not hold* or *inconclusive*.

    mean, half_width: of the paired differences; above 0 means that `row` is better.
    """

    text: str
    row: str
    beats: str
    column: str
    by: float
    verdict: str
    mean: float | None
    half_width: float | None
    n: int
    expected: int
    p_value: float | None
    adjusted_p: float | None
    decimals: int
    reason: str


def judge_claims(measured: Measurements, decimals: Mapping[str, int]) -> Iterator[ClaimResult]:
    """The claims made at this scale, in their order. `decimals`: to show, per column."""
    claims = [c for c in measured.experiment.claims if c.scales is None or measured.scale.key in c.scales]
    tested = [_tested(measured, claim) for claim in claims]
    p_values = [test.p_value for _, test in tested if test is not None and test.p_value is not None]
    adjusted = iter(holm(p_values))
    for claim, (pairs, test) in zip(claims, tested, strict=True):
        p_value = None if test is None else test.p_value
        adjusted_p = None if p_value is None else next(adjusted)
        verdict, reason = _verdict(claim, pairs, test, adjusted_p)
        yield ClaimResult(
            text=claim.text,
            row=claim.row,
            beats=claim.beats,
            column=claim.column,
            by=float(claim.by),
            verdict=verdict,
            mean=None if test is None else test.mean,
            half_width=None if test is None else test.half_width,
            n=len(pairs.values),
            expected=pairs.expected,
            p_value=p_value,
            adjusted_p=adjusted_p,
            decimals=decimals.get(claim.column, 1),
            reason=reason,
        )


def _tested(measured: Measurements, claim: Claim) -> tuple[Pairs, PairedTest | None]:
    if claim.column not in measured.columns:
        return Pairs(0, problem=f"scale {measured.scale.key} has no column {claim.column}"), None
    rows = measured.experiment.rows
    pairs = measured.pairs(rows[claim.row], rows[claim.beats], claim.column)
    if not pairs.values:
        return pairs, None
    ours, theirs = zip(*(pairs.values[seed] for seed in sorted(pairs.values)), strict=True)
    if measured.columns[claim.column].better == "lower":
        ours, theirs = theirs, ours
    return pairs, paired_test(ours, theirs, claim.by)


def _verdict(claim: Claim, pairs: Pairs, test: PairedTest | None, adjusted_p: float | None) -> tuple[str, str]:
    if pairs.problem:
        return "inconclusive", pairs.problem
    if len(pairs.values) < pairs.expected:
        return "inconclusive", f"{len(pairs.values)} of {pairs.expected} pairs: {describe(pairs.gaps)}"
    if test is None or adjusted_p is None:
        return "inconclusive", f"{count(pairs.expected, 'pair')}, a test needs at least 2"
    if adjusted_p >= SIGNIFICANCE:
        return "inconclusive", "all pairs differ by exactly the margin" if test.half_width == 0.0 else ""
    reason = "all pairs differ by exactly the same amount" if test.half_width == 0.0 else ""
    return ("holds" if test.mean > claim.by else "does not hold"), reason
