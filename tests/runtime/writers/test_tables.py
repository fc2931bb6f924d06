"""results.csv and results.jsonl: every record comes back, whatever its file was called."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mammo_runtime.errors import OutputError
from mammo_runtime.writers.tables import (
    CSV_COLUMNS,
    jsonl_line,
    results_csv_rows,
    visible_text,
    write_results_csv,
    write_results_jsonl,
)


def finding(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        **{"number": number, "box": [10, 20, 30, 40], "centroid": [24.5, 39.25], "area_px": 900, "area_mm2": 36.0},
        **{"long_axis_mm": 8.1, "short_axis_mm": 5.9, "long_axis_px": 40.5, "short_axis_px": 29.5},
        **{"mean_probability": 0.8123456789, "peak_probability": 0.97, "contour": [[1, 2], [3, 4]], "prompt_box": None},
        **changes,
    }


def record(name: str = "a.png", findings: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        **{"image": name, "status": "ok", "error": None, "rows": 1024, "columns": 800, "file_format": "PNG 8 bit"},
        **{"intensity_rule": "8 bits in use of 8", "file_sha256": "ab" * 32, "spacing_mm": [0.2, 0.25]},
        **{"spacing_source": "user", "laterality": "L", "view": "MLO", "notes": [], "boxes": None},
        **{"findings": findings or [], "timings_ms": {"infer": 12.5}, "outputs": {"mask": "masks/a.png"}},
        **{"model": "mass-full", "model_sha256": "cd" * 32, "backend": "onnxruntime 1.31", "precision": "fp32"},
        **{"threshold": 0.5, "min_area_px": 12.0},
        **changes,
    }


FAILED = record("b.dcm", status="failed", error="cut off", rows=None, columns=None, spacing_mm=None, outputs={})


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_row_per_finding_and_one_for_every_image_without(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.csv"
    write_results_csv(path, iter([record("a.png", [finding(1), finding(2)]), record("n.png"), FAILED]))
    rows = csv_rows(path)
    assert [(r["image"], r["status"], r["finding"]) for r in rows] == [
        *(("a.png", "ok", "1"), ("a.png", "ok", "2"), ("n.png", "ok", ""), ("b.dcm", "failed", ""))
    ]
    assert all(rows[2][name] == "" for name in ("area_px", "peak_probability", "box_x_px"))
    assert rows[3]["error"] == "cut off"
    assert rows[3]["rows"] == ""
    assert rows[3]["spacing_row_mm"] == ""


def test_csv_numbers_read_back(tmp_path: Path) -> None:
    write_results_csv(tmp_path / "r.csv", [record(findings=[finding()])])
    row = csv_rows(tmp_path / "r.csv")[0]
    assert list(row) == list(CSV_COLUMNS)
    assert [int(row[f"box_{k}_px"]) for k in ("x", "y", "width", "height")] == [10, 20, 30, 40]
    assert float(row["mean_probability"]) == pytest.approx(0.8123456789, abs=1e-6)
    assert (float(row["spacing_row_mm"]), float(row["spacing_column_mm"])) == (0.2, 0.25)
    assert float(row["centroid_y_px"]) == 39.25
    assert row["prompt_box"] == ""


def test_unknown_spacing_leaves_millimetres_empty() -> None:
    one = finding(area_mm2=None, long_axis_mm=None, short_axis_mm=None)
    row = next(results_csv_rows([record(findings=[one], spacing_mm=None, spacing_source="none")]))
    assert (row["area_mm2"], row["long_axis_mm"], row["spacing_row_mm"]) == ("", "", "")
    assert (row["area_px"], row["spacing_source"]) == ("900", "none")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", " =", "\uff1d"])
def test_text_cells_never_start_a_formula_but_numbers_stay(start: str, tmp_path: Path) -> None:
    name = f"{start}cmd|' /C calc'!A0"
    write_results_csv(tmp_path / "r.csv", [record(name, [finding(box=[-5, 0, 3, 3])], notes=[name], error=name)])
    row = csv_rows(tmp_path / "r.csv")[0]
    for column in ("image", "notes", "error"):
        assert row[column] == "'" + visible_text(name)
    assert row["box_x_px"] == "-5"


@pytest.mark.parametrize("name", ["a\nb.png", 'q",\r\n"x.png', "bell\x07\x00.png", "sep\u2028\x85.png", "\udcff.png"])
def test_a_row_stays_a_row(name: str, tmp_path: Path) -> None:
    write_results_csv(tmp_path / "r.csv", [record(name, [finding()]), record("next.png")])
    content = (tmp_path / "r.csv").read_bytes()
    assert content.count(b"\n") == 3
    assert b"\r" not in content
    assert not content.startswith(b"\xef\xbb\xbf")
    assert len(content.decode("utf-8").splitlines()) == 3
    assert [r["image"] for r in csv_rows(tmp_path / "r.csv")] == [visible_text(name), "next.png"]


def test_visible_text_keeps_every_script_and_shows_what_is_unseen() -> None:
    assert visible_text("Brüst/乳腺/ثدي 🙂.png") == "Brüst/乳腺/ثدي 🙂.png"
    assert visible_text("a\nb\tc\x1b[31m\u202egnp.exe\udcff") == r"a\nb\tc\x1b[31m\u202egnp.exe\udcff"


@pytest.mark.parametrize(
    "name", ["ü 乳腺.png", "two\nlines\r\u2028\x85.png", "bad\udcff\udc80.png", '"=1+1".png', "\x00"]
)
def test_jsonl_reads_back_exactly_one_line_per_record(name: str, tmp_path: Path) -> None:
    records = [record(name, [finding(1), finding(2)]), FAILED]
    write_results_jsonl(tmp_path / "r.jsonl", iter(records))
    lines = (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == records


def test_jsonl_writes_unicode_as_itself() -> None:
    assert "乳腺.png".encode() in jsonl_line(record("乳腺.png"))


def test_numbers_that_are_not_finite_become_null_or_empty() -> None:
    odd = record(findings=[finding(mean_probability=float("nan"), area_mm2=float("inf"))])
    read = json.loads(jsonl_line(odd), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert read["findings"][0]["mean_probability"] is None
    assert read["findings"][0]["area_mm2"] is None
    assert next(results_csv_rows([odd]))["mean_probability"] == ""


def test_numpy_scalars_are_numbers() -> None:
    read = json.loads(jsonl_line({"a": np.float32(0.5), "b": np.int64(3), "c": (True, None)}))
    assert read == {"a": 0.5, "b": 3, "c": [True, None]}
    with pytest.raises(TypeError, match="Path"):
        jsonl_line({"image": Path("a")})


def broken() -> Iterator[dict[str, Any]]:
    yield record()
    raise RuntimeError("the run stopped")


@pytest.mark.parametrize("write", [write_results_csv, write_results_jsonl])
def test_an_interrupted_table_leaves_the_old_one(write: Any, tmp_path: Path) -> None:
    path = tmp_path / "results"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="stopped"):
        write(path, broken())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "results.csv" / "folder").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot write"):
        write_results_csv(tmp_path / "results.csv", [record()])


def test_tables_of_no_records_are_a_header_and_an_empty_file(tmp_path: Path) -> None:
    write_results_csv(tmp_path / "r.csv", [])
    write_results_jsonl(tmp_path / "r.jsonl", [])
    assert (tmp_path / "r.csv").read_text() == ",".join(CSV_COLUMNS) + "\n"
    assert (tmp_path / "r.jsonl").read_bytes() == b""


def test_classes_in_one_cell() -> None:
    scores = [{"name": "benign", "probability": 0.71}, {"name": "-normal", "probability": 0.29}]
    (row,) = results_csv_rows([record(classes=scores, predicted_class="benign", threshold=None)])
    assert (row["predicted_class"], row["classes"]) == ("benign", "benign 0.71; -normal 0.29")
    assert (row["finding"], row["threshold"]) == ("", "")
    areas = [
        {"name": "=gland", "area_px": 5, "fraction": 0.25, "area_mm2": None},
        {"name": "fat", "area_px": 0, "fraction": 0.0, "area_mm2": None},
        {"name": "stroma", "area_px": 15, "fraction": 0.75, "area_mm2": None},
    ]
    (row,) = results_csv_rows([record(classes=areas, predicted_class=None)])
    assert (row["predicted_class"], row["classes"]) == ("", "'=gland 0.25; stroma 0.75")


def test_a_box_without_a_finding_keeps_its_row() -> None:
    boxes = [[1, 1, 5, 5], [9, 9, 5, 5], [3, 3, 5, 5]]
    one = finding(1, prompt_box=2, predicted_iou=0.5)
    prompted = record(findings=[one], boxes=boxes, box_predicted_iou=[-0.0312, 0.5, 1.04])
    roi = record(boxes=boxes[:2], box_predicted_iou=None)
    failed = record(boxes=boxes, status="failed", error="cut off")
    rows = list(results_csv_rows([prompted, roi, failed]))
    told = [(r["finding"], r["area_px"], r["prompt_box"], r["predicted_iou"]) for r in rows]
    assert told == [
        *(("1", "900", "2", "0.5"), ("", "", "1", "-0.0312"), ("", "", "3", "1.04")),
        *(("", "", "1", ""), ("", "", "2", "")),
        ("", "", "", ""),
    ]
    assert all(r["image"] == "a.png" for r in rows)


def test_a_prompted_finding_has_its_predicted_iou() -> None:
    one = finding(prompt_box=2, predicted_iou=0.87654321)
    (row,) = results_csv_rows([record(findings=[one], prompt_source="boxes file", decoder_sha256="ef" * 32)])
    assert (row["predicted_iou"], row["prompt_source"], row["decoder_sha256"]) == ("0.876543", "boxes file", "ef" * 32)
