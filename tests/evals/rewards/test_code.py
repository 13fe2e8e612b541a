"""The reward of code: which program a response holds, references of HumanEval and MBPP, scores, refusals.

With real data (`RETABLE_DATA`) some rows of both sets are run with their own solutions; the sandbox is tested apart.
"""

import base64
import gzip
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

from evals.rewards.code import (
    bigcodebench_reference,
    humaneval_reference,
    kodcode_reference,
    last_code_block,
    mbpp_reference,
    unit_tests,
)
from evals.sandbox import Sandbox, SandboxError

DATA = Path(os.environ.get("RETABLE_DATA", "/nowhere"))
ADD = {"tests": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"], "entry_point": "add"}


def _contained() -> str:
    try:
        Sandbox(workers=1).close()
    except SandboxError:
        return "unsafe"
    return "bubblewrap"


SANDBOX = _contained()  # the programs here are ours


def graded(response: str, reference: dict, **options):
    return unit_tests(["?"], [response], [json.dumps(reference)], sandbox=SANDBOX, workers=1, **options)[0]


@pytest.mark.parametrize(
    ("response", "block"),
    [
        ("no block", None),
        ("`inline` and ``` too", None),
        ("```python\na = 1\n```", "a = 1\n"),
        ("First:\n```\na = 1\n```\nBetter:\n```py\nb = 2\n```\nDone.", "b = 2\n"),
        ("```python\na = 1\n```\n```python\nb = 2", "b = 2"),
        ("1. So:\n   ```python\n   if a:\n       b = 2\n   ```", "if a:\n    b = 2\n"),
        ("~~~python\na = '''\n```\n'''\n~~~", "a = '''\n```\n'''\n"),
        ("````md\n```python\nx\n```\n````", "```python\nx\n```\n"),
        ("```python\n```", ""),
    ],
)
def test_last_block(response: str, block: str | None) -> None:
    assert last_code_block(response) == block


def test_feedback_of_the_first_tests_alone() -> None:
    program = "```python\ndef add(a, b):\n    return 3\n```"
    assert graded(program, ADD).score == 0.5 and "add(2, 2)" in graded(program, ADD).feedback
    assert graded(program, ADD, first=1).score == 1.0 and "add(2, 2)" not in graded(program, ADD, first=1).feedback
    with pytest.raises(ValueError, match=r"^first=0: must be a whole number >= 1$"):
        graded(program, ADD, first=0)


def test_scores_and_feedback() -> None:
    right, half, wrong = (f"```python\ndef add(a, b):\n    return {body}\n```" for body in ("a + b", "a * b", "None"))
    answers = [json.dumps(ADD)] * 3
    found = unit_tests(["?"] * 3, [right, half, wrong], answers, sandbox=SANDBOX, workers=2)
    assert [one.score for one in found] == [1.0, 0.5, 0.0]
    assert found[1].feedback == "Passed 1 of 2 tests.\nFailed: add(1, 2) == 3\n  expected: 3\n  got: 2"
    assert [graded(one, ADD, score="all").score for one in (right, half)] == [1.0, 0.0]


def test_a_response_without_a_block_is_the_program() -> None:
    assert graded("def add(a, b):\n    return a + b", ADD).score == 1
    told = graded("I add a and b.", ADD)
    assert told.score == 0 and "Syntax error" in told.feedback


def test_a_prefix_is_completed_or_what_it_imports_goes_before_a_block() -> None:
    prefix = "import math\ndef half(x):\n    return x / 2\n\ndef area(r):\n    '''Half a circle.'''\n"
    reference = {"tests": ["assert abs(area(2) - 6.2832) < 1e-3"], "entry_point": "area", "prefix": prefix}
    assert graded("    return half(math.pi * r * r)\n", reference).score == 1
    block = "```python\ndef area(r):\n    return half(math.pi * r * r)\n```"
    assert graded(block, reference).score == 1
    assert graded(block, {**reference, "prefix": "def area(r):\n"}).score == 0


HUMANEVAL = {
    "prompt": "import math\ndef twice(x):\n    return 2 * x\n\ndef f(x: int) -> int:\n    '''Four times x.'''\n",
    "entry_point": "f",
    "canonical_solution": "    return twice(twice(x))\n",
    "test": "METADATA = {}\n\ndef check(candidate):\n    '''A test.'''\n    assert True, 'it runs'\n"
    "    assert candidate(1) == 4, 'one'\n    assert f(2) == candidate(2)\n"
    "    assert abs(candidate(3) - twice(6)) < 1e-6\n",
}


def test_humaneval_is_taken_apart() -> None:
    reference = json.loads(humaneval_reference(HUMANEVAL))
    assert reference["tests"] == ["assert candidate(1) == 4, 'one'", "assert abs(candidate(3) - twice(6)) < 1e-06"]
    assert (reference["entry_point"], reference["prefix"]) == ("f", HUMANEVAL["prompt"])
    assert reference["setup"] == "import math\ndef twice(x):\n    return 2 * x\nMETADATA = {}"
    assert graded("    return twice(twice(x))\n", reference).score == 1
    # A helper that the program defines anew has no say in its tests.
    assert graded("    return 4 if x == 1 else 0\ndef twice(x):\n    return 0\n", reference).score == 0.5


def test_a_check_that_is_more_than_assertions_is_one_test() -> None:
    row = {**HUMANEVAL, "test": "def check(candidate):\n    for x in range(3):\n        assert candidate(x) == 4 * x\n"}
    reference = json.loads(humaneval_reference(row))
    assert len(reference["tests"]) == 1
    assert graded(row["canonical_solution"], reference).score == 1
    assert graded("    return 4\n", reference).score == 0
    with pytest.raises(ValueError, match=r"must define check\(candidate\)"):
        humaneval_reference({**HUMANEVAL, "test": "assert f(1) == 4"})


MBPP = {
    "code": "import math\r\nclass Pair(object):\r\n    def __init__(self, a, b):\r\n        self.a, self.b = a, b\r\n"
    "def widest(pairs, least):\r\n    return max([math.floor(p.b - p.a) for p in pairs] + [least])",
    "test_setup_code": "one = Pair(1, 4)\r\n",
    "test_list": ["assert widest([one, Pair(5, 10)], 2) == 5", "assert math.isclose(widest([one], 2.5), 3)"],
}


def test_mbpp_knows_what_its_tests_may_use() -> None:
    reference = json.loads(mbpp_reference(MBPP))
    assert reference["entry_point"] == "widest,Pair"
    assert graded(f"```python\n{MBPP['code']}\n```", reference).score == 1
    sanitized = {"code": "def f(x):\n    return x", "test_list": ["assert math.sqrt(f(4)) == 2"]}
    assert json.loads(mbpp_reference({**sanitized, "test_imports": ["import math"]}))["setup"] == "import math"
    with pytest.raises(ValueError, match="defines nothing that its tests use"):
        mbpp_reference({**MBPP, "code": "def g(x):\n    return x"})


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("42", r"answers='42': must be a JSON object with a list of texts under tests"),
        (base64.b64encode(pickle.dumps(["assert True"])).decode(), r"must be JSON that holds unit tests"),
        ('{"tests": []}', r"tests=\(\): must hold at least one test"),
        ('{"tests": [1]}', r"a list of texts under tests"),
        ('{"tests": ["f()"], "code": "x"}', r"unknown key code; a reference has tests, setup, entry_point, prefix"),
        ('{"tests": ["f()"], "setup": 1}', r"setup must be a text"),
    ],
)
def test_a_reference_that_is_none_is_refused(answer: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        unit_tests(["?"], ["x = 1"], [answer], sandbox=SANDBOX, workers=1)


def test_bad_options_are_refused() -> None:
    for options, told in [
        ({"score": "best"}, "score=best: must be one of fraction, all"),
        ({"wall_seconds": -1}, "wall_seconds=-1: must be finite and > 0"),
        ({"sandbox": "docker"}, "sandbox=docker: must be one of bubblewrap, unsafe"),
    ]:
        with pytest.raises(ValueError, match=told):
            unit_tests(["?"], ["x"], [json.dumps(ADD)], **options)


def test_without_bubblewrap_it_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        unit_tests(["?"], ["x"], [json.dumps(ADD)])


def test_real_rows_with_their_own_solutions() -> None:
    humaneval, mbpp = DATA / "humaneval" / "HumanEval.jsonl.gz", DATA / "mbpp" / "mbpp.jsonl"
    if not (humaneval.is_file() and mbpp.is_file()):
        pytest.skip("RETABLE_DATA has no humaneval/HumanEval.jsonl.gz and mbpp/mbpp.jsonl")
    # Loops in `check`, helpers of the prompt, a type as an argument, objects, a builtin's name, a module not imported.
    chosen = {f"HumanEval/{n}" for n in (0, 32, 33, 38, 53, 151)} | {126, 252, 367, 533, 596, 601}
    lines = [*gzip.decompress(humaneval.read_bytes()).splitlines(), *mbpp.read_bytes().splitlines()]
    rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if row["task_id"] in chosen]
    responses = [row.get("canonical_solution") or f"```python\n{row['code']}\n```" for row in rows]
    answers = [humaneval_reference(row) if "entry_point" in row else mbpp_reference(row) for row in rows]
    found = unit_tests(["?"] * len(rows), responses, answers, sandbox=SANDBOX)
    assert len(rows) == 12
    assert {row["task_id"]: one.score for row, one in zip(rows, found, strict=True)} == dict.fromkeys(chosen, 1.0)


