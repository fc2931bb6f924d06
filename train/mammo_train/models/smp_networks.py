"""Networks of segmentation-models-pytorch: `bcss_unet_resnet34` (study 001) and any other by `smp:<arch>/<encoder>`.

Never with downloaded weights; pretrained ones come from a local file, as everywhere.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout

from torch import nn

from mammo_runtime.errors import UsageError

with redirect_stdout(io.StringIO()):  # huggingface_hub prints about an import it recovers from, into `models --json`
    import segmentation_models_pytorch as smp


def check_name(arch: str, encoder: str) -> None:
    """Raise UsageError, listing what exists, when smp lacks the architecture or the encoder."""
    known = [model.__name__ for model in smp.MODEL_ARCHITECTURES_MAPPING.values()]
    if arch.lower() not in smp.MODEL_ARCHITECTURES_MAPPING:
        raise UsageError(f"segmentation-models-pytorch has no architecture {arch!r}; it has {', '.join(known)}")
    encoders = smp.encoders.get_encoder_names()
    if encoder not in encoders and not encoder.startswith("tu-"):
        raise UsageError(
            f"segmentation-models-pytorch has no encoder {encoder!r}; it has {', '.join(encoders)}, "
            "and timm's with the prefix tu-"
        )


def smp_network(
    arch: str, encoder: str, channels: int, classes: int, width: Sequence[int] = (), **options: object
) -> nn.Module:
    """Return an untrained network of smp: [N, channels, H, W] → logits [N, classes, H, W]; sides multiples of 32.

    `width`: decoder filters from the finest level, where the architecture takes them; empty: smp's own. Raises
    UsageError for a combination that smp refuses.
    """
    if width:
        options["decoder_channels"] = tuple(width)[::-1]
    try:
        network: nn.Module = smp.create_model(
            arch, encoder, encoder_weights=None, in_channels=channels, classes=classes, **options
        )
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        raise UsageError(f"segmentation-models-pytorch cannot build {arch} on {encoder}: {error}") from error
    return network
