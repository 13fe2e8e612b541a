"""What selectors share: sizes and their names, what a subset is measured by, training on it, what is refused."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from methods.images import ImageData, Images, ImagesConfig
from methods.selection import base, class_wise, proxy
from methods.selection.base import Embedded, Selector
from methods.selection.ccs import Ccs, CcsConfig
from methods.selection.data import ContaminatedGaussian, ContaminatedGaussianConfig, Features
from methods.selection.distance import Distance, DistanceConfig
from methods.selection.gm_matching import GmMatching, GmMatchingConfig
from methods.selection.herding import Herding, HerdingConfig
from methods.selection.influence import Influence, InfluenceConfig
from methods.selection.k_center import KCenter, KCenterConfig
from methods.selection.prototypes import Prototypes, PrototypesConfig
from methods.selection.scores import ScoredConfig, Scores
from methods.selection.uniform import Uniform, UniformConfig
from tests.command import retable
from tests.runners.tiny_run import refusal

POINTS = ("model=none", "dataset=selection/contaminated_gaussian", "evaluation=none", "tracker=none")
IMAGES = ("model=none", "dataset=images/digits", "evaluation=none", "tracker=none")


class Fake:
    """The part of a run that selectors use."""

    def __init__(self, dataset: Any, seed: int = 1) -> None:
        self.dataset, self.seed = dataset, seed
        self.config = {"dataset": {"_target_": "mine.Points"}}
        self.logged: list[tuple[int | None, dict[str, float]]] = []

    def steps(self, _: str, total: int) -> Iterator[int]:
        yield from range(total)

    def log(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.logged.append((step, dict(metrics)))


def ran(method: Selector, dataset: Any, seed: int = 1) -> tuple[Mapping[str, float], Fake]:
    context = Fake(dataset, seed)
    return method.run(context), context  # type: ignore[arg-type]


def few_images(**settings: Any) -> ImageData:
    return Images(ImagesConfig(limit=150, **settings)).load(1)


def gaussian(**settings: Any) -> Features:
    return ContaminatedGaussian(ContaminatedGaussianConfig(**settings)).load(1)


# Points ------------------------------------------------------------------------------------------------------


def test_a_subset_is_measured_by_hand() -> None:
    points = Features(np.array([[0.0, 0], [2, 0], [4, 0], [9, 9]]), np.array([False, False, False, True]))
    found = base.measure(points, np.array([0, 3]))
    assert found["bad"] == 0.5
    assert found["error"] == pytest.approx(np.hypot(2.5, 4.5))
    assert found["trace"] == pytest.approx((4.5**2 + 4.5**2) / (8 / 3))
    assert base.measure(points, np.array([1]))["trace"] == 0


def test_data_are_described_by_hand() -> None:
    points = Features(np.array([[0.0], [1], [2], [3], [100]]), np.array([False, False, False, False, True]))
    found = base.described(points)
    assert found["data/bad"] == 0.2
    assert found["data/mean_error"] == pytest.approx(21.2 - 1.5) and found["data/gm_error"] == pytest.approx(0.5)
    assert found["data/bound"] == pytest.approx(np.sqrt(8 * 4 * 5 / 9))
    half = Features(points.points_ND, np.array([False, False, True, True, True]))
    assert "data/bound" not in base.described(half)


def test_every_size_is_measured_and_logged() -> None:
    metrics, context = ran(Uniform(UniformConfig(k=[10, 40, 160])), gaussian())
    assert [step for step, _ in context.logged] == [10, 40, 160]
    assert set(context.logged[0][1]) == {"subset/bad", "subset/error", "subset/trace"}
    assert {"bad/10", "error/40", "trace/160", "data/bad", "rate/slope"} <= set(metrics)
    errors = [metrics[f"error/{k}"] for k in (10, 40, 160)]
    assert errors == [logged["subset/error"] for _, logged in context.logged]
    slope = np.log(errors[2] / errors[0]) / np.log(16)  # the middle one of three is at the mean of log k
    assert metrics["rate/slope"] == pytest.approx(slope)
    assert "rate/slope" not in ran(Uniform(UniformConfig(k=[10, 40])), gaussian())[0]


def test_shares_are_named_in_percent() -> None:
    metrics, _ = ran(Uniform(UniformConfig(keep=[0.29, 0.005, 1.0])), gaussian(n=200))
    assert {"error/29", "error/0.5", "error/100"} <= set(metrics)
    assert metrics["bad/100"] == metrics["data/bad"] and metrics["error/100"] == pytest.approx(
        metrics["data/mean_error"]
    )


def test_gm_matching_is_nearer_than_herding_and_random() -> None:
    found = {
        type(method).__name__: ran(method, gaussian(radius=1000.0))[0]["error/100"]
        for method in (
            GmMatching(GmMatchingConfig(k=[100])), Herding(HerdingConfig(k=[100])), Uniform(UniformConfig(k=[100])),
        )
    }  # fmt: skip
    # One bad point among a hundred moves their mean by ten.
    assert found["GmMatching"] < 10 and found["Herding"] > 300 and found["Uniform"] > 300


@pytest.mark.parametrize(
    "method", [KCenter(KCenterConfig()), Prototypes(PrototypesConfig()), Distance(DistanceConfig())]
)
def test_others_run_on_points(method: Selector) -> None:
    assert 0 <= ran(method, gaussian(n=100))[0]["bad/30"] <= 1


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (UniformConfig(k=[5, 201]), "^method.k=201: must be at most 200, the number of points$"),
        (UniformConfig(keep=[0.001]), "^method.keep=0.001: must choose at least one of 200 points, got 0$"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config: UniformConfig, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ran(Uniform(config), gaussian(n=200))


def test_points_that_are_not_finite_are_refused() -> None:
    points = Features(np.array([[0.0], [np.nan]]), np.array([False, False]))
    with pytest.raises(ValueError, match=r"^dataset._target_=mine.Points: all its points must be finite$"):
        ran(Uniform(UniformConfig(k=[1])), points)


def test_sizes_are_listed_once_and_at_least_one() -> None:
    with pytest.raises(ValueError, match=r"^method.k=\[\]: must list at least one size, each once$"):
        UniformConfig(k=[])
    with pytest.raises(ValueError, match=r"^method.keep=\[0.2, 0.2\]: must list at least one size, each once$"):
        UniformConfig(keep=[0.2, 0.2])


# Images ------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"keep": [0.4], "steps": 5, "hidden": 8}
QUICK: dict[str, Any] = {**SMALL, "proxy_passes": 2}
METHODS = [
    Uniform(UniformConfig(**SMALL)),
    Herding(HerdingConfig(**QUICK)),
    GmMatching(GmMatchingConfig(**QUICK)),
    Distance(DistanceConfig(**QUICK, embedding="pca")),
    KCenter(KCenterConfig(**QUICK, embedding="logits")),
    Prototypes(PrototypesConfig(**QUICK)),
    *(Scores(ScoredConfig(**QUICK, score=score, early_passes=1, inits=2)) for score in ("forgetting", "el2n", "grand")),  # type: ignore[arg-type]
    Ccs(CcsConfig(**QUICK, early_passes=1, inits=2)),
    Influence(InfluenceConfig(**QUICK)),
]


@pytest.mark.parametrize(
    "method", METHODS, ids=lambda method: type(method).__name__ + getattr(method.config, "score", "")
)
def test_every_selector_ends_with_its_numbers(method: Selector) -> None:
    data = few_images(label_noise=0.2, corruption=0.2)
    metrics, _ = ran(method, data)
    assert set(metrics) == {"data/wrong", "data/corrupted", "accuracy/40", "wrong/40", "corrupted/40"}
    assert metrics["data/wrong"] == metrics["data/corrupted"] == 0.2
    assert all(0 <= value <= 1 for value in metrics.values())
    assert metrics == ran(method, data)[0]  # the seed decides


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        (Uniform(UniformConfig(**SMALL)), 0),
        (Prototypes(PrototypesConfig(**QUICK)), 0),  # of the pixels
        (Herding(HerdingConfig(**QUICK)), 2),
        (Scores(ScoredConfig(**QUICK, early_passes=1, inits=2)), 2),
    ],
)
def test_a_proxy_is_trained_where_one_is_looked_at(
    method: Selector, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    train = proxy.train

    def counted(images: proxy.Labelled, **settings: Any) -> proxy.Trained:
        steps.append(settings["steps"])
        return train(images, **settings)

    monkeypatch.setattr(proxy, "train", counted)
    ran(method, few_images())
    assert sum(steps) == passes * 3 + 5  # three batches make a pass; the last five are on the chosen


def test_settings_are_those_that_count() -> None:
    """What a selector does not look at is no part of its settings, and so of a run's identity."""
    proxies, embeddings = {"proxy_passes"}, {"embedding", "components"}
    for method in METHODS:
        names = {field.name for field in dataclasses.fields(method.config)}
        assert (names & embeddings == embeddings) == isinstance(method, Embedded)
        assert (names & proxies == proxies) == (not isinstance(method, Uniform))


