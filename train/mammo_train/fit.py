"""The training loop, read from top to bottom: two phases, averaged weights, best validation Dice kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from mammo_runtime import __version__
from mammo_runtime.atomic import write_text
from mammo_runtime.errors import MammoError, UsageError
from mammo_runtime.overlap import dice
from mammo_runtime.spec import ModelSpec
from mammo_train import checkpoint, models
from mammo_train.config import TrainConfig
from mammo_train.dataset import SampleSet, usable_rows
from mammo_train.index import IndexRow, check_leaks
from mammo_train.losses import training_loss
from mammo_train.models.weights import has_folded_norms, load_encoder, reestimate_norms
from mammo_train.resume import Learner, Progress, identity_of

Batch = tuple[torch.Tensor, torch.Tensor]
Report = Callable[[str], None]
NORM_IMAGES = 64
"""Training images through which folded batch norms are re-estimated."""


def fit(
    rows: Sequence[IndexRow],
    spec: ModelSpec,
    config: TrainConfig,
    run: Path,
    encoder_weights: Path | None = None,
    report: Report = print,
    initial: Path | None = None,
) -> ModelSpec:
    """Train on `config.train_folds`, keep the best epoch on `config.validation_fold`, write everything into `run`.

    Starts from `encoder_weights` (a file), from the finished run `initial` (all its weights), or at random.
    Continues where a killed run stopped, with the same result as an uninterrupted one. Never opens a file of
    `config.test_fold` other than to hash it in the leak check. Returns the spec with its training record.
    Raises UsageError on leaks, empty folds, a run folder that belongs to other settings or unfit weights,
    MammoError when training diverges.
    """
    check_leaks(rows)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    identity = identity_of(rows, spec, config, _start_files(spec, run, encoder_weights, initial))
    stored = checkpoint.load_state(run)
    if stored is not None and stored[1]["identity"] != identity:
        raise UsageError(f"{run} holds a run with other data or settings; choose another folder or delete it")
    train_set, validation_set = _sample_sets(rows, spec, config)
    report(f"{len(train_set)} training samples, {len(validation_set)} validation samples, on {device}")

    torch.manual_seed(config.seed)
    network = models.build_for(spec)
    if stored is None:
        _load_start(network, encoder_weights, initial, train_set, report)
    learner = _learner(network, config, device)
    if stored is not None:
        learner.restore(*stored)
        report(f"resuming after epoch {learner.progress.epoch}")

    progress = learner.progress
    validated = models.build_for(spec).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    while progress.epoch < config.epochs and progress.epoch - progress.best_epoch < config.early_stop_patience:
        started = time.perf_counter()
        frozen = _enter_epoch(learner, config)
        loss = _train_epoch(learner, _batches(train_set, config, progress.epoch), config)
        validated.load_state_dict(learner.average)
        val_loss, val_dice = _validate(validated, validation_set, config)
        progress.epoch += 1
        if val_dice > progress.best_dice:
            progress.best_dice, progress.best_epoch = val_dice, progress.epoch
            checkpoint.save_model(run, learner.average)
        rate = progress.rate
        _lower_rate_on_plateau(progress, val_loss, config)
        progress.history.append(
            {"epoch": progress.epoch, "phase": 1 + (not frozen), "rate": rate, "train_loss": loss,
             "validation_loss": val_loss, "validation_dice": val_dice}
        )  # fmt: skip
        checkpoint.save_state(run, *learner.state(identity))
        write_text(run / "log.csv", progress.log_csv())
        report(progress.line(config.epochs, time.perf_counter() - started))
    return _finish(run, rows, spec, config, progress, encoder_weights, initial)


def _start_files(spec: ModelSpec, run: Path, encoder_weights: Path | None, initial: Path | None) -> list[Path]:
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
    if (parent.architecture, len(parent.classes)) != (spec.architecture, len(spec.classes)):
        raise UsageError(
            f"{initial} is a {parent.architecture} with {len(parent.classes)} classes; "
            f"it cannot start a {spec.architecture} with {len(spec.classes)}"
        )
    return [initial / checkpoint.WEIGHTS]


def _sample_sets(rows: Sequence[IndexRow], spec: ModelSpec, config: TrainConfig) -> tuple[SampleSet, SampleSet]:
    """Return training and validation samples. Raises UsageError when either holds nothing to learn or judge by."""
    train = usable_rows(rows, spec.input.mode, config.train_folds, config.kinds)
    held_out = usable_rows(rows, spec.input.mode, [config.validation_fold], config.kinds)
    train_set = SampleSet(train, spec.input, config.augment, config.seed, config.repeats)
    validation_set = SampleSet(held_out, spec.input, None, config.seed)
    if not any(validation_set.row(k).kind == config.validation_kind for k in range(len(validation_set))):
        raise UsageError(f"fold {config.validation_fold} holds no image of kind {config.validation_kind!r}")
    return train_set, validation_set


def _load_start(
    network: nn.Module, encoder_weights: Path | None, initial: Path | None, train_set: SampleSet, report: Report
) -> None:
    """Give a fresh network the weights it starts from, if any."""
    if initial is not None:
        parent, _ = checkpoint.load_model(initial)
        network.load_state_dict(parent.state_dict())
        report(f"starting from the weights of {initial}")
    elif encoder_weights is not None:
        _start_encoder(network, encoder_weights, train_set, report)


def _start_encoder(network: nn.Module, weights: Path, train_set: SampleSet, report: Report) -> None:
    encoder = network.get_submodule("encoder")
    try:
        load_encoder(encoder, weights)
    except MammoError:
        raise
    except Exception as error:  # torch, safetensors and the unpickler each have exceptions of their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{weights} holds no weights that fit this encoder: {reason}") from error
    if has_folded_norms(encoder):
        images = [train_set[k][0] for k in range(min(NORM_IMAGES, len(train_set)))]
        reestimate_norms(encoder, (torch.stack(images[k : k + 8]) for k in range(0, len(images), 8)))
        report(f"{weights.name}: folded batch norms re-estimated on {len(images)} training images")


def _learner(network: nn.Module, config: TrainConfig, device: torch.device) -> Learner:
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.5x faster on a CPU
    return Learner(
        network,
        torch.optim.AdamW(network.parameters(), lr=config.frozen_rate, weight_decay=config.weight_decay),
        {k: v.detach().clone() for k, v in network.state_dict().items()},
        torch.amp.GradScaler(enabled=device.type == "cuda" and not torch.cuda.is_bf16_supported()),
        Progress(rate=config.frozen_rate),
    )


def _enter_epoch(learner: Learner, config: TrainConfig) -> bool:
    """Set phase and rate of the coming epoch; returns whether the encoder is frozen in it."""
    progress = learner.progress
    frozen = progress.epoch < config.frozen_epochs
    if progress.epoch == config.frozen_epochs:
        progress.rate, progress.best_loss, progress.loss_epoch = config.rate, float("inf"), progress.epoch
    _set_phase(learner.network, frozen)
    learner.optimizer.param_groups[0]["lr"] = progress.rate
    return frozen


def _set_phase(network: nn.Module, frozen: bool) -> None:
    """Put the network in train mode; phase 1 freezes the encoder: no gradients, batch norm in eval mode."""
    network.train()
    encoder = getattr(network, "encoder", None)
    if encoder is not None:
        encoder.requires_grad_(not frozen)
        encoder.train(not frozen)


def _batches(samples: SampleSet, config: TrainConfig, epoch: int) -> Iterator[Batch]:
    """Yield the epoch's batches in an order that depends only on seed and epoch; a last batch of one is dropped,
    since batch norm cannot train on it.
    """
    samples.epoch = epoch
    order = np.random.default_rng((config.seed, epoch)).permutation(len(samples)).tolist()
    if len(order) % config.batch_size == 1 and len(order) > 1:
        order = order[:-1]
    yield from DataLoader(Subset(samples, order), config.batch_size, num_workers=config.workers)


def _train_epoch(learner: Learner, batches: Iterator[Batch], config: TrainConfig) -> float:
    """Run one epoch; the averaged weights follow each step. Returns the mean training loss, which is finite."""
    network, scaler = learner.network, learner.scaler
    device = next(network.parameters()).device
    half = torch.float16 if scaler.is_enabled() else torch.bfloat16
    losses = []
    for images, masks in batches:
        learner.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, half, enabled=device.type == "cuda"):
            logits = network(images.to(device, memory_format=torch.channels_last))
        loss = training_loss(logits.float(), masks.to(device), config.fn_weight, config.fp_weight, config.bce_weight)
        scaler.scale(loss).backward()
        scaler.step(learner.optimizer)
        scaler.update()
        _update_average(learner.average, network, config.ema_decay)
        losses.append(float(loss.detach()))
    mean = float(np.mean(losses))
    if not math.isfinite(mean):
        raise MammoError(
            f"training diverged in epoch {learner.progress.epoch + 1} (the loss is {mean}): lower the rate"
        )
    return mean


@torch.no_grad()
def _update_average(average: dict[str, torch.Tensor], network: nn.Module, decay: float) -> None:
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


@torch.no_grad()
def _validate(network: nn.Module, samples: SampleSet, config: TrainConfig) -> tuple[float, float]:
    """Return the mean loss over all validation samples and the mean Dice (threshold 0.5) of `validation_kind`."""
    network.eval()
    device = next(network.parameters()).device
    losses, scores, first = [], [], 0
    for images, masks in DataLoader(samples, config.batch_size, num_workers=config.workers):
        logits = network(images.to(device, memory_format=torch.channels_last)).float().cpu()
        for k in range(len(images)):
            one = logits[k : k + 1], masks[k : k + 1]
            losses.append(float(training_loss(*one, config.fn_weight, config.fp_weight, config.bce_weight)))
            if samples.row(first + k).kind == config.validation_kind:
                scores.append(dice((logits[k, 0] > 0).numpy(), (masks[k, 0] > 0.5).numpy()))
        first += len(images)
    return float(np.mean(losses)), float(np.mean(scores))


def _lower_rate_on_plateau(progress: Progress, val_loss: float, config: TrainConfig) -> None:
    if val_loss < progress.best_loss:
        progress.best_loss, progress.loss_epoch = val_loss, progress.epoch
    elif progress.epoch - progress.loss_epoch >= config.plateau_patience:
        progress.rate = min(progress.rate, max(config.min_rate, progress.rate * config.plateau_factor))
        progress.loss_epoch = progress.epoch


def _finish(
    run: Path,
    rows: Sequence[IndexRow],
    spec: ModelSpec,
    config: TrainConfig,
    progress: Progress,
    encoder_weights: Path | None,
    initial: Path | None,
) -> ModelSpec:
    """Write spec and settings beside the best epoch's weights."""
    train = usable_rows(rows, spec.input.mode, config.train_folds, config.kinds)
    record: dict[str, Any] = {
        "train_folds": list(config.train_folds),
        "validation_fold": config.validation_fold,
        "test_fold": config.test_fold,
        "train_images": len(train),
        "train_patients": len({r.group for r in train}),
        "train_images_by_kind": {kind: sum(r.kind == kind for r in train) for kind in config.kinds},
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "validation_dice_grid": round(progress.best_dice, 4),
        "encoder_weights": encoder_weights.name if encoder_weights else "none",
        "seed": config.seed,
        "torch": torch.__version__,
    }
    if initial is not None:
        _, parent = checkpoint.load_model(initial)
        record["initial_weights"] = {"name": parent.name, "sha256": checkpoint.weights_sha256(initial)}
        record["encoder_weights"] = parent.training.get("encoder_weights", "none")
    finished = replace(
        spec,
        toolkit_version=__version__,
        parent_sha256=checkpoint.weights_sha256(run),
        training={**spec.training, **record},
    )
    write_text(run / "config.json", config.to_json() + "\n")
    checkpoint.save_spec(run, finished)
    return finished
