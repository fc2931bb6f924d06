"""Training in several processes, started by torchrun: the same steps as in one, shared out.

A batch is dealt out to the processes; each weighs its part by its share, so that the summed gradients are those of one
process with the whole batch. Batch norm takes its statistics from a process's own part on a CPU, from all parts on
GPUs (SyncBatchNorm). Every process judges a part of the validation samples, all take the same decisions, the first one
writes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started (gloo on CPUs, NCCL on GPUs); does nothing in a process of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number; 0 writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that goes on after training; torchrun's others are done then."""
    return int(os.environ.get("RANK", "0")) == 0


def wrapped(network: nn.Module, some_idle: bool = False) -> nn.Module:
    """Return the network as it is called in training: its gradients are averaged over the processes.

    `some_idle`: parameters that learn may get no gradient, as in the heads of SAM that one box does not ask for.
    Wrap it again when parameters were frozen or released.
    """
    if world() == 1:
        return network
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else None
    return nn.parallel.DistributedDataParallel(network, device_ids=devices, find_unused_parameters=some_idle)


def synchronised(network: nn.Module) -> nn.Module:
    """Return the network with batch norms that see all processes' parts, where that exists (GPUs)."""
    if world() > 1 and torch.cuda.is_available():
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return converted
    return network


def exchanged_at_last(called: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Exchange gradients of a `wrapped` network once a step, with the last part of a batch."""
    if last or not isinstance(called, nn.parallel.DistributedDataParallel):
        return nullcontext()
    waiting: AbstractContextManager[None] = called.no_sync()
    return waiting


@torch.no_grad()
def sum_gradients(module: nn.Module) -> None:
    """Add up the gradients of a module that is not `wrapped`."""
    if world() > 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                whole = parameter.grad.contiguous()  # in channels_last order it could not be sent
                dist.all_reduce(whole)
                parameter.grad.copy_(whole)


@torch.no_grad()
def largest(values: torch.Tensor) -> torch.Tensor:
    """Return the element-wise maximum over all processes."""
    if world() > 1:
        values = values.contiguous()
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


@torch.no_grad()
def share_first(tensors: Iterable[torch.Tensor]) -> None:
    """Give every process the first one's values: batch norms' statistics differ where each counts its own part."""
    if world() > 1:
        for tensor in tensors:
            whole = tensor.contiguous()
            dist.broadcast(whole, 0)
            tensor.copy_(whole)


def gathered(value: Any) -> list[Any]:
    """Return every process's value, in order; plain Python values and arrays only."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def dealt(samples: Sequence[int]) -> list[int]:
    """Return this process's part of a batch or list: every n-th, from its own number on."""
    return list(samples[rank() :: world()])


def agreed(value: Any) -> Any:
    """Return the first process's value everywhere, so that all take the same decision."""
    return gathered(value)[0]
