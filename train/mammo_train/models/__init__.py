"""The networks, by name. Each returns logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from mammo_runtime.errors import UsageError
from mammo_train.models.mobilenetv2 import DECODER_CHANNELS, MobileNetV2ResUNet


@dataclass(frozen=True)
class Architecture:
    """A network that can be trained."""

    build: type[nn.Module]
    study: str
    """The seed study that names it."""
    parameters: int
    """Trainable parameters with one class; a test builds the network and compares."""
    multiple: int
    """Height and width must be multiples of this."""
    widths: tuple[int, ...] = ()
    """Filters of the decoder, deepest first."""
    channels: int = 3
    summary: str = ""


ARCHITECTURES: Mapping[str, Architecture] = {
    "mobilenetv2_resunet": Architecture(
        MobileNetV2ResUNet,
        "004",
        5_697_969,
        32,
        widths=DECODER_CHANNELS,
        summary="MobileNetV2 encoder, residual U-Net decoder",
    ),
}


def build(name: str, classes: int = 1) -> nn.Module:
    """Return a freshly initialised network. Raises UsageError listing the known names for an unknown one."""
    if name not in ARCHITECTURES:
        raise UsageError(f"unknown model {name!r}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name].build(classes)
