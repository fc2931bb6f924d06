"""A child process for codecs: what aborts, hangs or grows there fails one file and no more.

`call` sends one request (a JSON header and bytes) to the child and waits for the array. The child is started
on the first request, kept for the next ones and started again after it died. It is an own interpreter talking
over its standard streams: unlike multiprocessing's spawn it never imports the caller's main module, so it works
from a console script, a notebook or an unguarded script, on Windows too, and there is no resource tracker.
"""

from __future__ import annotations

import atexit
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from mammo_runtime.errors import UnreadableImage

TIMEOUT_S = 60.0
"""Longest time one frame may take; the slowest whole mammogram measured took half a second."""
MEMORY_LIMIT_BYTES = 4 * 1024**3
"""Address space of the child (POSIX only: Windows and macOS have no such limit)."""
_HEAD = struct.Struct("<IQ")
"""Length of the JSON text and of the bytes that follow it."""
_BOOT = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.path[:] = {path!r}; "
    "from mammo_runtime.readers import decoding_child; decoding_child.serve({memory!r})"
)


class _Child:
    """One running decoder process with its pipes."""

    def __init__(self) -> None:
        boot = _BOOT.format(path=[str(Path(p).absolute()) for p in sys.path], memory=MEMORY_LIMIT_BYTES)
        # One BLAS thread: each reserves address space, and the child computes nothing.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", boot],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise OSError("the decoder process has no pipes")
        self.pid = self._process.pid
        self._requests: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout

    def is_running(self) -> bool:
        """Say whether the process is still there."""
        return self._process.poll() is None

    def exchange(
        self, request: Mapping[str, Any], payload: bytes, timeout_s: float
    ) -> tuple[dict[str, Any], bytearray]:
        """Send one request and return the answer. Raises EOFError or OSError when the child is gone, TimeoutError."""
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        watchdog = threading.Timer(timeout_s, expire)
        watchdog.daemon = True
        watchdog.start()
        try:
            text = json.dumps({**request, "timeout_s": timeout_s}).encode()
            self._requests.write(_HEAD.pack(len(text), len(payload)) + text)
            self._requests.write(payload)
            self._requests.flush()
            text_bytes, payload_bytes = _HEAD.unpack(_read_exactly(self._answers, _HEAD.size))
            answer = dict(json.loads(_read_exactly(self._answers, text_bytes)))
            return answer, _read_exactly(self._answers, payload_bytes)
        except (EOFError, OSError):
            if expired.is_set():
                raise TimeoutError from None
            raise
        finally:
            watchdog.cancel()

    def stop(self, grace_s: float) -> None:
        """End the child: it leaves when its input closes, and is killed after `grace_s` seconds."""
        with suppress(OSError):
            self._requests.close()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()


_child: _Child | None = None
_lock = threading.Lock()


def call(request: Mapping[str, Any], payload: bytes, timeout_s: float = TIMEOUT_S) -> np.ndarray:
    """Run one decode in the child and return its array.

    `request` is JSON-ready and names the work (see `decoding_child`). Raises UnreadableImage when the codec
    refuses the data, crashes, exceeds `timeout_s` or the memory limit; the next call gets a fresh child.
    """
    global _child
    with _lock:
        try:
            if _child is not None and not _child.is_running():
                shut_down()  # it died between two files: not this file's fault
            if _child is None:
                _child = _start()
            answer, pixels = _child.exchange(request, payload, timeout_s)
        except TimeoutError:
            shut_down()
            raise UnreadableImage(
                f"the decoder did not finish within {timeout_s:g} s: the file is probably damaged"
            ) from None
        except (EOFError, OSError):
            shut_down()
            raise UnreadableImage("the decoder crashed on this file: it is probably damaged") from None
        except BaseException:  # KeyboardInterrupt in mid-answer: the pipe is out of step, so the child must go
            shut_down()
            raise
    if "error" in answer:
        raise UnreadableImage(str(answer["error"]))
    array = np.frombuffer(pixels, np.dtype(str(answer["dtype"])))
    return array.reshape(answer["shape"])


def _start() -> _Child:
    try:
        return _Child()
    except OSError as error:
        raise UnreadableImage(f"the decoder process cannot be started: {error.strerror or error}") from None


def child_pid() -> int | None:
    """Return the process id of the running child, None when there is none."""
    return None if _child is None else _child.pid


def shut_down(grace_s: float = 0.0) -> None:
    """End the child if there is one; the next `call` starts another."""
    global _child
    child, _child = _child, None
    if child is not None:
        child.stop(grace_s)


def _read_exactly(stream: IO[bytes], count: int) -> bytearray:
    """Read `count` bytes, or raise EOFError."""
    content = bytearray(count)
    view = memoryview(content)
    filled = 0
    while filled < count:
        step = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not step:
            raise EOFError
        filled += step
    return content


atexit.register(shut_down, 1.0)
if hasattr(os, "register_at_fork"):
    # A forked worker must not talk over its parent's pipes.
    def _forget_child() -> None:
        global _child, _lock
        _child, _lock = None, threading.Lock()

    os.register_at_fork(after_in_child=_forget_child)
