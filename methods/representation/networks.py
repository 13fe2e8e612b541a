"""Encoders and decoders of images, in plain PyTorch: layers on all pixels, or convolutions alone.

The paper of AE-MMD (arXiv 2510.11953) has fully convolutional, symmetric ones of 4 or 6 layers a side; their widths are
not in our sources. Here a layer halves an image of more than 4 pixels a side and keeps a smaller one, the last one
turns what is left into a single pixel, and the width doubles with every halving after the first.

Legend: B batch, C channels, S side of an image, D what an encoder puts out.
"""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

_SMALLEST = 4  # side that is not halved


class Encoder(nn.Module):
    """Images [B, C, S, S] to [B, D]."""

    def __init__(
        self, shape: tuple[int, int, int], network: Literal["mlp", "conv"], layers: int, width: int, out: int
    ) -> None:
        super().__init__()
        if network == "mlp":
            sizes = [shape[0] * shape[1] * shape[2], *[width] * layers]
            parts: list[nn.Module] = [nn.Flatten(), *_activated(sizes), nn.Linear(sizes[-1], out)]
        else:
            parts = []
            plan = convolutions(shape[1], layers, width)
            inputs = shape[0]
            for kernel, stride, padding, _, outputs in plan[:-1]:
                parts += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
                inputs = outputs
            parts += [nn.Conv2d(inputs, out, plan[-1][0]), nn.Flatten()]
        self.layers = nn.Sequential(*parts)

    def forward(self, images: Tensor) -> Tensor:
        """[B, D]."""
        return self.layers(images)


class Decoder(nn.Module):
    """Codes [B, D] to images [B, C, S, S], an encoder of the same layers and width turned round."""

    def __init__(
        self, shape: tuple[int, int, int], network: Literal["mlp", "conv"], layers: int, width: int, codes: int
    ):
        super().__init__()
        self.network = network
        if network == "mlp":
            sizes = [codes, *[width] * layers]
            pixels = shape[0] * shape[1] * shape[2]
            parts: list[nn.Module] = [*_activated(sizes), nn.Linear(sizes[-1], pixels), nn.Unflatten(1, shape)]
        else:
            plan = convolutions(shape[1], layers, width)
            inner = plan[-2][4] if layers > 1 else shape[0]
            parts = [nn.Unflatten(1, (codes, 1, 1)), nn.ConvTranspose2d(codes, inner, plan[-1][0])]
            for number in range(layers - 2, -1, -1):
                kernel, stride, padding, lost, inputs = plan[number]
                outputs = plan[number - 1][4] if number else shape[0]
                parts += [nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, kernel, stride, padding, output_padding=lost)]
        self.layers = nn.Sequential(*parts)

    def forward(self, codes: Tensor) -> Tensor:
        """[B, C, S, S]."""
        return self.layers(codes)


class Discriminator(nn.Module):
    """FactorVAE's: codes [B, D] to logits [B, 2], leaky ReLU between its layers (arXiv 1802.05983)."""

    def __init__(self, codes: int, layers: int, width: int) -> None:
        super().__init__()
        sizes = [codes, *[width] * layers]
        self.layers = nn.Sequential(*_activated(sizes, nn.LeakyReLU(0.2)), nn.Linear(sizes[-1], 2))

    def forward(self, codes: Tensor) -> Tensor:
        """[B, 2]."""
        return self.layers(codes)


def convolutions(side: int, layers: int, width: int) -> list[tuple[int, int, int, int, int]]:
    """Kernel, stride, padding, what a transposed one has to pad, and width of every layer; the last width is 0.

    A stride of 2 makes ceil(side / 2) of a side.
    """
    plan, outputs = [], width
    for number in range(layers - 1):
        stride = 2 if side > _SMALLEST else 1
        after = -(-side // stride)
        if stride == 2 and number:
            outputs *= 2
        plan.append((3, stride, 1, side - ((after - 1) * stride + 1), outputs))
        side = after
    return [*plan, (side, 1, 0, 0, 0)]


def _activated(sizes: list[int], activation: nn.Module | None = None) -> list[nn.Module]:
    """Linear layers of these sizes, each with its activation (ReLU) behind it."""
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        parts += [nn.Linear(inputs, outputs), activation or nn.ReLU()]
    return parts
