"""The image embeddings of one run: a prompted model's encoder takes seconds, its decoder milliseconds."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np

MAX_BYTES = 256 * 2**20
"""64 embeddings of Segment Anything (4 MiB each)."""


class EmbeddingCache:
    """The last used embeddings of one encoder, at most `max_bytes` of them, in memory.

    The key is a digest of what the encoder sees, not of the file: another window level, or another file with the
    same pixels, can neither be mixed up nor be computed twice.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self.bytes_kept = 0
        self.hits = 0
        self.misses = 0

    @staticmethod
    def key(tensor: np.ndarray) -> bytes:
        """Return the digest of an input tensor (shape, dtype and values)."""
        header = f"{tensor.dtype.str}{tensor.shape}".encode()
        return hashlib.blake2b(header + np.ascontiguousarray(tensor).tobytes(), digest_size=32).digest()

    def find(self, key: bytes) -> np.ndarray | None:
        """Return the embedding, which must not be written to, or None; counts hits and misses."""
        found = self._kept.get(key)
        if found is None:
            self.misses += 1
            return None
        self._kept.move_to_end(key)
        self.hits += 1
        return found

    def keep(self, key: bytes, embedding: np.ndarray) -> None:
        """Keep an embedding and drop the longest unused ones beyond `max_bytes`; one that is larger is not kept."""
        if embedding.nbytes > self._max_bytes:
            return
        earlier = self._kept.pop(key, None)
        self.bytes_kept += embedding.nbytes - (0 if earlier is None else earlier.nbytes)
        self._kept[key] = embedding
        while self.bytes_kept > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.bytes_kept -= dropped.nbytes

    def to_dict(self) -> dict[str, int]:
        """Return what run.json says: runs of the encoder, and how many were saved."""
        return {"encoder_runs": self.misses, "encoder_runs_saved": self.hits, "bytes": self.bytes_kept}
