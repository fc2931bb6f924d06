"""One colour for each class of a multi-class map, the same in overlay, legend and report.

The first seven are those of Okabe and Ito (jfly.uni-koeln.de/color), three more are from Paul Tol's "muted" scheme
(personal.sron.nl/~pault): people with the common forms of colour blindness tell them apart. The others step round
the hue circle by the golden ratio, in changing saturation and brightness; nobody tells 254 colours apart, which is why
legends name only the classes present.
"""

from __future__ import annotations

import colorsys

COLOURS = 254
_NAMED = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (51, 34, 136), (136, 34, 85), (187, 187, 187),
)  # fmt: skip
_SHADES = ((0.85, 0.95), (0.45, 0.9), (0.9, 0.6))
"""Saturation and brightness, in turn."""


def _further() -> list[tuple[int, int, int]]:
    colours = []
    for k in range(COLOURS - len(_NAMED)):
        saturation, brightness = _SHADES[k % len(_SHADES)]
        red, green, blue = colorsys.hsv_to_rgb(k * 0.618033988749895 % 1, saturation, brightness)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


PALETTE: tuple[tuple[int, int, int], ...] = (*_NAMED, *_further())
"""RGB of class 0, 1, 2 …"""


def css_colour(number: int) -> str:
    """Return a class's colour as "#rrggbb"."""
    return "#{:02x}{:02x}{:02x}".format(*PALETTE[number])
