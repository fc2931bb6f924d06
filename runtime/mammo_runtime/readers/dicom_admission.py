"""Which DICOM objects a model may be shown: decided from the header, before any pixel is decoded."""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.uid import UID

from mammo_runtime.errors import UnreadableImage, UnsuitableImage
from mammo_runtime.mammogram import Modality
from mammo_runtime.readers.dicom_header import frame_count, items, text
from mammo_runtime.readers.options import ReadOptions

_STORAGE = "1.2.840.10008.5.1.4.1.1."
MG_FOR_PRESENTATION, MG_FOR_PROCESSING = _STORAGE + "1.2", _STORAGE + "1.2.1"
CR, DX_FOR_PRESENTATION, DX_FOR_PROCESSING = _STORAGE + "1", _STORAGE + "1.1", _STORAGE + "1.1.1"
SECONDARY_CAPTURE = _STORAGE + "7"
_ULTRASOUND = (_STORAGE + "6.1", _STORAGE + "6")
_TOMOSYNTHESIS = (_STORAGE + "13.1.3", _STORAGE + "13.1.1", _STORAGE + "13.1.2")

_OTHER_CLASS = {
    "1.2.840.10008.1.3.10": "a DICOM directory (DICOMDIR), not an image",
    _STORAGE + "2": "a CT image",
    _STORAGE + "2.1": "an enhanced CT image",
    _STORAGE + "4": "an MR image",
    _STORAGE + "4.1": "an enhanced MR image",
    _STORAGE + "6.1": "an ultrasound image",
    _STORAGE + "6": "an ultrasound image",
    _STORAGE + "3.1": "an ultrasound clip",
    _STORAGE + "7.1": "a multi-frame secondary capture",
    _STORAGE + "7.2": "a multi-frame secondary capture",
    _STORAGE + "7.3": "a multi-frame secondary capture",
    _STORAGE + "7.4": "a colour multi-frame secondary capture",
    _STORAGE + "12.1": "an X-ray angiography image",
    _STORAGE + "12.2": "a fluoroscopy image",
    _STORAGE + "13.1.4": "a breast projection series of a tomosynthesis unit",
    _STORAGE + "13.1.5": "a breast projection series of a tomosynthesis unit",
    _STORAGE + "20": "a nuclear medicine image",
    _STORAGE + "128": "a PET image",
    _STORAGE + "66.4": "a segmentation, the result of some analysis",
    _STORAGE + "66.7": "a segmentation, the result of some analysis",
    _STORAGE + "11.1": "a presentation state without pixels",
    _STORAGE + "104.1": "a PDF document",
    _STORAGE + "481.1": "a radiotherapy image",
    _STORAGE + "481.2": "a radiotherapy dose",
    _STORAGE + "481.3": "a radiotherapy structure set",
    _STORAGE + "481.5": "a radiotherapy plan",
    _STORAGE + "481.8": "a radiotherapy plan",
    _STORAGE + "77.1.6": "a microscopy slide",
}
_OTHER_CLASS_PREFIX = {_STORAGE + "88.": "a structured report", _STORAGE + "11.": "a presentation state without pixels"}
_OTHER_MODALITY = {
    "CT": "a CT image",
    "MR": "an MR image",
    "US": "an ultrasound image",
    "XA": "an X-ray angiography image",
    "RF": "a fluoroscopy image",
    "NM": "a nuclear medicine image",
    "PT": "a PET image",
    "SEG": "a segmentation, the result of some analysis",
    "SR": "a structured report",
    "PR": "a presentation state without pixels",
    "KO": "a list of key images",
    "DOC": "a document",
    "RTPLAN": "a radiotherapy plan",
    "RTDOSE": "a radiotherapy dose",
    "RTSTRUCT": "a radiotherapy structure set",
    "RTIMAGE": "a radiotherapy image",
    "SM": "a microscopy slide",
    "ES": "an endoscopy picture",
    "XC": "a photograph",
    "IO": "a dental radiograph",
    "PX": "a dental radiograph",
}
_FILM_MODALITIES = ("MG", "CR", "DX", "RG", "OT", "")
_RADIOGRAPH_MODALITIES = ("MG", "CR", "DX", "RG", "")


def admit(header: Dataset, media_sop_class: str, options: ReadOptions) -> tuple[str, ...]:
    """Return the notes on an accepted object. Raises UnsuitableImage or UnreadableImage with the reason."""
    sop_class = text(header, "SOPClassUID") or media_sop_class
    if options.modality is Modality.HISTOPATHOLOGY:
        raise UnsuitableImage("DICOM files are not read for histopathology: export the region as PNG or TIFF")
    if options.modality is Modality.ULTRASOUND:
        return _admit_ultrasound(header, sop_class)
    notes = _admit_class(header, sop_class)
    if frame_count(header) != 1:
        raise UnsuitableImage(
            f"not a 2D mammogram: it has {frame_count(header)} frames (tomosynthesis or a clip); "
            "this model reads 2D mammograms only"
        )
    photometric = text(header, "PhotometricInterpretation")
    if photometric and photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnsuitableImage("not a 2D mammogram: it is a colour picture (a screenshot or a report page)")
    intent = text(header, "PresentationIntentType")
    if sop_class in (MG_FOR_PROCESSING, DX_FOR_PROCESSING) or intent == "FOR PROCESSING":
        if not options.allow_for_processing:
            raise UnsuitableImage(
                "raw detector data (For Processing), which this model was not trained on: "
                "use the For Presentation image, or pass --allow-for-processing"
            )
        notes = (*notes, "raw detector data (For Processing), accepted on request")
    return (*notes, *_remarks(header))


