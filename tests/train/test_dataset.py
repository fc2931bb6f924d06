"""Samples: what an index becomes for the network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mammo_runtime.errors import UsageError
from mammo_runtime.mammogram import Box, Modality
from mammo_runtime.placement import Placement, Rectangle
from mammo_runtime.spec import Activation, CleaningStep, Fit, InputMode, InputSpec, ModelSpec, Task
from mammo_train import dataset
from mammo_train.config import AUGMENTATIONS, AugmentConfig
from mammo_train.dataset import MIN_LESION_PX, SampleSet, labels_on_grid, lesion_boxes, read_labelled, usable_rows
from mammo_train.index import IndexRow, read_index
from mammo_train.losses import IGNORE
from mammo_train.phantom_sets import write_phantom_set
from training_phantoms import COLUMNS, ROWS, PhantomSet, tiny_spec

FULL, ROI = (tiny_spec(mode) for mode in (InputMode.FULL, InputMode.ROI))
TISSUE = ModelSpec(
    "tissue", "bcss_unet_resnet34", task=Task.MULTICLASS, modality=Modality.HISTOPATHOLOGY,
    activation=Activation.ARGMAX, classes=tuple(f"c{k}" for k in range(1, 22)),
    input=InputSpec(height=64, width=96, mean=(0.0,) * 3, std=(1.0,) * 3, colour=True),
)  # fmt: skip
PICTURE = ModelSpec(
    "picture", "vgg16_busi", task=Task.CLASSIFICATION, modality=Modality.ULTRASOUND, activation=Activation.SOFTMAX,
    classes=("benign", "malignant", "normal"), input=InputSpec(height=64, width=64),
)  # fmt: skip


def with_input(spec: ModelSpec, **changes: object) -> ModelSpec:
    return replace(spec, input=replace(spec.input, **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> tuple[IndexRow, ...]:
    root = tmp_path_factory.mktemp("tissue")
    return read_index(write_phantom_set(root, Modality.HISTOPATHOLOGY), root)


@pytest.fixture(scope="module")
def ultrasound(tmp_path_factory: pytest.TempPathFactory) -> tuple[IndexRow, ...]:
    root = tmp_path_factory.mktemp("ultrasound")
    return read_index(write_phantom_set(root, Modality.ULTRASOUND), root)


def test_read_labelled_gives_picture_mask_boxes_and_spacing(phantoms: PhantomSet) -> None:
    row = next(r for r in phantoms.rows() if r.name == "f2_1_mass")
    labelled = read_labelled(row)
    assert labelled.mask.shape == labelled.image.pixels.shape == (ROWS, COLUMNS)
    assert labelled.image.spacing_mm == (0.5, 0.5)
    assert len(labelled.boxes) == 2
    for box in labelled.boxes:
        part = labelled.mask[int(box.y) : int(box.y + box.height), int(box.x) : int(box.x + box.width)]
        assert part.any(axis=0).all()
        assert part.any(axis=1).all()


def test_no_mask_means_an_empty_mask(phantoms: PhantomSet) -> None:
    labelled = read_labelled(next(r for r in phantoms.rows() if r.kind == "normal"))
    assert not labelled.mask.any()
    assert labelled.boxes == ()


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UsageError, match=r"broken\.png"):
        read_labelled(IndexRow(tmp_path / "broken.png", None, "p", 2, "mass", None))


def test_a_mask_of_another_size_is_refused(phantoms: PhantomSet, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "mask.png"), np.zeros((8, 8), np.uint8))
    with pytest.raises(UsageError, match=r"mask\.png is unreadable or differs in size"):
        read_labelled(replace(phantoms.rows()[0], mask=tmp_path / "mask.png"))


def test_lesion_boxes_are_tight_ordered_and_without_specks() -> None:
    mask = np.zeros((60, 60), bool)
    mask[5:9, 10:15] = True
    mask[30:50, 20:40] = True
    mask[0:2, 0 : (MIN_LESION_PX - 1) // 2] = True
    assert lesion_boxes(mask) == (Box(20, 30, 20, 20), Box(10, 5, 5, 4))


def test_full_mode_gives_one_sample_for_each_picture_roi_mode_one_for_each_lesion(phantoms: PhantomSet) -> None:
    rows = [r for r in phantoms.rows() if r.fold == 2]
    full, roi = SampleSet(rows, FULL, None, 0), SampleSet(rows, ROI, None, 0)
    assert len(full) == 4
    assert len(roi) == 1 + 2 + 1
    assert [roi.row(k).name for k in range(4)] == ["f2_0_mass", "f2_1_mass", "f2_1_mass", "f2_2_findings"]
    assert len(SampleSet(rows, FULL, None, 0, repeats=3)) == 12


def test_roi_mode_needs_no_pictures_without_lesions(phantoms: PhantomSet) -> None:
    kinds = ("mass", "normal")
    full = usable_rows(phantoms.rows(), InputMode.FULL, [2, 3], kinds)
    roi = usable_rows(phantoms.rows(), InputMode.ROI, [2, 3], kinds)
    assert [r.kind for r in full] == ["mass", "mass", "normal"] * 2
    assert roi == [r for r in full if r.kind == "mass"]


def test_a_sample_is_the_normalised_picture_with_its_mask(phantoms: PhantomSet) -> None:
    rows = [r for r in phantoms.rows() if r.name == "f2_0_mass"]
    plain = with_input(FULL, mean=(0.0,) * 3, std=(1.0,) * 3, cleaning=())
    image, mask, valid = SampleSet(rows, plain, None, 0)[0]
    assert (valid.shape, valid.dtype) == ((1, 64, 64), torch.bool)
    assert valid[0, :, 8:56].all()
    assert valid.sum() == 64 * 48
    assert (image.shape, mask.shape) == ((3, 64, 64), (1, 64, 64))
    assert (image.dtype, mask.dtype) == (torch.float32, torch.float32)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    # The phantom's mass is brighter than its tissue, so image and mask must coincide.
    assert float(image[0][mask[0] == 1].mean()) > 0.65 > float(image[0][mask[0] == 0].max()) - 0.2
    assert float(image[0][mask[0] == 0].mean()) < 0.4
    assert torch.equal(image[0], image[2])
    symmetric, *_ = SampleSet(rows, with_input(plain, mean=(0.5,) * 3, std=(0.5,) * 3), None, 0)[0]
    assert torch.allclose(symmetric, image * 2 - 1, atol=1e-6)


@pytest.mark.parametrize("spec", [FULL, ROI], ids=["full", "roi"])
def test_a_sample_depends_only_on_seed_epoch_and_number(phantoms: PhantomSet, spec: ModelSpec) -> None:
    rows = [r for r in phantoms.rows() if r.fold == 3 and r.kind == "mass"]
    first, second = SampleSet(rows, spec, AugmentConfig(), 7), SampleSet(rows, spec, AugmentConfig(), 7)
    early = [first[k][0].clone() for k in range(len(first))]
    first.epoch = second.epoch = 1
    late = [first[k][0] for k in reversed(range(len(first)))][::-1]
    for k, image in enumerate(late):
        assert torch.equal(image, second[k][0])
        assert not torch.equal(image, early[k])
    first.epoch = 0
    assert torch.equal(first[0][0], early[0])
    assert not torch.equal(SampleSet(rows, spec, AugmentConfig(), 8)[0][0], early[0])


def test_validation_samples_do_not_change_with_the_epoch(phantoms: PhantomSet) -> None:
    samples = SampleSet([r for r in phantoms.rows() if r.fold == 1], FULL, None, 0)
    before = samples[0][0].clone()
    samples.epoch = 5
    assert torch.equal(samples[0][0], before)


def test_nothing_to_learn_from_is_refused(phantoms: PhantomSet) -> None:
    with pytest.raises(UsageError, match="no training sample"):
        SampleSet([r for r in phantoms.rows() if r.kind == "normal"], ROI, None, 0)


def test_valid_is_the_breast_where_the_model_finds_it(phantoms: PhantomSet) -> None:
    rows = [r for r in phantoms.rows() if r.name == "f2_0_mass"]
    spec = with_input(FULL, cleaning=(CleaningStep("keep_breast"),), mean=(0.0,) * 3, std=(1.0,) * 3)
    image, _, valid = SampleSet(rows, spec, None, 0)[0]
    assert 0.2 < float(valid.float().mean()) < 0.6
    assert float((image[0][valid[0]] > 0.1).float().mean()) > 0.95
    assert float(image[0][~valid[0]].mean()) < 0.05


def test_mask_and_valid_follow_the_picture(phantoms: PhantomSet) -> None:
    rows = [r for r in phantoms.rows() if r.name == "f2_0_mass"]
    spec = with_input(FULL, cleaning=(CleaningStep("keep_breast"),), mean=(0.0,) * 3, std=(1.0,) * 3)
    moves = replace(AUGMENTATIONS["none"], flip_probability=1.0)
    still, moved = SampleSet(rows, spec, None, 0)[0], SampleSet(rows, spec, moves, 0)[0]
    assert all(torch.equal(a.flip(-1), b) for a, b in zip(still, moved, strict=True))


def test_padding_of_a_corner_fit_moves_along(phantoms: PhantomSet) -> None:
    rows = [r for r in phantoms.rows() if r.name == "f2_0_mass"]
    spec = with_input(FULL, fit=Fit.CORNER)
    moves = replace(AUGMENTATIONS["none"], flip_probability=1.0)
    still, moved = SampleSet(rows, spec, None, 0)[0], SampleSet(rows, spec, moves, 0)[0]
    assert (still[0][..., 48:] == 0).all()
    assert torch.equal(still[0].flip(-1), moved[0])


def test_tissue_codes_become_classes(tissue: tuple[IndexRow, ...]) -> None:
    image, target, valid = SampleSet(tissue[:2], TISSUE, None, 0, ignore_codes=(0, 7))[0]
    codes = cv2.imread(str(tissue[0].mask), cv2.IMREAD_UNCHANGED)
    assert (image.shape, target.shape, target.dtype) == ((3, 64, 96), (64, 96), torch.int64)
    assert not torch.equal(image[0], image[1])
    inner = target[:, 16:80]  # a square picture of 96 pixels, centred
    shown = set(inner.unique().tolist())
    assert shown == {IGNORE if code in (0, 7) else int(code) - 1 for code in np.unique(codes)}
    assert (target[:, :16] == IGNORE).all()
    assert not valid[0, :, :16].any()
    assert valid[0, :, 16:80].all()
    # OpenCV's own nearest neighbour takes a pixel's corner, ours its centre: they agree off the borders of patches.
    expected = cv2.resize(codes, (64, 64), interpolation=cv2.INTER_NEAREST_EXACT).astype(np.int64) - 1
    expected[(expected < 0) | (expected == 6)] = IGNORE
    assert float((inner.numpy() == expected).mean()) > 0.97


def test_what_comes_in_from_outside_is_ignored(tissue: tuple[IndexRow, ...]) -> None:
    spec = with_input(TISSUE, width=64)
    shift = replace(AUGMENTATIONS["none"], affine_probability=1.0, shift_fraction=0.4, rotate_deg=0, scale_fraction=0)
    image, target, valid = SampleSet(tissue[:1], spec, shift, 3)[0]
    outside = ~valid[0]
    assert 0.05 < float(outside.float().mean()) < 0.9
    assert (target[outside] == IGNORE).all()
    assert float(image.max(0).values[outside].mean()) < 0.1


def test_labels_go_to_the_nearest_cell() -> None:
    labels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    whole = Rectangle(0, 0, 4, 4)
    twice = Placement(4, 4, whole, 4, 4, whole, Rectangle(0, 2, 8, 8), 8, 12)
    grid = labels_on_grid(labels, twice)
    assert np.array_equal(grid[:, 2:10], np.repeat(np.repeat(labels, 2, 0), 2, 1))
    assert (grid[:, :2] == IGNORE).all()
    half = Placement(4, 4, whole, 4, 4, whole, Rectangle(0, 0, 2, 2), 2, 2)
    assert np.array_equal(labels_on_grid(labels, half), labels[1::2, 1::2])


def test_codes_beyond_the_classes_are_refused(tissue: tuple[IndexRow, ...]) -> None:
    with pytest.raises(UsageError, match=r"holds code \d+; the model has 3 classes"):
        SampleSet(tissue[:1], replace(TISSUE, classes=("a", "b", "c")), None, 0)


def test_a_code_mask_must_be_grey_and_of_the_pictures_size(tissue: tuple[IndexRow, ...], tmp_path: Path) -> None:
    for pixels in (np.zeros((8, 8), np.uint8), np.zeros((96, 96, 3), np.uint8)):
        cv2.imwrite(str(tmp_path / "codes.png"), pixels)
        with pytest.raises(UsageError, match=r"codes\.png is no 8-bit grey picture of the size of its image .*\.png"):
            SampleSet([replace(tissue[0], mask=tmp_path / "codes.png")], TISSUE, None, 0)


def test_a_pictures_class_is_its_kind(ultrasound: tuple[IndexRow, ...]) -> None:
    samples = SampleSet(ultrasound[:6], PICTURE, AugmentConfig(), 0, repeats=2)
    assert len(samples) == 12
    for k in range(12):
        image, target, valid = samples[k]
        assert (image.shape, target.shape, target.dtype, valid.shape) == ((3, 64, 64), (), torch.int64, (1, 64, 64))
        assert PICTURE.classes[int(target)] == samples.row(k).kind
    with pytest.raises(UsageError, match="of kind 'benign'; the model's classes are cat, dog"):
        SampleSet(ultrasound[:1], replace(PICTURE, classes=("cat", "dog")), None, 0)


def test_what_does_not_fit_into_memory_is_read_again(phantoms: PhantomSet, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [r for r in phantoms.rows() if r.fold == 2]
    expected = [SampleSet(rows, FULL, None, 0)[k] for k in range(len(rows))]
    monkeypatch.setattr(dataset, "KEPT_BYTES", 20_000)
    samples = SampleSet(rows, FULL, None, 0)
    for _ in range(2):
        for k, wanted in enumerate(expected):
            assert all(torch.equal(a, b) for a, b in zip(samples[k], wanted, strict=True))


def test_a_mask_that_would_read_as_empty_is_refused(phantoms: PhantomSet, tmp_path: Path) -> None:
    """0 and 1, or tissue codes, are no 0 and 255: "no lesion" would be learnt from a picture with one."""
    row = next(r for r in phantoms.rows() if r.mask is not None)
    stored = cv2.imread(str(row.mask), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "mask.png"), stored // 255)
    with pytest.raises(UsageError, match="up to 1 and would read as empty"):
        read_labelled(replace(row, mask=tmp_path / "mask.png"))
