from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import pytest

from fake_sessions import EchoSession, echo_spec
from mammo_runtime.errors import InferenceFailed, UnsuitableImage, UnusableBox, UsageError
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.segmenter import MAX_BATCH, OperatingPoint, prepare_all, segment
from mammo_runtime.spec import InputMode, ModelSpec
from mammo_runtime.tasks import MAX_BOXES

SIDE = 128
FULL, ROI = echo_spec(), echo_spec(InputMode.ROI)


def discs(*places: tuple[int, int, int, int], side: int = SIDE) -> Mammogram:
    """Return a black picture with discs (x, y, radius, grey value)."""
    pixels = np.zeros((side, side), np.uint8)
    for x, y, radius, value in places:
        cv2.circle(pixels, (x, y), radius, value, -1)
    return Mammogram(pixels, 255, "test", "", spacing_mm=(0.1, 0.1))


SPOT = discs((15, 15, 8, 200))


class Answers(EchoSession):
    """Answers with what a function makes of the batch, and keeps the sizes of the batches."""

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__()
        self.answer = answer
        self.sizes: list[int] = []

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.sizes.append(len(batch))
        return self.answer(np.clip(batch[:, :1], 0, 1))


def test_a_whole_picture() -> None:
    image = discs((40, 50, 12, 200), (90, 90, 6, 255))
    found = segment(image, EchoSession(), FULL)
    assert np.array_equal(found.mask, image.pixels > 127)
    assert found.probability == pytest.approx(image.pixels / 255, abs=1e-6)
    assert [(round(f.centroid_x), round(f.centroid_y)) for f in found.findings] == [(90, 90), (40, 50)]
    assert found.findings[0].prompt_box is None
    assert set(found.timings_ms) == {"preprocess", "infer", "postprocess"}
    assert found.threshold == 0.5


def test_nothing_found_is_an_empty_mask() -> None:
    found = segment(discs((40, 50, 12, 100)), EchoSession(), FULL)
    assert not found.mask.any()
    assert found.findings == ()


def test_boxes_each_find_their_own_mass() -> None:
    image = discs((30, 30, 8, 200), (100, 90, 10, 250))
    found = segment(image, EchoSession(), ROI, boxes=[Box(22, 22, 17, 17), Box(90, 80, 21, 21)])
    assert [(f.number, f.prompt_box, round(f.centroid_x), round(f.centroid_y)) for f in found.findings] == [
        (1, 2, 100, 90),
        (2, 1, 30, 30),
    ]
    assert (found.mask ^ (image.pixels > 127)).sum() <= 0.1 * found.mask.sum()


def test_overlapping_windows_unite() -> None:
    image = discs((60, 60, 10, 255), side=200)
    one = segment(image, EchoSession(), ROI, boxes=[Box(50, 50, 21, 21)])
    two = segment(image, EchoSession(), ROI, boxes=[Box(50, 50, 21, 21), Box(52, 48, 21, 21)])
    assert (two.mask & one.mask).sum() == one.mask.sum()
    assert two.probability.max() <= 1
    assert [f.prompt_box for f in two.findings] in ([1, 2], [2, 1])


def test_a_neighbour_in_the_window_does_not_count() -> None:
    image = discs((64, 64, 6, 255), (64, 79, 4, 255))
    found = segment(image, EchoSession(), ROI, boxes=[Box(54, 54, 20, 20)])
    assert found.probability[79, 64] > 0.9, "the window holds the neighbour"
    assert not found.mask[79, 64]
    assert len(found.findings) == 1


def test_a_box_reaching_over_the_edge() -> None:
    image = discs((2, 60, 10, 255))
    found = segment(image, EchoSession(), ROI, boxes=[Box(-8, 48, 24, 24)])
    assert (found.mask ^ (image.pixels > 127)).sum() <= 0.1 * found.mask.sum()
    assert found.findings[0].bounding_box.x == 0


def test_a_box_that_cannot_be_judged_fails_and_no_box_is_unsuitable() -> None:
    with pytest.raises(UnusableBox, match="outside"):
        segment(SPOT, EchoSession(), ROI, boxes=[Box(10, 10, 5, 5), Box(500, 10, 5, 5)])
    with pytest.raises(UnsuitableImage, match="no box"):
        segment(SPOT, EchoSession(), ROI, boxes=[])


