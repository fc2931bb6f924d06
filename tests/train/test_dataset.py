"""Samples: what an index becomes for the network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mammo_runtime.errors import UsageError
from mammo_runtime.mammogram import Box
from mammo_runtime.spec import InputMode, InputSpec
from mammo_train.config import AugmentConfig
from mammo_train.dataset import MIN_LESION_PX, SampleSet, lesion_boxes, read_labelled, usable_rows
from mammo_train.index import IndexRow
from training_phantoms import COLUMNS, ROWS, PhantomSet, tiny_spec

FULL, ROI = (tiny_spec(mode).input for mode in (InputMode.FULL, InputMode.ROI))


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
    plain = InputSpec(height=64, width=64, mean=(0.0,) * 3, std=(1.0,) * 3)
    image, mask = SampleSet(rows, plain, None, 0)[0]
    assert (image.shape, mask.shape) == ((3, 64, 64), (1, 64, 64))
    assert (image.dtype, mask.dtype) == (torch.float32, torch.float32)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    # The phantom's mass is brighter than its tissue, so image and mask must coincide.
    assert float(image[0][mask[0] == 1].mean()) > 0.65 > float(image[0][mask[0] == 0].max()) - 0.2
    assert float(image[0][mask[0] == 0].mean()) < 0.4
    assert torch.equal(image[0], image[2])
    symmetric, _ = SampleSet(rows, replace(plain, mean=(0.5,) * 3, std=(0.5,) * 3), None, 0)[0]
    assert torch.allclose(symmetric, image * 2 - 1, atol=1e-6)


@pytest.mark.parametrize("spec", [FULL, ROI], ids=["full", "roi"])
def test_a_sample_depends_only_on_seed_epoch_and_number(phantoms: PhantomSet, spec: InputSpec) -> None:
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
