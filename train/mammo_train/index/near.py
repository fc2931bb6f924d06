"""Near-duplicates: a 255-bit perceptual hash that survives re-encoding, resizing and brightness, not mirroring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from mammo_runtime.errors import ImageError, UsageError
from mammo_runtime.mammogram import Modality
from mammo_runtime.readers import ReadOptions, read_image, sniff
from mammo_train.index.contract import IndexRow

SIDE, BLOCK = 64, 16
BITS = BLOCK * BLOCK - 1
NEAR_BITS = 40
"""Pictures whose hashes differ in at most this many of `BITS` bits are taken for copies of one picture.

Measured: BUSI's 190 known near-duplicate pairs lie at 0 to 62 bits, 188 of them within 40; grouped transitively all 190
come together, and 22 of the other 303,620 pairs with them: the eight looked at are copies too. Between different
mammograms the least distance is 54 (133 mini-MIAS films), 76 (66 DDSM films), 46 (131 CDD-CESM pictures) and 98 (57
crops of masses): left and right breast, or two patients, are not mistaken for copies.
"""
_FLAT = 1.0
"""Pictures with a smaller standard deviation in 8-bit levels are blank: their hash would be noise."""


def fingerprint(pixels: np.ndarray) -> np.ndarray | None:
    """Return the hash of a picture [rows, columns] or [rows, columns, 3] of any depth: bool [255]; None when blank.

    Signs of the 255 lowest cosine coefficients of the 64 x 64 picture about their median, without the mean.
    """
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    grey = small.mean(axis=2) if small.ndim == 3 else small
    if grey.std() * 255 / np.iinfo(pixels.dtype).max < _FLAT and grey.std() * 255 / max(grey.max(), 1) < _FLAT:
        return None
    low = cv2.dct(grey)[:BLOCK, :BLOCK].ravel()[1:]
    return np.asarray(low > np.median(low))


def near_pairs(prints: Sequence[np.ndarray | None], limit: int = NEAR_BITS) -> Iterator[tuple[int, int]]:
    """Yield (i, j), i < j, of the hashes that differ in at most `limit` bits; blank pictures are like nothing."""
    known = [k for k, bits in enumerate(prints) if bits is not None]
    if len(known) < 2:
        return
    signs = np.array([prints[k] for k in known], np.float32) * 2 - 1
    for start in range(0, len(known), 1024):  # in blocks: memory grows with the number of pictures, not its square
        distance = (BITS - signs[start : start + 1024] @ signs.T) / 2
        for row, column in np.argwhere(distance <= limit):
            if start + row < column:
                yield known[start + row], known[column]


def picture_fingerprint(row: IndexRow) -> np.ndarray | None:
    """Read a picture of an index and return its hash. Raises UsageError naming the file when it is unreadable."""
    # Colour pictures are read as they are, whatever their kind; DICOM files are mammograms.
    modality = Modality.MAMMOGRAPHY if sniff(row.image) == "DICOM" else Modality.HISTOPATHOLOGY
    try:
        return fingerprint(read_image(row.image, ReadOptions(modality=modality)).pixels)
    except ImageError as error:
        raise UsageError(f"{row.image}: {error}") from error


def near_duplicates(rows: Sequence[IndexRow]) -> list[tuple[IndexRow, IndexRow]]:
    """Return the pairs of near-identical pictures that stand in different folds. Reads every picture, one at a time."""
    pairs = near_pairs([picture_fingerprint(row) for row in rows])
    return [(rows[i], rows[j]) for i, j in pairs if rows[i].fold != rows[j].fold]


def check_near(rows: Sequence[IndexRow]) -> None:
    """Refuse folds that share near-identical pictures. Raises UsageError naming the first pair and their number."""
    pairs = near_duplicates(rows)
    if pairs:
        first, second = pairs[0]
        raise UsageError(
            f"leak: {first.image.name} (fold {first.fold}) and {second.image.name} (fold {second.fold}) are nearly the "
            f"same picture, one of {len(pairs)} such pairs; give both one patient or group"
        )
