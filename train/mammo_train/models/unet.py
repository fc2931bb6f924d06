"""The U-Net and its variants by block: `unet`, `attention_unet`, `dense_unet` (study 000; 004's first baseline).

Certain (study 000): filters 64 to 1024, 3x256x256, binary masks. Papers: Ronneberger et al. 2015 (U-Net), Oktay et
al. 2018 (attention gates). Proposed, since the study gives no layer list: batch norm in every convolution, transposed
convolutions 2x2, gates driven by the up-sampled decoder tensor, `DenseBlock` at all nine places of the dense U-Net.
The `S` widths, 32 to 512, are those of the published Connected-UNets code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mammo_train.models.blocks import Block, DenseBlock, Double, Gate, up_layer


class Down(nn.Module):
    """Contracting half: a block for each level with 2x2 max pooling between them.

    Not called `encoder` in the networks: they have no pretrained one that a first phase could freeze.
    """

    def __init__(self, channels: int, width: Sequence[int], block: Block, bottom: Block | None = None) -> None:
        super().__init__()
        inputs = (channels, *width[:-1])
        kinds = [block] * (len(width) - 1) + [bottom or block]
        self.blocks = nn.ModuleList(kind(i, o) for kind, i, o in zip(kinds, inputs, width, strict=True))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map [N, channels, H, W] to the levels' tensors [N, width[i], H / 2^i, W / 2^i], finest first."""
        levels = [self.blocks[0](x)]
        for block in self.blocks[1:]:
            levels.append(block(self.pool(levels[-1])))
        return levels


class Up(nn.Module):
    """Expanding half: up-sample, concatenate the (gated) skip, block."""

    def __init__(self, width: Sequence[int], block: Block, up: str = "transposed", gated: bool = False) -> None:
        super().__init__()
        fine = width[:-1]
        self.ups = nn.ModuleList(up_layer(up, width[k + 1], f) for k, f in enumerate(fine))
        self.blocks = nn.ModuleList(block(2 * f, f) for f in fine)
        self.gates = nn.ModuleList(Gate(f, f, f // 2) for f in fine) if gated else None

    def forward(self, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Map the contracting half's tensors to this half's, finest first; the bottom is not repeated."""
        x, out = levels[-1], []
        for k in reversed(range(len(self.blocks))):
            x = self.ups[k](x)
            skip = levels[k] if self.gates is None else self.gates[k](levels[k], x)
            x = self.blocks[k](torch.cat([skip, x], dim=1))
            out.append(x)
        return out[::-1]


class UNet(nn.Module):
    """U-Net of any block, logits out: [N, channels, H, W] → [N, classes, H, W]; sides multiples of 2^(levels - 1)."""

    def __init__(
        self,
        channels: int,
        classes: int,
        width: Sequence[int],
        up: str = "transposed",
        block: Block = Double,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.down = Down(channels, width, block)
        self.up = Up(width, block, up, gated)
        self.head = nn.Conv2d(width[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits float [N, classes, H, W]."""
        logits: torch.Tensor = self.head(self.up(self.down(x))[0])
        return logits


def attention_unet(channels: int, classes: int, width: Sequence[int], up: str = "transposed") -> UNet:
    """Return the attention U-Net (Oktay et al. 2018; not the AUNet of Sun et al.): a gate on each of the four skips."""
    return UNet(channels, classes, width, up, gated=True)


def dense_unet(channels: int, classes: int, width: Sequence[int], up: str = "transposed") -> UNet:
    """Return the U-Net with a dense block wherever the plain one has two convolutions (proposed, see above)."""
    return UNet(channels, classes, width, up, DenseBlock)
