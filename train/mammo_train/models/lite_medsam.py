"""`lite_medsam` (study 002): MedSAM's small sibling for 256x256 images. TinyViT encoder, SAM's mask decoder.

As published (bowang-lab/MedSAM, branch LiteMedSAM; TinyViT: Wu et al. 2022), and unlike the classification TinyViT:
the patch embedding does not shrink (1x1 convolutions) and neither does the last merging, so that 256x256 pixels give
a 64x64 embedding. Modules carry the published names, so that `lite_medsam.pth` fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mammo_train.models.prompted import BoxDecoder, DecoderSize, PromptedNetwork, sam_model

WIDTHS: dict[str, tuple[int, ...]] = {"base": (64, 128, 160, 320), "tiny": (8, 16, 16, 32)}
"""Channels of the encoder's four stages. `tiny` is for tests, at 64x64."""


@dataclass(frozen=True)
class EncoderSize:
    """Depths, heads and windows of the four stages; the first stage is convolutional and has neither."""

    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 5, 10)
    windows: tuple[int, ...] = (7, 7, 14, 7)


SIZES: dict[tuple[int, ...], tuple[DecoderSize, EncoderSize]] = {
    WIDTHS["base"]: (DecoderSize(side=256), EncoderSize()),
    WIDTHS["tiny"]: (
        DecoderSize(64, 16, 16, 4, 2, 2, 32, 2, 16),
        EncoderSize((1, 1, 1, 1), (1, 2, 2, 2), (3, 3, 4, 3)),
    ),
}


class ConvNorm(nn.Sequential):
    """Convolution without bias, then batch norm: [N, i, H, W] → [N, o, H/stride, W/stride]."""

    def __init__(self, i: int, o: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(o))


class InvertedBottleneck(nn.Module):
    """Widen fourfold, convolve each channel, narrow, add, GELU: [N, C, H, W] → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, 4 * channels)
        self.conv2 = ConvNorm(4 * channels, 4 * channels, 3, groups=4 * channels)
        self.conv3 = ConvNorm(4 * channels, channels)
        nn.init.zeros_(self.conv3.get_parameter("bn.weight"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class Merging(nn.Module):
    """Change the channels and, with stride 2, halve the sides: [N, i, H, W] → [N, o, H/stride, W/stride]."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(i, o)
        self.conv2 = ConvNorm(o, o, 3, stride, groups=o)
        self.conv3 = ConvNorm(o, o)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the three convolutions."""
        merged: torch.Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return merged


class WindowAttention(nn.Module):
    """Self-attention within square windows, with a learned bias for each distance: [N, L, C] → the same shape."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self._heads = heads
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        row, column = torch.arange(window * window) // window, torch.arange(window * window) % window
        distance = (row[:, None] - row).abs() * window + (column[:, None] - column).abs()
        self.register_buffer("distance", distance, persistent=False)
        self.distance: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend; L is the window's number of cells."""
        # For each head its query, key and value lie together, as in the published weights.
        heads = self.qkv(self.norm(x)).unflatten(-1, (self._heads, -1)).transpose(1, 2)
        query, key, value = heads.chunk(3, dim=-1)
        scores = query @ key.transpose(-2, -1) * key.shape[-1] ** -0.5 + self.attention_biases[:, self.distance]
        out: torch.Tensor = self.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Norm, widen fourfold, GELU, narrow: [N, L, C] → the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layers."""
        out: torch.Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out


class TinyVitBlock(nn.Module):
    """Attention in windows, a convolution of each channel, an MLP: [N, C, H, W] → the same shape."""

    def __init__(self, channels: int, heads: int, window: int) -> None:
        super().__init__()
        self._window = window
        self.attn = WindowAttention(channels, heads, window)
        self.local_conv = ConvNorm(channels, channels, 3, groups=channels)
        self.mlp = Mlp(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block; sides that are no multiple of the window are padded with zeros for the attention."""
        side, window = x.shape[-1], self._window
        pad = -side % window
        count = (side + pad) // window
        tokens = F.pad(x, (0, pad, 0, pad)).permute(0, 2, 3, 1)
        tokens = tokens.unflatten(2, (count, window)).unflatten(1, (count, window)).transpose(2, 3)
        tokens = self.attn(tokens.flatten(3, 4).flatten(0, 2)).unflatten(0, (-1, count, count))
        tokens = tokens.unflatten(3, (window, window)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x = self.local_conv(x + tokens[:, :side, :side].permute(0, 3, 1, 2))
        flat = x.flatten(2).transpose(1, 2)
        out: torch.Tensor = (flat + self.mlp(flat)).transpose(1, 2).unflatten(2, (side, side))
        return out


class Stage(nn.Module):
    """Blocks of one width, then the merging that leads to the next stage, if there is one."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the stage."""
        for block in self.blocks:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x


class ChannelNorm(nn.Module):
    """Normalise the channels of each cell: [N, C, H, W] → the same shape (transformers' SAM does the same)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the norm."""
        last = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return last.permute(0, 3, 1, 2)


class TinyVitEncoder(nn.Module):
    """TinyViT and neck: [N, 3, side, side] → [N, c, side/4, side/4]."""

    def __init__(self, width: tuple[int, ...], size: EncoderSize, channels: int) -> None:
        super().__init__()
        first = width[0] // 2
        self.patch_embed = nn.ModuleDict(
            {"seq": nn.Sequential(ConvNorm(3, first), nn.GELU(), ConvNorm(first, width[0]))}
        )
        stages = []
        for k, depth in enumerate(size.depths):
            blocks: list[nn.Module] = [
                TinyVitBlock(width[k], size.heads[k], size.windows[k]) if k else InvertedBottleneck(width[k])
                for _ in range(depth)
            ]
            last = k == len(width) - 1
            stages.append(Stage(blocks, None if last else Merging(width[k], width[k + 1], 1 if k == 2 else 2)))
        self.layers = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(width[-1], channels, 1, bias=False),
            ChannelNorm(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            ChannelNorm(channels),
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embedding."""
        x: torch.Tensor = self.patch_embed["seq"](images)
        for stage in self.layers:
            x = stage(x)
        x = self.neck(x)
        return x


class LiteMedSam(PromptedNetwork):
    """`lite_medsam`, at random; `sam_weights.load_published` brings published weights."""

    def __init__(self, channels: int = 3, classes: int = 1, width: tuple[int, ...] = WIDTHS["base"]) -> None:
        if (channels, classes) != (3, 1):
            raise ValueError(f"LiteMedSAM sees three channels and one class, not {channels} and {classes}")
        size, encoder = SIZES[width]
        # The library's encoder is built as small as it can be and left behind.
        model = sam_model(size, {"hidden_size": 8, "num_hidden_layers": 0, "num_attention_heads": 1})
        decoder = BoxDecoder(size, model.prompt_encoder, model.mask_decoder)
        super().__init__(size, TinyVitEncoder(width, encoder, size.channels), decoder)
