"""The networks, by name. Each returns logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from mammo_runtime.errors import UsageError
from mammo_runtime.spec import ModelSpec, Task
from mammo_train.models import busi, cobos, connected, critic, lite_medsam, mobilenetv2, resunet, sam, unet, unetpp

WHOLE = "whole"
"""Width of networks that their study gives in one size."""
TINY = "tiny"
"""Width for tests and trials; the same network with an eighth of the filters or fewer."""
SMP = "smp:"
"""`smp:<arch>/<encoder>` names any network of segmentation-models-pytorch."""


@dataclass(frozen=True)
class Architecture:
    """A network that can be trained."""

    build: Callable[..., nn.Module]
    """Takes channels, classes, width (filters of one of `widths`) and the names in `options`; all by keyword."""
    study: str
    """The seed study that names it."""
    summary: str
    multiple: int
    """Height and width must be multiples of this."""
    widths: Mapping[str, tuple[int, ...]]
    """Width's name → filters from the finest level to the deepest; the first one is the default."""
    task: Task = Task.SEGMENTATION
    channels: int = 3
    height: int = 256
    width: int = 256
    """Input of the study: channels, height, width."""
    classes: int = 1
    loss: str = "tversky_bce"
    """Name of the default loss in `losses.LOSSES`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of `build` with their defaults (e.g. deep_supervision, final, aspp)."""
    critics: Callable[[int], critic.MultiscaleCritics] | None = None
    """Of adversarial training: takes the channels of image and mask together. Trained beside the network, not in it."""


L, S = (64, 128, 256, 512, 1024), (32, 64, 128, 256, 512)
UNET_WIDTHS: Mapping[str, tuple[int, ...]] = {"L": L, "S": S, TINY: (8, 16, 32, 64, 128)}
UP: Mapping[str, Any] = {"up": "transposed"}
CONNECTED: Mapping[str, Any] = {**UP, "aspp": True, "norm_order": "conv_norm_relu"}
DECODER = (16, 32, 64, 128, 256)
"""Decoder filters from 1/1 to 1/16 on an encoder that is given."""


def _from_smp(arch: str, encoder: str, **arguments: Any) -> nn.Module:
    from mammo_train.models import smp_networks  # seconds to import, and only these need it

    return smp_networks.smp_network(arch, encoder, **arguments)


def _study_000(build: Callable[..., nn.Module], summary: str, options: Mapping[str, Any] = UP) -> Architecture:
    return Architecture(build, "000", summary, 16, UNET_WIDTHS, loss="bce_dice", options=options)


ARCHITECTURES: Mapping[str, Architecture] = {
    "mobilenetv2_resunet": Architecture(
        mobilenetv2.MobileNetV2ResUNet, "004", "MobileNetV2 encoder, residual U-Net decoder", 32, {WHOLE: DECODER}
    ),
    "mobilenetv2_unet": Architecture(
        mobilenetv2.MobileNetV2UNet, "004", "MobileNetV2 encoder, plain U-Net decoder", 32, {WHOLE: DECODER}
    ),
    "resunet": Architecture(
        resunet.ResUNet, "004", "deep residual U-Net", 8, {WHOLE: (64, 128, 256, 512), TINY: (8, 16, 32, 64)}
    ),
    "unet": _study_000(unet.UNet, "U-Net with batch norm"),
    "attention_unet": _study_000(unet.attention_unet, "U-Net with attention gates (AUNet)"),
    "dense_unet": _study_000(unet.dense_unet, "U-Net of dense blocks"),
    "unetpp": _study_000(
        unetpp.UNetPlusPlus, "nested U-Net (UNet++), prunable", {"deep_supervision": False, "columns": 4}
    ),
    "connected_unet": _study_000(connected.ConnectedUNet, "two U-Nets in a row (Connected-UNets)", CONNECTED),
    "connected_dense_unet": _study_000(connected.connected_dense_unet, "two dense U-Nets in a row (CDUNet)", CONNECTED),
    "connected_attention_unet": _study_000(
        connected.connected_attention_unet, "two attention U-Nets in a row (CAUNet)", CONNECTED
    ),
    "connected_unetpp": _study_000(
        connected.ConnectedUNetPlusPlus,
        "two nested U-Nets in a row (CUNet++)",
        {"aspp": False, "norm_order": "conv_norm_relu"},
    ),
    "msanet": Architecture(
        unet.UNet,
        "000",
        "U-Net trained against three critics (MSANet)",
        16,
        UNET_WIDTHS,
        loss="adv_multiscale",
        options=UP,
        critics=critic.MultiscaleCritics,
    ),
    "bcss_unet_resnet34": Architecture(
        partial(_from_smp, "Unet", "resnet34"),
        "001",
        "ResNet34 encoder, U-Net decoder, 21 tissue classes",
        32,
        {WHOLE: DECODER},
        Task.MULTICLASS,
        height=512,
        width=512,
        classes=21,
        loss="ce_dice",
    ),
    "busi_unet": Architecture(
        busi.BusiUNet,
        "002",
        "U-Net without batch norm, for ultrasound",
        16,
        {WHOLE: L, TINY: (8, 16, 32, 64, 128)},
        channels=1,
        height=128,
        width=128,
        loss="bce_dice",
        options={"final": "logits", "dropout_down": 0.2, "dropout_up": 0.1},
    ),
    "vgg16_busi": Architecture(
        busi.VGG16,
        "002",
        "VGG-16 classifier normal, benign, malignant",
        32,
        {WHOLE: (64, 128, 256, 512, 512), TINY: (8, 16, 32, 64, 64)},
        Task.CLASSIFICATION,
        height=224,
        width=224,
        classes=3,
        loss="cross_entropy",
        options={"head": "fc"},
    ),
    "cobos_vgg": Architecture(
        cobos.cobos_vgg,
        "003",
        "fully convolutional VGG-like network (experiments 1 and 2)",
        16,
        {WHOLE: (56, 84, 112, 448), TINY: (8, 12, 16, 64)},
        channels=1,
        height=112,
        width=112,
        loss="masked_bce",
    ),
    "cobos_dilated": Architecture(
        cobos.cobos_dilated,
        "003",
        "dilated fully convolutional network (experiment 3)",
        4,
        {WHOLE: (32, 64, 128, 256), TINY: (8, 16, 32, 64)},
        channels=1,
        height=128,
        width=128,
        loss="masked_bce",
    ),
    "sam_box": Architecture(
        sam.SamBox,
        "002",
        "Segment Anything ViT-B: a box for each lesion",
        64,
        sam.WIDTHS,
        Task.PROMPTED,
        height=1024,
        width=1024,
        loss="dice_ce",
    ),
    "medsam_box": Architecture(
        sam.SamBox,
        "002",
        "MedSAM: Segment Anything ViT-B on stretched medical images, a box for each lesion",
        64,
        sam.WIDTHS,
        Task.PROMPTED,
        height=1024,
        width=1024,
        loss="dice_ce",
    ),
    "lite_medsam": Architecture(
        lite_medsam.LiteMedSam,
        "002",
        "LiteMedSAM: TinyViT at 256x256, a box for each lesion",
        64,
        lite_medsam.WIDTHS,
        Task.PROMPTED,
        loss="dice_ce",
    ),
}


