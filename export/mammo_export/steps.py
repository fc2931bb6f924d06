"""From a trained run to a bundle, read from top to bottom; nothing is written before the gates are passed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from mammo_export.bundle import LICENCE, METRICS, MODEL_CARD, ProvenGraph, check_target, write_bundle
from mammo_export.gates import Parity, require_parity
from mammo_export.parity import prove_parity
from mammo_export.to_onnx import add_activation, check_form, logits_graph_from_network, with_parent, without_activation
from mammo_runtime.bundle import Bundle, load_model, read_bundle
from mammo_runtime.errors import ModelRefused
from mammo_runtime.hashing import file_sha256
from mammo_runtime.session import Session, open_session
from mammo_runtime.spec import ModelSpec, Precision
from mammo_train import checkpoint
from mammo_train.index import IndexRow
from mammo_train.torch_session import TorchSession

Report = Callable[[str], None]


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
    logits = logits_graph_from_network(network, spec)
    model = add_activation(logits, spec)
    check_form(model)
    content = model.SerializeToString()
    report(f"ONNX graph: {len(model.graph.node)} nodes, {len(content) / 1e6:.1f} MB; comparing on {len(rows)} images")
    # On the CPU even where there is a GPU: convolutions there round to TF32, far beyond the limit.
    parity = _measure(TorchSession(network, trained), logits, model, rows)
    report(parity_line(parity))
    require_parity(parity)
    proven = ProvenGraph(content, "passed", {"parity": parity.to_dict()})
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
    for precision in bundle.precisions:
        load_model(str(folder), "cpu", Precision(precision)).session.close()
        check_form(onnx.load(bundle.model_path(Precision(precision)), load_external_data=False))
        report(f"{precision}: form and spec as promised")
    if run is None:
        report("parity was not measured again: that needs --run, the run it was exported from")
        return None
    network, trained = checkpoint.load_model(run)
    if checkpoint.weights_sha256(run) != bundle.spec.parent_sha256:
        raise ModelRefused(f"{folder} was not exported from {run} (other weights). Give its own run to --run")
    model = onnx.load(bundle.model_path(Precision.FP32))
    parity = _measure(TorchSession(network, trained), without_activation(model), model, rows)
    report(parity_line(parity))
    require_parity(parity)
    return parity


def parity_line(parity: Parity) -> str:
    """Return the measurements in one line for people."""
    return (
        f"parity on {parity.images} images: logit error {parity.logit_error:.1e} of the largest, "
        f"mask pixels equal {parity.equal_pixels:.4%} in the worst image, "
        f"masks {parity.windows_with_mask} of {parity.windows}, "
        f"appeared {len(parity.appeared)}, vanished {len(parity.vanished)}, in a batch {parity.batch_difference:.1e}"
    )


def _measure(
    reference: TorchSession, logits: onnx.ModelProto, model: onnx.ModelProto, rows: Sequence[IndexRow]
) -> Parity:
    with opened(logits) as logits_session, opened(model) as model_session:
        return prove_parity(reference, logits_session, model_session, rows)


@contextmanager
def opened(graph: onnx.ModelProto) -> Iterator[Session]:
    """Open a graph with the runtime's own CPU backend, from a file as a site would. Raises ModelRefused."""
    with tempfile.TemporaryDirectory(prefix="mammo-export-") as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(graph.SerializeToString())
        with open_session(path, "cpu") as session:
            yield session
