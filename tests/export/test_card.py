"""The section of a model card: filled from measurements, Markdown that stays Markdown."""

from __future__ import annotations

import pytest

from mammo_export.card import HEADING, precision_section
from report_evidence import difference, evidence, fp16, fp32, int8, spec


def rows(section: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]


def test_every_precision_has_a_row_with_n_and_intervals() -> None:
    section = precision_section(evidence())
    assert section.startswith(f"{HEADING}\n")
    head, *found = rows(section)
    assert head[0] == "graph"
    table = {row[0]: row for row in found}
    assert table["INT8 for CPUs"][1:] == [
        "passed", "−0.0014 (−0.0033 to +0.0004)", "118", "7.4 MB", "1.62 (1.57 to 1.66)",
    ]  # fmt: skip
    assert table["INT8 for TensorRT"][1:] == ["missed", "−0.0062 (−0.0121 to −0.0009)", "118", "–", "–"]
    assert table["FP32"][2] == "reference"
    assert "118 lesions of 96 patients" in section
    assert "AMD EPYC 7B13 (avx2)" in section


def test_misses_and_their_remedies_are_told() -> None:
    section = precision_section(evidence())
    (line,) = [line for line in section.splitlines() if line.startswith("- **INT8 for TensorRT**")]
    for words in (
        "Not in the bundle",
        "limit -0.0050",
        "c\\_063 lesion 1",
        "mammo-train fit --qat",
        "Limits: mean Dice",
    ):
        assert words in line
    assert "masks that FP32 does not draw (1): c\\_102 lesion 1" in section


def test_a_waiver_names_who_and_what() -> None:
    waived = int8(verdict="waived", waived={"by": "Dr. X", "misses": ["mean Dice changed by -0.0080"]})
    section = precision_section(evidence(precisions={"fp32": fp32(), "int8-cpu": waived}, not_shipped={}))
    assert "Dr. X decided that" in section
    assert "Missed: mean Dice changed by -0.0080" in section


def test_a_bundle_of_fp32_alone_has_a_section_too() -> None:
    told = {"spec": spec(), "precisions": {"fp32": fp32()}}
    section = precision_section(told)
    assert len(rows(section)) == 2
    assert "calibrated" not in section


def test_sizes_come_from_the_files_where_the_entry_has_none() -> None:
    entry = {name: value for name, value in fp16().items() if name != "bytes"}
    files = {"model.fp16.onnx": {"sha256": "0", "bytes": 13_400_000}}
    section = precision_section({"spec": spec(), "precisions": {"fp32": fp32(), "fp16": entry}, "files": files})
    assert "| 13.4 MB |" in section


def test_the_section_can_be_cut_off_again() -> None:
    """`pages` writes a card anew by cutting at the heading, so that it must occur once, as a line."""
    section = precision_section(evidence())
    assert section.count(HEADING) == 1
    assert section.endswith("`report.html`.\n")
    assert not any(line.startswith("# ") or line.startswith("## ") for line in section.splitlines()[1:])


@pytest.mark.parametrize("nasty", ["a | b", "a\n\n## Precisions", "<img src=x>", "`code`", "[x](http://y)"])
def test_names_cannot_break_the_table_or_become_markup(nasty: str) -> None:
    found = difference(-0.001, -0.002, 0.0, appeared=[nasty], worst=[[nasty, -0.1]])
    section = precision_section(evidence(precisions={"fp32": fp32(), "int8-cpu": int8(found=found)}))
    assert section.count("\n## ") == 0
    assert "<img" not in section.replace("\\<img", "")
    assert len({len(row) for row in rows(section)}) == 1
