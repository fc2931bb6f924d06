from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mammo_runtime import bundle as bundle_module
from mammo_runtime.bundle import MANIFEST, LoadedModel, list_bundles, load_model
from mammo_runtime.errors import ExitCode, ModelRefused
from mammo_runtime.hashing import file_sha256
from mammo_runtime.session import Session
from mammo_runtime.spec import CleaningStep, InputSpec, Precision, Task
from tiny_model import TINY, tiny_spec, write_bundle, write_model
from tiny_tasks import NAMES, SPECS, write_task_bundle

FP32 = Precision.FP32


def load(path: Path | str) -> LoadedModel:
    return load_model(str(path), "cpu", FP32)


def refused(path: Path | str, match: str) -> None:
    with pytest.raises(ModelRefused, match=match) as caught:
        load(path)
    assert caught.value.exit_code == ExitCode.MODEL_REFUSED
    assert "\n" not in str(caught.value)


def test_a_bundle_by_folder_or_by_its_file(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", tiny_spec())
    for path in (folder, folder / "model.fp32.onnx"):
        model = load(path)
        assert model.spec == tiny_spec()
        assert model.sha256 == file_sha256(folder / "model.fp32.onnx")
        assert model.notes == ()


def test_a_model_in_a_sub_folder_of_its_bundle(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    (folder / "graphs").mkdir(parents=True)
    write_bundle(folder, tiny_spec(), name="graphs/m.onnx")
    assert load(folder).spec == tiny_spec()


def test_a_loose_file_says_that_nothing_vouches_for_it(tmp_path: Path) -> None:
    model = load(write_model(tmp_path / "loose.onnx", tiny_spec()))
    assert "could not be checked" in model.notes[0]


def test_one_changed_bit_is_refused_before_the_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_bundle(tmp_path / "b", tiny_spec())
    model = folder / "model.fp32.onnx"
    content = bytearray(model.read_bytes())
    content[150] ^= 1
    model.write_bytes(content)
    monkeypatch.setattr(bundle_module, "open_session", lambda *_: pytest.fail("opened before its hash was checked"))
    refused(folder, "was changed")
    refused(model, "was changed")


def test_a_file_the_manifest_does_not_vouch_for_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", tiny_spec(), files={})
    refused(folder, "says nothing about it")
    refused(write_model(folder / "other.onnx", tiny_spec()), "says nothing about it")


@pytest.mark.parametrize("name", ["../m.onnx", "a/../../m.onnx", "/etc/passwd", "\\\\server\\m.onnx"])
def test_a_manifest_naming_files_outside_is_refused(tmp_path: Path, name: str) -> None:
    write_model(tmp_path / "m.onnx", tiny_spec())
    digest = {"sha256": file_sha256(tmp_path / "m.onnx")}
    refused(write_bundle(tmp_path / "b", tiny_spec(), precisions={"fp32": {"file": name}}), "outside the bundle")
    refused(write_bundle(tmp_path / "c", tiny_spec(), files={name: digest}), "outside the bundle")


def test_a_manifest_with_another_spec_is_refused(tmp_path: Path) -> None:
    other = tiny_spec(threshold=0.4).to_dict()
    refused(write_bundle(tmp_path / "b", tiny_spec(), spec=other), "different specs")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"schema_version": 1}',
        "[" * 100_000,
        '{"schema_version": 1, "files": [], "spec": {}}',
    ],
)
def test_a_broken_manifest_is_refused(tmp_path: Path, text: str) -> None:
    folder = write_bundle(tmp_path / "b", tiny_spec())
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    refused(folder, "bundle.json|spec")


def test_a_manifest_that_is_no_text_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", tiny_spec())
    (folder / MANIFEST).write_bytes(b"\xff\xfe\x00")
    refused(folder, "not valid")


def test_a_later_manifest_is_refused(tmp_path: Path) -> None:
    refused(write_bundle(tmp_path / "b", tiny_spec(), schema_version=2), "schema version 2")


def test_a_precision_the_bundle_lacks_is_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b", tiny_spec())
    with pytest.raises(ModelRefused, match="fp32"):
        load_model(str(folder), "cpu", Precision.INT8)


def test_a_model_without_spec_is_refused() -> None:
    refused(TINY, "no mammo-edge spec")


def test_cleaning_this_runtime_does_not_know_is_refused_on_loading(tmp_path: Path) -> None:
    for step in (CleaningStep("sharpen"), CleaningStep("gamma", {"power": 2})):
        refused(write_model(tmp_path / "m.onnx", tiny_spec(input=InputSpec(cleaning=(step,)))), step.name)


