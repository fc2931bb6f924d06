"""Samples of prompted models: one for each lesion, placed as the image is; embeddings made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mammo_runtime.errors import UsageError
from mammo_runtime.preprocess import preprocess
from mammo_runtime.spec import Fit, InputSpec, ModelSpec, PromptSpec, Scaling, Task
from mammo_train import models
from mammo_train.config import AugmentConfig
from mammo_train.dataset import read_labelled
from mammo_train.models.prompted import PromptedNetwork
from mammo_train.prompt_samples import WIDEST, BoxSamples, EmbeddedSamples
from training_phantoms import PhantomSet

PROMPT = PromptSpec((16, 16, 16), 64)
CORNER = InputSpec(height=64, width=64, fit=Fit.CORNER, scaling=Scaling.MIN_MAX, mean=(0.3,) * 3, std=(0.2,) * 3)


def samples(
    phantoms: PhantomSet,
    spec: InputSpec = CORNER,
    prompt: PromptSpec = PROMPT,
    augmentation: AugmentConfig | None = None,
    repeats: int = 1,
    widen: bool = False,
) -> BoxSamples:
    rows = [row for row in phantoms.rows() if row.fold == 1]
    return BoxSamples(rows, model(spec, prompt), augmentation, 0, repeats, widen)


def model(spec: InputSpec = CORNER, prompt: PromptSpec = PROMPT) -> ModelSpec:
    return ModelSpec("tiny", "lite_medsam", {"width": "tiny"}, Task.PROMPTED, input=spec, prompt=prompt)


def network() -> PromptedNetwork:
    torch.manual_seed(0)
    built = models.build("lite_medsam", width="tiny")
    assert isinstance(built, PromptedNetwork)
    return built


def test_every_lesion_is_a_sample_and_images_without_one_are_left_out(phantoms: PhantomSet) -> None:
    made = samples(phantoms)
    assert [made.row(k).kind for k in range(len(made))] == ["mass", "mass", "mass", "findings"]
    assert made.row(1) == made.row(2), "two lesions of one image"
    masks = [made[k][1] for k in (1, 2)]
    assert not bool((masks[0] * masks[1]).any()), "each mask holds its own lesion alone"


def test_no_lesion_at_all_is_refused(phantoms: PhantomSet) -> None:
    rows = [row for row in phantoms.rows() if row.kind == "normal"]
    with pytest.raises(UsageError, match="no lesion"):
        BoxSamples(rows, model(), None, 0)


@pytest.mark.parametrize("fit", list(Fit))
def test_image_mask_and_box_lie_alike(phantoms: PhantomSet, fit: Fit) -> None:
    spec = InputSpec(height=64, width=64, fit=fit)
    made = samples(phantoms, spec)
    image, mask, box = made[0]
    labelled = read_labelled(made.row(0))
    tensor, placement, _ = preprocess(labelled.image, spec)
    assert np.array_equal(image.numpy(), tensor[0])
    assert np.array_equal(mask[0].numpy() > 0.5, placement.to_grid(labelled.mask))
    rows, columns = np.nonzero(mask[0].numpy())
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert np.abs(box.numpy() - np.array(edges)).max() <= 1.0


def test_the_mask_is_the_decoders_size(phantoms: PhantomSet) -> None:
    coarse = samples(phantoms, prompt=PromptSpec((16, 4, 4), 16))
    fine = samples(phantoms)
    assert coarse[0][1].shape == (1, 16, 16)
    share = float(coarse[0][1].mean() / fine[0][1].mean())
    assert 0.7 < share < 1.3


def test_boxes_are_widened_only_where_asked_and_never_off_the_picture(phantoms: PhantomSet) -> None:
    tight, wide = samples(phantoms), samples(phantoms, widen=True, repeats=40)
    limit = WIDEST * 64
    moves = np.array([(wide[k][2] - tight[k % len(tight)][2]).numpy() for k in range(len(wide))])
    outwards = moves * (-1, -1, 1, 1)
    assert outwards.min() >= 0
    assert limit / 2 < outwards.max() <= limit + 1e-5
    assert len(np.unique(moves[:, 0].round(4))) > 20
    right = 64 * 96 / 128  # where the picture of 96 x 128 pixels ends on the grid
    assert all(box[0] >= 0 and box[2] <= right and box[3] <= 64 for box in (wide[k][2] for k in range(len(wide))))


def test_a_sample_depends_on_seed_epoch_and_number_alone(phantoms: PhantomSet) -> None:
    first, second = (samples(phantoms, widen=True, augmentation=AugmentConfig()) for _ in range(2))
    first[1]
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    second.epoch = 1
    assert not torch.equal(first[0][2], second[0][2])


def test_augmentation_moves_image_mask_and_box_together(phantoms: PhantomSet) -> None:
    made = samples(phantoms, augmentation=AugmentConfig(brightness_probability=0, blur_probability=0), repeats=8)
    for k in range(len(made)):
        image, mask, box = made[k]
        rows, columns = np.nonzero(mask[0].numpy())
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == tuple(box.tolist())
        lesion, rest = image[0][mask[0] > 0.5], image[0][mask[0] < 0.5]
        assert float(lesion.mean()) > float(rest.mean())


def test_padding_is_zero_after_normalisation_even_where_it_was_moved(phantoms: PhantomSet) -> None:
    flipped = AugmentConfig(
        affine_probability=0, brightness_probability=0, blur_probability=0, flip_probability=1, clahe_probability=0,
        rotate90_probability=0,
    )  # fmt: skip
    image, mask, box = samples(phantoms, augmentation=flipped, widen=True)[0]
    assert bool((image[:, :, :16] == 0).all()), "zeros, as in the runtime"
    assert bool((image[:, :, 16:] != 0).any(dim=1).all())
    columns = np.flatnonzero(mask[0].numpy().any(axis=0))
    assert 16 <= box[0] <= columns[0], "the box stays on the picture"


@pytest.mark.parametrize(("half", "tolerance"), [(False, 1e-6), (True, 1e-2)])
def test_embeddings_are_made_once_and_are_the_encoders(
    phantoms: PhantomSet, tmp_path: Path, half: bool, tolerance: float
) -> None:
    net, lines = network(), list[str]()
    made = EmbeddedSamples(samples(phantoms, widen=True), net, tmp_path, half, lines.append)
    plain = samples(phantoms, widen=True)
    image, mask, box = plain[1]
    embedding, embedded_mask, embedded_box = made[1]
    assert torch.equal(mask, embedded_mask)
    assert torch.equal(box, embedded_box)
    with torch.no_grad():
        assert float((net.eval().encode(image[None])[0] - embedding).abs().max()) < tolerance
    assert len(made) == len(plain)
    assert made.row(3) == plain.row(3)
    EmbeddedSamples(samples(phantoms), net, tmp_path, half, lines.append)
    assert [line.split(" images")[0] for line in lines] == ["3 of 3", "0 of 3"]
    assert made.record["dtype"] == ("float16" if half else "float32")


def test_other_encoder_weights_never_find_old_embeddings(phantoms: PhantomSet, tmp_path: Path) -> None:
    net, lines = network(), list[str]()
    EmbeddedSamples(samples(phantoms), net, tmp_path, report=lines.append)
    with torch.no_grad():
        next(net.encoder.parameters()).mul_(2)
    EmbeddedSamples(samples(phantoms), net, tmp_path, report=lines.append)
    assert [line.split(" images")[0] for line in lines] == ["3 of 3", "3 of 3"]


def test_making_embeddings_leaves_the_networks_mode(phantoms: PhantomSet, tmp_path: Path) -> None:
    net = network().train()
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = norms[0].running_mean.clone()  # type: ignore[union-attr]
    EmbeddedSamples(samples(phantoms), net, tmp_path, report=lambda _line: None)
    assert net.training
    assert torch.equal(before, norms[0].running_mean)  # type: ignore[arg-type]
