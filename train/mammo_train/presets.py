"""From what a user says on the command line to spec and settings of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.error import URLError

from mammo_runtime.errors import UsageError
from mammo_runtime.spec import CleaningStep, InputMode, InputSpec
from mammo_train.config import TrainConfig

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, of pixels scaled to 0..1."""
IMAGENET: Statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What torchvision's published weights expect."""
SYMMETRIC: Statistics = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""Pixels reach the network as 2x - 1, as weights from TensorFlow expect; also for a random start."""
FULL_SIZE, ROI_SIZE = (512, 320), (256, 256)
"""Default grids (height, width): a breast is taller than wide; a window is square."""


def input_spec(
    mode: str, size: tuple[int, int] | None, statistics: Statistics, roi_margin: float, multiple: int
) -> InputSpec:
    """Return the input of a network for mode "full" or "roi".

    `statistics` are the mean and standard deviation that the weights training starts from expect.
    Raises UsageError when `size` (height, width) is no multiple of `multiple`.
    """
    stretch = CleaningStep("stretch", {"low_percent": 1.0, "high_percent": 99.8})
    height, width = size or (FULL_SIZE if mode == "full" else ROI_SIZE)
    if height % multiple or width % multiple or min(height, width) < multiple:
        near = tuple(max(multiple, round(side / multiple) * multiple) for side in (height, width))
        raise UsageError(
            f"this model needs sides that are multiples of {multiple}: {height}x{width} is none, {near[0]}x{near[1]} is"
        )
    mean, std = statistics
    if mode == "full":
        return InputSpec(
            InputMode.FULL, height=height, width=width, mean=mean, std=std,
            cleaning=(CleaningStep("keep_breast"), stretch), breast_crop_margin=0.02,
        )  # fmt: skip
    return InputSpec(
        InputMode.ROI, height=height, width=width, mean=mean, std=std, cleaning=(stretch,), roi_margin=roi_margin
    )


def train_config(file: Path | None, given: Mapping[str, Any], pretrained: bool) -> TrainConfig:
    """Return settings: what the user gave (None: not given) over the JSON file's over the defaults.

    Unless the file says otherwise, the encoder is frozen first only if it is `pretrained`, and no longer than the run.
    Raises UsageError for an unreadable file, unknown or contradictory settings.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{file} is not a JSON file of training settings: {error}") from error
        if not isinstance(values, dict):
            raise UsageError(f"{file} must hold one JSON object of training settings")
    values |= {name: value for name, value in given.items() if value is not None}
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    frozen = defaults["frozen_epochs"] if pretrained else 0
    values.setdefault("frozen_epochs", min(frozen, values.get("epochs", defaults["epochs"])))
    return TrainConfig.from_dict(values)


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
