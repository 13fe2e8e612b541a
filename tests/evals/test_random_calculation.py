"""RandomCalculation: the generator against an evaluator of this file, the parser, numbers, the graded reward."""

import ast
import math
import operator
import re
from fractions import Fraction

import pytest

from evals.random_calculation import MOST_STEPS, closeness, expressions, graded, number, printed, rows, value_of

OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def tree(text: str) -> ast.expr:
    """By Python's grammar, in which powers are ** and brackets are gone."""
    return ast.parse(text.replace("^", "**"), mode="eval").body


def walked(node: ast.expr) -> Fraction:
    if isinstance(node, ast.BinOp):
        left, right = walked(node.left), walked(node.right)
        return Fraction(OPERATIONS[type(node.op)](left, int(right) if isinstance(node.op, ast.Pow) else right))
    if isinstance(node, ast.UnaryOp):
        value = walked(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    return Fraction(ast.unparse(node))


ATOM = r"\(\d+/\d+\)|\d+(?:\^[23])?"


# Generator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 5, 10, MOST_STEPS])
def test_values_are_those_of_another_evaluator_and_of_the_parser(steps) -> None:
    for text, value in expressions(steps, 200, seed=3):
        assert walked(tree(text)) == value
        assert value_of(text) == value
        float(value)  # no overflow


@pytest.mark.parametrize("steps", range(1, MOST_STEPS + 1))
def test_exactly_as_many_operators_as_steps(steps) -> None:
    """Those between atoms have spaces about them; all others are in atoms, of which there is one more."""
    for text, _ in expressions(steps, 50, seed=1):
        in_atoms = len(re.findall(r"\^[23]\b|\(\d+/\d+\)", text))
        operators = sum(isinstance(node, ast.BinOp) for node in ast.walk(tree(text)))
        assert operators - in_atoms == steps
        assert len(re.findall(r" [-+*/] ", text)) == steps
        assert len(re.findall(ATOM, text)) == steps + 1


def test_a_full_subset_repeats_and_has_no_duplicates() -> None:
    whole = expressions(1, 1000, seed=0)
    assert len({text for text, _ in whole}) == len(whole) == 1000
    assert whole == expressions(1, seed=0)
    assert whole[:10] == expressions(1, 10, seed=0)
    assert not {text for text, _ in whole} & {text for text, _ in expressions(2, 100, seed=0)}
    assert whole[:100] != expressions(1, 100, seed=1)
    assert expressions(5, 0) == []


def test_a_set_that_is_the_same_on_every_machine() -> None:
    assert [text for text, _ in expressions(3, 3, seed=0)] == [
        "3 * (30 * ((90/90) - 36^2))",
        "(58^3 + (79^3 / 36)) / (4/56)",
        "44^2 + ((8 - (89/55)) * 89^2)",
    ]


def test_atoms_and_operations_are_equally_likely() -> None:
    texts = [text for text, _ in expressions(1, 4000, seed=5)]
    for operation in "+-*/":
        assert sum(f" {operation} " in text for text in texts) == pytest.approx(1000, abs=4 * 750**0.5)
    atoms = [part for text in texts for part in text.split(" ")[::2]]
    for kind in ("/", "^2", "^3"):
        assert sum(kind in atom for atom in atoms) == pytest.approx(2000, abs=4 * 1500**0.5)
    whole = {int(atom) for atom in atoms if atom.isdigit()}
    assert whole == set(range(101))


def test_rows() -> None:
    of = expressions(4, 20, seed=2)
    default, own = rows(4, 20, seed=2), rows(4, 20, seed=2, template="{{x}} {expression} =")
    assert [row["prompt"] for row in own] == [f"{{x}} {text} =" for text, _ in of]
    assert all(
        text in row["prompt"] and r"\boxed{}" in row["prompt"] for row, (text, _) in zip(default, of, strict=True)
    )
    for row, (_, value) in zip(default, of, strict=True):
        assert float(number(row["answer"])) == float(value)
    # The exact fraction gets the full score too.
    exact = [rf"\boxed{{{value}}}" for _, value in of]
    assert graded(exact, exact, [row["answer"] for row in default]) == [1] * 20


def test_printed_values() -> None:
    assert [printed(Fraction(*pair)) for pair in [(8, 2), (-13, 4), (1, 3), (10**25, 1)]] == [
        "4",
        "-3.25",
        "0.3333333333333333",
        "1" + "0" * 25,
    ]


# Parser ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "1", " 2 + 3*4 ", "10-3-2", "64/4/2", "2*(3+4)", "-2^2", "(-2)^2", "2^3^2", "2^-2", "--3", "2*-3", "-(1/3)",
    "1.25*4", "3-+2", "((7))", "(3/7) + 5^3", "0^0", "1/3/(1/9)",
])  # fmt: skip
def test_the_parser_agrees_with_pythons_grammar(text) -> None:
    expected = {"2^-2": Fraction(1, 4), "2^3^2": Fraction(512)}.get(text)
    assert value_of(text) == (walked(tree(text.strip())) if expected is None else expected)


