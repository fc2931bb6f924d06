"""Pictures of one result: mask, probability map, overlay and its thumbnail, as bytes of a PNG or JPEG file.

A detector image has 14 million pixels and a site's workstation little memory, so everything here stays in uint8
and floating point is never used on a whole picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from mammo_runtime.errors import OutputError
from mammo_runtime.mammogram import Box, Mammogram

if TYPE_CHECKING:
    from mammo_runtime.result import Result

TINT_ALPHA = 0.4
"""Share of red inside the mask; the picture keeps the rest."""
TINT_RGB = (255, 0, 0)
CONTOUR_RGB = (255, 225, 70)
BOX_RGB = (0, 220, 235)
THUMBNAIL_SIDE_PX = 560

_STRIP_ROWS = 128
_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Level 3 of zlib: overlays take half the time of level 6 for a few per cent more bytes.
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 3)
# Full chroma resolution: with the usual halving, thin coloured contours turn grey.
# OpenCV before 4.7 has no names for this option and passes over its number.
_SAMPLING_FACTOR, _SAMPLING_444 = 7, 0x111111
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 84, _SAMPLING_FACTOR, _SAMPLING_444)


def mask_png(mask: np.ndarray) -> bytes:
    """Encode a mask, bool [rows, columns], as an 8-bit grey PNG: 255 where it is on, else 0. Raises OutputError."""
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise TypeError(f"a mask must be bool [rows, columns], got {mask.dtype} {mask.shape}")
    return _encoded(".png", np.multiply(mask, np.uint8(255), dtype=np.uint8), _PNG)


def labels_png(labels: np.ndarray) -> bytes:
    """Encode the labels of a multi-class map, uint8 [rows, columns], as they are: an 8-bit grey PNG of class numbers.

    The first class of the model's spec is 0. Raises OutputError.
    """
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise TypeError(f"labels must be uint8 [rows, columns], got {labels.dtype} {labels.shape}")
    return _encoded(".png", labels, _PNG)


def probability_png(probability: np.ndarray) -> bytes:
    """Encode a probability map, float32 [rows, columns] in 0..1, as a 16-bit grey PNG where 65535 stands for 1.

    Raises ValueError for values outside 0..1 (beyond rounding, 1e-6) or not finite, OutputError when encoding fails.
    """
    if probability.dtype != np.float32 or probability.ndim != 2:
        raise TypeError(f"probabilities must be float32 [rows, columns], got {probability.dtype} {probability.shape}")
    # Written so that NaN fails too.
    if probability.size and not (float(probability.min()) >= -1e-6 and float(probability.max()) <= 1 + 1e-6):
        raise ValueError("probabilities must be finite and within 0..1")
    levels = np.empty(probability.shape, np.uint16)
    for top in range(0, len(probability), _STRIP_ROWS):
        part = probability[top : top + _STRIP_ROWS]
        levels[top : top + _STRIP_ROWS] = np.rint(np.clip(part, 0.0, 1.0) * 65535.0)
    return _encoded(".png", levels, _PNG)


def overlay_picture(image: Mammogram, found: Result, boxes: Sequence[Box] | None = None) -> np.ndarray:
    """Return uint8 RGB [rows, columns, 3] of the image with the model's marks; nothing else is burnt in.

    The picture is scaled so that `image.white` is 255. Inside the mask: 0.6 · picture + 0.4 · red. Each finding has a
    contour and its number; `boxes` (prompts, original pixels) are dashed. Line width and letters grow with the picture.
    """
    if found.mask.shape != (image.rows, image.columns):
        raise ValueError(f"the mask is {found.mask.shape}, the picture {(image.rows, image.columns)}")
    canvas = rgb_from_mammogram(image)
    _tint(canvas, found.mask)
    width_px = _line_width_px(image.rows, image.columns)
    for box in boxes or ():
        _draw_dashed(canvas, box, width_px)
    for finding in found.findings:
        corners = np.array(finding.contour, np.int32).reshape(-1, 1, 2)
        cv2.polylines(canvas, [corners], True, CONTOUR_RGB, width_px, cv2.LINE_AA)
    _draw_numbers(canvas, [(f.number, f.bounding_box) for f in found.findings], width_px)
    return canvas


def picture_png(picture: np.ndarray) -> bytes:
    """Encode an RGB picture, uint8 [rows, columns, 3], as PNG. Raises OutputError."""
    _require_rgb(picture)
    if not picture.flags.writeable:
        picture = picture.copy()
    # OpenCV encodes BGR: swapped in place and back, since a second copy of a detector image is 43 MB.
    _swap_channels(picture)
    try:
        return _encoded(".png", picture, _PNG)
    finally:
        _swap_channels(picture)


def thumbnail_jpeg(overlay: np.ndarray, side_px: int = THUMBNAIL_SIDE_PX) -> bytes:
    """Encode an RGB picture, uint8 [rows, columns, 3], as JPEG, its longer side at most `side_px`; never enlarged.

    Raises OutputError.
    """
    _require_rgb(overlay)
    if side_px < 1:
        raise ValueError(f"side_px must be positive, got {side_px}")
    rows, columns = overlay.shape[:2]
    scale = min(1.0, side_px / max(rows, columns))
    target = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    small = overlay if scale == 1.0 else cv2.resize(overlay, target, interpolation=cv2.INTER_AREA)
    return _encoded(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), _JPEG)


def _swap_channels(picture: np.ndarray) -> None:
    """Turn RGB into BGR or back, in place, a strip at a time."""
    for top in range(0, len(picture), 64):
        picture[top : top + 64] = picture[top : top + 64, :, ::-1].copy()


def _encoded(suffix: str, picture: np.ndarray, options: Sequence[int]) -> bytes:
    try:
        done, content = cv2.imencode(suffix, picture, list(options))
    except cv2.error as error:
        raise OutputError(f"cannot encode a {suffix} picture of {picture.shape}: {error}") from error
    if not done:
        raise OutputError(f"cannot encode a {suffix} picture of {picture.shape}")
    return content.tobytes()


def _require_rgb(picture: np.ndarray) -> None:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise TypeError(f"a picture must be uint8 [rows, columns, 3], got {picture.dtype} {picture.shape}")


def rgb_from_mammogram(image: Mammogram) -> np.ndarray:
    """Return a new uint8 RGB picture in which `image.white` has become 255."""
    pixels = image.pixels
    if pixels.dtype != np.uint8 or image.white != 255:
        pixels = cv2.convertScaleAbs(pixels, alpha=255.0 / image.white)
    return np.asarray(pixels.copy() if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB))


def _tint(canvas: np.ndarray, mask: np.ndarray) -> None:
    """Blend red into `canvas` where `mask` is on. By strips and table: each pixel once, no float copy."""
    levels = np.arange(256)[:, None]
    table = np.rint((1.0 - TINT_ALPHA) * levels + TINT_ALPHA * np.array(TINT_RGB)).astype(np.uint8)[None]
    for top in range(0, len(mask), _STRIP_ROWS):
        on = mask[top : top + _STRIP_ROWS]
        columns = np.flatnonzero(on.any(axis=0))
        if columns.size:
            span = slice(int(columns[0]), int(columns[-1]) + 1)
            part = canvas[top : top + _STRIP_ROWS, span]
            np.copyto(part, cv2.LUT(part, table), where=on[:, span, None])


def _line_width_px(rows: int, columns: int) -> int:
    """Thin, yet still there when a thumbnail shrinks the picture."""
    return max(1, round(max(rows, columns) / 650))


def _draw_dashed(canvas: np.ndarray, box: Box, width_px: int) -> None:
    rows, columns = canvas.shape[:2]
    left, top = np.clip((round(box.x), round(box.y)), 0, (columns - 1, rows - 1)).tolist()
    right, bottom = np.clip((round(box.x + box.width), round(box.y + box.height)), 0, (columns - 1, rows - 1)).tolist()
    dash = 6 * width_px
    for x in range(left, right + 1, 2 * dash):
        for y in (top, bottom):
            cv2.line(canvas, (x, y), (min(x + dash, right), y), BOX_RGB, width_px)
    for y in range(top, bottom + 1, 2 * dash):
        for x in (left, right):
            cv2.line(canvas, (x, y), (x, min(y + dash, bottom)), BOX_RGB, width_px)


class _Label(NamedTuple):
    """Where a number stands: whole pixels, right and bottom excluded."""

    left: int
    top: int
    right: int
    bottom: int

    def meets(self, other: _Label) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def _draw_numbers(canvas: np.ndarray, numbered: Sequence[tuple[int, Box]], width_px: int) -> None:
    """Write each number beside its bounding box, inside the picture and clear of the other numbers where possible."""
    rows, columns = canvas.shape[:2]
    height_px = min(max(12, round(max(rows, columns) / 27)), rows // 3)
    if height_px < 5:
        return  # No legible digit fits.
    scale = height_px / cv2.getTextSize("0", _FONT, 1.0, 1)[0][1]
    stroke, margin = max(1, round(height_px / 8)), max(1, round(height_px / 10))
    taken: list[_Label] = []
    for number, box in numbered:
        text_width, text_height = cv2.getTextSize(str(number), _FONT, scale, stroke)[0]
        glyphs = np.zeros((text_height + 4 * margin, text_width + 4 * margin), np.uint8)
        origin = (2 * margin, text_height + 2 * margin)
        cv2.putText(glyphs, str(number), origin, _FONT, scale, 255, stroke, cv2.LINE_AA)
        spot = _free_spot(box, (glyphs.shape[1], glyphs.shape[0]), (rows, columns), taken, width_px)
        taken.append(spot)
        _paint(canvas[spot.top : spot.bottom, spot.left : spot.right], glyphs, margin)


def _paint(part: np.ndarray, glyphs: np.ndarray, outline_px: int) -> None:
    """Blend digits, uint8 [rows, columns] of coverage, into `part` with a black outline: legible on black and white."""
    # Not putText twice with different strokes: OpenCV 5 draws both equally wide.
    shape = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * outline_px + 1, 2 * outline_px + 1))
    # Times 3, cut off at full: thin smoothed strokes are grey, their outline is not.
    around = cv2.convertScaleAbs(cv2.dilate(glyphs, shape), alpha=3.0)[: part.shape[0], : part.shape[1], None] / 255.0
    inside = glyphs[: part.shape[0], : part.shape[1], None] / 255.0
    part[:] = np.rint((part * (1.0 - around)) * (1.0 - inside) + inside * np.array(CONTOUR_RGB)).astype(np.uint8)


def _free_spot(box: Box, size: tuple[int, int], picture: tuple[int, int], taken: Sequence[_Label], gap: int) -> _Label:
    """Return the first place round `box` that lies inside the picture and meets no other label, else the nearest."""
    rows, columns = picture
    spots = [_Label(left, top, left + size[0], top + size[1]) for left, top in _corners_round(box, size, gap)]
    for spot in spots:
        inside = spot.left >= 0 and spot.top >= 0 and spot.right <= columns and spot.bottom <= rows
        if inside and not any(spot.meets(other) for other in taken):
            return spot
    left = min(max(spots[0].left, 0), max(columns - size[0], 0))
    top = min(max(spots[0].top, 0), max(rows - size[1], 0))
    return _Label(left, top, left + size[0], top + size[1])


def _corners_round(box: Box, size: tuple[int, int], gap: int) -> Iterator[tuple[int, int]]:
    """Top-left corners of labels of `size` right of, left of, above and below `box`, then the same at its lower end."""
    right, bottom = round(box.x + box.width) + gap, round(box.y + box.height) + gap
    left, top = round(box.x) - gap - size[0], round(box.y) - gap - size[1]
    start_x, start_y = round(box.x), round(box.y)
    yield from ((right, start_y), (left, start_y), (start_x, top), (start_x, bottom))
    yield from ((right, bottom - gap - size[1]), (left, bottom - gap - size[1]))
