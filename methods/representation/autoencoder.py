"""Autoencoders of images whose codes are held to a prior, and how independent their codes become.

The table of Fruytier et al.: "Sculpting Latent Spaces With MMD: Disentanglement With Programmable Priors", 2025, arXiv
2510.11953: AE, VAE, beta-VAE, beta-TCVAE, FactorVAE, AE-KLD and AE-MMD, whose losses are in
`methods.representation.losses`. Encoder and decoder are trained together by Adam; the last, smaller batch of an epoch
is left out. Codes are what the encoder puts out, of the losses with a likelihood its mean.

Pixels are from 0 to 1; how a data set would crop, flip or scale them for a classifier is not looked at.

At the end, of the images to test on: NMSE. Of their codes, and of training ones until there are `measured`: LPS,
covariance ratio, variances, MMD^2 to the prior; where the factors are known MIG, SAP and DCI (`evals.latents`). The
codes are left in the run's folder, `codes.npy`, from where `prior_codes` takes them.

Legend: N images, B batch, D latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from evals.latents import (
    covariance_ratio,
    dci,
    decibel,
    latent_predictability,
    mutual_information_gap,
    nmse,
    separated_attribute_predictability,
)
from methods.images import ImageData
from methods.method import Context
from methods.representation import losses
from methods.representation.discs import FactoredImages
from methods.representation.divergences import discriminator_loss, gaussian_kl, shuffled_dimensions
from methods.representation.mmd import squared_mmd
from methods.representation.networks import Decoder, Discriminator, Encoder
from methods.representation.priors import Dimension, Empirical, Factorised
from methods.simulation import Simulation

_MMD_POINTS = 512  # in which MMD^2 to the prior is measured: the paper's batch
_AT_ONCE = 1000  # images that are encoded together to be measured
_SAMPLED = ("vae", "beta_vae", "beta_tcvae", "factor_vae")  # whose encoder puts out a mean and a log-variance


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """loss: as above. latents: D.

    weight: lambda, of MMD^2 or of the batch's KL. prior: a sampler for all latents, or a list with one for each
    (`methods.representation.priors`). prior_codes: a .npy file of codes to draw from in its place. beta: of beta-VAE
    and beta-TCVAE. gamma: of FactorVAE. noise: variance of a pixel in the likelihood of the VAEs.

    network, layers, width: of encoder and decoder (`methods.representation.networks`). epochs, batch_size, lr: of the
    training. discriminator_layers, discriminator_width, discriminator_lr: FactorVAE's. measured: codes at most that
    LPS and the like look at. device: cpu or cuda.
    """

    loss: Literal["ae", "vae", "beta_vae", "beta_tcvae", "factor_vae", "ae_kld", "ae_mmd"] = "ae_mmd"
    latents: Annotated[int, Ge(2)] = 8
    weight: NonNegativeFloat = 0.3
    prior: str | list[str] = "gaussian"
    prior_codes: str | None = None
    beta: NonNegativeFloat = 4.0
    gamma: NonNegativeFloat = 10.0
    noise: PositiveFloat = 0.5
    network: Literal["mlp", "conv"] = "mlp"
    layers: PositiveInt = 2
    width: PositiveInt = 128
    epochs: PositiveInt = 100
    batch_size: Annotated[int, Ge(2)] = 512
    lr: PositiveFloat = 5e-4
    discriminator_layers: PositiveInt = 6
    discriminator_width: PositiveInt = 1000
    discriminator_lr: PositiveFloat = 1e-4
    measured: Annotated[int, Ge(14)] = 10_000
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        Dimension.each(self.prior, self.latents)
        if self.loss == "ae_kld" and self.batch_size <= self.latents:
            raise ValueError(
                f"method.batch_size={self.batch_size}: must be above method.latents={self.latents} for ae_kld"
            )


class Networks(nn.Module):
    """Encoder, decoder and, for FactorVAE, discriminator."""

    def __init__(self, config: AutoencoderConfig, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.width = config.latents
        self.sampled = config.loss in _SAMPLED
        out = config.latents * (2 if self.sampled else 1)
        self.encoder = Encoder(shape, config.network, config.layers, config.width, out)
        self.decoder = Decoder(shape, config.network, config.layers, config.width, config.latents)
        if config.loss == "factor_vae":
            self.discriminator = Discriminator(config.latents, config.discriminator_layers, config.discriminator_width)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes or their means [B, D], and log-variances where there are any."""
        put_out = self.encoder(images)
        return (put_out[:, : self.width], put_out[:, self.width :]) if self.sampled else (put_out, None)


