"""How an epoch's samples are shared out: into batches, over processes, into the parts of a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from mammo_train import distributed
from mammo_train.config import TrainConfig
from mammo_train.objectives import Batch


def batches(samples: Any, config: TrainConfig, epoch: int) -> Iterator[tuple[Batch, int]]:
    """Yield this process's part of each of the epoch's batches, with the size of the whole.

    The order depends only on seed and epoch. A last batch of one is dropped, since batch norm cannot train on it, and
    so is one with fewer samples than processes.
    """
    samples.epoch = epoch
    order = np.random.default_rng((config.seed, epoch)).permutation(len(samples)).tolist()
    least = max(min(2, config.batch_size), distributed.world())
    whole = [order[k : k + config.batch_size] for k in range(0, len(order), config.batch_size)]
    kept = [batch for batch in whole if len(batch) >= least]
    own = [distributed.dealt(batch) for batch in kept]
    loader = DataLoader(samples, batch_sampler=own, num_workers=config.workers)
    yield from zip(loader, (len(batch) for batch in kept), strict=True)


def parts(batch: Batch, count: int) -> list[Batch]:
    """Split a batch into at most `count` parts of about equal size."""
    size = math.ceil(len(batch[0]) / count)
    return [[tensor[k : k + size] for tensor in batch] for k in range(0, len(batch[0]), size)]
