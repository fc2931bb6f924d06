"""Whole runs with boxes: who gets which, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mammo_runtime.errors import UsageError
from mammo_runtime.plan import RunSettings
from mammo_runtime.spec import InputMode
from pipeline_runs import boxes_csv, go, mask
from tiny_model import picture, records, save, tiny_spec, write_bundle


def test_boxes(settings: RunSettings, tmp_path: Path) -> None:
    folder = settings.inputs[0]
    pixels = picture(((60, 40, 12), (30, 20, 5), (95, 15, 6)))
    for name in ("a.png", "sub/b.png", "none.png", "outside.png"):
        save(folder / name, pixels)
    boxes = boxes_csv(
        tmp_path, "a.png,26,46,29,29", "a.png,13,23,15,15", "sub\\b.png,26,46,29,29", "outside.png,900,0,5,5",
        "in/a.png,0,0,5,5",
    )  # fmt: skip
    model = write_bundle(tmp_path / "roi", tiny_spec(InputMode.ROI))
    summary = go(replace(settings, model=str(model), boxes=boxes))
    found = {r["image"].removeprefix(f"{folder}/"): r for r in records(settings.output)}
    assert {n: r["status"] for n, r in found.items()} == {
        "a.png": "ok", "none.png": "skipped", "outside.png": "failed", "sub/b.png": "ok", "in/a.png": "failed",
    }  # fmt: skip
    assert "not among the inputs" in found["in/a.png"]["error"]
    assert summary["counts"]["inputs"] == 5
    assert [f["prompt_box"] for f in sorted(found["a.png"]["findings"], key=lambda f: f["prompt_box"])] == [1, 2]
    drawn = mask(settings, "a.png") > 0
    assert drawn[60, 40]
    assert drawn[30, 20]
    assert not drawn[95, 15], "nobody pointed at that one"
    assert not (mask(settings, "sub/b.png") > 0)[30, 20]


def test_a_wrong_name_in_the_boxes_never_replaces_a_result(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A boxes file may name an input as the results show it; another input's name must not get its result."""
    save(settings.inputs[0] / "a.png")
    monkeypatch.chdir(tmp_path)
    boxes = boxes_csv(tmp_path, "a.png,26,46,29,29", "in/a.png,26,46,29,29", "in/b.png,1,1,5,5")
    model = write_bundle(tmp_path / "roi", tiny_spec(InputMode.ROI))
    summary = go(replace(settings, inputs=(Path("in"),), model=str(model), boxes=boxes))
    assert [(r["image"], r["status"]) for r in records(settings.output)] == [("in/a.png", "ok"), ("in/b.png", "failed")]
    assert len(records(settings.output)[0]["boxes"]) == 2
    assert (summary["counts"]["ok"], summary["counts"]["failed"]) == (1, 1)


def test_model_and_boxes_must_fit_before_anything_is_written(settings: RunSettings, tmp_path: Path) -> None:
    save(settings.inputs[0] / "a.png")
    with pytest.raises(UsageError, match="whole images"):
        go(replace(settings, boxes=boxes_csv(tmp_path, "a.png,1,1,5,5")))
    roi = write_bundle(tmp_path / "roi", tiny_spec(InputMode.ROI))
    with pytest.raises(UsageError, match="--boxes"):
        go(replace(settings, model=str(roi)))
    assert not settings.output.exists()
