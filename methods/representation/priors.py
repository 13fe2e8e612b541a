"""Priors that can be sampled, one sampler for each dimension or the codes of another autoencoder.

AE-MMD needs nothing of a prior but samples ("Programmable Priors", arXiv 2510.11953). A dimension's sampler is written

    gaussian(MEAN, SD)           uniform(LOW, HIGH)           mixture(SD, MODE, MODE, ...)

and a prior is one of them for all dimensions, or a list with one for each: the paper's "hybrid" priors are such lists.
`gaussian` alone is gaussian(0, 1), as the paper's comparison with a VAE implies; `uniform` alone has mean 0 and
variance 1 as well, which is a guess. Modes are equally likely (a guess). The paper's Gaussian(0, 2) is taken as a
standard deviation of 2, which it does not say.

An empirical prior draws from codes that were saved ("latent copying" in the paper).

Legend: N samples, D dimensions, C saved codes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_FORM = re.compile(r"(gaussian|uniform|mixture)(?:\(([^()]*)\))?")
_ALONE = {"gaussian": (0.0, 1.0), "uniform": (-(3**0.5), 3**0.5)}


@dataclass(frozen=True)
class Dimension:
    """The sampler of one dimension, as it is written above."""

    kind: str
    numbers: tuple[float, ...]

    @classmethod
    def read(cls, written: str) -> "Dimension":
        """Read what is written.

        Raises:
            ValueError: it is none of the forms, or its numbers make no sense; names key, value and rule.
        """
        found = _FORM.fullmatch(str(written).replace(" ", ""))
        if found is None:
            raise ValueError(
                f"method.prior={written}: must be gaussian(MEAN,SD), uniform(LOW,HIGH) or mixture(SD,MODE,...)"
            )
        kind, inside = found.groups()
        try:
            numbers = _ALONE.get(kind, ()) if inside is None else tuple(float(part) for part in inside.split(","))
        except ValueError:
            raise ValueError(f"method.prior={written}: must have numbers between its brackets") from None
        if not all(abs(number) < float("inf") for number in numbers):
            raise ValueError(f"method.prior={written}: must have finite numbers")
        if kind == "mixture":
            if len(numbers) < 3 or numbers[0] < 0:
                raise ValueError(f"method.prior={written}: must have a standard deviation >= 0 and two modes or more")
        elif len(numbers) != 2:
            raise ValueError(f"method.prior={written}: must have two numbers, got {len(numbers)}")
        elif kind == "gaussian" and numbers[1] <= 0:
            raise ValueError(f"method.prior={written}: must have a standard deviation > 0")
        elif kind == "uniform" and numbers[0] >= numbers[1]:
            raise ValueError(f"method.prior={written}: must have its lower end below its upper one")
        return cls(kind, numbers)

    @classmethod
    def each(cls, written: str | Sequence[str], width: int) -> "tuple[Dimension, ...]":
        """One for all `width` dimensions, or those of a list with one for each.

        Raises:
            ValueError: one that cannot be read, or a list of another length.
        """
        if isinstance(written, str):
            return (cls.read(written),) * width
        if len(written) != width:
            raise ValueError(f"method.prior={list(written)}: must name a sampler for each of {width} latents")
        return tuple(cls.read(one) for one in written)


@dataclass(frozen=True)
class Factorised:
    """Independent dimensions, each with a sampler of its own."""

    dimensions: tuple[Dimension, ...]

    def sample(self, count: int, random: torch.Generator) -> Tensor:
        """Returns [N, D]."""
        return torch.stack([drawn(dimension, count, random) for dimension in self.dimensions], 1)


@dataclass(frozen=True)
class Empirical:
    """Samples with replacement of codes_CD."""

    codes_CD: Tensor

    def __post_init__(self) -> None:
        if self.codes_CD.ndim != 2 or not len(self.codes_CD) or not torch.isfinite(self.codes_CD).all():
            raise ValueError(
                f"saved codes must be finite numbers [codes, latents], got shape {list(self.codes_CD.shape)}"
            )

    def sample(self, count: int, random: torch.Generator) -> Tensor:
        """Returns [N, D]."""
        return self.codes_CD[torch.randint(len(self.codes_CD), (count,), generator=random)]


def drawn(dimension: Dimension, count: int, random: torch.Generator) -> Tensor:
    """Independent samples of one dimension. Returns [N]."""
    if dimension.kind == "uniform":
        low, high = dimension.numbers
        return low + (high - low) * torch.rand(count, generator=random)
    noise = torch.randn(count, generator=random)
    if dimension.kind == "gaussian":
        mean, sd = dimension.numbers
        return mean + sd * noise
    sd, *modes = dimension.numbers
    return torch.tensor(modes)[torch.randint(len(modes), (count,), generator=random)] + sd * noise
