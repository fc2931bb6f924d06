"""A valid digital mammogram object (For Presentation) round given pixels; pydicom is imported when used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mammo_runtime.mammogram import Laterality, View

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

_VIEW_CODE = {
    View.CC: ("399162004", "cranio-caudal"),
    View.MLO: ("399368009", "medio-lateral oblique"),
}
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_MG_FOR_PRESENTATION = "1.2.840.10008.5.1.4.1.1.1.2"


def dicom_mg(
    pixels: np.ndarray,
    *,
    bits_stored: int = 12,
    photometric_interpretation: str = "MONOCHROME2",
    window: tuple[float, float] | None = (2048.0, 4096.0),
    spacing_mm: float | None = 0.07,
    laterality: Laterality | None = Laterality.LEFT,
    view: View = View.MLO,
    overrides: Mapping[str, Any] | None = None,
) -> FileDataset:
    """Return the object in memory, uncompressed.

    `pixels` are stored values (uint8, uint16 or int16) [rows, columns]; `spacing_mm` is written as Imager Pixel
    Spacing; `overrides` maps keywords to values, None removes the element.
    """
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import UID, generate_uid

    identity = [str(pixels.shape), photometric_interpretation, str(int(pixels.astype(np.int64).sum()))]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(_MG_FOR_PRESENTATION)
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[*identity, "instance"])
    meta.TransferSyntaxUID = UID(_EXPLICIT_LITTLE_ENDIAN)
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID = generate_uid(entropy_srcs=[*identity, "study"])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=[*identity, "series"])
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "PHANTOM^SYNTHETIC", "PHANTOM", "", ""
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "", "", "", "", ""
    ds.Manufacturer, ds.SeriesNumber, ds.InstanceNumber = "mammo-edge phantom", 1, 1
    ds.Modality, ds.PresentationIntentType = "MG", "FOR PRESENTATION"
    ds.ImageType = ["DERIVED", "PRIMARY", ""]
    ds.BodyPartExamined, ds.PositionerType, ds.OrganExposed = "BREAST", "MAMMOGRAPHIC", "BREAST"
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    if laterality is not None:
        ds.ImageLaterality = laterality.value
        ds.PatientOrientation = ["A", "FR"] if laterality is Laterality.LEFT else ["P", "FL"]
    if view in _VIEW_CODE:
        code = Dataset()
        code.CodeValue, code.CodeMeaning = _VIEW_CODE[view]
        code.CodingSchemeDesignator = "SCT"
        ds.ViewCodeSequence = [code]
    ds.ViewPosition = view.value
    if spacing_mm is not None:
        ds.ImagerPixelSpacing = [spacing_mm, spacing_mm]
    _set_pixels(ds, pixels, bits_stored, photometric_interpretation)
    if window is not None:
        ds.WindowCenter, ds.WindowWidth = window
    for keyword, value in (overrides or {}).items():
        if value is not None:
            setattr(ds, keyword, value)
        elif keyword in ds:
            delattr(ds, keyword)
    if "SOPClassUID" in ds:
        meta.MediaStorageSOPClassUID = ds.SOPClassUID
    return ds


def _set_pixels(ds: FileDataset, pixels: np.ndarray, bits_stored: int, photometric_interpretation: str) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, photometric_interpretation
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * pixels.dtype.itemsize, bits_stored, bits_stored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PresentationLUTShape = "INVERSE" if photometric_interpretation == "MONOCHROME1" else "IDENTITY"
    value = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    ds.add_new("PixelData", "OW" if pixels.dtype.itemsize == 2 else "OB", value + b"\0" * (len(value) % 2))


def write_dicom_mg(
    path: Path, pixels: np.ndarray, *, transfer_syntax: str = _EXPLICIT_LITTLE_ENDIAN, **options: Any
) -> Path:
    """Write `dicom_mg(pixels, **options)` as a DICOM file and return its path.

    `transfer_syntax` may be any that pydicom can write or encode here (RLE, JPEG-LS, JPEG 2000 lossless, deflated).
    """
    from pydicom.uid import UID

    ds, syntax = dicom_mg(pixels, **options), UID(transfer_syntax)
    if syntax.is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False)
        ds.save_as(path, enforce_file_format=True)
        return path
    if not syntax.is_little_endian:
        value = np.frombuffer(ds.PixelData, f"<u{ds.BitsAllocated // 8}")
        ds.PixelData = value.astype(value.dtype.newbyteorder(">")).tobytes()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian)
    ds.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian, enforce_file_format=True)
    return path
