"""UNet++, the nested U-Net (Zhou et al. 2018), and its pruning (study 000).

Certain: the nodes and their inputs (paper), depth 4, deep supervision by the mean of the heads' losses. Proposed:
batch norm, bilinear up-sampling with a fixed factor (study 000 names the network only).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mammo_runtime.errors import UsageError
from mammo_train.models.blocks import Block, Double, Enlarge


class Nest(nn.Module):
    """The nodes right of the first column: X(i, j) from X(i, 0..j-1) and the enlarged X(i+1, j-1)."""

    def __init__(self, width: Sequence[int], columns: int, block: Block = Double) -> None:
        super().__init__()
        self.columns = columns
        self.nodes = nn.ModuleDict(
            {
                f"{i}_{j}": block(j * width[i] + width[i + 1], width[i])
                for j in range(1, columns + 1)
                for i in range(columns + 1 - j)
            }
        )
        self.enlarge = Enlarge()

    def forward(self, first: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
        """Map the first column X(0..columns, 0) to all rows: result[i][j] is X(i, j), at 1 / 2^i of the sides."""
        rows = [[x] for x in first]
        for j in range(1, self.columns + 1):
            for i in range(self.columns + 1 - j):
                below = self.enlarge(rows[i + 1][j - 1])
                rows[i].append(self.nodes[f"{i}_{j}"](torch.cat([*rows[i][:j], below], dim=1)))
        return rows


class UNetPlusPlus(nn.Module):
    """UNet++, logits out: [N, channels, H, W] → [N, classes, H, W]; sides multiples of 2^columns.

    `deep_supervision`: a head on each of X(0, 1..columns); in train mode the logits of all heads, the last head's
    first. `columns`: columns right of the encoder, 1 to 4; fewer give a smaller network, see `pruned`.
    """

    def __init__(
        self, channels: int, classes: int, width: Sequence[int], deep_supervision: bool = False, columns: int = 4
    ) -> None:
        super().__init__()
        if not 1 <= columns < len(width):
            raise UsageError(f"this UNet++ has 1 to {len(width) - 1} columns, not {columns}")
        self.blocks = nn.ModuleList(
            Double(i, o) for i, o in zip((channels, *width[:columns]), width[: columns + 1], strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.nest = Nest(width, columns)
        supervised = range(1, columns + 1) if deep_supervision else (columns,)
        self.heads = nn.ModuleDict({str(j): nn.Conv2d(width[0], classes, 1) for j in supervised})

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Return logits float [N, classes, H, W]; in train mode with deep supervision a tuple of them."""
        first = [self.blocks[0](x)]
        for block in self.blocks[1:]:
            first.append(block(self.pool(first[-1])))
        row = self.nest(first)[0]
        last = str(self.nest.columns)
        if not self.training or len(self.heads) == 1:
            logits: torch.Tensor = self.heads[last](row[-1])
            return logits
        return tuple(head(row[int(j)]) for j, head in reversed(list(self.heads.items())))


def pruned(weights: dict[str, torch.Tensor], columns: int) -> dict[str, torch.Tensor]:
    """Return the weights of a deeply supervised UNet++ without what only columns > `columns` use.

    They load into the network built with deep_supervision=True and this `columns`. Raises UsageError when the
    weights have no head there.
    """
    if f"heads.{columns}.weight" not in weights:
        raise UsageError(f"these weights have no head on column {columns}: train with deep_supervision=true")

    def kept(name: str) -> bool:
        kind, _, rest = name.partition(".")
        if kind == "nest":
            i, j = rest.removeprefix("nodes.").partition(".")[0].split("_")
            return int(i) + int(j) <= columns
        return int(rest.partition(".")[0]) <= columns

    return {name: tensor for name, tensor in weights.items() if kept(name)}
