"""What each task makes of its graphs' answers, run by ONNX Runtime, and what it refuses to believe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from fake_sessions import EchoSession
from mammo_runtime.bundle import LoadedModel, load_model
from mammo_runtime.embeddings import EmbeddingCache
from mammo_runtime.errors import InferenceFailed, ModelRefused, UnsuitableImage, UnusableBox, UsageError
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.result import ClassArea, ClassScore, OperatingPoint, Result
from mammo_runtime.segmenter import segment
from mammo_runtime.session import SessionOptions
from mammo_runtime.spec import Fit, Precision, Task
from mammo_runtime.tasks import MAX_PROMPTS, TASKS
from tiny_tasks import SPECS, quarters, spotted, write_task_bundle

MAP, CLASSIFIER, PROMPTED = (SPECS[t] for t in (Task.MULTICLASS, Task.CLASSIFICATION, Task.PROMPTED))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Task, LoadedModel]]:
    folder = tmp_path_factory.mktemp("models")
    opened = {
        task: load_model(str(write_task_bundle(folder / task.value, spec)), "cpu", Precision.FP32, SessionOptions(1))
        for task, spec in SPECS.items()
    }
    yield opened
    for model in opened.values():
        model.close()


def mammogram(pixels: np.ndarray, spacing: tuple[float, float] | None = (0.5, 0.2)) -> Mammogram:
    return Mammogram(pixels, 255, "test", "", spacing_mm=spacing)


def judged(model: LoadedModel, pixels: np.ndarray, boxes: list[Box] | None = None, **more: object) -> Result:
    return segment(mammogram(pixels), model.session, model.spec, boxes=boxes, decoder=model.decoder, **more)  # type: ignore[arg-type]


class Answer(EchoSession):
    """Answers with what it was given, whatever it is asked."""

    def __init__(self, *answers: np.ndarray) -> None:
        super().__init__()
        self.answers = answers

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.calls += 1
        return self.answers[0]

    def run_all(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        self.calls += 1
        return self.answers


def test_every_task_has_its_procedure() -> None:
    assert set(TASKS) == set(Task)


def test_a_class_map_covers_the_picture_with_exact_areas(models: dict[Task, LoadedModel]) -> None:
    pixels = quarters(0, 85, 170, 0, rows=200, columns=120)
    found = judged(models[Task.MULTICLASS], pixels)
    assert found.labels is not None
    assert (found.labels.dtype, found.labels.shape) == (np.uint8, (200, 120))
    assert np.array_equal(found.labels, pixels // 85)
    assert found.classes == (
        ClassArea("gland", 12000, 0.5, pytest.approx(1200)), ClassArea("stroma", 6000, 0.25, pytest.approx(600)),
        ClassArea("tumour", 6000, 0.25, pytest.approx(600)), ClassArea("fat", 0, 0.0, 0.0),
    )  # fmt: skip
    assert (found.findings, found.threshold, found.predicted_class) == ((), None, None)
    bare = segment(mammogram(pixels, None), models[Task.MULTICLASS].session, MAP)
    assert [c.area_mm2 for c in bare.classes if isinstance(c, ClassArea)] == [None] * 4


def test_a_colour_picture_keeps_its_channels() -> None:
    seen: list[np.ndarray] = []

    class Looking(EchoSession):
        def run(self, batch: np.ndarray) -> np.ndarray:
            seen.append(batch)
            return np.zeros((1, 1, 64, 64), np.uint8)

    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = 255, 51
    segment(mammogram(pixels), Looking(), MAP)
    assert np.unique(seen[0][0, 0]).tolist() == [1]
    assert np.unique(seen[0][0, 1]).tolist() == [-1]
    assert seen[0][0, 2] == pytest.approx(-0.6)


def test_a_classifier_names_its_likeliest_class(models: dict[Task, LoadedModel]) -> None:
    for grey, name in ((25, "normal"), (77, "benign"), (128, "malignant")):
        pixels = np.full((64, 64), grey, np.uint8)
        pixels[0] = grey + 1
        found = judged(models[Task.CLASSIFICATION], pixels)
        assert found.predicted_class == name
        scores = [c for c in found.classes if isinstance(c, ClassScore)]
        assert [c.name for c in scores] == list(CLASSIFIER.classes)
        assert sum(c.probability for c in scores) == pytest.approx(1, abs=1e-5)
        assert max(scores, key=lambda c: c.probability).name == name
        assert found.mask.size == found.probability.size == 0


BOXES = [Box(20, 20, 24, 24), Box(80, 50, 30, 30)]
PICTURE = spotted((32, 32, 9), (65, 95, 12))


def test_each_box_gets_the_mass_inside_and_its_predicted_iou(models: dict[Task, LoadedModel]) -> None:
    found = judged(models[Task.PROMPTED], PICTURE, BOXES)
    assert found.mask.shape == PICTURE.shape
    assert (found.mask ^ (PICTURE > 127)).sum() <= 0.25 * (PICTURE > 127).sum(), "cells of 8 pixels"
    assert found.box_predicted_iou == pytest.approx((20 / 128, 80 / 128))
    by_box = {f.prompt_box: f for f in found.findings}
    assert [round(by_box[k].centroid_x) for k in (1, 2)] == pytest.approx([32, 95], abs=2)
    assert [round(by_box[k].centroid_y) for k in (1, 2)] == pytest.approx([32, 65], abs=2)
    assert [by_box[k].predicted_iou for k in (1, 2)] == list(found.box_predicted_iou or ())
    assert any("needs a box" in note for note in found.notes)
    assert found.threshold == 0.5


def test_boxes_are_scaled_by_axis_where_the_picture_is_stretched(models: dict[Task, LoadedModel]) -> None:
    model = models[Task.PROMPTED]
    stretched = replace(PROMPTED, input=replace(PROMPTED.input, fit=Fit.STRETCH))
    found = segment(mammogram(PICTURE), model.session, stretched, boxes=BOXES, decoder=model.decoder)
    assert found.box_predicted_iou == pytest.approx((20 / 128, 80 / 128))
    assert (found.mask ^ (PICTURE > 127)).sum() <= 0.3 * (PICTURE > 127).sum()
    assert len(found.findings) == 2


def test_many_boxes_go_in_parts_and_one_picture_is_encoded_once(models: dict[Task, LoadedModel]) -> None:
    model, cache = models[Task.PROMPTED], EmbeddingCache()
    boxes = [Box(2 + 5 * k, 20, 24, 24) for k in range(2 * MAX_PROMPTS + 3)]
    first = judged(model, PICTURE, boxes, embeddings=cache)
    assert first.box_predicted_iou == pytest.approx([(2 + 5 * k) / 128 for k in range(len(boxes))], rel=1e-5)
    again = judged(model, PICTURE.copy(), boxes[:1], embeddings=cache)
    assert (cache.misses, cache.hits) == (1, 1)
    assert again.box_predicted_iou == (first.box_predicted_iou or ())[:1]
    judged(model, PICTURE[::-1].copy(), boxes[:1], embeddings=cache)
    assert (cache.misses, cache.hits) == (2, 1), "the key is the picture, not its name or digest"


@pytest.mark.parametrize("box", [Box(200, 10, 5, 5), Box(10, 96, 5, 5), Box(-9, 10, 9, 9), Box(0, 0, 1e5, 1e5)])
def test_a_box_that_cannot_be_judged_costs_no_run(box: Box) -> None:
    encoder = Answer(np.zeros((1, 3, 16, 16), np.float32))
    with pytest.raises(UnusableBox):
        segment(mammogram(PICTURE), encoder, PROMPTED, boxes=[BOXES[0], box], decoder=encoder)
    assert encoder.calls == 0


def test_boxes_decoder_and_task_must_fit(models: dict[Task, LoadedModel]) -> None:
    model = models[Task.PROMPTED]
    with pytest.raises(ModelRefused, match="needs a box"):
        judged(model, PICTURE)
    with pytest.raises(UnsuitableImage, match="no box"):
        judged(model, PICTURE, [])
    with pytest.raises(ModelRefused, match="decoder"):
        segment(mammogram(PICTURE), model.session, PROMPTED, boxes=BOXES)
    for task in (Task.MULTICLASS, Task.CLASSIFICATION):
        with pytest.raises(ModelRefused, match="no boxes"):
            judged(models[task], PICTURE, BOXES)
        for point in (OperatingPoint(threshold=0.3), OperatingPoint(min_area_px=4)):
            with pytest.raises(UsageError, match="likeliest class"):
                judged(models[task], PICTURE, point=point)


@pytest.mark.parametrize("task", list(SPECS))
def test_what_is_not_finite_fails_the_image(models: dict[Task, LoadedModel], task: Task) -> None:
    """One white pixel makes the tiny graphs answer NaN there; arg-max alone would hide it."""
    pixels = PICTURE.copy()
    pixels[8:16, 8:16] = 255
    with pytest.raises(InferenceFailed, match="NaN"):
        judged(models[task], pixels, BOXES if task is Task.PROMPTED else None)


def test_a_predicted_iou_that_is_no_number_fails_the_image(models: dict[Task, LoadedModel]) -> None:
    with pytest.raises(InferenceFailed, match="IoU"):
        judged(models[Task.PROMPTED], PICTURE, [BOXES[0], Box(0, 50, 30, 30)])


def scores(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


@pytest.mark.parametrize(
    ("spec", "answer", "said"),
    [
        (MAP, np.full((1, 1, 64, 64), 4, np.uint8), "class 4"), (MAP, np.zeros((1, 1, 64, 64), np.float32), "instead"),
        (MAP, np.zeros((1, 4, 64, 64), np.uint8), "instead"), (CLASSIFIER, scores(0.5, 0.2, 0.2), "sum to 0.9"),
        (CLASSIFIER, scores(0.5, 0.5), "instead"), (CLASSIFIER, scores(np.nan, 0.5, 0.5), "NaN"),
        (CLASSIFIER, scores(1.5, -0.5, 0), "outside"), (CLASSIFIER, scores(np.inf, 0, 0), "infinite"),
        (CLASSIFIER, np.zeros((1, 3), np.uint8), "instead"),
    ],
)  # fmt: skip
def test_an_answer_that_breaks_its_promise_fails_the_image(spec: object, answer: np.ndarray, said: str) -> None:
    with pytest.raises(InferenceFailed, match=said):
        segment(mammogram(PICTURE), Answer(answer), spec)  # type: ignore[arg-type]


MAPS, IOU = np.zeros((1, 2, 1, 16, 16), np.float32), np.zeros((1, 2), np.float32)


@pytest.mark.parametrize(
    "answers",
    [(MAPS,), (MAPS[:, :1], IOU), (MAPS, IOU[0]), (MAPS + np.float32(np.nan), IOU), (MAPS, IOU + np.float32(np.inf)),
     (MAPS - 1, IOU), (MAPS.astype(np.float64), IOU)],
)  # fmt: skip
def test_a_decoder_that_breaks_its_promise_fails_the_image(answers: tuple[np.ndarray, ...]) -> None:
    encoder = Answer(np.zeros((1, 3, 16, 16), np.float32))
    with pytest.raises(InferenceFailed):
        segment(mammogram(PICTURE), encoder, PROMPTED, boxes=BOXES, decoder=Answer(*answers))


@pytest.mark.parametrize("spoil", [lambda e: e * np.float32(np.inf), lambda e: e[:, :2], lambda e: e.astype(np.uint8)])
def test_an_embedding_that_breaks_its_promise_is_not_kept(spoil: Callable[[np.ndarray], np.ndarray]) -> None:
    cache, encoder = EmbeddingCache(), Answer(spoil(np.ones((1, 3, 16, 16), np.float32)))
    with pytest.raises(InferenceFailed):
        segment(mammogram(PICTURE), encoder, PROMPTED, boxes=BOXES, decoder=Answer(MAPS, IOU), embeddings=cache)
    assert cache.bytes_kept == 0


def test_rounding_of_a_classifier_passes() -> None:
    found = segment(mammogram(PICTURE), Answer(scores(0.3335, 0.3330, 0.3330)), CLASSIFIER)
    assert found.predicted_class == "normal"
