"""The decoder process: crashes, hangs and memory fail one request, and it leaves no trace."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from mammo_runtime.errors import UnreadableImage
from mammo_runtime.readers import isolation, read_image
from phantoms import make_phantom, write_dicom_mg

RLE = "1.2.840.10008.1.2.5"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def healthy() -> np.ndarray:
    """Let the child answer with an array (and print to its standard output, as some codecs do)."""
    return isolation.call({"fault": "noise"}, b"payload")


def test_array_comes_back_despite_prints_of_the_codec() -> None:
    assert np.array_equal(healthy(), np.arange(6).reshape(2, 3))


@pytest.mark.parametrize(("fault", "words"), [("abort", "crashed"), ("segfault", "crashed")])
def test_crash_fails_the_request_and_the_next_gets_a_new_child(fault: str, words: str) -> None:
    healthy()
    before = isolation.child_pid()
    with pytest.raises(UnreadableImage, match=words):
        isolation.call({"fault": fault}, b"")
    healthy()
    assert isolation.child_pid() != before


@pytest.mark.parametrize(("fault", "words"), [("panic", "damaged"), ("memory", "memory")])
def test_what_the_child_can_catch_keeps_it_alive(fault: str, words: str) -> None:
    healthy()
    before = isolation.child_pid()
    with pytest.raises(UnreadableImage, match=words):
        isolation.call({"fault": fault}, b"")
    healthy()
    assert isolation.child_pid() == before


def test_hang_is_ended() -> None:
    with pytest.raises(UnreadableImage, match=r"did not finish within 0\.5 s"):
        isolation.call({"fault": "hang"}, b"", timeout_s=0.5)
    assert isolation.child_pid() is None
    healthy()


def test_child_that_died_between_files_is_replaced() -> None:
    healthy()
    assert isolation._child is not None
    isolation._child._process.kill()
    isolation._child._process.wait()
    healthy()


def test_interrupt_in_mid_answer_does_not_poison_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(isolation, "_read_exactly", interrupted)
        with pytest.raises(KeyboardInterrupt):
            healthy()
    # The unread answer must not be taken for the next request's.
    assert isolation.child_pid() is None
    with pytest.raises(UnreadableImage, match="damaged"):
        isolation.call({"fault": "panic"}, b"")


def test_crash_while_reading_a_file_fails_that_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom_mg(tmp_path / "a.dcm", make_phantom(1, 64, 64).pixels, transfer_syntax=RLE)
    call = isolation.call
    with monkeypatch.context() as patch:
        patch.setattr(isolation, "call", lambda request, payload: call({**request, "fault": "abort"}, payload))
        with pytest.raises(UnreadableImage, match="crashed"):
            read_image(path)
    assert read_image(path).rows == 64


def script(path: Path, *, end: str = "") -> str:
    """Return a program without main guard that decodes a compressed file and prints the child's process id."""
    return textwrap.dedent(f"""
        from pathlib import Path
        from mammo_runtime.readers import read_image, isolation
        assert isolation.child_pid() is None
        read_image(Path({str(path)!r}))
        print(isolation.child_pid(), flush=True)
        {end}
    """)


@pytest.mark.parametrize("end", ["", "raise KeyboardInterrupt"])
def test_unguarded_script_ends_cleanly(tmp_path: Path, end: str) -> None:
    path = write_dicom_mg(tmp_path / "a.dcm", make_phantom(1, 64, 64).pixels, transfer_syntax=RLE)
    program = tmp_path / "program.py"
    program.write_text(script(path, end=end))
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert (done.returncode == 0) == (not end)
    assert "resource_tracker" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stderr == "" or end
    if os.name == "posix":
        with pytest.raises(ProcessLookupError):
            os.kill(int(done.stdout), 0)


@pytest.mark.skipif(os.name != "posix", reason="kill by signal")
def test_child_leaves_when_its_parent_is_killed(tmp_path: Path) -> None:
    path = write_dicom_mg(tmp_path / "a.dcm", make_phantom(1, 64, 64).pixels, transfer_syntax=RLE)
    program = script(path, end="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode < 0
    pid = int(done.stdout)
    for _ in range(200):
        if not is_running(pid):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child outlived its parent")


def is_running(pid: int) -> bool:
    """Say whether the process is there and no zombie."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # gone in between, or a system without /proc
        return Path("/proc").exists() is False


def test_child_imports_only_what_it_needs() -> None:
    code = "import sys, mammo_runtime.readers.decoding_child; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True, env=ENVIRONMENT).split())
    assert not {"onnxruntime", "cv2", "torch", "pydicom"} & loaded
