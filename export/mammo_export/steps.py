"""From a trained run to a bundle, read from top to bottom; nothing is written before the gates are passed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from mammo_export.activation import add_activation, with_spec, without_activation
from mammo_export.bundle import LICENCE, METRICS, MODEL_CARD, ProvenGraph, check_target, write_bundle
from mammo_export.form import check_form, form_line, form_of
from mammo_export.gates import Parity, require_parity
from mammo_export.parity import prove_parity
from mammo_export.tally import Graphs
from mammo_export.to_onnx import (
    decoder_graph_from_network,
    encoder_graph_from_network,
    logits_graph_from_network,
    with_parent,
)
from mammo_runtime.bundle import Bundle, load_model, read_bundle
from mammo_runtime.errors import ModelRefused
from mammo_runtime.hashing import file_sha256
from mammo_runtime.session import Session, open_session
from mammo_runtime.spec import ModelSpec, Precision, Task
from mammo_train import checkpoint
from mammo_train.index import IndexRow
from mammo_train.torch_session import TorchSession

Report = Callable[[str], None]


@dataclass(frozen=True)
class Files:
    """What a network became: the files of a bundle, and the graph they are proved with."""

    logits: onnx.ModelProto
    """Without the activation; of a prompted model, the decoder's."""
    model: onnx.ModelProto
    """As shipped; of a prompted model, the encoder."""
    decoder: onnx.ModelProto | None = None
    """As shipped; of a prompted model only."""

    @property
    def shipped(self) -> tuple[onnx.ModelProto, ...]:
        """The graphs that a bundle holds."""
        return (self.model,) if self.decoder is None else (self.model, self.decoder)


def bundle_from_run(
    run: Path, target: Path, rows: Sequence[IndexRow], overwrite: bool = False, report: Report = print
) -> Bundle:
    """Export a finished run as FP32, prove it on the images of `rows` and write the bundle.

    Raises UsageError (run not finished, target exists, no usable image), GateMissed (nothing is written then).
    """
    check_target(target, overwrite)
    network, trained = checkpoint.load_model(run)
    weights_sha256 = checkpoint.weights_sha256(run)
    # Through JSON, so that the spec compares equal to the one read back from the file.
    spec = ModelSpec.from_dict(with_parent(trained, weights_sha256).to_dict())
    report(f"{spec.name}: {spec.architecture}, {spec.input.mode.value} {spec.input.height}x{spec.input.width}")
    files = files_from_network(network, spec)
    for graph in files.shipped:
        check_form(graph)
    described = "; decoder: ".join(form_line(graph) for graph in files.shipped)
    report(f"ONNX graph: {described}; comparing on {len(rows)} images")
    # On the CPU even where there is a GPU: convolutions there round to TF32, far beyond the limit.
    parity = _measure(TorchSession(network, trained), files, rows)
    report(parity_line(parity, trained, len(rows)))
    require_parity(parity)
    proven = _proven(files, parity)
    bundle = write_bundle(target, spec, {Precision.FP32.value: proven}, run, weights_sha256, overwrite)
    missing = [name for name in (MODEL_CARD, METRICS, LICENCE) if name not in bundle.files]
    without = f"; the run has no {', '.join(missing)}" if missing else ""
    report(f"wrote {target}: {', '.join(sorted(bundle.files))}{without}")
    return bundle


def verify_bundle(folder: Path, run: Path | None, rows: Sequence[IndexRow], report: Report = print) -> Parity | None:
    """Repeat on this machine what was checked at export: hashes, specs, form; with the run, parity on `rows`.

    Returns the new measurements (None without a run). Raises ModelRefused (a file changed, is missing or is of
    another run) and GateMissed.
    """
    bundle = read_bundle(folder)
    for name, expected in bundle.files.items():
        try:
            unchanged = file_sha256(folder / name) == expected
        except OSError as error:
            raise ModelRefused(f"{folder / name} cannot be read: {error.strerror}") from error
        if not unchanged:
            raise ModelRefused(f"{folder / name} was changed since the export. Get the bundle again from its source")
    report(f"hashes: {len(bundle.files)} files unchanged")
    for precision in map(Precision, bundle.precisions):
        load_model(str(folder), "cpu", precision).close()
        for graph in _stored(bundle, precision).shipped:
            check_form(graph)
        report(f"{precision.value}: form and spec as promised")
    if run is None:
        report("parity was not measured again: that needs --run, the run it was exported from")
        return None
    network, trained = checkpoint.load_model(run)
    if checkpoint.weights_sha256(run) != bundle.spec.parent_sha256:
        raise ModelRefused(f"{folder} was not exported from {run} (other weights). Give its own run to --run")
    parity = _measure(TorchSession(network, trained), _stored(bundle, Precision.FP32), rows)
    report(parity_line(parity, trained, len(rows)))
    require_parity(parity)
    return parity


