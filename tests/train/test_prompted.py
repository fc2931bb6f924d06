"""Training of prompted models: what learns, from what, and that it does learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from mammo_runtime.errors import UsageError
from mammo_runtime.preprocess import preprocess
from mammo_runtime.spec import Fit, ModelSpec, Scaling, Task
from mammo_train import models
from mammo_train.checkpoint import load_model
from mammo_train.config import TrainConfig
from mammo_train.dataset import read_labelled
from mammo_train.fit import fit
from mammo_train.models.prompted import PromptedNetwork
from mammo_train.prompt_samples import FOLDER, BoxSamples, EmbeddedSamples
from mammo_train.prompted import (
    freeze,
    prompted_cost,
    prompted_details,
    prompted_input,
    prompted_outputs,
    prompted_sets,
    true_iou,
)
from training_phantoms import PhantomSet, tiny_config


def made(name: str, freeze_encoder: bool) -> tuple[PromptedNetwork, ModelSpec, TrainConfig]:
    torch.manual_seed(0)
    network = models.build(name, width="tiny")
    assert isinstance(network, PromptedNetwork)
    spec = ModelSpec(
        "tiny", name, {"width": "tiny"}, Task.PROMPTED, input=prompted_input(name, "tiny"), prompt=network.prompt_spec()
    )
    return network, spec, tiny_config(loss="dice_ce", freeze_encoder=freeze_encoder)


@pytest.mark.parametrize("name", ["sam_box", "medsam_box", "lite_medsam"])
@pytest.mark.parametrize("width", ["base", "tiny"])
def test_the_input_fits_the_networks_grid(name: str, width: str) -> None:
    with torch.device("meta"):
        network = models.build(name, width=width)
    spec = prompted_input(name, width)
    assert isinstance(network, PromptedNetwork)
    assert (spec.height, spec.width) == (network.size.side, network.size.side)


def test_inputs_are_as_published(phantoms: PhantomSet) -> None:
    image = read_labelled(phantoms.rows()[0]).image
    sam, _, _ = preprocess(image, prompted_input("sam_box", "tiny"))
    assert (sam[..., 48:] == 0).all(), "zeros beside the picture, after normalisation"
    assert abs(float(sam[0, 0].min()) + 123.675 / 58.395) < 1e-5, "black is -2.118 in the first channel"
    for name, wanted in (("medsam_box", Fit.STRETCH), ("lite_medsam", Fit.CORNER)):
        spec = prompted_input(name, "tiny")
        tensor, placement, _ = preprocess(image, spec)
        assert (spec.fit, spec.scaling) == (wanted, Scaling.MIN_MAX)
        assert (tensor.min(), tensor.max()) == (0, 1)
        assert placement.inner.columns == (64 if wanted is Fit.STRETCH else 48)


@pytest.mark.parametrize("freeze_encoder", [True, False])
def test_only_what_should_learn_learns(freeze_encoder: bool) -> None:
    network, _, config = made("sam_box", freeze_encoder)
    freeze(network, config)
    learning = {name.split(".")[1] for name, p in network.named_parameters() if p.requires_grad}
    assert learning == ({"mask_decoder"} if freeze_encoder else {"mask_decoder", "vision"})
    assert network.encoder.training is not freeze_encoder


def test_phase_one_freezes_the_encoder_as_of_any_network() -> None:
    network, _, config = made("lite_medsam", False)
    freeze(network, config, frozen=True)
    assert not any(p.requires_grad for p in network.encoder.parameters())
    freeze(network, config)
    assert all(p.requires_grad for p in network.encoder.parameters())


def test_a_frozen_encoder_is_replaced_by_its_embeddings(phantoms: PhantomSet, tmp_path: Path) -> None:
    network, spec, config = made("sam_box", True)
    rows = phantoms.rows()
    sets = prompted_sets(rows[:8], rows[8:12], spec, config, network, tmp_path, lambda _line: None)
    assert all(isinstance(s, EmbeddedSamples) for s in sets)
    assert sets[0][0][0].shape == (16, 4, 4)
    assert len(list((tmp_path / FOLDER).iterdir())) == 9
    network, spec, config = made("lite_medsam", False)
    sets = prompted_sets(rows[:8], rows[8:12], spec, config, network, tmp_path, lambda _line: None)
    assert all(isinstance(s, BoxSamples) for s in sets)
    assert sets[0][0][0].shape == (3, 64, 64)


def test_a_grid_that_is_not_the_networks_is_refused(phantoms: PhantomSet, tmp_path: Path) -> None:
    network, spec, config = made("sam_box", True)
    other = replace(spec, input=replace(spec.input, height=128, width=128))
    with pytest.raises(UsageError, match="sees 64x64 pixels, not 128x128"):
        prompted_sets(phantoms.rows(), phantoms.rows(), other, config, network, tmp_path)


@pytest.mark.parametrize(("name", "freeze_encoder"), [("sam_box", True), ("lite_medsam", False)])
def test_training_lowers_the_loss(phantoms: PhantomSet, tmp_path: Path, name: str, freeze_encoder: bool) -> None:
    network, spec, config = made(name, freeze_encoder)
    config = replace(config, repeats=2)
    train, held_out = prompted_sets(phantoms.rows()[:8], phantoms.rows()[8:12], spec, config, network, tmp_path)
    encoder = {k: v.clone() for k, v in network.encoder.state_dict().items()}
    freeze(network, config)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _epoch in range(6):
        for batch in DataLoader(train, 4):
            optimizer.zero_grad()
            loss = prompted_cost(prompted_outputs(network, batch, config), batch, config)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    same = all(torch.equal(encoder[k], v) for k, v in network.encoder.state_dict().items())
    assert same is freeze_encoder
    network.eval()
    batch = next(iter(DataLoader(held_out, 4)))
    dices = prompted_details(prompted_outputs(network, batch, config), batch, config)
    assert len(dices) == len(batch[0])
    assert all(0 <= d <= 1 for d in dices)


def test_true_iou_counts_cells() -> None:
    logits, mask = torch.full((3, 1, 4, 4), -1.0), torch.zeros(3, 1, 4, 4)
    logits[0, 0, :2], mask[0, 0, 1:3] = 1, 1
    mask[1, 0, 0, 0] = 1
    assert true_iou(logits, mask).tolist() == pytest.approx([1 / 3, 0, 1])


@pytest.mark.parametrize(("name", "freeze_encoder"), [("sam_box", True), ("lite_medsam", False)])
def test_fit_trains_a_prompted_model(phantoms: PhantomSet, tmp_path: Path, name: str, freeze_encoder: bool) -> None:
    _, spec, config = made(name, freeze_encoder)
    finished = fit(phantoms.rows(), spec, config, tmp_path / "run", report=lambda _line: None)
    network, stored = load_model(tmp_path / "run")
    assert stored == finished
    assert finished.prompt == spec.prompt
    assert isinstance(network, PromptedNetwork)
    assert finished.training.get("embeddings", {}).get("dtype") == ("float32" if freeze_encoder else None)
    assert (tmp_path / "run" / FOLDER).is_dir() is freeze_encoder


def test_fit_starts_from_published_weights(phantoms: PhantomSet, tmp_path: Path) -> None:
    network, spec, config = made("sam_box", True)
    save_file(network.state_dict(), tmp_path / "published.safetensors")
    fit(phantoms.rows(), spec, config, tmp_path / "run", tmp_path / "published.safetensors", lambda _line: None)
    trained, _ = load_model(tmp_path / "run")
    learnt = {k for k, v in trained.state_dict().items() if not torch.equal(v, network.state_dict()[k])}
    assert learnt
    assert all(k.startswith("decoder.mask_decoder.") for k in learnt), "encoder and prompt encoder stay as published"
