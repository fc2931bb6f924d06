"""Connected networks: two U-Nets in a row, the second one's encoder fed by the first one's decoder (study 000).

Paper: Baccouche et al. 2021, Connected-UNets. Certain: two encoders, two decoders, skips between them, ASPP
bottlenecks (parent paper and code). Inferred: that the study's dense, attention and UNet++ variants keep the scheme,
and (about 80 %) that CUNet++ is two UNet++ halves. Proposed: norm before ReLU (the published code normalises after
it, which no exporter can fold), gates that do not resize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from mammo_train.models.blocks import ASPP, Block, ConvNormRelu, DenseBlock, Double, ordered
from mammo_train.models.unet import Down, Up
from mammo_train.models.unetpp import Nest


class ConnectedUNet(nn.Module):
    """Two connected U-Nets, logits out: [N, channels, H, W] → [N, classes, H, W]; sides multiples of 16.

    `aspp`: ASPP at both bottlenecks and before the head; without it plain blocks. `norm_order="published"`: convolution
    with bias → ReLU → norm and no norm in the layers `pre`, only to reproduce the published code.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: Sequence[int],
        up: str = "transposed",
        aspp: bool = True,
        norm_order: str = "conv_norm_relu",
        block: Callable[..., nn.Module] = Double,
        gated: bool = False,
    ) -> None:
        super().__init__()
        block = ordered(block, norm_order)
        bottom: Block = ordered(ASPP, norm_order) if aspp else block
        fine = width[:-1]
        self.first_down = Down(channels, width, block, bottom)
        self.first_up = Up(width, block, up, gated)
        self.pre = nn.ModuleList(
            _pre(i, o, norm_order) for i, o in zip((fine[0], *fine[:-1]), fine, strict=True)
        )  # fmt: skip
        self.blocks = nn.ModuleList(block(2 * f, f) for f in fine)
        self.pool = nn.MaxPool2d(2)
        self.bottom = bottom(fine[-1], width[-1])
        self.second_up = Up(width, block, up, gated)
        self.end: nn.Module = bottom(fine[0], fine[0]) if aspp else nn.Identity()
        self.head = nn.Conv2d(fine[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits float [N, classes, H, W]."""
        first = self.first_up(self.first_down(x))
        levels, x = [], first[0]
        for k, (pre, block) in enumerate(zip(self.pre, self.blocks)):
            x = block(torch.cat([pre(x if k == 0 else self.pool(x)), first[k]], dim=1))
            levels.append(x)
        levels.append(self.bottom(self.pool(x)))
        logits: torch.Tensor = self.head(self.end(self.second_up(levels)[0]))
        return logits


def connected_dense_unet(channels: int, classes: int, width: Sequence[int], **options: object) -> ConnectedUNet:
    """Return CDUNet: `ConnectedUNet` with a dense block wherever it has two convolutions (inferred)."""
    return ConnectedUNet(channels, classes, width, block=DenseBlock, **options)  # type: ignore[arg-type]


def connected_attention_unet(channels: int, classes: int, width: Sequence[int], **options: object) -> ConnectedUNet:
    """Return CAUNet: `ConnectedUNet` with a gate on each of the eight skips (inferred); best of study 000 on crops."""
    return ConnectedUNet(channels, classes, width, gated=True, **options)  # type: ignore[arg-type]


class ConnectedUNetPlusPlus(nn.Module):
    """CUNet++: two connected UNet++ halves: [N, channels, H, W] → logits [N, classes, H, W]; sides multiples of 16.

    The second half's X'(i, 0) is fed by the first half's diagonal X(i, 4 - i). Inferred, see the module. `aspp`: ASPP
    at both bottlenecks and before the head, as in the parent.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: Sequence[int],
        aspp: bool = False,
        norm_order: str = "conv_norm_relu",
    ) -> None:
        super().__init__()
        block, columns = ordered(Double, norm_order), len(width) - 1
        pooled = ordered(ASPP, norm_order)
        self.first_down = Down(channels, width, block, pooled if aspp else None)
        self.first_nest = Nest(width, columns, block)
        fed = width[:-1] if aspp else width
        self.pre = nn.ModuleList(_pre(i, o, norm_order) for i, o in zip((width[0], *fed[:-1]), fed, strict=True))
        self.blocks = nn.ModuleList(block(2 * f, f) for f in fed)
        self.pool = nn.MaxPool2d(2)
        self.bottom = pooled(width[-2], width[-1]) if aspp else None
        self.second_nest = Nest(width, columns, block)
        self.end = pooled(width[0], width[0]) if aspp else nn.Identity()
        self.head = nn.Conv2d(width[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits float [N, classes, H, W]."""
        diagonal = [row[-1] for row in self.first_nest(self.first_down(x))]
        levels, x = [], diagonal[0]
        for k, (pre, block) in enumerate(zip(self.pre, self.blocks)):
            x = block(torch.cat([pre(x if k == 0 else self.pool(x)), diagonal[k]], dim=1))
            levels.append(x)
        if self.bottom is not None:
            levels.append(self.bottom(self.pool(x)))
        logits: torch.Tensor = self.head(self.end(self.second_nest(levels)[0][-1]))
        return logits


def _pre(channels_in: int, channels_out: int, norm_order: str) -> nn.Module:
    """Return the layer between the halves; the published one has no norm."""
    if norm_order == "published":
        return nn.Sequential(nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU())
    return ConvNormRelu(channels_in, channels_out)
