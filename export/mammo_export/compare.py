"""One comparison for each task: what the trained network and its graph said of one image, into the tally."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from mammo_export.gates import MAX_LOGIT_ERROR
from mammo_export.tally import Graphs, Seen, Tally
from mammo_runtime.segmenter import MAX_BATCH, Result
from mammo_runtime.session import Session
from mammo_runtime.spec import ModelSpec, Task


def compare_segmentation(tally: Tally, seen: Seen) -> None:
    """Logits, probabilities, and the masks at original resolution."""
    _compare_windows(tally, seen)
    if seen.trained.answer is not None and seen.graph.answer is not None:
        for wanted, output in _outputs(seen):
            tally.note("probability_error", float(np.abs(wanted - output).max()), seen.name)
        _compare_masks(tally, seen.name, seen.trained.answer, seen.graph.answer)


def compare_labels(tally: Tally, seen: Seen) -> None:
    """Logits and labels; where labels differ, the trained network's two best logits must tie."""
    expected = _compare_windows(tally, seen)
    if seen.trained.answer is None or seen.graph.answer is None:
        return
    for logits, (wanted, output) in zip(expected, _outputs(seen), strict=True):
        tally.classes |= set(np.unique(wanted).tolist())
        differs = wanted != output
        tally.note("equal_labels", 1 - float(differs.mean()), seen.name)
        second, best = np.sort(logits, axis=1)[:, -2:].swapaxes(0, 1)
        ties = best - second <= 2 * MAX_LOGIT_ERROR * float(np.abs(logits).max())
        certain = int((differs[:, 0] & ~ties).sum())
        if certain:
            tally.faults["untied"].append(f"{seen.name} ({certain} pixels)")


def compare_classes(tally: Tally, seen: Seen) -> None:
    """Logits, probabilities and the predicted class."""
    _compare_windows(tally, seen)
    if seen.trained.answer is None or seen.graph.answer is None:
        return
    for wanted, output in _outputs(seen):
        tally.note("probability_error", float(np.abs(wanted - output).max()), seen.name)
        before, after = int(wanted.argmax()), int(output.argmax())
        tally.classes.add(before)
        if before != after:
            names = seen.spec.classes
            tally.faults["changed_class"].append(f"{seen.name} ({names[before]} became {names[after]})")


def compare_prompted(tally: Tally, seen: Seen) -> None:
    """Embedding, logits, probabilities, predicted IoU and the masks of all boxes, each side from end to end."""
    trained, graph, decoder = seen.trained, seen.graph, seen.graphs.decoder
    assert trained.decoder is not None
    assert graph.decoder is not None
    assert decoder is not None
    for (wanted,), (output,) in zip(trained.model.outputs, graph.model.outputs, strict=True):
        tally.note_relative("embedding_error", wanted, output, seen.name, "embedding")
    _repeat(tally, seen.name, graph.model.inputs, graph.model.outputs, seen.graphs.model)
    _repeat(tally, seen.name, graph.decoder.inputs, graph.decoder.outputs, decoder)
    if trained.answer is None or graph.answer is None:
        return
    reference = seen.reference.decoder
    assert reference is not None
    calls = zip(trained.decoder.inputs, trained.decoder.outputs, graph.decoder.inputs, graph.decoder.outputs,
                strict=True)  # fmt: skip
    for asked, (probability, iou), asked_graph, (probability_graph, iou_graph) in calls:
        logits, logits_graph = reference.logits(*asked), seen.graphs.logits.run_all(*asked_graph)[0]
        tally.note_relative("logit_error", logits, logits_graph, seen.name, "logits")
        tally.note_relative("iou_error", iou, iou_graph, seen.name, "predicted IoU")
        tally.note("probability_error", float(np.abs(probability - probability_graph).max()), seen.name)
        if not tally.first_inputs:
            tally.first_inputs.append(asked_graph)
    _compare_masks(tally, seen.name, trained.answer, graph.answer)


COMPARE: Mapping[Task, Callable[[Tally, Seen], None]] = {
    Task.SEGMENTATION: compare_segmentation,
    Task.MULTICLASS: compare_labels,
    Task.CLASSIFICATION: compare_classes,
    Task.PROMPTED: compare_prompted,
}


