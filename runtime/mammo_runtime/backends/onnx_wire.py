"""A look into an ONNX file's bytes, without the `onnx` package: outside tensors, metadata, half-precision Q/DQ.

ONNX Runtime resolves external tensor data of a model given as bytes against the working directory and follows "../"
(measured with 1.31), so such files are refused before it sees them. The field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_MAX_DEPTH = 64
"""Sub-graphs nest through four messages each; no honest model comes near."""

# Message → field number → message it holds. Only what can lead to a tensor.
_HOLDS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_METADATA, _KEY, _VALUE = 14, 1, 2
"""Of the model: its `metadata_props`, and what each of them holds."""
_GRAPH, _NODE, _INITIALISER = 7, 1, 5
_NODE_INPUT, _OPERATOR = 1, 4
_DATA_TYPE, _TENSOR_NAME, _FLOAT16 = 2, 8, 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def has_external_data(model: bytes) -> bool:
    """Tell whether any tensor of a serialised ONNX model points outside. Raises ValueError when it is no such model."""
    return _search(memoryview(model), "model", 0)


def metadata_of(model: bytes) -> dict[str, str]:
    """Return the custom metadata of a serialised ONNX model. Raises ValueError when it is no such model."""
    found: dict[str, str] = {}
    for number, entry in _fields(memoryview(model)):
        if number == _METADATA and not isinstance(entry, int):
            texts = {n: bytes(v).decode("utf-8") for n, v in _fields(entry) if not isinstance(v, int)}
            found[texts.get(_KEY, "")] = texts.get(_VALUE, "")
    return found


def quantises_in_half(model: bytes) -> bool:
    """Tell whether a QuantizeLinear of the main graph has a scale of half precision: TensorRT's INT8 beside FP16.

    ONNX Runtime computes it wrongly on a CPU (its issue 22741; measured with 1.31: overlap with the truth 0.56 where
    0.90 is right). Raises ValueError when it is no ONNX model.
    """
    halves: set[bytes] = set()
    scales: set[bytes] = set()
    for number, part in (one for graph in _messages(memoryview(model), _GRAPH) for one in _fields(graph)):
        if number == _INITIALISER and not isinstance(part, int) and (_DATA_TYPE, _FLOAT16) in _fields(part):
            halves |= set(map(bytes, _messages(part, _TENSOR_NAME)))
        elif number == _NODE and not isinstance(part, int) and [*_messages(part, _OPERATOR)] == [b"QuantizeLinear"]:
            scales |= set(map(bytes, [*_messages(part, _NODE_INPUT)][1:2]))
    return bool(halves & scales)


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield what the fields of this number hold: messages or texts."""
    for found, value in _fields(message):
        if found == number and not isinstance(value, int):
            yield value


def _search(message: memoryview, kind: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError("graphs are nested too deeply")
    for number, value in _fields(message):
        if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            return True
        held = _HOLDS[kind].get(number)
        if held is not None:
            if isinstance(value, int):
                raise ValueError(f"field {number} of {kind} is no message")
            if _search(value, held, depth + 1):
                return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a protobuf message; fixed-width numbers are passed over."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(message, position)
            yield number, value
        elif wire == _BYTES:
            length, position = _varint(message, position)
            if length > len(message) - position:
                raise ValueError("it ends in the middle of a field")
            yield number, message[position : position + length]
            position += length
        elif wire in (_FIXED64, _FIXED32):
            position += 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} does not occur in ONNX")
    if position != len(message):
        raise ValueError("it ends in the middle of a field")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it ends in the middle of a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number has more than 10 bytes")
