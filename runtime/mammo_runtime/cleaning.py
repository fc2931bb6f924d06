"""Cleaning steps by name, as a model's spec lists them. One implementation for trainer and runtime.

Steps 1 to 5 of the study "000" (border masking, largest contour, line removal, gamma, CLAHE), made safe,
plus `stretch`, which makes pictures of different scanners look alike. All work on one picture in memory,
float32 [rows, columns] in 0..1, MONOCHROME2, and are deterministic. numpy and OpenCV only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np

MAX_PAINTED_FRACTION = 0.01
"""Line removal that would paint more of the picture than this is not done at all: measured on 41 film
mammograms, painting every line found blacks out 3 to 14 % of the breast."""


@dataclass(frozen=True, eq=False)
class CleaningState:
    """What a step receives and returns."""

    pixels: np.ndarray
    """float32 [rows, columns], 0..1."""
    breast: np.ndarray | None = None
    """bool [rows, columns], True on breast tissue, once `keep_breast` has run."""
    notes: tuple[str, ...] = ()


def mask_border(state: CleaningState, width_px: float = 5) -> CleaningState:
    """Paint a black frame of `width_px` pixels, where scanner borders lie."""
    width = int(width_px)
    if width <= 0:
        return state
    pixels = np.zeros_like(state.pixels)
    pixels[width:-width, width:-width] = state.pixels[width:-width, width:-width]
    return replace(state, pixels=pixels)


def keep_breast(
    state: CleaningState, threshold: float = 0.0, opening_px: float = 15, blacken: float = 1
) -> CleaningState:
    """Find the breast as the largest contour and, with `blacken`, paint the rest (film labels, borders) black.

    `threshold` on 0..1 separates tissue from background; 0 chooses it from the histogram (half of Otsu's value,
    since fatty tissue at the skin line is darker than Otsu's own). The threshold's mask is opened with an ellipse
    of `opening_px` pixels, so that labels touching the breast come loose. The contour is filled; a contour
    one pixel wide, as the study drew it, would keep only the outline.
    A region below 2 % or above 98 % of the picture is not believed: the whole picture is kept and noted.
    """
    grey = cv2.GaussianBlur(np.rint(state.pixels * 255).astype(np.uint8), (5, 5), 0)
    level = threshold * 255 if threshold > 0 else cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)[0] * 0.5
    tissue = (grey > level).astype(np.uint8)
    side = max(1, int(opening_px)) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    # Padding by repetition keeps a breast that is cut by the picture's edge from being eroded there.
    padded = cv2.copyMakeBorder(tissue, side, side, side, side, cv2.BORDER_REPLICATE)
    opened = np.ascontiguousarray(cv2.morphologyEx(padded, cv2.MORPH_OPEN, kernel)[side:-side, side:-side])
    contours, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    breast = np.zeros(tissue.shape, np.uint8)
    if contours:
        cv2.drawContours(breast, [max(contours, key=cv2.contourArea)], -1, 1, thickness=cv2.FILLED)
    found = breast.astype(bool)
    fraction = float(found.mean())
    if not 0.02 <= fraction <= 0.98:
        note = f"no breast outline found ({100 * fraction:.0f} % of the picture): the result is doubtful"
        return replace(state, breast=None, notes=(*state.notes, note))
    pixels = np.where(found, state.pixels, np.float32(0)) if blacken else state.pixels
    return replace(state, pixels=pixels, breast=found)


def remove_vertical_lines(
    state: CleaningState,
    theta_step_deg: float = 1.0,
    votes: float = 50,
    width_px: float = 5,
    max_tilt_deg: float = 2.0,
    border_px: float = 30,
) -> CleaningState:
    """Paint near-vertical scanner lines black, but never inside the breast (Canny 50/150, then Hough, rho 1 px).

    Lines tilted less than `max_tilt_deg` from the vertical are painted `width_px` wide, outside the breast if it
    is known, else only within `border_px` of the left and right edges. More than `MAX_PAINTED_FRACTION` of the
    picture: nothing is painted and the refusal is noted. The study used theta_step_deg = 3.6 (pi/50).
    """
    grey = np.rint(state.pixels * 255).astype(np.uint8)
    edges = cv2.Canny(grey, 50, 150, apertureSize=3)
    lines = cv2.HoughLines(edges, 1, np.deg2rad(theta_step_deg), int(votes))
    painted = np.zeros(grey.shape, np.uint8)
    for rho, theta in np.empty((0, 2)) if lines is None else lines.reshape(-1, 2):
        tilt = np.rad2deg(min(theta, np.pi - theta))
        if tilt <= max_tilt_deg:
            cos, sin, reach = np.cos(theta), np.sin(theta), sum(grey.shape)
            start = (int(rho * cos - reach * -sin), int(rho * sin + reach * -cos))
            end = (int(rho * cos + reach * -sin), int(rho * sin - reach * -cos))
            cv2.line(painted, start, end, 1, int(width_px))
    allowed = np.zeros(grey.shape, bool)
    if state.breast is not None:
        allowed = ~state.breast
    else:
        allowed[:, : int(border_px)] = True
        allowed[:, max(0, grey.shape[1] - int(border_px)) :] = True
    black = painted.astype(bool) & allowed & (state.pixels > 0)
    fraction = float(black.mean())
    if fraction > MAX_PAINTED_FRACTION:
        note = f"line removal not done: it would paint {100 * fraction:.1f} % of the picture"
        return replace(state, notes=(*state.notes, note))
    note = f"line removal painted {100 * fraction:.2f} % of the picture"
    return replace(state, pixels=np.where(black, np.float32(0), state.pixels), notes=(*state.notes, note))


def gamma(state: CleaningState, exponent: float = 0.5) -> CleaningState:
    """Raise every pixel to `exponent`: below 1 brightens. The study's "gamma 2.0" look-up table is exponent 0.5."""
    return replace(state, pixels=np.power(state.pixels, np.float32(exponent)))


def clahe(state: CleaningState, clip_limit: float = 1.0, tiles: float = 8) -> CleaningState:
    """Equalise contrast locally on 8-bit grey (CLAHE, Zuiderveld 1994; the study: clip 1.0, 8 x 8 tiles)."""
    equalise = cv2.createCLAHE(clipLimit=clip_limit, tileGridSize=(int(tiles), int(tiles)))
    pixels = equalise.apply(np.rint(state.pixels * 255).astype(np.uint8)).astype(np.float32) / np.float32(255)
    return replace(state, pixels=pixels)


def stretch(state: CleaningState, low_percent: float = 1.0, high_percent: float = 99.8) -> CleaningState:
    """Map the given percentiles of the tissue's grey values to 0 and 1 and clip.

    Tissue is the breast region if known, else all pixels above 0. Makes the input independent of exposure,
    window and bit depth, which differ between hospitals.
    """
    tissue = state.pixels[state.breast] if state.breast is not None else state.pixels[state.pixels > 0]
    if tissue.size == 0:
        return replace(state, notes=(*state.notes, "stretch not done: the picture is black"))
    low, high = (float(v) for v in np.percentile(tissue, (low_percent, high_percent)))
    if high - low < 1e-6:
        return replace(state, notes=(*state.notes, "stretch not done: the tissue has one grey value"))
    pixels = np.clip((state.pixels - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return replace(state, pixels=pixels)


LIMITS: Mapping[str, tuple[float, float]] = {
    "width_px": (0, 100), "threshold": (0, 1), "opening_px": (1, 101), "blacken": (0, 1), "theta_step_deg": (0.1, 90),
    "votes": (1, 10_000), "max_tilt_deg": (0, 45), "border_px": (0, 500), "exponent": (0.05, 20),
    "clip_limit": (0.01, 100), "tiles": (1, 64), "low_percent": (0, 49), "high_percent": (51, 100),
}  # fmt: skip
"""Smallest and largest value of each parameter: beyond them a spec could crash the process or blind the model."""

STEPS: Mapping[str, Callable[..., CleaningState]] = {
    "mask_border": mask_border,
    "keep_breast": keep_breast,
    "remove_vertical_lines": remove_vertical_lines,
    "gamma": gamma,
    "clahe": clahe,
    "stretch": stretch,
}
