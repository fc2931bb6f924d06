"""Every TensorRT name that the builder and the session use is held against the real bindings of four versions.

They are wheels without the library behind them; a stub of nine symbols makes them importable. TensorRT itself cannot be
had from the package index.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fake_tensorrt import FakeDriver, FakeTensorRT, packed
from fake_trt_parts import TOUCHED, Knobs
from mammo_runtime.backends.engine_settings import EngineSettings
from mammo_runtime.backends.trt import TensorRTSession
from mammo_runtime.errors import ModelRefused
from mammo_runtime.spec import InputSpec, ModelSpec
from tiny_model import ROOT, TINY

PLACE = Path(os.environ.get("MAMMO_TRT_DIR", ROOT / ".trt"))
VERSIONS = ("10.3", "10.13", "10.16", "11.4")
SPEC = ModelSpec("tiny", "blur", input=InputSpec(height=16, width=16))
STUB = """
void*createInferBuilder_INTERNAL(void*l,int v){return 0;} void*createInferRuntime_INTERNAL(void*l,int v){return 0;}
void*createInferRefitter_INTERNAL(void*e,void*l,int v){return 0;}
void*createNvOnnxParser_INTERNAL(void*a,void*b,int v){return 0;}
void*createNvOnnxParserRefitter_INTERNAL(void*a,void*b,int v){return 0;} void*getBuilderPluginRegistry(int c){return 0;}
void*getPluginRegistry(void){return 0;} int getNvOnnxParserVersion(void){return 0;}
int initLibNvInferPlugins(void*l,const char*n){return 0;}
"""
LOOK = """
import json, sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
import tensorrt_bindings as trt
from mammo_runtime.backends.engine import build_engine
from mammo_runtime.backends.trt_library import make_log, name_of
from mammo_runtime.errors import ModelRefused
from mammo_runtime.spec import ModelSpec, Precision

def there(owner, member):
    if owner == "module":
        return hasattr(trt, member)
    return hasattr(getattr(trt, owner), member)

missing = [pair for pair in json.load(sys.stdin) if not there(*pair)]
try:
    build_engine(trt, b"", ModelSpec("x", "y"), Precision.FP32)
    said = "built"
except ModelRefused as error:
    said = str(error)
log = make_log(trt)
log.log(trt.ILogger.Severity.ERROR, "wrong")
found = {"version": trt.__version__, "missing": missing, "said": said, "log": log.errors, "name": name_of(trt)}
print(json.dumps(found))
"""


def touched(folder: Path) -> list[tuple[str, str]]:
    """Run all that the builder and the session do, and return what they touched."""
    TOUCHED.clear()
    trt = FakeTensorRT()
    full = EngineSettings(version_compatible=True, hardware_compatible=True, timing_cache=folder / "timings")
    plan, record = packed(TINY.read_bytes(), trt, SPEC, full, flags={"VERSION_COMPATIBLE": "slower"})
    with TensorRTSession.from_plan(plan, record, trt, FakeDriver()) as session:
        session.run(np.zeros((1, 3, 16, 16), np.float32))
        session.layer_information()
        session.layer_times(1)
    with pytest.raises(ModelRefused):
        packed(TINY.read_bytes(), FakeTensorRT(Knobs(parser_error="no")), SPEC)
    return sorted(TOUCHED)


def test_the_list_is_complete(tmp_path: Path) -> None:
    """Guards the test below: what is known to be used must have been noted."""
    used = set(touched(tmp_path))
    assert {("Builder", "build_serialized_network"), ("IExecutionContext", "execute_async_v3")} <= used
    assert {("BuilderFlag", "VERSION_COMPATIBLE"), ("HardwareCompatibilityLevel", "AMPERE_PLUS")} <= used
    assert {("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"), ("ParserError", "node_operator")} <= used
    assert len(used) > 60


@pytest.mark.parametrize("version", VERSIONS)
def test_the_real_bindings_have_every_name(version: str, tmp_path: Path) -> None:
    bindings = PLACE / f"bindings-{version}"
    if not (bindings / "tensorrt_bindings").is_dir():
        pytest.skip(f"the bindings of TensorRT {version} are not here: {bindings} (make trt)")
    (about,) = bindings.glob("*bindings*.dist-info/WHEEL")
    if f"Tag: cp{sys.version_info.major}{sys.version_info.minor}-" not in about.read_text():
        pytest.skip(f"the bindings of TensorRT {version} are for another Python than this")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here to build the stub libraries with")
    (tmp_path / "stub.c").write_text(STUB)
    for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        library = f"lib{name}.so.{version.split('.')[0]}"
        command = [
            compiler,
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{library}",
            "-o",
            tmp_path / library,
            tmp_path / "stub.c",
        ]
        subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-c", LOOK, bindings, ROOT / "runtime"],
        input=json.dumps(touched(tmp_path)),
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"].startswith(version)
    assert found["missing"] == []
    assert "found no usable GPU" in found["said"], "what the real bindings raise without a GPU is understood"
    assert found["log"] == ["wrong"], "the real logger can be subclassed as it is"
    assert found["name"] == "tensorrt"
