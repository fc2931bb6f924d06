"""Where a run's images are: `data.json`, so that evaluation and export find them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from mammo_runtime.atomic import write_text
from mammo_runtime.errors import UsageError
from mammo_runtime.hashing import file_sha256
from mammo_train.index import IndexRow

DATA = "data.json"
ADVICE = "give --index FILE --root DIR"


def write_data_json(run: Path, index: Path, root: Path, seen: Sequence[IndexRow], initial: Path | None = None) -> None:
    """Write index and root of the data a run was trained on, and hashes of what training and selection have seen.

    What the run it started from (`initial`) has seen counts too.
    """
    before = json.loads((initial / DATA).read_text(encoding="utf-8")) if initial and (initial / DATA).is_file() else {}
    content = {
        "index": str(index.resolve()),
        "root": str(root.resolve()),
        "index_sha256": file_sha256(index),
        "seen_images": sorted({file_sha256(row.image) for row in seen} | set(before.get("seen_images", ()))),
        "seen_groups": sorted({_group_sha256(row) for row in seen} | set(before.get("seen_groups", ()))),
    }
    write_text(run / DATA, json.dumps(content, indent=1) + "\n")


def check_unseen(run: Path, rows: Sequence[IndexRow]) -> None:
    """Refuse to test on what the run has seen, whatever fold an index puts it in. Raises UsageError naming one."""
    path = run / DATA
    if not path.is_file():
        raise UsageError(f"{run} does not record what it has seen, so a test on it would prove nothing")
    content = json.loads(path.read_text(encoding="utf-8"))
    images, groups = set(content.get("seen_images", ())), set(content.get("seen_groups", ()))
    for row in rows:
        if _group_sha256(row) in groups or file_sha256(row.image) in images:
            raise UsageError(
                f"leak: {row.image.name} or its patient was used in training or selection of {run}; it is no test image"
            )


def _group_sha256(row: IndexRow) -> str:
    return hashlib.sha256(row.group.encode()).hexdigest()


def read_data_json(run: Path) -> tuple[Path, Path]:
    """Return (index, root). Raises UsageError when they are not recorded, gone, or the index was changed since."""
    path = run / DATA
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        index, root, expected = Path(values["index"]), Path(values["root"]), values["index_sha256"]
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror}); {ADVICE}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not valid ({type(error).__name__}: {error}); {ADVICE}") from error
    if not index.is_file():
        raise UsageError(f"the index that the run was trained with is not there any more ({index}); {ADVICE}")
    if file_sha256(index) != expected:
        raise UsageError(f"{index} was changed since the run was trained, so its folds may differ; {ADVICE}")
    return index, root
