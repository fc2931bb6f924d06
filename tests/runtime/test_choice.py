"""Which graph of a bundle runs, and that it carries the label it is chosen by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mammo_runtime import choice as choice_module
from mammo_runtime.backends.onnx_wire import quantises_in_half
from mammo_runtime.bundle import load_key, load_model, read_bundle
from mammo_runtime.choice import Choice, choose
from mammo_runtime.errors import ModelRefused
from mammo_runtime.hashing import file_sha256
from mammo_runtime.machine import UNKNOWN
from mammo_runtime.spec import Precision
from nasty_json import mutants
from tiny_model import field, tiny_spec, varint, write_model
from tiny_precisions import HERE, passed, relabelled, timed, write_precisions

ALL = {"fp16": passed(), "int8": passed(backends=["tensorrt"]), "int8-cpu": passed()}


def auto(folder: Path, entries: dict[str, Any], here: str = HERE, **manifest: Any) -> Choice:
    return choose(read_bundle(write_precisions(folder, entries, **manifest)), "cpu", None, here)


def test_auto_takes_the_fastest_that_is_proved_for_this_processor(tmp_path: Path) -> None:
    both = {"fp16": passed(timed(1.3)), "int8-cpu": passed(timed(2.04), timed(2.5), timed(9, on="avx512_vnni"))}
    assert auto(tmp_path, both) == Choice(
        "int8-cpu",
        "auto takes int8-cpu: it passed every gate and was measured 2.04 times as fast as fp32 on a processor with "
        "this one's instruction set (avx2)",
    )
    assert auto(tmp_path, {**both, "int8-cpu": passed(timed(1.2))}).key == "fp16"


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (passed(), "int8-cpu was not timed"),
        (passed(timed(2.1, backend="tensorrt")), "int8-cpu was not timed"),
        (passed(timed(2.1, on="avx512_vnni")), "int8-cpu was timed on avx512_vnni, not on avx2"),
        (passed(timed(2.1), timed(0.9, passed=False)), "int8-cpu is not fast enough on avx2"),
        (passed(timed(1.4, than="int8")), "int8-cpu was not timed against fp32 on avx2"),
        (passed(timed(2.1), backends=["cuda"]), "int8-cpu is not for the cpu backend"),
        (passed(timed(2.1), verdict="waived"), "int8-cpu has the verdict “waived”"),
        (passed(timed(2.1), verdict=None), "int8-cpu has no verdict"),
    ],
)
def test_auto_falls_back_to_fp32_and_says_why(tmp_path: Path, entry: dict[str, Any], why: str) -> None:
    assert auto(tmp_path, {"int8-cpu": entry}) == Choice("fp32", f"auto takes fp32: fp16 is not in the bundle, {why}")


def test_a_speed_against_another_graph_counts_times_that_graphs_own(tmp_path: Path) -> None:
    entries = {"fp16": passed(timed(1.5)), "int8-cpu": passed(timed(1.4, than="fp16"))}
    found = auto(tmp_path, entries)
    assert (found.key, "2.10 times" in found.why) == ("int8-cpu", True)


def test_an_unknown_processor_gets_fp32(tmp_path: Path) -> None:
    found = auto(tmp_path, {"int8-cpu": passed(timed(2, on=UNKNOWN))}, UNKNOWN)
    assert (found.key, "instruction set is unknown" in found.why) == ("fp32", True)


def test_auto_asks_this_machine_and_other_backends_get_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(write_precisions(tmp_path, {"int8-cpu": passed(timed(2))}))
    monkeypatch.setattr(choice_module, "instruction_set", lambda: HERE)
    assert choose(bundle, "cpu", None).key == "int8-cpu"
    assert choose(bundle, "tensorrt", None) == Choice(
        "fp32", "auto takes fp32 on the tensorrt backend: its speed is not measured beforehand"
    )


def test_a_precision_asked_for_is_the_backends_own_form(tmp_path: Path) -> None:
    bundle = read_bundle(write_precisions(tmp_path, ALL))
    for precision, key in ((Precision.FP32, "fp32"), (Precision.FP16, "fp16"), (Precision.INT8, "int8-cpu")):
        assert choose(bundle, "cpu", precision).key == key
    assert choose(bundle, "cpu", Precision.INT8).why == "int8 was asked for, which on the cpu backend is int8-cpu"
    assert choose(bundle, "tensorrt", Precision.INT8) == Choice("int8", "int8 was asked for")


def test_a_graph_with_a_reserve_is_run_on_request_and_the_reserve_said(tmp_path: Path) -> None:
    entry = passed(verdict="waived", why=["mean difference in Dice -0.012,\nlimit -0.005", "waived by A. B."])
    bundle = read_bundle(write_precisions(tmp_path, {"fp16": entry}))
    assert choose(bundle, "cpu", Precision.FP16).why == (
        "fp16 was asked for; its verdict is “waived” (mean difference in Dice -0.012, limit -0.005; waived by A. B.)"
    )


def test_what_was_not_shipped_is_refused_with_its_reason(tmp_path: Path) -> None:
    reasons = {"int8-cpu": {"verdict": "missed", "why": ["mean difference in Dice -0.020, limit -0.005"]}}
    bundle = read_bundle(write_precisions(tmp_path, {"fp16": passed()}, not_shipped=reasons))
    with pytest.raises(ModelRefused, match=r"no int8-cpu model \(mean .* limit -0\.005\); it has fp32, fp16"):
        choose(bundle, "cpu", Precision.INT8)
    assert "is not in the bundle" in choose(bundle, "cpu", None, HERE).why


def test_the_file_that_runs_carries_its_own_precision(tmp_path: Path) -> None:
    folder = write_precisions(tmp_path, ALL)
    with load_model(str(folder), "cpu", Precision.INT8) as model:
        assert (model.file, model.spec.precision) == ("model.int8-cpu.onnx", Precision.INT8)
        assert model.spec.parent_sha256 == file_sha256(folder / "model.fp32.onnx")
        assert model.sha256 == file_sha256(folder / "model.int8-cpu.onnx")
    with load_model(str(folder / "model.fp16.onnx"), "cpu") as model:
        assert (model.file, model.spec.precision) == ("model.fp16.onnx", Precision.FP16)
        assert model.why == "this file was given as the model"


def test_every_key_can_be_opened_to_be_checked_but_not_run_on_another_backend(tmp_path: Path) -> None:
    folder = write_precisions(tmp_path, ALL)
    for key in ("fp32", *ALL):
        with load_key(read_bundle(folder), key) as model:
            assert model.file == f"model.{key}.onnx"
    for entries in (ALL, {"int8": passed()}):
        folder = write_precisions(tmp_path, entries)
        with pytest.raises(ModelRefused, match=r"the int8 model of .* is for tensorrt, not for the cpu backend"):
            load_model(str(folder / "model.int8.onnx"), "cpu")


@pytest.mark.parametrize(
    ("key", "changes", "match"),
    [
        ("int8-cpu", {"precision": Precision.FP32}, "is labelled fp32, bundle.json lists it as int8"),
        ("fp16", {"precision": Precision.INT8}, "is labelled int8, bundle.json lists it as fp16"),
        ("fp32", {"precision": Precision.FP16}, "is labelled fp16, bundle.json lists it as fp32"),
        ("fp16", {"parent_sha256": "ab" * 32}, "made from another model"),
        ("fp16", {"parent_sha256": ""}, "made from another model"),
        ("fp16", {"threshold": 0.4}, "carry different specs"),
        ("int8-cpu", {"name": "other", "parent_sha256": ""}, "carry different specs"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(
    tmp_path: Path, key: str, changes: dict[str, Any], match: str
) -> None:
    bundle = read_bundle(relabelled(write_precisions(tmp_path, ALL), key, **changes))
    with pytest.raises(ModelRefused, match=match):
        load_key(bundle, key)


def test_a_loose_file_runs_as_what_its_spec_says(tmp_path: Path) -> None:
    folder = write_precisions(tmp_path / "b", ALL)
    loose = tmp_path / "loose.onnx"
    loose.write_bytes((folder / "model.fp16.onnx").read_bytes())
    for precision in (None, Precision.FP16):
        with load_model(str(loose), "cpu", precision) as model:
            assert (model.spec.precision, model.file) == (Precision.FP16, "loose.onnx")
    for path in (loose, folder / "model.fp16.onnx"):
        with pytest.raises(ModelRefused, match="is fp16, not int8: leave out --precision"):
            load_model(str(path), "cpu", Precision.INT8)


@pytest.mark.parametrize(("element_type", "operator"), [(10, b"QuantizeLinear"), (1, b"QuantizeLinear"), (10, b"Add")])
def test_a_loose_graph_of_tensorrts_form_is_not_run_wrongly(tmp_path: Path, element_type: int, operator: bytes) -> None:
    scale = varint(2 << 3) + varint(element_type) + field(8, b"scale")
    node = field(1, b"image") + field(1, b"scale") + field(2, b"whole") + field(4, operator)
    path = write_model(tmp_path / "int8.onnx", tiny_spec(precision=Precision.INT8))
    path.write_bytes(path.read_bytes() + field(7, field(1, node) + field(5, scale)))
    wrong = element_type == 10 and operator == b"QuantizeLinear"
    assert quantises_in_half(path.read_bytes()) is wrong
    if wrong:
        with pytest.raises(ModelRefused, match="the form of INT8 that TensorRT takes, which a CPU computes wrongly"):
            load_model(str(path), "cpu")


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"int4": passed()}, "precisions names 'int4'; this runtime knows fp32, fp16, int8, int8-cpu"),
        ({"fp16": {"file": 7}}, "the entry fp16 names no file"),
        ({"fp16": {"file": ""}}, "names no file"),
        ({"fp16": {"file": "../m.onnx"}}, "outside the bundle"),
        ({"fp16": passed(precision="int8")}, "the entry fp16 must be fp16, not 'int8'"),
        ({"fp16": passed(prompt_decoder=["x"])}, "prompt_decoder of the entry fp16 is no text"),
        ({"fp16": passed(verdict={"a": 1})}, "verdict of the entry fp16 is no text"),
        ({"fp16": passed(backends="cpu")}, "backends of the entry fp16 is no list"),
        ({"fp16": {"speed": {}}}, "speed of the entry fp16 is no list"),
        ({"fp16": {"speed": ["fast"]}}, "speed of the entry fp16 is no list"),
        ({"fp16": passed({"backend": "cpu", "than": "fp32", "ratio": 2})}, "whether it passed"),
        ({"fp16": passed(timed(float("nan")))}, "no positive ratio"),
        ({"fp16": passed(timed(float("inf")))}, "no positive ratio"),
        ({"fp16": passed(timed(True))}, "no positive ratio"),
        ({"fp16": passed(timed(-1))}, "no positive ratio"),
        ({"fp16": passed(timed(10**400))}, "no positive ratio"),
        ({"fp16": passed({**timed(2), "machine": []})}, "machine of a speed"),
        ({"fp16": passed({**timed(2), "machine": {"instruction_set": 2}})}, "instruction set of a speed"),
        ({"fp16": passed({**timed(2), "than": None})}, "than what"),
        ({"fp16": passed({**timed(2), "backend": 1})}, "names no backend"),
    ],
)
def test_a_manifest_with_nonsense_in_it_is_refused(tmp_path: Path, entry: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelRefused, match=match):
        read_bundle(write_precisions(tmp_path, entry))


@pytest.mark.parametrize(
    ("manifest", "match"),
    [
        ({"precisions": []}, "precisions is no JSON object"),
        ({"precisions": {"fp32": None}}, "fp32 under precisions is no JSON object"),
        ({"not_shipped": ["fp16"]}, "not_shipped is no JSON object"),
        ({"not_shipped": {"fp16": {"why": "slow"}}}, "why of fp16 under not_shipped is no list of texts"),
        ({"not_shipped": {"\x1b[31m": {}}}, "not_shipped names"),
        ({"acceptance": "all"}, "acceptance is no list of texts"),
        ({"acceptance": ["acceptance/x.png"]}, "not among the files"),
    ],
)
def test_nonsense_beside_the_precisions_is_refused(tmp_path: Path, manifest: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelRefused, match=match) as caught:
        read_bundle(write_precisions(tmp_path, {}, **manifest))
    assert str(caught.value).isprintable()


def test_a_manifest_with_the_spec_of_another_precision_is_refused(tmp_path: Path) -> None:
    folder = write_precisions(tmp_path, ALL)
    spec = {**read_bundle(folder).spec.to_dict(), "precision": "fp16"}
    with pytest.raises(ModelRefused, match="must carry the spec of the FP32 model, not of fp16"):
        read_bundle(write_precisions(tmp_path, ALL, spec=spec))


def test_a_graph_without_its_fp32_origin_is_refused(tmp_path: Path) -> None:
    folder = write_precisions(tmp_path, {"fp16": passed()}, precisions={"fp16": {"file": "model.fp16.onnx"}})
    with pytest.raises(ModelRefused, match="holds no FP32 model, so its fp16 model has no parent"):
        load_key(read_bundle(folder), "fp16")
    with pytest.raises(ModelRefused, match="holds no fp32 model"):
        choose(read_bundle(folder), "cpu", None, HERE)


def test_no_nonsense_in_a_manifest_is_an_internal_error(tmp_path: Path) -> None:
    entries = {"fp16": passed(timed(1.2)), "int8-cpu": passed(timed(2, than="fp16"), backends=["cpu"], why=["w"])}
    reasons = {"int8": {"verdict": "missed", "why": ["slow"]}}
    folder = write_precisions(tmp_path, entries, not_shipped=reasons, acceptance=["model.fp16.onnx"])
    document = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    refused = 0
    for what, changed in mutants(document):
        (folder / "bundle.json").write_text(json.dumps(changed), encoding="utf-8")
        try:
            bundle = read_bundle(folder)
            for precision in (None, Precision.FP16, Precision.INT8):
                assert choose(bundle, "cpu", precision, HERE).why.isprintable(), what
            json.dumps(bundle.to_dict())
        except ModelRefused:
            refused += 1
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
    assert refused > 500


def test_further_files_do_not_disturb(tmp_path: Path) -> None:
    folder = write_precisions(tmp_path, ALL)
    (folder / "bundle.sig").write_bytes(b"\x00" * 64)
    (folder / "notes").mkdir()
    load_model(str(folder), "cpu").close()
