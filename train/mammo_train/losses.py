"""Losses by name: how far logits are from the truth. Each returns one finite number.

A loss takes (logits, target, valid, config). Masks: logits and target float [N, 1, H, W], target in {0, 1}, valid
bool [N, 1, H, W] (the region study 003 counts). Classes of pixels: logits [N, K, H, W], target int64 [N, H, W] with
`IGNORE`. Classes of pictures: logits [N, K], target int64 [N]. p is the sigmoid of a logit, t the truth; sums run over
an image, and images are averaged, unless said. Weights are named for what they weigh, since papers and libraries swap
alpha and beta.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from mammo_runtime.errors import UsageError
from mammo_train.config import TrainConfig

IGNORE = 255
"""Target of a pixel that neither teaches nor counts."""
SMOOTH = 1.0
"""Added to numerators and denominators, which are sums of pixels."""

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, TrainConfig], torch.Tensor]


def loss_of(
    outputs: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor, valid: torch.Tensor, config: TrainConfig
) -> torch.Tensor:
    """Return `config.loss` of a network's outputs; of a deeply supervised one the mean over its heads (Zhou 2018).

    Raises UsageError for an unknown name.
    """
    if config.loss not in LOSSES:
        raise UsageError(f"unknown loss {config.loss!r}; known: {', '.join(LOSSES)}")
    heads = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    return torch.stack([LOSSES[config.loss](head.float(), target, valid, config) for head in heads]).mean()


def tversky_loss(
    logits: torch.Tensor, mask: torch.Tensor, fn_weight: float = 0.7, fp_weight: float = 0.3, smooth: float = SMOOTH
) -> torch.Tensor:
    """Return 1 - (TP + s) / (TP + w_fn·FN + w_fp·FP + s) (Salehi et al. 2017); `fn_weight` weighs missed pixels."""
    probability, truth = torch.sigmoid(logits).flatten(1), mask.flatten(1)
    tp = (probability * truth).sum(1)
    fn = ((1 - probability) * truth).sum(1)
    fp = (probability * (1 - truth)).sum(1)
    return (1 - (tp + smooth) / (tp + fn_weight * fn + fp_weight * fp + smooth)).mean()


def tversky(logits: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Return the Tversky loss (study 004)."""
    return tversky_loss(logits, mask, config.fn_weight, config.fp_weight)


def tversky_bce(logits: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Return the Tversky loss plus `bce_weight` times binary cross-entropy (ours)."""
    loss = tversky(logits, mask, valid, config)
    return loss + config.bce_weight * F.binary_cross_entropy_with_logits(logits, mask)


def bce_dice(logits: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Return BCE + 1 - (2Σpt + s) / (Σp + Σt + s): what fits every row of study 000's table."""
    probability, truth = torch.sigmoid(logits).flatten(1), mask.flatten(1)
    overlap = (2 * (probability * truth).sum(1) + SMOOTH) / (probability.sum(1) + truth.sum(1) + SMOOTH)
    return F.binary_cross_entropy_with_logits(logits, mask) + (1 - overlap).mean()


def dice_iou(logits: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Return -(0.4·Dice + 0.6·IoU), pooled over the batch (public code of Connected-UNets, 2021)."""
    probability = torch.sigmoid(logits)
    both, total = (probability * mask).sum(), probability.sum() + mask.sum()
    return -(0.4 * (2 * both + SMOOTH) / (total + SMOOTH) + 0.6 * (both + SMOOTH) / (total - both + SMOOTH))


def dice_ce(logits: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Return Dice loss with squared denominators plus BCE (study 002's DiceCE with squared_pred; smoothing ours)."""
    probability, truth = torch.sigmoid(logits).flatten(1), mask.flatten(1)
    total = probability.square().sum(1) + truth.square().sum(1)
    overlap = (2 * (probability * truth).sum(1) + SMOOTH) / (total + SMOOTH)
    return (1 - overlap).mean() + F.binary_cross_entropy_with_logits(logits, mask)


def mse(logits: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Return the mean of (p - t)² (study 002's U-Net).

    `busi_unet` with final="relu" answers a logit whose sigmoid is its rectified output cut at 1: see there.
    """
    return F.mse_loss(torch.sigmoid(logits), mask)


def masked_bce(logits: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Return Σ w·BCE over valid pixels / their number, w = `mass_weight` or `tissue_weight` (study 003).

    An image without a valid pixel costs nothing.
    """
    weight = torch.where(mask > 0.5, config.mass_weight, config.tissue_weight) * valid
    each = F.binary_cross_entropy_with_logits(logits, mask, weight, reduction="none").flatten(1).sum(1)
    return (each / valid.flatten(1).sum(1).clamp_min(1)).mean()


def ce_dice(logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Return cross-entropy + 1 - mean Dice of the classes in the batch's truth; `IGNORE` pixels cost nothing."""
    counted = target != IGNORE
    entropy = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="sum") / counted.sum().clamp_min(1)
    classes = logits.shape[1]
    probability = torch.softmax(logits, 1) * counted[:, None]
    truth = F.one_hot(torch.where(counted, target, 0), classes).movedim(-1, 1) * counted[:, None]
    both, total = (probability * truth).sum((0, 2, 3)), (probability + truth).sum((0, 2, 3))
    present = truth.sum((0, 2, 3)) > 0
    overlap = (2 * both + SMOOTH) / (total + SMOOTH)
    return entropy + (present * (1 - overlap)).sum() / present.sum().clamp_min(1)


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Return the cross-entropy of picture classes (study 002's VGG-16), weighted by `class_weights`, mean of pictures.

    The mean is over pictures, not over weights, so that parts of a batch add up to the whole.
    """
    weights = torch.tensor(config.class_weights, device=logits.device) if config.class_weights else None
    return F.cross_entropy(logits, target, weights, reduction="sum") / len(target)


LOSSES: Mapping[str, Loss] = {
    "tversky_bce": tversky_bce,
    "tversky": tversky,
    "bce_dice": bce_dice,
    "dice_iou": dice_iou,
    "dice_ce": dice_ce,
    "mse": mse,
    "masked_bce": masked_bce,
    "ce_dice": ce_dice,
    "cross_entropy": cross_entropy,
    # What the network is taught beside its critics (`adversarial`).
    "adv_multiscale": bce_dice,
    "segan_l1": bce_dice,
}
