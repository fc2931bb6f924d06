from __future__ import annotations

import inspect
import os
import socket
import sys
from pathlib import Path

import pytest

from mammo_runtime.errors import UsageError
from mammo_runtime.inputs import InputList, find_inputs, read_boxes, unmatched_boxes
from mammo_runtime.mammogram import Box

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes, FIFOs and sockets are tried on Linux")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def find(*inputs: Path, recursive: bool = True, output: Path = Path("out"), mark: str = "") -> InputList:
    return find_inputs(inputs, recursive, output, mark)


def relative(found: InputList) -> list[str]:
    return [f.relative.as_posix() for f in found.files]


def test_a_folder_is_listed_in_a_fixed_order(tmp_path: Path) -> None:
    touch(*(tmp_path / n for n in ("b.png", "a/z.png", "a/b/y.png", "a.png", "c/x", "ü ö.png")))
    found = find(tmp_path)
    assert relative(found) == ["a/b/y.png", "a/z.png", "a.png", "b.png", "c/x", "ü ö.png"]
    assert [f.path for f in found.files] == [tmp_path / r for r in relative(found)]
    assert relative(find(tmp_path, recursive=False)) == ["a.png", "b.png", "ü ö.png"]


def test_files_and_folders_in_the_order_given(tmp_path: Path) -> None:
    touch(tmp_path / "b" / "a.png", tmp_path / "a" / "a.png", tmp_path / "c.png")
    found = find(tmp_path / "c.png", tmp_path / "b", tmp_path / "a")
    assert relative(found) == ["c.png", "a.png", "a.png"]


def test_a_file_reached_twice_is_judged_once(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "b.png", tmp_path / "a" / "c.png")
    found = find(tmp_path / "a" / "c.png", tmp_path / "a", tmp_path)
    assert [(f.path.name, bool(f.skip)) for f in found.files] == [
        ("c.png", False), ("b.png", False), ("c.png", True), ("b.png", True), ("c.png", True),
    ]  # fmt: skip


def test_symbolic_links(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.png", tmp_path / "elsewhere" / "b.png", tmp_path / "in" / "sub" / "c.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "sub" / "up").symlink_to("..")
    (tmp_path / "in" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "self").symlink_to("self")
    (tmp_path / "in" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "in" / "alias.png").symlink_to("a.png")
    found = find(tmp_path / "in")
    assert relative(found) == ["a.png", "alias.png", "gone.png", "other/b.png", "self", "sub/c.png"]
    assert sum("already searched" in note for note in found.notes) == 2
    assert {f.path.name for f in found.files if f.skip} == {"alias.png"}


def test_the_file_itself_is_judged_rather_than_a_link_that_comes_first(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "z.png")
    (tmp_path / "in" / "a.png").symlink_to("z.png")
    assert {f.path.name: bool(f.skip) for f in find(tmp_path / "in").files} == {"a.png": True, "z.png": False}


def test_hidden_and_system_files_are_listed_with_their_reason(tmp_path: Path) -> None:
    touch(*(tmp_path / n for n in ("DICOMDIR", "dicomdir", ".DS_Store", "Thumbs.db", "a.png", ".git/objects")))
    found = find(tmp_path)
    skipped = {f.relative.as_posix(): f.skip for f in found.files}
    assert skipped.pop("a.png") == ""
    assert set(skipped) == {"DICOMDIR", "dicomdir", ".DS_Store", "Thumbs.db"}
    assert all(skipped.values())
    assert any(".git" in note for note in found.notes)


def test_results_are_no_inputs(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "out" / "masks" / "a.png", tmp_path / "old" / "masks" / "a.png")
    touch(tmp_path / "old" / "ledger")
    found = find(tmp_path, output=tmp_path / "x" / ".." / "out", mark="ledger")
    assert relative(found) == ["a.png"]
    assert any("output folder" in note for note in found.notes)
    assert any("earlier run" in note for note in found.notes)
    assert relative(find(tmp_path / "old", mark="ledger")) == ["ledger", "masks/a.png"], "asked for by name"


def test_nothing_to_do_is_said(tmp_path: Path) -> None:
    touch(tmp_path / "sub" / "a.png")
    with pytest.raises(UsageError, match="--no-recursive"):
        find(tmp_path, recursive=False)
    with pytest.raises(UsageError, match="output folder is not an input"):
        find(tmp_path / "sub", output=tmp_path / "sub")
    with pytest.raises(UsageError, match="no file or folder"):
        find(tmp_path / "sub", tmp_path / "none")
    with pytest.raises(UsageError, match="no file or folder"):
        find(Path("x" * 300))


