"""Pretrained encoder weights: loading them from a local file, and the batch-norm step folded weights need."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from mammo_runtime.errors import UsageError


def load_encoder(encoder: nn.Module, path: Path) -> None:
    """Load an encoder's tensors out of a whole network's state dict (.pt by weights_only, or .safetensors) as float32.

    Names are torchvision's: `features.*` of MobileNetV2 and VGG-16, all but `fc` of ResNet. Old files lack the norms'
    step counters, which nothing uses. Raises UsageError when keys or shapes do not fit.
    """
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    wanted = encoder.state_dict()
    chosen = {k: v.to(wanted[k].dtype) for k, v in state.items() if k in wanted}
    chosen |= {k: v for k, v in wanted.items() if k.endswith(".num_batches_tracked") and k not in chosen}
    missing = sorted(set(wanted) - set(chosen))
    if missing:
        raise UsageError(f"{path.name} lacks {len(missing)} of the encoder's tensors, first {missing[0]}")
    try:
        encoder.load_state_dict(chosen)
    except RuntimeError as error:
        raise UsageError(f"{path.name} does not fit the encoder: {str(error).splitlines()[-1].strip()}") from error


def has_folded_norms(module: nn.Module) -> bool:
    """Tell whether every batch norm has mean 0 and variance 1: its statistics were folded into the convolutions."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    return bool(norms) and all(
        n.running_mean is not None
        and n.running_var is not None
        and bool((n.running_mean == 0).all())
        and float((n.running_var - 1).abs().max()) < 1e-4
        for n in norms
    )


@torch.no_grad()
def reestimate_norms(module: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Give every batch norm the statistics of its input on real images without changing the eval-mode function.

    `batches` are float32 [N, 3, H, W]. Running mean and variance become those measured in eval mode; weight and
    bias are chosen so that the layer's output stays the same. Without it the first train-mode step
    throws folded pretrained scales away (cosine of features 0.003; afterwards 0.99999).
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    sums = {norm: torch.zeros(2, norm.num_features, dtype=torch.float64) for norm in norms}
    counts = dict.fromkeys(norms, 0)

    def record(norm: nn.BatchNorm2d, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].double()
        sums[norm][0].add_(values.sum((0, 2, 3)).cpu())
        sums[norm][1].add_(values.square().sum((0, 2, 3)).cpu())
        counts[norm] += values.numel() // values.shape[1]

    hooks = [n.register_forward_pre_hook(record) for n in norms]
    was_training = module.training
    module.eval()
    for batch in batches:
        module(batch)
    module.train(was_training)
    for hook in hooks:
        hook.remove()
    for norm in norms:
        mean = sums[norm][0] / counts[norm]
        variance = (sums[norm][1] / counts[norm] - mean.square()).clamp_min(1e-6)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        old_scale = norm.weight.double().cpu() / (norm.running_var.double().cpu() + norm.eps).sqrt()
        bias = norm.bias.double().cpu() + old_scale * (mean - norm.running_mean.double().cpu())
        norm.weight.copy_(old_scale * (variance + norm.eps).sqrt())
        norm.bias.copy_(bias)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
