"""SAM, MedSAM and LiteMedSAM beyond the shared suite: published counts, the library's own answer, published weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mammo_runtime.errors import UsageError
from mammo_runtime.spec import PromptSpec, Task
from mammo_train import models
from mammo_train.models.prompted import PromptedNetwork, sam_model
from mammo_train.models.sam import SIZES, WIDTHS
from mammo_train.models.sam_weights import load_published, our_names

NAMES = ("sam_box", "medsam_box", "lite_medsam")


def tiny(name: str) -> PromptedNetwork:
    torch.manual_seed(0)
    network = models.build(name, width="tiny")
    assert isinstance(network, PromptedNetwork)
    return network.eval()


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def images(seed: int = 0, number: int = 1) -> torch.Tensor:
    return torch.rand(number, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


BOXES = torch.tensor([[[8.0, 10, 30, 40], [20, 4, 60, 60], [0, 0, 64, 64]]])


@pytest.mark.parametrize("name", ["sam_box", "medsam_box"])
def test_sam_has_the_published_counts(name: str) -> None:
    with torch.device("meta"):
        network = models.build(name)
    assert isinstance(network, PromptedNetwork)
    prompt, decoder = network.decoder.prompt_encoder, network.decoder.mask_decoder
    assert (count(network), count(network.encoder)) == (93_735_728, 89_670_912)
    assert (count(prompt), count(decoder)) == (6_476, 4_058_340)
    assert models.count_parameters(name, width="tiny") == 56_037


def test_lite_medsam_has_the_count_of_the_published_construction() -> None:
    assert models.count_parameters("lite_medsam") == 9_791_556


@pytest.mark.parametrize(("name", "side"), [("sam_box", 4), ("medsam_box", 4), ("lite_medsam", 16)])
def test_encoder_and_decoder_keep_the_contract(name: str, side: int) -> None:
    network = tiny(name)
    assert models.known(name).task is Task.PROMPTED
    embedding = network.encode(images(number=2))
    logits, iou = network.decode(embedding, BOXES.expand(2, -1, -1))
    assert embedding.shape == (2, 16, side, side)
    assert (logits.shape, iou.shape) == ((2, 3, 1, 4 * side, 4 * side), (2, 3))
    assert network.prompt_spec() == PromptSpec((16, side, side), 4 * side)
    whole, _ = network(images(number=2), BOXES.expand(2, -1, -1))
    assert torch.equal(whole, logits)
    assert torch.equal(network(embedding, BOXES.expand(2, -1, -1), encoded=True)[0], logits)


@pytest.mark.parametrize("name", NAMES)
def test_image_and_box_both_matter_from_the_start(name: str) -> None:
    """transformers' own start answers every image alike (its encoder begins at 1e-10)."""
    network = tiny(name)
    first, second = network.encode(images(0)), network.encode(images(1))
    assert float((first - second).detach().abs().max()) > 0.01
    logits, _ = network.decode(first, BOXES)
    assert float((logits[:, 0] - logits[:, 1]).detach().abs().max()) > 1e-4
    alone, _ = network.decode(first, BOXES[:, 1:2])
    assert torch.allclose(alone[:, 0], logits[:, 1], atol=1e-6), "a box's answer depends on the other boxes"


def test_sam_answers_as_the_library_does() -> None:
    network = tiny("sam_box")
    library = sam_model(*SIZES[WIDTHS["tiny"]]).eval()
    library.vision_encoder.load_state_dict(network.encoder.get_submodule("vision").state_dict())
    library.prompt_encoder.load_state_dict(network.decoder.prompt_encoder.state_dict())
    library.mask_decoder.load_state_dict(network.decoder.mask_decoder.state_dict())
    library.shared_image_embedding.load_state_dict(
        network.decoder.prompt_encoder.get_submodule("shared_embedding").state_dict()
    )
    with torch.no_grad():
        expected = library(pixel_values=images(), input_boxes=BOXES, multimask_output=False)
        logits, iou = network(images(), BOXES)
    assert torch.allclose(logits, expected.pred_masks, atol=1e-5)
    assert torch.allclose(iou, expected.iou_scores[..., 0], atol=1e-5)


def hugging_face_names(network: PromptedNetwork) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in network.state_dict().items():
        state[name.replace("encoder.vision.", "vision_encoder.", 1).removeprefix("decoder.")] = tensor.clone()
    positions = state["prompt_encoder.shared_embedding.positional_embedding"]
    return {**state, "shared_image_embedding.positional_embedding": positions.clone()}


