"""MedCalc-Bench: a patient note, a value to compute from it, and how the benchmark judges the value that is stated.

N. Khandekar et al., "MedCalc-Bench: Evaluating Large Language Models for Medical Calculations", NeurIPS 2024, arXiv
2406.12036. How an answer is read and judged depends on the calculator, as in the benchmark's code
(ncbi-nlp/MedCalc-Bench, evaluation/run.py and evaluate.py):

    date            the same day
    weeks and days  both numbers
    integer         the score itself, after rounding; "3 out of 5" is 3, and a list of several criteria is their number
    decimal         lower limit <= value <= upper limit; the data set has 95% and 105% of the true value there. A
                    percentage is read as a fraction

Where we differ: the benchmark asks for JSON, we for a last line "Answer: ..."; arithmetic that the model wrote is not
executed; weeks and days need something between the two numbers (the benchmark reads "29 weeks" as 2 and 9).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, TypeAlias

# The prompt of training too: conf/dataset/medcalc.yaml.
PROMPT = (
    "Patient note:\n{Patient Note}\n\nTask: {Question}\n\n"
    'End with a line "Answer: " and the value, without unit; a date as MM/DD/YYYY, a time as (weeks, days).'
    "\n\nResponse:"
)

# Calculator IDs by the kind of their output; all others give a decimal.
DATES = frozenset({13, 68})
WEEKS_AND_DAYS = frozenset({69})
INTEGERS = frozenset({4, 15, 16, 17, 18, 20, 21, 25, 27, 28, 29, 32, 33, 36, 43, 45, 48, 51})

Value: TypeAlias = date | tuple[int, int] | float

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_DATE = re.compile(r"(?:0?[1-9]|1[0-2])/(?:0?[1-9]|[12]\d|3[01])/\d{4}")
_WEEKS_AND_DAYS = re.compile(r"""(\d+)\s*(?:weeks?)?["']?(?:,|\s)\s*["']?(\d+)""")


def prompt(doc: Mapping[str, Any]) -> str:
    """What the model continues."""
    return PROMPT.format_map(doc)


def judge(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """acc: the stated value is right. answered: a value of the right kind was stated at all; if not, it is wrong."""
    calculator = int(doc["Calculator ID"])
    value = read(stated(results[0]), calculator)
    right = value is not None and is_right(value, calculator, doc)
    return {"acc": float(right), "answered": float(value is not None)}


def stated(response: str) -> str:
    """What stands after the last "Answer:" on its line; empty without one."""
    found = re.findall(r"answer:[ *]*(.*)", response, flags=re.IGNORECASE)
    return found[-1].strip().strip('"') if found else ""


def read(answer: str, calculator: int) -> Value | None:
    """The value that an answer states, in the calculator's kind of output; None if it states none."""
    if calculator in DATES:
        match = _DATE.match(answer)
        return _day(match[0]) if match else None
    if calculator in WEEKS_AND_DAYS:
        match = _WEEKS_AND_DAYS.search(answer)
        return (int(match[1]), int(match[2])) if match else None
    if calculator in INTEGERS:
        if match := re.search(r"(\d+) out of", answer):
            return float(match[1])
        if match := re.search(r"-?\d+(?:, ?-?\d+)+", answer):
            return float(len(match[0].split(",")))
    elif match := re.search(r"(-?\d+(?:\.\d+)?)\s*mL/min/1\.73", answer):  # before the 2 of its unit's m^2
        return float(match[1])
    elif percentages := re.findall(r"(-?\d+(?:\.\d+)?)%", answer):
        return float(percentages[-1]) / 100
    numbers = _NUMBER.findall(answer)
    return float(numbers[-1]) if numbers else None


def is_right(value: Value, calculator: int, doc: Mapping[str, Any]) -> bool:
    """Whether a value that was read is the true one, or within its limits."""
    truth = str(doc["Ground Truth Answer"])
    if isinstance(value, float):
        if calculator in INTEGERS:
            return round(value) == float(truth)
        return float(doc["Lower Limit"]) <= value <= float(doc["Upper Limit"])
    return value == read(truth, calculator)


def _day(text: str) -> date | None:
    """None for a day that is in no calendar."""
    try:
        return datetime.strptime(text, "%m/%d/%Y").date()
    except ValueError:
        return None
