"""Training end to end on phantoms: the files it leaves, what it refuses, and that a kill changes nothing."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mammo_runtime.errors import MammoError, UsageError
from mammo_runtime.spec import InputMode
from mammo_train import checkpoint, models
from mammo_train.fit import fit
from training_phantoms import PhantomSet, tiny_config, tiny_spec, write_phantoms

TESTS = Path(__file__).parents[1]


def silent(_line: str) -> None:
    pass


class OneLayer(torch.nn.Module):
    """The smallest thing that is trained like a network."""

    def __init__(self, channels: int, classes: int, width: object) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


@pytest.fixture
def one_layer(monkeypatch: pytest.MonkeyPatch) -> str:
    entry = models.Architecture(OneLayer, "test", "one layer", 1, {"whole": ()})
    monkeypatch.setitem(models.ARCHITECTURES, "one_layer", entry)  # type: ignore[arg-type]
    return "one_layer"


def test_a_run_leaves_weights_spec_settings_and_log(finished_run: Path) -> None:
    network, spec = checkpoint.load_model(finished_run)
    assert sum(p.numel() for p in network.parameters()) == 5_697_969
    assert spec.parent_sha256 == checkpoint.weights_sha256(finished_run)
    training = spec.training
    assert training["train_folds"] == [2, 3, 4]
    assert (training["train_images"], training["train_patients"], training["epochs"]) == (12, 6, 2)
    assert training["train_images_by_kind"] == {"mass": 6, "findings": 3, "normal": 3}
    with (finished_run / "log.csv").open(newline="") as stream:
        log = list(csv.DictReader(stream))
    assert [(row["epoch"], row["phase"], float(row["rate"])) for row in log] == [("1", "1", 1e-3), ("2", "2", 5e-4)]
    best = max(log, key=lambda row: float(row["validation_score"]))
    assert training["best_epoch"] == int(best["epoch"])
    assert training["validation_score_grid"] == pytest.approx(float(best["validation_score"]), abs=1e-4)
    assert (training["validation_score"], training["stopped_by"], training["precision"]) == (
        "mean Dice",
        "epochs",
        "fp32",
    )
    assert "leaking_split" not in training
    assert "processes" not in training
    assert json.loads((finished_run / "config.json").read_text())["frozen_epochs"] == 1


def test_frozen_phase_leaves_the_encoder_alone(phantoms: PhantomSet, tmp_path: Path) -> None:
    config = tiny_config(epochs=1, frozen_epochs=1, ema_decay=0.0, frozen_rate=1e-2)
    fit(phantoms.rows(), tiny_spec(), config, tmp_path, report=silent)
    torch.manual_seed(config.seed)
    fresh = models.build("mobilenetv2_resunet").state_dict()
    trained = checkpoint.load_model(tmp_path)[0].state_dict()
    changed = {name for name in fresh if not torch.equal(fresh[name], trained[name])}
    assert not any(name.startswith("encoder.") for name in changed)
    assert "decoder.0.first.0.weight" in changed


def test_the_rate_falls_on_a_plateau_and_training_stops_early(
    phantoms: PhantomSet, tmp_path: Path, one_layer: str
) -> None:
    # Steps far below float32's resolution change nothing, so that every epoch after the first is a plateau.
    config = tiny_config(
        epochs=9, frozen_epochs=9, frozen_rate=1e-12, min_rate=0.0, weight_decay=0.0, ema_decay=0.0,
        plateau_patience=2, early_stop_patience=5, train_folds=(2,), kinds=("mass",),
    )  # fmt: skip
    lines: list[str] = []
    spec = fit(phantoms.rows(), replace(tiny_spec(), architecture=one_layer), config, tmp_path, report=lines.append)
    with (tmp_path / "log.csv").open(newline="") as stream:
        log = list(csv.DictReader(stream))
    assert [float(row["rate"]) for row in log] == [1e-12, 1e-12, 1e-12, 5e-13, 5e-13, 2.5e-13]
    assert (spec.training["best_epoch"], spec.training["epochs"]) == (1, 6)
    assert lines[0].startswith("2 training samples, 2 validation samples, on ")
    assert lines[1].startswith("epoch 1/9  loss ")
    assert "at most" in lines[1]


def test_roi_mode_trains_on_lesions(phantoms: PhantomSet, tmp_path: Path, one_layer: str) -> None:
    config = tiny_config(epochs=1, frozen_epochs=0, train_folds=(2, 3))
    lines: list[str] = []
    start_spec = replace(tiny_spec(InputMode.ROI), architecture=one_layer)
    spec = fit(phantoms.rows(), start_spec, config, tmp_path, report=lines.append)
    assert lines[0].startswith("8 training samples, 4 validation samples")
    assert spec.training["train_images_by_kind"] == {"mass": 4, "findings": 2, "normal": 0}


RESUMED = """
import sys
from pathlib import Path
import torch
from training_phantoms import PhantomSet, tiny_config, tiny_spec
from mammo_train.fit import fit
torch.set_num_threads(1)
root, run = Path(sys.argv[1]), Path(sys.argv[2])
rows = PhantomSet(root / "index.csv", root).rows()
fit(rows, tiny_spec(), tiny_config(epochs=3, train_folds=(2, 3)), run, report=lambda line: print(line, flush=True))
"""


def start(root: Path, run: Path) -> subprocess.Popen[str]:
    paths = [str(p) for p in (TESTS, TESTS.parent / "train", TESTS.parent / "runtime")]
    code = f"import sys; sys.path[:0] = {paths!r}\n{RESUMED}"
    return subprocess.Popen([sys.executable, "-c", code, str(root), str(run)], stdout=subprocess.PIPE, text=True)


def test_a_killed_run_resumes_to_the_same_weights(phantoms: PhantomSet, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with start(phantoms.root, killed) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 1/3"):
                process.kill()  # SIGKILL: nothing can be tidied up; the second epoch is under way
    assert process.returncode != 0
    assert not (killed / "spec.json").exists()
    half = checkpoint.load_state(killed)
    assert half is not None
    assert half[1]["progress"]["epoch"] < 3

    with start(phantoms.root, killed) as process:
        assert process.stdout is not None
        lines = process.stdout.read()
    assert process.returncode == 0
    assert "resuming after epoch " in lines
    fit(phantoms.rows(), tiny_spec(), tiny_config(epochs=3, train_folds=(2, 3)), whole, report=silent)

    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (killed / "log.csv").read_bytes() == (whole / "log.csv").read_bytes()
    # The best epoch may lie before the kill: the final state proves that the epochs after it agree too.
    resumed, uninterrupted = checkpoint.load_state(killed), checkpoint.load_state(whole)
    assert resumed is not None
    assert uninterrupted is not None
    for state in (resumed, uninterrupted):
        assert state[1]["progress"].pop("seconds") > 0
    assert resumed[1]["progress"] == uninterrupted[1]["progress"]
    assert set(resumed[0]) == set(uninterrupted[0])
    assert [name for name in resumed[0] if not torch.equal(resumed[0][name], uninterrupted[0][name])] == []
    assert any(name.startswith("optimizer/") for name in resumed[0])


def test_a_run_may_go_on_longer_but_not_with_other_settings(
    phantoms: PhantomSet, tmp_path: Path, one_layer: str
) -> None:
    config = tiny_config(epochs=1, train_folds=(2,))
    start_spec = replace(tiny_spec(), architecture=one_layer)
    fit(phantoms.rows(), start_spec, config, tmp_path, report=silent)
    with pytest.raises(UsageError, match="holds a run with other data or settings"):
        fit(phantoms.rows(), start_spec, replace(config, seed=1), tmp_path, report=silent)
    with pytest.raises(UsageError, match="other data or settings"):
        fit(phantoms.rows()[:-1], start_spec, config, tmp_path, report=silent)
    spec = fit(
        phantoms.rows(), replace(start_spec, licence="other words"), replace(config, epochs=2), tmp_path, report=silent
    )
    assert spec.training["epochs"] == 2


def test_fold_0_is_hashed_for_leaks_but_never_read(tmp_path: Path, one_layer: str) -> None:
    own = write_phantoms(tmp_path / "data")
    for path in (*own.root.glob("phantoms/images/f0_*"), *own.root.glob("phantoms/masks/f0_*")):
        path.write_bytes(b"no picture: " + path.name.encode())
    config, spec = tiny_config(epochs=1), replace(tiny_spec(), architecture=one_layer)
    assert fit(own.rows(), spec, config, tmp_path / "run", report=silent).training["epochs"] == 1
    # The same in a training or validation fold does stop it.
    for fold, name in ((2, "f0_0_mass"), (1, "f0_1_mass")):
        moved = [replace(row, fold=fold, group=name) if row.name == name else row for row in own.rows()]
        with pytest.raises(UsageError, match=name):
            fit(moved, spec, config, tmp_path / "other", report=silent)


def test_leaks_and_empty_folds_are_refused_before_anything_is_written(phantoms: PhantomSet, tmp_path: Path) -> None:
    rows, run = phantoms.rows(), tmp_path / "run"
    leaking = [replace(row, group="p0_0") if row.fold == 3 else row for row in rows]
    with pytest.raises(UsageError, match="leak"):
        fit(leaking, tiny_spec(), tiny_config(), run, report=silent)
    with pytest.raises(UsageError, match="no training sample"):
        fit(rows, tiny_spec(), tiny_config(train_folds=(7,)), run, report=silent)
    with pytest.raises(UsageError, match="fold 1 holds no image of kind 'mass'"):
        fit([r for r in rows if r.fold != 1 or r.kind != "mass"], tiny_spec(), tiny_config(), run, report=silent)
    assert not run.exists()


def test_another_run_can_be_the_start(phantoms: PhantomSet, finished_run: Path, tmp_path: Path) -> None:
    config = tiny_config(epochs=1, frozen_epochs=1, frozen_rate=1e-12, weight_decay=0.0)
    spec = fit(phantoms.rows(), tiny_spec(), config, tmp_path, report=silent, initial=finished_run)
    parent = dict(checkpoint.load_model(finished_run)[0].named_parameters())
    child = dict(checkpoint.load_model(tmp_path)[0].named_parameters())
    assert all(torch.allclose(child[name], parent[name], atol=1e-8) for name in parent)
    assert spec.training["initial_weights"] == {"name": "tiny", "sha256": checkpoint.weights_sha256(finished_run)}
    with pytest.raises(UsageError, match="other data or settings"):
        fit(phantoms.rows(), tiny_spec(), config, tmp_path, report=silent)


def test_starts_that_cannot_work_are_refused(
    phantoms: PhantomSet, finished_run: Path, tmp_path: Path, one_layer: str
) -> None:
    rows, config, run = phantoms.rows(), tiny_config(), tmp_path / "run"
    with pytest.raises(UsageError, match=r"is a mobilenetv2_resunet .* cannot start a one_layer"):
        fit(rows, replace(tiny_spec(), architecture=one_layer), config, run, report=silent, initial=finished_run)
    with pytest.raises(UsageError, match="not from both"):
        fit(rows, tiny_spec(), config, run, finished_run / "model.safetensors", silent, finished_run)
    with pytest.raises(UsageError, match="cannot start from itself"):
        fit(rows, tiny_spec(), config, finished_run, report=silent, initial=finished_run)
    with pytest.raises(UsageError, match="no weights file"):
        fit(rows, tiny_spec(), config, run, tmp_path / "none.pt", silent)
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(UsageError, match=r"junk\.pt holds no weights that fit"):
        fit(rows, tiny_spec(), config, run, tmp_path / "junk.pt", silent)
    state = models.build("mobilenetv2_resunet").get_submodule("encoder").state_dict()
    torch.save({**state, "features.0.0.weight": torch.zeros(1)}, tmp_path / "shape.pt")
    with pytest.raises(UsageError, match=r"shape\.pt does not fit the encoder"):
        fit(rows, tiny_spec(), config, run, tmp_path / "shape.pt", silent)


def test_a_network_without_encoder_is_trained_too(phantoms: PhantomSet, tmp_path: Path, one_layer: str) -> None:
    config = tiny_config(epochs=3, batch_size=1, ema_decay=0.0, rate=0.1, frozen_rate=0.1)
    fit(phantoms.rows(), replace(tiny_spec(), architecture=one_layer), config, tmp_path, report=silent)
    with (tmp_path / "log.csv").open(newline="") as stream:
        losses = [float(row["train_loss"]) for row in csv.DictReader(stream)]
    assert losses[2] < losses[0]


def test_divergence_is_an_error_not_a_model(phantoms: PhantomSet, tmp_path: Path, one_layer: str) -> None:
    config = tiny_config(epochs=3, rate=float("inf"), frozen_rate=float("inf"))
    with pytest.raises(MammoError, match="training diverged in epoch 1"):
        fit(phantoms.rows(), replace(tiny_spec(), architecture=one_layer), config, tmp_path, report=silent)
    assert not (tmp_path / "model.safetensors").exists()


def test_loader_processes_do_not_change_the_result(phantoms: PhantomSet, tmp_path: Path, one_layer: str) -> None:
    spec = replace(tiny_spec(), architecture=one_layer)
    for workers in (0, 1):
        fit(phantoms.rows(), spec, tiny_config(epochs=2, workers=workers), tmp_path / str(workers), report=silent)
    first, second = ((tmp_path / str(w) / "model.safetensors").read_bytes() for w in (0, 1))
    assert first == second


def test_a_changed_picture_is_another_run(tmp_path: Path) -> None:
    own = write_phantoms(tmp_path / "data")
    fit(own.rows(), tiny_spec(), tiny_config(epochs=1), tmp_path / "run", report=lambda _line: None)
    picture = next(row.image for row in own.rows() if row.fold == 2)
    picture.write_bytes(next(row.image for row in own.rows() if row.fold == 3).read_bytes() + b" ")
    with pytest.raises(UsageError, match="other data or settings"):
        fit(own.rows(), tiny_spec(), tiny_config(epochs=2), tmp_path / "run", report=lambda _line: None)
