"""Phantom data and one finished run, shared by the trainer's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training_phantoms import PhantomSet, tiny_config, tiny_spec, write_phantoms


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> PhantomSet:
    """Read only; a test that changes files writes its own with `write_phantoms`."""
    return write_phantoms(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="session")
def finished_run(phantoms: PhantomSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with frozen operating point and validation results. Read only: copy it before changing it."""
    from mammo_train import results, run_data
    from mammo_train.fit import fit

    run = tmp_path_factory.mktemp("run")
    spec = tiny_spec(training={"data": [
        {"name": "phantoms", "title": "Synthetic phantoms", "images": 12, "licence": "CC0", "citation": "",
         "research_only": False}
    ]}, licence="Public domain.")  # fmt: skip
    fit(phantoms.rows(), spec, tiny_config(), run, report=lambda _line: None)
    seen = [row for row in phantoms.rows() if row.fold in (1, 2, 3, 4)]
    run_data.write_data_json(run, phantoms.index, phantoms.root, seen)
    results.freeze_operating_point(run, phantoms.rows(), lambda _line: None, phantoms.index)
    return run