def test_more_folders_inside_each_other_than_python_calls(tmp_path: Path) -> None:
    deep = Path(*["d"] * 200)
    touch(tmp_path / deep / "a.png")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 120)
    try:
        found = find(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert relative(found) == [(deep / "a.png").as_posix()]


@LINUX
def test_names_of_any_bytes(tmp_path: Path) -> None:
    names = [b"\xff\xfe.png", b"new\nline.png", b"a" * 251 + b".png", "ü".encode() * 125 + b".png", b" .png", b"-o.png"]
    for name in names:
        touch(Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))))  # noqa: PTH118
    found = find(tmp_path)
    assert sorted(os.fsencode(f.path.name) for f in found.files) == sorted(names)


@LINUX
def test_pipes_and_sockets_are_listed_like_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        assert relative(find(tmp_path)) == ["pipe.png", "socket.png"]


def boxes_file(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "boxes.csv"
    path.write_bytes(text.encode(encoding))
    return path


HEAD = "image,x,y,width,height\n"


def test_boxes_are_read(tmp_path: Path) -> None:
    text = HEAD + "a.png,1,2,3,4\nsub\\b.png,1.5,-2,3,4\n./a.png,5,6,7,8\n\nü.png,1e2,0,1,1\n"
    found = read_boxes(boxes_file(tmp_path, text, "utf-8-sig"))
    assert found == {
        "a.png": (Box(1, 2, 3, 4), Box(5, 6, 7, 8)),
        "sub/b.png": (Box(1.5, -2, 3, 4),),
        "ü.png": (Box(100, 0, 1, 1),),
    }


def test_other_columns_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    text = 'y,x,note,height,width,image\r\n2,1,"a\nb",4,3,a.png\r\n'
    assert read_boxes(boxes_file(tmp_path, text)) == {"a.png": (Box(1, 2, 3, 4),)}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.png,nan,2,3,4", "x is 'nan'"), ("a.png,1,inf,3,4", "y is 'inf'"), ("a.png,1,2,-3,4", "positive"),
        ("a.png,1,2,3,0", "positive"), ("a.png,1,2,3", "height is missing"), ("a.png,1,2,,4", "width is missing"),
        ("a.png,one,2,3,4", "x is 'one'"), ("a.png,1e9,2,3,4", "no pixel coordinate"), (",1,2,3,4", "image is missing"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named(tmp_path: Path, row: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        read_boxes(boxes_file(tmp_path, HEAD + "b.png,1,1,1,1\n\n" + row + "\n"))
    assert "line 4" in str(caught.value), "blank lines count"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "lacks the columns"), (b"image,x,y,w,h\n", "height, width"), (b"image;x;y;width;height\n", "no boxes"),
        (HEAD.encode(), "no boxes"), (HEAD.encode() + b"\xff\xfe.png,1,1,1,1\n", "cannot read"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_boxes_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "boxes.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        read_boxes(path)


def test_a_missing_boxes_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_boxes(tmp_path / "none.csv")


def test_boxes_for_absent_images_are_found(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "sub" / "b.png")
    boxes = {name: (Box(0, 0, 1, 1),) for name in ("sub/b.png", "b.png", "c.png")}
    assert unmatched_boxes(boxes, find(tmp_path).files) == ("b.png", "c.png")


def test_an_input_that_the_run_could_overwrite_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "out" / "masks" / "a.png")
    with pytest.raises(UsageError, match="could be overwritten"):
        find(tmp_path / "out" / "masks", output=tmp_path / "out")


def test_a_box_never_lands_on_two_pictures(tmp_path: Path) -> None:
    touch(tmp_path / "p1" / "CC.png", tmp_path / "p2" / "CC.png")
    files = find(tmp_path / "p1", tmp_path / "p2").files
    box = (Box(1, 1, 5, 5),)
    with pytest.raises(UsageError, match="means 2 of the inputs"):
        unmatched_boxes({"CC.png": box}, files)
    assert unmatched_boxes({(tmp_path / "p1" / "CC.png").as_posix(): box, "x.png": box}, files) == ("x.png",)


def test_boxes_of_a_spreadsheet_with_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text("image;x;y;width;height\na.png;1;2;3;4\n")
    assert read_boxes(path) == {"a.png": (Box(1, 2, 3, 4),)}
