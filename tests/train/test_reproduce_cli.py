"""`mammo-train reproduce` on the command line: what it lists, refuses, and how it ends."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from mammo_train.cli import main
from mammo_train.systems import SYSTEMS


def call(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["reproduce", *map(str, arguments)])
    return done.exit_code, done.output


def test_the_systems_are_listed() -> None:
    code, text = call("--list")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == list(SYSTEMS)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    assert call("unet")[0] == 2
    code, text = call("bogus", "-o", tmp_path)
    assert code == 2
    assert "unknown system 'bogus'; known: all, unet" in text
    (tmp_path / "i.csv").write_text("image,mask,kind,patient,fold\n")
    code, text = call("all", "-o", tmp_path, "--root", tmp_path, "--index", tmp_path / "i.csv")
    assert code == 2
    assert "--index is for one system" in text


def test_without_data_nothing_was_trained_and_the_exit_code_says_so(tmp_path: Path) -> None:
    code, text = call("busi_unet", "-o", tmp_path / "out", "--root", tmp_path, "--quiet")
    assert code == 2
    assert "busi_unet: not trained: no ultrasound pictures are at hand" in text
    assert (tmp_path / "out" / "reproduction.json").is_file()