def meta_names(blocks: int) -> list[str]:
    """Return the names in Meta's checkpoints, as its public code makes them."""
    layer, decoder = ["weight", "bias"], "mask_decoder."
    names = ["image_encoder.pos_embed", "image_encoder.neck.0.weight", "image_encoder.neck.2.weight"]
    parts = ["image_encoder.patch_embed.proj", "image_encoder.neck.1", "image_encoder.neck.3"]
    for k in range(blocks):
        block = f"image_encoder.blocks.{k}."
        names += [block + "attn.rel_pos_h", block + "attn.rel_pos_w"]
        parts += [block + p for p in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")]
    names += ["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    names += [f"prompt_encoder.{p}.weight" for p in ("not_a_point_embed", "no_mask_embed")]
    names += [f"prompt_encoder.point_embeddings.{k}.weight" for k in range(4)]
    parts += [f"prompt_encoder.mask_downscaling.{k}" for k in (0, 1, 3, 4, 6)]
    attention = [f"{p}_proj" for p in ("q", "k", "v", "out")]
    for k in range(2):
        block = f"{decoder}transformer.layers.{k}."
        kinds = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        parts += [f"{block}{kind}.{p}" for kind in kinds for p in attention]
        parts += [block + p for p in ("norm1", "norm2", "norm3", "norm4", "mlp.lin1", "mlp.lin2")]
    parts += [f"{decoder}transformer.final_attn_token_to_image.{p}" for p in attention]
    parts += [decoder + "transformer.norm_final_attn"] + [f"{decoder}output_upscaling.{k}" for k in (0, 1, 3)]
    names += [decoder + "iou_token.weight", decoder + "mask_tokens.weight"]
    parts += [f"{decoder}output_hypernetworks_mlps.{k}.layers.{n}" for k in range(4) for n in range(3)]
    parts += [f"{decoder}iou_prediction_head.layers.{n}" for n in range(3)]
    return names + [f"{part}.{end}" for part in parts for end in layer]


def test_every_published_name_of_meta_is_known() -> None:
    with torch.device("meta"):
        network = models.build("sam_box")
    renamed = our_names({name: torch.empty(0) for name in meta_names(12)}, lite=False)
    assert set(renamed) == set(network.state_dict())


def test_published_names_of_lite_medsam_are_known() -> None:
    network = tiny("lite_medsam")
    decoder = {n: torch.empty(0) for n in meta_names(0) if not n.startswith("image_encoder.")}
    encoder = {f"image_{n}": torch.empty(0) for n in network.state_dict() if n.startswith("encoder.")}
    assert "image_encoder.layers.2.blocks.0.attn.attention_biases" in encoder
    with torch.device("meta"):
        whole = models.build("lite_medsam")
    ours = our_names({**decoder, **encoder}, lite=True)
    half = [{n for n in state if n.startswith("decoder.")} for state in (ours, whole.state_dict())]
    assert half[0] == half[1]
    assert set(ours) - half[0] == {n for n in network.state_dict() if n.startswith("encoder.")}


@pytest.mark.parametrize("form", ["file", "folder", "pickle"])
def test_published_weights_load_from_a_file_or_folder(tmp_path: Path, form: str) -> None:
    source = tiny("sam_box")
    network = models.build("sam_box", width="tiny")
    assert isinstance(network, PromptedNetwork)
    state = hugging_face_names(source)
    path = tmp_path / "sam.safetensors"
    if form == "pickle":
        path = tmp_path / "sam.pth"
        torch.save(state, path)
    else:
        path = tmp_path / "model.safetensors" if form == "folder" else path
        save_file(state, path)
    load_published(network, tmp_path if form == "folder" else path)
    with torch.no_grad():
        assert torch.equal(network.eval()(images(), BOXES)[0], source(images(), BOXES)[0])


def _lacking(state: dict[str, torch.Tensor], path: Path) -> None:
    del state["mask_decoder.iou_token.weight"]
    save_file(state, path)


def _of_another_size(state: dict[str, torch.Tensor], path: Path) -> None:
    save_file({**state, "mask_decoder.iou_token.weight": torch.zeros(1, 8)}, path)


def _damaged(_state: dict[str, torch.Tensor], path: Path) -> None:
    path.write_bytes(b"no weights")


@pytest.mark.parametrize(
    ("write", "says"), [(_lacking, "lacks 1 of"), (_of_another_size, "does not fit"), (_damaged, "read safely")]
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, write: Callable[[dict[str, torch.Tensor], Path], None], says: str
) -> None:
    network = tiny("sam_box")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    write(hugging_face_names(network), tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match=says):
        load_published(network, tmp_path / "x.safetensors")
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds neither"):
        load_published(tiny("sam_box"), tmp_path)
