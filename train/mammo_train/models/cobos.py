"""Networks of study 003 (Cobos) on mammograms at 112 or 128 pixels for 2 cm: `cobos_vgg` and `cobos_dilated`.

Certain (study and its public code): every layer, its parameters, slope, keep probability and initialisation; logits
enlarged bilinearly. Proposed: half-pixel interpolation (the study's TensorFlow 1 used the legacy one; pixels at the
edge differ slightly). The study calls `cobos_dilated` residual, yet neither its table nor its code adds anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mammo_train.models.blocks import Enlarge

SLOPE = 0.1


class Cobos(nn.Sequential):
    """A fully convolutional network of study 003: [N, channels, H, W] → logits [N, classes, H, W]."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def cobos_vgg(channels: int, classes: int, width: Sequence[int]) -> Cobos:
    """Return the network of experiments 1 and 2: VGG-like, 7x7 "fully connected" convolution, x16; sides of 16·k."""
    a, b, c, d = width
    return Cobos(
        *(_layer(channels, a, 6, 0.9, stride=2, padding=2), _layer(a, a, 3, 0.9), nn.MaxPool2d(2)),
        *(_layer(a, b, 3, 0.8), _layer(b, b, 3, 0.8), nn.MaxPool2d(2)),
        *(_layer(b, c, 3, 0.7), _layer(c, c, 3, 0.7), _layer(c, c, 3, 0.7), nn.MaxPool2d(2)),
        *(_layer(c, d, 7, 0.6, padding=3), nn.Conv2d(d, classes, 1), Enlarge(16.0)),
    )


def cobos_dilated(channels: int, classes: int, width: Sequence[int]) -> Cobos:
    """Return the network of experiment 3: dilated convolutions at a quarter of the resolution, x4; sides of 4·k."""
    a, b, c, d = width
    return Cobos(
        *(_layer(channels, a, 6, 0.9, stride=2, padding=2), _layer(a, a, 3, 0.9)),
        *(_layer(a, b, 3, 0.8, stride=2), _layer(b, b, 3, 0.8)),
        *(_layer(b, c, 3, 0.7, padding=2, dilation=2), _layer(c, c, 3, 0.7, padding=2, dilation=2)),
        *(_layer(c, c, 3, 0.7, padding=2, dilation=2), _layer(c, c, 3, 0.7, padding=2, dilation=2)),
        _layer(c, d, 3, 0.6, padding=4, dilation=4),
        # A kernel of 8 with dilation 4 spans 29 cells: 14 on each side keep the size.
        *(nn.Conv2d(d, classes, 8, padding=14, dilation=4), Enlarge(4.0)),
    )


def _layer(
    channels_in: int, channels_out: int, kernel: int, keep: float, stride: int = 1, padding: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Return convolution, leaky ReLU and dropout of what the study does not keep."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, padding, dilation),
        nn.LeakyReLU(SLOPE, inplace=True),
        nn.Dropout(1 - keep),
    )
