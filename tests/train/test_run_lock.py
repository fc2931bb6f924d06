"""One process trains into a folder; the lock goes with the process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mammo_runtime.errors import UsageError
from mammo_train.run_lock import run_lock

ROOT = Path(__file__).parents[2]


def test_the_lock_is_exclusive_and_freed_by_the_end_of_the_process(tmp_path: Path) -> None:
    code = (
        f"import sys, time; sys.path[:0] = {[str(ROOT / 'runtime'), str(ROOT / 'train')]!r}\n"
        "from pathlib import Path; from mammo_train.run_lock import run_lock\n"
        f"with run_lock(Path({str(tmp_path / 'run')!r})): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another process is training into"), run_lock(tmp_path / "run"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=30)
    with run_lock(tmp_path / "run"):
        pass
    with run_lock(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot write the run folder"), run_lock(tmp_path / "file" / "run"):
        pass


def test_of_several_processes_the_first_one_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with run_lock(tmp_path / "run"):
        assert not (tmp_path / "run").exists()
