"""Bundles: a folder with a model, its spec and the hashes of every file. Hashes are checked before a file is opened."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from types import TracebackType
from typing import Any

from mammo_runtime.errors import ModelRefused
from mammo_runtime.hashing import file_sha256
from mammo_runtime.preprocess import check_cleaning
from mammo_runtime.session import Session, SessionOptions, open_session
from mammo_runtime.spec import ModelSpec, Precision, Task

MANIFEST = "bundle.json"
BUNDLE_SCHEMA_VERSION = 1
BUNDLED = Path(__file__).parent / "bundles"
MAX_MODEL_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Bundle:
    """A read and checked manifest."""

    folder: Path
    spec: ModelSpec
    files: Mapping[str, str]
    """File name → sha256."""
    precisions: Mapping[str, Mapping[str, Any]]
    """Precision → {"file": name, "verdict": …, measured gates}; of prompted models, "file" is the encoder and
    "prompt_decoder" names the decoder."""

    def model_path(self, precision: Precision) -> Path:
        """Return the graph of a precision. Raises ModelRefused when the bundle does not hold it."""
        if precision.value not in self.precisions:
            raise ModelRefused(
                f"the bundle {self.folder.name} holds no {precision.value} model; it has {', '.join(self.precisions)}"
            )
        return self.folder / str(self.precisions[precision.value]["file"])

    def decoder_path(self, model: Path) -> Path | None:
        """Return the decoder that belongs to the encoder `model`; None unless the task is prompted.

        Raises ModelRefused when the manifest names none for it.
        """
        if self.spec.task is not Task.PROMPTED:
            return None
        for entry in self.precisions.values():
            if self.folder / str(entry["file"]) == model and entry.get("prompt_decoder"):
                return self.folder / str(entry["prompt_decoder"])
        raise ModelRefused(
            f"{self.folder / MANIFEST} names no decoder for {model.name}: a prompted model is an encoder with its "
            "decoder. Give the bundle's folder as the model, or get the bundle again from its source"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what `mammo-infer --list-models --json` prints for this bundle."""
        size = self.spec.input
        return {
            "name": self.spec.name,
            "path": str(self.model_path(Precision.FP32)),
            "precisions": list(self.precisions),
            "input": {"mode": size.mode.value, "channels": size.channels, "height": size.height, "width": size.width},
            "task": self.spec.task.value,
            "classes": list(self.spec.classes),
            "modality": self.spec.modality.value,
            "architecture": self.spec.architecture,
            "licence": self.spec.licence,
        }