KODCODE = """import math
from solution import area, Circle

LIMIT = 1e-9

def test_area():
    assert math.isclose(area(1), math.pi, abs_tol=LIMIT)

def test_none():
    for radius in (0, 0.0):
        assert area(radius) == 0
"""


def test_kodcode_has_a_test_for_each_function() -> None:
    reference = json.loads(kodcode_reference({"test": KODCODE}))
    assert reference["entry_point"] == "area,Circle" and len(reference["tests"]) == 2
    right = "import math\ndef area(r):\n    return math.pi * r * r\nclass Circle:\n    pass"
    wrong = right.replace("math.pi * r * r", "4 * r")
    assert [graded(f"```python\n{program}\n```", reference).score for program in (right, wrong)] == [1.0, 0.5]


BIGCODEBENCH = {
    "code_prompt": "import math\nimport random\ndef task_func(n, seed=0):\n",
    "entry_point": "task_func",
    "test": """import unittest
import random

class TestCases(unittest.TestCase):
    def setUp(self):
        self.numbers = [1, 2, 3]

    def test_case_1(self):
        self.assertEqual(task_func(3), sum(self.numbers))

    def test_case_2(self):
        with self.assertRaises(ValueError):
            task_func(-1)

    def test_case_3(self):
        self.assertTrue(math.isclose(task_func(2), 3.0))
""",
}


