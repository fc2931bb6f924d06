"""The table of precisions: what it reads from a bundle, what it says of what was not measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import precision_table as table
import precisions_page as page

ENTRY: dict[str, Any] = {
    "file": "model.fp16.onnx",
    "verdict": "missed",
    "why": ["mean -0.0300 against FP32, limit -0.0010"],
    "gates": {
        "difference": {"n": 14, "patients": 12, "mean": -0.03, "low": -0.05, "high": -0.01, "reference": 0.4,
                       "by_size": {"<10 mm": {"mean": -0.1, "n": 3}}},
        "form": {"operators": {"Conv": 3}, "batch_norms_left": 2, "computed_in": {"fp16": 3}},
        "not_finite": ["relu_3"],
    },
    "made": {"islands": [{"node": "a", "operator": "Resize", "why": "large"}, {"node": "b", "operator": "Resize",
                         "why": "large"}], "kept_float": {"head": "makes the logits"},
             "reverted": [f"conv_{k}" for k in range(7)], "calibrator": "mse", "equalised": True},
    "speed": [{"backend": "cpu", "than": "fp32", "ratio": 1.3, "low": 1.2, "high": 1.4, "passed": True, "batch": 1,
               "threads": 2}],
}  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    size = {"mode": "full", "channels": 3, "height": 64, "width": 64}
    spec = {"architecture": "unet", "network": {"width": "tiny"}, "input": size, "classes": ["mass"],
            "task": "segmentation", "training": {"epochs": 3, "data": [{"title": "Somewhere"}]}}  # fmt: skip
    fp32 = {"file": "model.fp32.onnx", "verdict": "passed", "gates": {"parity": {"logit_error": 3e-7, "images": 6}}}
    manifest = {
        "spec": spec, "precisions": {"fp32": fp32}, "not_shipped": {"fp16": ENTRY},
        "files": {"model.fp32.onnx": {"bytes": 2_000_000}}, "toolchain": {"torch": "2"},
    }  # fmt: skip
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def test_a_row_says_what_its_bundle_says(bundle: Path) -> None:
    row = table.row_of(table.Source("mine", bundle, None))
    fp16 = row["precisions"]["fp16"]
    assert (fp16["difference"]["mean"], fp16["difference"]["n"], fp16["by_size"]) == (-0.03, 14, {"<10 mm": -0.1})
    assert fp16["islands"] == {"Resize: large": 2}
    assert row["precisions"]["fp32"]["bytes"] == 2_000_000
    assert row["parameters"] > 100_000
    text = page.page({"rows": [row, table.not_run("resunet")]})
    for words in (
        "mine: `unet` (width tiny)", "missed<br>-0.0300 (-0.0500 to -0.0100), n 14 of 12",
        "1.30 (1.20–1.40) times as fast as fp32, cpu", "passed<br>logits within 3e-07 of torch, n 6<br>2.0 MB",
        "not asked for", "batch norms that no convolution in front takes up: 2", "stay FP32 (2): Resize: large",
        "layers that stay float (1): makes the logits", "groups back in float for accuracy (7): conv_0, conv_1, conv_2",
        "best calibrator mse, channels equalised", "tensors that are NaN or infinite on real pictures: 1",
        "mean -0.0300 against FP32",
        "- `resunet`: not run: no finished run was at hand; `mammo-train reproduce resunet` makes one",
    ):  # fmt: skip
        assert words in text, words


def test_phantoms_get_no_numbers(bundle: Path) -> None:
    text = page.page({"rows": [table.row_of(table.Source("mine", bundle, None, True))]})
    assert "made; computes in fp16 3" in text
    assert "-0.0300" not in text
    assert "1.30" not in text
    assert "Nothing was left out." in text


def test_runs_under_way_and_other_weights_are_noticed(tmp_path: Path, bundle: Path) -> None:
    for name, training in (("done", {"operating_point": {}}), ("under_way", {})):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "spec.json").write_text(json.dumps({"training": training}))
    assert [source.name for source in table.runs_below(tmp_path, tmp_path / "work")] == ["done"]
    (tmp_path / "done" / "run" / "model.safetensors").write_bytes(b"other")
    assert not table._is_of(bundle, tmp_path / "done" / "run")
    assert not table._is_of(tmp_path / "nowhere", tmp_path / "done" / "run")
