"""The proof of every task beyond binary segmentation: it passes for true graphs, and every planted fault is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest

from mammo_export.gates import GATES, MAX_BATCH_DIFFERENCE, Parity, require_parity
from mammo_export.words import parity_line
from mammo_runtime.errors import GateMissed, UsageError
from mammo_runtime.spec import METADATA_KEY, ModelSpec, Task
from mammo_train.index import IndexRow
from tiny_export import Exported, changed_weight, measured

Rows = tuple[IndexRow, ...]
TASKS = (Task.MULTICLASS, Task.CLASSIFICATION, Task.PROMPTED)
MEASURES: Mapping[Task, set[str]] = {
    Task.MULTICLASS: {"logit_error", "equal_labels", "batch_difference", "batch_equal_labels"},
    Task.CLASSIFICATION: {"logit_error", "probability_error", "batch_difference"},
    Task.PROMPTED: {"logit_error", "embedding_error", "probability_error", "iou_error", "equal_pixels",
                    "box_difference"},
}  # fmt: skip


@pytest.fixture(scope="module")
def proved(exported_tasks: dict[Task, Exported], rows: Rows) -> dict[Task, Parity]:
    return {task: measured(exported_tasks[task], rows) for task in TASKS}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.value)
def test_a_true_graph_passes(proved: dict[Task, Parity], task: Task) -> None:
    parity = proved[task]
    require_parity(parity)
    assert (parity.images, parity.windows) == ((3, 4) if task is Task.PROMPTED else (4, 4))
    values = json.loads(json.dumps(parity.to_dict(), allow_nan=False))
    assert {name for name in GATES if name in values} == set(values["limits"]) == MEASURES[task]
    assert 0 < values["logit_error"] < 1e-4
    assert not [name for name, value in values.items() if value in ([], "", None) and name.endswith("_image")]
    if task is Task.PROMPTED:
        assert parity.windows_with_mask == 4, "without masks the mask gates would prove nothing"
    else:
        assert parity.classes_seen == 3, "with one class the label gates would prove nothing"


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Task.MULTICLASS, ("labels equal 100.0000%", "classes seen 3 of 3, changed 0")),
        (Task.CLASSIFICATION, ("probability error", "classes seen 3 of 3, changed 0")),
        (
            Task.PROMPTED,
            (
                "on 3 images (1 without a lesion left out): ",
                "embedding error",
                "predicted IoU error",
                "masks 4 of 4",
                "among other boxes",
            ),
        ),
    ],
)
def test_the_report_says_what_the_task_has(
    proved: dict[Task, Parity], exported_tasks: dict[Task, Exported], task: Task, words: tuple[str, ...]
) -> None:
    line = parity_line(proved[task], exported_tasks[task].spec, 4)
    assert all(word in line for word in words), line
    assert ("left out" in line) == (task is Task.PROMPTED)
    assert "gave only" not in line


@pytest.mark.parametrize(("seen", "told"), [(1, True), (2, False)])
def test_the_report_warns_of_images_that_show_few_classes(
    proved: dict[Task, Parity], exported_tasks: dict[Task, Exported], seen: int, told: bool
) -> None:
    spec = exported_tasks[Task.CLASSIFICATION].spec
    line = parity_line(replace(proved[Task.CLASSIFICATION], classes_seen=seen, changed_class=("p0",)), spec, 4)
    assert f"classes seen {seen} of 3, changed 1" in line
    assert (f"the network gave only {seen} of its 3 classes" in line) is told


@pytest.mark.parametrize(
    ("task", "part", "named"),
    [
        (Task.MULTICLASS, "logits", "logits"),
        (Task.MULTICLASS, "model", "graph"),
        (Task.CLASSIFICATION, "logits", "logits"),
        (Task.CLASSIFICATION, "model", "graph"),
        (Task.PROMPTED, "logits", "logits"),
        (Task.PROMPTED, "model", "graph"),
        (Task.PROMPTED, "decoder", "graph"),
    ],
)
def test_a_nan_weight_is_caught(
    exported_tasks: dict[Task, Exported], rows: Rows, task: Task, part: str, named: str
) -> None:
    true = exported_tasks[task]
    wrong = changed_weight(getattr(true, part), np.nan)
    with pytest.raises(GateMissed, match=rf"no usable output for .*p0 \({named}\)"):
        require_parity(measured(true, rows[:1], **{part: wrong}))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.value)
def test_a_changed_weight_is_caught(exported_tasks: dict[Task, Exported], rows: Rows, task: Task) -> None:
    true = exported_tasks[task]
    with pytest.raises(GateMissed, match=r"logits differ by \S+ of the largest logit on p0"):
        require_parity(measured(true, rows[:1], logits=changed_weight(true.logits, 0.5)))


def test_one_flipped_label_is_caught(exported_tasks: dict[Task, Exported], rows: Rows) -> None:
    def flipped(labels: np.ndarray) -> np.ndarray:
        labels = labels.copy()
        labels[..., 20, 20] = (labels[..., 20, 20] + 1) % 3
        return labels

    parity = measured(exported_tasks[Task.MULTICLASS], rows, altered={"answer": flipped})
    assert parity.equal_labels == pytest.approx(1 - 1 / 64**2)
    assert parity.untied == tuple(f"p{k} (1 pixels)" for k in range(4))
    with pytest.raises(GateMissed, match=r"only 99\.97\d+% of labels .*trained network is certain: p0 \(1 pixels\)"):
        require_parity(parity)


def test_a_label_may_differ_where_two_classes_tie(exported_tasks: dict[Task, Exported], rows: Rows) -> None:
    import torch

    class Tie(torch.nn.Module):
        """Classes 0 and 1 are always equal, class 2 is never seen."""

        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor([[[1.0]], [[1.0]], [[-9.0]]]))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return (2 + image[:, :1]) * self.factor

    true = exported_tasks[Task.MULTICLASS]
    zeros = {"answer": lambda labels: np.zeros_like(labels)}
    ones = {"answer": lambda labels: np.ones_like(labels)}
    tied = measured(true, rows[:1], network=Tie(), altered=ones)
    assert (tied.untied, tied.equal_labels) == ((), 0.0)
    assert any("labels are equal" in miss for miss in tied.misses()), "too many ties are a miss all the same"
    assert measured(true, rows[:1], network=Tie(), altered=zeros).equal_labels == 1.0


def test_labels_that_no_class_has_are_caught(exported_tasks: dict[Task, Exported], rows: Rows) -> None:
    beyond = {"answer": lambda labels: labels + np.uint8(3)}
    parity = measured(exported_tasks[Task.MULTICLASS], rows[:1], altered=beyond)
    assert parity.unusable == ("p0 (graph)",)


def test_swapped_classes_are_caught(exported_tasks: dict[Task, Exported], rows: Rows) -> None:
    true = exported_tasks[Task.CLASSIFICATION]
    swapped = {"answer": lambda probability: np.ascontiguousarray(probability[:, ::-1])}
    with pytest.raises(GateMissed, match=r"another class is predicted for p\d \(\w+ became \w+\)"):
        require_parity(measured(true, rows, altered=swapped))
    for task in (Task.MULTICLASS, Task.CLASSIFICATION):
        spec = exported_tasks[task].spec
        other = replace(spec, classes=spec.classes[::-1])
        with pytest.raises(GateMissed, match="other classes"):
            measured(exported_tasks[task], rows, altered={"spec": other})


@pytest.mark.parametrize("task", [Task.MULTICLASS, Task.CLASSIFICATION])
def test_images_that_influence_each_other_are_caught(
    exported_tasks: dict[Task, Exported], rows: Rows, task: Task
) -> None:
    def mixed(values: np.ndarray) -> np.ndarray:
        return values * np.float32(1 - 1e-3 * (len(values) - 1))

    fault = {"altered_logits" if task is Task.MULTICLASS else "altered": {"answer": mixed}}
    parity = measured(exported_tasks[task], rows[:1], **fault)
    assert parity.batch_difference is not None
    assert parity.batch_difference > MAX_BATCH_DIFFERENCE
    with pytest.raises(GateMissed, match="an image in a batch differs"):
        require_parity(parity)


def test_labels_that_change_in_a_batch_are_caught(exported_tasks: dict[Task, Exported], rows: Rows) -> None:
    def first_everywhere(labels: np.ndarray) -> np.ndarray:
        return labels if len(labels) == 1 else np.repeat(labels[:1], len(labels), axis=0)

    with pytest.raises(GateMissed, match="of an image's labels are the same in a batch"):
        require_parity(measured(exported_tasks[Task.MULTICLASS], rows, altered={"answer": first_everywhere}))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.value)
def test_a_graph_that_answers_differently_each_time_is_caught(
    exported_tasks: dict[Task, Exported], rows: Rows, task: Task
) -> None:
    calls = iter(range(1000))

    def unsteady(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values.flat[0] += values.dtype.type(1e-6 if values.dtype.kind == "f" else 1) * (next(calls) % 2)
        return values

    with pytest.raises(GateMissed, match="gave two answers: p0"):
        require_parity(measured(exported_tasks[task], rows[:1], altered={"answer": unsteady}))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"altered": {"answer": lambda e: e * np.float32(1.01)}}, r"embeddings differ by 0\.01 of the largest value"),
        ({"altered_decoder": {"answer": lambda p: p * np.float32(0.99)}}, r"probabilities differ by 0\.0\d+ on p0"),
        ({"altered_decoder": {"others": lambda iou: iou + 1}}, r"predicted IoUs differ by \S+ of the largest on p0"),
        ({"altered_decoder": {"others": lambda iou: iou * np.nan}}, r"no usable output for p0 \(graph\)"),
        ({"altered_decoder": {"answer": np.zeros_like}}, "the mask vanished on p0 box 1"),
        ({"altered_decoder": {"answer": lambda p: p[..., :8]}}, r"no usable output for p0 \(graph\)"),
    ],
)
def test_faults_of_a_prompted_pair_are_caught(
    exported_tasks: dict[Task, Exported], rows: Rows, fault: dict[str, object], words: str
) -> None:
    with pytest.raises(GateMissed, match=words):
        require_parity(measured(exported_tasks[Task.PROMPTED], rows[:1], **fault))


def test_boxes_that_influence_each_other_are_caught(exported_tasks: dict[Task, Exported], rows: Rows) -> None:
    def mixed(probability: np.ndarray) -> np.ndarray:
        return probability * np.float32(1 - 1e-3 * (probability.shape[1] - 1))

    with pytest.raises(GateMissed, match="a box among others differs"):
        require_parity(measured(exported_tasks[Task.PROMPTED], rows[:1], altered_decoder={"answer": mixed}))


def test_the_decoder_of_another_run_is_caught(exported_tasks: dict[Task, Exported], rows: Rows) -> None:
    true = exported_tasks[Task.PROMPTED]
    assert true.decoder is not None
    other = onnx.ModelProto()
    other.CopyFrom(changed_weight(true.decoder, 0.5))
    with pytest.raises(GateMissed, match="probabilities differ by"):
        require_parity(measured(true, rows[:1], decoder=other))
    onnx.helper.set_model_props(other, {METADATA_KEY: replace(true.spec, parent_sha256="0" * 64).to_json()})
    with pytest.raises(GateMissed, match="encoder and decoder carry different specs"):
        measured(true, rows[:1], decoder=other)


def test_a_prompted_model_is_proved_on_lesions_only(exported_tasks: dict[Task, Exported], rows: Rows) -> None:
    with pytest.raises(UsageError, match="an image with a lesion"):
        measured(exported_tasks[Task.PROMPTED], [row for row in rows if row.mask is None])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.value)
def test_the_spec_is_in_every_file(exported_tasks: dict[Task, Exported], task: Task) -> None:
    true = exported_tasks[task]
    for graph in true.files.shipped:
        metadata = {entry.key: entry.value for entry in graph.metadata_props}
        assert ModelSpec.from_metadata(metadata) == true.spec
