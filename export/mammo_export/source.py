"""What is exported: a finished run with its trained network, or a bundle of which only the FP32 graph is at hand."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mammo_export.activation import with_spec
from mammo_export.files import Files, files_from_network, stored_files
from mammo_export.to_onnx import with_parent
from mammo_runtime.bundle import MANIFEST, read_bundle, vouched_for
from mammo_runtime.errors import ModelRefused
from mammo_runtime.spec import ModelSpec, Precision
from mammo_train import checkpoint, results
from mammo_train.config import TrainConfig
from mammo_train.torch_session import TorchSession

KEPT_GATES = ("parity", "form", "decoder_form")
"""Gates of an FP32 entry that are taken over from a bundle: without the trained network they cannot be repeated."""


@dataclass(frozen=True)
class Source:
    """The FP32 model, and what is known about it."""

    folder: Path
    """Holds model card, metrics and licence of the weights."""
    spec: ModelSpec
    """Of the FP32 graph: precision fp32, parent the checkpoint."""
    files: Files
    weights_sha256: str
    trained: TorchSession | None
    """None where only a bundle is at hand: parity with the trained network was proved when that was written."""
    recorded: Mapping[str, Any] = field(default_factory=dict)
    """The FP32 gates of that bundle."""
    ignore_codes: tuple[int, ...] = (0,)
    """Codes of multi-class masks that do not count, as the run was trained."""

    @property
    def fp32_sha256(self) -> str:
        """Of the FP32 file, which is the parent of every other precision."""
        return hashlib.sha256(self.files.model.SerializeToString()).hexdigest()

    def spec_of(self, precision: Precision) -> ModelSpec:
        """Return the spec that a graph of another precision carries."""
        if precision is Precision.FP32:
            return self.spec
        changed = {**self.spec.to_dict(), "precision": precision.value, "parent_sha256": self.fp32_sha256}
        return ModelSpec.from_dict(changed)


def open_source(folder: Path) -> Source:
    """Read a run or a bundle. Raises UsageError (run not finished) and ModelRefused (no run, a changed file)."""
    return _from_bundle(folder) if (folder / MANIFEST).is_file() else _from_run(folder)


def _from_run(run: Path) -> Source:
    network, trained = checkpoint.load_model(run)
    weights_sha256 = checkpoint.weights_sha256(run)
    # Through JSON, so that the spec compares equal to the one read back from the file.
    spec = ModelSpec.from_dict(with_parent(trained, weights_sha256).to_dict())
    # On the CPU even where there is a GPU: convolutions there round to TF32, far beyond the limit.
    files, session = files_from_network(network, spec), TorchSession(network, trained)
    return Source(run, spec, files, weights_sha256, session, ignore_codes=ignored_codes(run))


def ignored_codes(run: Path) -> tuple[int, ...]:
    """Return the codes of multi-class masks that do not count, as a run was trained."""
    config = results.read_config(run) if (run / results.CONFIG).is_file() else TrainConfig()
    return tuple(config.ignore_codes)


def _from_bundle(folder: Path) -> Source:
    bundle = read_bundle(folder)
    if Precision.FP32.value not in bundle.precisions:
        raise ModelRefused(f"{folder} holds no FP32 model, from which every other precision is made")
    entry = bundle.precisions[Precision.FP32.value]
    for name in (entry["file"], entry.get("prompt_decoder")):
        if name:
            vouched_for(bundle, folder / str(name))
    gates = {name: value for name, value in entry.get("gates", {}).items() if name in KEPT_GATES}
    if "parity" not in gates:
        raise ModelRefused(
            f"{folder} records no parity of its FP32 model with a trained network; export it from its run"
        )
    # The spec as this version writes it: fields that came later are added with their defaults.
    files = stored_files(bundle, entry)
    model, decoder = (None if g is None else with_spec(g, bundle.spec) for g in (files.model, files.decoder))
    assert model is not None
    return Source(folder, bundle.spec, Files(files.logits, model, decoder), bundle.spec.parent_sha256, None, gates)
