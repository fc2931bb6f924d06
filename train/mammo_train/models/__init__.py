"""The networks, by name. Each returns logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from mammo_runtime.errors import UsageError
from mammo_runtime.spec import ModelSpec, Task
from mammo_train.models.mobilenetv2 import DECODER_CHANNELS, MobileNetV2ResUNet

WHOLE = "whole"
"""Width of networks that their study gives in one size."""


@dataclass(frozen=True)
class Architecture:
    """A network that can be trained."""

    build: Callable[..., nn.Module]
    """Takes channels, classes, width (filters of one of `widths`) and the names in `options`; all by keyword."""
    study: str
    """The seed study that names it."""
    summary: str
    multiple: int
    """Height and width must be multiples of this."""
    widths: Mapping[str, tuple[int, ...]]
    """Width's name → filters from the finest level to the deepest; the first one is the default."""
    task: Task = Task.SEGMENTATION
    channels: int = 3
    height: int = 256
    width: int = 256
    """Input of the study: channels, height, width."""
    classes: int = 1
    loss: str = "tversky_bce"
    """Name of the default loss in `losses.LOSSES`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of `build` with their defaults (e.g. deep_supervision, final, aspp)."""


ARCHITECTURES: Mapping[str, Architecture] = {
    "mobilenetv2_resunet": Architecture(
        MobileNetV2ResUNet,
        "004",
        "MobileNetV2 encoder, residual U-Net decoder",
        32,
        {WHOLE: DECODER_CHANNELS[::-1]},
    ),
}


def known(name: str) -> Architecture:
    """Return a network's entry. Raises UsageError listing the known names for an unknown one."""
    if name not in ARCHITECTURES:
        raise UsageError(f"unknown model {name!r}; known: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build(
    name: str, classes: int | None = None, channels: int | None = None, width: str | None = None, **options: Any
) -> nn.Module:
    """Return a freshly initialised network; what is not given is the study's. Raises UsageError on unknown choices."""
    entry = known(name)
    width = width or next(iter(entry.widths))
    if width not in entry.widths:
        raise UsageError(f"{name} has no width {width!r}; it has {', '.join(entry.widths)}")
    unknown = sorted(set(options) - set(entry.options))
    if unknown:
        raise UsageError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(entry.options) or 'none'}")
    return entry.build(
        channels=channels or entry.channels,
        classes=classes or entry.classes,
        width=entry.widths[width],
        **{**entry.options, **options},
    )


def build_for(spec: ModelSpec) -> nn.Module:
    """Return the freshly initialised network that a spec describes."""
    return build(spec.architecture, len(spec.classes), spec.input.channels, **spec.network)
