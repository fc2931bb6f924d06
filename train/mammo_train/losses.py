"""Losses on logits float [N, 1, H, W] against masks float [N, 1, H, W] in {0, 1}."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def tversky_loss(
    logits: torch.Tensor, mask: torch.Tensor, fn_weight: float = 0.7, fp_weight: float = 0.3, smooth: float = 1.0
) -> torch.Tensor:
    """Return 1 - (TP + s) / (TP + w_fn·FN + w_fp·FP + s), summed per image, then averaged (Salehi et al. 2017).

    `fn_weight` weighs missed pixels. Named, since papers and libraries give alpha and beta opposite meanings.
    """
    probability = torch.sigmoid(logits).flatten(1)
    truth = mask.flatten(1)
    tp = (probability * truth).sum(1)
    fn = ((1 - probability) * truth).sum(1)
    fp = (probability * (1 - truth)).sum(1)
    return (1 - (tp + smooth) / (tp + fn_weight * fn + fp_weight * fp + smooth)).mean()


def training_loss(
    logits: torch.Tensor, mask: torch.Tensor, fn_weight: float, fp_weight: float, bce_weight: float
) -> torch.Tensor:
    """Return Tversky loss plus `bce_weight` times binary cross-entropy."""
    loss = tversky_loss(logits, mask, fn_weight, fp_weight)
    if bce_weight > 0:
        loss = loss + bce_weight * F.binary_cross_entropy_with_logits(logits, mask)
    return loss
