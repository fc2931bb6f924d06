from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_runtime.errors import OutputError
from mammo_runtime.hashing import path_key
from mammo_runtime.inputs import InputFile
from mammo_runtime.output_names import OutputNames, all_there, remove_pictures

KINDS = ("mask", "overlay")
PARTS = st.text(min_size=1, max_size=8).filter(lambda t: not {"/", "\0"} & set(t) and t not in (".", ".."))


def file(relative: str, root: str = "in") -> InputFile:
    return InputFile(Path(root) / relative, PurePosixPath(relative))


def masks(*relatives: str, deidentify: bool = False) -> list[str]:
    names = OutputNames({}, deidentify)
    return [names.claim(file(r), f"{k:064x}", KINDS)["mask"] for k, r in enumerate(relatives)]


def test_the_plain_case() -> None:
    names = OutputNames({}, False).claim(file("p1/left.dcm"), "0" * 64, ("mask", "overlay", "probability"))
    assert names == {
        "mask": "masks/p1/left.png",
        "overlay": "overlays/p1/left.png",
        "probability": "probabilities/p1/left.png",
    }


def test_names_that_would_collide_are_kept_apart() -> None:
    assert masks("a.png", "a.jpg", "A.PNG", "a~2.png", "a") == [
        "masks/a.png", "masks/a~2.png", "masks/A~3.png", "masks/a~2~2.png", "masks/a~4.png",
    ]  # fmt: skip


def test_the_same_relative_path_from_two_folders() -> None:
    names = OutputNames({}, False)
    assert names.claim(file("a.png", "one"), "", KINDS)["mask"] == "masks/a.png"
    assert names.claim(file("a.png", "two"), "", KINDS)["mask"] == "masks/a~2.png"
    assert names.claim(file("a.png", "one"), "", KINDS)["mask"] == "masks/a.png", "the owner keeps its name"


def test_names_do_not_depend_on_what_is_saved() -> None:
    names = OutputNames({}, False)
    names.claim(file("a.png"), "", ())
    assert names.claim(file("a.jpg"), "", ("overlay",)) == {"overlay": "overlays/a~2.png"}


def test_names_of_an_earlier_run_stay_with_their_owner() -> None:
    names = OutputNames({"masks/a.png": path_key(Path("in/a.jpg"))}, False)
    assert names.claim(file("a.bmp"), "", KINDS)["mask"] == "masks/a~2.png"
    assert names.claim(file("a.jpg"), "", KINDS)["mask"] == "masks/a.png"


def test_a_folder_called_like_a_picture() -> None:
    found = masks("a.jpg", "a.png/b.jpg", "A.PNG/B.jpg")
    folders = {PurePosixPath(name).parent.as_posix().casefold() for name in found}
    assert not folders & {name.casefold() for name in found}


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        ("CON.png", "_CON"), ("nul/aux.tar.gz", "_nul/_aux.tar"), ('a<b>:"|?*.png', "a_b______"), ("a .png", "a_"),
        ("a\\b.png", "a_b"), ("line\nbreak.png", "line_break"), ("dots...png", "dots_"), (".hidden", ".hidden"),
        ("noextension", "noextension"), ("two.dots.png", "two.dots"),
    ],
)  # fmt: skip
def test_names_every_file_system_takes(relative: str, expected: str) -> None:
    found = masks(relative)[0].removeprefix("masks/").removesuffix(".png")
    assert found == expected


def test_long_names_are_cut_and_stay_different() -> None:
    found = masks("ü" * 120 + "1.png", "ü" * 120 + "2.png", "\udcff" * 250 + ".png")
    assert len(set(found)) == 3
    assert all(len(os.fsencode(part)) <= 210 for name in found for part in name.split("/"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=3), min_size=1, max_size=12))
def test_no_two_inputs_ever_share_a_name(paths: list[list[str]]) -> None:
    relatives = list(dict.fromkeys("/".join(parts) for parts in paths))
    found = masks(*relatives)
    assert len({name.casefold() for name in found}) == len(relatives)
    for name in found:
        assert name.startswith("masks/")
        assert ".." not in name.split("/")
        assert "\\" not in name


def test_deidentified_names_come_from_the_content() -> None:
    names = OutputNames({}, True)
    assert names.claim(file("Smith.png"), "ab" * 32, KINDS)["mask"] == f"masks/{'ab' * 16}.png"
    assert names.claim(file("Copy of Smith.png"), "ab" * 32, KINDS)["mask"] == f"masks/{'ab' * 16}~2.png"


def test_pictures_are_removed_with_the_folders_they_leave_empty(tmp_path: Path) -> None:
    record = {"outputs": {"mask": "masks/p/a.png", "overlay": "overlays/p/a.png"}}
    for name in ("masks/p/a.png", "overlays/p/a.png", "overlays/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert all_there(tmp_path, record)
    remove_pictures(tmp_path, record)
    assert not all_there(tmp_path, record)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["b.png", "overlays"]
    remove_pictures(tmp_path, record)


def test_a_picture_that_cannot_be_removed_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "masks" / "a.png").mkdir(parents=True)
    with pytest.raises(OutputError, match="cannot remove"):
        remove_pictures(tmp_path, {"outputs": {"mask": "masks/a.png"}})
