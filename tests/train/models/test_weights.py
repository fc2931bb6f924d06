"""Pretrained encoder weights: loading them, and the batch-norm step that folded ones need."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import mobilenet_v2, resnet34, vgg

from mammo_runtime.errors import UsageError
from mammo_train.models.mobilenetv2 import MobileNetV2Encoder
from mammo_train.models.weights import has_folded_norms, load_encoder, reestimate_norms
from network_cases import small
from training_phantoms import breast


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Eight phantoms float32 [8, 3, 64, 64] in -1..1."""
    grey = np.stack([breast(seed, 1)[0][16:80, :64] for seed in range(8)]).astype(np.float32) / 127.5 - 1
    return torch.from_numpy(np.repeat(grey[:, None], 3, axis=1))


def folded_encoder() -> MobileNetV2Encoder:
    """Return an encoder as folding leaves it: convolutions of uneven scale, norms that only add a bias."""
    torch.manual_seed(0)
    encoder = MobileNetV2Encoder()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0.5, 0.3)
        elif isinstance(module, nn.Conv2d):
            scale = torch.empty(module.out_channels, 1, 1, 1).uniform_(0.2, 2)
            module.weight.data.mul_(scale)
    return encoder


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0))


def check_reestimation(encoder: nn.Module, images: torch.Tensor) -> float:
    """Re-estimate, assert what must hold, and return the train-mode cosine of the untouched encoder."""
    encoder.eval()
    untouched = copy.deepcopy(encoder).train()
    with torch.no_grad():
        before = encoder(images)
        without_the_step = cosine(untouched(images)[-1], before[-1])
    reestimate_norms(encoder, [images])
    with torch.no_grad():
        after = encoder(images)
        trained = encoder.train()(images)
    for old, new in zip(before, after):
        assert float((old - new).norm() / old.norm()) < 1e-4
    assert cosine(trained[-1], before[-1]) > 0.99
    assert not has_folded_norms(encoder)
    return without_the_step


def test_reestimated_norms_keep_the_function_and_train_mode_agrees(images: torch.Tensor) -> None:
    encoder = folded_encoder()
    assert has_folded_norms(encoder)
    assert check_reestimation(encoder, images) < 0.9


def test_batches_are_pooled_before_the_statistics_are_taken(images: torch.Tensor) -> None:
    whole, parts = folded_encoder(), folded_encoder()
    reestimate_norms(whole, [images])
    reestimate_norms(parts, [images[:3], images[3:]])
    for (name, first), second in zip(whole.state_dict().items(), parts.state_dict().values()):
        assert torch.allclose(first.float(), second.float(), rtol=1e-3, atol=1e-5), name


def test_the_real_folded_weights(images: torch.Tensor, shared_data: Path) -> None:
    encoder = MobileNetV2Encoder()
    load_encoder(encoder, shared_data / "weights/mobilenet_v2_imagenet_from_quant_fp16.pt")
    assert has_folded_norms(encoder)
    assert all(p.dtype is torch.float32 for p in encoder.parameters())
    assert check_reestimation(encoder, images) < 0.5


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_half_precision_files_load_as_float32(suffix: str, tmp_path: Path) -> None:
    stored = folded_encoder()
    state = {k: v.half() if v.is_floating_point() else v for k, v in stored.state_dict().items()}
    state["classifier.1.weight"] = torch.zeros(2, 2)
    path = tmp_path / f"encoder{suffix}"
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    encoder = MobileNetV2Encoder()
    load_encoder(encoder, path)
    weight = encoder.get_parameter("features.0.0.weight")
    assert weight.dtype is torch.float32
    assert torch.equal(weight, stored.get_parameter("features.0.0.weight").half().float())


def test_a_file_without_the_encoders_tensors_is_refused(tmp_path: Path) -> None:
    save_file({"features.0.0.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "part.safetensors")
    with pytest.raises(UsageError, match=r"part\.safetensors lacks 254"):
        load_encoder(MobileNetV2Encoder(), tmp_path / "part.safetensors")


@pytest.mark.parametrize("name", ["mobilenetv2_unet", "mobilenetv2_resunet", "vgg16_busi", "bcss_unet_resnet34"])
def test_encoders_take_whole_networks_of_torchvision(name: str, tmp_path: Path) -> None:
    """From a file without step counters, as old ones are."""
    whole = {"bcss_unet_resnet34": resnet34, "vgg16_busi": tiny_vgg}.get(name, mobilenet_v2)()
    stored = {k: v.contiguous() for k, v in whole.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(stored, tmp_path / "whole.safetensors")
    encoder = small(name).get_submodule("encoder")
    load_encoder(encoder, tmp_path / "whole.safetensors")
    loaded = encoder.state_dict()
    assert len(loaded) > 20
    assert all(torch.equal(loaded[k], stored[k]) for k in loaded if k in stored)
    assert not [k for k in loaded if k not in stored and not k.endswith("num_batches_tracked")]


def tiny_vgg() -> nn.Module:
    """torchvision's VGG-16 in the registry's tiny width."""
    layers = [8, 8, "M", 16, 16, "M", 32, 32, 32, "M", 64, 64, 64, "M", 64, 64, 64, "M"]
    whole = nn.Module()
    whole.features = vgg.make_layers(layers)
    return whole


def test_trained_norms_are_not_taken_for_folded() -> None:
    encoder = folded_encoder()
    next(m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)).running_var.fill_(2.0)  # type: ignore[operator]
    assert not has_folded_norms(encoder)
