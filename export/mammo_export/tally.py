"""What a parity proof collects while images pass by, and the sessions that remember what went through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np

from mammo_export.gates import FAULTS, GATES, Parity
from mammo_runtime.segmenter import Result
from mammo_runtime.session import Session
from mammo_runtime.spec import ModelSpec
from mammo_train.torch_session import TorchSession


class Recorder:
    """A session that remembers what went through it: the very tensors that `segment` made."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs: list[tuple[np.ndarray, ...]] = []
        self.outputs: list[tuple[np.ndarray, ...]] = []

    @property
    def metadata(self) -> Mapping[str, str]:
        """The recorded session's."""
        return self._session.metadata

    @property
    def backend(self) -> str:
        """The recorded session's."""
        return self._session.backend

    def run_all(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run and remember."""
        self.inputs.append(inputs)
        self.outputs.append(self._session.run_all(*inputs))
        return self.outputs[-1]

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run and remember; the only output."""
        self.inputs.append((batch,))
        self.outputs.append((self._session.run(batch),))
        return self.outputs[-1][0]

    def close(self) -> None:
        """Close the recorded session."""
        self._session.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Graphs:
    """The opened graphs of one model."""

    logits: Session
    """Without the activation; of a prompted model, the decoder's."""
    model: Session
    """As shipped; of a prompted model, the encoder."""
    decoder: Session | None = None
    """As shipped; of a prompted model only."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison, the trained network or its graph: its sessions, and what `segment` made of them."""

    model: Recorder
    decoder: Recorder | None
    answer: Result | None
    """None when the runtime refused the outputs."""


@dataclass(frozen=True)
class Seen:
    """One image as both sides saw it."""

    name: str
    spec: ModelSpec
    trained: Side
    graph: Side
    reference: TorchSession
    graphs: Graphs


@dataclass
class Tally:
    """Worst values with their images; `GATES` says what is worse."""

    images: int = 0
    windows: int = 0
    masks: int = 0
    classes: set[int] = field(default_factory=set)
    worst: dict[str, tuple[float, str]] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    """Of measures that are relative: the largest |value| of the trained network; `worst` holds differences then."""
    faults: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in FAULTS})
    first_inputs: list[tuple[np.ndarray, ...]] = field(default_factory=list)
    """Inputs of single images (prompted: embedding and boxes of the first image) for the batch gates."""

    def note(self, measure: str, value: float, image: str) -> None:
        """Keep a value if it is the worst so far."""
        if measure not in self.worst or GATES[measure].worse(value, self.worst[measure][0]):
            self.worst[measure] = (value, image)

    def note_relative(self, measure: str, expected: np.ndarray, measured: np.ndarray, image: str, what: str) -> bool:
        """Keep the largest difference of unbounded values; False, and a fault, where they cannot be compared."""
        usable = expected.shape == measured.shape and np.isfinite(expected).all() and np.isfinite(measured).all()
        if not usable:
            self.faults["unusable"].append(f"{image} ({what})")
            return False
        self.largest[measure] = max(self.largest.get(measure, 0.0), float(np.abs(expected).max()))
        self.note(measure, float(np.abs(expected - measured).max()), image)
        return True

    def to_parity(self, reference: str, measured: str, **more: Any) -> Parity:
        """Return the result; `more` are values measured once, at the end."""
        values: dict[str, Any] = {}
        for name, (value, image) in self.worst.items():
            values[name], values[f"{name}_image"] = value, image
            if name in self.largest:
                values[name] = value / self.largest[name] if self.largest[name] else float(value > 0)
        faults = {name: tuple(dict.fromkeys(names)) for name, names in self.faults.items()}
        return Parity(reference, measured, self.images, self.windows, **{**values, **faults, **more})
