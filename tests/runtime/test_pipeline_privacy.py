"""De-identified runs: nothing they leave names a person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mammo_runtime.errors import UsageError
from mammo_runtime.plan import RunSettings
from mammo_runtime.spec import InputMode
from pipeline_runs import boxes_csv, go
from tiny_model import files_below, records, save, tiny_spec, write_bundle

SECRET = "Smith^Jane_1950"


def leaks(folder: Path) -> list[str]:
    """Return the files below a folder that hold the secret, in their content or their path."""
    secret = SECRET.encode()
    return [n for n, content in files_below(folder).items() if secret in content or SECRET in n] + [
        p.name for p in folder.rglob("*") if SECRET in p.name
    ]


def secret_inputs(settings: RunSettings, tmp_path: Path) -> RunSettings:
    folder = tmp_path / SECRET
    save(folder / f"{SECRET}.png")
    save(folder / SECRET / "a.png")
    (folder / f"{SECRET}.txt").write_text("x")
    (folder / f"{SECRET}.dcm").write_bytes(b"")
    return replace(settings, inputs=(folder,))


def test_a_deidentified_run_names_nobody(settings: RunSettings, tmp_path: Path) -> None:
    settings = replace(secret_inputs(settings, tmp_path), deidentify=True)
    go(settings)
    assert leaks(settings.output) == []
    assert [r["status"] for r in records(settings.output)] == ["ok", "failed", "ok", "skipped"]
    assert len(list((settings.output / "masks").iterdir())) == 2
    assert go(settings)["counts"]["reused"] == 2, "the results are found again without names"


def test_a_deidentified_run_names_nobody_from_the_boxes_either(settings: RunSettings, tmp_path: Path) -> None:
    settings = secret_inputs(settings, tmp_path)
    boxes = boxes_csv(tmp_path, f"{SECRET}.png,26,46,29,29", f"gone-{SECRET}.png,1,1,5,5")
    model = write_bundle(tmp_path / "roi", tiny_spec(InputMode.ROI))
    go(replace(settings, deidentify=True, boxes=boxes, model=str(model)))
    assert leaks(settings.output) == []


def test_names_in_clear_do_not_stay_in_a_deidentified_folder(settings: RunSettings, tmp_path: Path) -> None:
    settings = secret_inputs(settings, tmp_path)
    go(settings)
    assert leaks(settings.output)
    with pytest.raises(UsageError, match="in clear"):
        go(replace(settings, deidentify=True))
    go(replace(settings, deidentify=True, overwrite=True))
    assert leaks(settings.output) == []
