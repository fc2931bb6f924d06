"""Bundles: whole or not at all, the same bytes each time, and refused when anything in them was changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mammo_export import bundle as bundle_module
from mammo_export.bundle import ProvenGraph, check_target, git_commit, toolchain, write_bundle
from mammo_export.form import MAX_IR_VERSION, OPSET
from mammo_runtime.bundle import MANIFEST, load_model, read_bundle
from mammo_runtime.errors import ExitCode, ModelRefused, OutputError, UsageError
from mammo_runtime.session import open_session
from mammo_runtime.spec import METADATA_KEY, InputSpec, ModelSpec, Precision

SPEC = ModelSpec("dot", "one_convolution", input=InputSpec(height=8, width=8), licence="Phantoms: no conditions.")
WEIGHTS = "5" * 64
GATES = {"parity": {"images": 4, "logit_error": 1e-6}}


def small_model(spec: ModelSpec = SPEC, size: int = 1) -> onnx.ModelProto:
    """Return a graph of one `size` x `size` convolution and a sigmoid, with the spec in its metadata."""
    helper = onnx.helper
    shape = ["batch", 3, 8, 8]
    weight = onnx.numpy_helper.from_array(np.ones((1, 3, size, size), np.float32), "weight")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "weight"], ["logits"], pads=[size // 2] * 4),
            helper.make_node("Sigmoid", ["logits"], ["probability"]),
        ],
        "dot",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("probability", onnx.TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=MAX_IR_VERSION)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    return model


@pytest.fixture(autouse=True)
def _no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of the checkout must not show in the bytes that these tests compare."""
    monkeypatch.setattr(bundle_module, "git_commit", lambda folder: "unknown")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "MODEL_CARD.md").write_text("# dot\n")
    (folder / "metrics.json").write_text("{}\n")
    return folder


def write(target: Path, run: Path, model: onnx.ModelProto | None = None, **options: Any) -> None:
    graph = ProvenGraph((model or small_model()).SerializeToString(), "passed", GATES)
    write_bundle(target, SPEC, {"fp32": graph}, run, WEIGHTS, **options)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_bundle_holds_what_it_says(tmp_path: Path, run: Path) -> None:
    write(tmp_path / "site" / "dot", run)
    found = files(tmp_path / "site" / "dot")
    assert sorted(found) == ["LICENSE-WEIGHTS.md", "MODEL_CARD.md", "bundle.json", "metrics.json", "model.fp32.onnx"]
    assert b"Phantoms: no conditions." in found["LICENSE-WEIGHTS.md"]
    manifest = json.loads(found.pop(MANIFEST))
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for name, content in found.items()
    }
    assert manifest["precisions"] == {"fp32": {"file": "model.fp32.onnx", "verdict": "passed", "gates": GATES}}
    assert manifest["spec"] == SPEC.to_dict()
    assert manifest["parent_run"] == {"weights_sha256": WEIGHTS, "metrics": "metrics.json"}
    assert manifest["git_commit"] == "unknown"
    assert {"python", "mammo-edge", "onnx", "onnxruntime", "torch"} <= set(manifest["toolchain"])


def test_a_bundle_opens_with_the_runtime(tmp_path: Path, run: Path) -> None:
    write(tmp_path / "dot", run)
    loaded = load_model(str(tmp_path / "dot"), "cpu", Precision.FP32)
    assert loaded.spec == SPEC
    assert loaded.notes == ()
    answer = loaded.session.run(np.zeros((2, 3, 8, 8), np.float32))
    np.testing.assert_array_equal(answer, np.full((2, 1, 8, 8), 0.5, np.float32))


def test_the_runs_own_licence_goes_before_the_specs(tmp_path: Path, run: Path) -> None:
    (run / "LICENSE-WEIGHTS.md").write_text("The run's own words.\n")
    write(tmp_path / "dot", run)
    assert (tmp_path / "dot" / "LICENSE-WEIGHTS.md").read_text() == "The run's own words.\n"


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, run: Path) -> None:
    write(tmp_path / "one", run)
    write(tmp_path / "two", run)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert str(tmp_path).encode() not in files(tmp_path / "one")[MANIFEST]


def test_an_existing_bundle_is_replaced_only_when_asked(tmp_path: Path, run: Path) -> None:
    target = tmp_path / "dot"
    write(target, run)
    (run / "MODEL_CARD.md").write_text("# second\n")
    with pytest.raises(UsageError, match="--overwrite"):
        write(target, run)
    assert (target / "MODEL_CARD.md").read_text() == "# dot\n"
    write(target, run, overwrite=True)
    assert (target / "MODEL_CARD.md").read_text() == "# second\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dot", "run"]


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path, run: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(UsageError, match="no bundle"):
        write(tmp_path / "thesis", run, overwrite=True)
    with pytest.raises(UsageError):
        check_target(tmp_path / "thesis" / "chapter.txt", overwrite=True)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path: Path, run: Path) -> None:
    (tmp_path / "dot").mkdir()
    write(tmp_path / "dot", run)
    assert read_bundle(tmp_path / "dot").spec == SPEC


