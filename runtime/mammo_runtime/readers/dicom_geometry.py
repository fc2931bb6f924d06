"""Millimetres, side and view from a DICOM header."""

from __future__ import annotations

from pydicom.dataset import Dataset

from mammo_runtime.mammogram import Laterality, View
from mammo_runtime.readers.dicom_header import items, numbers, text

LARGEST_SPACING_MM = 5.0
"""A 24 cm detector with pixels coarser than this would have fewer than 48 of them: a unit error."""
_CONTRADICTION = 0.01

# CID 4014 "View for Mammography": SNOMED CT code, then the older SRT code of the same concept.
_VIEW_CODES = {
    "399162004": View.CC, "R-10242": View.CC,
    "399368009": View.MLO, "R-10226": View.MLO,
    "399260004": View.ML, "R-10224": View.ML,
    "399352003": View.LM, "R-10228": View.LM,
    "399192008": View.XCCL, "R-1024A": View.XCCL,
    "399101009": View.XCCM, "R-1024B": View.XCCM,
    "399099002": View.LMO, "R-10230": View.LMO,
    "399196006": View.FB, "R-10244": View.FB,
}  # fmt: skip


def view_from_header(header: Dataset) -> View | None:
    """Return the view: View Code Sequence first, View Position as fallback, None when neither is known."""
    for item in items(header, "ViewCodeSequence"):
        view = _VIEW_CODES.get(text(item, "CodeValue"))
        if view is not None:
            return view
    position = text(header, "ViewPosition")
    return View(position) if position in View.__members__ else None


def laterality_from_header(header: Dataset) -> Laterality | None:
    """Return Image Laterality, else the series' Laterality; B (both) and unknown values give None."""
    side = text(header, "ImageLaterality") or text(header, "Laterality")
    return Laterality(side) if side in ("L", "R") else None


def spacing_from_header(
    header: Dataset, user_spacing_mm: float | None
) -> tuple[tuple[float, float] | None, str, tuple[str, ...]]:
    """Return ((rows, columns) in mm or None, its source, notes).

    Order: the user's value; Pixel Spacing that is calibrated or differs from the detector's; Imager Pixel Spacing
    divided by the Estimated Radiographic Magnification Factor; Imager Pixel Spacing; Nominal Scanned Pixel Spacing.
    """
    notes: list[str] = []
    from_file, source = _file_spacing(header, notes)
    if user_spacing_mm is None:
        return from_file, source, tuple(notes)
    if from_file and max(abs(mm / user_spacing_mm - 1) for mm in from_file) > _CONTRADICTION:
        notes.append(
            f"pixel spacing: the file states {from_file[0]:.4g} x {from_file[1]:.4g} mm ({source}), "
            f"the user {user_spacing_mm:.4g} mm, which is used"
        )
    return (user_spacing_mm, user_spacing_mm), "user", tuple(notes)


def _file_spacing(header: Dataset, notes: list[str]) -> tuple[tuple[float, float] | None, str]:
    pixel = _pair(header, "PixelSpacing", notes)
    imager = _pair(header, "ImagerPixelSpacing", notes)
    calibrated = bool(text(header, "PixelSpacingCalibrationType"))
    if pixel and (calibrated or pixel != imager):
        return pixel, "PixelSpacing"
    if imager:
        magnification = _magnification(header, notes)
        if magnification is not None:
            return (imager[0] / magnification, imager[1] / magnification), "ImagerPixelSpacing/ERMF"
        notes.append("pixel spacing is measured at the detector: lengths in the breast are a few percent smaller")
        return imager, "ImagerPixelSpacing"
    scanned = _pair(header, "NominalScannedPixelSpacing", notes)
    return (scanned, "NominalScannedPixelSpacing") if scanned else (None, "none")


def _pair(header: Dataset, keyword: str, notes: list[str]) -> tuple[float, float] | None:
    found = numbers(header, keyword)
    if found is None:
        return None
    if len(found) != 2 or not all(0 < mm <= LARGEST_SPACING_MM for mm in found):
        notes.append(f"{keyword} is not a plausible distance in mm: ignored")
        return None
    return found[0], found[1]


def _magnification(header: Dataset, notes: list[str]) -> float | None:
    found = numbers(header, "EstimatedRadiographicMagnificationFactor")
    if found is None:
        return None
    # The breast lies on the detector or, for magnification views, at most about halfway to the tube.
    if not found or not 1.0 <= found[0] <= 4.0:
        notes.append("EstimatedRadiographicMagnificationFactor is not plausible: ignored")
        return None
    return found[0]
