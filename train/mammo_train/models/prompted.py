"""Networks that need a box: an encoder looks at the image once, a decoder answers each box (Kirillov et al. 2023).

The two halves are modules of their own, `encoder` and `decoder`, because they are frozen, cached and exported apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mammo_runtime.spec import PromptSpec


@dataclass(frozen=True)
class DecoderSize:
    """Sizes of the prompt encoder and the mask decoder; the defaults are Segment Anything's."""

    side: int = 1024
    """Side of the square input grid, in pixels."""
    embedding_side: int = 64
    channels: int = 256
    """Of the image embedding; twice the number of positional features."""
    mask_channels: int = 16
    """Of the unused mask prompt; kept so that published weights fit."""
    layers: int = 2
    heads: int = 8
    mlp: int = 2048
    iou_depth: int = 3
    iou_width: int = 256

    @property
    def mask_side(self) -> int:
        """Side of the decoder's mask: two doublings of the embedding's."""
        return 4 * self.embedding_side


def sam_model(size: DecoderSize, vision: dict[str, Any]) -> Any:
    """Return transformers' SamModel at random; `vision` are settings of its encoder beyond side and channels.

    It starts as Segment Anything's own code does, with each layer's usual start. The library's is for loading
    weights only: its encoder begins at 1e-10, which answers every image alike and hardly learns.
    """
    from transformers import SamConfig, SamModel

    patch = size.side // size.embedding_side
    features = {"num_pos_feats": size.channels // 2, "output_channels": size.channels}
    # Fused attention ends in a view that torch.export refuses ("cannot view a tensor with shape ...").
    eager: dict[str, Any] = {"attn_implementation": "eager"}
    config = SamConfig(
        vision_config={"image_size": size.side, "patch_size": patch, **features, **vision},
        prompt_encoder_config={
            "hidden_size": size.channels,
            "image_size": size.side,
            "patch_size": patch,
            "mask_input_channels": size.mask_channels,
        },
        mask_decoder_config={
            "hidden_size": size.channels,
            "mlp_dim": size.mlp,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "iou_head_depth": size.iou_depth,
            "iou_head_hidden_dim": size.iou_width,
        },
        **eager,
    )
    model = SamModel(config)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)):
            module.reset_parameters()
    return model


class BoxDecoder(nn.Module):
    """Prompt encoder and mask decoder of transformers' SAM, for boxes alone and one mask for each box."""

    def __init__(self, size: DecoderSize, prompt_encoder: nn.Module, mask_decoder: nn.Module) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = prompt_encoder, mask_decoder
        self._side = size.side
        # Not `scale` (half the encoder's width) as transformers starts it: so high a frequency would turn near
        # corners into unrelated vectors. 1 is what Segment Anything trains with.
        with torch.no_grad():
            nn.init.normal_(self._frequencies)
        middles = (torch.arange(size.embedding_side, dtype=torch.float32) + 0.5) / size.embedding_side
        y, x = torch.meshgrid(middles, middles, indexing="ij")
        self.register_buffer("cells", torch.stack([x, y], dim=-1), persistent=False)
        self.cells: torch.Tensor

    @property
    def _frequencies(self) -> nn.Parameter:
        parameter: nn.Parameter = self.prompt_encoder.get_parameter("shared_embedding.positional_embedding")
        return parameter

    def forward(self, embedding: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map embedding [N, c, h, w] and boxes [N, B, 4] to logits [N, B, 1, 4h, 4w] and predicted IoU [N, B].

        A box is x0, y0, x1, y1 in pixels of the input grid.
        """
        images = embedding.shape[0]
        corners = boxes.unflatten(-1, (2, 2)) + 0.5  # transformers' rule: coordinates are pixel numbers, not edges
        point: list[torch.Tensor] = [self.prompt_encoder.get_parameter(f"point_embed.{k}.weight") for k in (2, 3)]
        sparse = self._encode(corners / self._side) + torch.cat(point)
        dense = self.prompt_encoder.get_parameter("no_mask_embed.weight")[..., None, None]
        places = self._encode(self.cells).permute(2, 0, 1)[None].expand(images, -1, -1, -1)
        masks, iou = self.mask_decoder(
            image_embeddings=embedding,
            image_positional_embeddings=places,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return masks, iou[..., 0]

    def _encode(self, points: torch.Tensor) -> torch.Tensor:
        """Map points [..., 2] in 0..1 to sines and cosines [..., c] of random frequencies."""
        # No matrix product: autocast would make it, and so the place, as coarse as bfloat16 (three digits).
        x, y = (2 * points - 1).split(1, dim=-1)
        angles = (2 * math.pi) * (x * self._frequencies[0] + y * self._frequencies[1])
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)


class PromptedNetwork(nn.Module):
    """An encoder and a decoder. The prompt encoder's weights are never trained, as in MedSAM's training."""

    def __init__(self, size: DecoderSize, encoder: nn.Module, decoder: BoxDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.size = size
        decoder.prompt_encoder.requires_grad_(False)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Map images [N, 3, side, side] to embeddings [N, c, h, w]."""
        embedding: torch.Tensor = self.encoder(images)
        return embedding

    def decode(self, embedding: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map embeddings [N, c, h, w] and boxes [N, B, 4] (x0, y0, x1, y1 in grid pixels) to logits and predicted IoU.

        Logits are [N, B, 1, S, S] and cover the whole grid (S = `prompt_spec().mask_side`); the IoU is [N, B].
        """
        answer: tuple[torch.Tensor, torch.Tensor] = self.decoder(embedding, boxes)
        return answer

    def forward(
        self, images: torch.Tensor, boxes: torch.Tensor, encoded: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `decode` of `encode`; with `encoded`, `images` are embeddings already."""
        return self.decode(images if encoded else self.encode(images), boxes)

    def prompt_spec(self) -> PromptSpec:
        """Return what a `ModelSpec` says of the two graphs."""
        side = self.size.embedding_side
        return PromptSpec((self.size.channels, side, side), self.size.mask_side)
