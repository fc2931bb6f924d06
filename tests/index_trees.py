"""Small fake collections in their exact layouts, with every trap of the real ones planted."""

from __future__ import annotations

import csv
import plistlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from click.testing import CliRunner, Result
from pydicom.uid import generate_uid

from mammo_runtime.phantom_dicom import write_dicom_mg
from mammo_train.cli import main

SIDE = 64


def picture(seed: int, shape: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """Return a picture uint8 with a structure of its own: blobs, so that hashes of two seeds differ."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 235, (12, 12)).astype(np.uint8)
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def disc(x: int, y: int, radius: int, shape: tuple[int, int] = (SIDE, SIDE)) -> np.ndarray:
    """Return a mask 0/255 with one disc."""
    mask = np.zeros(shape, np.uint8)
    cv2.circle(mask, (x, y), radius, 255, -1)
    return mask


def write(path: Path, pixels: np.ndarray, parameters: Sequence[int] = ()) -> Path:
    """Write a picture, making its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels, list(parameters))
    return path


def write_dicom(path: Path, pixels: np.ndarray, series: str = "", patient: str = "X", captured: bool = True) -> Path:
    """Write a DICOM mammogram; `captured`: as a secondary capture, which is what CBIS-DDSM's scans are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    overrides: dict[str, Any] = {"SeriesInstanceUID": series or generate_uid(), "PatientID": patient}
    if captured:
        overrides |= {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "PresentationIntentType": None}
    bits = 8 * pixels.dtype.itemsize
    return write_dicom_mg(path, pixels, bits_stored=bits, window=None, spacing_mm=None, overrides=overrides)


def index(collection: str, root: Path, output: Path, *options: str) -> Result:
    """Run `mammo-train index`."""
    return CliRunner().invoke(main, ["index", collection, str(root), "-o", str(output), *options])


def lines(output: Path, column: str = "image") -> dict[str, dict[str, str]]:
    """Return the index's rows by the stem of a file column."""
    with output.open(newline="", encoding="utf-8") as stream:
        return {Path(row[column]).stem: row for row in csv.DictReader(stream)}


def stored_mask(root: Path, row: dict[str, str]) -> np.ndarray:
    """Return a row's mask as training reads it."""
    mask = cv2.imread(str(root / row["mask"]), cv2.IMREAD_UNCHANGED)
    assert mask is not None
    assert mask.ndim == 2
    assert mask.dtype == np.uint8
    return mask


@dataclass(frozen=True)
class Case:
    """One lesion of a fake CBIS-DDSM."""

    patient: int
    number: int
    lesion: tuple[int, int, int]
    """x, y, radius."""
    side_view: str = "LEFT_CC"
    table: str = "mass_train"
    swapped: bool = False
    separate: bool = False
    """Crop and mask in folders of their own."""
    mask_shape: tuple[int, int] = (SIDE, SIDE)

    @property
    def folder(self) -> str:
        """Case folder of the whole picture."""
        abnormality, part = self.table.split("_")
        words = f"{abnormality.title()}-{'Training' if part == 'train' else 'Test'}"
        return f"{words}_P_{self.patient:05d}_{self.side_view}"

    def pixels(self) -> np.ndarray:
        """Return the whole picture, 16 bit as the scans are."""
        return picture(self.patient * 10 + len(self.side_view)).astype(np.uint16) * 200

    def mask(self) -> np.ndarray:
        scale = self.mask_shape[0] / SIDE
        x, y, radius = (round(value * scale) for value in self.lesion)
        return disc(x, y, radius, self.mask_shape)

    def crop(self) -> np.ndarray:
        """Return what is cut out round the lesion: its box and two pixels on each side."""
        x, y, radius = self.lesion
        return self.pixels()[y - radius - 2 : y + radius + 3, x - radius - 2 : x + radius + 3]


