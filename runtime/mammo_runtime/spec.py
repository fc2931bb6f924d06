"""`ModelSpec`: everything needed to run a model rightly. It travels inside the ONNX file's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from math import isfinite
from typing import Any

from mammo_runtime.errors import ModelRefused
from mammo_runtime.mammogram import Modality

METADATA_KEY = "mammo_edge_spec"
SCHEMA_VERSION = 1


class Task(str, Enum):
    """What the outputs mean, and so which post-processing runs."""

    SEGMENTATION = "segmentation"
    MULTICLASS = "multiclass"
    CLASSIFICATION = "classification"
    PROMPTED = "prompted"


class InputMode(str, Enum):
    """FULL: the whole picture. ROI: a square window round a box that a person or a detector gave."""

    FULL = "full"
    ROI = "roi"


class Fit(str, Enum):
    """How a picture is laid on the network's grid."""

    CENTRE = "centre"
    """Aspect ratio kept, centred; the rest is black."""
    CORNER = "corner"
    """Aspect ratio kept, at the top left; the rest is 0 after normalisation (Segment Anything)."""
    STRETCH = "stretch"
    """Each axis scaled by itself to fill the grid (MedSAM)."""


class Scaling(str, Enum):
    """How stored pixels come to 0..1 before mean and standard deviation."""

    WHITE = "white"
    """Divided by the format's white value: grey stays what the file says."""
    MIN_MAX = "min_max"
    """The picture's (or window's) own minimum becomes 0, its maximum 1 (MedSAM)."""


class Activation(str, Enum):
    """What the exporter appends to the network's logits, so that every backend returns what `Session` promises."""

    SIGMOID = "sigmoid"
    """float32 probabilities [N, 1, H, W]; of a prompted model [1, boxes, 1, side, side]."""
    SOFTMAX = "softmax"
    """float32 probabilities of the classes [N, classes]."""
    ARGMAX = "argmax"
    """uint8 labels [N, 1, H, W]: the number of the likeliest class, `NOT_FINITE` where a logit is NaN or infinite."""


NOT_FINITE = 255
"""Label of a pixel whose logits were not finite: arg-max would hide it."""


class Precision(str, Enum):
    """Precision of the graph itself, not of a builder flag."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


@dataclass(frozen=True)
class CleaningStep:
    """One named step of `mammo_runtime.cleaning.STEPS` with its parameters."""

    name: str
    parameters: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(isinstance(k, str) and _is_number(v) for k, v in self.parameters.items()):
            raise ValueError(f"the parameters of the cleaning step {self.name!r} must be finite numbers")


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes the network's input tensor float32 [N, channels, height, width]."""

    mode: InputMode = InputMode.FULL
    channels: int = 3
    """A grey image is repeated over the channels."""
    height: int = 256
    width: int = 256
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Subtracted per channel from pixels scaled to 0..1."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Divides the difference, per channel."""
    working_side_px: int = 1024
    """Cleaning runs on a copy whose long side is at most this, so that its pixel parameters mean the
    same for a 1024-pixel film scan and a 4664-pixel detector image, and memory stays bounded."""
    cleaning: tuple[CleaningStep, ...] = ()
    breast_crop_margin: float | None = None
    """FULL mode: crop to the breast found by `keep_breast`, widened by this fraction of its size. None: no crop."""
    roi_margin: float = 0.5
    """ROI mode: the window's side is (1 + 2·margin) times the longer side of the box."""
    colour: bool = False
    """True: a colour picture keeps its three channels (histology); False: everything is seen in grey."""
    fit: Fit = Fit.CENTRE
    scaling: Scaling = Scaling.WHITE

    def __post_init__(self) -> None:
        sizes = (self.channels, self.height, self.width, self.working_side_px)
        margins = (self.roi_margin, 0 if self.breast_crop_margin is None else self.breast_crop_margin)
        if not all(isinstance(v, int) for v in sizes) or self.channels < 1:
            raise ValueError("channels, height, width and working_side_px must be positive whole numbers")
        if not all(_is_number(v) for v in (*self.mean, *self.std, *margins)) or min(margins) < 0:
            raise ValueError("mean, std and margins must be finite numbers, margins not negative")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need one value for each of the {self.channels} channels")
        if not all(8 <= side <= 8192 for side in (self.height, self.width, self.working_side_px)):
            raise ValueError("input sizes must lie between 8 and 8192 pixels")
        if not all(abs(v) <= 1e3 for v in self.mean) or not all(1e-4 <= v <= 1e3 for v in self.std):
            raise ValueError("mean must lie within 1000, std between 0.0001 and 1000")
        if self.colour and (self.channels != 3 or self.cleaning or self.breast_crop_margin is not None):
            raise ValueError("colour needs three channels, and neither cleaning nor a breast crop, which are for grey")


@dataclass(frozen=True)
class PromptSpec:
    """What lies between the two graphs of a prompted model: encoder (image → embedding), decoder (box → mask)."""

    embedding: tuple[int, int, int]
    """Channels, height and width of the image embedding."""
    mask_side: int
    """The decoder answers float32 [1, boxes, 1, mask_side, mask_side], which covers the whole input grid."""

    def __post_init__(self) -> None:
        sizes = (*self.embedding, self.mask_side)
        if len(sizes) != 4 or not all(isinstance(v, int) and 1 <= v <= 8192 for v in sizes):
            raise ValueError("embedding (channels, height, width) and mask_side must be whole numbers from 1 to 8192")


