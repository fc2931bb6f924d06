"""The report: its verdict in words, every number of the evidence, nothing from elsewhere, the same bytes each time."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from typing import Any

import cv2
import numpy as np
import pytest

from mammo_export.report import write_report
from mammo_export.report_cases import CANDIDATE, REFERENCE, TRUTH, case_picture, case_words
from mammo_export.report_plots import Bar, Mark, forest_svg, sensitivity_svg
from mammo_export.report_words import headline, signed, status, warnings
from mammo_runtime.writers.report import DISCLAIMER
from report_evidence import case, difference, evidence, fp32, int8, spec

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A page taken apart: what is open, texts, tables and pictures."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.texts.append(data)
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += data + (" " if self.open[-1] == "p" else "")

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def content() -> str:
    return write_report(evidence())


@pytest.fixture(scope="module")
def page(content: str) -> Page:
    return Page(content)


def test_the_verdict_comes_first_in_words(page: Page) -> None:
    text = page.text
    first = text.index("FP32, FP16 and INT8 for CPUs are in this bundle and passed; INT8 for TensorRT is not in it.")
    assert first < text.index("Parity ladder")
    for words in (
        "Not in the bundle: it missed a gate.",
        "mean Dice changed by -0.0062 over 118 lesions of 96 patients (limit -0.0050)",
        "fine-tune with quantisation in the loop: mammo-train fit --qat",
        "1.62 times as fast as FP32 (95 % 1.57 to 1.66) on AMD EPYC 7B13, avx2",
        DISCLAIMER,
    ):
        assert words in text
    assert text.count(DISCLAIMER) == 2


def test_every_rung_of_the_ladder_is_there(page: Page) -> None:
    (ladder,) = [table for table in page.tables if table[0][0] == "Rung"]
    assert [row[0] for row in ladder[1:]] == [
        "Trained network", "FP32", "FP16", "INT8 for TensorRT", "INT8 for CPUs", "Engine",
    ]  # fmt: skip
    rungs = {row[0]: " ".join(row) for row in ladder}
    assert "3.1e−06 (limit 1e−04)" in rungs["FP32"]
    assert "100.0000% (limit 99.99%)" in rungs["FP32"]
    assert "computes FP16 QuantizeLinear wrongly" in rungs["INT8 for TensorRT"]
    assert "masks that vanished 1, appeared 0" in rungs["INT8 for TensorRT"]
    assert "100 repeats identical" in rungs["INT8 for CPUs"]
    assert "fp32 4, int8 61" in rungs["INT8 for CPUs"]


def test_differences_come_with_n_and_interval_whole_and_by_size(page: Page) -> None:
    tables = {tuple(table[0][:2]): table[1:] for table in page.tables}
    whole = tables["Graph", "n lesions"]
    assert whole[2][:6] == ["INT8 for CPUs", "118", "96", "0.8123", "0.8109", "−0.0014 (−0.0033 to +0.0004)"]
    sizes = tables["Graph", "Lesion size"]
    assert ["INT8 for CPUs", "<10 mm", "31", "28", "−0.0062 (−0.0130 to +0.0010)"] in sizes
    named = tables["Graph", "What"]
    assert ["INT8 for CPUs", "Masks that FP32 does not draw", "1", "c_102 lesion 1"] in named
    assert ["INT8 for TensorRT", "True lesions that only FP32 finds", "1", "c_063 lesion 1"] in named


def test_how_it_was_made_calibrated_and_timed_is_told(page: Page) -> None:
    text = page.text
    chosen = [row for table in page.tables for row in table if row[-1] == "chosen"]
    assert [row[:3] for row in chosen] == [["INT8 for TensorRT", "mse", "yes"], ["INT8 for CPUs", "mse", "yes"]]
    for words in (
        "node_Resize_142", "its sizes must stay exact", "node_Conv_740", "went back so that accuracy passes",
        "256 from 131 pictures (benign 60, malignant 71)", "2, 3, 4", "The worst 20 of 27 groups",
        "PyTorch, eager", "2.89", "1.15 times: reached", "1.00 times: not reached", "mammo-export verify BUNDLE",
        "onnxruntime 1.32.0", "15 rounds, torch fp32 fp16 int8-cpu in turns",
    ):  # fmt: skip
        assert words in text, words


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(content: str, page: Page) -> None:
    assert not {"script", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|@import|url\(", content)
    assert all(str(image["src"]).startswith("data:image/") for image in page.all("img"))
    policies = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert str(policies[0]).startswith("default-src 'none'")
    assert not any("style" in attributes or any(a.startswith("on") for a in attributes) for _, attributes in page.tags)


def test_people_who_see_little_are_told_as_much(page: Page) -> None:
    images = page.all("img")
    assert len(images) == 6
    assert all(len(str(image["alt"])) > 40 for image in images)
    assert "−0.0014 (−0.0033 to +0.0004)" in str(images[0]["alt"])
    assert page.all("html") == [{"lang": "en"}]
    for table in page.tables:
        assert len({len(row) for row in table}) == 1
    heads = [attributes["scope"] for attributes in page.all("th")]
    assert set(heads) == {"col", "row"}
    assert len(page.all("caption")) == len(page.tables)


def test_the_same_evidence_gives_the_same_bytes(content: str) -> None:
    """Also of those read back from bundle.json, whose keys are sorted."""
    told = evidence()
    cases = told.pop("cases")
    assert write_report({**json.loads(json.dumps(told, sort_keys=True)), "cases": cases}) == content


def test_what_the_evidence_says_cannot_become_markup() -> None:
    nasty = "<script>alert(1)</script>\u202e\x1b[2J"
    entry = int8(found=difference(-0.1, -0.2, -0.05, worst=[[nasty, -0.5]], vanished=[nasty]), verdict="missed",
                 why=[nasty])  # fmt: skip
    told = evidence(spec=spec(name=nasty, licence=nasty), not_shipped={"int8": entry}, cases=[case(nasty)])
    page = Page(write_report(told))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text


@pytest.mark.parametrize(
    ("entry", "mood", "words"),
    [
        (int8(), "good", "passed every gate"),
        (int8(verdict="passes accuracy but not speed here"), "reserve", "“auto” does not choose it"),
        (int8(verdict="passes accuracy, speed not measured"), "good", "on the device that runs it"),
        (int8(verdict="waived", waived={"by": "Dr. X", "misses": ["mean"]}), "bad", "Dr. X decided that"),
    ],
)
def test_each_verdict_is_said_in_words(entry: dict[str, Any], mood: str, words: str) -> None:
    told = evidence(precisions={"fp32": fp32(), "int8-cpu": entry})
    found = status(told, "int8-cpu", entry)
    assert found[0] == mood
    assert words in found[1]


def test_a_waived_precision_is_not_among_those_that_passed() -> None:
    waived = int8(verdict="waived", waived={"by": "Dr. X", "misses": ["mean Dice"]})
    told = headline(evidence(precisions={"fp32": fp32(), "int8-cpu": waived}, not_shipped={}))
    assert told == "FP32 is in this bundle and passed; INT8 for CPUs ships in spite of a missed gate."


def test_a_precision_that_is_not_faster_is_named_at_the_top() -> None:
    slow = int8(verdict="passes accuracy but not speed here")
    told = headline(evidence(precisions={"fp32": fp32(), "int8-cpu": slow}, not_shipped={}))
    assert told == "FP32 and INT8 for CPUs are in this bundle and passed; INT8 for CPUs is not faster here."


def test_a_precision_that_is_not_made_is_no_miss() -> None:
    absent = {"precision": "int8", "verdict": "not made", "why": ["no INT8 for prompted models"], "gates": {}}
    told = evidence(
        spec=spec(task="prompted"), precisions={"fp32": fp32()}, not_shipped={"int8": absent}, cases=[], timing=None,
        calibration=None, acceptance=[],
    )  # fmt: skip
    assert headline(told) == "FP32 is in this bundle and passed."
    text = Page(write_report(told)).text
    assert "Not made." in text
    assert "no INT8 for prompted models" in text


def test_warnings_say_what_weakens_the_numbers() -> None:
    found = difference(-0.001, None, None, n=9, patients=1, items=12, by_size={})
    told = evidence(precisions={"fp32": {**fp32(), "gates": {}}, "int8-cpu": int8(found=found)}, not_shipped={},
                    cases=[])  # fmt: skip
    told["calibration"] = {**told["calibration"], "inputs": 40, "fewer_than_100": "the training folds offer 40"}
    told["timing"] = {**told["timing"], "other_processes_cores": 1.3, "settled": False}
    said = " ".join(warnings(told))
    for words in (
        "parity with the trained network is not on record", "measured on 1 patient only",
        "3 of 12 lesions have no truth",
        "fewer than 100", "1.3 processor cores busy", "had not come to rest",
    ):  # fmt: skip
        assert words in said


def test_classifiers_and_maps_are_reported_in_their_own_words() -> None:
    found = difference(-0.0083, -0.02, 0.0, changed_class=["p1 (benign became normal)"], by_size={})
    whole = {"mode": "full", "channels": 3, "height": 224, "width": 224}
    told = evidence(spec=spec(task="classification", input=whole),
                    precisions={"fp32": fp32(), "int8-cpu": int8(found=found)}, cases=[])  # fmt: skip
    text = Page(write_report(told)).text
    assert "Mean accuracy changed by −0.0083" in text
    assert "p1 (benign became normal)" in text
    assert "or one picture" in text
    maps = evidence(spec=spec(task="multiclass", input=whole), cases=[])
    assert "change of macro Dice" in Page(write_report(maps)).all("img")[0]["alt"]


def test_a_precision_that_scores_nothing_is_reported_too() -> None:
    found = difference(None, None, None, n=0, patients=0, reference=None, mean_absolute=None, by_size={},
                       unusable=["c_001 (candidate: NaN)"])  # fmt: skip
    missed = int8(found=found, verdict="missed", why=["no usable answer"])
    told = evidence(precisions={"fp32": fp32()}, not_shipped={"int8-cpu": missed}, cases=[], timing=None)
    text = Page(write_report(told)).text
    assert "c_001 (candidate: NaN)" in text
    assert "Nothing could be scored" in text


def test_outlines_are_drawn_in_three_colours_beside_the_whole_picture() -> None:
    one = case()
    drawn = case_picture(one["image"], one["truth"], one["reference"], one["candidate"])
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] == 420
    whole = drawn[:, : drawn.shape[1] - 430]
    for colour in (TRUTH, REFERENCE, CANDIDATE):
        near = np.abs(drawn.astype(int) - colour).max(axis=2) < 30
        assert near.sum() > 60, colour
        assert not (np.abs(whole.astype(int) - colour).max(axis=2) < 30).any()
    assert np.array_equal(drawn, case_picture(one["image"], one["truth"], one["reference"], one["candidate"]))


@pytest.mark.parametrize("marked", ["nothing", "one pixel in a corner", "everything"])
def test_cases_at_the_edge_are_drawn(marked: str) -> None:
    image = np.full((90, 40), 120, np.uint8)
    mask = np.zeros(image.shape, bool)
    if marked == "one pixel in a corner":
        mask[-1, -1] = True
    if marked == "everything":
        mask[:] = True
    drawn = case_picture(image, None, mask, np.zeros_like(mask))
    assert drawn.ndim == 3
    coloured = (np.ptp(drawn.astype(int), axis=2) > 40).any()
    assert coloured == (marked != "nothing")


def test_colour_pictures_are_drawn_and_wrong_shapes_refused() -> None:
    mask = np.zeros((60, 50), bool)
    mask[20:30, 20:30] = True
    case_picture(np.full((60, 50, 3), 90, np.uint8), mask, mask, mask)
    with pytest.raises(ValueError, match="size"):
        case_picture(np.full((60, 51), 90, np.uint8), mask, mask, mask)


def test_a_case_is_said_in_words() -> None:
    one, nothing = case(), np.zeros((300, 240), bool)
    assert "differ in" in case_words(one)
    assert case_words({**one, "candidate": nothing}) == "only FP32 marks something"
    assert case_words({**one, "reference": nothing}) == "only the lower precision marks something"
    assert case_words({**one, "reference": nothing, "candidate": nothing}) == "neither marks anything"


def test_plots_reach_far_means_and_refuse_to_be_empty() -> None:
    far = Mark("INT8", -0.6, -0.7, -0.5, 12, False, (-0.005,), (-0.010,))
    near = Mark("FP16", -0.00001, -0.0001, 0.0001, 12, True, (-0.001, 0.001))
    drawn = forest_svg([near, far], "change of Dice")
    assert drawn == forest_svg([near, far], "change of Dice")
    assert "<text" not in drawn
    assert "<dc:date>" not in drawn
    with pytest.raises(ValueError, match="at least one"):
        forest_svg([], "")
    with pytest.raises(ValueError, match="at least one"):
        sensitivity_svg([], "")
    assert "<svg" in sensitivity_svg([Bar("a" * 80, 0.0, 0.0, False)], "change")


def test_pictures_in_the_page_can_be_decoded(page: Page) -> None:
    jpegs = [str(i["src"]) for i in page.all("img") if str(i["src"]).startswith("data:image/jpeg")]
    assert len(jpegs) == 2
    raw = np.frombuffer(base64.b64decode(jpegs[0].split(",")[1]), np.uint8)
    decoded = cv2.imdecode(raw, cv2.IMREAD_COLOR)
    sizes = next(i for i in page.all("img") if "width" in i)
    assert decoded.shape[:2] == (int(str(sizes["height"])), int(str(sizes["width"])))


@pytest.mark.parametrize(
    ("value", "said"), [(None, "–"), (-0.00001, "+0.0000"), (0.0, "+0.0000"), (-0.0123, "−0.0123"), (1.0, "+1.0000")]
)
def test_signs_are_said_right(value: float | None, said: str) -> None:
    assert signed(value) == said
