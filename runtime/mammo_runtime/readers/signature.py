"""Which format a file has, told by its first bytes and never by its name."""

from __future__ import annotations

from pathlib import Path

PREFIX_BYTES = 256
RASTER_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PNM")
IMAGE_SUFFIXES = frozenset(
    (
        *(".dcm", ".dicom", ".dic", ".ima"),
        *(".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".dib", ".pnm", ".pgm", ".ppm", ".pbm"),
        *(".gif", ".webp", ".jp2", ".j2k", ".heic"),
    )
)
_DICOM_SUFFIXES = frozenset((".dcm", ".dicom", ".dic", ".ima"))
_FOREIGN = {
    b"GIF8": "GIF",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"v/1\x01": "OpenEXR",
}
_BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)


def format_from_prefix(prefix: bytes) -> str | None:
    """Return "DICOM", "DICOM without preamble", one of `RASTER_FORMATS`, or None, from a file's first bytes."""
    if prefix[128:132] == b"DICM":
        return "DICOM"
    if prefix.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if prefix.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if prefix[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if prefix[:2] == b"BM" and int.from_bytes(prefix[14:18], "little") in _BMP_HEADER_BYTES:
        return "BMP"
    if prefix[:1] == b"P" and prefix[1:2] in b"123456" and prefix[2:3] in (b" ", b"\t", b"\n", b"\r", b"#"):
        return "PNM"
    if _is_bare_data_set(prefix):
        return "DICOM without preamble"
    return None


def foreign_format(prefix: bytes) -> str | None:
    """Return the name of a picture format that is recognised but not read here (GIF, WebP …), or None."""
    if prefix[:4] == b"RIFF" and prefix[8:12] == b"WEBP":
        return "WebP"
    if prefix[4:8] == b"ftyp" and prefix[8:12] in (b"heic", b"heix", b"avif", b"mif1"):
        return "HEIC"
    return next((name for magic, name in _FOREIGN.items() if prefix.startswith(magic)), None)


def claims_image(path: Path) -> bool:
    """Say whether the file's suffix promises an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def claimed_kind(path: Path) -> str:
    """Return what the suffix promises, in words: "DICOM" or "an image"."""
    return "DICOM" if path.suffix.lower() in _DICOM_SUFFIXES else "an image"


def sniff(path: Path) -> str | None:
    """Return the format of the file's content, None when it is no image. Raises OSError."""
    with path.open("rb") as stream:
        return format_from_prefix(stream.read(PREFIX_BYTES))


def _is_bare_data_set(prefix: bytes) -> bool:
    """Recognise a DICOM data set without preamble: it begins with an element of group 0002 or 0008."""
    little, big = prefix[:2] in (b"\x08\x00", b"\x02\x00"), prefix[:2] in (b"\x00\x08", b"\x00\x02")
    if len(prefix) < 8 or not (little or big):
        return False
    explicit = prefix[4:6].isalpha() and prefix[4:6].isupper()
    length = int.from_bytes(prefix[4:8], "little" if little else "big")
    element = int.from_bytes(prefix[2:4], "little" if little else "big")
    return element <= 0x1200 and (explicit or 0 < length <= 1024)
