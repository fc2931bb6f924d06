"""The image as every later stage sees it: MONOCHROME2 pixels with what is known about them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import isfinite

import numpy as np


class Modality(str, Enum):
    """What kind of picture a model takes. The reader refuses the others."""

    MAMMOGRAPHY = "mammography"
    ULTRASOUND = "ultrasound"
    HISTOPATHOLOGY = "histopathology"


class Laterality(str, Enum):
    """Image Laterality (0020,0062). B (both) and absent values are read as unknown, i.e. None."""

    LEFT = "L"
    RIGHT = "R"


class View(str, Enum):
    """Mammographic view, from View Code Sequence (CID 4014), View Position as fallback."""

    CC = "CC"
    MLO = "MLO"
    ML = "ML"
    LM = "LM"
    XCCL = "XCCL"
    XCCM = "XCCM"
    LMO = "LMO"
    FB = "FB"


@dataclass(frozen=True, eq=False)
class Mammogram:
    """One image, whatever file it came from.

    `pixels` [rows, columns] (or [rows, columns, 3] RGB for histopathology), uint8 or uint16, MONOCHROME2:
    0 is black, `white` is full white; values above `white` do not occur.
    """

    pixels: np.ndarray
    white: int
    """Pixel value that stands for full white (255, 4095, 65535 …)."""
    intensity_rule: str
    """How stored values became `pixels`, e.g. "window[0] 2047/4096 LINEAR" or "12 bits in use of 16"."""
    file_sha256: str
    """Of the file's bytes: names the input in logs, and the ledger's key."""
    spacing_mm: tuple[float, float] | None = None
    """Distance of pixel centres (rows, columns) in mm; None when nobody stated it."""
    spacing_source: str = "none"
    """Where the spacing comes from: "user", "PixelSpacing", "ImagerPixelSpacing/ERMF", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing" (digitised film), "none"."""
    laterality: Laterality | None = None
    view: View | None = None
    file_format: str = ""
    """"DICOM JPEG 2000", "PNG 16 bit" …"""
    notes: tuple[str, ...] = ()
    """Everything that was assumed or repaired on reading, in words; copied to the result."""

    def __post_init__(self) -> None:
        if self.pixels.dtype not in (np.uint8, np.uint16) or self.pixels.ndim not in (2, 3):
            found = f"{self.pixels.dtype} {self.pixels.shape}"
            raise TypeError(f"pixels must be uint8 or uint16 [rows, columns], got {found}")
        if self.white < 1:
            raise ValueError(f"white must be positive, got {self.white}")

    @property
    def rows(self) -> int:
        """Height of the image in pixels."""
        return int(self.pixels.shape[0])

    @property
    def columns(self) -> int:
        """Width of the image in pixels."""
        return int(self.pixels.shape[1])


@dataclass(frozen=True)
class Box:
    """A rectangle in original pixels: (x, y) is the top-left corner, x grows with columns, y with rows."""

    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        if not all(isfinite(v) for v in (self.x, self.y, self.width, self.height)):
            raise ValueError("a box needs finite numbers")
        if not (self.width > 0 and self.height > 0):
            raise ValueError(f"a box needs a positive width and height, got {self.width} x {self.height}")

    def __str__(self) -> str:
        return f"the box {self.x:g},{self.y:g},{self.width:g},{self.height:g}"
