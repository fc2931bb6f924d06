"""The building half of the fake TensorRT: it takes in an ONNX file and packs it up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime as ort

from fake_trt_parts import HEADER, MARK, ITensor, Knobs, Member, Recorded, tensors


class ILayer(Recorded):
    def __init__(self, name: str, kind: str, inputs: Sequence[ITensor], output: ITensor) -> None:
        self._parts = name, Member(kind), inputs, output

    name = property(lambda self: self._parts[0])
    type = property(lambda self: self._parts[1])
    num_inputs = property(lambda self: len(self._parts[2]))
    num_outputs = property(lambda self: 1)

    def get_input(self, index: int) -> ITensor:
        return self._parts[2][index]

    def get_output(self, index: int) -> ITensor:
        return self._parts[3]


class INetworkDefinition(Recorded):
    _onnx = b""
    _layers: tuple[ILayer, ...] = ()
    _inputs: tuple[ITensor, ...] = ()
    _outputs: tuple[ITensor, ...] = ()

    num_layers = property(lambda self: len(self._layers))
    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]


class ParserError(Recorded):
    def __init__(self, text: str) -> None:
        self._text = text

    def node_name(self) -> str:
        return "conv"

    def node_operator(self) -> str:
        return "Conv"

    def desc(self) -> str:
        return self._text


class OnnxParser(Recorded):
    def __init__(self, knobs: Knobs, network: INetworkDefinition) -> None:
        self._knobs, self._network = knobs, network

    num_errors = property(lambda self: 1)

    def get_error(self, index: int) -> ParserError:
        return ParserError(self._knobs.parser_error)

    def parse(self, onnx: bytes) -> bool:
        knobs, network = self._knobs, self._network
        if knobs.parser_error:
            return False
        session = ort.InferenceSession(onnx, providers=["CPUExecutionProvider"])
        network._onnx = onnx
        network._inputs, network._outputs = tensors(session.get_inputs()), tensors(session.get_outputs())
        made = ITensor("logit", knobs.network_type)
        network._layers = (
            ILayer("conv", "CONVOLUTION", [ITensor("grey", knobs.network_type)], made),
            ILayer("sigmoid", "ACTIVATION", [made], ITensor("probability", "FLOAT")),
        )
        return True


class ITimingCache(Recorded):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return self._content or b"timings"


class IBuilderConfig(Recorded):
    _profiles: Mapping[str, Any] = {}
    _cache: ITimingCache | None = None
    builder_optimization_level = profiling_verbosity = hardware_compatibility_level = progress_monitor = None

    def set_memory_pool_limit(self, pool: Member, size: int) -> None: ...

    def set_flag(self, flag: Member) -> None: ...

    def clear_flag(self, flag: Member) -> None: ...

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles = profile._shapes
        return 0

    def create_timing_cache(self, content: bytes) -> ITimingCache:
        return ITimingCache(content)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return cache._content in (b"", b"timings")

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class IOptimizationProfile(Recorded):
    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, name: str, least: Sequence[int], best: Sequence[int], most: Sequence[int]) -> None:
        self._shapes[name] = [least, best, most]


class Builder(Recorded):
    def __init__(self, knobs: Knobs, log: Any) -> None:
        if knobs.no_gpu:
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._knobs, self._log = knobs, log

    def create_network(self, flags: int) -> INetworkDefinition:
        assert flags == 2, "10.x: STRONGLY_TYPED is bit 1"
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: Any) -> bytes | None:
        knobs, monitor = self._knobs, config.progress_monitor
        monitor.phase_start("Building engine", None, 2)
        if not monitor.step_complete("Building engine", 0):
            return None
        monitor.phase_finish("Building engine")
        if knobs.build_error:
            self._log.log(Member("ERROR"), knobs.build_error)
            return None
        head = HEADER + bytes(knobs.version)
        return head + json.dumps(config._profiles).encode() + MARK + network._onnx
