"""Two processes through torchrun against one: the same losses within rounding, the same decisions, one writer."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mammo_train import checkpoint, distributed
from mammo_train.cli import main
from training_phantoms import PhantomSet

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "batch_size": 5, "frozen_epochs": 0, "ema_decay": 0.5, "rate": 1e-3, "train_folds": [2, 3, 4],
    "augment": "seed_003",
    "kinds": ["mass", "findings", "normal"], "validation_kinds": ["mass"],
}  # fmt: skip
"""Twelve samples in steps of 5, 5 and 2: the parts of two processes differ in size."""


def arguments(phantoms: PhantomSet, folder: Path, run: Path, epochs: int) -> list[str]:
    """Return a call that trains a network without batch norm or dropout, which alone can be compared exactly."""
    settings = folder / "settings.json"
    settings.write_text(json.dumps(SETTINGS))
    return [
        "fit", "--index", str(phantoms.index), "--root", str(phantoms.root), "-o", str(run), "--config", str(settings),
        "--model", "busi_unet", "--width", "tiny", "--option", "dropout_down=0", "--option", "dropout_up=0",
        "--modality", "mammography", "--size", "64x64", "--epochs", str(epochs), "--quiet",
    ]  # fmt: skip


def torchrun(given: list[str]) -> None:
    paths = os.pathsep.join(str(ROOT / room) for room in ("runtime", "train"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "mammo_train.cli", *given], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def log_of(run: Path) -> list[dict[str, float]]:
    with (run / "log.csv").open(newline="") as stream:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="compares processes on a CPU")
def test_two_processes_train_like_one_and_resume(phantoms: PhantomSet, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    done = CliRunner().invoke(main, arguments(phantoms, tmp_path, one, 3), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    torchrun(arguments(phantoms, tmp_path, two, 1))
    torchrun(arguments(phantoms, tmp_path, two, 3))  # the same command with more epochs goes on
    alone, together = log_of(one), log_of(two)
    assert [row["epoch"] for row in together] == [1, 2, 3]
    for mine, theirs in zip(alone, together, strict=True):
        assert theirs == pytest.approx(mine, rel=2e-4, abs=2e-5)
    assert alone[-1]["train_loss"] < alone[0]["train_loss"]
    first, second = checkpoint.load_state(one), checkpoint.load_state(two)
    assert first is not None
    assert second is not None
    for name, value in first[0].items():
        if name.startswith("network/"):
            assert torch.allclose(value, second[0][name], atol=5e-4), name
    _, spec = checkpoint.load_model(two)
    assert (spec.training["processes"], spec.training["batch_norm_statistics"]) == (2, "of each process's own part")
    assert (two / "MODEL_CARD.md").is_file()
    assert json.loads((two / "metrics.json").read_text())["validation"]["fold"] == 1
    fine_tuned_alike(one, tmp_path)


def fine_tuned_alike(parent: Path, folder: Path) -> None:
    """Fine-tune for INT8 in one process and in two, where each sees the values of its own part only."""
    call = ["fit", "--qat", "--init", str(parent), "--epochs", "1", "--quiet", "-o"]
    done = CliRunner().invoke(main, [*call, str(folder / "int8_one")], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    torchrun([*call, str(folder / "int8_two")])
    (alone,), (together,) = log_of(folder / "int8_one"), log_of(folder / "int8_two")
    assert together == pytest.approx(alone, rel=2e-4, abs=2e-5)
    first, second = checkpoint.load_state(folder / "int8_one"), checkpoint.load_state(folder / "int8_two")
    assert first is not None
    assert second is not None
    ranges = [name for name in first[0] if name.startswith("simulation/")]
    assert len(ranges) == 19
    for name in ranges:
        assert torch.allclose(first[0][name], second[0][name], rtol=1e-3), name


def test_alone_nothing_is_shared() -> None:
    network = torch.nn.Linear(2, 2)
    with distributed.joined():
        assert (distributed.world(), distributed.rank()) == (1, 0)
        assert distributed.wrapped(network) is distributed.synchronised(network) is network
        assert distributed.dealt([3, 4, 5]) == [3, 4, 5]
        assert distributed.gathered("x") == ["x"]
        assert distributed.agreed("x") == "x"
