"""Model soups: the mean, the greedy choice, and what each may hold in memory."""

import math
import weakref

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from methods.merging.model_soup import ModelSoup, ModelSoupConfig, add, greedy_soup, uniform_soup

VALIDATION = {"task": "skill", "metric": "acc,none", "metadata": {"split": "validation"}}


def weights(*values, dtype=torch.float32):
    return {"w": torch.tensor(values, dtype=dtype)}


def giving(models):
    """Gives copies of models by their number."""
    return lambda number: {name: tensor.clone() for name, tensor in models[number].items()}


class Runs:
    """A context with finished runs; a score is minus the distance to what is best."""

    def __init__(self, models, best, scores=None):
        self.models, self.best, self.asked, self.saved = models, best, [], None
        self.scores = scores

    @property
    def run_count(self):
        return len(self.models)

    def run_weights(self, number=0):
        return giving(self.models)(number)

    def score(self, found, task, metric):
        self.asked.append((task, metric))
        return self.distance(found)

    def distance(self, found):
        return -float((found["w"] - self.best).abs().sum())

    def save_weights(self, found):
        self.saved = found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_equal_models_are_that_model_bit_for_bit(count, dtype):
    model = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype), "n": torch.tensor(4)}
    found = uniform_soup(giving([model] * count), count)
    assert all(torch.equal(found[name], model[name]) and found[name].dtype == model[name].dtype for name in model)
    greedy = greedy_soup(giving([model] * count), count, lambda _: 0.5)
    assert greedy.members == list(range(count))
    assert torch.equal(greedy.weights["w"], model["w"])


def test_two_models_and_what_their_mean_predicts():
    """Of models that are linear before their softmax the mean predicts in proportion to sqrt(pi_1 pi_2)."""
    assert uniform_soup(giving([weights(1.0, 2.0), weights(3.0, -2.0)]), 2)["w"].tolist() == [2.0, 0.0]
    first, second = (weights(*[math.log(p) for p in pi]) for pi in ((0.7, 0.3), (0.4, 0.6)))
    soup = uniform_soup(giving([first, second]), 2)["w"].softmax(0)
    assert soup.tolist() == pytest.approx([0.555006, 0.444994], abs=1e-6)
    kl = (first["w"].softmax(0) * (first["w"].log_softmax(0) - soup.log())).sum()
    assert float(kl) == pytest.approx(0.044188, abs=1e-6)


def test_tied_weights_stay_tied():
    """Two names of one tensor get the same mean."""
    tied = [{"head": one["w"], "embedding": one["w"]} for one in (weights(1.0, 2.0), weights(3.0, -2.0))]
    soup = uniform_soup(lambda number: dict(tied[number]), 2)
    assert soup["head"].tolist() == soup["embedding"].tolist() == [2.0, 0.0]


def test_uniform_known_answer():
    found = uniform_soup(giving([weights(0.0, 3.0), weights(1.0, 6.0), weights(5.0, 0.0)]), 3)
    torch.testing.assert_close(found["w"], torch.tensor([2.0, 3.0]))


def test_mean_is_that_of_torch_and_does_not_depend_on_the_order():
    models = [{"w": torch.randn(500, generator=torch.Generator().manual_seed(seed))} for seed in range(9)]
    expected = torch.stack([model["w"] for model in models]).double().mean(0).float()
    for order in (models, models[::-1]):
        torch.testing.assert_close(uniform_soup(giving(order), 9)["w"], expected, rtol=1e-5, atol=1e-6)


def test_half_precision_is_averaged_in_fp32_and_rounded_once():
    """The mean of 256, 258, 258 is 257.33, in bf16 (whose steps are of 2 there) 258; rounded at each step it is 256."""
    models = [weights(256.0, dtype=torch.bfloat16), *[weights(258.0, dtype=torch.bfloat16)] * 2]
    found = uniform_soup(giving(models), 3)["w"]
    assert found.dtype == torch.bfloat16
    assert found.item() == 258.0


def test_add_leaves_the_soup_alone():
    soup = weights(1.0)
    assert add(soup, weights(4.0), 2)["w"].item() == 2.0
    assert soup["w"].item() == 1.0


def test_greedy_takes_the_best_first_and_leaves_out_what_lowers_the_score():
    """Of 0, 10, 4 and 7 with 5.5 as the best value: 4, then 7 (the mean is 5.5), and then neither 10 nor 0."""
    models = [weights(0.0), weights(10.0), weights(4.0), weights(7.0)]
    found = greedy_soup(giving(models), 4, lambda w: -abs(w["w"].item() - 5.5))
    assert found.singles == [-5.5, -4.5, -1.5, -1.5]
    assert found.members == [2, 3]  # of two with the same score the first named comes first
    assert found.weights["w"].item() == 5.5 and found.score == 0.0


