"""The rooms' walls: who imports whom, what stays light, how large files grow, what a site's machine can run."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("runtime", "train", "export", "benchmarks")

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
LONGER: dict[str, str] = {}
""""path" or "path::function" → why it may be longer. Preferably empty."""

NEVER_AT_A_SITE = {
    "torch", "torchvision", "onnx", "onnxscript", "safetensors", "matplotlib", "transformers", "timm",
    "segmentation_models_pytorch", "mammo_train", "mammo_export",
}  # fmt: skip
HOMES: dict[str, tuple[str, ...]] = {
    "runtime/onnxruntime": ("backends/ort.py",),
    "runtime/cuda": ("backends/cuda_drivers.py",),
    "runtime/pycuda": ("backends/cuda_drivers.py",),
    "runtime/jinja2": ("writers/report.py",),
    "runtime/pydicom": ("readers/dicom*.py", "readers/decod*.py", "readers/isolation.py", "phantom_dicom.py"),
    "train/matplotlib": ("pictures*.py",),
    "train/transformers": ("models/prompted.py",),
    "train/segmentation_models_pytorch": ("models/smp_networks.py",),
    "export/matplotlib": ("report_plots.py",),
    "export/cryptography": ("signature.py",),
}
"""Room/library → the only files of that room's package that import it: one heavy library, one file (or one family)."""

