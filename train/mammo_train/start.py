"""What training starts from: random weights, a pretrained encoder, or a finished run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from mammo_runtime.errors import MammoError, UsageError
from mammo_runtime.spec import ModelSpec
from mammo_train import checkpoint
from mammo_train.models.prompted import PromptedNetwork
from mammo_train.models.sam_weights import load_published
from mammo_train.models.weights import has_folded_norms, load_encoder, reestimate_norms

Report = Callable[[str], None]
NORM_IMAGES = 64
"""Training images through which folded batch norms are re-estimated."""


def start_files(spec: ModelSpec, run: Path, encoder_weights: Path | None, initial: Path | None) -> list[Path]:
    """Return the weight files training starts from, after refusing starts that cannot work."""
    if initial is None:
        if encoder_weights is None:
            return []
        if not encoder_weights.is_file():
            raise UsageError(f"there is no weights file {encoder_weights}")
        return [encoder_weights]
    if encoder_weights is not None:
        raise UsageError("start from an encoder's weights or from another run, not from both")
    if initial.resolve() == run.resolve():
        raise UsageError(f"a run cannot start from itself ({run}); choose another output folder")
    _, parent = checkpoint.load_model(initial)
    if _network(parent) != _network(spec):
        raise UsageError(f"{initial} is a {_network(parent)}; it cannot start a {_network(spec)}")
    return [initial / checkpoint.WEIGHTS]


def _network(spec: ModelSpec) -> str:
    options = "".join(f", {name} {value}" for name, value in sorted(spec.network.items()))
    return f"{spec.architecture} with {len(spec.classes)} classes{options}, {spec.input.channels} channels"


def load_start(network: nn.Module, encoder_weights: Path | None, initial: Path | None, report: Report) -> None:
    """Give a fresh network the weights it starts from, if any. Raises UsageError when they do not fit."""
    if initial is not None:
        parent, _ = checkpoint.load_model(initial)
        network.load_state_dict(parent.state_dict())
        report(f"starting from the weights of {initial}")
    elif isinstance(network, PromptedNetwork) and encoder_weights is not None:
        load_published(network, encoder_weights)
        report(f"starting from the published weights {encoder_weights.name}")
    elif encoder_weights is not None:
        encoder = getattr(network, "encoder", None)
        if encoder is None:
            raise UsageError(f"this network has no encoder that {encoder_weights} could start")
        try:
            load_encoder(encoder, encoder_weights)
        except MammoError:
            raise
        except Exception as error:  # torch, safetensors and the unpickler each have exceptions of their own
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"{encoder_weights} holds no weights that fit this encoder: {reason}") from error


def settle_norms(network: nn.Module, weights: Path, samples: Sequence[Sequence[torch.Tensor]], report: Report) -> None:
    """Re-estimate the encoder's batch norms on training images if the weights come with folded ones."""
    encoder = network.get_submodule("encoder")
    if has_folded_norms(encoder):
        images = [samples[k][0] for k in range(min(NORM_IMAGES, len(samples)))]
        reestimate_norms(encoder, (torch.stack(images[k : k + 8]) for k in range(0, len(images), 8)))
        report(f"{weights.name}: folded batch norms re-estimated on {len(images)} training images")
