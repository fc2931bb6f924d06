from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mammo_runtime.atomic import PARTIAL_SUFFIX, remove_partial, whole_file, write_bytes, write_text
from mammo_runtime.errors import OutputError
from tiny_model import ENVIRONMENT


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_a_file_appears_whole_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    with whole_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    write_text(path, "ü\n")
    assert path.read_bytes() == b"\xc3\xbc\n"
    assert names(tmp_path) == ["c.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_earlier_file_and_no_temporary_one(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")

    def write() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_in_place_of_a_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "masks").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        write_bytes(tmp_path / "masks" / "a.png", b"x")


def test_a_folder_in_place_of_the_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_bytes(tmp_path / "a.png", b"x")
    assert names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder_is_an_output_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="cannot write"):
            write_bytes(tmp_path / "a.png", b"x")
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, a file system that nobody can write to")
def test_a_folder_nobody_can_write_to_is_an_output_error() -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_bytes(Path("/proc/self/new.png"), b"x")


def test_names_as_long_as_file_systems_allow(tmp_path: Path) -> None:
    for name in ("a" * 251 + ".png", "ü" * 125 + ".png", "\U0001f600" * 60 + ".png"):
        write_bytes(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"


KILLED = """
import sys, time
from pathlib import Path
from mammo_runtime.atomic import whole_file
with whole_file(Path(sys.argv[1])) as temporary:
    with temporary.open("wb") as stream:
        stream.write(b"half")
        stream.flush()
        print("written", flush=True)
        time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_writer_leaves_no_final_name_and_its_rest_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.png"
    command = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    (left,) = names(tmp_path)
    assert left.endswith(PARTIAL_SUFFIX)
    keep = ("notes.part", ".hidden.part", ".a.png.0123456.part", "a.png.01234567.part")
    for name in keep:
        (tmp_path / name).write_text("not ours")
    remove_partial(tmp_path)
    assert names(tmp_path) == sorted(keep)


def test_sweeping_a_missing_folder_is_harmless(tmp_path: Path) -> None:
    remove_partial(tmp_path / "none")
