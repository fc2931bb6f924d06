"""What an export knows at its end, as `mammo_export.pages` hands it to report and model card: made up, but lifelike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

LIMITS = {"logit_error": 1e-4, "probability_error": 1e-4, "equal_pixels": 0.9999, "batch_difference": 1e-5}
MACHINE = {
    "system": "Linux 6.1.0 x86_64", "processor": "AMD EPYC 7B13", "instruction_set": "avx2", "cores": 2,
    "python": "3.11.7", "packages": {"onnxruntime": "1.32.0"},
}  # fmt: skip
ORDER = {
    "batch": 1, "threads": 2, "machine": MACHINE,
    "order": "15 rounds, torch fp32 fp16 int8-cpu in turns, 5 calls a block",
    "interval": "95 %, percentile bootstrap over rounds, 2000 resamples", "settled": True, "warm_up_calls": 36,
    "other_processes_cores": 0.05,
}  # fmt: skip


def spec(**changes: Any) -> dict[str, Any]:
    """Return a model's spec as the manifest holds it."""
    values = {
        "name": "mass-roi", "architecture": "mobilenetv2_resunet", "task": "segmentation", "modality": "mammography",
        "input": {"mode": "roi", "channels": 3, "height": 256, "width": 256}, "threshold": 0.45, "classes": ["mass"],
        "parent_sha256": "ab" * 32, "training": {}, "licence": "Research use only.",
    }  # fmt: skip
    return {**values, **changes}


def difference(mean: float | None, low: float | None, high: float | None, **changes: Any) -> dict[str, Any]:
    """Return a `Difference` as the manifest holds it."""
    values: dict[str, Any] = {
        "items": 118, "n": 118, "patients": 96, "mean": mean, "low": low, "high": high,
        "interval": "95 %, percentile bootstrap over 96 patients, 2000 resamples", "mean_absolute": 0.0041,
        "reference": 0.8123, "candidate": None if mean is None else 0.8123 + mean, "found": 116, "worst": [],
        "appeared": [], "vanished": [], "lost": [], "changed_class": [], "unusable": [],
        "by_size": {
            "<10 mm": {"n": 31, "patients": 28, "mean": -0.0062, "low": -0.013, "high": 0.001},
            "10-20 mm": {"n": 64, "patients": 55, "mean": 0.0008, "low": -0.002, "high": 0.003},
            ">20 mm": {"n": 23, "patients": 22, "mean": -0.0003, "low": -0.001, "high": 0.0006},
        },
    }  # fmt: skip
    return {**values, **changes}


def timed(ratio: float, passed: bool, limit: float = 1.15) -> dict[str, Any]:
    """Return a measurement of speed as the manifest holds it."""
    return {
        "backend": "cpu", "than": "fp32", "ratio": ratio, "low": ratio - 0.05, "high": ratio + 0.04, "limit": limit,
        "passed": passed, "milliseconds": 21.4, "than_milliseconds": 34.2, **ORDER,
    }  # fmt: skip


def fp32() -> dict[str, Any]:
    """Return the FP32 entry."""
    parity = {
        "reference": "torch 2.14.1 cpu", "measured": "onnxruntime 1.32.0 CPUExecutionProvider", "images": 96,
        "windows": 118, "windows_with_mask": 116, "logit_error": 3.1e-6, "logit_error_image": "c_001",
        "probability_error": 1.2e-6, "equal_pixels": 1.0, "batch_difference": 2.4e-7, "appeared": [], "vanished": [],
        "unusable": [], "changed_class": [], "untied": [], "not_repeatable": [], "limits": LIMITS,
    }  # fmt: skip
    return {
        "file": "model.fp32.onnx", "precision": "fp32", "backends": ["cpu", "cuda", "tensorrt"], "verdict": "passed",
        "why": [], "waived": None, "gates": {"parity": parity, "form": {"nodes": 141, "opset": 18}}, "speed": [],
        "made": {}, "bytes": 26_812_331,
    }  # fmt: skip


def fp16() -> dict[str, Any]:
    """Return an FP16 entry that passed."""
    found = difference(-0.00002, -0.0001, 0.00006, mean_absolute=0.0002, worst=[["c_017 lesion 1", -0.0021]])
    made = {
        "islands": [{"node": "node_Resize_142", "operator": "Resize", "why": "its sizes must stay exact"}],
        "judged_on": "the same graph with every half-precision tensor rounded on purpose",
        "computed_in": [{"fp16": 64, "fp32": 1}],
    }
    return {
        "file": "model.fp16.onnx", "precision": "fp16", "backends": ["cpu"], "verdict": "passed", "why": [],
        "waived": None, "gates": gates(found), "speed": [timed(0.93, False, 1.0)], "made": made, "bytes": 13_431_202,
    }  # fmt: skip