def test_a_model_that_leaves_the_score_as_it_is_joins():
    found = greedy_soup(giving([weights(1.0), weights(3.0)]), 2, lambda w: 1.0)
    assert found.members == [0, 1] and found.weights["w"].item() == 2.0


def test_greedy_is_at_least_as_good_as_the_best_single_model():
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        models = [{"w": torch.randn(4, generator=generator)} for _ in range(6)]
        target = torch.randn(4, generator=generator)
        found = greedy_soup(giving(models), 6, lambda w, target=target: -float((w["w"] - target).norm()))
        assert found.score >= max(found.singles)
        assert found.score == pytest.approx(-float((found.weights["w"] - target).norm()))
        chosen = torch.stack([models[number]["w"] for number in found.members]).mean(0)
        torch.testing.assert_close(found.weights["w"], chosen)


def test_no_more_than_two_copies_are_alive():
    """The soup and the model that is joining it; the candidate takes that one's place."""
    alive = []

    def models(number):
        alive[:] = [reference for reference in alive if reference() is not None]
        assert len(alive) <= 1, "the soup, besides the one to come"
        made = Whole({"w": torch.full((3,), float(number))})
        alive.append(weakref.ref(made))
        return made

    uniform_soup(models, 5)
    alive.clear()
    greedy_soup(models, 5, lambda w: -float(w["w"].sum()))
    alive.clear()
    greedy_soup(models, 5, lambda w: float(w["w"].sum()))


class Whole(dict):
    """Weights whose life can be followed."""


def test_uniform_run():
    context = Runs([weights(0.0), weights(4.0)], 0.0)
    assert ModelSoup(ModelSoupConfig()).run(context) == {"soup/members": 2}
    assert context.saved["w"].item() == 2.0 and context.asked == []
    assert ModelSoup.merges == "runs"


def test_greedy_run_asks_the_validation_task_and_reports_who_is_in():
    context = Runs([weights(0.0), weights(10.0), weights(4.0), weights(7.0)], 5.5)
    report = ModelSoup(ModelSoupConfig(recipe="greedy", validation={**VALIDATION, "limit": 8})).run(context)
    assert context.saved["w"].item() == 5.5
    task = {"name": "skill", "limit": 8, "metadata": {"split": "validation"}}
    assert context.asked == [(task, "acc,none")] * 7  # four alone, three with the soup
    assert report["soup/members"] == 2 and report["soup/score"] == 0.0
    assert [report[f"soup/score_of_run_{number}"] for number in range(4)] == [-5.5, -4.5, -1.5, -1.5]
    assert [report[f"soup/takes_run_{number}"] for number in range(4)] == [0, 0, 1, 1]


def test_lower_can_be_better():
    context = Runs([weights(0.0), weights(10.0), weights(4.0), weights(7.0)], 5.5)
    context.distance = lambda found: abs(found["w"].item() - 5.5)
    config = ModelSoupConfig(recipe="greedy", validation={**VALIDATION, "metric": "nll,none", "best_is": "lower"})
    report = ModelSoup(config).run(context)
    assert context.saved["w"].item() == 5.5
    assert report["soup/score"] == 0.0 and report["soup/score_of_run_0"] == 5.5


def test_a_score_that_is_not_finite_is_refused():
    context = Runs([weights(0.0), weights(1.0)], float("nan"))
    with pytest.raises(ValueError, match=r"method\.validation\.metric=acc,none: must be finite to choose by, got nan"):
        ModelSoup(ModelSoupConfig(recipe="greedy", validation=VALIDATION)).run(context)


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"a further run has b, the mean of the first runs has not"):
        uniform_soup(giving([weights(0.0), {**weights(0.0), "b": torch.zeros(1)}]), 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"recipe": "greedy"}, "method.validation must be given"),
        ({"validation": VALIDATION}, "method.validation must be given"),
        ({"recipe": "greedy", "validation": {"task": "skill"}}, "method.validation.metric must be a name, got None"),
        (
            {"recipe": "greedy", "validation": {"task": 3, "metric": "acc,none"}},
            "method.validation.task must be a name",
        ),
        (
            {"recipe": "greedy", "validation": {**VALIDATION, "shots": 3}},
            "method.validation.shots: must be one of task",
        ),
        ({"recipe": "greedy", "validation": {**VALIDATION, "best_is": "up"}}, "must be higher or lower, got up"),
        ({"recipe": "learned"}, "Input should be 'uniform' or 'greedy'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config, message):
    with pytest.raises(ValidationError) as error:
        TypeAdapter(ModelSoupConfig).validate_python(config)
    assert message in str(error.value)