@pytest.mark.parametrize(("text", "said"), [
    ("", "a number is missing"),
    ("1 +", "a number is missing"),
    ("* 2", "a number is missing"),
    ("(1 + 2", "a bracket is not closed"),
    ("1 + 2)", r"'\)' is not expected"),
    ("1 2", "'2' is not expected"),
    ("1/0", "divides by 0"),
    ("0^-1", "divides by 0"),
    ("2^0.5", "exponents must be whole and at most 100"),
    ("9^9^9", "exponents must be whole and at most 100"),
    ("(((9^100)^100)^100)", "its numbers become too long"),
    ("(" * 101 + "1" + ")" * 101, "is nested deeper than 100"),
    ("2^" * 150 + "1", "is nested deeper than 100"),
    ("(" * 10**5, "must have at most 5000 characters"),
    ("__import__('os')", "'_' has no place in it"),
    ("1e5", "'e' has no place in it"),
    ("2**3", "a number is missing"),
    ("٣", "'٣' has no place in it"),
])  # fmt: skip
def test_what_is_no_expression(text, said) -> None:
    with pytest.raises(ValueError, match=said):
        value_of(text)


# Reward ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("predicted", "value", "expected"), [
    (10, 10, 1),
    (10.5, 10, 0.725),
    (9, 10, 0.45),
    (0, 0.1, 0.45),
    (0, 0, 1),
    (5, 0, 0),
    (-10, 10, 0),
    (1e300, 1e-300, 0),
    (1e6 + 1, 1e6, 0.5),
])  # fmt: skip
def test_known_scores(predicted, value, expected) -> None:
    assert closeness(predicted, value) == pytest.approx(expected, abs=1e-6)


def test_only_what_is_equal_to_a_floats_rounding_has_the_full_score() -> None:
    assert closeness(Fraction(1, 3), 1 / 3) == 1
    assert closeness(Fraction(10**6, 3), 10**6 / 3) == 1
    assert closeness(0.333333333333, Fraction(1, 3)) < 1


@pytest.mark.parametrize(("text", "value"), [
    ("12", 12),
    ("-3.25", Fraction(-13, 4)),
    ("+.5", Fraction(1, 2)),
    ("7.", 7),
    ("1,234.5", Fraction(2469, 2)),
    ("1{,}234{,}567", 1234567),
    ("12,34", None),
    ("13/4", Fraction(13, 4)),
    ("-13 / 4", Fraction(-13, 4)),
    (r"\frac{13}{4}", Fraction(13, 4)),
    (r"-\dfrac{13}{4}", Fraction(-13, 4)),
    (r"$ \frac{-1}{2} $", Fraction(-1, 2)),
    ("1.2e5", 120000),
    (r"1.2 \times 10^{-2}", Fraction(12, 1000)),
    ("2*10^3", 2000),
    ("x = 3", 3),
    (r"\frac{1}{3} \approx 0.333", Fraction(333, 1000)),
    ("1/0", None),
    (r"\frac{1}{0}", None),
    ("3 + 4", None),  # nothing is computed
    ("3*4", None),
    ("2^3", None),
    ("(3)", None),
    ("1/2/3", None),
    ("12 apples", None),
    ("", None),
    ("nan", None),
    ("٣", None),
    ("1e999999999", None),
    ("7" * 501, None),
])  # fmt: skip
def test_numbers_in_answers(text, value) -> None:
    assert number(text) == value


def test_scores_of_responses() -> None:
    responses = [r"\boxed{10.5}", "#### 10", "It is 10", r"\boxed{2*5}", r"\boxed{10", r"1 \boxed{9} 2"]
    assert graded(responses, responses, ["10"] * 6) == pytest.approx([0.725, 1, 0, 0, 0, 0.45])
    assert graded("??", [r"\boxed{1}"] * 2, ["ten", r"so \boxed{1}"]) == [None, 1]


def test_repeating_the_expression_is_no_evaluation() -> None:
    for row, (text, _) in zip(rows(3, 20), expressions(3, 20), strict=True):
        assert graded("?", [rf"\boxed{{{text}}}"], [row["answer"]]) == [0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: expressions(0, 1), "steps=0: must be from 1 to 20"),
        (lambda: expressions(21, 1), "steps=21: must be from 1 to 20"),
        (lambda: expressions(1, -1), "size=-1: must be at least 0"),
        (lambda: rows(1, 1, template="x"), "template='x': must have {expression} in it"),
        (lambda: rows(1, 1, template="{expression} {other}"), "must have {expression} in it"),
        (lambda: rows(1, 1, template="{expression} {"), "must have {expression} in it"),
        (lambda: closeness(math.nan, 1), "predicted=nan: must be finite"),
        (lambda: closeness(1, math.inf), "value=inf: must be finite"),
    ],
)
def test_what_makes_no_sense_is_refused(call, said) -> None:
    with pytest.raises(ValueError, match=said):
        call()
