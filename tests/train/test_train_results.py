"""What a finished run is worth: frozen operating point, metrics.json, pictures, card."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mammo_runtime.errors import UsageError
from mammo_runtime.hashing import file_sha256
from mammo_runtime.segmenter import segment
from mammo_train import checkpoint, results, run_data
from mammo_train.dataset import read_labelled
from mammo_train.torch_session import TorchSession
from training_phantoms import PhantomSet


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("state.safetensors"))
    return tmp_path / "run"


def silent(_line: str) -> None:
    pass


def test_freezing_writes_spec_metrics_pictures_and_card(finished_run: Path, phantoms: PhantomSet) -> None:
    _, spec = checkpoint.load_model(finished_run)
    record = spec.training["operating_point"]
    assert record["n"] == 2
    assert record["dice"] == record["dice_by_min_area_cells"][f"{spec.min_area_cells:g}"]
    assert record["dice_by_threshold"][f"{spec.threshold:.2f}"] == max(record["dice_by_threshold"].values())
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert list(metrics) == ["validation"]
    block = metrics["validation"]
    assert (block["fold"], block["role"], list(block["kinds"])) == (1, "validation", ["mass", "findings", "normal"])
    assert (block["threshold"], block["min_area_cells"]) == (spec.threshold, spec.min_area_cells)
    assert block["weights_sha256"] == checkpoint.weights_sha256(finished_run)
    assert block["index_sha256"] == file_sha256(phantoms.index)
    assert block["kinds"]["mass"]["per_image"]["dice"]["value"] == pytest.approx(record["dice"], abs=2e-3)
    for name in ("curves.png", "cases_validation.png"):
        assert (finished_run / name).read_bytes().startswith(b"\x89PNG")
    assert "### validation" in (finished_run / "MODEL_CARD.md").read_text()
    assert run_data.read_data_json(finished_run) == (phantoms.index.resolve(), phantoms.root.resolve())


def test_the_numbers_are_those_of_the_runtime(finished_run: Path, phantoms: PhantomSet) -> None:
    items = json.loads((finished_run / "metrics.json").read_text())["validation"]["kinds"]["mass"]["items"]
    with TorchSession.from_run(finished_run) as session:
        for item in items:
            labelled = read_labelled(next(r for r in phantoms.rows() if r.name == item["image"]))
            found = segment(labelled.image, session, session.spec)
            assert item["mask_px"] == int(found.mask.sum())
            assert item["truth_px"] == int(labelled.mask.sum())
            assert item["findings"] == len(found.findings)


def test_a_fold_is_added_beside_the_others_and_replaced_when_repeated(run: Path, phantoms: PhantomSet) -> None:
    block = results.evaluate_fold(run, phantoms.rows(), 0, silent, phantoms.index)
    assert block["role"] == "test"
    assert list(results.read_metrics(run)) == ["validation", "fold_0"]
    again = results.evaluate_fold(run, phantoms.rows(), 0, silent, phantoms.index)
    assert again["kinds"] == block["kinds"]
    assert list(results.read_metrics(run)) == ["validation", "fold_0"]
    assert (run / "cases_fold_0.png").is_file()
    assert "### fold_0: fold 0, never used for any choice" in (run / "MODEL_CARD.md").read_text()
    assert results.evaluate_fold(run, phantoms.rows(), 3, silent)["role"] == "training"


@pytest.mark.parametrize("change", [{"threshold": 0.123}, {"min_area_cells": 77.0}])
def test_numbers_of_another_operating_point_are_stale(run: Path, change: dict[str, float]) -> None:
    assert list(results.read_metrics(run)) == ["validation"]
    _, spec = checkpoint.load_model(run)
    checkpoint.save_spec(run, replace(spec, **change))  # type: ignore[arg-type]
    assert results.read_metrics(run) == {}


def test_numbers_of_other_weights_are_stale_and_leave_the_file(run: Path, phantoms: PhantomSet) -> None:
    network, spec = checkpoint.load_model(run)
    state = network.state_dict()
    state["head.bias"] = state["head.bias"] + 1
    checkpoint.save_model(run, state)
    checkpoint.save_spec(run, replace(spec, parent_sha256=checkpoint.weights_sha256(run)))
    assert results.read_metrics(run) == {}
    results.evaluate_fold(run, phantoms.rows(), 0, silent)
    assert list(json.loads((run / "metrics.json").read_text())) == ["fold_0"]


def test_summary_lines_name_n_and_interval(run: Path, phantoms: PhantomSet) -> None:
    block = results.evaluate_fold(run, phantoms.rows(), 0, silent)
    mass, findings, normal = results.summary_lines("fold 0", block)[:3]
    dice = block["kinds"]["mass"]["per_image"]["dice"]
    assert mass.startswith("fold 0, mass: 2 images of 2 patients: mean Dice ")
    assert f"{dice['value']:.3f} ({dice['low']:.3f}-{dice['high']:.3f})" in mass
    assert findings.startswith("fold 0, findings: 1 image of 1 patient:")
    assert "false findings per picture" in normal


def test_errors_name_what_is_missing(run: Path, phantoms: PhantomSet) -> None:
    with pytest.raises(UsageError, match=r"no fold 9; it has \[0, 1, 2, 3, 4\]"):
        results.evaluate_fold(run, phantoms.rows(), 9, silent)
    (run / "data.json").unlink()
    with pytest.raises(UsageError, match="--index FILE --root DIR"):
        run_data.read_data_json(run)
    (run / "config.json").unlink()
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        results.evaluate_fold(run, phantoms.rows(), 0, silent)


def test_what_a_run_has_seen_is_no_test_image(run: Path, phantoms: PhantomSet) -> None:
    """An index that calls a training patient or picture fold 0 proves nothing, and is refused."""
    fold_0 = [row for row in phantoms.rows() if row.fold == 0]
    run_data.check_unseen(run, fold_0)
    seen = next(row for row in phantoms.rows() if row.fold == 2)
    for renamed in (replace(seen, fold=0, group="somebody else"), replace(fold_0[0], group=seen.group)):
        with pytest.raises(UsageError, match="is no test image"):
            run_data.check_unseen(run, [*fold_0, renamed])
    (run / "data.json").unlink()
    with pytest.raises(UsageError, match="would prove nothing"):
        run_data.check_unseen(run, fold_0)
