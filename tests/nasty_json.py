"""Every way to put nonsense in place of one value of a JSON document."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

NASTY: tuple[Any, ...] = (None, True, -1, 1e400, float("nan"), 10**400, "", "\x1b[31m", "../x", [], {}, [[]], {"a": {}})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value below the document's root."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutants(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield (what was done, document) with each value replaced by each nasty one, and left out."""
    for path in places(document):
        for nasty in (*NASTY, "leave out"):
            changed = copy.deepcopy(document)
            holder = changed
            for step in path[:-1]:
                holder = holder[step]
            if nasty == "leave out":
                del holder[path[-1]]
            else:
                holder[path[-1]] = nasty
            yield f"{path} = {nasty!r}"[:200], changed
