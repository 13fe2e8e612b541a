"""Model soup: the mean of the weights of several fine-tuned models.

Wortsman et al.: "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time", ICML 2022, arXiv 2203.05482.

    uniform:  theta = (1/k) sum_i theta_i
    greedy:   the models in the order of their scores on validation items, best first; each joins the mean if the score
              of the mean does not fall

The models are the runs in `model.from_runs`: fine-tunes of one model, with other hyper-parameters or seeds. The greedy
soup scores at least as well as the best single model, on the items that it was chosen with. (The authors' code asks
that the score rise, which differs where it stays the same.) Integer buffers are those of the last model that joined.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from methods.merger import Merger, Weights, between, cast, check_alike, dtypes
from methods.method import Context

_OF_TASK = ("num_fewshot", "limit", "metadata")


@dataclass(frozen=True, kw_only=True)
class ModelSoupConfig:
    """recipe: uniform | greedy. validation: what the greedy recipe chooses by.

    validation: task (of lm-eval), metric (lm-eval's name, such as "acc,none"), best_is (higher unless given as lower),
    and num_fewshot, limit, metadata as in `evaluation.tasks`. Its items must not be those that are reported.
    """

    recipe: Literal["uniform", "greedy"] = "uniform"
    validation: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.recipe == "greedy") != (self.validation is not None):
            raise ValueError(
                f"method.validation must be given for method.recipe=greedy and for no other, got {self.validation} "
                f"for {self.recipe}"
            )
        given = self.validation or {"task": "", "metric": ""}
        for key in ("task", "metric"):
            if not isinstance(given.get(key), str):
                raise ValueError(f"method.validation.{key} must be a name, got {given.get(key)}")
        for key in given:
            if key not in ("task", "metric", "best_is", *_OF_TASK):
                raise ValueError(
                    f"method.validation.{key}: must be one of task, metric, best_is, {', '.join(_OF_TASK)}"
                )
        if given.get("best_is", "higher") not in ("higher", "lower"):
            raise ValueError(f"method.validation.best_is must be higher or lower, got {given['best_is']}")


def add(soup: Weights, model: Weights, members: int) -> Weights:
    """The mean of `members` models and one more: soup + (model - soup) / (members + 1), in fp32.

    In this form the mean of equal models is that model, exactly.

    Args:
        soup: their mean, left as it is.
        model: weights of the same names and shapes; used up.
        members: at least 1.
    """
    check_alike(soup, model, ("the mean of the first runs", "a further run"))
    for name, end in model.items():
        model[name] = between(soup[name], end, 1 / (members + 1))
    return model


def uniform_soup(models: Callable[[int], Weights], count: int) -> Weights:
    """The mean of `count` models, of which `models` gives one at a time; stored as the first."""
    soup = models(0)
    stored = dtypes(soup)
    for number in range(1, count):
        soup = add(soup, models(number), number)
    return cast(soup, stored)


@dataclass(frozen=True)
class Greedy:
    """A greedy soup: its weights, the models in it as they joined, its score, and the score of each single model."""

    weights: Weights
    members: list[int]
    score: float
    singles: list[float]


def greedy_soup(models: Callable[[int], Weights], count: int, score: Callable[[Weights], float]) -> Greedy:
    """The mean of some of `count` models: by score, best first, each joins unless that lowers the score of the mean.

    Args:
        models: gives one at a time; it is asked twice for each.
        score: of weights, on validation items; higher is better.
    """
    singles = [score(models(number)) for number in range(count)]
    order = sorted(range(count), key=lambda number: -singles[number])  # of equals, the first named comes first
    soup, members, best = models(order[0]), order[:1], singles[order[0]]
    stored = dtypes(soup)
    for number in order[1:]:
        candidate = add(soup, models(number), len(members))
        reached = score(candidate)
        if reached >= best:
            soup, best = candidate, reached
            members.append(number)
        del candidate  # taken or not: the next one is read without it
    return Greedy(cast(soup, stored), members, best, singles)


class ModelSoup(Merger):
    """Model soup: the mean of several fine-tuned models, of all or greedily chosen ones (arXiv 2203.05482)."""

    config: ModelSoupConfig
    merges = "runs"

    def merge(self, context: Context) -> tuple[Weights, Mapping[str, float]]:
        """Average the runs, or those that the greedy recipe takes."""
        count, validation = context.run_count, self.config.validation
        if validation is None:
            return uniform_soup(context.run_weights, count), {"soup/members": count}
        task = {"name": validation["task"], **{key: validation[key] for key in _OF_TASK if key in validation}}
        metric = validation["metric"]
        sign = -1 if validation.get("best_is") == "lower" else 1

        def score(weights: Weights) -> float:
            found = context.score(weights, task, metric)
            if not math.isfinite(found):
                raise ValueError(f"method.validation.metric={metric}: must be finite to choose by, got {found}")
            return sign * found

        greedy = greedy_soup(context.run_weights, count, score)
        report: dict[str, float] = {"soup/members": len(greedy.members), "soup/score": sign * greedy.score}
        for number, single in enumerate(greedy.singles):
            report[f"soup/score_of_run_{number}"] = sign * single
            report[f"soup/takes_run_{number}"] = float(number in greedy.members)
        return greedy.weights, report
