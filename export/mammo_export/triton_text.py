"""Text of Triton's configuration: protobuf's text form, written by hand, read back where tritonclient is installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from mammo_runtime.errors import OutputError

INDENT = "  "
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class Word(str):
    """Text that is written without quotes: a name of an enumeration."""


def config_text(config: Mapping[str, Any]) -> str:
    """Return a message as text. Values: str (quoted), `Word`, int, list of ints, mapping, list of mappings."""
    return "".join(f"{line}\n" for line in _lines(config))


def check_config(text: str, name: str) -> bool:
    """Read a configuration with tritonclient's protobuf; False where that is not installed.

    Raises OutputError when it cannot be read, or is of another model: an error of ours, found before a server does.
    """
    try:
        # By name: protobuf has no types of its own.
        text_format = importlib.import_module("google.protobuf.text_format")
        model_config_pb2 = importlib.import_module("tritonclient.grpc.model_config_pb2")
    except ImportError:
        return False
    try:
        read = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise OutputError(f"the configuration of {name} is not what Triton reads: {error}") from error
    if read.name != name:
        raise OutputError(f"the configuration of {name} names {read.name!r}")
    return True


def _lines(message: Mapping[str, Any]) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, Mapping):
            yield from _block(name, value)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for one in value:
                yield from _block(name, one)
        else:
            yield f"{name}: {_scalar(value)}"


def _block(name: str, message: Mapping[str, Any]) -> Iterator[str]:
    yield f"{name} {{"
    yield from (f"{INDENT}{line}" for line in _lines(message))
    yield "}"


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[ {', '.join(str(int(one)) for one in value)} ]"
    if isinstance(value, str) and not isinstance(value, Word):
        return quoted(value)
    return str(value)


def quoted(text: str) -> str:
    """Return text in quotes; control characters as three octal digits, all else as it is in UTF-8."""
    return f'"{"".join(map(_shown, text))}"'


def _shown(letter: str) -> str:
    unseen = ord(letter) < 32 or ord(letter) == 127
    return _ESCAPES.get(letter) or (f"\\{ord(letter):03o}" if unseen else letter)
