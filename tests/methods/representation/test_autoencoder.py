"""Autoencoders: every loss learns, an interrupted training goes on bit for bit; what is measured, what is refused."""

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evals.latents import decibel, nmse
from methods.representation.autoencoder import Autoencoder, AutoencoderConfig
from methods.representation.discs import Discs, DiscsConfig
from tests.command import retable

LOSSES = ("ae", "vae", "beta_vae", "beta_tcvae", "factor_vae", "ae_kld", "ae_mmd")
SMALL: dict[str, Any] = {
    "latents": 2, "epochs": 3, "batch_size": 32, "width": 32, "lr": 3e-3, "noise": 0.03,
    "discriminator_layers": 2, "discriminator_width": 16,
}  # fmt: skip


class Killed(Exception):
    """As if the power were cut."""


class Context:
    """What a run offers; it is killed once `kill_after` epochs are kept, and keeps its state as a file would."""

    def __init__(self, folder: Path, kill_after: int = 0, kept: bytes = b"", network_seed: int = 3) -> None:
        self.seed, self.folder, self.kill_after, self.kept = network_seed, folder, kill_after, kept
        self.dataset = Discs(DiscsConfig(factors="xy", size=8, radius=1.5, train=96, test=40)).load(1)
        self.logged: list[tuple[int | None, dict[str, float]]] = []

    def steps(self, _: str, total: int) -> Iterator[int]:
        return iter(range(total))

    def restore(self, method: Autoencoder) -> None:
        if self.kept:
            method.load_state_dict(torch.load(io.BytesIO(self.kept), weights_only=True))

    def checkpoint(self, method: Autoencoder, step: int) -> None:
        file = io.BytesIO()
        torch.save(method.state_dict(), file)
        self.kept = file.getvalue()
        if step == self.kill_after:
            raise Killed

    def log(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged.append((step, dict(metrics)))


def trained(folder: Path, **settings: Any) -> tuple[Autoencoder, Context, dict[str, float]]:
    method, context = Autoencoder(AutoencoderConfig(**{**SMALL, **settings})), Context(folder)
    return method, context, dict(method.run(context))  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_and_says_how_well(loss: str, tmp_path: Path) -> None:
    method, context, found = trained(tmp_path, loss=loss, epochs=30)
    errors = [metrics["train/squared_error"] for _, metrics in context.logged]
    assert [step for step, _ in context.logged] == list(range(1, 31))
    assert errors[-1] < 0.8 * errors[0]
    codes, _ = method._encoded(method.test_images)
    with torch.no_grad():
        exact = nmse(method.test_images.numpy(), method.networks.decoder(codes).numpy())
    assert found["reconstruction/nmse_db"] == pytest.approx(decibel(exact), abs=1e-4)
    assert found["reconstruction/nmse"] == pytest.approx(exact, rel=1e-4)
    assert found["latents/smallest_variance"] <= found["latents/largest_variance"]
    assert ("latents/kl" in found) == ("vae" in loss)
    assert all(math.isfinite(value) for value in found.values())
    saved = np.load(tmp_path / "codes.npy")
    assert saved.shape == (136, 2)  # all that there are, those to test on first
    np.testing.assert_allclose(saved[:40], codes, atol=1e-6)
    assert saved.var(0, ddof=1).min() == pytest.approx(found["latents/smallest_variance"])


@pytest.mark.parametrize("loss", ["ae_mmd", "factor_vae"])
def test_an_interrupted_training_goes_on_bit_for_bit(loss: str, tmp_path: Path) -> None:
    _, whole, expected = trained(tmp_path, loss=loss)
    first = Context(tmp_path, kill_after=2)
    with pytest.raises(Killed):
        Autoencoder(AutoencoderConfig(**{**SMALL, "loss": loss})).run(first)  # type: ignore[arg-type]
    second = Context(tmp_path, kept=first.kept)
    found = Autoencoder(AutoencoderConfig(**{**SMALL, "loss": loss})).run(second)  # type: ignore[arg-type]
    assert dict(found) == expected
    assert first.logged + second.logged == whole.logged


def test_seeds_differ(tmp_path: Path) -> None:
    config = AutoencoderConfig(**{**SMALL, "epochs": 1})
    found = [Autoencoder(config).run(Context(tmp_path, network_seed=seed)) for seed in (1, 2)]  # type: ignore[arg-type]
    assert found[0]["reconstruction/nmse"] != found[1]["reconstruction/nmse"]


def test_mmd_brings_the_codes_to_the_prior(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"loss": "ae_mmd", "epochs": 60, "lr": 1e-2, "prior": ["gaussian(3,1)", "gaussian(-3,1)"]}
    loose = trained(tmp_path, **asked, weight=0.0)[2]
    far, _, held = trained(tmp_path, **asked, weight=1.0)
    assert held["latents/squared_mmd"] < loose["latents/squared_mmd"] / 2
    centre = far._encoded(far.test_images)[0].mean(0)
    assert float(centre[0]) > 1 and float(centre[1]) < -1


def test_codes_of_one_are_the_prior_of_another(tmp_path: Path) -> None:
    trained(tmp_path, loss="ae")
    codes = tmp_path / "kept.npy"
    np.save(codes, np.load(tmp_path / "codes.npy") + 100)
    method = trained(tmp_path, loss="ae_mmd", prior_codes=str(codes), epochs=1)[0]
    assert float(method.prior.sample(50, torch.Generator().manual_seed(0)).min()) > 50


def test_convolutions_learn_too(tmp_path: Path) -> None:
    _, context, found = trained(tmp_path, network="conv", layers=3, width=8, epochs=10)
    assert found["reconstruction/nmse_db"] < context.logged[0][1]["reconstruction/nmse_db"]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_that_is_not_finite_says_what_to_lower(loss: str, tmp_path: Path) -> None:
    said = r"method.lr=1e\+20: must keep loss and codes finite, which they are not in epoch 1; lower it"
    with pytest.raises(ValueError, match=said):
        trained(tmp_path, loss=loss, lr=1e20)


@pytest.mark.parametrize("network", ["encoder", "decoder"])
def test_weights_that_the_last_step_spoiled_are_found(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose loss was still finite."""
    epoch = Autoencoder._epoch

    def spoiling(method: Autoencoder) -> dict[str, float]:
        logged = epoch(method)
        torch.nn.init.constant_(next(getattr(method.networks, network).parameters()), math.nan)
        return logged

    monkeypatch.setattr(Autoencoder, "_epoch", spoiling)
    with pytest.raises(ValueError, match=r"method.lr=0.003: must keep loss and codes finite"):
        trained(tmp_path, loss="ae")


def test_cuda_without_a_gpu_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"method.device=cuda: must be cpu, as no GPU is found here"):
        trained(tmp_path, device="cuda")


def test_what_does_not_fit_the_images_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"method.batch_size=97: must be at most the number of images, 96"):
        trained(tmp_path, batch_size=97)
    with pytest.raises(ValueError, match=r"method.prior_codes=.*none.npy: no such file"):
        trained(tmp_path, prior_codes=str(tmp_path / "none.npy"))


def saved(codes: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, codes)
    return file.getvalue()


def archived() -> bytes:
    file = io.BytesIO()
    np.savez(file, codes=np.zeros((4, 2)))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "must be a .npy file of numbers"),
        (b"1.0,2.0\n3.0,4.0\n", "must be a .npy file of numbers"),
        (archived(), "must be a .npy file of numbers"),
        (saved(np.zeros((40, 2)))[:-8], "must be a .npy file of numbers"),
        (saved(np.array([{}, {}])), "must be a .npy file of numbers"),
        (saved([["a", "b"]]), "must be a .npy file of numbers, got <U1"),
        (saved(np.zeros((4, 3))), r"must hold \[codes, 2\], got shape \(4, 3\)"),
        (saved(np.zeros((0, 2))), "must hold finite numbers, of one code or more"),
        (saved([[1.0, math.nan]]), "must hold finite numbers"),
        (saved([[1.0, 1e300]]), "must hold finite numbers"),
    ],
    ids=["empty", "text", "npz", "cut off", "objects", "strings", "wide", "none", "nan", "too large"],
)
def test_a_file_without_codes_is_one_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "codes.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^method.prior_codes={path}: {said}"):
        trained(tmp_path, prior_codes=str(path))


RUN = (
    "model=none", "dataset=representation/discs", "method=representation/autoencoder", "evaluation=none",
    "tracker=none",
    "dataset.train=64", "dataset.test=32", "method.batch_size=32", "method.epochs=2", "method.latents=3",
)  # fmt: skip


def test_a_run_ends_with_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = retable(*RUN, "method.prior=['uniform(-5,5)','gaussian(0,2)','mixture(1,-10,10)']")
    assert ended.code == 0, ended.err
    (path,) = (tmp_path / "outputs").glob("*/*/result.json")
    metrics = json.loads(path.read_text())["method_metrics"]
    assert {"latents/lps_lgbm", "latents/lps_mlp", "latents/covariance_ratio", "latents/mig", "latents/sap",
            "latents/dci_disentanglement", "reconstruction/nmse_db"} <= set(metrics)  # fmt: skip


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("method.loss=gan", "method.loss=gan: should be 'ae', 'vae'"),
        ("method.prior=laplace", "method.prior=laplace: must be gaussian(MEAN,SD)"),
        ("method.prior=[gaussian,gaussian]", "must name a sampler for each of 3 latents"),
        ("method.latents=1", "method.latents=1: should be greater than or equal to 2"),
        ("method.weight=-1", "method.weight=-1: should be greater than or equal to 0"),
        ("dataset.radius=8.5", "dataset.radius=8.5: discs must fit into 16 pixels"),
        ("dataset.seed=-1", "dataset.seed=-1: should be greater than or equal to 0"),
        ("method.measured=13", "method.measured=13: should be greater than or equal to 14"),
        ("dataset.factors=xyz", "dataset.factors=xyz: should be 'xy', 'xyc' or 'xycs'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(word: str, said: str) -> None:
    ended = retable(*RUN, word)
    assert ended.code == 1 and said in ended.error and len(ended.err.strip().splitlines()) == 1


def test_the_kl_of_a_batch_needs_more_codes_than_latents() -> None:
    ended = retable(*RUN, "method.loss=ae_kld", "method.batch_size=3")
    assert "method.batch_size=3: must be above method.latents=3 for ae_kld" in ended.error
