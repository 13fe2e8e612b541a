"""The number game: what is allowed, all trajectories by another way, rewards, problems and their demonstrations."""

import itertools

import pytest

from evals import number_game
from evals.number_game import actions, reward, rows, solutions, trajectories

OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


def right(prompt: str, response: str) -> bool:
    """Whether a response is right, by an independent way: every equation holds, and uses numbers that are there."""
    numbers, _, target = prompt.rstrip(":").partition(">")
    left = sorted(int(number) for number in numbers.split(","))
    for step in response.removesuffix(";").split(";") if response else []:
        operation, _, after = step.partition("=")
        sign = next((sign for sign in OPERATIONS if sign in operation), None)
        if sign is None:
            return False
        first, second = (int(part) for part in operation.split(sign))
        in_order = first <= second if sign in "+*" else first >= second
        if not in_order or (sign == "/" and (second == 0 or first % second)):
            return False
        for number in (first, second):
            if number not in left:
                return False
            left.remove(number)
        left = sorted([*left, OPERATIONS[sign](first, second)])
        if after != ",".join(map(str, left)):
            return False
    return left == [int(target)] and not response.endswith(";")


# The game ----------------------------------------------------------------------------------------------------


def test_what_is_allowed() -> None:
    assert actions("2,3,7>13:", []) == [
        "2+3=5,7;", "3-2=1,7;", "2*3=6,7;", "2+7=3,9;", "7-2=3,5;", "2*7=3,14;", "3+7=2,10;", "7-3=2,4;", "3*7=2,21;",
    ]  # fmt: skip
    assert actions("2,3,7>13:", ["2*3=6,7;"]) == ["6+7=13", "7-6=1", "6*7=42"]
    assert actions("2,3,7>13:", ["2*3=6,7;", "6+7=13"]) == []
    assert actions("2,4>2:", []) == ["2+4=6", "4-2=2", "2*4=8", "4/2=2"]
    assert actions("3,3>6:", []) == ["3+3=6", "3-3=0", "3*3=9", "3/3=1"]
    assert actions("3,3,3>6:", [])[:2] == ["3+3=3,6;", "3-3=0,3;"], "of equal numbers each action once"
    assert len(actions("3,3,3>6:", [])) == 4
    assert actions("0,5>5:", []) == ["0+5=5", "5-0=5", "0*5=0"], "nothing is divided by 0"


@pytest.mark.parametrize(
    ("prompt", "taken", "message"),
    [
        ("2,3:", [], "prompt=2,3:: must be numbers and a target, as 2,3,7>13:"),
        ("2>3:", [], "prompt=2>3:: must be numbers and a target, as 2,3,7>13:"),
        ("2,3,7>13:", ["2*3=6;"], "taken=['2*3=6;']: must be actions that were allowed after 2,3,7>13:"),
    ],
)
def test_what_is_no_game(prompt: str, taken: list[str], message: str) -> None:
    with pytest.raises(ValueError) as error:
        actions(prompt, taken)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("2*3=6,7;6+7=13", 1.0),
        ("2*3=6,7;7-6=1", 0.0),
        ("2*3=6,7;", 0.0),
        ("2*3=6,7;6+7=13;", 0.0),
        ("2*3=7,6;6+7=13", 0.0),
        ("3*2=6,7;6+7=13", 0.0),
        ("2*3=6,7;6+7=12", 0.0),
        ("6+7=13", 0.0),
        ("", 0.0),
        ("nonsense", 0.0),
    ],
)
def test_rewards(response: str, expected: float) -> None:
    assert reward(["2,3,7>13:"], [response]) == [expected]
    if expected:
        assert right("2,3,7>13:", response)


@pytest.mark.parametrize("prompt", ["2,3,7>13:", "1,1,2>2:", "4,6,12>2:", "5,5>1:", "1,2,3,4>10:"])
def test_trajectories_and_solutions(prompt: str) -> None:
    """Each once; right ones are those that an independent check takes; step by step they are what is allowed."""
    found = list(trajectories(prompt))
    written = ["".join(taken) for taken, _ in found]
    assert len(set(written)) == len(written)
    assert [is_right for _, is_right in found] == [right(prompt, text) for text in written]
    assert reward([prompt] * len(written), written) == [float(is_right) for _, is_right in found]
    assert solutions(prompt) == tuple(text for text, (_, is_right) in zip(written, found, strict=True) if is_right)
    for taken, _ in found[:: max(len(found) // 10, 1)]:
        assert all(action in actions(prompt, taken[:at]) for at, action in enumerate(taken))
        assert actions(prompt, taken) == []


def test_how_many_trajectories_there_are() -> None:
    assert len(list(trajectories("2,3,7>13:"))) == 31
    assert len(list(trajectories("5,5>1:"))) == 4


# Problems ----------------------------------------------------------------------------------------------------


def test_problems_have_several_solutions() -> None:
    found = rows("numbers", "train", 200, 0)
    assert len({row["prompt"] for row in found}) == 200
    assert all(len(solutions(row["prompt"])) >= 2 for row in found)
    assert all(row["prompt"].endswith(f">{row['answer']}:") for row in found)
    assert all(len(solutions(row["prompt"])) >= 5 for row in rows("numbers", "train", 50, 0, solutions=5))


def test_game24() -> None:
    """With few numbers, as all contents are gone through."""
    for row in rows("numbers", "train", 10, 0, numbers=4, most=5, target=24, solutions=1):
        assert row["answer"] == "24" and row["prompt"].count(",") == 3 and solutions(row["prompt"])


def test_there_is_one_demonstration_of_a_problem() -> None:
    found = rows("numbers_demonstrations", "train", 4000, 0)
    shown: dict[str, set[str]] = {}
    for row in found:
        shown.setdefault(row["prompt"], set()).add(row["answer"])
    assert len(shown) < 3000, "problems come again"
    assert all(len(answers) == 1 for answers in shown.values())
    assert all(right(prompt, answer) for prompt, (answer,) in shown.items())
    places = [solutions(prompt).index(answer) / len(solutions(prompt)) for prompt, (answer,) in shown.items()]
    assert 0.3 < sum(places) / len(places) < 0.45, "any of its solutions: (n - 1) / 2n of n on average"


def test_splits_share_no_problem() -> None:
    splits = [{row["prompt"] for row in rows("numbers", split, 80, 0)} for split in ("train", "validation", "test")]
    assert not any(one & other for one, other in itertools.combinations(splits, 2))
    assert [row["prompt"] for row in rows("numbers", "test", 5, 0)] == [
        row["prompt"] for row in rows("numbers", "test", 20, 0)[:5]
    ]


@pytest.mark.parametrize(("options", "message"), [({"numbers": 5}, "numbers=5"), ({"target": -1}, "target=-1")])
def test_options_that_do_not_go(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}: must be a whole number"):
        number_game.check_options("numbers", options)
