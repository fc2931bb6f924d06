"""Code masks of tissue: which codes a collection's masks hold, and what is said about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mammo_runtime.errors import UnreadableImage
from mammo_train.index import masks

RULE = "code 0 is ignored, code k is class k-1, and results are numbered from 0"
_LOSSY = (".jpg", ".jpeg")


def code_plane(path: Path) -> tuple[np.ndarray, bool]:
    """Return a code mask's codes uint8 [rows, columns], and whether its file holds just them.

    Grey stored as RGB is grey. Raises UnreadableImage for what is no code image: colours, a palette (which OpenCV
    reads as its colours), more than 8 bits, or JPEG, which changes codes.
    """
    need = "code masks must be 8-bit grey images (code 0 ignored, code k = class k-1)"
    if path.suffix.lower() in _LOSSY:
        raise UnreadableImage(f"the code mask {path.name} is a JPEG, which changes codes; {need}, as PNG")
    stored = masks.read_stored(path)
    plane = stored
    if stored.ndim == 3:
        colours, plane = stored[..., :3], stored[..., 0]
        if stored.shape[2] not in (3, 4) or (colours != plane[..., None]).any():
            raise UnreadableImage(
                f"the mask {path.name} is coloured, or has a palette; {need}: turn each colour into its code first"
            )
    if plane.dtype != np.uint8:
        raise UnreadableImage(f"the code mask {path.name} is {plane.dtype}; {need}")
    return np.ascontiguousarray(plane), stored.ndim == 2


@dataclass
class CodeCount:
    """The codes of all masks together."""

    pictures: Counter[int] = field(default_factory=Counter)
    """Code → masks that hold it."""
    pixels: Counter[int] = field(default_factory=Counter)

    def add(self, codes: np.ndarray) -> None:
        """Count one mask, uint8 [rows, columns]."""
        found = np.bincount(codes.ravel(), minlength=256)
        for code in np.flatnonzero(found).tolist():
            self.pictures[code] += 1
            self.pixels[code] += int(found[code])

    def classes(self) -> int:
        """Return how many classes a model needs for these masks: the highest code."""
        return max(self.pictures, default=0)

    def lines(self, own: bool) -> Sequence[str]:
        """Return what to tell the user; `own`: of pictures of one's own, whose code 0 may be meant as a class."""
        if not self.pictures:
            return []
        listed = ", ".join(
            f"{code} in {count}" + (" (ignored)" if code == 0 else "") for code, count in sorted(self.pictures.items())
        )
        told = [f"codes in the masks, and in how many pictures: {listed}; {RULE}"]
        if own and 0 in self.pictures:
            share = self.pixels[0] / sum(self.pixels.values())
            told.append(
                f"warning: {share:.1%} of the pixels have code 0, which is ignored; if 0 is a class of yours, "
                "add 1 to all codes"
            )
        absent = [code for code in range(1, self.classes()) if code not in self.pictures]
        if own and absent:
            named = ", ".join(map(str, absent[:5])) + (" …" if len(absent) > 5 else "")
            told.append(
                f"warning: no picture has code {named}; a model needs a class name for each of them all the same"
            )
        return told
