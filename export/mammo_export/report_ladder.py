"""The parity ladder of the report: trained network → ONNX Runtime FP32 → lower precisions, every rung with numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mammo_export.gates import GATES
from mammo_export.report_tables import FLAGS, Cell, Row, Table, table
from mammo_export.report_words import (
    Entry,
    Evidence,
    change_words,
    counted,
    difference_of,
    entries,
    exponent,
    items_name,
    label,
    limit_words,
    listed,
    status,
)
from mammo_runtime.spec import Task

PARITY_WORDS: Mapping[str, str] = {
    "logit_error": "largest difference of a logit, as a part of the largest logit",
    "embedding_error": "largest difference of an embedding, as a part of the largest",
    "probability_error": "largest difference of a probability",
    "iou_error": "largest difference of a predicted IoU, as a part of the largest",
    "equal_pixels": "mask pixels equal, in the worst picture",
    "equal_labels": "labels equal, in the worst picture",
    "batch_difference": "an input alone and among others",
    "box_difference": "a box alone and among others",
    "batch_equal_labels": "labels equal alone and among others",
}
"""Field of `gates.Parity` → what it is, in the order of the page."""


def ladder(evidence: Evidence) -> Table | None:
    """Return the parity ladder: each rung compared with the one it was made from."""
    spec, known = evidence["spec"], entries(evidence)
    origin = known.get("fp32", {})
    parity = (origin.get("gates") or {}).get("parity")
    rows: list[Row] = [["Trained network", "–", parity["reference"] if parity else "PyTorch", "what all is judged by"]]
    how: tuple[str, ...]
    if parity:
        how = (
            f"{parity['measured']}, against the trained network",
            f"on {counted(parity['images'], 'pictures')}, {counted(parity['windows'], 'inputs')}",
        )
        rows.append([label("fp32"), _verdict(evidence, "fp32", origin), Cell(how), Cell(_parity_lines(parity))])
    elif origin:
        rows.append([label("fp32"), _verdict(evidence, "fp32", origin), "against the trained network",
                     "not on record in this bundle"])  # fmt: skip
    for key, entry in known.items():
        found = difference_of(entry)
        if key == "fp32" or found is None:
            continue
        how = (
            f"ONNX Runtime, against {label('fp32')}",
            f"on {counted(found['items'], items_name(spec))}, {found['n']} with a score",
            f"computed: {(entry.get('made') or {}).get('judged_on', 'the graph itself')}",
        )
        rows.append([label(key), _verdict(evidence, key, entry), Cell(how), Cell(_rung_lines(spec, key, entry, found))])
    rows.append([
        "Engine", "–", "TensorRT, against its own ONNX graph",
        "built and compared on the device that runs it, by mammo-export engine; recorded beside the engine",
    ])  # fmt: skip
    return table("Each rung against the one it was made from", ("Rung", "Verdict", "How", "Found"), rows)


def _verdict(evidence: Evidence, key: str, entry: Entry) -> Cell:
    return Cell((str(entry.get("verdict", "")),), status(evidence, key, entry)[0])


def _parity_lines(parity: Mapping[str, Any]) -> tuple[str, ...]:
    said = []
    for name, words in PARITY_WORDS.items():
        if parity.get(name) is not None:
            limit = parity.get("limits", {}).get(name, GATES[name].limit)
            value, most = exponent(parity[name]), exponent(limit, 0)
            if GATES[name].least:
                value, most = f"{parity[name]:.4%}", f"{limit:.2%}"
            said.append(f"{words}: {value} (limit {most})")
    said += [
        f"{words.lower()}: {listed(parity[name])}"
        for name, words in (
            *FLAGS.items(),
            ("untied", "Labels differ"),
            ("not_repeatable", "Two answers to one picture"),
        )
        if parity.get(name)
    ]
    if parity.get("windows_with_mask") is not None:
        said.append(f"the network marks something in {parity['windows_with_mask']} of {parity['windows']} inputs")
    return tuple(said)


def _rung_lines(spec: Mapping[str, Any], key: str, entry: Entry, found: Mapping[str, Any]) -> tuple[str, ...]:
    gates = entry["gates"]
    said = [change_words(spec, found)]
    if found.get("mean_absolute") is not None:
        said.append(f"mean size of the single changes {found['mean_absolute']:.4f}")
    if spec["task"] in (Task.SEGMENTATION.value, Task.PROMPTED.value):
        marked = found["found"]
        gone, new = len(found["vanished"]), len(found["appeared"])
        said.append(f"FP32 marks something in {marked}; masks that vanished {gone}, appeared {new}")
    if "batch_difference" in gates:
        said.append(f"an input alone and among others: {exponent(gates['batch_difference'])}")
    repeated = gates.get("repeats")
    if repeated:
        said.append(f"{repeated['runs']} repeats {'identical' if repeated['identical'] else 'NOT identical'}")
    not_finite = gates.get("not_finite")
    if not_finite is not None:
        said.append(f"NaN or infinite tensors: {listed(not_finite, 3)}")
    computed = (entry.get("made") or {}).get("computed_in")
    if computed:
        said.append(f"convolutions and matrix products in: {computed_words(computed)}")
    said.append(f"limits: {'; '.join(limit_words(key, spec))}")
    return tuple(said)


def computed_words(computed: Any) -> str:
    """Return "fp16 63, fp32 2" of counts by type, summed over a model's graphs."""
    graphs = [computed] if isinstance(computed, Mapping) else list(computed)
    total: dict[str, int] = {}
    for counts in graphs:
        for name, count in counts.items():
            total[name] = total.get(name, 0) + int(count)
    return ", ".join(f"{name} {count}" for name, count in sorted(total.items()))
