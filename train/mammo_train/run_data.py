"""Where a run's images are: `data.json`, so that evaluation and export find them again."""

from __future__ import annotations

import json
from pathlib import Path

from mammo_runtime.atomic import write_text
from mammo_runtime.errors import UsageError
from mammo_runtime.hashing import file_sha256

DATA = "data.json"
ADVICE = "give --index FILE --root DIR"


def write_data_json(run: Path, index: Path, root: Path) -> None:
    """Write index and root of the data a run was trained on, with the index's sha256."""
    places = {"index": str(index.resolve()), "root": str(root.resolve()), "index_sha256": file_sha256(index)}
    write_text(run / DATA, json.dumps(places, indent=1) + "\n")


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
