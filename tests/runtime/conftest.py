"""Fixtures of the runtime's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from mammo_runtime.plan import RunSettings
from tiny_model import tiny_spec, write_bundle


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    """Return a run of the tiny segmentation model over an empty folder."""
    (tmp_path / "in").mkdir()
    model = write_bundle(tmp_path / "model", tiny_spec())
    return RunSettings((tmp_path / "in",), tmp_path / "out", str(model), threads=1)
