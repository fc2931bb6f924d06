"""Published weights of SAM, MedSAM and LiteMedSAM, from a local file or folder; nothing is ever downloaded.

Three ways of naming the same tensors: Hugging Face's (facebook/sam-vit-base, wanglab/medsam-vit-base), Meta's
(sam_vit_b_01ec64.pth, medsam_vit_b.pth; lite_medsam.pth outside its encoder), and our own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from mammo_runtime.errors import UsageError
from mammo_train.models.lite_medsam import TinyVitEncoder
from mammo_train.models.prompted import PromptedNetwork

FILES = ("model.safetensors", "pytorch_model.bin")
"""What a folder of Hugging Face's holds, the safer one first."""

_POSITIONS = "decoder.prompt_encoder.shared_embedding.positional_embedding"
_OURS = ((r"^(prompt_encoder|mask_decoder)\.", r"decoder.\1."),)
_HUGGING_FACE = (
    (r"^vision_encoder\.", "encoder.vision."),
    (r"^shared_image_embedding\.positional_embedding$", _POSITIONS),
    *_OURS,
)
_META = (
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", _POSITIONS),
    (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"^(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.layers\.0\.", r"\1.proj_in."),
    (r"^(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.layers\.2\.", r"\1.proj_out."),
    (r"^(mask_decoder\.(?:iou_prediction_head|output_hypernetworks_mlps\.\d+))\.layers\.1\.", r"\1.layers.0."),
    (r"^(mask_decoder\.transformer\..*)\bnorm(\d|_final_attn)\.", r"\1layer_norm\2."),
    *_OURS,
)
_META_ENCODER = (
    (r"^image_encoder\.patch_embed\.proj\.", "image_encoder.patch_embed.projection."),
    (r"^image_encoder\.blocks\.(\d+)\.norm(\d)\.", r"image_encoder.layers.\1.layer_norm\2."),
    (r"^image_encoder\.blocks\.", "image_encoder.layers."),
    (r"^image_encoder\.neck\.0\.", "image_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", "image_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", "image_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", "image_encoder.neck.layer_norm2."),
    (r"^image_encoder\.", "encoder.vision."),
)
_LITE_ENCODER = ((r"^image_encoder\.", "encoder."),)


def load_published(network: PromptedNetwork, path: Path) -> None:
    """Load published weights from a .safetensors or .pth file or a Hugging Face folder, as float32.

    Raises UsageError when the file is unreadable, a tensor is missing or has another shape.
    """
    state = our_names(_read(path), isinstance(network.encoder, TinyVitEncoder))
    wanted = network.state_dict()
    missing = sorted(set(wanted) - set(state))
    if missing:
        raise UsageError(f"{path.name} lacks {len(missing)} of the network's {len(wanted)} tensors, first {missing[0]}")
    wrong = [name for name, tensor in wanted.items() if state[name].shape != tensor.shape]
    if wrong:
        found, want = list(state[wrong[0]].shape), list(wanted[wrong[0]].shape)
        raise UsageError(f"{path.name} does not fit the network: {wrong[0]} is {found}, not {want}")
    network.load_state_dict({name: state[name].to(tensor.dtype) for name, tensor in wanted.items()})


def our_names(state: Mapping[str, torch.Tensor], lite: bool) -> dict[str, torch.Tensor]:
    """Return published tensors under our names; which names they have is seen from those of the encoder."""
    rules: tuple[tuple[str, str], ...] = ()
    if any(name.startswith("image_encoder.") for name in state):
        rules = (*_META, *(_LITE_ENCODER if lite else _META_ENCODER))
    elif any(name.startswith("vision_encoder.") for name in state):
        rules = _HUGGING_FACE
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    """Return the tensors of a file or folder. Raises UsageError."""
    file = path
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise UsageError(f"the folder {path} holds neither {' nor '.join(FILES)}")
        file = found[0]
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, safetensors and the unpickler each have exceptions of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{file} holds no weights that can be read safely: {reason}") from error
    # LiteMedSAM's training checkpoints keep the weights under "model".
    table = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(table, dict) or not all(isinstance(v, torch.Tensor) for v in table.values()):
        raise UsageError(f"{file} is no table of weights")
    return table
