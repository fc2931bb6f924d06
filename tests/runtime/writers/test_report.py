"""The report page: complete, self-contained, inert whatever a file is called, and written in bounded memory."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mammo_runtime.writers.cards import relative_url
from mammo_runtime.writers.pictures import thumbnail_jpeg
from mammo_runtime.writers.report import DISCLAIMER, MAX_THUMBNAILS, write_report
from mammo_runtime.writers.tables import visible_text

VOID = {"meta", "link", "img", "input", "br", "hr"}
HOSTILE = [
    '"><script>alert(1)</script>.png',
    "x' onmouseover='alert(1)/{{ 7*7 }}.png",
    '=cmd|" /C calc"!A0.png',
    "line\nbreak\u202e\x07\udcff.png",
    "</title></style></script><img src=//evil.example/x>.png",
]


class Page(HTMLParser):
    """The elements of a page in order, its text by id or class, and a proof that its tags are balanced."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.raw: dict[str, str] = {}
        self.words = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside in ("style", "script"):
            self.raw[inside] = self.raw.get(inside, "") + data
        else:
            self.words += data

    def named(self, tag: str, **wanted: str) -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in wanted.items())]

    @property
    def cards(self) -> list[dict[str, str]]:
        return [a for a in self.named("li") if a.get("class", "").startswith("card ")]


def finding(number: int, **changes: Any) -> dict[str, Any]:
    return {
        **{"number": number, "box": [1, 2, 3, 4], "centroid": [430.4, 700.6], "area_px": 3627, "area_mm2": 145.08},
        **{"long_axis_mm": 16.32, "short_axis_mm": 11.58, "long_axis_px": 81.6, "short_axis_px": 57.9},
        **{"mean_probability": 0.741, "peak_probability": 0.926, "contour": [[1, 1]] * 50, "prompt_box": None},
        **changes,
    }


def record(name: str, count: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        **{"image": name, "status": "ok", "error": None, "rows": 1024, "columns": 800, "file_format": "PNG 8 bit"},
        **{"spacing_mm": [0.2, 0.2], "spacing_source": "user", "laterality": "R", "view": "MLO", "notes": []},
        **{"boxes": None, "findings": [finding(k + 1) for k in range(count)], "timings_ms": {}},
        **{"outputs": {"mask": f"masks/{name}", "overlay": f"overlays/{name}"}, "threshold": 0.5},
        **changes,
    }


def unjudged(name: str, status: str, error: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("rows", "columns", "file_format", "spacing_mm", "laterality", "view", "boxes"))
    return record(name, status=status, error=error, outputs={}, findings=None) | nothing | {"findings": None}