def test_bigcodebench_has_a_test_for_each_method() -> None:
    reference = json.loads(bigcodebench_reference(BIGCODEBENCH))
    assert len(reference["tests"]) == 3
    right = "    if n < 0:\n        raise ValueError(n)\n    return n * (n + 1) // 2\n"
    head = BIGCODEBENCH["code_prompt"]
    for program, score in ((head + right, 1.0), (head + "    return 6\n", 1 / 3)):
        assert graded(f"```python\n{program}```", reference).score == pytest.approx(score)
    assert graded(right, reference).score == 1.0, "a completion of the prompt"


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("code_prompt", "import math", "import numpy as np"),
        ("test", "import random", "import pandas"),
        ("test", "import random", "from unittest.mock import patch"),
        ("test", "class TestCases(unittest.TestCase)", "def other()"),
        ("test", "def test_", "def check_"),
    ],
)
def test_bigcodebench_leaves_out_what_cannot_be_judged(key: str, old: str, new: str) -> None:
    assert old in BIGCODEBENCH[key]
    assert bigcodebench_reference({**BIGCODEBENCH, key: BIGCODEBENCH[key].replace(old, new)}) == ""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import math", "import pytest"),
        ("import math", "import numpy as np, math"),
        ("area, Circle", "*"),
        ("area, Circle", "area as f"),
        ("from solution import area, Circle", ""),
        ("def test_none():", "def test_none(capsys):"),
        ("def test_none", "@only\ndef test_none"),
        ("def test_", "def check_"),
        ("LIMIT = 1e-9", "LIMIT = ("),
    ],
)
def test_kodcode_leaves_out_what_cannot_be_judged(old: str, new: str) -> None:
    assert old in KODCODE and kodcode_reference({"test": KODCODE.replace(old, new)}) == ""
