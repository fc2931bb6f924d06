"""Blocks shared by the networks. Convolution → batch norm → ReLU, so that an exporter can fold the norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mammo_runtime.errors import UsageError

Block = Callable[[int, int], nn.Module]
"""Takes channels in and out: `Double`, `DenseBlock`, `ResidualBlock` and the like."""
NORM_ORDERS = ("conv_norm_relu", "published")
UPS = ("transposed", "bilinear", "nearest")


class ConvNormRelu(nn.Sequential):
    """Conv 3x3 (stride 1, padding 1, no bias) → batch norm → ReLU: [N, i, H, W] → [N, o, H, W].

    `published`: conv with bias → ReLU → batch norm, as the Connected-UNets code has it; such a norm cannot be folded.
    """

    def __init__(self, channels_in: int, channels_out: int, published: bool = False) -> None:
        convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=published)
        norm, relu = nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)
        super().__init__(convolution, *((nn.ReLU(), norm) if published else (norm, relu)))


class Double(nn.Sequential):
    """Two `ConvNormRelu`, the block of a plain U-Net (Ronneberger et al. 2015): [N, i, H, W] → [N, o, H, W]."""

    def __init__(self, channels_in: int, channels_out: int, published: bool = False) -> None:
        super().__init__(
            ConvNormRelu(channels_in, channels_out, published), ConvNormRelu(channels_out, channels_out, published)
        )


class DenseBlock(nn.Module):
    """Two dense layers (Huang et al. 2017): y from x, z from [x, y], out [y, z]: [N, i, H, W] → [N, o, H, W]."""

    def __init__(self, channels_in: int, channels_out: int, published: bool = False) -> None:
        super().__init__()
        half = channels_out // 2
        self.first = ConvNormRelu(channels_in, half, published)
        self.second = ConvNormRelu(channels_in + half, channels_out - half, published)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        y = self.first(x)
        return torch.cat([y, self.second(torch.cat([x, y], dim=1))], dim=1)


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


class PreActUnit(nn.Module):
    """Pre-activation residual unit (He et al. 2016b): [N, i, H, W] → [N, o, H / stride, W / stride].

    [norm-ReLU unless first] conv 3x3 (stride) norm-ReLU conv 3x3; shortcut conv 1x1 (stride) + norm; sum, no ReLU
    after it. The norm that follows a sum or a concatenation cannot be folded.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1, first: bool = False) -> None:
        super().__init__()
        before: list[nn.Module] = [] if first else [nn.BatchNorm2d(channels_in), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(
            *before,
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride), nn.BatchNorm2d(channels_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the unit."""
        out: torch.Tensor = self.body(x) + self.shortcut(x)
        return out


class ASPP(nn.Module):
    """Atrous pooling as the Connected-UNets code has it: [N, i, H, W] → [N, o, H, W].

    Parallel conv 3x3 (dilation and padding = rate) + norm, summed, conv 1x1 with bias. Neither activation nor image
    pooling.
    """

    def __init__(
        self, channels_in: int, channels_out: int, published: bool = False, rates: Sequence[int] = (1, 6, 12, 18)
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 3, padding=rate, dilation=rate, bias=published),
                nn.BatchNorm2d(channels_out),
            )
            for rate in rates
        )
        self.project = nn.Conv2d(channels_out, channels_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        total = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        out: torch.Tensor = self.project(total)
        return out


class Gate(nn.Module):
    """Additive attention gate (Oktay et al. 2018): weighs the skip [N, s, H, W] by the decoder's tensor [N, g, H, W].

    Both have one resolution, so that nothing is resized inside; `channels_inner` is the width of the comparison.
    """

    def __init__(self, channels_skip: int, channels_gate: int, channels_inner: int) -> None:
        super().__init__()
        self.skip = _pointwise(channels_skip, channels_inner)
        self.gate = _pointwise(channels_gate, channels_inner)
        self.weight = _pointwise(channels_inner, 1)

    def forward(self, skip: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Return the skip times a weight 0..1 for each pixel."""
        return skip * torch.sigmoid(self.weight(F.relu(self.skip(skip) + self.gate(gate))))


class Enlarge(nn.Module):
    """Interpolation by a fixed factor, half-pixel: one clean Resize in ONNX, no shape arithmetic."""

    def __init__(self, factor: float = 2.0, mode: str = "bilinear") -> None:
        super().__init__()
        self.factor, self.mode = factor, mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to [N, C, factor·H, factor·W]."""
        aligned = False if self.mode == "bilinear" else None
        return F.interpolate(x, scale_factor=self.factor, mode=self.mode, align_corners=aligned)


def up_layer(kind: str, channels_in: int, channels_out: int) -> nn.Module:
    """Return a layer [N, i, H, W] → [N, o, 2H, 2W].

    "transposed": conv 2x2, stride 2, with bias. "bilinear", "nearest": interpolation, then `ConvNormRelu`, where an
    engine handles transposed convolutions badly. Raises UsageError on another kind.
    """
    if kind == "transposed":
        return nn.ConvTranspose2d(channels_in, channels_out, 2, stride=2)
    if kind not in UPS:
        raise UsageError(f"up-sampling must be one of {', '.join(UPS)}, not {kind!r}")
    return nn.Sequential(Enlarge(mode=kind), ConvNormRelu(channels_in, channels_out))


def ordered(block: Callable[..., nn.Module], norm_order: str) -> Callable[..., nn.Module]:
    """Return the block with the norm before the ReLU, or, "published", after it. Raises UsageError on another order."""
    if norm_order not in NORM_ORDERS:
        raise UsageError(f"norm_order must be one of {', '.join(NORM_ORDERS)}, not {norm_order!r}")
    return partial(block, published=True) if norm_order == "published" else block


def set_input_channels(module: nn.Module, channels: int) -> None:
    """Replace a library network's first convolution when it takes another number of channels."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d):
            if child.in_channels != channels:
                parent, _, last = name.rpartition(".")
                setattr(module.get_submodule(parent), last, _with_input_channels(child, channels))
            return


def _with_input_channels(old: nn.Conv2d, channels: int) -> nn.Conv2d:
    geometry: Any = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    return nn.Conv2d(channels, old.out_channels, bias=old.bias is not None, **geometry)


def _pointwise(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out))
