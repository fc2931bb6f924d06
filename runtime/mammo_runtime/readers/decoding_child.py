"""The child process of `isolation`: receives one frame at a time, decodes it, answers with the stored values.

Request: a JSON header with "transfer_syntax", "plugins", "options" (pydicom's decoding options), followed by
the encapsulated pixel data. Answer: {"dtype", "shape"} and the array's bytes, or {"error": one sentence}.

Test hook: a request {"fault": "abort" | "hang" | "memory" | "panic" | "noise"} makes the child misbehave in that way.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import struct
import sys
import time
import warnings
from typing import IO, Any

import numpy as np

_HEAD = struct.Struct("<IQ")


def serve(memory_limit_bytes: int) -> None:
    """Answer requests on standard input until it closes. Never raises for a bad frame."""
    requests = sys.stdin.buffer
    # Codecs print to standard output; keep the answers' pipe for ourselves and give them the null device.
    answers = os.fdopen(os.dup(1), "wb")
    if sys.platform == "win32":
        import msvcrt

        msvcrt.setmode(answers.fileno(), os.O_BINARY)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    warnings.simplefilter("ignore")
    _limit_memory(memory_limit_bytes)
    while True:
        head = requests.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return
        text_bytes, payload_bytes = _HEAD.unpack(head)
        request = json.loads(requests.read(text_bytes))
        payload = requests.read(payload_bytes)
        # Should the parent be killed during a hang, nobody is left to stop this process but itself.
        faulthandler.dump_traceback_later(float(request["timeout_s"]) + 5.0, exit=True, file=null)
        try:
            pixels = _decode(request, payload)
            answer: dict[str, Any] = {"dtype": pixels.dtype.str, "shape": pixels.shape}
        except BaseException as error:  # a Rust panic arrives as a BaseException
            pixels, answer = np.empty(0, np.uint8), {"error": _sentence(error)}
        faulthandler.cancel_dump_traceback_later()
        _answer(answers, answer, pixels)


def _answer(answers: IO[bytes], answer: dict[str, Any], pixels: np.ndarray) -> None:
    text = json.dumps(answer).encode()
    answers.write(_HEAD.pack(len(text), pixels.nbytes) + text)
    answers.write(np.ascontiguousarray(pixels).data if pixels.size else b"")
    answers.flush()


def _sentence(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "decoding it needs more memory than allowed: the file is damaged or hostile"
    if isinstance(error, ModuleNotFoundError):
        return str(error)
    return f"the compressed picture is damaged: the decoder refused it ({type(error).__name__})"


def _decode(request: dict[str, Any], payload: bytes) -> np.ndarray:
    """Try the plug-ins in the pinned order; the first that succeeds gives the stored values."""
    if "fault" in request:
        return _misbehave(str(request["fault"]))
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    decoder = get_decoder(UID(str(request["transfer_syntax"])))
    failure: Exception | None = None
    plugins = [plugin for plugin, _ in request["plugins"] if plugin in decoder.available_plugins]
    if not plugins:
        packages = " or ".join(package for _, package in request["plugins"])
        raise ModuleNotFoundError(f"this compression needs a decoder that is not installed: pip install {packages}")
    for plugin in plugins:
        try:
            pixels, _ = decoder.as_array(
                payload, index=0, raw=request["raw"], decoding_plugin=plugin, **request["options"]
            )
            return pixels
        except MemoryError:
            raise
        except Exception as error:
            failure = failure or error
    raise failure or NotImplementedError


def _limit_memory(limit_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    try:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ValueError, OSError):  # a lower limit is set already, or the platform knows none
        pass


def _misbehave(fault: str) -> np.ndarray:
    """Stand in for a broken codec (tests only)."""
    if fault == "abort":
        os.abort()
    if fault == "segfault":
        ctypes.string_at(0)
    if fault == "hang":
        time.sleep(3600)
    if fault == "memory":
        return np.ones(1 << 40, np.uint8)
    if fault == "panic":
        raise type("PanicException", (BaseException,), {})
    os.write(1, b"a codec prints to standard output")
    return np.arange(6, dtype=np.uint16).reshape(2, 3)
