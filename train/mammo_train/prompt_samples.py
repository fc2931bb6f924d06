"""Samples of prompted models: an image (or its embedding), one lesion's mask, and a box round that lesion."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from mammo_runtime.atomic import write_bytes
from mammo_runtime.errors import UsageError
from mammo_runtime.findings import components
from mammo_runtime.preprocess import Prepared, normalise, prepare
from mammo_runtime.spec import Fit, ModelSpec
from mammo_train.augment import augment_planes
from mammo_train.config import AugmentConfig
from mammo_train.dataset import MIN_LESION_PX, LabelledImage, read_labelled
from mammo_train.index import IndexRow
from mammo_train.models.prompted import PromptedNetwork

Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Image float32 [C, H, W] or embedding [c, h, w]; mask float32 [1, S, S]; box float32 [4], x0, y0, x1, y1 on the grid.

S is the side of the decoder's mask, which covers the whole grid.
"""
WIDEST = 20 / 1024
"""Each side of a training box moves outwards by up to this fraction of the grid's side (tutorial of study 002)."""
KEPT_CELLS = 512 * 512
"""Grids of at most so many cells stay in memory; larger ones are made anew for each use."""
FOLDER = "embeddings"
"""Where a run keeps them."""


@dataclass(frozen=True, eq=False)
class Placed:
    """An image on the grid, with what is to be found on it."""

    prepared: Prepared
    inside: np.ndarray
    """The cells that hold picture, bool [H, W]."""
    masks: tuple[np.ndarray, ...]
    """Of each lesion, bool [H, W]; a cell counts when half of it is covered."""
    targets: tuple[np.ndarray, ...]
    """The same as the decoder answers, bool [S, S]."""
    boxes: tuple[np.ndarray, ...]
    """Tight boxes of the lesions, float32 [4] on the grid."""


