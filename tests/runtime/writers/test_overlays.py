"""Overlays with a legend or a caption, masks of labels, and the palette behind them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest

from mammo_runtime.mammogram import Mammogram
from mammo_runtime.result import ClassArea, ClassScore, Result
from mammo_runtime.spec import Task
from mammo_runtime.tasks import TASKS
from mammo_runtime.writers.amounts import chance, share
from mammo_runtime.writers.overlays import MASKS, OVERLAYS, mask_content, overlay
from mammo_runtime.writers.palette import COLOURS, PALETTE, css_colour


def mammogram(pixels: np.ndarray, white: int = 255) -> Mammogram:
    return Mammogram(pixels, white, "test", "0" * 64)


def class_map(labels: np.ndarray, names: Sequence[str]) -> Result:
    counts = np.bincount(labels.ravel(), minlength=len(names))
    areas = tuple(ClassArea(n, int(c), int(c) / labels.size, None) for n, c in zip(names, counts))
    return Result(Task.MULTICLASS, labels=labels, classes=areas)


def classified(*probabilities: float) -> Result:
    scores = tuple(ClassScore(f"class {k}", p) for k, p in enumerate(probabilities))
    return Result(Task.CLASSIFICATION, classes=scores, predicted_class="class 0")


HALVES = np.repeat(np.array([0, 2], np.uint8), 150)[None].repeat(200, axis=0)


def test_every_task_has_its_overlay_and_its_mask_if_it_has_one() -> None:
    assert set(OVERLAYS) == set(Task)
    assert set(MASKS) == {task for task in Task if "mask" in TASKS[task].pictures}


def test_the_picture_stays_in_place_with_the_colour_of_each_class() -> None:
    grey = np.full((200, 300), 100, np.uint8)
    found = overlay(mammogram(grey), class_map(HALVES, ("a", "b", "c")))
    assert found.shape[0] > 200
    assert found.shape[1] == 300
    for column, number in ((10, 0), (290, 2)):
        assert found[100, column] == pytest.approx(0.6 * 100 + 0.4 * np.array(PALETTE[number]), abs=1)
    strip = found[200:]
    full = [tuple(c) for c in (PALETTE[0], PALETTE[1], PALETTE[2])]
    present = [bool((strip == c).all(axis=2).any()) for c in full]
    assert present == [True, False, True], "the legend names the classes present, no others"


def test_the_legend_is_wide_enough_for_its_words() -> None:
    narrow = overlay(mammogram(np.full((64, 40), 90, np.uint8)), class_map(np.zeros((64, 40), np.uint8), ("m" * 30,)))
    assert narrow.shape[1] > 200
    assert (narrow[:64, 40:] == narrow[0, 40]).all()
    written = (narrow[64:].astype(int) - narrow[0, 40]).any(axis=(0, 2))
    assert not written[-2:].any(), "nothing is cut off at the right"


def test_a_caption_covers_nothing_and_names_every_class() -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (200, 300)).astype(np.uint16)
    found = overlay(mammogram(pixels, 65535), classified(0.7, 0.2, 0.1))
    expected = cv2.convertScaleAbs(pixels, alpha=255 / 65535)
    assert np.array_equal(found[:200, :300], np.repeat(expected[..., None], 3, axis=2))
    fewer = overlay(mammogram(pixels, 65535), classified(0.7, 0.3))
    assert (found[200:] > 120).sum() > (fewer[200:] > 120).sum()
    many = overlay(mammogram(pixels, 65535), classified(*[1 / 250] * 250))
    assert many.shape[0] < 1500, "a caption is no table"


def test_strange_class_names_are_drawn_as_something() -> None:
    result = replace(classified(1.0), classes=(ClassScore("Drüse\n乳腺", 1.0),))
    assert overlay(mammogram(np.full((100, 100), 5, np.uint8)), result).shape[1] >= 100


def test_a_colour_picture_keeps_its_colours_under_the_caption() -> None:
    pixels = np.zeros((50, 60, 3), np.uint8)
    pixels[..., 0] = 200
    assert overlay(mammogram(pixels), classified(1.0))[10, 10].tolist() == [200, 0, 0]


def test_labels_are_stored_as_they_are() -> None:
    content = mask_content(class_map(HALVES, ("a", "b", "c")))
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, HALVES)
    with pytest.raises(TypeError, match="uint8"):
        mask_content(class_map(HALVES.astype(np.int64), ("a", "b", "c")))


def test_labels_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="size"):
        overlay(mammogram(np.zeros((10, 300), np.uint8)), class_map(HALVES, ("a", "b", "c")))


def test_the_palette_has_a_colour_of_its_own_for_each_class() -> None:
    assert len(PALETTE) == len(set(PALETTE)) == COLOURS == 254
    assert css_colour(0) == "#e69f00"
    colours = np.array(PALETTE[:10], np.uint8)[None]
    lab = cv2.cvtColor(colours.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)[0]
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1e3 * np.eye(10)
    assert apart.min() > 20, "a difference of 2 can be seen side by side"
    # Green and red cones reacting alike (deuteranopia, Viénot 1999): what is left must still differ.
    linear = (colours[0] / 255.0) ** 2.2
    seen = np.stack(
        [linear @ (0.29275, 0.70725, 0), linear @ (0.29275, 0.70725, 0), linear @ (-0.02234, 0.02234, 1)], 1
    )
    blind = cv2.cvtColor(np.clip(seen, 0, 1)[None].astype(np.float32) ** np.float32(1 / 2.2), cv2.COLOR_RGB2Lab)[0]
    apart = np.linalg.norm(blind[:, None] - blind[None], axis=2) + 1e3 * np.eye(10)
    assert apart.min() > 8


def test_what_is_there_never_reads_as_nothing() -> None:
    assert [share(v) for v in (0, 1e-6, 0.4123, 1)] == ["0.0 %", "<0.1 %", "41.2 %", "100.0 %"]
    assert [chance(v) for v in (0, 1e-4, 0.712, 1)] == ["0.00", "<0.01", "0.71", "1.00"]


def test_memory_of_a_large_class_map_stays_within_the_pictures() -> None:
    labels = np.zeros((2000, 1500), np.uint8)
    image, result = mammogram(np.zeros((2000, 1500), np.uint8)), class_map(labels, ("a", "b"))
    tracemalloc.start()
    overlay(image, result)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 3 * labels.size
