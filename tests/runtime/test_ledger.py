from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mammo_runtime.errors import OutputError, UsageError
from mammo_runtime.ledger import LEDGER, Ledger


def record(name: str = "a", **outputs: str) -> dict[str, Any]:
    return {"image": name, "status": "ok", "outputs": outputs}


def test_what_is_stored_is_found_again(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with Ledger(out, False) as ledger:
        assert ledger.find(b"1") is None
        ledger.store(b"1", "key", record("\udcff ü", mask="masks/A.png"), b"jpeg")
        ledger.store(b"2", "key", record("b"), None)
        ledger.store(b"1", "key2", record("\udcff ü", mask="masks/A.png"), b"jpeg2")
    with Ledger(out, False) as ledger:
        assert ledger.find(b"1") == ("key2", record("\udcff ü", mask="masks/A.png"))
        assert [r["image"] for r in ledger.records([b"2", b"none", b"1"])] == ["b", "\udcff ü"]
        assert (ledger.thumbnail(b"1"), ledger.thumbnail(b"2"), ledger.thumbnail(b"3")) == (b"jpeg2", None, None)
        assert ledger.output_names() == {"masks/a.png": b"1"}
        assert set(ledger.keys()) == {b"1", b"2"}
        ledger.forget(b"1")
        assert ledger.find(b"1") is None
    assert [p.name for p in out.iterdir()] == [LEDGER]


def test_what_is_forgotten_is_gone_from_the_file(tmp_path: Path) -> None:
    with Ledger(tmp_path, False) as ledger:
        ledger.store(b"1", "key", record("Smith^Jane"), b"\xff\xd8 face " * 2000)
    assert b"Smith^Jane" in (tmp_path / LEDGER).read_bytes()
    with Ledger(tmp_path, False) as ledger:
        ledger.forget(b"1")
    content = (tmp_path / LEDGER).read_bytes()
    assert b"Smith^Jane" not in content
    assert b"face" not in content


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Ledger(tmp_path, False) as ledger:
        ledger.store(b"1", "key", record(), None)
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="another run"):
                Ledger(tmp_path, overwrite)
        assert ledger.find(b"1") is not None
    Ledger(tmp_path, False).close()


def test_a_folder_with_other_things_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="--overwrite"):
        Ledger(tmp_path, False)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    Ledger(tmp_path, True).close()
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="cannot write"):
        Ledger(tmp_path / "out", True)
    with pytest.raises(UsageError, match="cannot write"):
        Ledger(tmp_path / "out" / "sub", False)


def test_a_damaged_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_bytes(b"this is no database at all" * 100)
    with pytest.raises(UsageError, match="damaged"):
        Ledger(tmp_path, False)


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / LEDGER)
    database.execute("PRAGMA user_version=7")
    database.close()
    with pytest.raises(UsageError, match="another version"):
        Ledger(tmp_path, False)


def test_a_table_of_another_shape_is_an_output_error(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / LEDGER)
    database.execute("CREATE TABLE results (other TEXT)")
    database.close()
    with Ledger(tmp_path, False) as ledger:
        for act in (lambda: ledger.find(b"1"), lambda: ledger.store(b"1", "", record(), None), ledger.keys):
            with pytest.raises(OutputError, match="ledger"):
                act()


def test_a_full_disk_is_an_output_error_and_loses_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path, False) as ledger:
        ledger.store(b"1", "key", record(), None)
        ledger._database.execute("PRAGMA max_page_count=4")
        with pytest.raises(OutputError, match="full"):
            ledger.store(b"2", "key", record(), bytes(100_000))
        assert ledger.find(b"1") is not None
    with Ledger(tmp_path, False) as ledger:
        assert ledger.keys() == (b"1",)
