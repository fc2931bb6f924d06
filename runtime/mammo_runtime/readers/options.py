"""What a caller may choose about reading one image."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from mammo_runtime.mammogram import Modality


@dataclass(frozen=True)
class ReadOptions:
    """Choices for `read_image`; the defaults are right for a screening mammogram."""

    pixel_spacing_mm: float | None = None
    """Distance of pixel centres in mm, stated by the user; wins over the file's own value."""
    voi_index: int = 0
    """Which of the file's windows or VOI LUTs to use; 0 is the vendor's default."""
    allow_for_processing: bool = False
    """Accept raw detector images (Presentation Intent FOR PROCESSING)."""
    max_pixels: int = 50_000_000
    """Larger pictures are refused from their header, before anything is allocated."""
    modality: Modality = Modality.MAMMOGRAPHY
    """What the model takes; pictures of another kind are refused."""

    def __post_init__(self) -> None:
        spacing = self.pixel_spacing_mm
        if spacing is not None and not (isfinite(spacing) and spacing > 0):
            raise ValueError(f"pixel_spacing_mm must be a positive number of mm, got {spacing}")
        if self.voi_index < 0 or self.max_pixels < 1:
            raise ValueError("voi_index must not be negative, max_pixels must be positive")


MAX_SIDE_PX = 65_535
"""What DICOM can state; PNG encoders give up at a million."""


def checked_pixel_count(rows: int, columns: int, max_pixels: int) -> str | None:
    """Return why a picture of this size is refused (a clause without subject), or None when it is fine."""
    if rows < 1 or columns < 1:
        return "states no picture size"
    if max(rows, columns) > MAX_SIDE_PX:
        return f"states {rows} x {columns} pixels: no side may be longer than {MAX_SIDE_PX}"
    if rows * columns > max_pixels:
        return f"states {rows} x {columns} pixels, more than the limit of {max_pixels} pixels"
    return None