def at_the_end(tally: Tally, graphs: Graphs, spec: ModelSpec) -> dict[str, float | int]:
    """Return what is measured once: inputs alone against the same in company, and how telling the images were."""
    if spec.task is Task.PROMPTED:
        return {"windows_with_mask": tally.masks, "box_difference": _box_difference(tally, graphs, spec)}
    batch = np.concatenate([inputs[0] for inputs in tally.first_inputs])
    batch = np.concatenate([batch, np.zeros_like(batch[:1])])
    alone, together = _alone_and_together(graphs.model, batch)
    if spec.task is Task.SEGMENTATION:
        return {"windows_with_mask": tally.masks, "batch_difference": _difference(alone, together)}
    if spec.task is Task.CLASSIFICATION:
        return {"classes_seen": len(tally.classes), "batch_difference": _difference(alone, together)}
    # Labels hide small differences, so that the logits must keep the limit too.
    logits_alone, logits_together = _alone_and_together(graphs.logits, batch)
    largest = float(np.abs(logits_alone).max()) or 1.0
    return {
        "classes_seen": len(tally.classes),
        "batch_difference": _difference(logits_alone, logits_together) / largest,
        "batch_equal_labels": float((alone == together).mean()),
    }


def _compare_windows(tally: Tally, seen: Seen) -> list[np.ndarray]:
    """Compare logits and repeat each call; returns the trained network's logits call by call."""
    graph, found = seen.graph.model, []
    room = MAX_BATCH - 1 - len(tally.first_inputs)
    tally.first_inputs += [(batch[k : k + 1],) for (batch,) in graph.inputs for k in range(len(batch))][:room]
    for (batch,) in graph.inputs:
        expected, measured = seen.reference.logits(batch), seen.graphs.logits.run(batch)
        tally.note_relative("logit_error", expected, measured, seen.name, "logits")
        found.append(expected)
    _repeat(tally, seen.name, graph.inputs, graph.outputs, seen.graphs.model)
    return found


def _outputs(seen: Seen) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (trained network's output, graph's output) of each call."""
    pairs = zip(seen.trained.model.outputs, seen.graph.model.outputs, strict=True)
    return [(wanted, output) for (wanted,), (output,) in pairs]


def _repeat(
    tally: Tally,
    name: str,
    inputs: list[tuple[np.ndarray, ...]],
    outputs: list[tuple[np.ndarray, ...]],
    session: Session,
) -> None:
    """Ask the graph again; a second answer that differs in one bit is a fault."""
    for asked, answered in zip(inputs, outputs, strict=True):
        again = session.run_all(*asked)
        if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(answered, again, strict=True)):
            tally.faults["not_repeatable"].append(name)


def _compare_masks(tally: Tally, name: str, expected: Result, measured: Result) -> None:
    tally.note("equal_pixels", float(np.mean(expected.mask == measured.mask)), name)
    # Whole images: {None} when something was found. With boxes: the numbers of those in which something was found.
    before = {finding.prompt_box for finding in expected.findings}
    after = {finding.prompt_box for finding in measured.findings}
    tally.masks += len(before)
    tally.faults["vanished"] += [_place(name, box) for box in sorted(before - after, key=str)]
    tally.faults["appeared"] += [_place(name, box) for box in sorted(after - before, key=str)]


def _alone_and_together(session: Session, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([session.run(batch[k : k + 1]) for k in range(len(batch))]), session.run(batch)


def _box_difference(tally: Tally, graphs: Graphs, spec: ModelSpec) -> float:
    """Ask for the first image's boxes and one round the whole grid, alone and together."""
    if graphs.decoder is None or not tally.first_inputs:
        return 0.0  # no usable answer at all: `unusable` says so
    embedding, boxes = tally.first_inputs[0]
    whole = np.array([[[0, 0, spec.input.width, spec.input.height]]], np.float32)
    boxes = np.concatenate([boxes, whole], axis=1)
    together = graphs.decoder.run_all(embedding, boxes)[0]
    alone = [graphs.decoder.run_all(embedding, boxes[:, k : k + 1])[0] for k in range(boxes.shape[1])]
    return _difference(np.concatenate(alone, axis=1), together)


def _difference(alone: np.ndarray, together: np.ndarray) -> float:
    """Return the largest difference; a NaN on both sides is none, since `unusable` names it already."""
    differences = np.abs(together - alone)[~(np.isnan(together) & np.isnan(alone))]
    return float(differences.max()) if differences.size else 0.0


def _place(name: str, box: int | None) -> str:
    return name if box is None else f"{name} box {box}"
