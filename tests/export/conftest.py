"""Fixtures of the export tests, which need torch and onnx and are left out where these are not installed."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob: list[str] = []
if find_spec("torch") and find_spec("onnx"):
    from tiny_export import (
        collection,
        exported,
        exported_roi,
        exported_tasks,
        one_thread,
        rows,
        run_folder,
        task_runs,
    )

    __all__ = [
        "collection",
        "exported",
        "exported_roi",
        "exported_tasks",
        "one_thread",
        "rows",
        "run_folder",
        "task_runs",
    ]
else:
    collect_ignore_glob = ["test_*.py"]
