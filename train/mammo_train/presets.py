"""From what a user says on the command line to spec and settings of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.error import URLError

from mammo_runtime.errors import UsageError
from mammo_runtime.mammogram import Modality
from mammo_runtime.spec import CleaningStep, InputMode, InputSpec
from mammo_train.config import TrainConfig

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, of pixels scaled to 0..1."""
IMAGENET: Statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision's published weights expect."""
SYMMETRIC: Statistics = (0.5,), (0.5,)
"""Pixels reach the network as 2x - 1, as weights from TensorFlow expect; also for a random start."""
UNIT: Statistics = (0.0,), (1.0,)
"""Pixels reach the network as they are, 0..1: studies 000, 002 and 004."""
STRETCH = CleaningStep("stretch", {"low_percent": 1.0, "high_percent": 99.8})


@dataclass(frozen=True)
class Pictures:
    """What training on a kind of picture means, whatever the network."""

    full: Mapping[str, Any]
    """Fields of `InputSpec` for whole pictures."""
    roi: Mapping[str, Any]
    """Fields of `InputSpec` for windows round lesions; empty: not offered."""
    kinds: tuple[str, ...]
    """Kinds of index rows that are trained on."""
    validation_kinds: tuple[str, ...]
    """Those whose score selects the best epoch and the operating point."""


PICTURES: Mapping[Modality, Pictures] = {
    # A breast is taller than wide; a window is square.
    Modality.MAMMOGRAPHY: Pictures(
        {"height": 512, "width": 320, "cleaning": (CleaningStep("keep_breast"), STRETCH), "breast_crop_margin": 0.02},
        {"height": 256, "width": 256, "cleaning": (STRETCH,)},
        ("mass", "findings", "normal"),
        ("mass",),
    ),
    Modality.ULTRASOUND: Pictures(
        {"height": 256, "width": 256},
        {"height": 256, "width": 256},
        ("benign", "malignant", "mass", "normal"),
        ("benign", "malignant", "mass"),
    ),
    Modality.HISTOPATHOLOGY: Pictures(
        {"height": 512, "width": 512, "colour": True}, {}, ("tissue",), ("tissue",)
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """One way to train a network: what differs from `PICTURES` and from the defaults of `TrainConfig`."""

    note: str = ""
    """What the study leaves open or does oddly, and what was decided."""
    full: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `InputSpec`, whole pictures."""
    roi: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `InputSpec`, windows."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainConfig`."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """Options of the network."""
    modality: Modality = Modality.MAMMOGRAPHY
    classes: tuple[str, ...] = ("mass",)


@dataclass(frozen=True)
class Wish:
    """What a user chooses about a network's input; None: the preset's."""

    mode: str = "full"
    """"full" or "roi"."""
    modality: Modality | None = None
    size: tuple[int, int] | None = None
    """Height and width."""
    scale: float = 1.0
    """Factor on the preset's height and width, for machines that cannot afford them."""
    roi_margin: float = 0.5


def input_spec(
    wish: Wish,
    preset: Preset,
    expected: Statistics | None,
    channels: int,
    multiple: int,
    inherited: Statistics | None = None,
) -> InputSpec:
    """Return the input of a network.

    Its mean and standard deviation are those of the run it starts from (`inherited`), else the preset's own, else what
    its encoder's weights expect, else 2x - 1. Raises UsageError when the size is no multiple of `multiple`, or when the
    pictures offer no windows.
    """
    base = PICTURES[wish.modality or preset.modality]
    own = wish.modality in (None, preset.modality)
    values: dict[str, Any] = {**(base.full if wish.mode == "full" else base.roi)}
    if not values:
        raise UsageError(f"{preset.modality.value} pictures are taken whole: --input full")
    values |= (preset.full if wish.mode == "full" else preset.roi) if own else {}
    height, width = wish.size or (_scaled(values[side], wish.scale, multiple) for side in ("height", "width"))
    if height % multiple or width % multiple or min(height, width) < multiple:
        near = tuple(max(multiple, round(side / multiple) * multiple) for side in (height, width))
        raise UsageError(
            f"this model needs sides that are multiples of {multiple}: {height}x{width} is none, {near[0]}x{near[1]} is"
        )
    own_statistics = (values["mean"], values["std"]) if "mean" in values else None
    mean, std = inherited or own_statistics or expected or SYMMETRIC
    values |= {"height": height, "width": width, "channels": channels}
    values |= {"mean": _for_channels(mean, channels), "std": _for_channels(std, channels)}
    return InputSpec(InputMode(wish.mode), roi_margin=wish.roi_margin, **values)


def train_config(
    file: Path | None,
    given: Mapping[str, Any],
    pretrained: bool,
    preset: Preset | None = None,
    modality: Modality | None = None,
    loss: str | None = None,
) -> TrainConfig:
    """Return settings: what the user gave (None: not given) over the JSON file's, the preset's and the defaults.

    `modality` (default: the preset's) sets the kinds of pictures, `loss` is the network's own. Unless the file says
    otherwise, the encoder is frozen first only if it is `pretrained`, and no longer than the run. Raises UsageError
    for an unreadable file, unknown or contradictory settings.
    """
    preset = preset or Preset()
    pictures = PICTURES[modality or preset.modality]
    values: dict[str, Any] = {"kinds": pictures.kinds, "validation_kinds": pictures.validation_kinds}
    if loss is not None:
        values["loss"] = loss
    # Kinds are names of one sort of pictures: a preset's own mean nothing for another.
    foreign = ("kinds", "validation_kinds") if modality not in (None, preset.modality) else ()
    values |= {name: value for name, value in preset.config.items() if name not in foreign}
    values["validation_kinds"] = tuple(kind for kind in values["validation_kinds"] if kind in values["kinds"])
    frozen = values.pop("frozen_epochs", None)
    values |= stored_settings(file)
    values |= {name: value for name, value in given.items() if value is not None}
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    wanted = (defaults["frozen_epochs"] if frozen is None else frozen) if pretrained else 0
    values.setdefault("frozen_epochs", min(wanted, values.get("epochs", defaults["epochs"])))
    return TrainConfig.from_dict(values)


def stored_settings(file: Path | None) -> dict[str, Any]:
    """Return the settings in a JSON file; without a file none. Raises UsageError when it is not one JSON object."""
    if file is None:
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is not a JSON file of training settings: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{file} must hold one JSON object of training settings")
    return values


def encoder_file(choice: str) -> Path | None:
    """Return the weights file for "none" (None), "imagenet" (torchvision's, downloaded once) or a path.

    Raises UsageError when the download fails or there is no such file.
    """
    if choice == "none":
        return None
    if choice != "imagenet":
        if not Path(choice).is_file():
            raise UsageError(f"there is no encoder weights file {choice}; give a file, 'imagenet' or 'none'")
        return Path(choice)
    import torch
    from torchvision.models import MobileNet_V2_Weights

    weights = MobileNet_V2_Weights.DEFAULT
    try:
        weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UsageError(
            f"torchvision's ImageNet weights cannot be downloaded ({error}); give a file, or none"
        ) from error
    return Path(str(torch.hub.get_dir()), "checkpoints", weights.url.rsplit("/", 1)[-1])


def _scaled(side: int, factor: float, multiple: int) -> int:
    return side if factor == 1.0 else max(multiple, round(side * factor / multiple) * multiple)


def _for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return one value for each channel; a single one serves all, several are averaged for a one-channel network."""
    if len(values) == channels:
        return tuple(values)
    return (sum(values) / len(values),) * channels