def test_a_refused_spec_leaves_no_session_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Open:
        def __init__(self) -> None:
            self.metadata: dict[str, str] = {}
            self.closed = False

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(bundle_module, "open_session", lambda *_: opened.append(Open()) or opened[-1])
    refused(write_model(tmp_path / "m.onnx", tiny_spec()), "no mammo-edge spec")
    assert [o.closed for o in opened] == [True]


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as stream:
        os.truncate(stream.fileno(), 3_000_000_000)
    refused(path, "larger than 2 GB")


@pytest.mark.parametrize("name", ["no-such-model", "x" * 300, "a/b/c.onnx", "folder/"])
def test_an_unknown_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    refused(name, "no model")


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "is no bundle")


def test_bundled_models_are_listed_and_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "BUNDLED", tmp_path)
    assert list_bundles() == ()
    refused("mass-full", "none here")
    write_bundle(tmp_path / "b", tiny_spec(name="second"))
    write_bundle(tmp_path / "a", tiny_spec(name="first"))
    listed = [b.to_dict() for b in list_bundles()]
    assert [b["name"] for b in listed] == ["first", "second"]
    assert Path(listed[0]["path"]).is_file()
    assert listed[0]["input"] == {"mode": "full", "channels": 3, "height": 64, "width": 64}
    assert listed[0]["task"] == "segmentation"
    assert json.loads(json.dumps(listed)) == listed
    assert load("second").spec.name == "second"


def test_a_folder_of_the_same_name_does_not_shadow_a_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "BUNDLED", tmp_path / "bundled")
    write_bundle(tmp_path / "bundled" / "a", tiny_spec(name="mass-full"))
    write_bundle(tmp_path / "mass-full", tiny_spec(name="impostor"))
    monkeypatch.chdir(tmp_path)
    assert load("mass-full").spec.name == "mass-full"
    assert load("./mass-full").spec.name == "impostor"


PROMPTED = SPECS[Task.PROMPTED]


def test_a_prompted_model_opens_both_graphs_and_closes_both(tmp_path: Path) -> None:
    folder = write_task_bundle(tmp_path / "b", PROMPTED)
    for path in (folder, folder / NAMES["file"]):
        with load(path) as model:
            assert model.decoder is not None
            assert (model.sha256, model.decoder_sha256) == tuple(file_sha256(folder / name) for name in NAMES.values())
        for session in (model.session, model.decoder):
            with pytest.raises(ModelRefused, match="closed"):
                session.run_all()


@pytest.mark.parametrize("part", ["file", "prompt_decoder"])
def test_one_changed_bit_in_either_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    folder = write_task_bundle(tmp_path / "b", PROMPTED)
    content = bytearray((folder / NAMES[part]).read_bytes())
    content[150] ^= 1
    (folder / NAMES[part]).write_bytes(content)
    monkeypatch.setattr(bundle_module, "open_session", lambda *_: pytest.fail("opened before its hash was checked"))
    refused(folder, "was changed")


def test_a_decoder_of_another_model_is_refused_and_nothing_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_task_bundle(tmp_path / "b", PROMPTED)
    other = write_task_bundle(tmp_path / "other", replace(PROMPTED, threshold=0.4))
    decoder = (other / NAMES["prompt_decoder"]).read_bytes()
    (folder / NAMES["prompt_decoder"]).write_bytes(decoder)
    files = {name: {"sha256": file_sha256(folder / name)} for name in NAMES.values()}
    write_task_bundle(folder, PROMPTED, files=files)
    (folder / NAMES["prompt_decoder"]).write_bytes(decoder)
    opened: list[Session] = []
    real = bundle_module.open_session
    monkeypatch.setattr(bundle_module, "open_session", lambda *given: opened.append(real(*given)) or opened[-1])
    refused(folder, "different specs")
    assert len(opened) == 2
    for session in opened:
        with pytest.raises(ModelRefused, match="closed"):
            session.run_all()


def test_half_a_prompted_model_is_refused(tmp_path: Path) -> None:
    folder = write_task_bundle(tmp_path / "b", PROMPTED)
    refused(folder / NAMES["prompt_decoder"], "names no decoder for model.fp32.decoder.onnx")
    (tmp_path / "loose.onnx").write_bytes((folder / NAMES["file"]).read_bytes())
    refused(tmp_path / "loose.onnx", "one half of the prompted model")
    refused(write_task_bundle(tmp_path / "c", PROMPTED, precisions={"fp32": {"file": NAMES["file"]}}), "no decoder")
    outside = {"fp32": {**NAMES, "prompt_decoder": "../d.onnx"}}
    refused(write_task_bundle(tmp_path / "d", PROMPTED, precisions=outside), "outside the bundle")
