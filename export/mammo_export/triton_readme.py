"""What whoever writes a client is told: shapes of each model, and what happens before, between and after the calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mammo_runtime.backends.engine_files import Tensor
from mammo_runtime.bundle import Bundle
from mammo_runtime.spec import METADATA_KEY, Task

if TYPE_CHECKING:
    from mammo_export.triton import Served

AFTER: Mapping[Task, str] = {
    Task.SEGMENTATION: (
        "`probability` covers the network's grid: it is laid back onto the picture, compared with the frozen threshold "
        "{threshold:g}, and what is smaller than {area:g} cells of the grid is dropped"
    ),
    Task.PROMPTED: (
        "`probability` covers the network's grid for each box: it is laid back onto the picture and compared with the "
        "frozen threshold {threshold:g}, and what is smaller than {area:g} cells of the grid is dropped; `iou` is the "
        "model's own guess of the overlap, no probability"
    ),
    Task.MULTICLASS: "`labels` holds the number of the likeliest class of each cell; 255: a value was not finite",
    Task.CLASSIFICATION: "`probability` has one value for each class, in the order of labels.txt",
}


def readme_text(bundle: Bundle, models: Sequence[Served], left_out: Mapping[str, str], version: int) -> str:
    """Return the page as Markdown."""
    spec = bundle.spec
    lines = [
        f"# {spec.name} on Triton",
        "",
        "Research use only. Not a medical device.",
        "",
        "| model | graph | verdict | version | inputs | outputs | inputs in one call |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in models:
        verdict = bundle.precisions[one.key].get("verdict", "")
        batch = f"1 to {one.max_batch}" if one.max_batch else "as the shapes say"
        shown = (_shapes(one.inputs), _shapes(one.outputs))
        lines.append(f"| {one.name} | {one.key} | {verdict} | {version} | {shown[0]} | {shown[1]} | {batch} |")
    lines += ["", *(f"Left out: {key}: {why}." for key, why in left_out.items()), ""] if left_out else [""]
    lines += [
        f"The model's spec (JSON) is in its configuration, parameter `{METADATA_KEY}`: all below follows from it. "
        "Ask the server for it, so that a client never uses another spec than the server's model.",
        "",
        "## What a client does",
        "",
        *_steps(bundle),
        "",
        "In Python, `mammo_runtime.segmenter.segment(image, session, spec, boxes=boxes, decoder=decoder)` does it all "
        "but the calls: hand it, as `session` (and `decoder`), an object with `run_all(*arrays)`, which sends these "
        "to Triton as the inputs in the order above and returns the outputs in their order, and `run(batch)`, the only "
        "output of the only input. Whoever prepares pictures in another way gets other numbers than the export report.",
        "",
        "Answers of one picture alone and among others may differ in the last digits (report.html says how far): "
        "Triton puts requests together.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _steps(bundle: Bundle) -> list[str]:
    spec, size = bundle.spec, bundle.spec.input
    after = AFTER[spec.task].format(threshold=spec.threshold, area=spec.min_area_cells)
    grid = f"float32 [N, {size.channels}, {size.height}, {size.width}]"
    if spec.task is Task.PROMPTED:
        grid = f"float32 [1, {size.channels}, {size.height}, {size.width}]"
        assert spec.prompt is not None
        channels, height, width = spec.prompt.embedding
        steps = [
            f"prepare the picture as `mammo_runtime.preprocess.prepare` does: {grid}; send it to the encoder",
            f"keep the encoder's `embedding` float32 [1, {channels}, {height}, {width}] for the picture: further boxes "
            "of the same picture need the decoder only. It belongs to this model and version: never give it to "
            "another's decoder",
            "turn each box from the picture's pixels to the network's grid (`Prepared.placement.box_to_grid`): "
            "float32 [1, B, 4] with left, top, right, bottom",
            "send embedding and boxes to the decoder of the same precision",
        ]
    else:
        window = " (a window round each box)" if spec.takes_boxes else ""
        steps = [f"prepare the picture{window} as `mammo_runtime.preprocess.prepare` does: {grid}", "send it"]
    return [f"{number}. {step}." for number, step in enumerate([*steps, after], start=1)]


def _shapes(tensors: Sequence[Tensor]) -> str:
    sides = (", ".join("any" if side < 0 else str(side) for side in one.shape) for one in tensors)
    return ", ".join(f"{one.name} [{shown}]" for one, shown in zip(tensors, sides))
