"""`sam_box`, `medsam_box` (study 002): Segment Anything's ViT-B with boxes, through Hugging Face transformers.

Both are one network (93,735,728 parameters: encoder 89,670,912, prompt encoder 6,476, mask decoder 4,058,340) with
different published weights and inputs: SAM keeps the aspect ratio, MedSAM stretches each axis to the grid.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mammo_train.models.prompted import BoxDecoder, DecoderSize, PromptedNetwork, sam_model

WIDTHS: dict[str, tuple[int, ...]] = {"base": (768, 256), "tiny": (32, 16)}
"""Width of the image encoder and channels of the embedding. `tiny` is for tests."""

TINY_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "window_size": 2,
    "global_attn_indexes": [1],
    "mlp_dim": 64,
}
TINY = DecoderSize(64, 4, 16, 4, 2, 2, 32, 2, 16)
SIZES: dict[tuple[int, ...], tuple[DecoderSize, dict[str, Any]]] = {
    WIDTHS["base"]: (DecoderSize(), {}),
    WIDTHS["tiny"]: (TINY, TINY_VISION),
}


class SamEncoder(nn.Module):
    """SAM's image encoder: [N, 3, side, side] → [N, c, side/16, side/16]."""

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Apply patches, positions, transformer layers and neck.

        Not through the library's own `forward`: its recording of intermediate results has no place in an export.
        """
        x: torch.Tensor = self.vision.get_submodule("patch_embed")(images)
        x = x + self.vision.get_parameter("pos_embed")
        for layer in self.vision.get_submodule("layers").children():
            x = layer(x)
        embedding: torch.Tensor = self.vision.get_submodule("neck")(x)
        return embedding


class SamBox(PromptedNetwork):
    """`sam_box` and `medsam_box`, at random; `sam_weights.load_published` brings published weights."""

    def __init__(self, channels: int = 3, classes: int = 1, width: tuple[int, ...] = WIDTHS["base"]) -> None:
        if (channels, classes) != (3, 1):
            raise ValueError(f"SAM sees three channels and one class, not {channels} and {classes}")
        size, vision = SIZES[width]
        model = sam_model(size, vision)
        decoder = BoxDecoder(size, model.prompt_encoder, model.mask_decoder)
        super().__init__(size, SamEncoder(model.vision_encoder), decoder)
