"""What every precision is made from and judged with: the FP32 model, the pictures, and what was found out so far."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice

import numpy as np
import onnx
import onnxruntime as ort

from mammo_export.calibration import Calibration
from mammo_export.desk import Desk
from mammo_export.difference import Difference, Item, difference
from mammo_export.files import opened
from mammo_export.memory import Memory
from mammo_export.score import scored
from mammo_export.source import Source
from mammo_export.tally import Recorder
from mammo_runtime.hashing import file_sha256
from mammo_runtime.segmenter import segment
from mammo_train.dataset import read_labelled, read_picture
from mammo_train.index import IndexRow

Report = Callable[[str], None]
Graphs = tuple[onnx.ModelProto, ...]
"""The graphs of a model: one, of a prompted model encoder and decoder."""
SAMPLES = 24
"""Calibration pictures on which values inside a graph are measured for FP16; every one costs a run with all tensors."""


@dataclass(frozen=True)
class Workshop:
    """One export at work."""

    source: Source
    rows: Sequence[IndexRow]
    """Validation pictures: every precision is judged on them at the frozen threshold, against FP32."""
    calibration: Calibration
    memory: Memory
    report: Report
    _known: dict[str, tuple[Item, ...]] = field(default_factory=dict)

    @cached_property
    def desk(self) -> Desk:
        """The validation pictures as all models see them."""
        return Desk(self.source.spec)

    @cached_property
    def rows_sha256(self) -> str:
        """What the judging depends on besides the graphs: pictures, masks, groups and kinds."""
        digest = hashlib.sha256()
        for row in self.rows:
            files = [row.image] if row.mask is None else [row.image, row.mask]
            named = f"{' '.join(map(file_sha256, files))} {row.name} {row.group} {row.kind} {row.spacing_mm}\n"
            digest.update(named.encode())
        return digest.hexdigest()

    @property
    def reference(self) -> tuple[Item, ...]:
        """What FP32 says of the validation pictures."""
        return self.items(self.source.files.shipped)

    def items(self, graphs: Graphs) -> tuple[Item, ...]:
        """Return what a model says of the validation pictures; the same graphs are asked once."""
        names = {"graphs": [sha256_of(graph) for graph in graphs], "rows": self.rows_sha256, "ort": ort.__version__}
        key = " ".join(names["graphs"])
        if key not in self._known:
            stored = self.memory.remembered({"what": "items", **names}, lambda: [asdict(i) for i in self._ask(graphs)])
            self._known[key] = tuple(Item(**item) for item in stored)
        return self._known[key]

    def judge(self, graphs: Graphs) -> Difference:
        """Compare a model with FP32 on the validation pictures."""
        return difference(self.reference, self.items(graphs))

    def inputs(self, graph: int, most: int = SAMPLES) -> Iterator[tuple[np.ndarray, ...]]:
        """Yield what graph number `graph` of the FP32 model is given for calibration pictures (and their boxes)."""
        return islice(self._inputs(graph), most)

    def _ask(self, graphs: Graphs) -> tuple[Item, ...]:
        with ExitStack() as stack:
            model, *decoders = (stack.enter_context(opened(graph)) for graph in graphs)
            decoder = decoders[0] if decoders else None
            spec, codes = self.source.spec, self.source.ignore_codes
            return scored(spec, model, decoder, self.rows, desk=self.desk, ignore_codes=codes)

    def _inputs(self, graph: int) -> Iterator[tuple[np.ndarray, ...]]:
        if len(self.source.files.shipped) == 1:
            yield from ((batch,) for batch in self.calibration.batches())
            return
        spec = self.source.spec
        with ExitStack() as stack:
            sessions = [stack.enter_context(opened(one)) for one in self.source.files.shipped]
            for row in self.calibration.rows:
                recorders = [Recorder(session) for session in sessions]
                boxes = read_labelled(row, spec.modality).boxes
                segment(read_picture(row, spec.modality), recorders[0], spec, boxes=boxes, decoder=recorders[1])
                yield from recorders[graph].inputs


def sha256_of(graph: onnx.ModelProto) -> str:
    """Return the hash of a graph's bytes, as its file would have."""
    return hashlib.sha256(graph.SerializeToString()).hexdigest()
