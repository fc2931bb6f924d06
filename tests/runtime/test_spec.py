from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from mammo_runtime.errors import ExitCode, ModelRefused
from mammo_runtime.mammogram import Modality
from mammo_runtime.spec import METADATA_KEY, CleaningStep, InputMode, InputSpec, ModelSpec, Precision, Task
from tiny_model import tiny_spec


def full_spec() -> ModelSpec:
    """Return a spec in which no field has its default."""
    steps = (CleaningStep("keep_breast", {"opening_px": 9}), CleaningStep("stretch"))
    size = InputSpec(InputMode.ROI, 1, 512, 320, (0.1,), (0.2,), 900, steps, 0.02, 0.4)
    return ModelSpec(
        "net", "unet", Task.MULTICLASS, Modality.ULTRASOUND, size, ("a", "b"), "softmax", 0.3, 4.5, Precision.INT8,
        "ab" * 32, "0.1.0", {"folds": [2, 3]}, "research",
    )  # fmt: skip


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return a good spec's dictionary with one value replaced."""
    values = full_spec().to_dict()
    target = values
    *parents, last = path.split(".")
    for parent in parents:
        target = target[parent]
    target[last] = value
    return values


def test_json_and_back_is_the_same() -> None:
    spec = full_spec()
    assert ModelSpec.from_dict(json.loads(spec.to_json())) == spec
    assert ModelSpec.from_metadata({METADATA_KEY: spec.to_json()}) == spec
    assert ModelSpec.from_dict(spec.to_dict()).to_json() == spec.to_json()


def test_every_field_has_been_changed_from_its_default() -> None:
    spec, plain = full_spec(), tiny_spec()
    same = [f.name for f in dataclasses.fields(spec) if getattr(spec, f.name) == getattr(plain, f.name)]
    assert same == ["schema_version"]


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