def test_many_boxes_go_in_parts_and_keep_their_order() -> None:
    count = 2 * MAX_BATCH + 3
    boxes = [Box(10 + 12 * (k % 10), 10 + 30 * (k // 10), 6, 6) for k in range(count)]
    places = [(13 + 12 * (k % 10), 13 + 30 * (k // 10), 3, 150 + 5 * k) for k in range(count)]
    session = Answers(lambda grey: grey)
    found = segment(discs(*places), session, ROI, boxes=boxes)
    assert session.sizes == [MAX_BATCH, MAX_BATCH, 3]
    assert [f.prompt_box for f in found.findings] == list(range(count, 0, -1)), "the brightest disc is the last box's"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.5, -0.5])
def test_one_bad_value_fails_the_image(value: float) -> None:
    def spoil(grey: np.ndarray) -> np.ndarray:
        grey = grey.copy()
        grey[0, 0, 5, 7] = value
        return grey

    with pytest.raises(InferenceFailed, match="not judged"):
        segment(discs((40, 50, 12, 200)), Answers(spoil), FULL)


def test_a_bad_value_in_the_last_window_fails_the_image() -> None:
    boxes = [Box(10, 10, 20, 20)] * (MAX_BATCH + 1)
    session = Answers(lambda grey: grey if len(grey) > 1 else grey * np.nan)
    with pytest.raises(InferenceFailed):
        segment(discs((20, 20, 5, 200)), session, ROI, boxes=boxes)


@pytest.mark.parametrize(
    "answer",
    [lambda g: g[:, :, ::2], lambda g: g[:, 0], lambda g: np.repeat(g, 2, axis=1), lambda g: np.repeat(g, 2, axis=0)],
)
def test_a_wrong_shape_fails_the_image(answer: Callable[[np.ndarray], np.ndarray]) -> None:
    with pytest.raises(InferenceFailed, match="instead of"):
        segment(SPOT, Answers(answer), FULL)


def test_rounding_beyond_one_is_cut() -> None:
    found = segment(SPOT, Answers(lambda grey: 0 * grey + np.float32(1 + 5e-7)), FULL)
    assert found.probability.max() == 1
    assert found.findings[0].peak_probability == 1


@pytest.mark.parametrize(("threshold", "radius"), [(0.3, 20), (0.6, 10), (1.0, None)])
def test_the_threshold_can_be_overridden(threshold: float, radius: int | None) -> None:
    image = discs((64, 64, 20, 100), (64, 64, 10, 200))
    found = segment(image, EchoSession(), replace(FULL, threshold=0.9), OperatingPoint(threshold=threshold))
    assert found.threshold == threshold
    assert [round(f.long_axis_px) for f in found.findings] == ([] if radius is None else [2 * radius + 1])


def test_a_pixel_at_the_threshold_counts() -> None:
    image = discs((64, 64, 10, 153))
    assert segment(image, EchoSession(), FULL, OperatingPoint(threshold=0.6)).mask.sum() == (image.pixels > 0).sum()


def test_the_minimum_area() -> None:
    image = discs((30, 30, 3, 255), (90, 90, 10, 255))
    assert len(segment(image, EchoSession(), FULL).findings) == 2
    assert len(segment(image, EchoSession(), FULL, OperatingPoint(min_area_px=100)).findings) == 1
    finer = discs((120, 120, 12, 255), (360, 360, 40, 255), side=512)
    cells = replace(FULL, min_area_cells=100)
    found = segment(finer, EchoSession(), cells)
    assert found.min_area_px == pytest.approx(1600), "a cell covers 4 x 4 pixels"
    assert len(found.findings) == 1
    assert len(segment(finer, EchoSession(), cells, OperatingPoint(min_area_px=0)).findings) == 2


@pytest.mark.parametrize("values", [{"threshold": np.nan}, {"threshold": 1.1}, {"threshold": -0.1}])
@pytest.mark.parametrize("area", [None, np.nan, np.inf, -1.0])
def test_a_meaningless_operating_point_is_refused(values: dict[str, float], area: float | None) -> None:
    with pytest.raises(UsageError, match="threshold"):
        OperatingPoint(**values)
    if area is not None:
        with pytest.raises(UsageError, match="minimum area"):
            OperatingPoint(min_area_px=area)


def test_more_boxes_than_a_person_draws_fail_the_image() -> None:
    with pytest.raises(UnusableBox, match=f"{MAX_BOXES + 1} boxes .* at most {MAX_BOXES}"):
        segment(SPOT, EchoSession(), ROI, boxes=[Box(10, 10, 8, 8)] * (MAX_BOXES + 1))


@pytest.mark.parametrize(("spec", "boxes"), [(FULL, None), (ROI, [Box(8, 8, 16, 16), Box(60, 60, 20, 20)])])
def test_what_was_prepared_once_serves_again(spec: ModelSpec, boxes: list[Box] | None) -> None:
    once = prepare_all(SPOT, spec, boxes)
    again = segment(SPOT, EchoSession(), spec, boxes=boxes, prepared=once)
    first = segment(SPOT, EchoSession(), spec, boxes=boxes)
    assert np.array_equal(again.mask, first.mask)
    assert np.array_equal(again.probability, first.probability)
    assert again.findings == first.findings
