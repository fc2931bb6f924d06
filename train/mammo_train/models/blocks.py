"""Blocks shared by the networks. Convolution → batch norm → ReLU, so that an exporter can fold the norm."""

from __future__ import annotations

import torch
from torch import nn


class ConvNormRelu(nn.Sequential):
    """Conv 3x3 (stride 1, padding 1, no bias) → batch norm → ReLU: [N, i, H, W] → [N, o, H, W]."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """Conv-norm-ReLU-conv-norm plus shortcut, then ReLU (He et al. 2016, basic block): [N, i, H, W] → [N, o, H, W].

    The shortcut is the identity, or conv 1x1 + norm where the number of channels changes.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = ConvNormRelu(channels_in, channels_out)
        self.second = nn.Sequential(
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out)
        )
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        out: torch.Tensor = self.relu(self.second(self.first(x)) + self.shortcut(x))
        return out
