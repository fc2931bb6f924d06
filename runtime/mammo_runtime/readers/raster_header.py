"""What every raster header parser returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RasterHeader:
    """Facts from the header of a PNG, JPEG, TIFF, BMP or PNM file; sizes in pixels, depths in bits per sample."""

    rows: int
    columns: int
    bits: int
    samples: int = 1
    """Samples per pixel as stored, alpha included; a palette index counts as one."""
    colour_model: str = "grey"
    """"grey", "rgb", "palette", "cmyk" or another word for a model that is not read."""
    alpha: bool = False
    number_kind: str = "unsigned"
    """"unsigned", "signed" or "float"."""
    stated_white: int | None = None
    """Largest value in use, where the file states less than its depth allows (PNG sBIT, PNM maximum)."""
    white_is_zero: bool = False
    """TIFF PhotometricInterpretation WhiteIsZero: 0 is shown white."""
    orientation: int = 1
    """EXIF/TIFF orientation, 1 = as stored."""
    orientation_offset: int | None = None
    """Where in a TIFF file the orientation value stands."""
    pages: int = 1
    unchecked: bool = False
    """The pixels are compressed in a form that nothing here can check for damage (LZW, PackBits … in TIFF)."""
    variant: str = ""
    """A sub-format that no decoder here reads ("JPEG lossless", "arithmetic JPEG" …); empty when fine."""
