"""Images in: `read_image` turns a file of any supported format into a `Mammogram`.

Formats are told by content. Every failure is an `UnreadableImage` or `UnsuitableImage` with one sentence
and without patient data; warnings of the libraries underneath are swallowed, because they quote header values.
"""

from __future__ import annotations

import stat
from pathlib import Path

from mammo_runtime.errors import ImageError, UnreadableImage, UnsuitableImage
from mammo_runtime.mammogram import Mammogram
from mammo_runtime.readers.options import ReadOptions
from mammo_runtime.readers.signature import (
    PREFIX_BYTES,
    RASTER_FORMATS,
    claimed_kind,
    claims_image,
    foreign_format,
    format_from_prefix,
    sniff,
)
from mammo_runtime.readers.silence import silenced

__all__ = ["ReadOptions", "read_image", "sniff"]

_DEFAULTS = ReadOptions()


def read_image(path: Path, options: ReadOptions = _DEFAULTS) -> Mammogram:
    """Read one image file.

    Returns a `Mammogram` whose pixels are uint8 or uint16 MONOCHROME2 [rows, columns]
    (RGB [rows, columns, 3] when `options.modality` is histopathology).

    Raises UnreadableImage (empty, broken, cut off, undecodable, hostile) and UnsuitableImage
    (sound, but not what this model may be shown); nothing else but KeyboardInterrupt and SystemExit.
    """
    try:
        with silenced():
            return _read(Path(path), options)
    except (ImageError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a codec's Rust panic derives from BaseException
        failure = UnreadableImage(_sentence_from(error))
    # `from None`, outside the handler: the libraries' messages quote header values, which may be patient data.
    raise failure from None


def _read(path: Path, options: ReadOptions) -> Mammogram:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UnreadableImage("this is a folder, not an image file")
    if not stat.S_ISREG(mode):
        raise UnreadableImage("this is not a regular file (a device or a pipe)")
    with path.open("rb") as stream:
        prefix = stream.read(PREFIX_BYTES)
    file_format = format_from_prefix(prefix)
    if file_format in RASTER_FORMATS:
        from mammo_runtime.readers import raster

        return raster.read_raster(path, file_format, options)
    if file_format == "DICOM":
        from mammo_runtime.readers import dicom

        return dicom.read_dicom(path, options)
    raise _refusal(path, prefix, file_format)


def _refusal(path: Path, prefix: bytes, file_format: str | None) -> ImageError:
    """Return the error for a file that no reader takes."""
    if not prefix:
        return UnreadableImage("the file is empty")
    if file_format is not None:
        return UnreadableImage(
            "not a standard DICOM file (no preamble, so its encoding is unknown): "
            "export it again from the PACS or viewer as a DICOM file"
        )
    foreign = foreign_format(prefix)
    if foreign:
        return UnreadableImage(f"{foreign} pictures are not read: save it as PNG, TIFF or DICOM")
    if claims_image(path):
        suffix, kind = path.suffix.lower(), claimed_kind(path)
        return UnreadableImage(f"named {suffix} but is not {kind}: the content is something else")
    return UnsuitableImage("not an image file")


def _sentence_from(error: BaseException) -> str:
    """Return one sentence for an unexpected failure, without any text that could quote the file."""
    if isinstance(error, OSError):
        return f"the file cannot be read: {error.strerror or type(error).__name__}"
    if isinstance(error, MemoryError):
        return "reading it needs more memory than this computer has free"
    if isinstance(error, RecursionError):
        return "its structure is nested too deeply: the file is damaged or hostile"
    return f"the file is damaged: reading it ended in {type(error).__name__}"