LIGHT_COMMANDS = {
    "mammo_runtime.cli": {"onnxruntime", "cv2", "numpy", "pydicom", "jinja2"},
    "mammo_train.cli": {"onnxruntime", "cv2", "numpy", "pydicom", "torch", "matplotlib"},
    "mammo_export.cli": {"onnxruntime", "cv2", "numpy", "pydicom", "torch", "onnx"},
}
NETWORK = {"requests", "urllib", "urllib3", "http", "httpx", "aiohttp", "socket", "ssl", "ftplib", "smtplib"}
NO_NETWORK = ("urllib.parse", "http.HTTPStatus")
"""Of the above, what only handles text."""
EXECUTES_DATA = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix", "syslog"}
POSIX_NAMES = {
    "os": {
        "fork", "forkpty", "killpg", "setsid", "setpgid", "getpgid", "getuid", "geteuid", "getgid", "getegid", "nice",
        "mkfifo", "statvfs", "chown", "uname", "getloadavg", "sched_getaffinity", "sched_setaffinity", "wait", "wait3",
        "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK",
    },
    "signal": {
        "SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGCHLD", "alarm", "setitimer", "pause",
    },
    "time": {"tzset"},
}  # fmt: skip
GUARDS = ("platform", "os.name", "hasattr")


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def in_repository(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield (top-level module, line) of what `imported_modules` finds."""
    yield from ((name.split(".")[0], line) for name, line in imported_modules(tree))


def imported_modules(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield (module, line) of every absolute import, however deep, and of import_module("…")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            named = node.args[0] if node.args else None
            if isinstance(named, ast.Constant) and isinstance(named.value, str):
                yield named.value, node.lineno


def unsafe_loads(tree: ast.AST) -> Iterator[int]:
    """Yield the lines of torch.load without weights_only=True and of allow_pickle=True."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        true = {k.arg for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is True}
        if (ast.unparse(node.func) == "torch.load" and "weights_only" not in true) or "allow_pickle" in true:
            yield node.lineno


def posix_only(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield (name, line) of POSIX-only modules and names outside a guard.

    A guard is an `if` that asks for the platform (or for the attribute), also one that leaves the function earlier,
    or a `try` that catches ImportError or AttributeError.
    """
    yield from _posix_only(tree, guarded=False)


def _posix_only(node: ast.AST, guarded: bool) -> Iterator[tuple[str, int]]:
    if not guarded:
        if isinstance(node, ast.Import):
            yield from ((a.name, node.lineno) for a in node.names if a.name.split(".")[0] in POSIX_MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in POSIX_MODULES:
            yield str(node.module), node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module in POSIX_NAMES:
            yield from ((a.name, node.lineno) for a in node.names if a.name in POSIX_NAMES[str(node.module)])
        elif isinstance(node, ast.Attribute) and node.attr in POSIX_NAMES.get(ast.unparse(node.value), ()):
            yield ast.unparse(node), node.lineno
    if isinstance(node, ast.Try):
        caught = " ".join(ast.unparse(h.type) for h in node.handlers if h.type is not None)
        safe = guarded or "ImportError" in caught or "AttributeError" in caught
        for field, inside in (("body", safe), ("handlers", guarded), ("orelse", safe), ("finalbody", guarded)):
            for child in getattr(node, field):
                yield from _posix_only(child, inside)
        return
    inside = guarded or (isinstance(node, (ast.If, ast.IfExp)) and _asks_platform(node.test))
    for child in ast.iter_child_nodes(node):
        yield from _posix_only(child, inside)
        leaves = isinstance(child, ast.If) and isinstance(child.body[-1], (ast.Return, ast.Raise))
        inside = inside or (leaves and isinstance(child, ast.If) and _asks_platform(child.test))


def _asks_platform(test: ast.expr) -> bool:
    return any(word in ast.unparse(test) for word in GUARDS)


def too_long(path: str, text: str) -> Iterator[str]:
    """Yield a line for the file or function that breaks the size budget."""
    lines = len(text.splitlines())
    if lines > MAX_FILE_LINES and path not in LONGER:
        yield f"{path}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION_LINES and f"{path}::{node.name}" not in LONGER:
                yield f"{path}::{node.name}: {length} lines"


def loaded_after(code: str) -> set[str]:
    """Return the top-level modules a fresh interpreter holds after running the code."""
    paths = os.pathsep.join(str(ROOT / room) for room in ROOMS)
    environment = {**os.environ, "PYTHONPATH": paths}
    code = f"import sys\n{code}\nprint('loaded:', *{{name.split('.')[0] for name in sys.modules}})"
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return set(finished.stdout.rsplit("loaded:", 1)[1].split())


def test_no_module_of_the_runtime_brings_the_trainers_libraries() -> None:
    """Each submodule is imported; one that needs an absent package may fail, but not one of ours."""
    walk = """
import importlib, pkgutil, mammo_runtime
names = [m.name for m in pkgutil.walk_packages(mammo_runtime.__path__, 'mammo_runtime.')]
assert len(names) > 15, names
for name in names:
    if name.endswith('__main__'):
        continue
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith('mammo_'):
            raise
"""
    loaded = loaded_after(walk)
    assert {"numpy", "mammo_runtime"} <= loaded
    assert not NEVER_AT_A_SITE & loaded


@pytest.mark.parametrize("module", LIGHT_COMMANDS)
def test_a_command_is_light_until_it_works(module: str) -> None:
    loaded = loaded_after(f"import {module}")
    assert "click" in loaded
    assert not LIGHT_COMMANDS[module] & loaded


def test_the_runtime_names_none_of_the_trainers_libraries() -> None:
    found = [
        f"{in_repository(path)}:{line}: {name}"
        for path in sources("runtime")
        for name, line in imported(ast.parse(path.read_text("utf-8")))
        if name in NEVER_AT_A_SITE
    ]
    assert found == []


@pytest.mark.parametrize("place", HOMES)
def test_a_heavy_library_has_one_home(place: str) -> None:
    room, library = place.split("/")
    package = ROOT / room / f"mammo_{room}"
    users = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if library in {name for name, _ in imported(ast.parse(path.read_text("utf-8")))}
    }
    assert users, f"nothing imports {library} any more; take it out of HOMES"
    assert {user for user in users if not any(fnmatch(user, home) for home in HOMES[place])} == set()


def test_files_and_functions_stay_small() -> None:
    paths = [path for room in ROOMS for path in sources(room)]
    assert [line for path in paths for line in too_long(in_repository(path), path.read_text("utf-8"))] == []


def test_every_exception_from_the_budget_is_still_needed() -> None:
    for place, reason in LONGER.items():
        assert reason
        assert (ROOT / place.split("::")[0]).is_file(), f"{place} is gone; take it out of LONGER"


def test_no_file_is_loaded_that_could_execute() -> None:
    found = []
    for path in (path for room in ROOMS for path in sources(room)):
        tree = ast.parse(path.read_text("utf-8"))
        found += [f"{in_repository(path)}:{line}: {name}" for name, line in imported(tree) if name in EXECUTES_DATA]
        found += [f"{in_repository(path)}:{line}: unsafe load" for line in unsafe_loads(tree)]
    assert found == []


def test_the_runtime_cannot_reach_the_network() -> None:
    found = [
        f"{in_repository(path)}:{line}: {name}"
        for path in sources("runtime")
        for name, line in imported_modules(ast.parse(path.read_text("utf-8")))
        if name.split(".")[0] in NETWORK and not name.startswith(NO_NETWORK)
    ]
    assert found == []


def test_the_runtime_is_python_3_10() -> None:
    """JetPack 6 has Python 3.10."""
    for path in sources("runtime"):
        ast.parse(path.read_text("utf-8"), filename=in_repository(path), feature_version=(3, 10))


def test_the_runtime_runs_on_windows_too() -> None:
    trees = {in_repository(path): ast.parse(path.read_text("utf-8")) for path in sources("runtime")}
    assert [f"{path}:{line}: {name}" for path, tree in trees.items() for name, line in posix_only(tree)] == []


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import torch.nn as nn", ["torch"]),
        ("def f():\n    from onnx import helper", ["onnx"]),
        ("import importlib\nimportlib.import_module('pydicom.uid')", ["importlib", "pydicom"]),
        ("from . import onnx", []),
    ],
)
def test_imports_are_found_wherever_they_hide(code: str, names: list[str]) -> None:
    assert [name for name, _ in imported(ast.parse(code))] == names


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("import torch\ntorch.load(p)", [2]),
        ("torch.load(p, weights_only=False)", [1]),
        ("np.load(p, allow_pickle=True)", [1]),
        ("torch.load(p, weights_only=True)\nnp.load(p)\njson.load(p)", []),
    ],
)
def test_unsafe_loads_are_found(code: str, lines: list[int]) -> None:
    assert list(unsafe_loads(ast.parse(code))) == lines


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("import os\nos.fork()", [2]),
        ("import fcntl", [1]),
        ("from signal import SIGKILL", [1]),
        ("import os, signal\nos.kill(1, signal.SIGKILL)", [2]),
        ("try:\n    import resource\nexcept ValueError:\n    pass", [2]),
        ("try:\n    import resource\nexcept ImportError:\n    import fcntl", [4]),
        ("if verbose:\n    os.killpg(1, 9)", [2]),
        ("if hasattr(os, 'fork'):\n    os.fork()", []),
        ("def f():\n    if sys.platform == 'win32':\n        return\n    import resource", []),
        ("def f():\n    if sys.platform == 'win32':\n        return\ndef g():\n    import resource", [5]),
        ("os.replace(a, b)\nsignal.SIGINT", []),
    ],
)
def test_unguarded_posix_calls_are_found(code: str, lines: list[int]) -> None:
    assert [line for _, line in posix_only(ast.parse(code))] == lines


def test_the_budget_sees_long_files_and_functions() -> None:
    body = "    pass\n" * MAX_FUNCTION_LINES
    assert list(too_long("a.py", f"def f():\n{body}")) == [f"a.py::f: {MAX_FUNCTION_LINES + 1} lines"]
    assert list(too_long("a.py", "pass\n" * (MAX_FILE_LINES + 1))) == [f"a.py: {MAX_FILE_LINES + 1} lines"]
    assert list(too_long("a.py", "pass\n" * MAX_FILE_LINES)) == []
