from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from fake_sessions import EchoSession, echo_spec
from mammo_runtime.bundle import LoadedModel
from mammo_runtime.errors import InferenceFailed, UnsuitableImage
from mammo_runtime.mammogram import Box, Laterality, Mammogram, View
from mammo_runtime.records import failure, finished_record, hidden_name, is_hidden_name, unfinished_record
from mammo_runtime.segmenter import segment
from mammo_runtime.spec import InputMode

MODEL = LoadedModel(EchoSession(), echo_spec(InputMode.ROI), "ab" * 32, ())


def mammogram() -> Mammogram:
    pixels = np.zeros((128, 100), np.uint8)
    cv2.circle(pixels, (40, 60), 9, 200, -1)
    return Mammogram(
        pixels, 255, "8 bit", "cd" * 32, (0.1, 0.2), "user", Laterality.LEFT, View.MLO, "PNG 8 bit", ("twice", "twice")
    )


def test_a_finished_record_says_everything() -> None:
    image, box = mammogram(), Box(30, 50, 20.5, 21)
    found = segment(image, MODEL.session, MODEL.spec, boxes=[box])
    record = finished_record(MODEL, "a.png", image, found, [box], {"mask": "masks/a.png"}, {"read": 1.23456})
    assert json.loads(json.dumps(record)) == record
    plain = {k: v for k, v in record.items() if k != "findings"}
    assert plain == {
        "image": "a.png", "status": "ok", "error": None, "rows": 128, "columns": 100, "file_format": "PNG 8 bit",
        "intensity_rule": "8 bit", "file_sha256": "cd" * 32, "spacing_mm": [0.1, 0.2], "spacing_source": "user",
        "laterality": "L", "view": "MLO", "notes": ["twice"], "boxes": [[30, 50, 20.5, 21]],
        "prompt_source": "boxes file", "box_predicted_iou": None, "predicted_class": None, "classes": [],
        "timings_ms": {"read": 1.23}, "outputs": {"mask": "masks/a.png"}, "model": "echo",
        "model_file": "", "model_sha256": "ab" * 32, "decoder_sha256": None,
        "backend": "echo", "precision": "fp32", "threshold": 0.5, "min_area_px": 0.0,
    }  # fmt: skip
    (finding,) = record["findings"]
    assert finding["box"] == [31, 51, 19, 19]
    assert finding["centroid"] == pytest.approx([40, 60], abs=0.1)
    assert finding["prompt_box"] == 1
    assert finding["area_mm2"] == pytest.approx(finding["area_px"] * 0.02)
    assert set(finding) == {
        "number", "box", "centroid", "contour", "area_px", "area_mm2", "long_axis_mm", "short_axis_mm",
        "long_axis_px", "short_axis_px", "mean_probability", "peak_probability", "prompt_box", "predicted_iou",
    }  # fmt: skip


def test_an_unfinished_record_has_the_same_keys() -> None:
    image = mammogram()
    found = segment(image, MODEL.session, MODEL.spec, boxes=[Box(30, 50, 20, 20)])
    finished = finished_record(MODEL, "a.png", image, found, None, {}, {})
    unfinished = unfinished_record(MODEL, "a.png", "failed", "broken")
    assert set(unfinished) == set(finished)
    assert (unfinished["status"], unfinished["error"]) == ("failed", "broken")
    assert unfinished["findings"] == []
    assert unfinished["outputs"] == {}
    assert unfinished["file_sha256"] is None


def test_hidden_names() -> None:
    for text in ("Smith.png", "\udcff.png", ""):
        assert is_hidden_name(hidden_name(text))
        assert not is_hidden_name(text)
    assert hidden_name("a") != hidden_name("b")


def test_failures_are_told_without_their_text() -> None:
    assert failure(UnsuitableImage("a report")) == ("skipped", "a report")
    assert failure(InferenceFailed("nonsense")) == ("failed", "nonsense")
    assert failure(MemoryError("Smith")) == ("failed", "not enough memory for this image")
    try:
        raise ValueError("Smith^Jane")
    except ValueError as error:
        status, sentence = failure(error)
    assert status == "failed"
    assert "Smith" not in sentence
    assert "ValueError in test_records.py line" in sentence


def test_opencv_out_of_memory_is_out_of_memory() -> None:
    with pytest.raises(cv2.error) as caught:
        cv2.resize(np.zeros((2, 2), np.uint8), (2**31 - 1, 2**31 - 1))
    if caught.value.code == -4:
        assert failure(caught.value) == ("failed", "not enough memory for this image")
    else:
        assert failure(caught.value)[1].startswith("internal error (error in")
