"""Every published system: which network by which preset on which pictures, and what its study reported.

Reported numbers stand as printed in the five studies, contradictions included, which `metrics.reported_row_problem`
flags. They are no goals for other data: a row says what it was measured on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mammo_runtime.errors import UsageError
from mammo_runtime.mammogram import Modality


@dataclass(frozen=True)
class Reported:
    """A row of a study's table, as printed."""

    label: str
    data: str
    values: Mapping[str, float]
    """Metric → number; names as in `metrics.METRICS` where they mean the same."""
    note: str = ""


@dataclass(frozen=True)
class System:
    """One row of the reproduction table."""

    architecture: str
    study: str
    preset: str
    modality: Modality
    mode: str = "full"
    reported: tuple[Reported, ...] = ()
    network: Mapping[str, str] = field(default_factory=dict)
    """Options beside the preset's: the width trained here."""
    pretrained: bool = False
    """Starts from the MobileNetV2 encoder where its file is at hand."""
    tiny_side: int = 64
    """Side of the grid with `--tiny`; larger where the network takes no other."""


_CBIS = "CBIS-DDSM, whole images, 123 test images, not patient-disjoint"
_CBIS_CROPS = "CBIS-DDSM, lesion crops, 123 test crops, not patient-disjoint"
_BUSI = "BUSI ultrasound, own split"
_BCDR = "BCDR-D01, 38 test images of 10 patients, pooled over breast pixels"
_DMID = "DMID, whole images, split not stated"
_S = {"width": "S"}


def _study_000(architecture: str, mode: str, label: str, loss: float, dice: float, iou: float) -> System:
    data = _CBIS if mode == "full" else _CBIS_CROPS
    row = Reported(label, data, {"loss": loss, "dice": dice, "iou": iou})
    return System(architecture, "000", "seed", Modality.MAMMOGRAPHY, mode, (row,), _S)


def _cobos(label: str, iou: float, f1: float, g_mean: float, accuracy: float, sensitivity: float, specificity: float,
           precision: float) -> Reported:  # fmt: skip
    values = {"iou": iou, "dice": f1, "g_mean": g_mean, "accuracy": accuracy, "sensitivity": sensitivity,
              "specificity": specificity, "precision": precision}  # fmt: skip
    return Reported(label, _BCDR, values)


_SAM_NOTE = "a loss with cross-entropy in it: 1 - loss is not Dice, and the boxes come from the truth"

