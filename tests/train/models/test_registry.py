"""The networks: their size, that they learn, and that a stored one is the same network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mammo_runtime.errors import UsageError
from mammo_train import models
from mammo_train.losses import training_loss
from mammo_train.models.mobilenetv2 import BRIDGE_CHANNELS, SKIP_CHANNELS, MobileNetV2Encoder
from training_phantoms import breast


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two phantoms float32 [2, 3, 64, 64] in -1..1 with masks [2, 1, 64, 64]."""
    drawn = [breast(seed, 1) for seed in (1, 2)]
    images = np.stack([np.repeat(p[None, 16:80, :64] / 127.5 - 1, 3, axis=0) for p, _ in drawn])
    masks = np.stack([m[None, 16:80, :64] for _, m in drawn])
    assert masks.any(axis=(1, 2, 3)).all()
    return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(masks.astype(np.float32))


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_parameter_count_is_the_documented_one(name: str) -> None:
    assert parameters(models.build(name)) == models.ARCHITECTURES[name].parameters


def test_mobilenetv2_resunet_has_the_studys_counts() -> None:
    assert models.ARCHITECTURES["mobilenetv2_resunet"].parameters == 5_697_969
    assert parameters(MobileNetV2Encoder()) == 1_811_712


def test_encoder_gives_skips_and_bridge_at_the_studys_scales() -> None:
    with torch.no_grad():
        taps = MobileNetV2Encoder().eval()(torch.zeros(1, 3, 64, 96))
    assert [tuple(t.shape[1:]) for t in taps] == [
        (SKIP_CHANNELS[0], 32, 48),
        (SKIP_CHANNELS[1], 16, 24),
        (SKIP_CHANNELS[2], 8, 12),
        (SKIP_CHANNELS[3], 4, 6),
        (BRIDGE_CHANNELS, 2, 3),
    ]


def test_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="mobilenetv2_resunet"):
        models.build("unet9000")


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_gradients_reach_every_parameter(name: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(0)
    network = models.build(name)
    logits = network(batch[0])
    assert logits.shape == (2, 1, 64, 64)
    training_loss(logits, batch[1], 0.7, 0.3, 0.3).backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert without == []


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_two_steps_lower_the_loss(name: str, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(0)
    network = models.build(name)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = training_loss(network(batch[0]), batch[1], 0.7, 0.3, 0.3)
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_stored_network_is_the_same_and_a_batch_does_not_mix_pictures(
    name: str, batch: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(3)
    network = models.build(name).eval()
    save_file(network.state_dict(), tmp_path / "n.safetensors")
    torch.manual_seed(4)
    loaded = models.build(name).eval()
    with torch.no_grad():
        together = network(batch[0])
        assert not torch.allclose(loaded(batch[0]), together)
        loaded.load_state_dict(load_file(tmp_path / "n.safetensors"))
        assert torch.equal(loaded(batch[0]), together)
        alone = torch.cat([network(batch[0][k : k + 1]) for k in range(2)])
    assert float((alone - together).abs().max()) <= 1e-5 * float(together.abs().max())


def test_classes_set_the_number_of_outputs() -> None:
    with torch.no_grad():
        assert models.build("mobilenetv2_resunet", 4).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 32, 32)