@dataclass(frozen=True)
class LoadedModel:
    """An open model with what is known about it. A context manager that closes its sessions."""

    session: Session
    """Of a prompted model: the encoder."""
    spec: ModelSpec
    sha256: str
    """Of the session's file."""
    notes: tuple[str, ...]
    decoder: Session | None = None
    """Of a prompted model only."""
    decoder_sha256: str | None = None

    def close(self) -> None:
        """Close the sessions. Closing twice is harmless."""
        self.session.close()
        if self.decoder is not None:
            self.decoder.close()

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest. Raises ModelRefused when it is missing, broken or names files outside the folder."""
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if values["schema_version"] != BUNDLE_SCHEMA_VERSION:
            raise ModelRefused(
                f"{folder / MANIFEST} has schema version {values['schema_version']!r}, "
                f"this runtime reads {BUNDLE_SCHEMA_VERSION}; export the model again"
            )
        files = {str(name): str(entry["sha256"]) for name, entry in values["files"].items()}
        bundle = Bundle(folder, ModelSpec.from_dict(values["spec"]), files, values["precisions"])
        named = [*files, *(str(p["file"]) for p in bundle.precisions.values())]
        named += [str(p["prompt_decoder"]) for p in bundle.precisions.values() if "prompt_decoder" in p]
    except OSError as error:
        if (folder / "model.safetensors").is_file():
            raise ModelRefused(
                f"{folder} is a training run: export it first, mammo-export {folder} -o BUNDLE"
            ) from error
        raise ModelRefused(f"{folder} is no bundle: cannot read {MANIFEST} ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelRefused(f"{folder / MANIFEST} is not valid ({type(error).__name__}: {error})") from error
    for name in named:
        # Windows rules see more ways out than POSIX's (drive letters, both slashes), so they are kept everywhere.
        inside = PureWindowsPath(name)
        if inside.anchor or ".." in inside.parts or not inside.parts:
            raise ModelRefused(f"{folder / MANIFEST} names a file outside the bundle: {name}")
    return bundle


def list_bundles() -> tuple[Bundle, ...]:
    """Return the bundles shipped with the package, by name."""
    return tuple(read_bundle(p.parent) for p in sorted(BUNDLED.glob(f"*/{MANIFEST}")))


def load_model(model: str, backend: str, precision: Precision, options: SessionOptions | None = None) -> LoadedModel:
    """Open a bundled model by name, or a bundle folder or ONNX file by path.

    Raises ModelRefused: unknown name, hash or spec differing from the manifest, no spec, unusable file.
    """
    path = Path(model)
    bundled = {b.spec.name: b for b in list_bundles()}
    known = ", ".join(bundled) or "the bundled ones (there are none here)"
    if model in bundled:
        return _load_from_bundle(bundled[model], bundled[model].model_path(precision), backend, options)
    # os.path, unlike Path, answers False where a name is too long or a folder closed.
    if os.path.isdir(path):  # noqa: PTH112
        bundle = read_bundle(path)
        return _load_from_bundle(bundle, bundle.model_path(precision), backend, options)
    if not os.path.isfile(path):  # noqa: PTH113
        raise ModelRefused(f"there is no model {model!r}: neither a file, a bundle folder, nor one of {known}")
    if (path.parent / MANIFEST).is_file():
        return _load_from_bundle(read_bundle(path.parent), path, backend, options)
    digest = model_sha256(path)
    session, spec = _opened(path, backend, options)
    if spec.task is Task.PROMPTED:
        session.close()
        raise ModelRefused(
            f"{path.name} is one half of the prompted model {spec.name}, which is an encoder and a decoder; "
            "give its bundle's folder as the model"
        )
    note = f"{path.name} has no {MANIFEST} beside it: its hash could not be checked"
    return LoadedModel(session, spec, digest, (note,))


def model_sha256(path: Path) -> str:
    """Return the sha256 of a model file. Raises ModelRefused when it is unreadable or larger than `MAX_MODEL_BYTES`."""
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise ModelRefused(f"{path.name} is larger than {MAX_MODEL_BYTES / 1e9:.0f} GB")
        return file_sha256(path)
    except OSError as error:
        raise ModelRefused(f"cannot read the model {path}: {error.strerror}") from error


def _load_from_bundle(bundle: Bundle, path: Path, backend: str, options: SessionOptions | None) -> LoadedModel:
    decoder_path = bundle.decoder_path(path)
    # All hashes before any file is opened.
    digest = _vouched_for(bundle, path)
    decoder_digest = None if decoder_path is None else _vouched_for(bundle, decoder_path)
    session = _opened_as(bundle, path, backend, options)
    if decoder_path is None:
        return LoadedModel(session, bundle.spec, digest, ())
    try:
        decoder = _opened_as(bundle, decoder_path, backend, options)
    except ModelRefused:
        session.close()
        raise
    return LoadedModel(session, bundle.spec, digest, (), decoder, decoder_digest)


def _vouched_for(bundle: Bundle, path: Path) -> str:
    """Return a file's sha256. Raises ModelRefused when it is not the one in the manifest."""
    expected, found = bundle.files.get(path.relative_to(bundle.folder).as_posix()), model_sha256(path)
    if expected != found:
        raise ModelRefused(
            f"{path} was changed since it was exported: its sha256 is {found[:16]}…, the bundle says "
            f"{'nothing about it' if expected is None else expected[:16] + '…'}. Get the bundle again from its source"
        )
    return found


def _opened_as(bundle: Bundle, path: Path, backend: str, options: SessionOptions | None) -> Session:
    """Open a file that must carry the manifest's own spec."""
    session, spec = _opened(path, backend, options)
    if spec != bundle.spec:
        session.close()
        raise ModelRefused(f"{path} and {MANIFEST} carry different specs. Get the bundle again from its source")
    return session


def _opened(path: Path, backend: str, options: SessionOptions | None) -> tuple[Session, ModelSpec]:
    """Open a model and read its spec; nothing stays open when the spec is refused."""
    session = open_session(path, backend, options)
    try:
        spec = ModelSpec.from_metadata(session.metadata)
        check_cleaning(spec.input)
    except ModelRefused:
        session.close()
        raise
    return session, spec
