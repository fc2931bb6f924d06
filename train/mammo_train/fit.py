"""The training loop, read from top to bottom: two phases, averaged weights, best validation score kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from mammo_runtime.atomic import write_text
from mammo_runtime.errors import MammoError, UsageError
from mammo_runtime.spec import ModelSpec, Task
from mammo_train import checkpoint, distributed, models
from mammo_train.adversarial import ADVERSARIAL, Adversary
from mammo_train.batches import batches, parts
from mammo_train.config import TrainConfig
from mammo_train.dataset import SampleSet, usable_rows
from mammo_train.index import IndexRow, check_leaks
from mammo_train.memory import memory_advice
from mammo_train.objectives import OBJECTIVES, Batch, check_loss, one
from mammo_train.prompt_samples import EmbeddedSamples
from mammo_train.prompted import prompted_sets
from mammo_train.qat import Simulation, calibration_batches, check_qat, simulated
from mammo_train.resume import Learner, Progress, identity_of
from mammo_train.schedule import lower_on_plateau, optimizer_for, rate_of_epoch
from mammo_train.start import load_start, settle_norms, start_files
from mammo_train.train_record import write_record

Report = Callable[[str], None]


def fit(
    rows: Sequence[IndexRow],
    spec: ModelSpec,
    config: TrainConfig,
    run: Path,
    encoder_weights: Path | None = None,
    report: Report = print,
    initial: Path | None = None,
    allow_leak: bool = False,
) -> ModelSpec:
    """Train on `config.train_folds`, keep the best epoch on `config.validation_fold`, write everything into `run`.

    Starts from `encoder_weights` (a file), from the finished run `initial` (all its weights), or at random.
    Continues where a killed run stopped, with the same result as an uninterrupted one. Never opens a file of
    `config.test_fold` other than to hash it in the leak check (`allow_leak`: the split is known to share patients).
    Returns the spec with its training record. Raises UsageError on leaks, empty folds, a run folder that belongs to
    other settings or unfit weights, MammoError when training diverges or memory runs out.
    """
    check_loss(spec, config)
    check_qat(spec, config, initial)
    if not allow_leak:
        check_leaks(rows)
    with distributed.joined(), memory_advice(config, spec):
        report = report if distributed.rank() == 0 else _silent
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        identity = identity_of(rows, spec, config, start_files(spec, run, encoder_weights, initial))
        stored = checkpoint.load_state(run)
        if stored is not None and stored[1]["identity"] != identity:
            raise UsageError(f"{run} holds a run with other data or settings; choose another folder or delete it")
        torch.manual_seed(config.seed)
        network = models.build_for(spec)
        if stored is None:
            load_start(network, encoder_weights, initial, report)
        learner = _learner(network, spec, config, device)
        if stored is not None:
            learner.restore(*stored)
            report(f"resuming after epoch {learner.progress.epoch}")
        train_set, validation_set = _sample_sets(rows, spec, config, network, run, report)
        if stored is None and encoder_weights is not None:
            settle_norms(network, encoder_weights, train_set, report)
            learner.average.update({k: v.detach().clone() for k, v in network.state_dict().items()})
        if stored is None and learner.simulation is not None:
            learner.simulation.calibrate(learner.network, calibration_batches(train_set, config, device))
        samples = f"{len(train_set)} training samples, {len(validation_set)} validation samples"
        report(f"{samples}, on {device}, {precision_of(config, device)}")
        stopped_by = _epochs(learner, spec, config, (train_set, validation_set), run, identity, report)
        facts = _facts(learner, config, stopped_by, train_set) | ({"leaking_split": True} if allow_leak else {})
        return write_record(run, rows, spec, config, learner.progress, (encoder_weights, initial), facts)


def _facts(learner: Learner, config: TrainConfig, stopped_by: str, train_set: Any) -> dict[str, Any]:
    """Return what only the loop knows of a run."""
    device = next(learner.network.parameters()).device
    facts: dict[str, Any] = {
        "stopped_by": stopped_by,
        "precision": precision_of(config, device),
        "device": device.type,
    }
    if distributed.world() > 1:
        norms = "of all processes" if device.type == "cuda" else "of each process's own part"
        facts |= {"processes": distributed.world(), "batch_norm_statistics": norms}
    if learner.simulation is not None:
        facts["qat"] = learner.simulation.record()
    if isinstance(train_set, EmbeddedSamples):
        facts["embeddings"] = train_set.record
    return facts


def _epochs(
    learner: Learner, spec: ModelSpec, config: TrainConfig, sets: tuple[Any, Any], run: Path, identity: str,
    report: Report,
) -> str:  # fmt: skip
    """Train until a limit is reached; everything is on disk after each epoch. Returns which limit it was."""
    progress, device = learner.progress, next(learner.network.parameters()).device
    before = progress.epoch
    validated = models.build_for(spec).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if learner.simulation is not None and progress.epoch == 0:
        validated.load_state_dict(learner.average)
        report(learner.simulation.note(*_validate(learner, validated, spec, sets[1], config)))
    while (stopped_by := distributed.agreed(progress.limit(config))) == "":
        started = time.perf_counter()
        frozen = _enter_epoch(learner, spec, config)
        loss = _train_epoch(learner, spec, batches(sets[0], config, progress.epoch), config)
        distributed.share_first(learner.average.values())
        validated.load_state_dict(learner.average)
        val_loss, score = _validate(learner, validated, spec, sets[1], config)
        progress.epoch += 1
        if score > progress.best_score:
            progress.best_score, progress.best_epoch = score, progress.epoch
            if distributed.rank() == 0:
                checkpoint.save_model(run, learner.average)
        rate = float(learner.optimizer.param_groups[0]["lr"])
        lower_on_plateau(progress, val_loss, config)
        progress.history.append(
            {"epoch": progress.epoch, "phase": 1 + (not frozen), "rate": rate, "train_loss": loss,
             "validation_loss": val_loss, "validation_score": score}
        )  # fmt: skip
        seconds = time.perf_counter() - started
        progress.seconds += seconds
        if distributed.rank() == 0:
            checkpoint.save_state(run, *learner.state(identity))
            write_text(run / "log.csv", progress.log_csv())
        report(progress.line(config, seconds, OBJECTIVES[spec.task].score_name))
    if progress.epoch == before:
        report("nothing left to train")
    return str(stopped_by)


def precision_of(config: TrainConfig, device: torch.device) -> str:
    """Return the precision that forward and backward pass really use."""
    if config.precision == "fp16" and device.type == "cpu":
        raise UsageError("fp16 needs a GPU, which scales the loss against underflow; say bf16 or auto")
    if config.precision != "auto":
        return config.precision
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _sample_sets(
    rows: Sequence[IndexRow], spec: ModelSpec, config: TrainConfig, network: nn.Module, run: Path, report: Report
) -> tuple[Any, Any]:
    """Return training and validation samples. Raises UsageError when either holds nothing to learn or judge by."""
    train = usable_rows(rows, spec.input.mode, config.train_folds, config.kinds)
    held_out = usable_rows(rows, spec.input.mode, [config.validation_fold], config.kinds)
    if spec.task is Task.PROMPTED:
        sets: tuple[Any, Any] = prompted_sets(train, held_out, spec, config, network, run, report)  # type: ignore[arg-type]
    else:
        codes = config.ignore_codes
        sets = (
            SampleSet(train, spec, config.augment, config.seed, config.repeats, codes),
            SampleSet(held_out, spec, None, config.seed, ignore_codes=codes),
        )
    if not any(sets[1].row(k).kind in config.validation_kinds for k in range(len(sets[1]))):
        wanted = " or ".join(map(repr, config.validation_kinds))
        there = ", ".join(sorted({row.kind for row in rows}))
        raise UsageError(
            f"fold {config.validation_fold} holds no image of kind {wanted} (the index has {there}); "
            "--modality says what the pictures are, kinds and validation_kinds in --config name others"
        )
    return sets


def _learner(network: nn.Module, spec: ModelSpec, config: TrainConfig, device: torch.device) -> Learner:
    network = distributed.synchronised(network)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.5x faster on a CPU
    adversarial = config.loss in ADVERSARIAL
    example = torch.zeros(1, spec.input.channels, spec.input.height, spec.input.width)
    scaled = device.type == "cuda" and precision_of(config, device) == "fp16"
    return Learner(
        network,
        optimizer_for(network, config),
        {k: v.detach().clone() for k, v in network.state_dict().items()},
        torch.amp.GradScaler(enabled=scaled),
        Progress(rate=config.frozen_rate if config.frozen_epochs else config.rate),
        Adversary(config, spec.input.channels, device) if adversarial else None,
        Simulation(network, config.qat, example.to(device)) if config.qat is not None else None,
    )


def _enter_epoch(learner: Learner, spec: ModelSpec, config: TrainConfig) -> bool:
    """Set phase, rate and randomness of the coming epoch; returns whether the encoder is frozen in it."""
    progress, network = learner.progress, learner.network
    # Dropout of an epoch depends on its number alone, so that a resumed run draws the same.
    torch.manual_seed(hash((config.seed, progress.epoch, distributed.rank())) % 2**63)
    if progress.epoch == config.frozen_epochs:
        progress.rate, progress.best_loss, progress.loss_epoch = config.rate, float("inf"), progress.epoch
    frozen = progress.epoch < config.frozen_epochs
    network.train()
    OBJECTIVES[spec.task].prepare(network, frozen, config)
    if learner.simulation is not None:
        learner.simulation.enter_epoch(network, progress.epoch)
    for group in learner.optimizer.param_groups:
        group["lr"] = rate_of_epoch(progress, config)
    return frozen


def _train_epoch(learner: Learner, spec: ModelSpec, dealt: Iterator[tuple[Batch, int]], config: TrainConfig) -> float:
    """Run one epoch; the averaged weights follow each step. Returns the mean training loss, which is finite."""
    objective, adversary = OBJECTIVES[spec.task], learner.adversary
    called = distributed.wrapped(learner.network, spec.task is Task.PROMPTED)
    device = next(learner.network.parameters()).device
    precision = precision_of(config, device)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.bfloat16)
    losses = []
    for batch, whole in dealt:
        learner.optimizer.zero_grad(set_to_none=True)
        shares, judged, spent = parts(batch, config.accumulate), [], 0.0
        for number, part in enumerate(shares):
            moved = [tensor.to(device) for tensor in part]
            share = len(part[0]) / whole
            with distributed.exchanged_at_last(called, number == len(shares) - 1):
                rounded = simulated(learner.simulation, learner.network, learning=True)
                with torch.autocast(device.type, half, enabled=precision != "fp32"), rounded:
                    outputs = objective.outputs(called, moved, config)
                loss = objective.cost(outputs, moved, config)
                if adversary is not None:
                    logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
                    judged.append((moved[0], logits.float(), moved[1]))
                    loss = loss + adversary.penalty(*judged[-1])
                # Gradients are averaged over the processes; the factor makes that a sum of every part's share.
                learner.scaler.scale(loss * share * distributed.world()).backward()
            spent += float(loss.detach()) * share
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        if adversary is not None:
            adversary.learn(judged, [len(part[0]) / whole for part in shares])
        if learner.simulation is not None:
            learner.simulation.step()
        _update_average(learner.average, learner.network, config.ema_decay)
        losses.append(spent)
    mean = float(np.mean(np.sum(distributed.gathered(losses), axis=0))) if losses else math.nan
    if not losses:
        raise UsageError(
            "no step can be taken: it needs at least two samples, one for each process; "
            "take more pictures, or --batch 1 for a network without batch norm"
        )
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
def _validate(
    learner: Learner, network: nn.Module, spec: ModelSpec, samples: Any, config: TrainConfig
) -> tuple[float, float]:
    """Return the mean loss over all validation samples and the score of `validation_kinds` on the network's grid.

    Fine-tuning for INT8 is judged, and its best epoch chosen, by what INT8 computes.
    """
    objective, device = OBJECTIVES[spec.task], next(network.parameters()).device
    network.eval()
    own = distributed.dealt(range(len(samples)))
    found: list[tuple[int, float, Any]] = []
    loader = DataLoader(Subset(samples, own), config.batch_size, num_workers=config.workers)
    for batch in loader:
        moved = [tensor.to(device) for tensor in batch]
        with simulated(learner.simulation, network):
            outputs = objective.outputs(network, moved, config)
        details = objective.details(outputs, moved, config)
        for k, detail in enumerate(details):
            cost = objective.cost(one(outputs, k), [tensor[k : k + 1] for tensor in moved], config)
            found.append((own[len(found)], float(cost), detail))
    everything = sorted((entry for part in distributed.gathered(found) for entry in part), key=lambda entry: entry[0])
    selected = [d for number, _, d in everything if samples.row(number).kind in config.validation_kinds]
    return float(np.mean([cost for _, cost, _ in everything])), objective.score(selected)


def _silent(_line: str) -> None:
    """Report nothing: of several processes one speaks."""
