"""What a finished run is worth: its operating point, `metrics.json`, pictures and model card."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mammo_runtime.atomic import write_text
from mammo_runtime.errors import UsageError
from mammo_runtime.hashing import file_sha256
from mammo_runtime.segmenter import segment
from mammo_runtime.session import Session
from mammo_runtime.spec import InputMode, ModelSpec
from mammo_train import checkpoint
from mammo_train.config import TrainConfig
from mammo_train.dataset import read_labelled
from mammo_train.evaluate import evaluate, lesion_window
from mammo_train.index import IndexRow
from mammo_train.metrics import amount, with_interval
from mammo_train.model_card import model_card
from mammo_train.operating_point import choose_operating_point
from mammo_train.torch_session import TorchSession

METRICS, CARD, CONFIG = "metrics.json", "MODEL_CARD.md", "config.json"
CASES = 6
"""Worst and best cases drawn."""

Report = Callable[[str], None]


def read_config(run: Path) -> TrainConfig:
    """Return the settings a run was trained with. Raises UsageError when it is not finished."""
    if not (run / CONFIG).is_file():
        raise UsageError(f"{run} holds no {CONFIG}; is it a finished run of `mammo-train fit`?")
    return TrainConfig.from_dict(json.loads((run / CONFIG).read_text(encoding="utf-8")))


def read_metrics(run: Path) -> dict[str, Any]:
    """Return `metrics.json`, without results of other weights or another operating point; empty if there is none."""
    path = run / METRICS
    if not path.is_file():
        return {}
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    _, spec = checkpoint.load_model(run)
    return {name: block for name, block in stored.items() if isinstance(block, dict) and _is_current(block, run, spec)}


def freeze_operating_point(
    run: Path, rows: Sequence[IndexRow], report: Report = print, index: Path | None = None
) -> dict[str, Any]:
    """Choose threshold and smallest finding on the validation fold, write them into the run's spec, evaluate that fold.

    `index` is the file `rows` came from. Returns the validation block of `metrics.json`.
    """
    config = read_config(run)
    held_out = [row for row in rows if row.fold == config.validation_fold]
    with TorchSession.from_run(run) as session:
        choice = choose_operating_point(session, session.spec, held_out, config.validation_kind)
        frozen = replace(
            session.spec,
            threshold=choice.threshold,
            min_area_cells=choice.min_area_cells,
            training={**session.spec.training, "operating_point": choice.record},
        )
    checkpoint.save_spec(run, frozen)
    report(f"operating point: threshold {choice.threshold:g}, least area {choice.min_area_cells:g} cells")
    return evaluate_fold(run, rows, config.validation_fold, report, index)


def evaluate_fold(
    run: Path, rows: Sequence[IndexRow], fold: int, report: Report = print, index: Path | None = None
) -> dict[str, Any]:
    """Evaluate one fold and write its block ("validation" or "fold_N") into `metrics.json`.

    Also draws its case sheet and the learning curves, and renews the model card. `index` is the file `rows` came from.
    Returns the block. Raises UsageError when the fold holds nothing.
    """
    from mammo_train.pictures import curves_png

    config = read_config(run)
    own = [row for row in rows if row.fold == fold]
    if not own:
        raise UsageError(f"the index has no fold {fold}; it has {sorted({row.fold for row in rows})}")
    name = "validation" if fold == config.validation_fold else f"fold_{fold}"
    with TorchSession.from_run(run) as session:
        spec = session.spec
        block = evaluate(session, spec, own, config.kinds, report)
        block = {
            "fold": fold,
            "role": _role(fold, config),
            "weights_sha256": checkpoint.weights_sha256(run),
            "index_sha256": None if index is None else file_sha256(index),
            **block,
        }
        _draw_cases(run / f"cases_{name}.png", session, spec, own, block["kinds"], config.validation_kind)
    # Kept as one file with the other folds' results, as long as those are of the same weights and operating point.
    metrics = {**read_metrics(run), name: block}
    write_text(run / METRICS, json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    if (run / "log.csv").is_file():
        curves_png(run / "log.csv", run / "curves.png")
    write_text(run / CARD, model_card(spec, metrics, config))
    return block


def summary_lines(name: str, block: dict[str, Any]) -> list[str]:
    """Return one line for each kind of a block of `metrics.json`."""
    lines = []
    for kind, values in block["kinds"].items():
        items, patients = amount(values["n"], values["item"]), amount(values["n_patients"], "patient")
        head = f"{name}, {kind}: {items} of {patients}"
        if "per_image" in values:
            dice, pooled = values["per_image"]["dice"], values["pooled"]["dice"]
            text = f"mean Dice {with_interval(dice)}, pooled {with_interval(pooled)}"
            if "jittered_boxes" in values:
                text += f", jittered boxes {with_interval(values['jittered_boxes']['per_image']['dice'])}"
        else:
            text = f"{with_interval(values['findings_per_image'])} false findings per picture"
        lines.append(f"{head}: {text}")
    return lines


def _draw_cases(
    path: Path, session: Session, spec: ModelSpec, rows: Sequence[IndexRow], kinds: dict[str, Any], kind: str
) -> None:
    """Draw the worst and best items of `kind`; their masks are inferred again, so that none had to be kept."""
    from mammo_train.pictures import Case, cases_png

    items = sorted(kinds.get(kind, {}).get("items", []), key=lambda item: item.get("dice", 0.0))
    if not items or "dice" not in items[0]:
        return
    half = min(CASES, (len(items) + 1) // 2)
    known = {(row.name, row.group): row for row in rows if row.kind == kind}

    def case(item: dict[str, Any]) -> Case:
        labelled = read_labelled(known[item["image"], item["group"]])
        title, part, boxes = item["image"], np.s_[:, :], None
        if spec.input.mode is InputMode.ROI:
            boxes = [labelled.boxes[item["lesion"] - 1]]
            title, part = f"{title} #{item['lesion']}", lesion_window(labelled, boxes[0], spec.input.roi_margin)
        mask = segment(labelled.image, session, spec, boxes=boxes).mask[part]
        return Case(title, _windowed(labelled.image.pixels[part]), labelled.mask[part], mask, item["dice"])

    best = list(reversed(items[half:]))[:CASES]
    cases_png([case(item) for item in items[:half]], [case(item) for item in best], path)


def _windowed(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 for looking at: the tissue's grey values from 0.5 to 99.8 % spread over the whole range."""
    tissue = pixels[pixels > 0]
    if not tissue.size:
        return np.zeros(pixels.shape, np.uint8)
    low, high = (float(v) for v in np.percentile(tissue, (0.5, 99.8)))
    spread = (pixels.astype(np.float32) - low) * (255 / max(high - low, 1))
    return np.asarray(np.clip(np.rint(spread), 0, 255), np.uint8)


def _role(fold: int, config: TrainConfig) -> str:
    if fold == config.validation_fold:
        return "validation"
    if fold in config.train_folds:
        return "training"
    return "test" if fold == config.test_fold else "other"


def _is_current(block: dict[str, Any], run: Path, spec: ModelSpec) -> bool:
    now = (checkpoint.weights_sha256(run), spec.threshold, spec.min_area_cells)
    return (block.get("weights_sha256"), block.get("threshold"), block.get("min_area_cells")) == now