class BoxSamples(Dataset[Sample]):
    """Samples with images, one for each lesion. Images without one give none: there is nothing to point at.

    Item i of epoch e depends only on (seed, e, i). `widen` moves the sides of boxes at random, as while training;
    without it a box is the lesion's own.
    """

    def __init__(
        self,
        rows: Sequence[IndexRow],
        spec: ModelSpec,
        augmentation: AugmentConfig | None,
        seed: int,
        repeats: int = 1,
        widen: bool = False,
    ) -> None:
        """List the lesions; every file with a mask is read once. Raises UsageError when no lesion remains."""
        assert spec.prompt is not None
        self._spec, self._side, self._augmentation = spec, spec.prompt.mask_side, augmentation
        self.seed, self._repeats, self._widen = seed, repeats, widen
        found = [(row, len(read_labelled(row, spec.modality).boxes)) for row in rows if row.mask is not None]
        self.rows = [row for row, lesions in found if lesions]
        counts = [lesions for _, lesions in found if lesions]
        self.lesions = [(k, n) for k, lesions in enumerate(counts) for n in range(lesions)]
        """Image's number and the lesion's on it, of each sample before repetition."""
        if not self.lesions:
            raise UsageError("no training sample: the chosen folds and kinds hold no lesion to put a box round")
        self._placed: dict[int, Placed] = {}
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lesions) * self._repeats

    def row(self, item: int) -> IndexRow:
        """Return the index row an item comes from."""
        return self.rows[self.lesions[item % len(self.lesions)][0]]

    def __getitem__(self, item: int) -> Sample:
        number, lesion = self.lesions[item % len(self.lesions)]
        rng = np.random.default_rng((self.seed, self.epoch, item))
        placed = self.place(number)
        tensor, target, box = self.tensor(placed)[0], placed.targets[lesion], placed.boxes[lesion]
        inside = placed.inside
        if self._augmentation is not None:
            planes = ((placed.masks[lesion], 0), (placed.inside, 0))
            grid, (mask, moved) = augment_planes(placed.prepared.grid, planes, self._augmentation, rng)
            if mask.any():  # else the lesion was moved off the grid, and the sample stays as it was
                zeroed = moved if self._spec.input.fit is Fit.CORNER else None
                tensor, inside = normalise(grid, self._spec.input, zeroed)[0], moved
                target, box = _shrunk(mask, self._side), _edges(mask)
        return torch.from_numpy(tensor), _as_target(target), torch.from_numpy(self.widened(box, inside, rng))

    def place(self, number: int) -> Placed:
        """Return image `number` on the grid, not augmented."""
        if number in self._placed:
            return self._placed[number]
        labelled = read_labelled(self.rows[number], self._spec.modality)
        prepared = prepare(labelled.image, self._spec.input)
        covered = [prepared.placement.coverage(mask) for mask in _lesion_masks(labelled)]
        placed = Placed(
            prepared,
            prepared.placement.inside,
            tuple(c >= 0.5 for c in covered),
            tuple(_shrunk(c, self._side) for c in covered),
            tuple(prepared.placement.box_to_grid(box) for box in labelled.boxes),
        )
        if placed.inside.size <= KEPT_CELLS:
            self._placed[number] = placed
        return placed

    def tensor(self, placed: Placed) -> np.ndarray:
        """Return a placed image as the network takes it, float32 [1, C, H, W]."""
        return placed.prepared.tensor(self._spec.input)

    def widened(self, box: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a box float32 [4] with each side moved outwards at random (`WIDEST`), not off the picture `inside`."""
        if not self._widen:
            return box
        moved = box + rng.uniform(0, WIDEST * max(inside.shape), 4) * (-1, -1, 1, 1)
        left, top, right, bottom = _edges(inside)
        return np.asarray(np.clip(moved, (left, top, left, top), (right, bottom, right, bottom)), np.float32)


class EmbeddedSamples(Dataset[Sample]):
    """The same samples with the embedding instead of the image: the encoder runs once per image, not per step.

    Embeddings are files in `folder`, named by the sha256 of the encoder's weights and the image as the encoder takes
    it, so that a file can never belong to other weights or preprocessing. There is no augmentation of pictures.
    """

    def __init__(
        self,
        samples: BoxSamples,
        network: PromptedNetwork,
        folder: Path,
        half: bool = False,
        report: Callable[[str], None] = print,
    ) -> None:
        """Encode what is not in `folder` yet. `half` keeps float16 (half the disk space); `record` tells."""
        self._samples, self._half = samples, half
        self.encoder_sha256 = weights_digest(network.encoder)
        self._files: list[Path] = []
        self._placed: list[Placed] = []
        self.epoch = 0
        encoded = 0
        for number in range(len(samples.rows)):
            placed = samples.place(number)
            tensor = samples.tensor(placed)
            name = hashlib.sha256(self.encoder_sha256.encode() + tensor.tobytes()).hexdigest()
            file = folder / f"{name}.{'f16' if half else 'f32'}.npy"
            if not file.is_file():
                _write(file, encode(network, tensor), half)
                encoded += 1
            self._files.append(file)
            # Neither the picture nor its full-size masks are needed any more.
            slim = Prepared(np.zeros((0, 0), np.float32), placed.prepared.placement, (), None)
            self._placed.append(Placed(slim, placed.inside, (), placed.targets, placed.boxes))
        report(f"{encoded} of {len(self._files)} images encoded, the others were in {folder}")

    def __len__(self) -> int:
        return len(self._samples)

    def row(self, item: int) -> IndexRow:
        """Return the index row an item comes from."""
        return self._samples.row(item)

    @property
    def record(self) -> dict[str, str]:
        """What a run's record says of the embeddings."""
        return {"dtype": "float16" if self._half else "float32", "encoder_sha256": self.encoder_sha256}

    def __getitem__(self, item: int) -> Sample:
        number, lesion = self._samples.lesions[item % len(self._samples.lesions)]
        rng = np.random.default_rng((self._samples.seed, self.epoch, item))
        placed = self._placed[number]
        embedding = np.load(self._files[number], allow_pickle=False).astype(np.float32)
        box = self._samples.widened(placed.boxes[lesion], placed.inside, rng)
        return torch.from_numpy(embedding), _as_target(placed.targets[lesion]), torch.from_numpy(box)


@torch.no_grad()
def encode(network: PromptedNetwork, tensor: np.ndarray) -> np.ndarray:
    """Map an image float32 [1, C, H, W] to its embedding float32 [c, h, w], in eval mode, where the network is."""
    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    embedding: np.ndarray = network.encode(torch.from_numpy(tensor).to(device))[0].float().cpu().numpy()
    network.train(was_training)
    return embedding


def weights_digest(module: torch.nn.Module) -> str:
    """Return the sha256 over names and values of a module's weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _lesion_masks(image: LabelledImage) -> list[np.ndarray]:
    """Return the mask bool [rows, columns] of each lesion, in the order of `image.boxes`."""
    count, labels, stats = components(image.mask)
    kept = [k for k in range(1, count + 1) if stats[k][cv2.CC_STAT_AREA] >= MIN_LESION_PX]
    kept.sort(key=lambda k: -int(stats[k][cv2.CC_STAT_AREA]))
    return [labels == k for k in kept]


def _shrunk(mask: np.ndarray, side: int) -> np.ndarray:
    """Map coverage or a mask [H, W] to bool [side, side]; a cell counts when half of it is covered."""
    return np.asarray(cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA) >= 0.5)


def _edges(mask: np.ndarray) -> np.ndarray:
    """Return the box of a mask that is not empty, float32 [4]: edges, in cells."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), np.float32)


def _as_target(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask[None].astype(np.float32))


def _write(file: Path, embedding: np.ndarray, half: bool) -> None:
    if half and float(np.abs(embedding).max()) > 6e4:
        raise UsageError("an embedding is too large for float16; keep embeddings as float32")
    content = io.BytesIO()
    np.save(content, embedding.astype(np.float16 if half else np.float32), allow_pickle=False)
    write_bytes(file, content.getvalue())
