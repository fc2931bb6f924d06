"""From a bundle to engines, proved before they are written: hashes, build, what it computes in, what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mammo_runtime import __version__
from mammo_runtime.acceptance import GraphChecked, check_sessions
from mammo_runtime.backends.cuda import NO_GPU, Device, Driver, find_device, open_driver
from mammo_runtime.backends.engine import BuiltEngine, build_engine
from mammo_runtime.backends.engine_files import SUFFIX, EngineRecord, sha256_of, write_engine
from mammo_runtime.backends.engine_proof import proof_of, require_precision
from mammo_runtime.backends.engine_settings import EngineSettings, built_for, check_memory, check_settings, flags_of
from mammo_runtime.backends.onnx_wire import metadata_of
from mammo_runtime.backends.trt import TensorRTSession
from mammo_runtime.backends.trt_library import LIBRARIES, described, load_library, plan_version
from mammo_runtime.bundle import Bundle, load_key, read_bundle, vouched_for
from mammo_runtime.choice import choose
from mammo_runtime.errors import GateMissed, ModelRefused, UsageError
from mammo_runtime.ladder import Case, Ladder, Rung, climb, require_ladder
from mammo_runtime.manifest import ORIGIN
from mammo_runtime.session import SessionOptions
from mammo_runtime.spec import ModelSpec, Precision

Report = Callable[[str], None]
NOT_ON_CPU = (
    "ONNX Runtime computes half-precision QuantizeLinear wrongly on a CPU (microsoft/onnxruntime issue 22741); the "
    "export judged the same graph with FP32 scales"
)


@dataclass(frozen=True)
class Order:
    """What is to be built, checked against its bundle."""

    bundle: Bundle
    key: str
    spec: ModelSpec
    library: str
    settings: EngineSettings
    cases: tuple[Case, ...] = ()
    """Pictures to climb the ladder with; none: the bundle's acceptance files alone."""
    threads: int = 0

    @property
    def graphs(self) -> tuple[Path, ...]:
        """The ONNX files: one, of a prompted model encoder and decoder."""
        model = self.bundle.model_path(self.key)
        decoder = self.bundle.decoder_path(model)
        return (model,) if decoder is None else (model, decoder)


@dataclass(frozen=True)
class Built:
    """A plan with its record, not written yet."""

    plan: bytes
    record: EngineRecord
    engine: BuiltEngine


def engines_from_bundle(
    folder: Path,
    precision: Precision,
    target: Path,
    library: str = "tensorrt",
    settings: EngineSettings | None = None,
    cases: Sequence[Case] = (),
    report: Report = print,
) -> tuple[Path, ...]:
    """Build the engines of a bundle's precision and write them into `target`; returns the plans' paths.

    Nothing is written before all is proved, but for the picture of a failing case. Raises UsageError and ModelRefused
    (library, GPU, memory, settings, bundle or graph), GateMissed (precision, or answers that differ).
    """
    settings = settings or EngineSettings()
    bundle = read_bundle(folder)
    key = choose(bundle, "tensorrt", precision).key
    order = Order(bundle, key, bundle.spec_of(key), library, settings, tuple(cases))
    check_settings(library, settings)
    trt, device = load_library(library), find_device()
    if device is None and LIBRARIES[library].needs_gpu:
        raise ModelRefused(f"{described(trt)} builds on the GPU that the engine is for, and {NO_GPU}; "
                           "--trt tensorrt_rtx builds without one")  # fmt: skip
    driver = None if device is None else open_driver()
    report(f"{bundle.spec.name}: {key}, {described(trt)}, {built_for(settings, device)['words']}")
    built = [_build(order, path, trt, device, driver, report) for path in order.graphs]
    runs_here = driver is not None and settings.compute_capability in (None, device.architecture if device else None)
    if runs_here and driver is not None:
        built = _proved_running(order, built, trt, driver, target, report)
    else:
        built = [_proved_by_network(one, precision) for one in built]
        report("not run, so its answers are not proved: there is no GPU of this kind here")
    for one in built:
        report(f"{one.record.plan}: {_proof_line(one.record.proof)}")
    return tuple(write_engine(target, one.plan, one.record) for one in built)


def _build(order: Order, path: Path, trt: Any, device: Device | None, driver: Driver | None, report: Report) -> Built:
    onnx, metadata = _graph_bytes(order, path)
    check_memory(order.library, len(onnx), order.settings, device, None if driver is None else driver.memory()[0])
    label = order.spec.precision
    engine = build_engine(trt, onnx, order.spec, label, order.settings, report)
    report(f"{path.name}: built in {engine.seconds:.0f} s, {len(engine.plan) / 1e6:.1f} MB")
    family, version = plan_version(engine.plan)
    on = built_for(order.settings, device)
    kind = order.settings.compute_capability or on.get("architecture") or "sm_80-up"
    settings = {**vars(order.settings), "timing_cache": str(order.settings.timing_cache or "") or None}
    record = EngineRecord(
        plan=f"{path.stem}.{order.library}-{trt.__version__}.{kind}{SUFFIX}",
        plan_sha256=sha256_of(engine.plan),
        plan_version=f"{family} {version}",
        module=order.library,
        module_version=str(trt.__version__),
        precision=label.value,
        key=order.key,
        onnx={"file": path.name, "sha256": sha256_of(onnx), "bundle": order.bundle.spec.name},
        metadata=metadata,
        inputs=engine.inputs,
        outputs=engine.outputs,
        built_on=on,
        settings={**settings, "batch": list(order.settings.batch)},
        flags=flags_of(order.settings),
        warnings=engine.warnings,
        build_seconds=round(engine.seconds, 1),
        toolkit_version=__version__,
    )
    return Built(engine.plan, record, engine)


