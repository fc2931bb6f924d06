"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real images; they are not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real images are not here: {SHARED_DATA}")
    return SHARED_DATA