ACTIVATION_OF: Mapping[Task, Activation] = {
    Task.SEGMENTATION: Activation.SIGMOID,
    Task.MULTICLASS: Activation.ARGMAX,
    Task.CLASSIFICATION: Activation.SOFTMAX,
    Task.PROMPTED: Activation.SIGMOID,
}


@dataclass(frozen=True)
class ModelSpec:
    """The contract between training, export and runtime. Frozen; serialised as JSON."""

    name: str
    architecture: str
    network: Mapping[str, Any] = field(default_factory=dict)
    """Options the network was built with, such as its width; with `architecture` they rebuild it."""
    task: Task = Task.SEGMENTATION
    modality: Modality = Modality.MAMMOGRAPHY
    input: InputSpec = field(default_factory=InputSpec)
    classes: tuple[str, ...] = ("mass",)
    activation: Activation = Activation.SIGMOID
    """Applied in the exported graph."""
    prompt: PromptSpec | None = None
    """Of prompted models only."""
    threshold: float = 0.5
    """Operating point on the probability, chosen on validation data and frozen."""
    min_area_cells: float = 0.0
    """Smaller components are dropped; counted in cells of the network's own grid, so that it does not
    depend on how finely a picture was scanned."""
    precision: Precision = Precision.FP32
    parent_sha256: str = ""
    """Of the checkpoint (or graph) this one was made from."""
    toolkit_version: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Data, folds, counts and measured results, as the trainer wrote them."""
    licence: str = ""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        # A threshold that is no number would mark nothing, which reads as "no mass".
        if not (_is_number(self.threshold) and 0 <= self.threshold <= 1):
            raise ValueError(f"threshold must be a number from 0 to 1, got {self.threshold!r}")
        if not (_is_number(self.min_area_cells) and self.min_area_cells >= 0):
            raise ValueError(f"min_area_cells must be a number of at least 0, got {self.min_area_cells!r}")
        if not (isinstance(self.name, str) and self.name and self.classes):
            raise ValueError("a model needs a name and at least one class")
        if self.activation is not ACTIVATION_OF[self.task]:
            raise ValueError(f"the task {self.task.value} ends in {ACTIVATION_OF[self.task].value}")
        if (self.task is Task.PROMPTED) != (self.prompt is not None):
            raise ValueError("a prompted model, and no other, says what lies between its two graphs")
        if self.task is not Task.SEGMENTATION and self.input.mode is not InputMode.FULL:
            raise ValueError("only segmentation looks at windows; the boxes of a prompted model go to its decoder")
        if self.task in (Task.MULTICLASS, Task.CLASSIFICATION) and not 2 <= len(self.classes) < NOT_FINITE:
            raise ValueError(f"the task {self.task.value} needs from 2 to {NOT_FINITE - 1} classes")
        if self.task is Task.MULTICLASS and self.input.breast_crop_margin is not None:
            raise ValueError("a multi-class map covers the whole picture: it goes with no breast crop")

    @property
    def takes_boxes(self) -> bool:
        """Whether the model looks where a person points, so that every image needs at least one box."""
        return self.input.mode is InputMode.ROI or self.task is Task.PROMPTED

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; `from_dict` is its inverse."""
        return dict(json.loads(json.dumps(asdict(self))))

    def to_json(self) -> str:
        """Return the canonical JSON text (sorted keys), as stored in ONNX metadata."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Build from `to_dict`'s form. Raises ModelRefused when a field is missing, unknown or of a later schema."""
        if not isinstance(values, Mapping):
            raise ModelRefused("the model's spec is not a JSON object. Export the model again.")
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ModelRefused(
                f"the model's spec has schema version {version!r}; this runtime reads {SCHEMA_VERSION}. "
                "Export the model again, or install the matching mammo-edge."
            )
        try:
            known = dict(values)
            raw_input = dict(known.pop("input"))
            raw_input["mode"] = InputMode(raw_input["mode"])
            raw_input["fit"] = Fit(raw_input.get("fit", Fit.CENTRE))
            raw_input["scaling"] = Scaling(raw_input.get("scaling", Scaling.WHITE))
            raw_input["mean"], raw_input["std"] = tuple(raw_input["mean"]), tuple(raw_input["std"])
            raw_input["cleaning"] = tuple(CleaningStep(s["name"], dict(s["parameters"])) for s in raw_input["cleaning"])
            known["task"], known["modality"] = Task(known["task"]), Modality(known["modality"])
            known["activation"], prompt = Activation(known["activation"]), known.get("prompt")
            known["prompt"] = None if prompt is None else PromptSpec(tuple(prompt["embedding"]), prompt["mask_side"])
            known["precision"], known["classes"] = Precision(known["precision"]), tuple(known["classes"])
            return cls(input=InputSpec(**raw_input), **known)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ModelRefused(f"the model's spec is not valid ({reason}). Export the model again.") from error

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelSpec:
        """Build from an ONNX file's custom metadata. Raises ModelRefused when there is no spec in it."""
        if METADATA_KEY not in metadata:
            raise ModelRefused(
                "the ONNX file carries no mammo-edge spec in its metadata, so its preprocessing is unknown. "
                "Export it with mammo-export."
            )
        try:
            values = json.loads(metadata[METADATA_KEY])
        except (ValueError, RecursionError) as error:
            raise ModelRefused(f"the model's spec is not valid JSON ({error}). Export the model again.") from error
        return cls.from_dict(values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
