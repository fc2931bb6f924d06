"""DICOM admission, geometry and hostile files, through `read_image`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from mammo_runtime.errors import ImageError, UnreadableImage, UnsuitableImage
from mammo_runtime.mammogram import Laterality, Mammogram, Modality, View
from mammo_runtime.readers import ReadOptions, read_image
from phantoms import dicom_mg, make_phantom, write_dicom_mg

PIXELS = make_phantom(1, 64, 48).pixels
STORAGE = "1.2.840.10008.5.1.4.1.1."
MAGNIFICATION, SCANNED = "EstimatedRadiographicMagnificationFactor", "NominalScannedPixelSpacing"
SECONDARY_CAPTURE = {"SOPClassUID": STORAGE + "7", "PresentationIntentType": None}

# What becomes of each of the real files in shared/data/dicom: error type (None: read) and a phrase of its sentence.
SHARED_FILES: dict[str, tuple[type[ImageError] | None, str]] = {
    "mammo/MG1_J2KI.dcm": (None, "digitised film"),
    "mammo/MG_Explicit_Little.dcm": (None, ""),
    "mammo/jpeg2k_3d.dcm": (UnsuitableImage, "tomosynthesis with 4 frames"),
    "monochrome1/RG3_J2KR.dcm": (UnsuitableImage, "another body part"),
    "monochrome1/RG3_JPLL.dcm": (UnsuitableImage, "another body part"),
    "monochrome1/RG3_RLE.dcm": (UnsuitableImage, "another body part"),
    "monochrome1/gdcm-CR-MONO1-10-chest.dcm": (UnsuitableImage, "another body part"),
    "odd/CTImage.dcm_JPEGProcess10_12TransferSyntax_1.2.840.10008.1.2.4.55.dcm": (UnsuitableImage, "a CT image"),
    "odd/ExplVR_LitEndNoMeta.dcm": (UnreadableImage, "no preamble"),
    "odd/MR_UnspecifiedLength.dcm": (UnsuitableImage, "a segmentation"),
    "odd/OT-PAL-8-face.dcm": (UnreadableImage, "no preamble"),
    "odd/badVR.dcm": (UnsuitableImage, "a radiotherapy dose"),
    "odd/dwv-test_no-number-rows.dcm": (UnsuitableImage, "an MR image"),
    "odd/emri_small_jpeg_2k_lossless_too_short.dcm": (UnsuitableImage, "an enhanced MR image"),
    "odd/meta_missing_tsyntax.dcm": (UnreadableImage, "no transfer syntax"),
    "odd/no_meta.dcm": (UnreadableImage, "not DICOM"),
    "odd/reportsi.dcm": (UnsuitableImage, "a structured report"),
    "syntaxes/CT_small.dcm": (UnsuitableImage, "a CT image"),
    "syntaxes/HTJ2K_08_RGB.dcm": (UnsuitableImage, "a colour picture"),
    "syntaxes/JPEG-lossy.dcm": (UnsuitableImage, "a nuclear medicine image"),
    "syntaxes/JPGLosslessP14SV1_1s_1f_8b.dcm": (UnsuitableImage, "an ultrasound image"),
    "syntaxes/MR_small.dcm": (UnsuitableImage, "an MR image"),
    "syntaxes/MR_small_bigendian.dcm": (UnsuitableImage, "an MR image"),
    "syntaxes/MR_small_jp2klossless.dcm": (UnsuitableImage, "an MR image"),
    "syntaxes/SC_rgb_16bit.dcm": (UnsuitableImage, "a colour picture"),
    "syntaxes/XA1_J2KI.dcm": (UnsuitableImage, "angiography"),
    "syntaxes/XA1_JLSL.dcm": (UnsuitableImage, "angiography"),
    "syntaxes/XA1_JPLL.dcm": (UnsuitableImage, "angiography"),
    "syntaxes/XA1_RLE.dcm": (UnsuitableImage, "angiography"),
    "syntaxes/emri_small_RLE.dcm": (UnsuitableImage, "an enhanced MR image"),
    "syntaxes/image_dfl.dcm": (None, "digitised film"),
    "syntaxes/mlut_18.dcm": (None, "digitised film"),
}


def read_mg(path: Path, options: ReadOptions | None = None, **choices: Any) -> Mammogram:
    return read_image(write_dicom_mg(path / "a.dcm", PIXELS, **choices), options or ReadOptions())


@pytest.mark.parametrize("name", SHARED_FILES)
def test_shared_files(shared_data: Path, name: str, recwarn: pytest.WarningsRecorder) -> None:
    error, phrase = SHARED_FILES[name]
    path = shared_data / "dicom" / name
    if error is None:
        assert phrase in " ".join(read_image(path).notes)
    else:
        with pytest.raises(error, match=phrase):
            read_image(path)
    assert not recwarn.list


def test_table_of_shared_files_is_complete(shared_data: Path) -> None:
    root = shared_data / "dicom"
    assert {p.relative_to(root).as_posix() for p in root.rglob("*.dcm")} == set(SHARED_FILES)


def test_digitised_film_of_the_shared_files(shared_data: Path) -> None:
    image = read_image(shared_data / "dicom/mammo/MG1_J2KI.dcm")
    assert (image.rows, image.columns, image.laterality, image.view) == (4664, 3064, Laterality.LEFT, View.MLO)
    assert (image.spacing_mm, image.file_format) == (None, "DICOM JPEG 2000")


def test_facts_of_a_mammogram(tmp_path: Path) -> None:
    image = read_mg(tmp_path, view=View.CC, laterality=Laterality.RIGHT)
    assert (image.pixels.shape, image.pixels.dtype, image.white) == (PIXELS.shape, np.uint16, 65535)
    assert (image.laterality, image.view, image.file_format) == (Laterality.RIGHT, View.CC, "DICOM")
    assert image.intensity_rule == "window[0] 2048/4096 LINEAR"
    assert image.file_sha256 == hashlib.sha256((tmp_path / "a.dcm").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("code", "position", "view"),
    [
        ("R-10242", "MLO", View.CC),
        ("399368009", "", View.MLO),
        ("399260004", "", View.ML),
        ("R-1024A", "", View.XCCL),
        ("unknown", "LMO", View.LMO),
        (None, "XCCM", View.XCCM),
        (None, "SOMETHING", None),
    ],
)
def test_view_from_code_first_then_string(tmp_path: Path, code: str | None, position: str, view: View | None) -> None:
    item = Dataset()
    item.CodeValue = code or ""
    overrides = {"ViewCodeSequence": [item] if code else None, "ViewPosition": position}
    assert read_mg(tmp_path, overrides=overrides).view is view


@pytest.mark.parametrize(
    ("overrides", "side"),
    [
        ({"ImageLaterality": "B"}, None),
        ({"ImageLaterality": None, "Laterality": "R"}, Laterality.RIGHT),
        ({"ImageLaterality": None}, None),
    ],
)
def test_laterality(tmp_path: Path, overrides: dict[str, Any], side: Laterality | None) -> None:
    assert read_mg(tmp_path, overrides=overrides).laterality is side


@pytest.mark.parametrize(
    ("overrides", "user", "spacing", "source", "note"),
    [
        ({}, None, 0.07, "ImagerPixelSpacing", "measured at the detector"),
        ({MAGNIFICATION: 1.4}, None, 0.05, "ImagerPixelSpacing/ERMF", ""),
        ({MAGNIFICATION: 0}, None, 0.07, "ImagerPixelSpacing", "not plausible"),
        ({"PixelSpacing": [0.065, 0.065]}, None, 0.065, "PixelSpacing", ""),
        ({"PixelSpacing": [0.07, 0.07], MAGNIFICATION: 1.4}, None, 0.05, "ImagerPixelSpacing/ERMF", ""),
        ({"PixelSpacing": [0.07, 0.07], "PixelSpacingCalibrationType": "FIDUCIAL"}, None, 0.07, "PixelSpacing", ""),
        ({"PixelSpacing": [-1, 0.1]}, None, 0.07, "ImagerPixelSpacing", "PixelSpacing is not a plausible"),
        ({"PixelSpacing": [50, 50]}, None, 0.07, "ImagerPixelSpacing", "PixelSpacing is not a plausible"),
        ({"ImagerPixelSpacing": None}, None, None, "none", ""),
        ({"ImagerPixelSpacing": None}, 0.1, 0.1, "user", ""),
        ({}, 0.1, 0.1, "user", "the file states 0.07 x 0.07 mm"),
        ({"ImagerPixelSpacing": None, SCANNED: [0.05, 0.05]}, None, 0.05, SCANNED, ""),
    ],
)  # fmt: skip
def test_spacing(
    tmp_path: Path, overrides: dict[str, Any], user: float | None, spacing: float | None, source: str, note: str
) -> None:
    image = read_mg(tmp_path, ReadOptions(pixel_spacing_mm=user), overrides=overrides)
    assert image.spacing_mm == (None if spacing is None else pytest.approx((spacing, spacing)))
    assert image.spacing_source == source
    assert note in " ".join(image.notes)


@pytest.mark.parametrize(
    ("overrides", "phrase"),
    [
        ({"SOPClassUID": STORAGE + "13.1.3", "NumberOfFrames": 4}, "tomosynthesis with 4 frames"),
        ({"NumberOfFrames": 2}, "2 frames"),
        ({"SOPClassUID": STORAGE + "2", "Modality": "CT"}, "a CT image"),
        ({**SECONDARY_CAPTURE, "Modality": "US"}, "an ultrasound image"),
        ({**SECONDARY_CAPTURE, "Modality": "OT", "BodyPartExamined": "CHEST"}, "another body part"),
        ({"SOPClassUID": STORAGE + "1", "Modality": "CR", "BodyPartExamined": "HAND"}, "another body part"),
        ({"SOPClassUID": STORAGE + "1.2.1"}, "--allow-for-processing"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "--allow-for-processing"),
        ({"SOPClassUID": STORAGE + "88.50"}, "a structured report"),
        ({"SOPClassUID": "1.2.3.4"}, "private or unknown"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "a colour picture"),
    ],
)
def test_unsuitable_objects(tmp_path: Path, overrides: dict[str, Any], phrase: str) -> None:
    with pytest.raises(UnsuitableImage, match=phrase):
        read_mg(tmp_path, overrides=overrides)


def test_for_processing_on_request(tmp_path: Path) -> None:
    image = read_mg(
        tmp_path, ReadOptions(allow_for_processing=True), overrides={"PresentationIntentType": "FOR PROCESSING"}
    )
    assert any("For Processing" in note for note in image.notes)


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        ({"BurnedInAnnotation": "YES"}, "burned into"),
        ({"PartialView": "YES"}, "partial view"),
        ({**SECONDARY_CAPTURE, "Modality": "OT"}, "digitised film"),
        ({"SOPClassUID": STORAGE + "1", "Modality": "CR"}, "general radiograph"),
        ({"SOPClassUID": STORAGE + "1", "Modality": "CR", "BodyPartExamined": None}, "general radiograph"),
    ],
)
def test_accepted_with_a_note(tmp_path: Path, overrides: dict[str, Any], note: str) -> None:
    assert note in " ".join(read_mg(tmp_path, overrides=overrides).notes)


def test_view_modifier_is_noted(tmp_path: Path) -> None:
    view, modifier = Dataset(), Dataset()
    view.CodeValue, modifier.CodeValue = "399162004", "399163009"
    view.ViewModifierCodeSequence = [modifier]
    assert "magnification view" in read_mg(tmp_path, overrides={"ViewCodeSequence": [view]}).notes


def test_ultrasound_model_reads_ultrasound_only(tmp_path: Path) -> None:
    options = ReadOptions(modality=Modality.ULTRASOUND)
    assert read_mg(tmp_path, options, overrides={"SOPClassUID": STORAGE + "6.1", "Modality": "US"}).rows == 64
    with pytest.raises(UnsuitableImage, match="not an ultrasound image"):
        read_mg(tmp_path, options)
    with pytest.raises(UnsuitableImage, match="clip of 3 frames"):
        read_mg(tmp_path, options, overrides={"SOPClassUID": STORAGE + "6.1", "NumberOfFrames": 3})


def test_colour_ultrasound_becomes_grey(tmp_path: Path) -> None:
    ds = dicom_mg((PIXELS >> 4).astype(np.uint8), bits_stored=8, window=None)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = STORAGE + "6.1"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    rgb = np.dstack([(PIXELS >> 4).astype(np.uint8)] * 3)
    ds.PixelData = rgb.tobytes()
    pydicom.dcmwrite(tmp_path / "a.dcm", ds, enforce_file_format=True)
    image = read_image(tmp_path / "a.dcm", ReadOptions(modality=Modality.ULTRASOUND))
    assert np.array_equal(image.pixels, rgb[..., 0])
    assert image.white == 255


def test_dicom_is_not_histopathology(tmp_path: Path) -> None:
    with pytest.raises(UnsuitableImage, match="histopathology"):
        read_mg(tmp_path, ReadOptions(modality=Modality.HISTOPATHOLOGY))