def _graph_bytes(order: Order, path: Path) -> tuple[bytes, dict[str, str]]:
    """Return a graph's bytes and metadata, both as the bundle promises. Raises ModelRefused."""
    vouched_for(order.bundle, path)
    onnx = path.read_bytes()
    # Hashed again: what is parsed is what was vouched for.
    if sha256_of(onnx) != order.bundle.files[path.relative_to(order.bundle.folder).as_posix()]:
        raise ModelRefused(f"{path} changed while it was read. Get the bundle again from its source")
    try:
        metadata = metadata_of(onnx)
    except ValueError as error:
        raise ModelRefused(f"{path.name} is not an ONNX file, or is damaged ({error}). Get it again") from error
    if ModelSpec.from_metadata(metadata) != order.spec:
        raise ModelRefused(f"{path} and the bundle carry different specs. Get the bundle again from its source")
    return onnx, metadata


def _proved_by_network(one: Built, label: Precision) -> Built:
    proof = proof_of(one.engine.promised)
    require_precision(proof, label)
    return replace(one, record=replace(one.record, proof=_proof_dict(one, proof.to_dict())))


def _proved_running(
    order: Order, built: Sequence[Built], trt: Any, driver: Driver, target: Path, report: Report
) -> list[Built]:
    """Load the engines, read their layers back, compare what they say with stored answers and the FP32 graph."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(TensorRTSession.from_plan(b.plan, b.record, trt, driver)) for b in built]
        proved = []
        for one, session in zip(built, sessions):
            proof = proof_of(one.engine.promised, session.layer_information(), session.layer_times())
            require_precision(proof, order.spec.precision)
            proved.append(replace(one, record=replace(one.record, proof=_proof_dict(one, proof.to_dict()))))
        checked = _stored_answers(order, sessions, report)
        ladder = _climbed(order, sessions, target, report)
    if checked is None and ladder is None:
        raise UsageError(
            f"nothing to prove the engine with: the bundle {order.bundle.folder.name} holds no acceptance files, and "
            "no pictures were given. Give some with --images FOLDER"
        )
    found = {
        "exported": _exported(order),
        "stored_answers": None if checked is None else checked.line,
        "climbed": None if ladder is None else ladder.to_dict(),
    }
    return [replace(one, record=replace(one.record, ladder=found)) for one in proved]


def _stored_answers(order: Order, sessions: Sequence[TensorRTSession], report: Report) -> GraphChecked | None:
    """Compare with what the bundle says its graph answered where it was made. Raises GateMissed."""
    if not order.bundle.acceptance:
        return None
    checked = check_sessions(order.bundle, order.key, sessions[0], sessions[1] if len(sessions) > 1 else None)
    report(f"engine against stored answers: {checked.line}")
    if checked.misses:
        raise GateMissed(f"the engine does not say what its graph said: {'; '.join(checked.misses)}. It was not kept")
    return checked


def _climbed(order: Order, sessions: Sequence[TensorRTSession], target: Path, report: Report) -> Ladder | None:
    """Climb from the FP32 graph in ONNX Runtime to the engine, on the pictures given. Raises GateMissed."""
    if not order.cases:
        return None
    with ExitStack() as stack:
        rungs = [_in_onnxruntime(order, ORIGIN, stack)]
        if order.key != ORIGIN:
            quantised = order.spec.precision is Precision.INT8
            own = f"ONNX Runtime {order.key}"
            rungs.append(
                Rung(own, order.key, None, why=NOT_ON_CPU) if quantised else _in_onnxruntime(order, order.key, stack)
            )
        rungs.append(Rung("engine", order.key, sessions[0], sessions[1] if len(sessions) > 1 else None))
        ladder = climb(order.spec, rungs, order.cases, target)
    for line in ladder.lines:
        report(line)
    require_ladder(ladder)
    return ladder


def _in_onnxruntime(order: Order, key: str, stack: ExitStack) -> Rung:
    name = f"ONNX Runtime {key}"
    try:
        model = stack.enter_context(load_key(order.bundle, key, "cpu", SessionOptions(threads=order.threads)))
    except ImportError as error:
        raise UsageError(f"to compare pictures, onnxruntime is needed ({error}): pip install onnxruntime; or leave "
                         "--images out, and the stored answers alone are compared") from error  # fmt: skip
    return Rung(name, key, model.session, model.decoder)


def _exported(order: Order) -> Mapping[str, Any]:
    """Return the ladder's lowest rungs, as the export measured them: torch → ONNX Runtime FP32 → this graph."""
    fp32, own = (order.bundle.precisions.get(key, {}).get("gates", {}) for key in (ORIGIN, order.key))
    return {"parity": fp32.get("parity"), "difference": own.get("difference")}


def _proof_dict(one: Built, proof: Mapping[str, Any]) -> dict[str, Any]:
    return {**proof, "network_types": dict(one.engine.types)}


def _proof_line(proof: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in proof["shares"].items())
    return f"computes in {shares} ({proof['basis']})"