def run_of(records: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    by_status = {s: sum(r["status"] == s for r in records) for s in ("ok", "failed", "skipped")}
    with_findings = sum(bool(r["findings"]) for r in records)
    return {
        **{"toolkit_version": "0.1.0", "started": "2026-10-03T14:05:12.1234+02:00", "finished": None, "total_s": 18.74},
        **{"model": {"name": "mass-full", "sha256": "cd" * 32, "threshold": 0.5}, "backend": "onnxruntime 1.31"},
        **{"precision": "fp32", "settings": {"jobs": 2}, "machine": {"system": "Linux"}, "exit_code": 3},
        **{"counts": {"inputs": len(records), **by_status, "with_findings": with_findings, "findings": 0}},
        **{"exit_meaning": "some inputs failed", "notes": ["No GPU was found."], "deidentified": False},
        **changes,
    }


def no_picture(_: Any) -> None:
    return None


def page_of(tmp_path: Path, records: list[dict[str, Any]], thumbnail: Any = no_picture, **changes: Any) -> Page:
    write_report(tmp_path / "report.html", run_of(records, **changes), iter(records), thumbnail)
    return Page(tmp_path / "report.html")


MIXED = [
    record("sub/a.png", 2, notes=["laterality from the file name"]),
    record("n.png"),
    unjudged("broken.dcm", "failed", "the pixel data is cut off"),
    unjudged("us.dcm", "skipped", "modality US is not mammography"),
]


def test_every_record_is_on_the_page_with_its_words(tmp_path: Path) -> None:
    page = page_of(tmp_path, MIXED)
    assert [c["data-name"] for c in page.cards] == [r["image"] for r in MIXED]
    assert [c["data-kind"] for c in page.cards] == ["with", "without", "failed", "skipped"]
    for words in (
        *(DISCLAIMER, "mass-full", "cd" * 32, "onnxruntime 1.31", "2026-10-03 14:05:12", "No GPU was found."),
        *("2 of 4 files were not judged", "the pixel data is cut off", "modality US is not mammography"),
        *("2 findings", "No mass marked by the model", "x 430, y 701", "145 mm²", "16.3 × 11.6 mm", "0.74", "0.93"),
        *("Right MLO", "800 × 1024 px", "0.2 mm (user)", "laterality from the file name", "18.7 s"),
    ):
        assert words in page.words
    assert page.cards[0]["data-peak"] == "0.926"
    assert page.cards[1]["data-peak"] == "-1.0"


def test_without_javascript_nothing_is_hidden_but_the_controls(tmp_path: Path) -> None:
    page = page_of(tmp_path, MIXED)
    assert [(t, a.get("id")) for t, a in page.elements if "hidden" in a] == [("form", "controls")]


def test_unknown_spacing_gives_pixels_and_says_so(tmp_path: Path) -> None:
    bare = finding(1, area_mm2=None, long_axis_mm=None, short_axis_mm=None)
    page = page_of(tmp_path, [record("a.png", findings=[bare], spacing_mm=None, laterality=None, view=None)])
    card = page.words.split("1 finding", 1)[1].split("How to read")[0]
    assert "spacing unknown: no millimetres" in card
    assert "3627 px" in card
    assert "81.6 × 57.9 px" in card
    assert "mm²" not in card
    assert "not stated" in card


def test_a_probability_that_was_written_as_null_is_unknown(tmp_path: Path) -> None:
    page = page_of(tmp_path, [record("a.png", findings=[finding(1, peak_probability=None)])])
    assert page.cards[0]["data-peak"] == "0.0"
    assert "unknown" in page.words


def test_a_prompt_box_without_a_mass_is_named(tmp_path: Path) -> None:
    boxes = [[1, 1, 5, 5], [9, 9, 5, 5]]
    page = page_of(tmp_path, [record("a.png", findings=[finding(1, prompt_box=1)], boxes=boxes)])
    assert "Box 2: no mass marked by the model" in page.words
    assert "Box 1: no mass" not in page.words


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = page_of(tmp_path, MIXED, lambda _: thumbnail_jpeg(np.zeros((40, 30, 3), np.uint8)))
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name != "style"
            if name == "src":
                assert value.startswith("data:")
            if name == "href":
                assert value.startswith(("./", "data:", "#")), (tag, value)
    everything = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "http:" not in everything
    assert "https:" not in everything
    assert "@import" not in everything
    assert "url(" not in page.raw["style"]


def test_the_content_security_policy_allows_just_the_own_style_and_script(tmp_path: Path) -> None:
    page = page_of(tmp_path, MIXED)
    policy = page.named("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for part in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[part].encode()).digest()).decode()
        assert f"{part}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text_and_nothing_else(name: str, tmp_path: Path) -> None:
    plain = page_of(tmp_path, [record("a.png", 1, notes=["n"]), unjudged("b.png", "failed", "e")])
    records = [record(name, 1, notes=[name], laterality=name), unjudged(name, "failed", name)]
    page = page_of(tmp_path, records, notes=[name], model={"name": name}, settings={name: name})
    assert [c["data-name"] for c in page.cards] == [visible_text(name)] * 2
    assert page.words.count(visible_text(name)) >= 5
    extra = {"div", "dt", "dd", "details", "summary", "dl"}
    assert [t for t, _ in page.elements if t not in extra] == [t for t, _ in plain.elements if t not in extra]
    assert page.raw == plain.raw


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("masks/sub/a b#1?.png", "./masks/sub/a%20b%231%3F.png"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
        ("//host/x", ".///host/x"),
        ("ü%.png", "./%C3%BC%25.png"),
        ("\udcff.png", "./%FF.png"),
    ],
)
def test_links_are_relative_and_percent_encoded(path: str, url: str, tmp_path: Path) -> None:
    assert relative_url(path) == url
    page = page_of(tmp_path, [record("a.png", outputs={"mask": path})])
    assert [a["href"] for a in page.named("a") if a["href"].startswith("./")] == [url]


def test_thumbnails_are_embedded_for_judged_images_only(tmp_path: Path) -> None:
    asked: list[str] = []

    def thumbnail(one: dict[str, Any]) -> bytes | None:
        asked.append(one["image"])
        return thumbnail_jpeg(np.full((700, 350, 3), 90, np.uint8)) if one["image"] != "n.png" else None

    page = page_of(tmp_path, MIXED, thumbnail)
    pictures = [a for a in page.named("img") if a["src"].startswith("data:image/jpeg;base64,")]
    assert asked == ["sub/a.png", "n.png"]
    assert len(pictures) == 1
    content = base64.b64decode(pictures[0]["src"].partition(",")[2], validate=True)
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == (560, 280, 3)
    assert pictures[0]["alt"] == "Overlay of sub/a.png: 2 findings"
    assert page.named("a", **{"class": "picture"})[0]["href"] == "./overlays/sub/a.png"


def test_privacy_notes_follow_the_mode(tmp_path: Path) -> None:
    assert "keep it as patient data" in page_of(tmp_path, MIXED).words
    assert "De-identified output" in page_of(tmp_path, MIXED, deidentified=True).words


def test_an_empty_run_with_nothing_known_is_still_a_page(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", {}, [], no_picture)
    page = Page(tmp_path / "report.html")
    assert page.cards == []
    assert "not stated" in page.words


def test_a_failure_leaves_no_half_page(tmp_path: Path) -> None:
    def records() -> Iterator[dict[str, Any]]:
        yield record("a.png")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_report(tmp_path / "report.html", run_of([record("a.png")]), records(), no_picture)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [400, 3000])
def test_memory_stays_bounded_and_large_runs_have_links_instead_of_pictures(count: int, tmp_path: Path) -> None:
    jpeg = b"\xff\xd8" + bytes(40_000)
    run = run_of([]) | {"counts": {"inputs": count, "ok": count, "with_findings": count}}
    tracemalloc.start()
    write_report(tmp_path / "r.html", run, (record(f"{k}.png", 1) for k in range(count)), lambda _: bytes(jpeg))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    content = (tmp_path / "r.html").read_bytes()
    pictured = count <= MAX_THUMBNAILS
    assert peak < 4_000_000
    assert content.count(b'class="card with"') == count
    assert content.count(b"data:image/jpeg") == (count if pictured else 0)
    assert (b"more than 2000 images" in content) is not pictured
    assert content.count(b">Overlay</a>") == count


def test_only_the_report_imports_jinja_and_no_writer_imports_a_decoder_or_an_engine() -> None:
    def loaded(module: str) -> set[str]:
        code = f"import sys, mammo_runtime.writers.{module}; print(*{{m.split('.')[0] for m in sys.modules}})"
        return set(subprocess.check_output([sys.executable, "-c", code], text=True, env=_environment()).split())

    heavy = {"pydicom", "onnxruntime", "torch", "onnx", "tensorrt"}
    assert not loaded("pictures") & (heavy | {"jinja2"})
    assert not loaded("tables") & (heavy | {"jinja2", "numpy", "cv2"})
    assert not loaded("report") & heavy


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def class_record(
    name: str, classes: list[dict[str, Any]], predicted: str | None = None, **changes: Any
) -> dict[str, Any]:
    return record(name, classes=classes, predicted_class=predicted, threshold=None, **changes)


def test_a_classifiers_page_shows_probabilities_and_no_findings(tmp_path: Path) -> None:
    scores = [{"name": n, "probability": p} for n, p in (("benign", 0.2), ("malignant", 0.7955), ("normal", 0.0045))]
    records = [class_record("a.png", scores, "malignant", outputs={}), MIXED[2]]
    model = {"name": "m", "task": "classification", "classes": ["benign", "malignant", "normal"]}
    page = page_of(tmp_path, records, model=model, predicted_classes={"malignant": 1})
    assert [c["data-kind"] for c in page.cards] == ["judged", "failed"]
    assert page.cards[0]["data-peak"] == "0.7955"
    for words in (
        *("Image classification report", "Likeliest class for the model: malignant (0.80)", "0.20", "<0.01"),
        *("not the probability of disease", "none: likeliest class", DISCLAIMER, "1 of 2 files were not judged"),
    ):
        assert words in page.words
    assert [m["value"] for m in page.named("meter")] == ["0.7955", "0.2", "0.0045"]
    assert "finding" not in page.words.split("How to read")[0].replace("without such a finding", "")
    assert page.named("svg") == []


def test_a_class_maps_page_has_a_legend_and_areas(tmp_path: Path) -> None:
    names = ["gland", "<b>stroma</b>", "fat"]
    areas = [(100, 0.25, 1.0), (300, 0.75, 3.0), (0, 0.0, 0.0)]
    classes = [{"name": n, "area_px": a, "fraction": f, "area_mm2": m} for n, (a, f, m) in zip(names, areas)]
    bare = [{**c, "area_mm2": None} for c in classes]
    model = {"name": "m", "task": "multiclass", "classes": names}
    page = page_of(tmp_path, [class_record("a.png", classes), class_record("b.png", bare)], model=model)
    fills = [a["fill"] for a in page.named("rect")]
    assert fills == ["#56b4e9", "#e69f00", "#56b4e9", "#e69f00", "#e69f00", "#56b4e9", "#009e73"]
    for words in (
        *("Tissue class map report", "2 classes marked by the model: <b>stroma</b> 75.0 %, gland 25.0 %", "3.0 mm²"),
        *("300 px", "Not in this picture: 1 of the model's 3 classes"),
    ):
        assert words in page.words
    assert page.named("option", value="peak") == []


def test_a_prompted_models_page_says_who_pointed_and_what_it_expects(tmp_path: Path) -> None:
    boxes = [[1, 1, 5, 5], [9, 9, 5, 5]]
    one = finding(1, prompt_box=1, predicted_iou=0.876)
    model = {"name": "m", "task": "prompted", "sha256": "ab", "decoder_sha256": "cd"}
    shown = record("a.png", findings=[one], boxes=boxes, box_predicted_iou=[0.876, 0.31], prompt_source="boxes file")
    page = page_of(tmp_path, [shown], model=model)
    for words in (
        *("from given boxes", "Predicted IoU", "0.88", "Box 2: no mass marked by the model (predicted IoU 0.31)"),
        *("boxes file", "ab (encoder), cd (decoder)", "The model does not search", "not bounded"),
    ):
        assert words in page.words
    assert len(page.named("th", title="The model's own estimate; not bounded to 0 to 1")) == 1


def test_a_note_that_means_nothing_bad_is_no_alarm(tmp_path: Path) -> None:
    alarms = [
        len(page_of(tmp_path, [], notes=notes).named("li", **{"class": "attention"}))
        for notes in ([], ["no mask pictures: classification models have none"], ["No GPU was found."])
    ]
    assert alarms == [0, 0, 1]
