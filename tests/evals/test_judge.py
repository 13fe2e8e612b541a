"""What a judge's replies mean, the length-controlled win rate by simulation, an endpoint that misbehaves."""

from collections.abc import Iterator

import numpy as np
import pytest
import scipy.optimize

from evals import judge
from tests.evals.judge_server import Server


@pytest.mark.parametrize(("reply", "expected"), [
    ("[[A]]", 1.0),
    ("[[B]]", 0.0),
    ("[[C]]", 0.5),
    ("A", 1.0),
    (" B.\n", 0.0),
    ("[[A]] may look better at first, but: [[B]]", 0.0),
    ("Answer A is better.", None),
    ("", None),
    ("[[D]]", None),
])  # fmt: skip
def test_verdict(reply, expected):
    assert judge.verdict(reply) == expected


# Length control ----------------------------------------------------------------------------------------------


def simulated(seed, prompts, a, b):
    """Preferences drawn from the regression itself, with lengths of answers that are longer by 50 on average."""
    generator = np.random.default_rng(seed)
    own, other = generator.normal(250, 60, prompts).round(), generator.normal(200, 60, prompts).round()
    difference = own - other
    probability = 1 / (1 + np.exp(-(a + b * np.tanh(difference / difference.std(ddof=1)))))
    return (generator.random(prompts) < probability).astype(float), own, other


def test_equal_lengths_need_no_control():
    preferences = np.array([1.0, 0.5, 0.0, 1.0, 1.0, 0.5])
    found = judge.length_controlled(preferences, np.full(6, 100), np.full(6, 100))
    assert found.mean == pytest.approx(preferences.mean(), abs=1e-2)  # the prior pulls a little
    many = judge.length_controlled(np.tile(preferences, 100), np.full(600, 100), np.full(600, 100))
    assert many.mean == pytest.approx(preferences.mean(), abs=1e-4)
    assert many.standard_error == pytest.approx(np.tile(preferences, 100).std() / np.sqrt(600), rel=1e-2)


def test_it_is_the_maximum_of_the_penalised_likelihood():
    preferences, own, other = simulated(0, 80, 0.3, 1.0)
    difference = own - other
    feature = np.tanh(difference / difference.std(ddof=1))

    def objective(weights):
        score = weights[0] + weights[1] * feature
        return np.sum(np.logaddexp(0, score) - preferences * score) + np.sum(weights**2) / 200

    best = scipy.optimize.minimize(objective, np.zeros(2), tol=1e-12).x
    found = judge.length_controlled(preferences, own, other)
    assert found.mean == pytest.approx(1 / (1 + np.exp(-best[0])), abs=1e-6)


def test_a_preference_for_length_alone_is_no_win():
    """True value at equal lengths 1/2, while the raw win rate is well above; and its error is told rightly."""
    found, raw = [], []
    for seed in range(200):
        preferences, own, other = simulated(seed, 400, 0.0, 2.0)
        found.append(judge.length_controlled(preferences, own, other))
        raw.append(preferences.mean())
    means = np.array([estimate.mean for estimate in found])
    assert np.mean(raw) > 0.6
    assert means.mean() == pytest.approx(0.5, abs=0.01)
    assert np.mean([estimate.standard_error for estimate in found]) == pytest.approx(means.std(), rel=0.15)


def test_both_sides_add_up_to_one():
    preferences, own, other = simulated(3, 100, 0.5, 1.0)
    first = judge.length_controlled(preferences, own, other).mean
    second = judge.length_controlled(1 - preferences, other, own).mean
    assert first + second == pytest.approx(1, abs=1e-9)


def test_lengths_that_tell_every_preference_stay_finite():
    own, other = np.array([10.0, 20, 30, 40]), np.array([20.0, 30, 20, 20])
    found = judge.length_controlled((own > other).astype(float), own, other)
    assert 0 < found.mean < 1 and np.isfinite(found.standard_error)
    assert 0.5 < judge.length_controlled(np.ones(4), own, other).mean < 1


