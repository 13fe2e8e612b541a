"""What a fit measures, logs and keeps; several problems; an interrupted one ends as if it had not been."""

import math

import numpy as np
import pytest

from methods.mixtures import base
from methods.mixtures.base import MixtureFit, measure, optimal_loss
from methods.mixtures.data import InvertedImages, InvertedImagesConfig, SyntheticMixture, SyntheticMixtureConfig
from methods.mixtures.em import Em, EmConfig
from methods.mixtures.gradient_descent import GradientDescent, GradientDescentConfig
from methods.mixtures.gradient_em import GradientEm, GradientEmConfig
from methods.mixtures.mixture import MixtureData
from tests.methods.mixtures.fake_context import FakeContext, fitted


def problems(instances: int = 1) -> list[MixtureData]:
    return SyntheticMixture(SyntheticMixtureConfig(n=100, d=3, instances=instances)).load(1)


def test_measured_at_the_known_iterations_and_logged_at_all() -> None:
    context = FakeContext(problems())
    found = Em(EmConfig(iterations=7)).run(context)  # type: ignore[arg-type]
    iterations = {name.partition("/")[2] for name in found if name.startswith("beta_error/")}
    assert iterations == {"0", "5", "7"} and sorted(context.logged) == list(range(8))
    assert found["beta_error/5"] == context.logged[5]["fit/beta_error"]
    assert found["loss_above_last/7"] == 0
    assert found["loss_above_last/5"] == found["loss/5"] - found["loss/7"]


def test_measures_of_the_start_are_those_of_its_definition() -> None:
    (data,) = problems()
    assert data.truth is not None
    found = measure(data, data.start, optimum=1.0)
    loss = data.mixture.nll(data.start, data.x_ND, data.y_N)
    assert found["loss"] == loss and found["loss_above_optimum"] == loss - 1.0
    assert found["loss_above_truth"] == loss - data.mixture.nll(data.truth, data.x_ND, data.y_N)
    assert found["w_error"] == np.linalg.norm(data.start.w - data.truth.w) / np.linalg.norm(data.truth.w)


def test_optimum_is_below_the_truth_and_flat() -> None:
    (data,) = problems()
    assert data.truth is not None
    optimum = optimal_loss(data)
    assert optimum < data.mixture.nll(data.truth, data.x_ND, data.y_N)
    found = fitted(Em(EmConfig(iterations=100)), [data])
    assert found["loss/100"] == pytest.approx(optimum, abs=1e-10)


def test_several_problems_are_averaged() -> None:
    both = problems(2)
    apart = [fitted(Em(EmConfig(iterations=5)), [one]) for one in both]
    together = fitted(Em(EmConfig(iterations=5)), both)
    for name, value in together.items():
        assert value == pytest.approx((apart[0][name] + apart[1][name]) / 2, abs=1e-14), name


def test_images_are_measured_by_their_test_points() -> None:
    (data,) = InvertedImages(InvertedImagesConfig(limit=60)).load(1)
    found = fitted(GradientDescent(GradientDescentConfig(iterations=3)), [data])
    assert data.test_x_MD is not None and data.test_y_M is not None
    assert found["accuracy/0"] == (data.mixture.predict(data.start, data.test_x_MD) == data.test_y_M).mean()
    assert found["cross_entropy/0"] == pytest.approx(math.log(10), abs=0.3)
    assert not any(name.startswith(("beta_error", "loss_above_truth", "loss_above_optimum")) for name in found)


@pytest.mark.parametrize(
    "method", [Em(EmConfig(iterations=8)), GradientEm(GradientEmConfig(iterations=8))], ids=["em", "gradient EM"]
)
def test_an_interrupted_fit_goes_on_bit_for_bit(method: MixtureFit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_KEPT_EVERY", -1.0)
    whole = FakeContext(problems(2))
    expected = type(method)(method.config).run(whole)  # type: ignore[arg-type]
    first = FakeContext(problems(2), stop_after=6)
    with pytest.raises(InterruptedError):
        type(method)(method.config).run(first)  # type: ignore[arg-type]
    second = FakeContext(problems(2), state=first.state)
    assert type(method)(method.config).run(second) == expected  # type: ignore[arg-type]
    assert {**first.logged, **second.logged} == whole.logged and sorted(second.logged) == [7, 8]


def test_state_is_of_tensors_and_plain_values(tmp_path: object) -> None:
    """As a run keeps it: read again with weights only."""
    import io

    import torch

    method = Em(EmConfig(iterations=1))
    fitted(method, problems())
    buffer = io.BytesIO()
    torch.save(method.state_dict(), buffer)
    buffer.seek(0)
    again = Em(EmConfig(iterations=1))
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert np.array_equal(again.thetas[0].beta, method.thetas[0].beta) and again.measured == method.measured
