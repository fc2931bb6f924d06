"""U-Nets on a MobileNetV2 encoder (study 004, IV.4; Sandler et al. 2018 for the encoder).

Certain: 256x256x3 input, skips at 1/2, 1/4, 1/8 and 1/16, bridge 320 channels at 1/32, a residual (or plain) block
after each up-sampling, 1x1 convolution. Inferred (the only layer with 320 channels is the last bottleneck's
projection): the skips are the expansion activations, as in the widespread TensorFlow example. Proposed: decoder
filters 256, 128, 64, 32, 16 and bilinear up-sampling with a fixed factor, which exports as one clean Resize.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.models import mobilenet_v2

from mammo_train.models.blocks import Block, Double, Enlarge, ResidualBlock, set_input_channels

SKIP_BLOCKS = (2, 4, 7, 14)
"""torchvision's `features` indices whose expansion output (conv+norm+ReLU6) is a skip: 96, 144, 192, 576 channels."""
SKIP_CHANNELS = (96, 144, 192, 576)
BRIDGE_CHANNELS = 320


class MobileNetV2Encoder(nn.Module):
    """MobileNetV2 `features[0..17]` (1,811,712 parameters, torchvision's names), giving skips and bridge."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.features = mobilenet_v2(weights=None).features[:18]
        set_input_channels(self, channels)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map [N, channels, H, W] (sides multiples of 32) to skips at 1/2, 1/4, 1/8, 1/16 and the bridge at 1/32."""
        taps: list[torch.Tensor] = []
        for index, block in enumerate(self.features):
            if index in SKIP_BLOCKS:
                expanded = block.conv[0](x)
                taps.append(expanded)
                projected = block.conv[1:](expanded)
                x = x + projected if block.use_res_connect else projected
            else:
                x = block(x)
        return [*taps, x]


class MobileNetV2UNet(nn.Module):
    """MobileNetV2 encoder, plain decoder, logits out: [N, channels, H, W] → [N, classes, H, W]; sides of 32·k.

    `width` holds the decoder's filters from the finest level (1/1) to 1/16.
    """

    block: Block = Double

    def __init__(self, channels: int, classes: int, width: Sequence[int]) -> None:
        super().__init__()
        self.encoder = MobileNetV2Encoder(channels)
        decoder = tuple(width)[::-1]
        inputs = (BRIDGE_CHANNELS, *decoder[:-1])
        skips = (*reversed(SKIP_CHANNELS), 0)
        block = type(self).block
        self.decoder = nn.ModuleList(block(i + skip, o) for i, skip, o in zip(inputs, skips, decoder, strict=True))
        self.enlarge = Enlarge()
        self.head = nn.Conv2d(decoder[-1], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits float [N, classes, H, W]; H and W must be multiples of 32."""
        *skips, x = self.encoder(x)
        for block in self.decoder:
            x = self.enlarge(x)
            if skips:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x)
        logits: torch.Tensor = self.head(x)
        return logits


class MobileNetV2ResUNet(MobileNetV2UNet):
    """`MobileNetV2UNet` with residual blocks in the decoder, the study's own network; 5,697,969 parameters."""

    block = ResidualBlock