CASES = (
    Case(1, 1, (20, 20, 8)),
    Case(1, 2, (45, 45, 6)),  # two lesions in one picture
    Case(2, 1, (30, 30, 9), swapped=True),
    Case(3, 1, (30, 20, 9), separate=True),
    Case(4, 1, (32, 40, 10), side_view="RIGHT_MLO", mask_shape=(48, 48)),
    Case(5, 1, (30, 30, 7)),
    Case(6, 1, (25, 35, 7)),
    Case(7, 1, (25, 30, 9), table="mass_test"),
    Case(8, 1, (25, 30, 9), table="mass_test", swapped=True),
    Case(5, 1, (40, 30, 9), table="calc_train", side_view="LEFT_MLO"),
)


def cbis(root: Path, layout: str = "tcia", cases: Sequence[Case] = CASES, older: bool = False) -> Path:
    """Write a fake CBIS-DDSM.

    Layouts: "tcia" (folders by UID, 1-1.dcm), "dated" (folders by date and description), "literal" (000000.dcm,
    exactly as the tables say), "headers" (only the headers name the series), "renamed" (dated, and the headers have
    other UIDs), "kaggle" (JPEG), "kaggle_info" (JPEG in folders of other UIDs, named by dicom_info.csv).
    """
    tables: dict[str, list[dict[str, str]]] = {}
    info: list[dict[str, str]] = []
    for case in cases:
        study = f"1.2.3.{case.patient}.{case.number}.{len(case.side_view)}.{len(case.table)}"
        series = {
            # One picture, whichever lesion the line is about.
            "full": f"1.2.3.{case.patient}.0.{len(case.side_view)}.{len(case.table)}",
            "crop": f"{study}.2",
            "mask": f"{study}.3" if case.separate else f"{study}.2",
        }
        lesion = f"{case.folder}_{case.number}"
        mask_file = "000000.dcm" if case.separate else "000001.dcm"
        paths = {
            "full": f"{case.folder}/{study}/{series['full']}/000000.dcm",
            "crop": f"{lesion}/{study}/{series['crop']}/000000.dcm",
            "mask": f"{lesion}/{study}/{series['mask']}/{mask_file}",
        }
        order = {"full": 1, "mask": 1 if case.swapped or case.separate else 2, "crop": 2 if case.swapped else 1}
        pixels = {"full": case.pixels(), "crop": case.crop(), "mask": case.mask()}
        for what in ("full", "crop", "mask"):
            place = _write_cbis(root, layout, case, what, paths[what], order[what], pixels[what])
            description = {"full": "full mammogram images", "crop": "cropped images", "mask": "ROI mask images"}[what]
            info.append({
                "file_path": "", "image_path": f"CBIS-DDSM/{place.relative_to(root).as_posix()}",
                "PatientID": paths[what].split("/")[0], "SeriesDescription": description,
            })  # fmt: skip
        if case.swapped:
            paths["crop"], paths["mask"] = paths["mask"], paths["crop"]
        tables.setdefault(case.table, []).append(_cbis_line(case, paths, older))
    for name, rows in tables.items():
        abnormality, part = name.split("_")
        folder = root / "csv" if layout.startswith("kaggle") else root
        folder.mkdir(parents=True, exist_ok=True)
        _write_csv(folder / f"{abnormality}_case_description_{part}_set.csv", rows)
    if layout == "kaggle_info":
        _write_csv(root / "csv/dicom_info.csv", info)
    return root


