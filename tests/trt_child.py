"""Runs in a process of its own with one TensorRT-RTX on its path: takes in graphs, builds them, tells what it saw.

Standard input: lines of JSON {"name", "path", "label", "build"}; standard output: a line of JSON for each.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from mammo_runtime.backends.engine import build_engine, take_in
from mammo_runtime.backends.engine_proof import proof_of
from mammo_runtime.backends.engine_settings import EngineSettings
from mammo_runtime.backends.onnx_wire import metadata_of
from mammo_runtime.backends.trt_library import plan_version
from mammo_runtime.errors import MammoError
from mammo_runtime.spec import ModelSpec, Precision


def seen(trt: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Return what became of a graph: types and shares, the plan's version, or the error's words."""
    onnx, label = Path(job["path"]).read_bytes(), Precision(job["label"])
    started = time.perf_counter()
    try:
        if job["build"]:
            spec = ModelSpec.from_metadata(metadata_of(onnx))
            engine = build_engine(trt, onnx, spec, label, EngineSettings(level=0))
            promised, types, plan = engine.promised, engine.types, [*plan_version(engine.plan), len(engine.plan)]
        else:
            graph = take_in(trt, onnx, label)
            promised, types, plan = graph.promised, graph.types, None
    except MammoError as error:
        return {"error": type(error).__name__, "said": str(error)}
    seconds = round(time.perf_counter() - started, 2)
    return {"types": types, "proof": proof_of(promised).to_dict(), "plan": plan, "seconds": seconds}


if __name__ == "__main__":
    module = importlib.import_module("tensorrt_rtx")
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps({"name": asked["name"], **seen(module, asked)}), flush=True)
