"""The reward of code: the share of its unit tests that a program passes, with feedback in words.

A response's program is its last fenced code block (one that is not closed counts up to the end), or else the whole
response. It runs in a sandbox (`evals/sandbox.py`). The reference of a problem is JSON:

    {"tests": ["assert add(1, 2) == 3", ...], "setup": "...", "entry_point": "add", "prefix": "def add(a, b):\n"}

tests: statements or blocks, each passed or not. setup (optional): what tests need, e.g. imports; it runs where they do.
entry_point (optional): the names of the program that tests may use, see `evals.sandbox.Job`. prefix (optional): a
response that is no block completes it; before a block come its imports and whatever else it defines besides the entry
point.

`humaneval_reference`, `mbpp_reference`, `kodcode_reference` and `bigcodebench_reference` write it for the rows of those
sets (Chen et al. 2021, arXiv 2107.03374; Austin et al. 2021, arXiv 2108.07732; Xu et al. 2025, arXiv 2503.02951; Zhuo
et al. 2024, arXiv 2406.15877).
"""

import ast
import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evals.rewards.graded import Graded
from evals.sandbox import Job, Limits, Sandbox

SCORES = ("fraction", "all")
# CommonMark: closed by a fence of the same kind that is at least as long and has nothing behind it.
_BLOCK = re.compile(r"^[ \t]*(`{3,}|~{3,})[^`\n]*\n(.*?)(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_KEYS = ("tests", "setup", "entry_point", "prefix")


def unit_tests(
    prompts: Sequence[str],
    responses: Sequence[str],
    answers: Sequence[str],
    *,
    sandbox: str = "bubblewrap",
    score: str = "fraction",
    first: int | None = None,
    wall_seconds: float = 10.0,
    workers: int | None = None,
) -> list[Graded]:
    """Run the program of each response against the tests of its reference.

    Args:
        prompts, responses: text.
        answers: a reference for each response, JSON as above.
        sandbox: bubblewrap, or unsafe: as the user who trains, with the user's files and network.
        score: fraction of the tests passed, or all: 1 if all are, else 0.
        first: only the first so many tests are run, as for feedback that must not tell the others; default, all.
        wall_seconds: for each program with all its tests; what has not passed by then has failed.
        workers: programs at once; default, one more than there are CPUs.

    Raises:
        ValueError: an option that is not one, or a reference that is none.
        evals.sandbox.SandboxError: programs cannot be run here.
    """
    if score not in SCORES:
        raise ValueError(f"score={score}: must be one of {', '.join(SCORES)}")
    if first is not None and (isinstance(first, bool) or not isinstance(first, int) or first < 1):
        raise ValueError(f"first={first}: must be a whole number >= 1")
    jobs = [_job(response, answer) for _, response, answer in zip(prompts, responses, answers, strict=True)]
    jobs = [replace(job, tests=job.tests[:first]) for job in jobs]
    limits = replace(Limits(wall_seconds=wall_seconds), cpu_seconds=wall_seconds)
    with Sandbox(sandbox, limits, workers) as ready:
        outcomes = ready.run_all(jobs)
    return [Graded(float(one.passed) if score == "all" else one.score, one.feedback) for one in outcomes]


def last_code_block(response: str) -> str | None:
    """What is in the last fenced code block of a text; None without one."""
    blocks = [found[2] for found in _BLOCK.finditer(response)]
    return textwrap.dedent(blocks[-1]) if blocks else None


def _job(response: str, answer: str) -> Job:
    reference = _reference(answer)
    block, prefix, entry_point = last_code_block(response), reference.get("prefix", ""), reference.get("entry_point")
    if block is None:
        program = prefix + response
    else:
        program = "".join(f"{text}\n" for text in _besides(prefix, entry_point)) + block
    try:
        return Job(program, tuple(reference["tests"]), entry_point, reference.get("setup", ""))
    except ValueError as error:
        raise ValueError(f"answers={_short(answer)}: {error}") from error


def _reference(answer: str) -> dict[str, Any]:
    told = f"answers={_short(answer)}"
    try:
        reference = json.loads(answer)
    except ValueError as error:
        raise ValueError(f"{told}: must be JSON that holds unit tests: {error}") from error
    tests = reference.get("tests") if isinstance(reference, dict) else None
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        raise ValueError(f"{told}: must be a JSON object with a list of texts under tests")
    for key, value in reference.items():
        if key not in _KEYS:
            raise ValueError(f"{told}: unknown key {key}; a reference has {', '.join(_KEYS)}")
        if key != "tests" and not (isinstance(value, str) or (key == "entry_point" and value is None)):
            raise ValueError(f"{told}: {key} must be a text")
    return reference


def _short(answer: str) -> str:
    return repr(answer if len(answer) <= 80 else answer[:80] + "...")


# References of known sets --------------------------------------------------------------------------------------


def humaneval_reference(row: Mapping[str, Any]) -> str:
    """The reference of a row of HumanEval (prompt, entry_point, test).

    Where all that `check` says are assertions, each becomes a test, so that the score is a fraction; those that hold
    whatever the program does (`assert True`, or the program beside itself) are left out. A `check` with loops or
    variables stays one test.

    Raises:
        ValueError: the row has no `check` with one parameter.
    """
    tree = ast.parse(row["test"])
    check = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check"), None)
    if check is None or len(check.args.args) != 1:
        raise ValueError(f"test={_short(row['test'])}: must define check(candidate)")
    said = [node for node in check.body if not _says_nothing(node, row["entry_point"])]
    if said and all(isinstance(node, ast.Assert) for node in said) and check.args.args[0].arg == "candidate":
        tests = [ast.unparse(node) for node in said]
    else:
        tests = [f"{ast.unparse(check)}\ncheck(candidate)"]
    rest = [ast.unparse(node) for node in tree.body if node is not check]
    # Tests call helpers of the prompt; where those are known here, the program has no say in them.
    setup = "\n".join([*_besides(row["prompt"], row["entry_point"]), *rest])
    return json.dumps({"tests": tests, "setup": setup, "entry_point": row["entry_point"], "prefix": row["prompt"]})


def _says_nothing(node: ast.stmt, entry_point: str) -> bool:
    match node:
        case ast.Assert(test=ast.Constant(value=value)):
            return bool(value)
        case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
            program = {"candidate", entry_point}
            sides = [{found.id for found in ast.walk(side) if isinstance(found, ast.Name)} for side in (left, right)]
            return all(side & program for side in sides)
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _besides(prefix: str, entry_point: str | None) -> list[str]:
    """What a prefix has besides the beginning of its entry point, statement by statement."""
    try:
        body = ast.parse(prefix).body
    except SyntaxError:
        try:
            body = ast.parse(f"{prefix.rstrip()}\n    pass\n").body  # it ends in the head of a function
        except SyntaxError:
            return []
    return [ast.unparse(node) for node in body if getattr(node, "name", None) != entry_point]


def mbpp_reference(row: Mapping[str, Any]) -> str:
    """The reference of a row of MBPP, full or sanitized (code, test_list, and test_setup_code or test_imports).

    The names that tests may use are those that the reference solution defines and its tests name: the function, and
    where tests make objects, their class.
    """
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
    tests = list(row["test_list"])
    used = [node.id for text in (*tests, setup) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]
    defined = {
        node.name: isinstance(node, ast.ClassDef)
        for node in ast.parse(row["code"]).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    names = sorted((name for name in dict.fromkeys(used) if name in defined), key=lambda name: defined[name])
    if not names:
        raise ValueError(f"code={_short(row['code'])}: defines nothing that its tests use")
    return json.dumps({"tests": tests, "setup": setup, "entry_point": ",".join(names)})


def kodcode_reference(row: Mapping[str, Any]) -> str:
    """The reference of a row of KodCode, whose `test` is a file of pytest that imports names from `solution`.

    Every function `test_...` is a test. Returns "", which leaves the row out, where tests need more than Python's
    standard library (pytest's own functions, fixtures, other packages) or do not say which names they use.
    """
    try:
        tree = ast.parse(row["test"])
    except SyntaxError:
        return ""
    names: list[str] = []
    tests, rest = [], []
    for node in tree.body:
        match node:
            case ast.ImportFrom(module="solution", names=imported):
                if any(one.name == "*" or one.asname for one in imported):
                    return ""
                names += [one.name for one in imported]
            case ast.FunctionDef(name=name) if name.startswith("test"):
                if node.args.args or node.decorator_list:  # fixtures, parameters
                    return ""
                tests.append(f"{ast.unparse(node)}\n{name}()")
            case _:
                rest.append(node)
    if not names or not tests or not _needs_python_alone(tree, "solution"):
        return ""
    setup = "\n".join(ast.unparse(node) for node in rest)
    return json.dumps({"tests": tests, "setup": setup, "entry_point": ",".join(dict.fromkeys(names))})


def bigcodebench_reference(row: Mapping[str, Any]) -> str:
    """The reference of a row of BigCodeBench (code_prompt, entry_point, test: a class of unittest).

    Every method `test...` is a test. Returns "", which leaves the row out, where program or tests need more than
    Python's standard library, or tests replace parts of the program (`unittest.mock`), which run elsewhere.
    """
    tree = ast.parse(row["test"])
    found = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if (
        not found
        or not _needs_python_alone(tree)
        or not _needs_python_alone(ast.parse(f"{row['code_prompt']}    pass"))
    ):
        return ""
    if any(name.startswith("unittest.mock") for node in ast.walk(tree) for name in _imported(node)):
        return ""
    tests = [
        f"{one.name}({method.name!r}).debug()"
        for one in found
        for method in one.body
        if isinstance(method, ast.FunctionDef) and method.name.startswith("test")
    ]
    setup = f"import unittest\n{row['code_prompt'].partition('def ')[0]}\n{row['test']}"
    prefix, entry_point = row["code_prompt"], row["entry_point"]
    return json.dumps({"tests": tests, "setup": setup, "entry_point": entry_point, "prefix": prefix}) if tests else ""


def _needs_python_alone(tree: ast.AST, *besides: str) -> bool:
    """Whether all that is imported is in Python's standard library, or named."""
    packages = {name.partition(".")[0] for node in ast.walk(tree) for name in _imported(node)}
    return packages <= {*sys.stdlib_module_names, *besides}


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [one.name for one in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []
