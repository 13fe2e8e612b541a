"""A residual network for small images (8 to 64 pixels), as `transformers` loads and saves its own models.

He et al., 2016, arXiv 1512.03385, in the form that is usual for CIFAR: a 3 x 3 convolution without stride or pooling in
front, stages of blocks, each after the first at half the resolution, the mean over the image, a linear head.
transformers' own ResNet begins with a stride of 4, which leaves nothing of an image of 8 x 8.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

_EXPANSION = 4  # of a bottleneck


class SmallResnetConfig(PreTrainedConfig):
    """widths: channels of each stage. depths: blocks of each stage. num_channels: of the images.

    bottleneck: blocks of three convolutions, whose output is four times as wide, as in ResNet-50.
    """

    model_type = "small_resnet"

    def __init__(
        self,
        num_channels: int = 3,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        depths: tuple[int, ...] = (2, 2, 2, 2),
        bottleneck: bool = False,
        **kwargs: Any,
    ) -> None:
        if len(widths) != len(depths):
            raise ValueError(f"depths={list(depths)}: must have one entry for each of widths={list(widths)}")
        self.num_channels, self.widths, self.depths = num_channels, list(widths), list(depths)
        self.bottleneck = bottleneck
        super().__init__(**kwargs)


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.shortcut = _shortcut(before, after, stride)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, after, H / stride, W / stride]."""
        inner_BCHW = F.relu(self.first_norm(self.first(image_BCHW)))
        return F.relu(self.second_norm(self.second(inner_BCHW)) + self.shortcut(image_BCHW))


class Bottleneck(nn.Module):
    """Convolutions of 1 x 1, 3 x 3 and 1 x 1 beside a shortcut; what lies between is a quarter as wide."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        inner = after // _EXPANSION
        self.body = nn.Sequential(
            nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, after, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip
        self.shortcut = _shortcut(before, after, stride)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """[B, before, H, W] -> [B, after, H / stride, W / stride]."""
        return F.relu(self.body(image_BCHW) + self.shortcut(image_BCHW))


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    if before == after and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


class SmallResnet(PreTrainedModel):
    """The network with its linear head."""

    config_class = SmallResnetConfig
    config: SmallResnetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: SmallResnetConfig) -> None:
        super().__init__(config)
        widths = config.widths
        self.stem = nn.Sequential(
            nn.Conv2d(config.num_channels, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        before = widths[0]
        block: type[nn.Module] = Bottleneck if config.bottleneck else Block
        wider = _EXPANSION if config.bottleneck else 1
        for stage, (width, depth) in enumerate(zip(widths, config.depths, strict=True)):
            for number in range(depth):
                blocks.append(block(before, wider * width, 2 if stage and not number else 1))
                before = wider * width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(before, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.reset_running_stats()
        elif isinstance(module, nn.Linear):
            module.reset_parameters()

    def features(self, pixel_values: Tensor) -> Tensor:
        """What the head sees: [B, C, H, W] -> [B, D]."""
        features_BD: Tensor = self.blocks(self.stem(pixel_values)).mean(dim=(2, 3))
        return features_BD

    def forward(self, pixel_values: Tensor, **_: Any) -> ImageClassifierOutputWithNoAttention:
        """[B, C, H, W] -> logits [B, num_labels]."""
        return ImageClassifierOutputWithNoAttention(logits=self.classifier(self.features(pixel_values)))


AutoConfig.register("small_resnet", SmallResnetConfig, exist_ok=True)
AutoModelForImageClassification.register(SmallResnetConfig, SmallResnet, exist_ok=True)
