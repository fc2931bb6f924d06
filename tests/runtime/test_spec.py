from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from mammo_runtime.errors import ExitCode, ModelRefused
from mammo_runtime.mammogram import Modality
from mammo_runtime.spec import (
    METADATA_KEY,
    Activation,
    CleaningStep,
    Fit,
    InputMode,
    InputSpec,
    ModelSpec,
    Precision,
    PromptSpec,
    Scaling,
    Task,
)
from tiny_model import tiny_spec


def full_spec() -> ModelSpec:
    """Return a spec in which every field that a prompted model can change has another value than its default."""
    steps = (CleaningStep("keep_breast", {"opening_px": 9}), CleaningStep("stretch"))
    size = InputSpec(
        channels=1, height=512, width=320, mean=(0.1,), std=(0.2,), working_side_px=900, cleaning=steps,
        breast_crop_margin=0.02, roi_margin=0.4, fit=Fit.CORNER, scaling=Scaling.MIN_MAX,
    )  # fmt: skip
    return ModelSpec(
        "net", "sam", {"width": "S"}, Task.PROMPTED, Modality.ULTRASOUND, size, ("a", "b"), Activation.SIGMOID,
        PromptSpec((256, 64, 64), 128), 0.3, 4.5, Precision.INT8, "ab" * 32, "0.1.0", {"folds": [2, 3]}, "research",
    )  # fmt: skip


def other_specs() -> tuple[ModelSpec, ...]:
    """Return specs with the values that go with no prompted model."""
    colour = InputSpec(colour=True, fit=Fit.STRETCH)
    kinds = {"modality": Modality.HISTOPATHOLOGY, "input": colour, "classes": ("a", "b", "c")}
    return (
        ModelSpec("map", "unet", task=Task.MULTICLASS, activation=Activation.ARGMAX, **kinds),  # type: ignore[arg-type]
        ModelSpec("kind", "vgg", task=Task.CLASSIFICATION, activation=Activation.SOFTMAX, **kinds),  # type: ignore[arg-type]
        ModelSpec("window", "unet", input=InputSpec(InputMode.ROI)),
    )


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return a good spec's dictionary with one value replaced."""
    values = full_spec().to_dict()
    target = values
    *parents, last = path.split(".")
    for parent in parents:
        target = target[parent]
    target[last] = value
    return values


@pytest.mark.parametrize("spec", [full_spec(), *other_specs()], ids=lambda spec: str(spec.task.value))
def test_json_and_back_is_the_same(spec: ModelSpec) -> None:
    assert ModelSpec.from_dict(json.loads(spec.to_json())) == spec
    assert ModelSpec.from_metadata({METADATA_KEY: spec.to_json()}) == spec
    assert ModelSpec.from_dict(spec.to_dict()).to_json() == spec.to_json()


def test_every_field_has_been_changed_from_its_default() -> None:
    plain, changed_somewhere = ModelSpec("tiny", "blur"), set()
    for spec in (full_spec(), *other_specs()):
        for own, default in ((spec, plain), (spec.input, plain.input)):
            names = [f.name for f in dataclasses.fields(own)]
            changed_somewhere |= {(type(own), n) for n in names if getattr(own, n) != getattr(default, n)}
    every = {(kind, f.name) for kind in (ModelSpec, InputSpec) for f in dataclasses.fields(kind)}
    assert every - changed_somewhere == {(ModelSpec, "schema_version")}


def test_who_takes_boxes() -> None:
    assert [spec.takes_boxes for spec in (full_spec(), *other_specs())] == [True, False, False, True]


@pytest.mark.parametrize(
    "values",
    [
        {"task": Task.MULTICLASS}, {"task": Task.PROMPTED}, {"prompt": PromptSpec((1, 1, 1), 1)},
        {"activation": Activation.SOFTMAX},
        {"task": Task.CLASSIFICATION, "activation": Activation.SOFTMAX},
        {"task": Task.MULTICLASS, "activation": Activation.ARGMAX, "classes": tuple(map(str, range(255)))},
        {"task": Task.MULTICLASS, "activation": Activation.ARGMAX, "classes": ("a", "b"),
         "input": InputSpec(breast_crop_margin=0.1)},
        {"task": Task.PROMPTED, "prompt": PromptSpec((1, 1, 1), 1), "input": InputSpec(InputMode.ROI)},
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"task|prompted|segmentation|multi-class"):
        ModelSpec("m", "unet", **values)


def test_a_spec_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_spec().threshold = 0.1  # type: ignore[misc]


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
def test_another_schema_is_refused(version: object) -> None:
    with pytest.raises(ModelRefused, match="schema version") as caught:
        ModelSpec.from_dict(changed("schema_version", version))
    assert caught.value.exit_code == ExitCode.MODEL_REFUSED


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("task", "detection"), ("modality", "ct"), ("precision", "fp64"), ("input.mode", "tile"), ("unknown", 1),
        ("input.unknown", 1), ("input", None), ("input.cleaning", [{"name": "gamma"}]), ("input.cleaning", 3),
        ("input.cleaning", [{"name": "gamma", "parameters": {"exponent": "0.5"}}]),
        ("input.cleaning", [{"name": "gamma", "parameters": {"exponent": float("nan")}}]),
        ("threshold", "0.5"), ("threshold", float("nan")), ("threshold", 1.5), ("threshold", None),
        ("threshold", True), ("min_area_cells", -1), ("min_area_cells", float("inf")), ("classes", []), ("name", ""),
        ("input.height", 256.5), ("input.height", 4), ("input.width", "256"), ("input.channels", 0),
        ("input.channels", 2), ("input.mean", [float("nan")]), ("input.std", [0]), ("input.std", [0.5, 0.5]),
        ("input.roi_margin", -0.1), ("input.breast_crop_margin", -1), ("input.breast_crop_margin", float("inf")),
        ("input.fit", "tile"), ("input.scaling", "z"), ("activation", "relu"), ("prompt", None), ("prompt", {}),
        ("prompt", {"embedding": [1, 2], "mask_side": 4}), ("prompt", {"embedding": [1, 2, 3], "mask_side": 0}),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused(path: str, value: object) -> None:
    with pytest.raises(ModelRefused):
        ModelSpec.from_dict(changed(path, value))


def test_a_missing_field_is_refused() -> None:
    values = full_spec().to_dict()
    del values["name"]
    with pytest.raises(ModelRefused, match="name"):
        ModelSpec.from_dict(values)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"text"', "null", "[" * 100_000, '{"schema_version": 1}'])
def test_metadata_that_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(ModelRefused):
        ModelSpec.from_metadata({METADATA_KEY: text})


def test_a_model_without_spec_is_refused() -> None:
    with pytest.raises(ModelRefused, match="mammo-export"):
        ModelSpec.from_metadata({"producer": "someone"})
