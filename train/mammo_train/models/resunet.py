"""Deep residual U-Net, `resunet` (Zhang, Liu and Wang 2018; baseline of study 004).

Certain: pre-activation units, stride instead of pooling (paper). Inferred: filters 64 to 512 as in the paper.
Proposed: bilinear up-sampling with a fixed factor. Few parameters, heavy arithmetic: 45 GMAC at 256x256.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

from mammo_train.models.blocks import Enlarge, PreActUnit


class ResUNet(nn.Module):
    """Residual U-Net, logits out: [N, channels, H, W] → [N, classes, H, W]; sides multiples of 8."""

    def __init__(self, channels: int, classes: int, width: Sequence[int]) -> None:
        super().__init__()
        self.first = PreActUnit(channels, width[0], first=True)
        self.down = nn.ModuleList(PreActUnit(i, o, stride=2) for i, o in itertools.pairwise(width))
        self.enlarge = Enlarge()
        self.up = nn.ModuleList(PreActUnit(width[k] + f, f) for k, f in enumerate(width[:-1], 1))
        self.head = nn.Conv2d(width[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits float [N, classes, H, W]."""
        levels = [self.first(x)]
        for unit in self.down:
            levels.append(unit(levels[-1]))
        x = levels[-1]
        for k in reversed(range(len(self.up))):
            x = self.up[k](torch.cat([self.enlarge(x), levels[k]], dim=1))
        logits: torch.Tensor = self.head(x)
        return logits