def files_from_network(network: nn.Module, spec: ModelSpec) -> Files:
    """Return a network as ONNX with the spec's activation, and the spec in the metadata of every file."""
    if spec.task is Task.PROMPTED:
        logits = decoder_graph_from_network(network, spec)
        return Files(logits, with_spec(encoder_graph_from_network(network, spec), spec), add_activation(logits, spec))
    logits = logits_graph_from_network(network, spec)
    return Files(logits, add_activation(logits, spec))


def parity_line(parity: Parity, spec: ModelSpec, chosen: int) -> str:
    """Return the measurements in one line for people; `chosen`: how many images were asked for."""
    changed = len(parity.changed_class) + len(parity.untied)
    measured = [
        ("logit error {:.1e} of the largest", parity.logit_error),
        ("embedding error {:.1e} of the largest", parity.embedding_error),
        ("probability error {:.1e}", parity.probability_error),
        ("predicted IoU error {:.1e} of the largest", parity.iou_error),
        ("mask pixels equal {:.4%} in the worst image", parity.equal_pixels),
        ("labels equal {:.4%} in the worst image", parity.equal_labels),
        (f"masks {{}} of {parity.windows}", parity.windows_with_mask),
        (f"classes seen {{}} of {len(spec.classes)}, changed {changed}", parity.classes_seen),
        ("appeared {}", None if parity.windows_with_mask is None else len(parity.appeared)),
        ("vanished {}", None if parity.windows_with_mask is None else len(parity.vanished)),
        ("in a batch {:.1e}", parity.batch_difference),
        ("among other boxes {:.1e}", parity.box_difference),
    ]
    told = ", ".join(words.format(value) for words, value in measured if value is not None)
    # Only models that take boxes leave images out.
    left = f" ({chosen - parity.images} without a lesion left out)" if chosen > parity.images else ""
    return f"parity on {parity.images} images{left}: {told}{_coverage(parity, spec)}"


def _coverage(parity: Parity, spec: ModelSpec) -> str:
    """Return a warning where the images show so few of the classes that equal labels say little, else nothing."""
    seen, known = parity.classes_seen, len(spec.classes)
    if seen is None or known == 1 or (seen > 1 and 2 * seen >= known):
        return ""
    more = "other images (--fold, --index, a higher --limit) would prove more"
    return f"; the network gave only {seen} of its {known} classes on these images: {more}"


def _proven(files: Files, parity: Parity) -> ProvenGraph:
    gates: dict[str, Any] = {"parity": parity.to_dict(), "form": form_of(files.model)}
    if files.decoder is None:
        return ProvenGraph(files.model.SerializeToString(), "passed", gates)
    gates["decoder_form"] = form_of(files.decoder)
    return ProvenGraph(files.model.SerializeToString(), "passed", gates, files.decoder.SerializeToString())


def _stored(bundle: Bundle, precision: Precision) -> Files:
    """Return a bundle's graphs of one precision. Raises GateMissed when they end in another activation."""
    model = onnx.load(bundle.model_path(precision), load_external_data=False)
    path = bundle.decoder_path(bundle.model_path(precision))
    if path is None:
        return Files(without_activation(model, bundle.spec), model)
    decoder = onnx.load(path, load_external_data=False)
    return Files(without_activation(decoder, bundle.spec), model, decoder)


def _measure(reference: TorchSession, files: Files, rows: Sequence[IndexRow]) -> Parity:
    with opened_files(files) as graphs:
        return prove_parity(reference, graphs, rows)


@contextmanager
def opened_files(files: Files) -> Iterator[Graphs]:
    """Open all graphs of a model as `opened` does."""
    with ExitStack() as stack:
        logits, model = (stack.enter_context(opened(graph)) for graph in (files.logits, files.model))
        decoder = None if files.decoder is None else stack.enter_context(opened(files.decoder))
        yield Graphs(logits, model, decoder)


@contextmanager
def opened(graph: onnx.ModelProto) -> Iterator[Session]:
    """Open a graph with the runtime's own CPU backend, from a file as a site would. Raises ModelRefused."""
    with tempfile.TemporaryDirectory(prefix="mammo-export-") as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(graph.SerializeToString())
        with open_session(path, "cpu") as session:
            yield session