def int8(key: str = "int8-cpu", found: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return an INT8 entry that passed, with one group back in float."""
    worst = [["c_041 lesion 2", -0.094], ["c_017 lesion 1", -0.031], ["c_090 lesion 1", -0.012]]
    found = found or difference(-0.0014, -0.0033, 0.0004, worst=worst, appeared=["c_102 lesion 1"])
    tried = [
        {"calibrator": name, "equalised": even, "mean": mean, "low": mean - 0.002, "high": mean + 0.002, "n": 118}
        for name, even, mean in (("minmax", False, -0.0121), ("entropy", False, -0.0047), ("mse", False, -0.0040),
                                 ("minmax", True, -0.0062), ("mse", True, -0.0021))
    ]  # fmt: skip
    ranking = [
        {"group": f"node_Conv_{740 + 3 * k}", "change": -0.0031 / (1 + k), "mean_absolute": 0.006 / (1 + k), "lost": 0,
         "unusable": 0}
        for k in range(27)
    ]  # fmt: skip
    made = {
        "calibrator": "mse", "equalised": True, "candidates": tried, "reverted": ["node_Conv_740"], "ranking": ranking,
        "kept_float": {"node_Conv_980": "makes the logits: eight bits there would move the threshold"},
        "mix": "1 of 27 groups went back; the rest passes", "computed_in": [{"int8": 61, "fp32": 4}],
        "judged_on": "the graph itself" if key == "int8-cpu" else (
            "the same graph with FP32 scales: ONNX Runtime's CPU computes FP16 QuantizeLinear wrongly "
            "(microsoft/onnxruntime issue 22741)"),
    }  # fmt: skip
    entry = {
        "file": f"model.{key}.onnx", "precision": "int8", "backends": ["cpu" if key == "int8-cpu" else "tensorrt"],
        "verdict": "passed", "why": [], "waived": None, "gates": gates(found), "made": made, "bytes": 7_402_118,
        "speed": [timed(1.62, True)] if key == "int8-cpu" else [],
    }  # fmt: skip
    return {**entry, **changes}


def gates(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the gates of a lower precision."""
    repeated = {"runs": 100, "identical": True, "differs_on": None}
    return {"form": {}, "difference": dict(found), "repeats": repeated, "batch_difference": 4.4e-7, "not_finite": []}


def case(name: str = "c_041 lesion 2", key: str = "int8-cpu", side: int = 300) -> dict[str, Any]:
    """Return a case with a round mass: the candidate's outline is shifted and smaller."""
    rows, columns = np.mgrid[:side, : side - 60]
    noise = np.random.default_rng(0).normal(0, 9, rows.shape)

    def disc(row: float, column: float, radius: float) -> np.ndarray:
        return np.asarray((rows - row) ** 2 + (columns - column) ** 2 < radius**2)

    tissue = 70 + 60 * np.exp(-((columns / side) ** 2) * 4)
    image = np.clip(tissue + 70 * disc(160, 110, 22) + noise, 0, 255).astype(np.uint8)
    return {
        "key": key, "name": name, "image": image, "truth": disc(160, 110, 22), "reference": disc(161, 111, 21),
        "candidate": disc(158, 106, 17), "numbers": {"fp32": 0.931, key: 0.837},
    }  # fmt: skip


def evidence(**changes: Any) -> dict[str, Any]:
    """Return the evidence of an export in which INT8 for TensorRT missed a gate."""
    blocks = {
        name: [round(base * (1 + 0.004 * (k % 4)), 3) for k in range(15)]
        for name, base in (("torch", 61.0), ("fp32", 34.2), ("fp16", 36.8), ("int8-cpu", 21.1))
    }
    missed = int8(
        "int8", difference(-0.0062, -0.0121, -0.0009, vanished=["c_063 lesion 1"], lost=["c_063 lesion 1"]),
        verdict="missed", why=[
            "mean Dice changed by -0.0062 over 118 lesions of 96 patients (limit -0.0050)",
            "true lesions that FP32 finds are lost: c_063 lesion 1 (limit: none)",
            "fine-tune with quantisation in the loop: mammo-train fit --qat",
        ])  # fmt: skip
    values: dict[str, Any] = {
        "spec": spec(), "precisions": {"fp32": fp32(), "fp16": fp16(), "int8-cpu": int8()},
        "not_shipped": {"int8": missed},
        "toolchain": {"mammo-edge": "0.1.0", "onnx": "1.23.2", "onnxruntime": "1.32.0", "torch": "2.14.1"},
        "acceptance": ["acceptance/acceptance.json", "acceptance/phantom-0.png"],
        "calibration": {
            "inputs": 256, "images": 131, "kinds": {"benign": 60, "malignant": 71}, "folds": [2, 3, 4],
            "groups_sha256": ["aa", "bb"], "images_sha256": ["cc", "dd"], "crop": "windows round lesions, margin 0.5",
            "order": "pictures with masses first", "fewer_than_100": None,
        },
        "timing": {"median_ms": {n: float(np.median(own)) for n, own in blocks.items()}, "blocks_ms": blocks, **ORDER},
        "cases": [case(), case("c_017 lesion 1")],
    }  # fmt: skip
    return {**values, **changes}
