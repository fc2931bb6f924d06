"""The grey-scale chain, against the standard's formulas and highdicom as an independent implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pytest
from pydicom.dataset import Dataset

from mammo_runtime.errors import UnreadableImage
from mammo_runtime.mammogram import Mammogram
from mammo_runtime.readers import ReadOptions, read_image
from phantoms import make_phantom, write_dicom_mg

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
PHANTOM = make_phantom(2, 96, 80).pixels


def read(path: Path, pixels: np.ndarray = RAMP, voi_index: int = 0, **choices: Any) -> Mammogram:
    return read_image(write_dicom_mg(path / "a.dcm", pixels, **choices), ReadOptions(voi_index=voi_index))


def lut_item(
    entries: np.ndarray, first: int = 0, depth: int = 12, count: int | None = None, signed: bool = False
) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(entries) if count is None else count, first, depth])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


CURVE = (4095 * np.sqrt(np.arange(4096) / 4095)).astype(np.uint16)
# From 0 to 65535 in steps that its every second entry keeps: highdicom stretches a LUT from its own smallest to its
# own largest entry, we scale by its nominal range, and these coincide.
FULL_CURVE = np.repeat(np.rint(65535 * np.sqrt(np.arange(2048) / 2047)), 2).astype(np.uint16)


def packed_lut_item() -> Dataset:
    """Return a VOI LUT of 8 bits whose entries stand two to a word."""
    item = lut_item(CURVE, 0, 8)
    item["LUTData"].value = (CURVE >> 4).astype(np.uint8).tobytes()
    return item


CASES: dict[str, dict[str, Any]] = {
    "linear": {},
    "linear_narrow": {"window": (1000, 300)},
    "linear_width_1": {"window": (1000, 1)},
    "linear_exact": {"window": (2000.5, 1500), "overrides": {"VOILUTFunction": "LINEAR_EXACT"}},
    "sigmoid": {"window": (2000, 1500), "overrides": {"VOILUTFunction": "SIGMOID"}},
    # LINEAR_EXACT: highdicom folds the rescale into the window, which for LINEAR is off by half a stored value.
    "rescale": {
        "window": (500, 2000),
        "overrides": {"RescaleSlope": 0.5, "RescaleIntercept": -100, "VOILUTFunction": "LINEAR_EXACT"},
    },
    "negative_slope": {
        "window": (-1000, 2000),
        "overrides": {"RescaleSlope": -1, "RescaleIntercept": 0, "VOILUTFunction": "LINEAR_EXACT"},
    },
    "monochrome1": {"photometric_interpretation": "MONOCHROME1", "window": (1500, 2500)},
    "monochrome1_no_shape": {"photometric_interpretation": "MONOCHROME1", "overrides": {"PresentationLUTShape": None}},
    "voi_lut": {"window": None, "overrides": {"VOILUTSequence": [lut_item(FULL_CURVE, 0, 16)]}},
    "voi_lut_offset": {"window": None, "overrides": {"VOILUTSequence": [lut_item(FULL_CURVE[::2], 1000, 16)]}},
    "voi_lut_8_bit": {"window": None, "overrides": {"VOILUTSequence": [packed_lut_item()]}},
    "modality_lut": {
        "window": (30000, 40000),
        "overrides": {
            "ModalityLUTSequence": [lut_item(CURVE * 16, 0, 16)],
            "RescaleSlope": None,
            "RescaleIntercept": None,
            "RescaleType": None,
        },
    },
}


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning:highdicom")
@pytest.mark.parametrize("case", CASES)
def test_same_as_highdicom(tmp_path: Path, case: str) -> None:
    choices = {**CASES[case]}
    overrides = dict(choices.pop("overrides", {}))
    if "ModalityLUTSequence" in overrides:
        overrides["ModalityLUTSequence"][0].ModalityLUTType = "US"
    image = read(tmp_path, overrides=overrides, **choices)
    oracle = highdicom.imread(tmp_path / "a.dcm").get_frame(
        1, dtype=np.float64, apply_voi_transform=True, voi_output_range=(0.0, 1.0)
    )
    assert np.abs(image.pixels / 65535 - oracle).max() <= 1 / 65535


def test_signed_pixels_same_as_highdicom(tmp_path: Path) -> None:
    signed = (RAMP.astype(np.int32) - 2048).astype(np.int16)
    image = read(tmp_path, signed, window=(0, 3000))
    oracle = highdicom.imread(tmp_path / "a.dcm").get_frame(
        1, dtype=np.float64, apply_voi_transform=True, voi_output_range=(0.0, 1.0)
    )
    assert np.abs(image.pixels / 65535 - oracle).max() <= 1 / 65535


def test_linear_window_golden_values(tmp_path: Path) -> None:
    """PS3.3 C.11.2.1.2.1 with center 2048, width 4096: stored 0 is 0, 4095 is white, proportional between."""
    pixels = read(tmp_path).pixels.ravel()
    assert (pixels[0], pixels[4095]) == (0, 65535)
    assert np.array_equal(pixels, np.rint(np.arange(4096) / 4095 * 65535))


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -100.0), (-1.0, 3000.0), (16.0, 0.0)])
def test_linear_window_after_rescale_golden_values(tmp_path: Path, slope: float, intercept: float) -> None:
    """PS3.3 C.11.2.1.2.1: ((x - (c - 0.5)) / (w - 1) + 0.5) between black and white, x after rescale."""
    rescale = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    image = read(tmp_path, window=(500, 2000), overrides=rescale)
    expected = np.clip((np.arange(4096) * slope + intercept - 499.5) / 1999 + 0.5, 0, 1) * 65535
    assert np.abs(image.pixels.ravel() - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("window", [(2048, 4096), (1200, 900), None])
@pytest.mark.parametrize("shape", ["as written", "absent"])
def test_monochrome1_twin_is_identical(tmp_path: Path, window: tuple[float, float] | None, shape: str) -> None:
    removed = {} if shape == "as written" else {"PresentationLUTShape": None}
    original = read(tmp_path, PHANTOM, window=window, overrides=removed)
    # LINEAR is symmetric round center - 0.5: stored v becomes 4095 - v, so the center becomes 4096 - center.
    mirrored = None if window is None else (4096 - window[0], window[1])
    twin = read(tmp_path, 4095 - PHANTOM, window=mirrored, photometric_interpretation="MONOCHROME1", overrides=removed)
    assert int(np.abs(original.pixels.astype(int) - twin.pixels.astype(int)).max()) <= 1
    assert "inverted" in twin.intensity_rule
    assert "inverted" not in original.intensity_rule


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"), [("MONOCHROME1", "IDENTITY", False), ("MONOCHROME2", "INVERSE", True)]
)
def test_contradicting_presentation_lut_shape_is_followed_and_noted(
    tmp_path: Path, photometric: str, shape: str, inverted: bool
) -> None:
    image = read(tmp_path, photometric_interpretation=photometric, overrides={"PresentationLUTShape": shape})
    assert bool(image.pixels[0, 0] > image.pixels[-1, -1]) == inverted
    assert any("contradicts" in note for note in image.notes)


def test_voi_index_selects(tmp_path: Path) -> None:
    windows = {"WindowCenter": [2048, 1000], "WindowWidth": [4096, 500]}
    assert read(tmp_path, overrides=windows).intensity_rule == "window[0] 2048/4096 LINEAR"
    second = read(tmp_path, voi_index=1, overrides=windows)
    assert second.intensity_rule == "window[1] 1000/500 LINEAR"
    assert second.pixels.ravel()[1300] == 65535
    with pytest.raises(UnreadableImage, match="window number 2 was asked for, but the file holds 2"):
        read(tmp_path, voi_index=2, overrides=windows)
    with pytest.raises(UnreadableImage, match="holds none"):
        read(tmp_path, voi_index=1, window=None)
    with pytest.raises(UnreadableImage, match="VOI LUT number 1 was asked for"):
        read(tmp_path, voi_index=1, overrides={"VOILUTSequence": [lut_item(CURVE)]})


def test_lut_goes_before_window(tmp_path: Path) -> None:
    image = read(tmp_path, overrides={"VOILUTSequence": [lut_item(CURVE)]})
    assert image.intensity_rule == "lut[0]"
    assert np.array_equal(image.pixels.ravel(), np.rint(CURVE / 4095 * 65535))


@pytest.mark.parametrize(
    ("choices", "rule"),
    [
        ({"window": (2048, 0)}, "window[0] unusable (width 0)->nominal 0..4095"),
        ({"window": (2048, 0.5)}, "window[0] unusable (width 0.5)->nominal 0..4095"),
        (
            {"window": None, "overrides": {"WindowCenter": 5}},
            "window[0] unusable (not a pair of numbers)->nominal 0..4095",
        ),
        (
            {"overrides": {"VOILUTFunction": "BOGUS"}},
            "window[0] 2048/4096 LINEAR (unknown VOI LUT Function: taken for LINEAR)",
        ),
        (
            {"overrides": {"VOILUTSequence": [lut_item(CURVE, count=5000)]}},
            "lut[0] unusable (LUT length differs from its descriptor)->window[0] 2048/4096 LINEAR",
        ),
        (
            {"overrides": {"VOILUTSequence": [lut_item(CURVE, depth=8)]}},
            "lut[0] unusable (LUT values exceed its depth)->window[0] 2048/4096 LINEAR",
        ),
        ({"window": None}, "none->nominal 0..4095"),
    ],
)  # fmt: skip
def test_what_cannot_be_applied_falls_back_in_writing(tmp_path: Path, choices: dict[str, Any], rule: str) -> None:
    image = read(tmp_path, **choices)
    assert image.intensity_rule == rule
    assert (int(image.pixels[0, 0]), int(image.pixels[-1, -1])) == (0, 65535)


def test_empty_window_value(tmp_path: Path) -> None:
    image = read(tmp_path, window=None, overrides={"WindowCenter": "", "WindowWidth": ""})
    assert image.intensity_rule == "none->nominal 0..4095"


@pytest.mark.parametrize("overrides", [{"RescaleSlope": 0}, {"RescaleSlope": [1, 2]}])
def test_meaningless_rescale_is_an_error(tmp_path: Path, overrides: dict[str, Any]) -> None:
    with pytest.raises(UnreadableImage, match="rescale"):
        read(tmp_path, overrides=overrides)


def test_broken_modality_lut_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="Modality LUT"):
        read(tmp_path, overrides={"ModalityLUTSequence": [lut_item(CURVE, count=9)]})


def test_lut_that_uses_fewer_bits_than_it_states(tmp_path: Path) -> None:
    image = read(tmp_path, overrides={"VOILUTSequence": [lut_item(CURVE, depth=16)]})
    assert image.pixels.max() == 65535
    assert any("states 16 bits and uses 12" in note for note in image.notes)


def test_percentile_range_without_presentation_lut(tmp_path: Path) -> None:
    """0.5 % of 4096 ramp pixels are 20.48: the 21st value from either end."""
    image = read(tmp_path, window=None, overrides={"PresentationLUTShape": None})
    assert image.intensity_rule == "none->percentile 0.5..99.5 (20..4075)"
    assert (int(image.pixels.ravel()[20]), int(image.pixels.ravel()[4075])) == (0, 65535)


def test_padding_is_black_and_outside_percentiles(tmp_path: Path) -> None:
    pixels = np.where(RAMP < 2048, 4000, 1000 + RAMP // 8).astype(np.uint16)
    absent = {"PresentationLUTShape": None, "PixelPaddingValue": 4000}
    image = read(tmp_path, pixels, window=None, overrides=absent)
    assert not image.pixels[pixels == 4000].any()
    assert image.pixels.max() == 65535
    inverted = read(tmp_path, pixels, photometric_interpretation="MONOCHROME1", overrides={"PixelPaddingValue": 4000})
    assert not inverted.pixels[pixels == 4000].any()
    ranged = read(tmp_path, overrides={"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095})
    assert not ranged.pixels.ravel()[4000:].any()
    assert ranged.pixels.ravel()[3999] > 0


def test_padding_outside_the_bits_stored_is_ignored(tmp_path: Path) -> None:
    image = read(tmp_path, overrides={"PixelPaddingValue": 65535})
    assert image.pixels.ravel()[4095] == 65535
    assert any("padding" in note for note in image.notes)


def test_bits_above_bits_stored_are_masked(tmp_path: Path) -> None:
    clean = read(tmp_path).pixels
    assert np.array_equal(read(tmp_path, (RAMP | 0xA000).astype(np.uint16)).pixels, clean)


def test_high_bit_above_bits_stored(tmp_path: Path) -> None:
    clean = read(tmp_path).pixels
    shifted = read(tmp_path, (RAMP << 4).astype(np.uint16), overrides={"HighBit": 15})
    assert np.array_equal(shifted.pixels, clean)


def test_eight_bit_for_presentation_is_nominal(tmp_path: Path) -> None:
    pixels = np.arange(50, 150, dtype=np.uint8).reshape(10, 10)
    image = read(tmp_path, pixels, bits_stored=8, window=None, overrides={"PresentationLUTShape": None})
    assert image.intensity_rule == "none->nominal 0..255"
    assert np.array_equal(image.pixels, pixels.astype(np.uint16) * 257)


def test_one_value_is_noted(tmp_path: Path) -> None:
    assert "every pixel has the same grey value" in read(tmp_path, np.full((8, 8), 900, np.uint16)).notes
