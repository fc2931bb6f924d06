"""Swallows warnings and log lines of the reading libraries: they quote header values, which may be patient data."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_TALKATIVE_LOGGERS = ("pydicom", "pylibjpeg", "openjpeg")
_lock = threading.Lock()
_inside = 0
_undo = ExitStack()


@contextmanager
def silenced() -> Iterator[None]:
    """Keep the libraries quiet inside the block.

    Both switches are global to the process, so the first thread in sets them and the last one out restores them:
    a thread that finishes early must not let another one's warnings through.
    """
    global _inside
    with _lock:
        if _inside == 0:
            _undo.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            for name in _TALKATIVE_LOGGERS:
                logger = logging.getLogger(name)
                _undo.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.CRITICAL + 1)  # their child loggers inherit it
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _undo.close()
