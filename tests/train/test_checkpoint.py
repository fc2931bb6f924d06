"""A run's files: what is written is what is read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mammo_runtime.errors import ModelRefused, UsageError
from mammo_runtime.session import Session
from mammo_runtime.spec import METADATA_KEY, InputSpec, ModelSpec
from mammo_train import checkpoint, models
from mammo_train.torch_session import TorchSession
from training_phantoms import tiny_spec


def test_weights_and_spec_come_back(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = models.build("mobilenetv2_resunet").eval()
    spec = tiny_spec(threshold=0.35, min_area_cells=9.0, training={"epochs": 3})
    checkpoint.save_model(tmp_path, network.state_dict())
    checkpoint.save_spec(tmp_path, spec)
    loaded, loaded_spec = checkpoint.load_model(tmp_path)
    assert loaded_spec.to_dict() == spec.to_dict()
    assert not loaded.training
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(picture), network(picture))
    assert len(checkpoint.weights_sha256(tmp_path)) == 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors", "spec.json"]


@pytest.mark.parametrize("name", [checkpoint.WEIGHTS, checkpoint.SPEC])
def test_an_unfinished_run_is_refused(finished_run: Path, tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / name).unlink()
    with pytest.raises(UsageError, match=f"holds no {name}"):
        checkpoint.load_model(run)


def test_the_sha_changes_with_the_weights(tmp_path: Path) -> None:
    checkpoint.save_model(tmp_path, {"a": torch.zeros(2)})
    before = checkpoint.weights_sha256(tmp_path)
    checkpoint.save_model(tmp_path, {"a": torch.ones(2)})
    assert checkpoint.weights_sha256(tmp_path) != before


def test_state_comes_back_with_its_progress(tmp_path: Path) -> None:
    assert checkpoint.load_state(tmp_path) is None
    tensors = {"a/b": torch.arange(6.0).reshape(2, 3).t(), "step": torch.tensor(7)}
    progress = {"identity": "x", "progress": {"best_loss": float("inf"), "epoch": 2}}
    checkpoint.save_state(tmp_path, tensors, progress)
    stored = checkpoint.load_state(tmp_path)
    assert stored is not None
    assert stored[1] == progress
    assert set(stored[0]) == set(tensors)
    assert all(torch.equal(stored[0][name], value) for name, value in tensors.items())


def test_torch_session_keeps_the_protocol(finished_run: Path) -> None:
    batch = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)
    session = TorchSession.from_run(finished_run)
    typed: Session = session
    with session:
        probability, logits = typed.run(batch), session.logits(batch)
        assert (probability.shape, probability.dtype) == ((3, 1, 64, 64), np.float32)
        assert np.allclose(probability, 1 / (1 + np.exp(-logits)), atol=1e-6)
        assert ModelSpec.from_metadata(typed.metadata) == session.spec
        assert METADATA_KEY in typed.metadata
        assert typed.backend.startswith("torch ")
        one_by_one = np.concatenate([session.run(batch[k : k + 1]) for k in range(3)])
        assert np.abs(one_by_one - probability).max() < 1e-5
    with pytest.raises(ModelRefused, match="closed"):
        session.run(batch)


def test_a_damaged_run_is_named(tmp_path: Path) -> None:
    network = models.build("busi_unet", width=models.TINY)
    spec = ModelSpec("tiny", "busi_unet", {"width": models.TINY}, input=InputSpec(channels=1, mean=(0.5,), std=(0.5,)))
    checkpoint.save_spec(tmp_path, spec)
    checkpoint.save_model(tmp_path, network.state_dict())
    checkpoint.load_model(tmp_path)
    weights = tmp_path / checkpoint.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"model.safetensors is damaged"):
        checkpoint.load_model(tmp_path)
    (tmp_path / checkpoint.SPEC).write_text("{")
    with pytest.raises(UsageError, match=r"spec.json is damaged"):
        checkpoint.load_spec(tmp_path)


def test_weights_of_another_run_and_a_changed_grid_are_refused(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    spec = checkpoint.load_spec(tmp_path / "run")
    checkpoint.save_spec(tmp_path / "run", replace(spec, input=replace(spec.input, height=72)))
    with pytest.raises(UsageError, match="no multiple of 32"):
        checkpoint.load_model(tmp_path / "run")
    checkpoint.save_spec(tmp_path / "run", spec)
    checkpoint.save_model(tmp_path / "run", models.build_for(spec).state_dict())
    with pytest.raises(UsageError, match="do not belong together"):
        checkpoint.load_model(tmp_path / "run")
