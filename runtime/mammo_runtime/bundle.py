"""Bundles: a folder with a model, its spec and the hashes of every file. Hashes are checked before a file is opened."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from mammo_runtime.backends.onnx_wire import quantises_in_half
from mammo_runtime.choice import choose, require_backend
from mammo_runtime.errors import ModelRefused
from mammo_runtime.hashing import file_sha256
from mammo_runtime.manifest import BUNDLE_SCHEMA_VERSION, MANIFEST, Bundle, read_bundle
from mammo_runtime.preprocess import check_cleaning
from mammo_runtime.session import Session, SessionOptions, open_session
from mammo_runtime.spec import ModelSpec, Precision, Task

__all__ = [
    "BUNDLE_SCHEMA_VERSION", "MANIFEST", "Bundle", "LoadedModel", "list_bundles", "load_key", "load_model",
    "model_sha256", "read_bundle", "vouched_for",
]  # fmt: skip

BUNDLED = Path(__file__).parent / "bundles"
MAX_MODEL_BYTES = 2_000_000_000


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
    file: str = ""
    """Name of the session's file inside its bundle, or of the loose file."""
    why: str = ""
    """Why this file and no other, one sentence."""

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


def list_bundles() -> tuple[Bundle, ...]:
    """Return the bundles shipped with the package, by name."""
    return tuple(read_bundle(p.parent) for p in sorted(BUNDLED.glob(f"*/{MANIFEST}")))


def load_model(
    model: str, backend: str, precision: Precision | None = None, options: SessionOptions | None = None
) -> LoadedModel:
    """Open a bundled model by name, or a bundle folder or ONNX file by path; of a bundle, the graph `choose` names.

    `precision` None is "auto". A file runs as what its spec says, and is refused when another precision is asked for.
    Raises ModelRefused: unknown name, a precision that is not there, hash or spec differing from the manifest, no
    spec, unusable file.
    """
    path = Path(model)
    bundled = {b.spec.name: b for b in list_bundles()}
    known = ", ".join(bundled) or "the bundled ones (there are none here)"
    # os.path, unlike Path, answers False where a name is too long or a folder closed.
    if model in bundled or os.path.isdir(path):  # noqa: PTH112
        bundle = bundled[model] if model in bundled else read_bundle(path)
        chosen = choose(bundle, backend, precision)
        return replace(load_key(bundle, chosen.key, backend, options), why=chosen.why)
    if not os.path.isfile(path):  # noqa: PTH113
        raise ModelRefused(f"there is no model {model!r}: neither a file, a bundle folder, nor one of {known}")
    loaded = _load_file(path, backend, options)
    if precision in (None, loaded.spec.precision):
        return replace(loaded, why="this file was given as the model")
    loaded.close()
    raise ModelRefused(
        f"{path.name} is {loaded.spec.precision.value}, not {precision.value}: leave out --precision, or give the "
        "folder of a bundle that holds it as the model"
    )


def load_key(bundle: Bundle, key: str, backend: str = "cpu", options: SessionOptions | None = None) -> LoadedModel:
    """Open one graph of a bundle, whatever backends the manifest says it is for: also to check what is not to run here.

    Raises ModelRefused as `load_model` does.
    """
    return _load_from_bundle(bundle, bundle.model_path(key), backend, options, to_run=False)


def _load_file(path: Path, backend: str, options: SessionOptions | None) -> LoadedModel:
    """Open a file of a bundle, or one that no manifest vouches for, which runs as what its spec says."""
    if (path.parent / MANIFEST).is_file():
        return _load_from_bundle(read_bundle(path.parent), path, backend, options, to_run=True)
    digest = model_sha256(path)
    if backend == "cpu" and _is_for_tensorrt(path):
        raise ModelRefused(
            f"{path.name} is the form of INT8 that TensorRT takes, which a CPU computes wrongly; give its bundle's "
            "folder as the model"
        )
    session, spec = _opened(path, backend, options)
    if spec.task is Task.PROMPTED:
        session.close()
        raise ModelRefused(
            f"{path.name} is one half of the prompted model {spec.name}, which is an encoder and a decoder; "
            "give its bundle's folder as the model"
        )
    note = f"{path.name} has no {MANIFEST} beside it: its hash could not be checked"
    return LoadedModel(session, spec, digest, (note,), file=path.name)


def _is_for_tensorrt(path: Path) -> bool:
    try:
        return quantises_in_half(path.read_bytes())
    except ValueError:
        return False  # no ONNX file, which opening it tells better


def model_sha256(path: Path) -> str:
    """Return the sha256 of a model file. Raises ModelRefused when it is unreadable or larger than `MAX_MODEL_BYTES`."""
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise ModelRefused(f"{path.name} is larger than {MAX_MODEL_BYTES / 1e9:.0f} GB")
        return file_sha256(path)
    except OSError as error:
        raise ModelRefused(f"cannot read the model {path}: {error.strerror}") from error


def _load_from_bundle(
    bundle: Bundle, path: Path, backend: str, options: SessionOptions | None, to_run: bool
) -> LoadedModel:
    decoder_path = bundle.decoder_path(path)
    # All hashes before any file is opened.
    digest = vouched_for(bundle, path)
    decoder_digest = None if decoder_path is None else vouched_for(bundle, decoder_path)
    key = bundle.key_of(path)
    if to_run:
        require_backend(bundle, key, backend)
    promised = bundle.spec_of(key)
    file = path.relative_to(bundle.folder).as_posix()
    session = _opened_as(promised, path, backend, options)
    if decoder_path is None:
        return LoadedModel(session, promised, digest, (), file=file)
    try:
        decoder = _opened_as(promised, decoder_path, backend, options)
    except ModelRefused:
        session.close()
        raise
    return LoadedModel(session, promised, digest, (), decoder, decoder_digest, file)


def vouched_for(bundle: Bundle, path: Path) -> str:
    """Return a file's sha256. Raises ModelRefused when it is not the one in the manifest."""
    expected, found = bundle.files.get(path.relative_to(bundle.folder).as_posix()), model_sha256(path)
    if expected != found:
        raise ModelRefused(
            f"{path} was changed since it was exported: its sha256 is {found[:16]}…, the bundle says "
            f"{'nothing about it' if expected is None else expected[:16] + '…'}. Get the bundle again from its source"
        )
    return found


def _opened_as(promised: ModelSpec, path: Path, backend: str, options: SessionOptions | None) -> Session:
    """Open a file that must carry the spec that the manifest promises."""
    session, spec = _opened(path, backend, options)
    if spec == promised:
        return session
    session.close()
    again = "Get the bundle again from its source"
    if spec.precision is not promised.precision:
        raise ModelRefused(
            f"{path} is labelled {spec.precision.value}, {MANIFEST} lists it as {promised.precision.value}. {again}"
        )
    if replace(spec, parent_sha256=promised.parent_sha256) == promised:
        raise ModelRefused(f"{path} was made from another model than the one {MANIFEST} says. {again}")
    raise ModelRefused(f"{path} and {MANIFEST} carry different specs. {again}")


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
