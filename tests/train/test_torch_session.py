"""The torch session answers as the exported graph of its task does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mammo_runtime.errors import ModelRefused
from mammo_runtime.spec import NOT_FINITE, Activation, InputSpec, ModelSpec, PromptSpec, Task
from mammo_train.torch_session import TorchSession

INPUT = InputSpec(height=8, width=8)


class Fixed(nn.Module):
    """Answers stored logits, whatever it sees."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), *self.logits.shape[1:])


class Prompted(nn.Module):
    """Embedding: the mean of every 2 x 2 cells; decoder: box widths as logits, box heights as IoU."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(images, 2) * self.scale

    def decode(self, embedding: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
        return width[:, :, None, None, None].expand(-1, -1, 1, 4, 4), height


def batch(number: int = 2) -> np.ndarray:
    return np.zeros((number, 3, 8, 8), np.float32)


def spec(task: Task, activation: Activation, classes: int, **changes: object) -> ModelSpec:
    names = tuple(f"c{k}" for k in range(classes))
    return ModelSpec("t", "none", task=task, activation=activation, classes=names, input=INPUT, **changes)  # type: ignore[arg-type]


def test_segmentation_answers_sigmoids() -> None:
    session = TorchSession(Fixed(torch.full((1, 1, 8, 8), -2.0)), spec(Task.SEGMENTATION, Activation.SIGMOID, 1))
    answer = session.run(batch())
    assert (answer.shape, answer.dtype) == ((2, 1, 8, 8), np.float32)
    assert answer == pytest.approx(1 / (1 + np.e**2))
    assert session.logits(batch()) == pytest.approx(-2.0)
    assert session.decoder is None


def test_classification_answers_probabilities_that_sum_to_one() -> None:
    session = TorchSession(Fixed(torch.tensor([[0.0, 1.0, 2.0]])), spec(Task.CLASSIFICATION, Activation.SOFTMAX, 3))
    (answer,) = session.run_all(batch(4))
    assert (answer.shape, answer.dtype) == ((4, 3), np.float32)
    weights = np.exp([0.0, 1.0, 2.0])
    assert answer[0] == pytest.approx(weights / weights.sum(), abs=1e-6)


def test_multiclass_answers_labels_and_marks_what_is_not_finite() -> None:
    logits = torch.zeros(1, 3, 8, 8)
    logits[0, 2, :4] = 1.0
    logits[0, 1, 6:] = 5.0
    logits[0, 0, 0, 0], logits[0, 1, 0, 1], logits[0, 2, 0, 2] = torch.nan, torch.inf, -torch.inf
    session = TorchSession(Fixed(logits), spec(Task.MULTICLASS, Activation.ARGMAX, 3))
    answer = session.run(batch(1))
    assert (answer.shape, answer.dtype) == ((1, 1, 8, 8), np.uint8)
    assert answer[0, 0, 0, :4].tolist() == [NOT_FINITE] * 3 + [2]
    assert answer[0, 0, 1:, 0].tolist() == [2, 2, 2, 0, 0, 1, 1]


def test_a_prompted_network_is_two_sessions() -> None:
    prompted = spec(Task.PROMPTED, Activation.SIGMOID, 1, prompt=PromptSpec((3, 4, 4), 4))
    encoder = TorchSession(Prompted(), prompted)
    decoder = encoder.decoder
    assert decoder is not None
    assert decoder.decoder is None
    (embedding,) = encoder.run_all(batch(1) + 2)
    assert embedding.shape == (1, 3, 4, 4)
    assert embedding == pytest.approx(2.0), "no activation on an embedding"
    boxes = np.array([[[0, 0, 0, 3], [1, 1, 3, 5]]], np.float32)
    probability, iou = decoder.run_all(embedding, boxes)
    assert (probability.shape, iou.tolist()) == ((1, 2, 1, 4, 4), [[3.0, 4.0]])
    assert probability[0, :, 0, 0, 0] == pytest.approx([0.5, 1 / (1 + np.e**-2)])


def test_a_closed_session_refuses() -> None:
    session = TorchSession(Fixed(torch.zeros(1, 1, 8, 8)), spec(Task.SEGMENTATION, Activation.SIGMOID, 1))
    session.close()
    with pytest.raises(ModelRefused, match="closed"):
        session.run(batch())
