"""ONNX → engine, by TensorRT 10.3 to 11.x or TensorRT-RTX: one builder for all.

Always strongly typed: the precision is the graph's own, and what the builder took in is proved before it starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mammo_runtime.atomic import write_bytes
from mammo_runtime.backends.engine_files import Tensor
from mammo_runtime.backends.engine_proof import Layer, layers_of_network, proof_of, require_precision, types_of_network
from mammo_runtime.backends.engine_settings import MEGABYTE, EngineSettings, profile_of
from mammo_runtime.backends.onnx_wire import has_external_data
from mammo_runtime.backends.trt_library import described, make_log
from mammo_runtime.errors import ModelRefused, UsageError
from mammo_runtime.spec import ModelSpec, Precision

Report = Callable[[str], None]
TELL_EVERY_S = 5.0
CHANGED_MEANING = "Defaulting to INT8"
"""Of a parser's warning: unsigned eight bits (with zero point 0) are taken for signed ones, so that half of their range
is cut off. The parser returns success all the same (seen with TensorRT-RTX 1.4 and 1.7)."""


@dataclass(frozen=True)
class BuiltEngine:
    """A plan that was not written yet."""

    plan: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    promised: tuple[Layer, ...]
    """The computing layers of the typed network."""
    types: Mapping[str, int]
    """Data type → layers of the typed network."""
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class TakenIn:
    """A parsed graph."""

    builder: Any
    network: Any
    parser: Any
    """Owns the network's weights: it must live until the engine is built."""
    log: Any
    promised: tuple[Layer, ...]
    types: Mapping[str, int]


def take_in(trt: Any, onnx: bytes, label: Precision) -> TakenIn:
    """Parse a graph and prove that its typed network is what `label` says. Raises ModelRefused, GateMissed."""
    if has_external_data(onnx):
        raise ModelRefused("the graph keeps weights in other files; export it as a single file")
    log = make_log(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # a null pointer: what TensorRT answers where it finds no usable GPU
        raise ModelRefused(f"{described(trt)} cannot build here: it found no usable GPU ({log.said()})") from error
    # By name: the flag's number is 1 in TensorRT 10 and 0 in 11.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx):
        raise ModelRefused(f"{described(trt)} does not take the graph: {_parser_errors(parser, log)}")
    changed = [line for line in log.warnings if CHANGED_MEANING in line]
    if changed:
        raise ModelRefused(
            f"{described(trt)} would compute something else than the graph says, in its own words: {changed[0][:300]}. "
            "Export the bundle again"
        )
    promised = layers_of_network(network)
    require_precision(proof_of(promised), label)
    return TakenIn(builder, network, parser, log, promised, types_of_network(network))


def build_engine(
    trt: Any,
    onnx: bytes,
    spec: ModelSpec,
    label: Precision,
    settings: EngineSettings | None = None,
    report: Report = lambda line: None,
) -> BuiltEngine:
    """Build a graph (checked bytes of an ONNX file) with a TensorRT module.

    The caller has looked for a GPU where the module needs one. Raises ModelRefused (the parser or builder says no, with
    its own words), GateMissed (the typed network is not what `label` says), UsageError (a setting that does not fit).
    """
    settings, started = settings or EngineSettings(), time.perf_counter()
    graph = take_in(trt, onnx, label)
    builder, network, log = graph.builder, graph.network, graph.log
    taken = [network.get_input(k) for k in range(network.num_inputs)]
    profiles = {t.name: profile_of(t.name, tuple(t.shape), spec, settings) for t in taken}
    config = _configured(trt, builder, settings)
    if any(-1 in tuple(t.shape) for t in taken):
        profile = builder.create_optimization_profile()
        for tensor in taken:
            if -1 in tuple(tensor.shape):
                profile.set_shape(tensor.name, *profiles[tensor.name])
        config.add_optimization_profile(profile)
    monitor = _monitor(trt, report)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if plan is None:
        raise ModelRefused(f"{described(trt)} could not build the engine: {log.said()}{_advice(log.errors)}")
    _keep_timings(config, settings)
    given = [network.get_output(k) for k in range(network.num_outputs)]
    return BuiltEngine(
        bytes(plan),
        tuple(Tensor(t.name, t.dtype.name, tuple(t.shape), *profiles[t.name]) for t in taken),
        tuple(Tensor(t.name, t.dtype.name, tuple(t.shape)) for t in given),
        graph.promised,
        graph.types,
        tuple(dict.fromkeys(log.warnings)),
        time.perf_counter() - started,
    )


def _configured(trt: Any, builder: Any, settings: EngineSettings) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mb * MEGABYTE)
    config.builder_optimization_level = settings.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # On by default: FP32 products would be rounded to ten bits, and the label would be wrong.
    config.clear_flag(trt.BuilderFlag.TF32)
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if settings.compute_capability is not None:
        _aim(trt, config, settings.compute_capability)
    if settings.timing_cache is not None:
        _use_timings(config, settings.timing_cache)
    return config


def _aim(trt: Any, config: Any, capability: str) -> None:
    known = trt.ComputeCapability.__members__
    name = capability.upper().replace("_", "")
    if name not in known or name == "CURRENT":
        names = ", ".join(f"sm_{one[2:]}" for one in known if one.startswith("SM"))
        raise UsageError(f"{described(trt)} does not build for {capability}; it knows {names}")
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(known[name], 0):
        raise UsageError(f"{described(trt)} does not build for {capability}")


def _use_timings(config: Any, path: Path) -> None:
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UsageError(f"cannot read the timing cache {path}: {error.strerror}") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        raise UsageError(
            f"the timing cache {path} is damaged, or of another GPU or TensorRT version; name another, or delete it"
        )


def _keep_timings(config: Any, settings: EngineSettings) -> None:
    cache = config.get_timing_cache() if settings.timing_cache is not None else None
    if cache is not None and settings.timing_cache is not None:
        write_bytes(settings.timing_cache, bytes(cache.serialize()))


def _parser_errors(parser: Any, log: Any) -> str:
    """Return what the parser says, in one line: node, operator and reason of each error."""
    said = []
    for error in (parser.get_error(k) for k in range(parser.num_errors)):
        where = " ".join(part for part in (error.node_name(), f"({error.node_operator()})") if part and part != "()")
        said.append(f"{where}: {' '.join(error.desc().split())}" if where else " ".join(error.desc().split()))
    return "; ".join(dict.fromkeys(said))[:800] or log.said()


def _advice(errors: Sequence[str]) -> str:
    """Return what to do where the builder ran out of memory."""
    lines = " ".join(errors).lower()
    if "memory" in lines or "workspace" in lines:
        return ". Close other programs, lower --workspace and --batch, add swap space, or try --level 0"
    return ""


def _monitor(trt: Any, report: Report) -> Any:
    """Return a progress monitor; `.interrupted` says whether the person asked to stop."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._steps: dict[str, int] = {}
            self._started = self._told = time.perf_counter()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._steps[phase] = steps

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                now = time.perf_counter()
                if now - self._told >= TELL_EVERY_S:
                    self._told = now
                    report(f"{phase}: {step + 1} of {self._steps.get(phase, 0)} ({now - self._started:.0f} s)")
            except KeyboardInterrupt:
                # Raised in a call from TensorRT it would be lost; False stops the build.
                self.interrupted = True
            return not self.interrupted

        def phase_finish(self, phase: str) -> None:
            self._steps.pop(phase, None)

    return Monitor()
