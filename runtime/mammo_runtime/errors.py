"""Every error a user can meet, with the exit code it leads to.

MammoError
├── UsageError          2  the call is wrong, or there is nothing to do
├── ImageError             about one input; the batch goes on (run ends with 3, or 4 if all failed)
│   ├── UnreadableImage    status "failed": broken, truncated, hostile, undecodable
│   ├── UnsuitableImage    status "skipped": a sound file this model must not see
│   ├── UnusableBox        status "failed": a box that was asked for and cannot be judged
│   └── InferenceFailed    status "failed": the model returned nonsense (NaN), never reported as "no finding"
├── OutputError         1  results cannot be written (disk full, folder read-only)
├── ModelRefused        5  model, engine or bundle does not match its promise
└── GateMissed          6  an export gate was missed
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command (shared by all four)."""

    DONE = 0
    INTERNAL = 1
    USAGE = 2
    SOME_FAILED = 3
    ALL_FAILED = 4
    MODEL_REFUSED = 5
    GATE_MISSED = 6
    INTERRUPTED = 130


EXIT_MEANING = {
    ExitCode.DONE: "all done",
    ExitCode.INTERNAL: "internal error",
    ExitCode.USAGE: "wrong call, or nothing to do",
    ExitCode.SOME_FAILED: "some inputs failed, the rest is done",
    ExitCode.ALL_FAILED: "all inputs failed",
    ExitCode.MODEL_REFUSED: "model, engine or bundle refused",
    ExitCode.GATE_MISSED: "a gate was missed",
    ExitCode.INTERRUPTED: "interrupted; run the same command again to finish the rest",
}


class MammoError(Exception):
    """Base of all errors raised on purpose. The message is one sentence: what, why, what to do."""

    exit_code = ExitCode.INTERNAL


class UsageError(MammoError):
    """The call is wrong, or there is nothing to do."""

    exit_code = ExitCode.USAGE


class ImageError(MammoError):
    """One input cannot be processed; the rest of the batch can.

    The message never holds patient data: no header values that could identify a person.
    """

    exit_code = ExitCode.SOME_FAILED
    status = "failed"


class UnreadableImage(ImageError):
    """The file is broken, truncated, hostile or in a form nobody here can decode."""


class UnsuitableImage(ImageError):
    """The file is sound, but not what this model may be shown (ultrasound, tomosynthesis, a report …)."""

    status = "skipped"


class UnusableBox(ImageError):
    """A box that was asked for cannot be judged: outside the picture, or on empty film."""


class InferenceFailed(ImageError):
    """The model's output for this image is not usable; it is never reported as "no finding"."""


class OutputError(MammoError):
    """Results cannot be written; continuing would lose them."""


class ModelRefused(MammoError):
    """The model file, engine or bundle does not match what it claims, or cannot serve this request."""

    exit_code = ExitCode.MODEL_REFUSED


class GateMissed(MammoError):
    """An export step measured something outside its limit; the file was not shipped."""

    exit_code = ExitCode.GATE_MISSED
