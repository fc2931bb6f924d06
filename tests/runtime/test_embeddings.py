from __future__ import annotations

import numpy as np

from mammo_runtime.embeddings import EmbeddingCache


def test_the_longest_unused_go_first_and_memory_stays_bounded() -> None:
    cache = EmbeddingCache(max_bytes=3 * 400)
    keys = [cache.key(np.full((1, 3), k, np.float32)) for k in range(5)]
    for key in keys[:3]:
        cache.keep(key, np.zeros(100, np.float32))
    assert cache.find(keys[0]) is not None
    cache.keep(keys[3], np.zeros(100, np.float32))
    assert [cache.find(key) is not None for key in keys] == [True, False, True, True, False]
    assert cache.bytes_kept == 1200
    cache.keep(keys[3], np.zeros(50, np.float32))
    assert cache.bytes_kept == 1000
    cache.keep(keys[4], np.zeros(301, np.float32))
    assert cache.find(keys[4]) is None, "larger than the whole cache"
    assert cache.to_dict() == {"encoder_runs": 3, "encoder_runs_saved": 4, "bytes": 1000}


def test_the_key_tells_values_shapes_and_types_apart() -> None:
    values = np.arange(6, dtype=np.float32)
    variants = [values, values.reshape(2, 3), values.view(np.int32), values + np.float32(1e-6)]
    assert len({EmbeddingCache.key(v) for v in variants}) == 4
    assert EmbeddingCache.key(values.reshape(2, 3).T.copy().T) == EmbeddingCache.key(values.reshape(2, 3))
