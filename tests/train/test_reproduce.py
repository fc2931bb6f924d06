"""`mammo-train reproduce`: one system goes the whole way by real commands; the others get honest rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mammo_runtime.errors import MammoError, UsageError
from mammo_train import reproduce as module
from mammo_train.reproduce import Reproduction, reproduce
from mammo_train.systems import SYSTEMS


def silent(_line: str) -> None:
    """Report nothing."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prompted edge variant on phantoms: every step has two graphs and boxes."""
    output = tmp_path_factory.mktemp("reproduction")
    reproduce("lite_medsam", Reproduction(output, tiny=True), silent)
    return output


def row(output: Path, system: str) -> dict[str, object]:
    table = json.loads((output / "reproduction.json").read_text())
    assert table["schema_version"] == module.SCHEMA_VERSION
    assert [r["system"] for r in table["rows"]] == list(SYSTEMS)
    return dict(next(r for r in table["rows"] if r["system"] == system))


def test_a_system_goes_through_training_evaluation_export_and_inference(done: Path) -> None:
    own = row(done, "lite_medsam")
    assert (own["status"], own["why"], own["network"]) == ("trained", "", {"width": "tiny"})
    measured = own["measured"]["test"]  # type: ignore[index]
    assert measured["kind"] == "benign+malignant"
    assert measured["n"] == 4
    assert measured["metrics"]["mean Dice"]["value"] is not None
    assert own["exported"]["verdict"] == "passed"  # type: ignore[index]
    assert own["inferred"] == own["inferred"] | {"images": 4, "ok": 4, "exit_code": 0}  # type: ignore[operator]
    assert own["deviations"]["tiny"]  # type: ignore[index]
    assert (done / "lite_medsam" / "inferred" / "report.html").is_file()
    spec = json.loads((done / "lite_medsam" / "bundle" / "bundle.json").read_text())["spec"]
    assert own["weights_sha256"] == spec["parent_sha256"]


def test_systems_that_were_not_run_stand_in_the_table_with_the_command(done: Path) -> None:
    other = row(done, "unet")
    assert (other["status"], other["measured"]) == ("not trained", None)
    assert "mammo-train reproduce unet" in str(other["why"])
    assert other["reported"][0]["values"] == {"dice": 0.6076}  # type: ignore[index]


def test_without_data_a_row_says_where_to_get_it(tmp_path: Path) -> None:
    (rows,) = reproduce("bcss_unet_resnet34", Reproduction(tmp_path / "out", tmp_path), silent)
    assert rows["status"] == "not trained"
    assert "histopathology" in rows["why"]
    assert "mammo-train index" in rows["why"]
    with pytest.raises(UsageError, match="--root DIR, or --tiny"):
        reproduce("unet", Reproduction(tmp_path / "out"), silent)


def test_what_fails_on_the_way_is_a_failed_row_and_the_next_system_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise MammoError("the rate was too high")

    monkeypatch.setattr(module.recipe, "train", broken)
    monkeypatch.setattr(module, "chosen_systems", lambda _name: {k: SYSTEMS[k] for k in ("unet", "msanet")})
    rows = reproduce("all", Reproduction(tmp_path, tiny=True), silent)
    assert [(r["system"], r["status"], r["why"]) for r in rows] == [
        ("unet", "failed", "the rate was too high"),
        ("msanet", "failed", "the rate was too high"),
    ]


def test_options_go_to_the_networks_that_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_trained", lambda key, system, wanted, report: module._blank_row(key, system, wanted))
    (own,) = reproduce("vgg16_busi", Reproduction(tmp_path, tiny=True, options={"head": "pool"}), silent)
    assert own["network"] == {"head": "pool", "width": "tiny"}
    assert row(tmp_path, "unet")["network"] == {"width": "tiny"}
    with pytest.raises(UsageError, match="no network of unet has an option head"):
        reproduce("unet", Reproduction(tmp_path, tiny=True, options={"head": "pool"}), silent)


def test_a_command_that_fails_gives_its_last_line() -> None:
    with pytest.raises(MammoError, match=r"mammo_export ended with exit code 2: .*nowhere"):
        module._command("mammo_export.cli", "nowhere", "-o", "x")
