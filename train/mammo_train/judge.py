"""What evaluation asks of a model: the runtime's own `segment` on original pictures, and the truth beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mammo_runtime.embeddings import EmbeddingCache
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.preprocess import prepare
from mammo_runtime.result import Result
from mammo_runtime.segmenter import segment
from mammo_runtime.session import Session
from mammo_runtime.spec import ModelSpec
from mammo_train.dataset import LabelledImage, read_codes, read_labelled, read_picture
from mammo_train.index import IndexRow


@dataclass(frozen=True, eq=False)
class Model:
    """A model as a site would run it."""

    session: Session
    spec: ModelSpec
    decoder: Session | None = None
    """Of prompted models."""
    ignore_codes: tuple[int, ...] = (0,)
    """Of multi-class models: codes of mask files that are not judged."""
    embeddings: EmbeddingCache = field(default_factory=EmbeddingCache)

    def judge(self, image: Mammogram, boxes: Sequence[Box] | None = None, **changes: Any) -> Result:
        """Return what the runtime answers; `changes` replace fields of the spec."""
        spec = replace(self.spec, **changes) if changes else self.spec
        return segment(image, self.session, spec, boxes=boxes, decoder=self.decoder, embeddings=self.embeddings)

    def read(self, row: IndexRow) -> LabelledImage:
        """Return a picture with its mask."""
        return read_labelled(row, self.spec.modality)

    def read_image(self, row: IndexRow) -> Mammogram:
        """Return a picture alone."""
        return read_picture(row, self.spec.modality)

    def read_labels(self, row: IndexRow) -> tuple[Mammogram, np.ndarray]:
        """Return a picture and the number of each pixel's class, uint8 [rows, columns]; `IGNORE` is not judged."""
        image = self.read_image(row)
        return image, read_codes(row, image, self.ignore_codes)


def breast_region(image: Mammogram, spec: ModelSpec) -> np.ndarray | None:
    """Return the breast as the model's own cleaning finds it, bool [rows, columns] of the original picture.

    None where the spec does not look for it, or it was not found.
    """
    if not looks_for_breast(spec):
        return None
    prepared = prepare(image, spec.input)
    if prepared.breast is None:
        return None
    return np.asarray(prepared.placement.restore(prepared.breast.astype(np.float32)) >= 0.5)


def looks_for_breast(spec: ModelSpec) -> bool:
    """Whether a model that sees whole pictures finds the breast in them first."""
    return not spec.takes_boxes and any(step.name == "keep_breast" for step in spec.input.cleaning)
