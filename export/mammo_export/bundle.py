"""Proven graphs → bundle folder. The format is read by `mammo_runtime.bundle`, which names its files and fields."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mammo_runtime import __version__
from mammo_runtime.bundle import BUNDLE_SCHEMA_VERSION, MANIFEST, Bundle, load_key, read_bundle
from mammo_runtime.errors import OutputError, UsageError
from mammo_runtime.spec import ModelSpec

MODEL_CARD, METRICS, LICENCE = "MODEL_CARD.md", "metrics.json", "LICENSE-WEIGHTS.md"
FROM_RUN = (MODEL_CARD, METRICS, LICENCE)
"""Copied from the run as they are, where it has them."""
TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "opencv-python-headless")
LEFTOVER, REPLACED = ".part", ".old"
"""Suffixes of the hidden folders beside the target while a bundle is built, and while it takes another's place."""


@dataclass(frozen=True)
class ProvenGraph:
    """A graph that passed its gates, of a prompted model both of its graphs."""

    content: bytes
    """The ONNX file: one file, spec in its metadata. Of a prompted model, the encoder."""
    verdict: str
    """In words, e.g. "passed"."""
    gates: Mapping[str, Any] = field(default_factory=dict)
    """Gate → what was measured with its limits, JSON-ready."""
    decoder: bytes | None = None
    """The second ONNX file of a prompted model, with the same spec."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What else the manifest says of it: precision, backends, how it was made, how fast it is."""


@dataclass(frozen=True)
class Extras:
    """What a bundle holds beside its graphs."""

    manifest: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of bundle.json, such as "not_shipped" and "calibration"."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Further files by their names inside the bundle; they go before those of the run."""


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a target folder that exists, or that is no bundle when it shall be overwritten. Raises UsageError.

    Ask before hours of work; `write_bundle` asks again.
    """
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{target} exists; give another folder to -o, or --overwrite")
    if not (target / MANIFEST).is_file():
        raise UsageError(f"{target} exists and is no bundle (no {MANIFEST} in it), so it is not overwritten")


def write_bundle(
    target: Path,
    spec: ModelSpec,
    graphs: Mapping[str, ProvenGraph],
    run: Path,
    weights_sha256: str,
    overwrite: bool = False,
    extras: Extras = Extras(),
) -> Bundle:
    """Write a bundle folder that appears whole or not at all, after reading it back through the runtime.

    `graphs` maps a key ("fp32", "fp16", "int8", "int8-cpu") to its graph; the file is `model.<key>.onnx`, a prompted
    model's second one `model.<key>.decoder.onnx`. The same inputs and tools give the same bytes. Raises UsageError
    (target exists), ModelRefused (what was written does not load or carries another spec), OutputError (disk full …).
    """
    target = target.resolve()
    check_target(target, overwrite)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}{LEFTOVER}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        temporary.mkdir()
        contents = {**files_from_run(run, spec), **extras.files, **_files_of(graphs)}
        manifest = {**_manifest(spec, graphs, contents, weights_sha256), **extras.manifest}
        contents[MANIFEST] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode("utf-8")
        for name, content in contents.items():
            _write(temporary / name, content)
        _read_back(temporary, graphs)
        _take_place(temporary, target)
    except OSError as error:
        raise OutputError(f"cannot write the bundle {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_bundle(target)


def toolchain() -> dict[str, str]:
    """Return the versions of what made the graph; a tool that is not installed is left out."""
    found = {"python": platform.python_version(), "mammo-edge": __version__}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> str:
    """Return the commit of the checkout a folder's tracked files belong to, "-dirty" if changed; else "unknown"."""
    git = ("git", "--no-optional-locks", "-C", str(folder))
    tracked = ("ls-files", "--error-unmatch", ".")  # a virtual environment inside somebody else's checkout is not it
    describe = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        subprocess.run([*git, *tracked], check=True, capture_output=True, timeout=10)
        answer = subprocess.run([*git, *describe], check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip() or "unknown"


def file_name(precision: str) -> str:
    """Return how the graph of a key is called."""
    return f"model.{precision}.onnx"


def decoder_name(precision: str) -> str:
    """Return how the second graph of a prompted model is called."""
    return f"model.{precision}.decoder.onnx"


def _files_of(graphs: Mapping[str, ProvenGraph]) -> dict[str, bytes]:
    contents = {file_name(precision): graph.content for precision, graph in graphs.items()}
    decoders = {decoder_name(p): graph.decoder for p, graph in graphs.items() if graph.decoder is not None}
    return {**contents, **decoders}


def _entry(precision: str, graph: ProvenGraph) -> dict[str, Any]:
    """Return what the manifest says of one precision."""
    decoder = {} if graph.decoder is None else {"prompt_decoder": decoder_name(precision)}
    entry = {"file": file_name(precision), **decoder, "verdict": graph.verdict, "gates": dict(graph.gates)}
    return {**entry, **graph.about}


def _manifest(
    spec: ModelSpec, graphs: Mapping[str, ProvenGraph], contents: Mapping[str, bytes], weights_sha256: str
) -> dict[str, Any]:
    return {
        "schema_version": BUNDLE_SCHEMA_VERSION,
        "spec": spec.to_dict(),
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in contents.items()
        },
        "precisions": {precision: _entry(precision, graph) for precision, graph in graphs.items()},
        "toolchain": toolchain(),
        "git_commit": git_commit(Path(__file__).parent),
        # The run's numbers are in its own file, hashed above: one place for each truth.
        "parent_run": {"weights_sha256": weights_sha256, "metrics": METRICS if METRICS in contents else None},
    }


def files_from_run(run: Path, spec: ModelSpec) -> dict[str, bytes]:
    """Return what a bundle takes over from its run (or from the bundle it is made from)."""
    contents = {name: (run / name).read_bytes() for name in FROM_RUN if (run / name).is_file()}
    if LICENCE not in contents and spec.licence:
        contents[LICENCE] = f"# Licence of the weights\n\n{spec.licence}\n".encode()
    return contents


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _read_back(folder: Path, graphs: Mapping[str, ProvenGraph]) -> None:
    """Load every graph as a site would: hashes, one-file form, and the spec inside against the manifest's."""
    bundle = read_bundle(folder)
    for key in graphs:
        load_key(bundle, key).close()


def _take_place(temporary: Path, target: Path) -> None:
    """Rename a finished folder to its name; a bundle already there is set aside first and put back on failure."""
    if not target.exists():
        temporary.rename(target)
        return
    aside = target.with_name(f".{target.name}{REPLACED}")
    target.rename(aside)
    try:
        temporary.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Tidy up after an export to this target that was killed; a bundle set aside comes back if nothing replaced it."""
    aside = target.with_name(f".{target.name}{REPLACED}")
    if aside.is_dir() and not target.exists():
        aside.rename(target)
    shutil.rmtree(aside, ignore_errors=True)
    for leftover in target.parent.glob(f".{_literal(target.name)}.*{LEFTOVER}"):
        shutil.rmtree(leftover, ignore_errors=True)


def _literal(name: str) -> str:
    """Return a file name with the glob characters in it escaped."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
