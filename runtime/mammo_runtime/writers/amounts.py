"""Shares and probabilities of classes in words; what is there never reads as nothing."""

from __future__ import annotations


def share(fraction: float) -> str:
    """Return a part of a picture (0..1) in per cent."""
    return "<0.1 %" if 0 < fraction < 0.001 else f"{100 * fraction:.1f} %"


def chance(probability: float) -> str:
    """Return the probability of a class, 0..1."""
    return "<0.01" if 0 < probability < 0.005 else f"{probability:.2f}"
