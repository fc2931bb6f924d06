"""Training of prompted models: what one step costs and how well a box was answered.

With `config.freeze_encoder` (SAM, MedSAM) images are embeddings made once (`EmbeddedSamples`) and only the mask
decoder learns; without it (LiteMedSAM) all but the prompt encoder does. Loss: that of `config.loss`, in the study
Dice with squared denominators plus cross-entropy, on the decoder's own grid. Proposed: the squared error of the
predicted IoU is added, as in Segment Anything's training; the study leaves it out, and the number would be noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from mammo_runtime.errors import UsageError
from mammo_runtime.overlap import dice
from mammo_runtime.spec import Fit, InputSpec, ModelSpec, Scaling
from mammo_train.config import TrainConfig
from mammo_train.index import IndexRow
from mammo_train.losses import loss_of
from mammo_train.models import lite_medsam, sam
from mammo_train.models.prompted import PromptedNetwork
from mammo_train.prompt_samples import FOLDER, BoxSamples, EmbeddedSamples, Sample

Outputs = tuple[torch.Tensor, torch.Tensor]
"""Logits float [N, 1, S, S] and predicted IoU float [N]."""
IOU_WEIGHT = 1.0
"""Of the squared error of the predicted IoU (Kirillov et al. 2023 use the same)."""
SAM_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
SAM_STD = (58.395 / 255, 57.12 / 255, 57.375 / 255)
INPUTS: dict[str, InputSpec] = {
    "sam_box": InputSpec(fit=Fit.CORNER, mean=SAM_MEAN, std=SAM_STD),
    "medsam_box": InputSpec(fit=Fit.STRETCH, scaling=Scaling.MIN_MAX, mean=(0.0,) * 3, std=(1.0,) * 3),
    "lite_medsam": InputSpec(fit=Fit.CORNER, scaling=Scaling.MIN_MAX, mean=(0.0,) * 3, std=(1.0,) * 3),
}
"""How each network was published to see images; the grid's side follows from its width."""


def prompted_input(name: str, width: str = "base") -> InputSpec:
    """Return how a prompted network sees an image, at the grid of one of its widths."""
    if name == "lite_medsam":
        side = lite_medsam.SIZES[lite_medsam.WIDTHS[width]][0].side
    else:
        side = sam.SIZES[sam.WIDTHS[width]][0].side
    return replace(INPUTS[name], height=side, width=side)


def freeze(network: PromptedNetwork, config: TrainConfig, frozen: bool = False) -> None:
    """Put the network in train mode with only those weights learning that should.

    The prompt encoder never learns (it stays as published, as in MedSAM's training), the image encoder not with
    `config.freeze_encoder` or while `frozen`; it is then in eval mode, too.
    """
    network.train()
    network.requires_grad_(True)
    network.decoder.prompt_encoder.requires_grad_(False)
    if frozen or config.freeze_encoder:
        network.encoder.requires_grad_(False)
        network.encoder.eval()


def prompted_sets(
    train: Sequence[IndexRow],
    held_out: Sequence[IndexRow],
    spec: ModelSpec,
    config: TrainConfig,
    network: PromptedNetwork,
    run: Path,
    report: Callable[[str], None] = print,
) -> tuple[Dataset[Sample], Dataset[Sample]]:
    """Return training and validation samples; with a frozen encoder as embeddings kept in the run's folder.

    Training boxes are widened at random; validation boxes are the lesions' own, as they are at evaluation. `network`
    must hold the weights that training starts from. Raises UsageError when the spec's grid is not the network's.
    """
    if spec.prompt is None or (spec.input.height, spec.input.width) != (network.size.side, network.size.side):
        grid = f"{spec.input.width}x{spec.input.height}"
        raise UsageError(f"{spec.architecture} sees {network.size.side}x{network.size.side} pixels, not {grid}")
    moved = None if config.freeze_encoder else config.augment
    train_set = BoxSamples(train, spec, moved, config.seed, config.repeats, widen=True)
    validation_set = BoxSamples(held_out, spec, None, config.seed)
    if not config.freeze_encoder:
        return train_set, validation_set
    folder = run / FOLDER
    embedded = (EmbeddedSamples(samples, network, folder, report=report) for samples in (train_set, validation_set))
    return next(embedded), next(embedded)


def prompted_outputs(network: nn.Module, batch: Sequence[torch.Tensor], config: TrainConfig) -> Outputs:
    """Return the logits [N, 1, S, S] and predicted IoU [N] of a batch.

    A batch is images [N, 3, H, W] or, with a frozen encoder, embeddings [N, c, h, w]; masks [N, 1, S, S]; boxes
    [N, 4]. `network` is a `PromptedNetwork`, or one wrapped for training in several processes.
    """
    first, _, boxes = batch
    logits, iou = network(first, boxes[:, None], encoded=config.freeze_encoder)
    return logits[:, 0], iou[:, 0]


def prompted_cost(outputs: Outputs, batch: Sequence[torch.Tensor], config: TrainConfig) -> torch.Tensor:
    """Return the loss of a batch: `config.loss`, plus the squared error of the predicted IoU."""
    logits, iou = outputs[0].float(), outputs[1].float()
    everywhere = torch.ones_like(batch[1], dtype=torch.bool)
    loss = loss_of(logits, batch[1], everywhere, config)
    return loss + IOU_WEIGHT * F.mse_loss(iou, true_iou(logits, batch[1]))


def prompted_details(outputs: Outputs, batch: Sequence[torch.Tensor], config: TrainConfig) -> list[float]:
    """Return each sample's Dice on the decoder's grid."""
    found, truth = (outputs[0][:, 0] > 0).cpu().numpy(), (batch[1][:, 0] > 0.5).cpu().numpy()
    return [dice(own, wanted) for own, wanted in zip(found, truth, strict=True)]


def true_iou(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the IoU [N] of the masks that logits [N, 1, S, S] mean (above 0) with the truth [N, 1, S, S]."""
    found, truth = (logits.detach() > 0).flatten(1), (mask > 0.5).flatten(1)
    both, either = (found & truth).sum(1), (found | truth).sum(1)
    # A lesion too small for the grid has an empty mask; answered by an empty mask, both are the same.
    return torch.where(either > 0, both / either.clamp_min(1), torch.ones_like(both, dtype=torch.float32))
