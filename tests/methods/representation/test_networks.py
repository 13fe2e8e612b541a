"""Encoders and decoders: shapes for every side and depth, what convolutions alone means, the plan by hand."""

import pytest
import torch
from torch import nn

from methods.representation.networks import Decoder, Discriminator, Encoder, convolutions


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize(("side", "layers"), [(8, 1), (8, 3), (16, 4), (28, 4), (32, 4), (64, 6), (13, 3)])
def test_images_come_back_in_their_shape(network: str, side: int, layers: int) -> None:
    shape = (3, side, side)
    encoder = Encoder(shape, network, layers, 4, 5)  # type: ignore[arg-type]
    decoder = Decoder(shape, network, layers, 4, 5)  # type: ignore[arg-type]
    codes = encoder(torch.rand(2, *shape))
    assert codes.shape == (2, 5) and decoder(codes).shape == (2, *shape)
    linear = [module for module in (*encoder.modules(), *decoder.modules()) if isinstance(module, nn.Linear)]
    assert bool(linear) == (network == "mlp")
    kinds = (nn.Conv2d, nn.Linear)
    assert sum(isinstance(module, kinds) for module in encoder.modules()) == layers + (network == "mlp")


def test_every_pixel_is_seen_and_written() -> None:
    images = torch.rand(1, 1, 16, 16, requires_grad=True)
    for network in ("mlp", "conv"):
        torch.manual_seed(0)
        encoder, decoder = Encoder((1, 16, 16), network, 3, 16, 4), Decoder((1, 16, 16), network, 3, 16, 4)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(encoder(images).sum(), images)
        assert (gradient != 0).all()
        codes = torch.randn(1, 4, requires_grad=True)
        changed = decoder(codes) - decoder(codes + 1)
        assert (changed != 0).all()


def test_plan_by_hand() -> None:
    """28 -> 14 -> 7 -> 4 -> 1, twice as wide with every halving after the first."""
    assert convolutions(28, 4, 8) == [(3, 2, 1, 1, 8), (3, 2, 1, 1, 16), (3, 2, 1, 0, 32), (4, 1, 0, 0, 0)]
    assert convolutions(8, 4, 8) == [(3, 2, 1, 1, 8), (3, 1, 1, 0, 8), (3, 1, 1, 0, 8), (4, 1, 0, 0, 0)]


def test_discriminator_has_two_logits() -> None:
    assert Discriminator(4, 3, 8)(torch.rand(5, 4)).shape == (5, 2)
