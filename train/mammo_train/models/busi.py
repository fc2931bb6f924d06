"""Networks of study 002 on breast ultrasound: the U-Net at 128x128 (`busi_unet`) and VGG-16 (`vgg16_busi`).

Certain (the study's code): every layer and dropout rate of the U-Net, ReLU at its output, mean squared error; VGG-16
with three classes at 224x224. Proposed: logits with BCE + Dice as the default output, the pooled head of VGG.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.vgg import make_layers

from mammo_runtime.errors import UsageError
from mammo_train.models.blocks import set_input_channels

FINALS = ("logits", "relu")
HEADS = ("fc", "pool")
CLIP = 1e-3
VGG_LAYERS = (2, 2, 3, 3, 3)
"""Convolutions of each of VGG-16's five stages."""
FC_CELLS = 7
"""Side of the last feature map that the fully connected head takes: 224 / 32."""


class BusiUNet(nn.Module):
    """U-Net without batch norm, with dropout (study 002): [N, channels, H, W] → logits [N, classes, H, W].

    Sides are multiples of 16. `final="relu"` reproduces the study's output p = ReLU(x), whose pixels can die: the
    network then returns the logit of p clipped to 0.001..0.999, so that the sigmoid every exported graph ends in
    gives p; gradients pass the clipping unchanged, as the study has none.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: Sequence[int],
        final: str = "logits",
        dropout_down: float = 0.2,
        dropout_up: float = 0.1,
    ) -> None:
        super().__init__()
        if final not in FINALS:
            raise UsageError(f"busi_unet ends in one of {', '.join(FINALS)}, not {final!r}")
        self.final, fine = final, width[:-1]
        self.down = nn.ModuleList(_plain_double(i, o) for i, o in zip((channels, *fine[:-1]), fine, strict=True))
        self.between = nn.Sequential(nn.MaxPool2d(2), nn.Dropout(dropout_down))
        self.middle = _plain_double(fine[-1], width[-1])
        self.ups = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(width[k + 1], f, 2, stride=2), nn.ReLU(inplace=True))
            for k, f in enumerate(fine)
        )
        self.up = nn.ModuleList(nn.Sequential(_plain_double(2 * f, f), nn.Dropout(dropout_up)) for f in fine)
        self.head = nn.Conv2d(fine[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits float [N, classes, H, W]."""
        skips = []
        for block in self.down:
            skips.append(block(x))
            x = self.between(skips[-1])
        x = self.middle(x)
        for k in reversed(range(len(skips))):
            x = self.up[k](torch.cat([self.ups[k](x), skips[k]], dim=1))
        logits: torch.Tensor = self.head(x)
        return _logit_of_relu(logits) if self.final == "relu" else logits


class VGGEncoder(nn.Module):
    """VGG-16's convolutions (Simonyan and Zisserman 2015) under torchvision's names `features.*`, no batch norm."""

    def __init__(self, channels: int, width: Sequence[int]) -> None:
        super().__init__()
        stages: list[str | int] = []
        for filters, count in zip(width, VGG_LAYERS, strict=True):
            stages += [filters] * count + ["M"]
        self.features = make_layers(stages)
        set_input_channels(self, channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, channels, H, W] to features [N, width[-1], H / 32, W / 32]."""
        features: torch.Tensor = self.features(x)
        return features


class VGG16(nn.Module):
    """VGG-16 classifier: [N, channels, 224, 224] → logits [N, classes].

    `head="fc"`, the study's, holds 89 % of the weights in three linear layers and takes 224x224 only. `head="pool"`
    (proposed, for small devices) averages over the picture instead: 14.7 million parameters, any side divisible by 32.
    """

    def __init__(self, channels: int, classes: int, width: Sequence[int], head: str = "fc") -> None:
        super().__init__()
        if head not in HEADS:
            raise UsageError(f"vgg16_busi has the heads {', '.join(HEADS)}, not {head!r}")
        self.encoder = VGGEncoder(channels, width)
        self.pooled, hidden = head == "pool", 8 * width[-1]
        if self.pooled:
            self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(width[-1], classes))
        else:
            self.classifier = nn.Sequential(
                *(nn.Linear(width[-1] * FC_CELLS**2, hidden), nn.ReLU(inplace=True), nn.Dropout()),
                *(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout()),
                nn.Linear(hidden, classes),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits float [N, classes]. Raises UsageError when a picture's side does not fit the head."""
        features = self.encoder(x)
        if self.pooled:
            features = features.mean((2, 3))
        elif features.shape[2:] != (FC_CELLS, FC_CELLS):
            raise UsageError(
                f"the fully connected head of VGG-16 takes 224x224, not {x.shape[2]}x{x.shape[3]}; "
                "give --size 224x224 or build the network with head=pool"
            )
        logits: torch.Tensor = self.classifier(features.flatten(1))
        return logits


def _plain_double(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(channels_out, channels_out, 3, padding=1), nn.ReLU(inplace=True)),
    )


def _logit_of_relu(x: torch.Tensor) -> torch.Tensor:
    """Return the logit of ReLU(x) clipped to CLIP..1-CLIP, in float32: half precision rounds 0.999 to 1."""
    output = F.relu(x.float())
    clipped = output.clamp(CLIP, 1 - CLIP)
    if torch.is_grad_enabled():
        clipped = output + (clipped - output).detach()
    return torch.log(clipped) - torch.log(1 - clipped)
