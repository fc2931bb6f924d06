"""The index: what is refused, and how it says so."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mammo_runtime.errors import UsageError
from mammo_train.index import check_leaks, read_index
from training_phantoms import PhantomSet, write_phantoms


@pytest.fixture
def own(tmp_path: Path) -> PhantomSet:
    return write_phantoms(tmp_path)


def edited(own: PhantomSet, change: Callable[[str], str]) -> Path:
    own.index.write_text(change(own.index.read_text(encoding="utf-8")), encoding="utf-8")
    return own.index


def test_rows_carry_everything(phantoms: PhantomSet) -> None:
    rows = phantoms.rows()
    assert len(rows) == 20
    first, normal = rows[0], rows[3]
    assert (first.name, first.group, first.fold, first.kind, first.spacing_mm) == ("f0_0_mass", "p0_0", 0, "mass", 0.5)
    assert first.mask == phantoms.root / "phantoms/masks/f0_0_mass.png"
    assert normal.mask is None
    assert rows[2].spacing_mm is None
    check_leaks(rows)


def test_group_stands_in_for_patient_and_a_byte_order_mark_is_read(own: PhantomSet) -> None:
    index = edited(own, lambda text: "\ufeff" + text.replace(",patient,", ",group,"))
    assert read_index(index, own.root)[0].group == "p0_0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace(",patient,", ",person,"), "lacks the columns group"),
        (lambda t: t.replace(",fold,", ",part,"), "lacks the columns fold"),
        (lambda t: t.replace(",p0_0,0,", ",p0_0,zero,"), "index line 2: .*zero"),
        (lambda t: t.replace(",p1_0,1,mass", ",,1,mass"), "index line 6: no patient or group"),
        (
            lambda t: t.replace("images/f0_1_mass", "images/gone"),
            "line 3: there is no file .*gone.png; is --root",
        ),
        (lambda t: t.replace("masks/f0_1_mass", "masks/gone"), "index line 3: there is no file .*masks"),
        (lambda t: t.splitlines()[0] + "\n", "holds no images"),
    ],
)
def test_a_wrong_index_names_its_fault(own: PhantomSet, change: Callable[[str], str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_index(edited(own, change), own.root)


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no index file .*none\.csv"):
        read_index(tmp_path / "none.csv", tmp_path)


def test_a_patient_in_two_folds_is_refused(own: PhantomSet) -> None:
    index = edited(own, lambda text: text.replace(",p3_0,3,mass", ",p0_0,3,mass"))
    with pytest.raises(UsageError, match=r"patient or group p0_0 stands in the folds \[0, 3\]"):
        check_leaks(read_index(index, own.root))


def test_the_same_picture_under_another_name_is_refused(own: PhantomSet) -> None:
    images = own.root / "phantoms/images"
    shutil.copy(images / "f0_3_normal.png", images / "f4_3_normal.png")
    with pytest.raises(UsageError, match=r"same picture \(f0_3_normal.png, f4_3_normal.png\).*\[0, 4\]"):
        check_leaks(read_index(own.index, own.root))


def test_the_same_picture_twice_in_one_fold_is_no_leak(own: PhantomSet) -> None:
    images = own.root / "phantoms/images"
    shutil.copy(images / "f2_0_mass.png", images / "f2_1_mass.png")
    check_leaks(read_index(own.index, own.root))