@pytest.mark.parametrize("existing", [False, True])
def test_a_graph_with_another_spec_leaves_everything_as_it_was(tmp_path: Path, run: Path, existing: bool) -> None:
    if existing:
        write(tmp_path / "dot", run)
    before = files(tmp_path / "dot") if existing else None
    with pytest.raises(ModelRefused, match="different specs"):
        write(tmp_path / "dot", run, small_model(replace(SPEC, threshold=0.9)), overwrite=True)
    assert (files(tmp_path / "dot") if existing else None) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == (["dot", "run"] if existing else ["run"])


def test_a_failing_rename_puts_the_old_bundle_back(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "dot", run)
    before = files(tmp_path / "dot")
    rename = Path.rename

    def refuse_the_new_one(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(OutputError, match="Permission denied"):
        write(tmp_path / "dot", run, overwrite=True)
    assert files(tmp_path / "dot") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dot", "run"]


def test_leftovers_of_a_killed_export_are_tidied_up(tmp_path: Path, run: Path) -> None:
    write(tmp_path / "dot", run)
    (tmp_path / "dot").rename(tmp_path / ".dot.old")  # killed between the two renames …
    (tmp_path / ".dot.1234.part").mkdir()
    (tmp_path / ".dot.1234.part" / "model.fp32.onnx").write_bytes(b"half")
    (tmp_path / ".dotted.1234.part").mkdir()
    write(tmp_path / "dot", run)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".dotted.1234.part", "dot", "run"]


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path, run: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write(tmp_path / "file" / "dot", run)


def test_one_changed_bit_is_refused(tmp_path: Path, run: Path) -> None:
    write(tmp_path / "dot", run)
    graph = tmp_path / "dot" / "model.fp32.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(bytes(content))
    for model in (tmp_path / "dot", graph):
        with pytest.raises(ModelRefused, match="was changed") as caught:
            load_model(str(model), "cpu", Precision.FP32)
        assert caught.value.exit_code == ExitCode.MODEL_REFUSED == 5


def test_a_manifest_with_another_spec_is_refused(tmp_path: Path, run: Path) -> None:
    write(tmp_path / "dot", run)
    _edit_manifest(tmp_path / "dot", lambda manifest: manifest["spec"].update(threshold=0.01))
    with pytest.raises(ModelRefused, match="different specs"):
        load_model(str(tmp_path / "dot"), "cpu", Precision.FP32)


@pytest.mark.parametrize(
    "name", ["../model.fp32.onnx", "/etc/passwd", "a/../../b", "..\\b", "C:\\b", "C:b", "\\\\host\\share\\b", ""]
)
@pytest.mark.parametrize("place", ["files", "precisions"])
def test_a_manifest_that_points_out_of_its_folder_is_refused(tmp_path: Path, run: Path, name: str, place: str) -> None:
    write(tmp_path / "dot", run)

    def point_out(manifest: dict[str, Any]) -> None:
        if place == "files":
            manifest["files"][name] = manifest["files"]["model.fp32.onnx"]
        else:
            manifest["precisions"]["fp32"]["file"] = name

    _edit_manifest(tmp_path / "dot", point_out)
    words = "outside the bundle" if name or place == "files" else "names no file"
    with pytest.raises(ModelRefused, match=words):
        read_bundle(tmp_path / "dot")


def _edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_weights_in_another_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also from inside the model's folder, where ONNX Runtime would find them: they are not covered by the hash."""
    path = tmp_path / "external.onnx"
    onnx.save_model(small_model(size=7), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "w.bin").is_file()
    for folder in (tmp_path, tmp_path.parent):
        monkeypatch.chdir(folder)
        with pytest.raises(ModelRefused):
            open_session(path, "cpu")


def test_toolchain_names_versions_and_no_machine() -> None:
    assert all(part and "/" not in part for part in toolchain().values())


def test_outside_a_checkout_the_commit_is_unknown(tmp_path: Path) -> None:
    assert git_commit(tmp_path) == "unknown"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_commit_is_named_and_changes_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    assert git_commit(tmp_path / "code") == "unknown", "a virtual environment in somebody else's checkout"
    git("add", "-A")
    git("commit", "-m", "first")
    clean = git_commit(tmp_path / "code")
    assert len(clean) == 40
    (tmp_path / "code" / "a.py").write_text("2")
    assert git_commit(tmp_path / "code") == f"{clean}-dirty"