SYSTEMS: Mapping[str, System] = {
    "unet": System("unet", "000, 004", "seed", Modality.MAMMOGRAPHY, "full",
                   (Reported("U-Net, Table IV.2 (other authors)", _DMID, {"dice": 0.6076}),), _S),
    "attention_unet": _study_000("attention_unet", "full", "AUNet", 0.6794, 0.3630, 0.2189),
    "dense_unet": _study_000("dense_unet", "full", "Dense UNet", 0.6733, 0.3665, 0.2239),
    "unetpp": _study_000("unetpp", "full", "UNet++", 0.7008, 0.3406, 0.2243),
    "connected_dense_unet": _study_000("connected_dense_unet", "full", "CDUNet", 0.6890, 0.3534, 0.2239),
    "connected_unetpp": _study_000("connected_unetpp", "full", "CUNet++", 0.7060, 0.3234, 0.3234),
    "connected_attention_unet": _study_000("connected_attention_unet", "full", "CAUNet", 1.01, 0.3789, 0.2458),
    "connected_unet": System("connected_unet", "000 (cited)", "seed", Modality.MAMMOGRAPHY, "roi",
                             (Reported("Connected-UNets 2021", "CBIS-DDSM, crops", {"dice": 0.8952}),
                              Reported("Connected-UNets 2021", "INbreast, crops", {"dice": 0.9528})), _S),
    "connected_dense_unet_cropped":
        _study_000("connected_dense_unet", "roi", "CDUNet (Cropped)", 0.5271, 0.8495, 0.7360),
    "dense_unet_cropped": _study_000("dense_unet", "roi", "Dense UNet (Cropped)", 0.5904, 0.8179, 0.6901),
    "connected_attention_unet_cropped":
        _study_000("connected_attention_unet", "roi", "CAUNet (Cropped)", 0.6999, 0.8663, 0.7620),
    "attention_unet_cropped": _study_000("attention_unet", "roi", "AUNet (Cropped)", 0.6703, 0.8484, 0.7344),
    "msanet": _study_000("msanet", "roi", "MSANet (Cropped)", 0.4565, 0.8556, 0.7409),
    "connected_unetpp_cropped": _study_000("connected_unetpp", "roi", "CUNet++ (Cropped)", 0.4964, 0.8344, 0.7577),
    "bcss_unet_resnet34": System("bcss_unet_resnet34", "001", "seed", Modality.HISTOPATHOLOGY, "full", (
        Reported("tumour class", "BCSS, 512x512 tiles, split not stated",
                 {"accuracy": 0.954, "precision": 0.945, "sensitivity": 0.918, "dice": 0.9205}),)),
    "busi_unet": System("busi_unet", "002", "seed", Modality.ULTRASOUND, "full", (
        Reported("U-Net", _BUSI, {"mse_train": 0.0036, "mse_validation": 0.0200}),)),
    # The study's ReLU output died here within six minutes of training (row above): the same network, trained our way.
    "busi_unet_logits": System("busi_unet", "002 (our preset)", "default", Modality.ULTRASOUND),
    "vgg16_busi": System("vgg16_busi", "002", "seed", Modality.ULTRASOUND, "full", (
        Reported("VGG-16", _BUSI, {"accuracy_train": 0.9817, "accuracy_validation": 0.8780,
                                   "accuracy_validation_best": 0.9329, "accuracy_final": 0.8606},
                 "best and final accuracy differ by 7 points; the inputs may carry mask overlays"),), tiny_side=224),
    "sam_box": System("sam_box", "002", "seed", Modality.ULTRASOUND, "full", (
        Reported("SAM", _BUSI, {"dice_ce_train": 0.070, "dice_ce_validation": 0.067}, _SAM_NOTE),)),
    "medsam_box": System("medsam_box", "002", "seed", Modality.ULTRASOUND, "full", (
        Reported("MedSAM", _BUSI, {"dice_ce_train": 0.064, "dice_ce_validation": 0.058}, _SAM_NOTE),)),
    "lite_medsam": System("lite_medsam", "002 (edge variant)", "default", Modality.ULTRASOUND),
    "cobos_vgg_exp1": System("cobos_vgg", "003", "seed-exp1", Modality.MAMMOGRAPHY, "full",
                             (_cobos("Exp 1", .109, .197, .49, .98, .243, .987, .165),)),
    "cobos_vgg_exp2": System("cobos_vgg", "003", "seed-exp2", Modality.MAMMOGRAPHY, "full",
                             (_cobos("Exp 2", .117, .21, .493, .981, .246, .989, .184),)),
    "cobos_dilated_exp3": System("cobos_dilated", "003", "seed-exp3", Modality.MAMMOGRAPHY, "full",
                                 (_cobos("Exp 3 (threshold .9)", .153, .266, .504, .985, .256, .993, .277),
                                  _cobos("Exp 3 (threshold .1, G-mean)", .054, .103, .842, .852, .831, .852, .055))),
    "resunet": System("resunet", "004", "seed", Modality.MAMMOGRAPHY, "full",
                      (Reported("ResUNet", _DMID, {"loss": 0.2431, "dice": 0.7667, "iou": 0.5856}),)),
    "mobilenetv2_unet": System("mobilenetv2_unet", "004", "seed", Modality.MAMMOGRAPHY, "full",
                               (Reported("MobileNetV2-UNet", _DMID, {"loss": 0.3650, "dice": 0.5823, "iou": 0.3805}),),
                               pretrained=True),
    "mobilenetv2_resunet": System("mobilenetv2_resunet", "004", "seed", Modality.MAMMOGRAPHY, "full",
                                  (Reported("MobileNetV2-ResUNet", _DMID,
                                            {"loss": 0.1439, "dice": 0.8704, "iou": 0.7741},
                                            "Table IV.2 heads this number as validation"),),
                                  pretrained=True),
}  # fmt: skip


def chosen_systems(name: str) -> Mapping[str, System]:
    """Return all systems for "all", else the one named. Raises UsageError listing the known names."""
    if name == "all":
        return SYSTEMS
    if name not in SYSTEMS:
        raise UsageError(f"unknown system {name!r}; known: all, {', '.join(SYSTEMS)}")
    return {name: SYSTEMS[name]}