@pytest.mark.parametrize(("preferences", "lengths", "message"), [
    ([1.0], [3.0], "at least two preferences"),
    ([1.0, 0.0], [3.0, 4.0, 5.0], "each with two lengths"),
    ([1.0, 2.0], [3.0, 4.0], "between 0 and 1"),
    ([1.0, np.nan], [3.0, 4.0], "between 0 and 1"),
])  # fmt: skip
def test_input_that_makes_no_sense(preferences, lengths, message):
    with pytest.raises(ValueError, match=message):
        judge.length_controlled(preferences, lengths, np.ones(len(lengths)))


# The endpoint ------------------------------------------------------------------------------------------------


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    built = Server(**getattr(request, "param", {}))
    yield built
    built.close()


def test_questions_are_asked_as_a_chat_and_replies_keep_their_numbers(server, monkeypatch):
    monkeypatch.setenv("JUDGES_KEY", "secret")
    endpoint = judge.Endpoint(url=f"{server.url}/", model="m", key_from="JUDGES_KEY", max_tokens=7, connections=3)
    asked = [f"question {number}" for number in range(40)]
    assert dict(endpoint.ask(asked)) == {number: str(number) for number in range(40)}
    first = next(one for one in server.requests if one["messages"][0]["content"] == "question 0")
    assert first == {
        "path": "/v1/chat/completions", "key": "Bearer secret", "model": "m", "temperature": 0, "max_tokens": 7,
        "messages": [{"role": "user", "content": "question 0"}],
    }  # fmt: skip


@pytest.mark.parametrize("server", [{"statuses": [429, 503, 500]}], indirect=True)
def test_a_busy_endpoint_is_asked_again_later(server):
    pauses: list[float] = []
    assert list(judge.Endpoint(url=server.url, model="m", retries=3).ask(["is it b"], pauses.append)) == [(0, "b")]
    assert pauses == [1.0, 2.0, 4.0] and len(server.requests) == 4
    assert server.requests[0]["key"] is None


@pytest.mark.parametrize("server", [{"statuses": [200, 200, 400]}], indirect=True)
def test_what_was_answered_before_a_refusal_is_not_lost(server):
    """One question after another: the third is refused, those that were not begun are not asked."""
    replies = {}
    with pytest.raises(judge.JudgeError, match="status 400"):
        for number, reply in judge.Endpoint(url=server.url, model="m", connections=1).ask(["a", "b", "c", "d", "e"]):
            replies[number] = reply
    assert replies.items() >= {0: "a", 1: "b"}.items() and 2 not in replies
    assert len(replies) == len(server.requests) - 1


@pytest.mark.parametrize(("server", "message"), [
    ({"statuses": [503] * 9}, "no reply in 3 attempts: status 503"),
    ({"statuses": [404]}, r'status 404: \{"error": "no such\\nmodel"\}'),
    ({"answer": lambda question: {"detail": question}}, "its reply is not that of a chat completion"),
], indirect=["server"])  # fmt: skip
def test_what_goes_wrong_is_one_line(server, message):
    with pytest.raises(judge.JudgeError, match=message) as caught:
        list(judge.Endpoint(url=server.url, model="m", retries=2).ask(["a", "b"], lambda _: None))
    assert "\n" not in str(caught.value)


def test_nobody_there(monkeypatch):
    with pytest.raises(judge.JudgeError, match="no reply in 2 attempts: ConnectError"):
        list(judge.Endpoint(url="http://127.0.0.1:9/v1", model="m", retries=1).ask(["a"], lambda _: None))
    monkeypatch.delenv("JUDGES_KEY", raising=False)
    with pytest.raises(judge.JudgeError, match="the environment variable JUDGES_KEY must hold the key"):
        list(judge.Endpoint(url="http://127.0.0.1:9/v1", model="m", key_from="JUDGES_KEY").ask(["a"]))