class Watched(Uniform):
    """Notes what it is asked to choose from."""

    def __init__(self, config: UniformConfig) -> None:
        super().__init__(config)
        self.asked: list[tuple[int, int]] = []

    def select(self, seen_N: np.ndarray, k: int, random: np.random.Generator) -> np.ndarray:
        self.asked.append((len(seen_N), k))
        return super().select(seen_N, k, random)


def test_images_are_chosen_within_each_noisy_class() -> None:
    data = few_images(label_noise=0.4)
    method = Watched(UniformConfig(**SMALL))
    ran(method, data)
    assert [size for size, _ in method.asked] == np.bincount(data.labels).tolist()
    assert [k for _, k in method.asked] == class_wise.quotas(np.bincount(data.labels), 60).tolist()
    assert {k for _, k in method.asked} <= {5, 6, 7}  # one class has five images
    whole = Watched(UniformConfig(**SMALL, per_class=False))
    ran(whole, data)
    assert whole.asked == [(150, 60)]


def test_all_images_teach_the_digits() -> None:
    whole = Images(ImagesConfig(label_noise=0.2)).load(1)
    metrics, _ = ran(Uniform(UniformConfig(keep=[1.0], steps=150)), whole)
    assert metrics["accuracy/100"] > 0.75
    assert metrics["wrong/100"] == metrics["data/wrong"] == int(0.2 * 1297) / 1297


