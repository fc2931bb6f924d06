"""What both halves of the fake TensorRT use: knobs, the record of what was touched, tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOUCHED: set[tuple[str, str]] = set()
"""(Class, or "module"; member), as used so far."""
HEADER = b"ftrt" + bytes(20)
MARK = b"\0ONNX\0"


@dataclass
class Knobs:
    """What a test wants to go wrong."""

    version: tuple[int, ...] = (10, 3, 0, 26)
    network_type: str = "FLOAT"
    """What the one convolution of the parsed network reads."""
    engine_type: str = "Float"
    """The same as the built engine's inspector tells it."""
    parser_error: str = ""
    build_error: str = ""
    no_gpu: bool = False
    accepts: bool = True
    """Whether a plan is taken."""
    answer: Callable[[np.ndarray], np.ndarray] = lambda a: a
    """What becomes of an output."""
    interrupt: bool = False


class Recorded:
    """Notes every public member that is read or set."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            TOUCHED.add((type(self).__name__, name))
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            TOUCHED.add((type(self).__name__, name))
        object.__setattr__(self, name, value)


class Member:
    """A member of an enumeration."""

    def __init__(self, name: str, number: int = 0) -> None:
        self.name, self._number = name, number

    def __int__(self) -> int:
        return self._number


def enumeration(kind: str, **members: int) -> Any:
    return type(kind, (Recorded,), {name: Member(name, number) for name, number in members.items()})()


class ITensor(Recorded):
    def __init__(self, name: str, element: str, shape: Sequence[int] = ()) -> None:
        self._name, self._element, self._shape = name, element, shape

    name = property(lambda self: self._name)
    dtype = property(lambda self: Member(self._element))
    shape = property(lambda self: self._shape)


def tensors(values: Sequence[Any]) -> tuple[ITensor, ...]:
    element = {"tensor(float)": "FLOAT", "tensor(uint8)": "UINT8"}
    sides = lambda shape: tuple(side if isinstance(side, int) else -1 for side in shape)  # noqa: E731
    return tuple(ITensor(v.name, element[v.type], sides(v.shape)) for v in values)
