"""Critics of adversarial training (study 000's MSANet). They are never part of a network, so never exported.

`MultiscaleCritics`: Chen et al. 2020 (IEEE Access 8, multi-scale adversarial networks for breast masses): three
critics at different scales and spectral normalisation are certain, the layers proposed. `SegANCritic`: Xue et al. 2018
(SegAN) with its published code's layers, the less likely reading of the study's title.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

SLOPE = 0.2
PATCH_WIDTH = (64, 128, 256, 512)
SEGAN_LAYERS = ((64, 7), (128, 5), (256, 4), (512, 4), (512, 4), (512, 3))
"""Filters and kernel of the six convolutions, each with stride 2."""
SEGAN_WEIGHTS = (1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 4.0)
"""Of the input and of each convolution's output in the critic's answer."""


class PatchCritic(nn.Sequential):
    """Judges patches: [N, channels, H, W] → one value for each patch [N, 1, H / 16 + 1, W / 16 + 1].

    Spectrally normalised conv 4x4, stride 2, leaky ReLU four times, then conv 4x4 (padding 2, so that sides down to
    16 pixels work). 2,765,761 parameters for 3 + 1 channels.
    """

    def __init__(self, channels: int, width: Sequence[int] = PATCH_WIDTH) -> None:
        layers: list[nn.Module] = []
        for i, o in zip((channels, *width[:-1]), width, strict=True):
            layers += [spectral_norm(nn.Conv2d(i, o, 4, stride=2, padding=1)), nn.LeakyReLU(SLOPE, inplace=True)]
        super().__init__(*layers, spectral_norm(nn.Conv2d(width[-1], 1, 4, padding=2)))


class MultiscaleCritics(nn.Module):
    """Three identical critics on image and mask at 1, 1/2 and 1/4 of the resolution; sides of at least 64 pixels.

    `channels` counts the image's and the mask's: 4 for a colour image and one class.
    """

    def __init__(self, channels: int, width: Sequence[int] = PATCH_WIDTH, scales: Sequence[int] = (1, 2, 4)) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.critics = nn.ModuleList(PatchCritic(channels, width) for _ in scales)

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return each critic's patch map, unbounded, higher where image [N, C, H, W] and mask [N, K, H, W] seem real.

        `mask` holds probabilities or truth, 0..1.
        """
        pair = torch.cat([image, mask], dim=1)
        return tuple(
            critic(pair if scale == 1 else F.avg_pool2d(pair, scale))
            for scale, critic in zip(self.scales, self.critics, strict=True)
        )


class SegANCritic(nn.Module):
    """SegAN's critic: features of the image masked by a mask. It is trained to tell truth's from prediction's.

    The distance is the mean absolute difference of two answers; the critic raises it, the network lowers it, and
    after each of the critic's steps its weights are clamped.
    """

    def __init__(self, channels: int, layers: Sequence[tuple[int, int]] = SEGAN_LAYERS) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for number, (filters, kernel) in enumerate(layers):
            convolution = nn.Conv2d(channels, filters, kernel, stride=2, padding=(kernel - 1) // 2, bias=False)
            norm = [nn.BatchNorm2d(filters)] if number else []
            self.stages.append(nn.Sequential(convolution, *norm, nn.LeakyReLU(SLOPE)))
            channels = filters

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Map image [N, C, H, W] and mask [N, 1, H, W] (0..1) to the weighted input and features [N, numbers]."""
        x = image * mask
        features = [x]
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return torch.cat([w * f.flatten(1) for w, f in zip(SEGAN_WEIGHTS, features, strict=True)], dim=1)

    @torch.no_grad()
    def clamp(self, limit: float = 0.05) -> None:
        """Clamp every weight to ±limit, which bounds the distance."""
        for parameter in self.parameters():
            parameter.clamp_(-limit, limit)
