"""Critics: they learn, the network learns from them, and they never leave the run's own state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from mammo_export import to_onnx
from mammo_runtime.spec import ModelSpec
from mammo_train import adversarial, checkpoint
from mammo_train.adversarial import ADVERSARIAL, Adversary
from mammo_train.config import TrainConfig
from mammo_train.fit import fit
from mammo_train.losses import LOSSES
from mammo_train.models.critic import MultiscaleCritics, SegANCritic
from training_phantoms import PhantomSet, tiny_config, tiny_spec

CPU = torch.device("cpu")
SMALL = (4, 8, 8, 8)


class SmallMultiscale(MultiscaleCritics):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, SMALL)


class SmallSegAN(SegANCritic):
    def __init__(self, channels: int) -> None:
        super().__init__(channels, [(4, 7), (8, 5), (8, 4), (8, 4), (8, 4), (8, 3)])


@pytest.fixture(autouse=True)
def _small_critics(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"adv_multiscale": SmallMultiscale, "segan_l1": SmallSegAN}
    monkeypatch.setattr(adversarial, "ADVERSARIAL", small)


def adversary(name: str, **changes: object) -> tuple[Adversary, TrainConfig]:
    torch.manual_seed(0)
    config = tiny_config(loss=name, **changes)
    return Adversary(config, 3, CPU), config


def judged() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return images with bright discs as truth, and logits that miss them."""
    torch.manual_seed(1)
    masks = torch.zeros(2, 1, 64, 64)
    masks[:, :, 20:40, 24:44] = 1
    images = (0.3 + 0.5 * masks + 0.05 * torch.randn(2, 1, 64, 64)).expand(-1, 3, -1, -1)
    return images, torch.full((2, 1, 64, 64), -1.0, requires_grad=True), masks


def test_every_adversarial_loss_has_a_part_without_critics() -> None:
    assert set(ADVERSARIAL) <= set(LOSSES)


@pytest.mark.parametrize(
    ("name", "style"), [("adv_multiscale", "hinge"), ("adv_multiscale", "wasserstein"), ("segan_l1", "hinge")]
)
def test_critics_learn_to_tell_and_leave_the_network_alone(name: str, style: str) -> None:
    rival, _ = adversary(name, critic_loss=style, critic_rate=1e-3)
    if isinstance(rival.critics, SegANCritic):
        rival.critics.clamp()  # as after every step
    before = float(rival._critic_loss(judged()).detach())
    for _ in range(5):
        part = judged()
        rival.learn([part], [1.0])
        assert part[1].grad is None
    assert float(rival._critic_loss(judged()).detach()) < before


def test_hinge_and_wasserstein_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def opinions(images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        level = 0.25 if bool(((masks == 0) | (masks == 1)).all()) else -0.5
        return torch.tensor([level]), torch.tensor([2 * level])

    for style, expected in (("hinge", ((0.75 + 0.5) + (0.5 + 0.0)) / 2), ("wasserstein", (-0.75 - 1.5) / 2)):
        rival, config = adversary("adv_multiscale", critic_loss=style)
        monkeypatch.setattr(rival.critics, "forward", opinions)
        assert float(rival._critic_loss(judged())) == pytest.approx(expected)
        assert float(rival.penalty(*judged())) == pytest.approx(config.adversarial_weight * (0.5 + 1.0) / 2)


@pytest.mark.parametrize("name", sorted(ADVERSARIAL))
def test_the_penalty_teaches_the_network(name: str) -> None:
    rival, _ = adversary(name)
    images, logits, masks = judged()
    rival.penalty(images, logits, masks).backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) > 0


def test_segan_clamps_its_critic() -> None:
    rival, _ = adversary("segan_l1", critic_rate=0.5)
    rival.learn([judged()], [1.0])
    assert max(float(p.detach().abs().max()) for p in rival.critics.parameters()) == pytest.approx(0.05)


def test_parts_of_a_batch_teach_like_the_whole() -> None:
    images, logits, masks = judged()
    parts = [(images[k : k + 1], logits[k : k + 1], masks[k : k + 1]) for k in range(2)]
    learned = []
    for given, weights in (([(images, logits, masks)], [1.0]), (parts, [0.5, 0.5])):
        rival, _ = adversary("adv_multiscale")
        rival.critics.eval()  # spectral norm's estimate stays: it moves with every forward pass in training
        rival.learn(given, weights)
        learned.append([p.grad.clone() for p in rival.critics.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*learned, strict=True))


def small_unet(architecture: str = "msanet") -> ModelSpec:
    return replace(tiny_spec(), architecture=architecture, network={"width": "tiny"})


@pytest.mark.parametrize("name", sorted(ADVERSARIAL))
def test_a_stopped_run_goes_on_to_the_same_weights(phantoms: PhantomSet, tmp_path: Path, name: str) -> None:
    config = tiny_config(loss=name, frozen_epochs=0, train_folds=(2,), ema_decay=0.0)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for run, epochs in ((whole, 2), (stopped, 1), (stopped, 2)):
        fit(phantoms.rows(), small_unet(), replace(config, epochs=epochs), run, report=lambda _line: None)
    (first, _), (second, _) = checkpoint.load_state(whole), checkpoint.load_state(stopped)  # type: ignore[misc]
    assert set(first) == set(second)
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert any(key.startswith("adversary/weights/") for key in first)
    assert any(key.startswith("adversary/optimizer/") for key in first)


def test_critics_are_in_no_model_file_and_no_graph(phantoms: PhantomSet, tmp_path: Path) -> None:
    config = tiny_config(loss="adv_multiscale", epochs=1, frozen_epochs=0, train_folds=(2,))
    fit(phantoms.rows(), small_unet(), config, tmp_path, report=lambda _line: None)
    network, spec = checkpoint.load_model(tmp_path)
    stored = load_file(tmp_path / checkpoint.WEIGHTS)
    assert set(stored) == set(network.state_dict())
    state = checkpoint.load_state(tmp_path)
    assert state is not None
    critics = [v for k, v in state[0].items() if k.startswith("adversary/weights/") and v.ndim > 1]
    graph = to_onnx.logits_graph_from_network(network, spec).graph
    initial = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    assert sum(a.size for a in initial) < 1.1 * sum(v.numel() for v in stored.values())
    for critic in critics:
        assert not any(a.shape == tuple(critic.shape) and np.array_equal(a, critic.numpy()) for a in initial)


def test_of_a_deeply_supervised_network_the_critics_judge_the_final_head(phantoms: PhantomSet, tmp_path: Path) -> None:
    spec = replace(small_unet("unetpp"), network={"width": "tiny", "deep_supervision": True})
    config = tiny_config(loss="adv_multiscale", epochs=1, frozen_epochs=0, train_folds=(2,))
    assert fit(phantoms.rows(), spec, config, tmp_path, report=lambda _line: None).training["epochs"] == 1