def _write_cbis(root: Path, layout: str, case: Case, what: str, path: str, order: int, pixels: np.ndarray) -> Path:
    folder, study, series, _ = path.split("/")
    described = {"full": "full mammogram images", "crop": "cropped images", "mask": "ROI mask images"}[what]
    if not case.separate and what != "full":
        described = "cropped images"  # one folder for both
    places = {
        "tcia": root / "CBIS-DDSM" / folder / study / series / f"1-{order}.dcm",
        "dated": root / "x" / folder / "07-20-2016-DDSM-NA-80627" / f"1.000000-{described}-12345" / f"1-{order}.dcm",
        "literal": root / folder / study / series / ("000001.dcm" if order == 2 else "000000.dcm"),
        "renamed": root / "x" / folder / "07-20-2016-DDSM-NA-80627" / f"1.000000-{described}-12345" / f"1-{order}.dcm",
        "headers": root / "download" / f"{folder}-x".replace("_", "") / f"{described}{case.table}" / f"1-{order}.dcm",
        "kaggle": root / "jpeg" / series / f"1-{100 + order}.jpg",
        "kaggle_info": root / "jpeg" / f"9{series}" / f"1-{100 + order}.jpg",
    }  # fmt: skip
    place = places[layout]
    if layout.startswith("kaggle"):
        grey = pixels if what == "mask" else (pixels // 200).astype(np.uint8)
        return write(place, cv2.merge([grey] * 3), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return write_dicom(place, pixels, series if layout != "renamed" else "")


def _cbis_line(case: Case, paths: dict[str, str], older: bool) -> dict[str, str]:
    side, view = case.side_view.split("_")
    if older:
        back = {what: path.replace("/", "\\") for what, path in paths.items()}
        return {
            "patient_id": f"P_{case.patient:05d}", "side": side, "view": view, "abn_num": str(case.number),
            "breast_density": "2", "mass_shape": "OVAL", "pathology": "BENIGN",
            "od_img_path": back["full"], "od_crop_path": back["crop"], "mask_path": back["mask"] + "\n",
        }  # fmt: skip
    calc = case.table.startswith("calc")
    return {
        "patient_id": f"P_{case.patient:05d}", ("breast density" if calc else "breast_density"): "3",
        "left or right breast": side, "image view": view, "abnormality id": str(case.number),
        "abnormality type": "calcification" if calc else "mass", ("calc type" if calc else "mass shape"): "ROUND",
        "assessment": "4", "pathology": "MALIGNANT", "subtlety": "3", "image file path": paths["full"],
        "cropped image file path": paths["crop"], "ROI mask file path": paths["mask"] + "\n",
    }  # fmt: skip


def _write_csv(path: Path, rows: Sequence[dict[str, str]], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def inbreast(root: Path) -> Path:
    """Write a fake INbreast: six patients, two pictures of the first."""
    pictures = [
        ("20586908", "6c613a14b80a8591", "R", "CC"), ("20586934", "6c613a14b80a8591", "L", "ML"),
        ("53582540", "aaaaaaaaaaaaaaaa", "L", "CC"), ("22614522", "bbbbbbbbbbbbbbbb", "R", "ML"),
        ("22614568", "cccccccccccccccc", "L", "ML"), ("22670094", "dddddddddddddddd", "R", "CC"),
        ("22670147", "eeeeeeeeeeeeeeee", "R", "ML"),
    ]  # fmt: skip
    rows = []
    for seed, (name, patient, side, view) in enumerate(pictures):
        pixels = picture(seed).astype(np.uint16) * 60
        write_dicom(root / "AllDICOMs" / f"{name}_{patient}_MG_{side}_{view}_ANON.dcm", pixels, captured=False)
        rows.append({
            "Patient ID": "removed", "Patient age": "removed", "Laterality": side, "View": view.replace("ML", "MLO"),
            "Acquisition date": "201001", "File Name": name, "ACR": "" if name == "53582540" else " 2 ",
            "Bi-Rads": "4a",
        })  # fmt: skip
    _write_csv(root / "INbreast.csv", rows, ";")
    square = [(10, 10), (30, 10), (30, 25), (10, 25)]
    spiky = [(40, 40), (50, 40), (45, 52)]
    write_plist(root / "AllXML/20586908.xml", [("Mass", square), ("Calcification", [(5, 5)]), ("Mass", spiky)])
    write_plist(root / "AllXML/53582540.xml", [("Espiculated Region", spiky), ("Mass", square)])
    write_plist(root / "AllXML/22614522.xml", [("Cluster", square)])
    write_plist(root / "AllXML/22614568.xml", [("Mass", square), ("Mass", [(3, 3)])])
    return root


def write_plist(path: Path, rois: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Path:
    """Write outlines as INbreast's Apple property lists hold them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = [
        {"Name": name, "NumberOfPoints": len(points), "Point_px": [f"({x:.6f}, {y:.6f})" for x, y in points]}
        for name, points in rois
    ]
    path.write_bytes(plistlib.dumps({"Images": [{"ImageIndex": 0, "NumberOfROIs": len(rois), "ROIs": content}]}))
    return path


def dmid(root: Path, dicom: bool = True, same_patient: bool = False) -> Path:
    """Write a fake DMID with its nested folders: a mass, mass and calcification, calcification, no mask, normals."""
    info = [
        "IMG001 CCRT G CIRC B 20 20 8", "IMG002 MLOLT F CIRC M 20 20 8", "IMG002 MLOLT F CALC M 45 45 6",
        "IMG003 CCLT D CALC B 30 30 5", "IMG004 MLORT G SPIC M 30 30 5", "IMG005 CCLT F NORM", "IMG006 CCRT G NORM",
        "IMG007 CCRT G MISC B 30 30 9",
    ]  # fmt: skip
    (root / "Info").mkdir(parents=True)
    (root / "Info/Info.txt").write_text("DMID\n\n" + "\n".join(info) + "\n", encoding="utf-8")
    lossless = [cv2.IMWRITE_TIFF_COMPRESSION, 5]  # LZW
    for number in range(1, 8):
        name, grey = f"IMG{number:03d}", picture(number)
        rgba = cv2.merge([grey, grey, grey, np.full_like(grey, 255)])
        write(root / "TIFF Images/TIFF Images" / f"{name}.tif", rgba, lossless)
        contour = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
        cv2.circle(contour, (20, 20), 8, (0, 0, 255), 1)
        write(root / "Pixel-level annotation/Pixel-level annotation" / f"{name}.tif", contour, lossless)
        if number in (1, 2, 3, 7):
            mask = disc(20, 20, 8) | (disc(45, 45, 6) if number == 2 else 0)
            alpha = np.full_like(mask, 255)
            stored = contour if number == 7 else cv2.merge([mask, mask, mask, alpha])  # a drawn contour as mask
            write(root / "ROI Masks/ROI Masks" / f"{name}.tif", stored, lossless)
        if dicom:
            patient = "one" if same_patient else str(max(number, 2))
            write_dicom(root / "DICOM Images/DICOM Images" / f"{name}.dcm", grey.astype(np.uint16) * 16,
                        patient=patient, captured=False)  # fmt: skip
    (root / "Reports").mkdir()
    (root / "Reports/Img001.txt").write_text("BREAST\nBIRADS: 4b\n", encoding="utf-8")
    return root


def busi(root: Path, copies: bool = True) -> Path:
    """Write a fake BUSI: several masks, RGB and alpha masks, a near-duplicate in another class, normals with masks."""
    base = root / "Dataset_BUSI_with_GT"
    for number in range(1, 7):
        write(base / f"benign/benign ({number}).png", cv2.merge([picture(number)] * 3))
        write(base / f"benign/benign ({number})_mask.png", disc(20, 20, 8))
        write(base / f"malignant/malignant ({number}).png", picture(20 + number))
        write(base / f"malignant/malignant ({number})_mask.png", disc(40, 40, 8))
        write(base / f"normal/normal ({number}).png", picture(40 + number))
        write(base / f"normal/normal ({number})_mask.png", np.zeros((SIDE, SIDE), np.uint8))
    write(base / "benign/benign (1)_mask_1.png", disc(50, 50, 5))
    write(base / "benign/benign (1)_mask_2.png", disc(50, 10, 5))
    write(base / "benign/benign (2)_mask.png", cv2.merge([disc(20, 20, 8)] * 3))
    mask = disc(20, 20, 8)
    write(base / "benign/benign (3)_mask.png", cv2.merge([np.full_like(mask, 255)] * 3 + [mask]))  # only alpha tells
    if copies:  # the same picture, brighter, resized and cut to another encoding
        again = cv2.convertScaleAbs(cv2.resize(picture(4), (80, 80)), alpha=0.9, beta=12)
        write(base / "malignant/malignant (6).png", again)
        write(base / "malignant/malignant (6)_mask.png", disc(40, 40, 8, (80, 80)))
    return root


CODES = np.repeat(np.arange(22, dtype=np.uint8), SIDE * SIDE // 22 + 1)[: SIDE * SIDE].reshape(SIDE, SIDE)
"""All 22 codes of BCSS."""


def bcss(root: Path) -> Path:
    """Write a fake BCSS of regions: hospitals of all three published parts, two regions of one case."""
    cases = ("OL-A5D6", "S3-AA10", "BH-A0BG", "A8-A06N", "AR-A0TS", "AN-A0AL", "AO-A03U", "D8-A1JE", "E2-A14N")
    names = [f"TCGA-{case}-01Z-00-DX1_xmin1000_ymin2000_MPP-0.2500" for case in cases]
    names.append("TCGA-AR-A0TS-01Z-00-DX1_xmin9000_ymin2000_MPP-0.2500")
    for seed, name in enumerate(names):
        write(root / f"rgbs_colorNormalized/{name}.png", tissue(seed))
        write(root / f"masks/{name}.png", CODES)
    return root


def tissue(seed: int) -> np.ndarray:
    """Return a coloured picture."""
    return cv2.merge([picture(3 * seed + k + 100) for k in range(3)])


def bcss_tiles(root: Path, side: int) -> Path:
    """Write Kaggle's tiles: 512 (whole names) by hospital, 224 dealt at random within slides."""
    base, end = (root / "BCSS_512", "_512") if side == 512 else (root / "BCSS", "")
    parts = ("train", "val") if side == 512 else ("train", "val", "test")
    cases = ["OL-A5D6", "BH-A0BG", "AR-A0TS", "AN-A0AL", "AO-A03U", "D8-A1JE"]
    for k, case in enumerate(cases * 2):
        part = (
            ("val" if case[:2] in ("OL", "BH") else "train") if side == 512 else parts[k % 3 if k < 6 else (k + 1) % 3]
        )
        name = f"TCGA-{case}-01Z-00-DX1_xmin1_ymin2_MPP-0_{side * k}_0_size{side}.png"
        write(base / f"{part}{end}/{name}", tissue(50 + k))
        if part != "test":  # the test tiles come without masks
            write(base / f"{part}_mask{end}/{name}", CODES if side == 512 else CODES % 3)
    return root


def mini_mias(root: Path, text: str, films: int) -> Path:
    """Write films mdb001.pgm … with a list."""
    (root / "all-mias").mkdir(parents=True)
    (root / "all-mias/Info.txt").write_text(text, encoding="latin-1")
    for number in range(1, films + 1):
        write(root / f"all-mias/mdb{number:03d}.pgm", picture(number, (1024, 1024)))
    return root


def bcdr(root: Path, patients: int = 20) -> Path:
    """Write a fake BCDR-D01: names with spaces, several outlines, an outline of something else, a broken outline."""
    base = root / "BCDR-D01_dataset"
    pictures, outlines = [], []
    square = {"lw_x_points": " 10 30 30 10", "lw_y_points": " 12 12 40 40"}
    small = {"lw_x_points": " 45 55 50", "lw_y_points": " 45 45 58"}
    for patient in range(1, patients + 1):
        for kind, view in ((1, "RCC"), (2, "LO")):
            name = f"patient_{patient}/study_{patient}/img_{patient}_{patient}_1_{view}.tif"
            write(base / name, picture(patient * 2 + kind))
            row = {"patient_id": patient, "study_id": patient, "series": 1}
            pictures.append(row | {
                "image_filename": f" ./{name}", "image_type_name": view, "image_type_id": kind, "age": 50, "density": 2,
            })  # fmt: skip
            if kind == 1 and patient <= 4:
                for lesion, points in enumerate((square, small) if patient == 1 else (square,)):
                    outlines.append(row | {
                        "lesion_id": lesion, "segmentation_id": 1, "image_view": kind, "image_filename": f" ./{name}",
                        **(points if patient != 4 else {"lw_x_points": "NaN", "lw_y_points": ""}),
                        "mammography_nodule": 0 if patient == 3 else 1, "mammography_calcification": 1,
                        "classification": " Malign" if patient == 2 else " Benign",
                    })  # fmt: skip
    _write_csv(base / "bcdr_d01_img.csv", [{k: str(v) for k, v in row.items()} for row in pictures])
    _write_csv(base / "bcdr_d01_outlines.csv", [{k: str(v) for k, v in row.items()} for row in outlines])
    return root