def test_under_label_noise_el2n_keeps_the_wrong_ones_and_the_easy_are_right() -> None:
    """Forgotten, far or steep: what a network has not learnt is mostly mislabelled."""
    data = Images(ImagesConfig(limit=600, label_noise=0.2)).load(1)
    quick: dict[str, Any] = {"keep": [0.2], "steps": 1, "hidden": 32}
    el2n, _ = ran(Scores(ScoredConfig(**quick, score="el2n", early_passes=10, inits=1)), data)
    easy, _ = ran(Distance(DistanceConfig(**quick, which="easy", proxy_passes=10)), data)
    assert el2n["wrong/20"] > 0.6 and easy["wrong/20"] < 0.05


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"keep": [0.05]},
            "^method.keep=0.05: must choose at least one for each of the 10 classes of 150 points, got 8$",
        ),
        ({"k": [9]}, "^method.k=9: must choose at least one for each of the 10 classes of 150 points, got 9$"),
        ({"k": [151]}, "^method.k=151: must be at most 150, the number of points$"),
        ({"lr": 1e30}, r"^method.lr=1e\+30: the loss is (nan|inf) at step \d+; lower it$"),
    ],
)
def test_what_does_not_fit_images_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ran(Herding(HerdingConfig(**{**QUICK, **settings})), few_images())


def test_fewer_points_than_classes_are_fine_where_classes_do_not_count() -> None:
    assert "accuracy/9" in ran(Uniform(UniformConfig(k=[9], per_class=False, steps=2)), few_images())[0]


# The command -------------------------------------------------------------------------------------------------


def test_command_on_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = retable(*POINTS, "method=selection/gm_matching", "method.k=[10,20]", "dataset.n=100")
    assert ended.code == 0, ended.err
    assert "error/20" in ended.out


def test_command_says_what_is_wrong_with_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = retable(*POINTS, "method=selection/uniform", "method.k=[2000]")
    assert ended.code != 0 and "method.k=2000: must be at most 1000, the number of points" in ended.err


@pytest.fixture
def composer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hydra set up as the command sets it up, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module="conf", version_base="1.3"):
        yield


@pytest.mark.usefixtures("composer")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*POINTS, "method=selection/scores"), "dataset.type=features: method=selection/scores needs images"),
        ((*POINTS, "method=selection/influence"), "dataset.type=features: method=selection/influence needs images"),
        ((*POINTS, "method=selection/uniform", "method.keep=[1.5]"), "method.keep"),
        ((*POINTS, "method=selection/uniform", "method.k=[0]"), "method.k"),
        ((*POINTS, "method=selection/gm_matching", "method.gamma=0"), "method.gamma=0: should be greater than 0"),
        ((*POINTS, "method=selection/gm_matching", "method.similarity=dot"), "method.similarity=dot"),
        ((*POINTS, "method=selection/uniform", "dataset.psi=1"), "dataset.psi=1: should be less than 1"),
        ((*POINTS, "method=selection/uniform", "dataset.radius=.inf"), "dataset.radius"),
        ((*IMAGES, "method=selection/ccs", "method.cutoff=1"), "method.cutoff=1: should be less than 1"),
        ((*IMAGES, "method=selection/scores", "method.embedding=pca"), "embedding"),
        (
            (*IMAGES, "method=selection/scores", "method.score=forgetting", "method.proxy_passes=1"),
            "method.proxy_passes=1: must be at least 2 for method.score=forgetting",
        ),
    ],
)
def test_what_does_not_compose_is_refused_in_one_line(words: tuple[str, ...], said: str) -> None:
    assert said in refusal(*words, base=())
