"""What an index keeps together over folds, in words: patients, or groups of near-duplicates where nobody knows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

PATIENT: Final = "patient"
GROUP: Final = "near-duplicate group"
"""Values of `IndexRow.grouped_by`, and of "grouped_by" in records."""
NOT_PATIENTS: Final = "patients are not known: pictures of one patient may stand on both sides"


def common(grouped_by: Iterable[str]) -> str:
    """Return what rows are grouped by: patients only if all of them are."""
    return PATIENT if all(name == PATIENT for name in grouped_by) else GROUP


def units(grouped_by: str) -> str:
    """Return "patients" or "groups of near-duplicates"."""
    return "patients" if grouped_by == PATIENT else "groups of near-duplicates"


def counted(number: int, grouped_by: str) -> str:
    """Return "1 patient", "3 patients" or "3 groups of near-duplicates"."""
    if number == 1:
        return "1 patient" if grouped_by == PATIENT else "1 group of near-duplicates"
    return f"{number} {units(grouped_by)}"


def disjoint(grouped_by: str) -> str:
    """Return what the folds do not share."""
    shared = "folds share no patient and no picture"
    return (
        shared if grouped_by == PATIENT else f"folds share no group of near-duplicates and no picture; {NOT_PATIENTS}"
    )