def _admit_class(header: Dataset, sop_class: str) -> tuple[str, ...]:
    """Decide by SOP class and Modality."""
    modality = text(header, "Modality")
    if sop_class in _TOMOSYNTHESIS:
        raise UnsuitableImage(
            f"not a 2D mammogram: it is tomosynthesis with {frame_count(header)} frames; "
            "this model reads 2D mammograms only"
        )
    if sop_class in (MG_FOR_PRESENTATION, MG_FOR_PROCESSING):
        return ()
    other = _OTHER_CLASS.get(sop_class) or next(
        (words for prefix, words in _OTHER_CLASS_PREFIX.items() if sop_class.startswith(prefix)), None
    )
    other = other or _OTHER_MODALITY.get(modality)
    if other:
        raise UnsuitableImage(f"not a 2D mammogram: it is {other}")
    if sop_class in (CR, DX_FOR_PRESENTATION, DX_FOR_PROCESSING):
        _require(modality in _RADIOGRAPH_MODALITIES, "it is a picture of another modality")
        _require_breast(header)
        return ("a general radiograph (CR or DX): taken for a mammogram",)
    if sop_class == SECONDARY_CAPTURE:
        _require(modality in _FILM_MODALITIES, "it is a secondary capture of another modality")
        _require_breast(header)
        return ("secondary capture: taken for a digitised film",)
    if not sop_class:
        if modality == "MG":
            return ("the header names no SOP class: taken for a mammogram because of its modality",)
        if not modality and text(header, "Rows") == "":
            raise UnreadableImage("the DICOM header ends early: it says neither what it is nor how large")
        raise UnsuitableImage("the DICOM header does not say what kind of picture this is")
    name = UID(sop_class).name
    described = name if name != sop_class else "an object of a private or unknown kind"
    raise UnsuitableImage(f"not a 2D mammogram: it is {described}")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise UnsuitableImage(f"not a 2D mammogram: {otherwise}")


def _require_breast(header: Dataset) -> None:
    """Refuse when Body Part Examined names something else than the breast; absent is accepted."""
    part = text(header, "BodyPartExamined")
    _require(not part or "BREAST" in part or "MAM" in part, "it is a radiograph of another body part than the breast")


def _admit_ultrasound(header: Dataset, sop_class: str) -> tuple[str, ...]:
    modality = text(header, "Modality")
    from_secondary = sop_class == SECONDARY_CAPTURE and modality in ("US", "OT", "")
    if sop_class not in _ULTRASOUND and not from_secondary and not (not sop_class and modality == "US"):
        other = _OTHER_CLASS.get(sop_class) or _OTHER_MODALITY.get(modality)
        raise UnsuitableImage(f"not an ultrasound image: it is {other or 'a picture of another kind'}")
    if frame_count(header) != 1:
        raise UnsuitableImage(f"an ultrasound clip of {frame_count(header)} frames: only single images are read")
    photometric = text(header, "PhotometricInterpretation")
    if photometric and photometric not in ("MONOCHROME1", "MONOCHROME2", "RGB") and not photometric.startswith("YBR_"):
        raise UnreadableImage("palette colours are not read: export the image as grey-scale or RGB")
    return ("secondary capture: taken for an ultrasound image",) if from_secondary else ()


_MODIFIERS = {
    ("399055006", "R-102D7"): "spot compression view",
    ("399163009", "R-102D6"): "magnification view",
    ("399209000", "R-102D5"): "implant displaced view",
}


def _remarks(header: Dataset) -> tuple[str, ...]:
    """Return notes on what a reader of the result should know."""
    flags = {
        "BurnedInAnnotation": "text is burned into the picture",
        "PartialView": "partial view: part of the breast is not shown",
        "BreastImplantPresent": "breast implant present",
        "QualityControlImage": "quality control image: it may show a phantom",
    }
    notes = [words for keyword, words in flags.items() if text(header, keyword) == "YES"]
    for view in items(header, "ViewCodeSequence"):
        if text(view, "CodeValue") in ("127457009", "G-8310"):
            notes.append("specimen, not a breast in place")
        for modifier in items(view, "ViewModifierCodeSequence"):
            code = text(modifier, "CodeValue")
            meaning = next((words for codes, words in _MODIFIERS.items() if code in codes), None)
            notes.append(meaning or "special view (modifier)")
    return tuple(notes)