def known(name: str) -> Architecture:
    """Return a network's entry. Raises UsageError listing the known names for an unknown one."""
    if name.startswith(SMP):
        return _smp_entry(name)
    if name not in ARCHITECTURES:
        raise UsageError(f"unknown model {name!r}; known: {', '.join(ARCHITECTURES)}, {SMP}<arch>/<encoder>")
    return ARCHITECTURES[name]


def build(
    name: str, classes: int | None = None, channels: int | None = None, width: str | None = None, **options: Any
) -> nn.Module:
    """Return a freshly initialised network; what is not given is the study's. Raises UsageError on unknown choices."""
    entry = known(name)
    width = width or next(iter(entry.widths))
    if width not in entry.widths:
        raise UsageError(f"{name} has no width {width!r}; it has {', '.join(entry.widths)}")
    unknown = sorted(set(options) - set(entry.options))
    if unknown:
        raise UsageError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(entry.options) or 'none'}")
    for option, value in options.items():
        default = entry.options[option]
        numbers = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
        if type(value) is not type(default) and not numbers:
            raise UsageError(f"the option {option} of {name} is like {default!r}, not {value!r}")
    return entry.build(
        channels=channels or entry.channels,
        classes=classes or entry.classes,
        width=entry.widths[width],
        **{**entry.options, **options},
    )


def build_for(spec: ModelSpec) -> nn.Module:
    """Return the freshly initialised network that a spec describes."""
    return build(spec.architecture, len(spec.classes), spec.input.channels, **spec.network)


def count_parameters(
    name: str, classes: int | None = None, channels: int | None = None, width: str | None = None, **options: Any
) -> int:
    """Return the number of parameters, counted on the network itself; takes no memory for its weights."""
    with torch.device("cpu" if name.startswith(SMP) else "meta"):  # some of smp's compute while they are built
        network = build(name, classes, channels, width, **options)
    return sum(p.numel() for p in network.parameters())


def _smp_entry(name: str) -> Architecture:
    """Return the entry of `smp:<arch>/<encoder>`. Raises UsageError when smp has no such network."""
    from mammo_train.models import smp_networks

    arch, slash, encoder = name.removeprefix(SMP).partition("/")
    if not slash:
        raise UsageError(f"{name!r} names no encoder; write {SMP}<arch>/<encoder>, like smp:Unet/resnet34")
    smp_networks.check_name(arch, encoder)
    build_it = partial(_from_smp, arch, encoder)
    return Architecture(build_it, "-", f"segmentation-models-pytorch: {arch} on {encoder}", 32, {WHOLE: ()})