class Autoencoder(Simulation):
    """An autoencoder whose codes are held to a prior, by MMD or a KL (arXiv 2510.11953)."""

    config: AutoencoderConfig
    data: ClassVar[tuple[str, ...]] = ("images", "factored_images")
    files: ClassVar[tuple[str, ...]] = ("prior_codes",)

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.done = 0  # epochs
        self.restored: dict[str, Any] | None = None

    def run(self, context: Context) -> Mapping[str, float]:
        """Train, epoch by epoch; returns what was measured at the end.

        Raises:
            ValueError: images, prior and settings do not go together, no GPU where one is asked for, or a training
                that comes to numbers that are not finite.
        """
        data: ImageData = context.dataset
        if self.config.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"method.device={self.config.device}: must be cpu, as no GPU is found here")
        self.images, self.test_images = (self._scaled(each) for each in (data.images, data.test_images))
        self._build(context.seed)
        context.restore(self)
        if self.restored is not None:
            self._continue(self.restored)
        for _ in context.steps("training", self.config.epochs - self.done):
            logged = self._epoch()
            codes, _ = self._encoded(self.test_images)
            logged["reconstruction/nmse_db"] = self._nmse_db(codes)
            if not (np.isfinite(list(logged.values())).all() and torch.isfinite(codes).all()):
                raise self._not_finite()
            self.done += 1
            logged["latents/covariance_ratio"] = covariance_ratio(codes.numpy())
            context.log(logged, self.done)
            context.checkpoint(self, self.done)
        return self._measured(context, data)

    def _scaled(self, pixels: NDArray[np.uint8]) -> Tensor:
        return (torch.from_numpy(pixels).float() / 255).to(self.config.device)

    def _build(self, seed: int) -> None:
        """Networks, optimizers and prior, as they are before the first epoch.

        Raises:
            ValueError: images, prior and settings do not go together.
        """
        config = self.config
        channels, rows, columns = self.images.shape[1:]
        if config.network == "conv" and rows != columns:
            raise ValueError(f"method.network={config.network}: needs images as high as wide, got {rows} x {columns}")
        if len(self.images) < config.batch_size:
            raise ValueError(
                f"method.batch_size={config.batch_size}: must be at most the number of images, {len(self.images)}"
            )
        torch.manual_seed(seed)  # the networks' first weights
        self.networks = Networks(config, (channels, rows, columns)).to(config.device)
        both = [*self.networks.encoder.parameters(), *self.networks.decoder.parameters()]
        self.optimizer = torch.optim.Adam(both, lr=config.lr)
        if config.loss == "factor_vae":
            self.opponent = torch.optim.Adam(
                self.networks.discriminator.parameters(), lr=config.discriminator_lr, betas=(0.5, 0.9)
            )
        # On the CPU, so that what is drawn is the same on every device.
        self.random = torch.Generator().manual_seed(seed)
        self.prior = _prior(config)

    def _epoch(self) -> dict[str, float]:
        """One pass over the images; the means of what its steps log."""
        config = self.config
        order_N = torch.randperm(len(self.images), generator=self.random)
        batches = len(order_N) // config.batch_size
        sums = torch.zeros(3)
        for number in range(batches):
            chosen = order_N[number * config.batch_size : (number + 1) * config.batch_size]
            x = self.images[chosen.to(self.images.device)]
            loss, error, codes_BD = self._step(x)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if config.loss == "factor_vae":
                self._train_discriminator(codes_BD.detach())
            sums += torch.stack([loss.detach(), error.detach(), codes_BD.detach().var(0).min()]).cpu()
        loss, error, smallest = (sums / batches).tolist()
        return {"train/loss": loss, "train/squared_error": error, "train/smallest_variance": smallest}

    def _step(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the mean squared error, and the codes that were decoded."""
        config, networks = self.config, self.networks
        mean_BD, logvar_BD = networks.encode(x)
        if logvar_BD is None:
            reconstruction, codes_BD = networks.decoder(mean_BD), mean_BD
            if config.loss == "ae_mmd":
                if not torch.isfinite(codes_BD).all():  # of which there is no median distance
                    raise self._not_finite()
                samples_BD = self.prior.sample(len(x), self.random).to(x.device)
                loss = losses.ae_mmd(x, reconstruction, codes_BD, samples_BD, config.weight)
            elif config.loss == "ae_kld":
                loss = losses.ae_kld(x, reconstruction, codes_BD, config.weight)
            else:
                loss = losses.mean_squared_error(x, reconstruction)
            return loss, losses.mean_squared_error(x, reconstruction), codes_BD
        noise_BD = torch.randn(mean_BD.shape, generator=self.random).to(x.device)
        codes_BD = mean_BD + torch.exp(0.5 * logvar_BD) * noise_BD
        reconstruction = networks.decoder(codes_BD)
        if config.loss == "beta_tcvae":
            loss = losses.beta_tcvae(
                x, reconstruction, codes_BD, mean_BD, logvar_BD,
                dataset_size=len(self.images), noise=config.noise, beta=config.beta,
            )  # fmt: skip
        elif config.loss == "factor_vae":
            logits_B2 = networks.discriminator(codes_BD)
            loss = losses.factor_vae(
                x, reconstruction, mean_BD, logvar_BD, logits_B2, noise=config.noise, gamma=config.gamma
            )
        else:
            beta = config.beta if config.loss == "beta_vae" else 1.0
            loss = losses.vae(x, reconstruction, mean_BD, logvar_BD, noise=config.noise, beta=beta)
        return loss, losses.mean_squared_error(x, reconstruction), codes_BD

    def _not_finite(self) -> ValueError:
        return ValueError(
            f"method.lr={self.config.lr}: must keep loss and codes finite, which they are not in epoch "
            f"{self.done + 1}; lower it"
        )

    def _train_discriminator(self, joint_BD: Tensor) -> None:
        """One step on these codes and on those of other images, shuffled, as in the paper of FactorVAE."""
        other = torch.randint(len(self.images), (len(joint_BD),), generator=self.random).to(joint_BD.device)
        with torch.no_grad():
            mean_BD, logvar_BD = self.networks.encode(self.images[other])
            assert logvar_BD is not None
            noise_BD = torch.randn(mean_BD.shape, generator=self.random).to(mean_BD.device)
            codes_BD = mean_BD + torch.exp(0.5 * logvar_BD) * noise_BD
        shuffled_BD = shuffled_dimensions(codes_BD, self.random)
        discriminator = self.networks.discriminator
        loss = discriminator_loss(discriminator(joint_BD), discriminator(shuffled_BD))
        self.opponent.zero_grad()  # and of what the encoder's loss left there
        loss.backward()
        self.opponent.step()

    @torch.no_grad()
    def _encoded(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes, or their means and log-variances, of many images, on the CPU. Each [N, D]."""
        found = [self.networks.encode(part) for part in images.split(_AT_ONCE)]
        means_ND = torch.cat([mean for mean, _ in found]).cpu()
        logvars = [logvar for _, logvar in found if logvar is not None]
        return means_ND, torch.cat(logvars).cpu() if logvars else None

    @torch.no_grad()
    def _nmse_db(self, codes_ND: Tensor) -> float:
        """Of the images to test on, from their codes."""
        parts = [self.networks.decoder(part.to(self.images.device)).cpu() for part in codes_ND.split(_AT_ONCE)]
        return decibel(nmse(self.test_images.cpu().numpy(), torch.cat(parts).numpy()))

    def _measured(self, context: Context, data: ImageData) -> dict[str, float]:
        """What is said above, by the names of the table's columns."""
        test_ND, logvar_ND = self._encoded(self.test_images)
        more = max(self.config.measured - len(test_ND), 0)
        train_ND, _ = self._encoded(self.images[:more]) if more else (test_ND[:0], None)
        codes = torch.cat([test_ND, train_ND])[: self.config.measured].double().numpy()
        np.save(context.folder / "codes.npy", codes)
        nmse_db = self._nmse_db(test_ND)
        points = codes[:_MMD_POINTS]
        samples_ND = self.prior.sample(len(points), torch.Generator().manual_seed(context.seed)).double()
        variances_D = codes.var(0, ddof=1)
        found = {
            "reconstruction/nmse_db": nmse_db,
            "reconstruction/nmse": 10 ** (nmse_db / 10),
            "latents/lps_lgbm": latent_predictability(codes, "lgbm", seed=context.seed).mean,
            "latents/lps_mlp": latent_predictability(codes, "mlp", seed=context.seed).mean,
            "latents/covariance_ratio": covariance_ratio(codes),
            "latents/smallest_variance": float(variances_D.min()),
            "latents/largest_variance": float(variances_D.max()),
            "latents/squared_mmd": float(squared_mmd(torch.from_numpy(points), samples_ND)),
        }
        if logvar_ND is not None:
            found["latents/kl"] = float(gaussian_kl(test_ND, logvar_ND))
        if isinstance(data, FactoredImages):
            factors = np.concatenate([data.test_factors, data.factors[:more]])[: self.config.measured]
            told = dci(codes, factors, seed=context.seed)
            found |= {
                "latents/mig": mutual_information_gap(codes, factors),
                "latents/mig_nats": mutual_information_gap(codes, factors, normalised=False),
                "latents/sap": separated_attribute_predictability(codes, factors),
                "latents/dci_disentanglement": told.disentanglement,
                "latents/dci_completeness": told.completeness,
                "latents/dci_informativeness": told.informativeness,
            }
        return found

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimizers, how far the training is and what it draws next."""
        state: dict[str, Any] = {
            "done": self.done,
            "networks": self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.random.get_state(),
        }
        if self.config.loss == "factor_vae":
            state["opponent"] = self.opponent.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep it until the networks are built."""
        self.restored = state

    def _continue(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
        self.networks.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.random.set_state(state["random"])
        if self.config.loss == "factor_vae":
            self.opponent.load_state_dict(state["opponent"])


def _prior(config: AutoencoderConfig) -> Factorised | Empirical:
    """What AE-MMD holds its codes to.

    Raises:
        ValueError: no file of saved codes, or none that are finite numbers of this width.
    """
    if config.prior_codes is None:
        return Factorised(Dimension.each(config.prior, config.latents))
    path = Path(config.prior_codes)
    if not path.is_file():
        raise ValueError(f"method.prior_codes={path}: no such file")
    try:
        with path.open("rb") as file:
            codes = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError):
        raise ValueError(f"method.prior_codes={path}: must be a .npy file of numbers") from None
    if codes.dtype.kind not in "fiu":
        raise ValueError(f"method.prior_codes={path}: must be a .npy file of numbers, got {codes.dtype}")
    if codes.ndim != 2 or codes.shape[1] != config.latents:
        raise ValueError(f"method.prior_codes={path}: must hold [codes, {config.latents}], got shape {codes.shape}")
    with np.errstate(over="ignore"):  # what is too large for fp32 is refused below
        codes = codes.astype(np.float32)
    if not len(codes) or not np.isfinite(codes).all():
        raise ValueError(f"method.prior_codes={path}: must hold finite numbers, of one code or more")
    return Empirical(torch.from_numpy(codes))
