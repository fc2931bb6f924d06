"""What a killed export resumes from: found again by content, whole or not at all, whoever else writes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mammo_export import memory as memory_module
from mammo_export.memory import Memory
from mammo_runtime.errors import MammoError, OutputError

PARTS = {"graph": "abc", "settings": {"count": 3}}
WORKER = """
import sys, time
from pathlib import Path
from mammo_export.memory import Memory
memory, log = Memory(Path(sys.argv[1])), Path(sys.argv[2])
def make(k):
    with log.open("a") as stream:
        stream.write(f"{k}\\n")
    time.sleep(float(sys.argv[3]))
    return {"number": k, "filler": "x" * 20000}
for k in range(int(sys.argv[4])):
    assert memory.remembered({"k": k}, lambda: make(k))["number"] == k
print("done", flush=True)
"""


def worker(folder: Path, log: Path, seconds: float, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(folder), str(log), str(seconds), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_result_is_made_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def make() -> dict[str, object]:
        calls.append(1)
        return {"score": 0.125, "names": ("a", "b")}

    first = Memory(tmp_path / "m").remembered(PARTS, make)
    again = Memory(tmp_path / "m").remembered({"settings": {"count": 3}, "graph": "abc"}, make)
    assert first == again == {"score": 0.125, "names": ["a", "b"]}, "as JSON gives it back, the first time too"
    assert len(calls) == 1


@pytest.mark.parametrize(
    "changed", [{**PARTS, "graph": "abd"}, {**PARTS, "settings": {"count": 4}}, {"graph": "abc"}, {**PARTS, "more": 1}]
)
def test_other_content_finds_nothing(tmp_path: Path, changed: dict[str, object]) -> None:
    memory = Memory(tmp_path)
    memory.remembered(PARTS, lambda: 1)
    assert memory.remembered(changed, lambda: 2) == 2


def test_another_format_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(tmp_path).remembered(PARTS, lambda: 1)
    monkeypatch.setattr(memory_module, "FORMAT", memory_module.FORMAT + 1)
    assert Memory(tmp_path).remembered(PARTS, lambda: 2) == 2


@pytest.mark.parametrize("damage", [b"", b'{"key": "', b"[]", b'{"key": "another", "value": 5}', b"\xff\xfe"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: bytes) -> None:
    memory = Memory(tmp_path)
    memory.remembered(PARTS, lambda: 1)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage)
    assert memory.remembered(PARTS, lambda: 1) == 1
    assert memory.remembered(PARTS, lambda: 7) == 1


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    for value in (float("nan"), object()):
        with pytest.raises(MammoError, match="cannot be remembered"):
            Memory(tmp_path / "m").remembered(PARTS, lambda value=value: value)  # type: ignore[misc]
    with pytest.raises(MammoError, match="parts of a key"):
        Memory(tmp_path / "m").remembered({"path": Path("x")}, lambda: 1)
    assert not (tmp_path / "m").exists()


def test_an_error_while_making_is_not_remembered(tmp_path: Path) -> None:
    def fail() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Memory(tmp_path).remembered(PARTS, fail)
    assert Memory(tmp_path).remembered(PARTS, lambda: 3) == 3


def test_it_is_removed_as_a_whole(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "m")
    memory.remembered(PARTS, lambda: 1)
    memory.remove()
    assert not (tmp_path / "m").exists()
    memory.remove()
    assert memory.remembered(PARTS, lambda: 2) == 2
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        Memory(tmp_path / "file").remembered(PARTS, lambda: 1)


def test_a_killed_process_leaves_whole_results_only(tmp_path: Path) -> None:
    folder, log = tmp_path / "m", tmp_path / "log"
    first = worker(folder, log, 0.05, 200)
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    first.communicate()
    made = log.read_text().splitlines()
    assert len(made) < 200
    kept = len(list(folder.glob("*.json")))
    assert kept >= len(made) - 1
    second = worker(folder, log, 0.0, len(made))
    assert second.communicate()[0] == "done\n"
    assert second.returncode == 0
    repeated = log.read_text().splitlines()[len(made) :]
    assert repeated in ([], made[-1:]), "only what was under way is made again"


def test_two_processes_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    both = [worker(folder, tmp_path / f"log{k}", 0.001, 60) for k in range(2)]
    assert [one.communicate()[0] for one in both] == ["done\n", "done\n"]
    assert [one.returncode for one in both] == [0, 0]
    assert len(list(folder.iterdir())) == 60, "no temporary file is left"


def test_a_folder_removed_meanwhile_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true, calls = memory_module.write_text, []

    def failing_once(path: Path, content: str) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise OutputError("gone")
        true(path, content)

    monkeypatch.setattr(memory_module, "write_text", failing_once)
    assert Memory(tmp_path / "m").remembered(PARTS, lambda: 4) == 4
    assert len(list((tmp_path / "m").iterdir())) == 1
