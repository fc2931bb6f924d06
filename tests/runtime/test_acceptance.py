"""The check at a site: what a bundle's graphs said of its phantoms is said again, and what is not is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mammo_runtime import acceptance as acceptance_module
from mammo_runtime.acceptance import (
    EXPECTED,
    AcceptanceReport,
    check_acceptance,
    check_sessions,
    checkable,
    require_acceptance,
)
from mammo_runtime.acceptance_answers import STEP, TOLERANCES, Answer, pixels_sha256
from mammo_runtime.acceptance_make import Graph, make_acceptance
from mammo_runtime.bundle import Bundle, load_key, read_bundle
from mammo_runtime.errors import ExitCode, GateMissed, ModelRefused
from mammo_runtime.hashing import file_sha256
from mammo_runtime.manifest import KEYS
from mammo_runtime.spec import InputMode, Precision, Task
from mammo_runtime.writers.pictures import mask_png
from nasty_json import mutants
from tiny_model import ENVIRONMENT, tiny_spec, write_bundle
from tiny_precisions import passed, write_precisions
from tiny_tasks import SPECS, write_task_bundle

LIMIT_BYTES = 300_000
MAKERS: dict[str, Callable[[Path], Path]] = {
    "segmentation": lambda folder: write_bundle(folder, tiny_spec()),
    "windows": lambda folder: write_bundle(folder, tiny_spec(InputMode.ROI)),
    **{task.value: lambda folder, spec=spec: write_task_bundle(folder, spec) for task, spec in SPECS.items()},
}


def graphs_of(bundle: Bundle) -> dict[str, Graph]:
    opened = {key: load_key(bundle, key) for key in bundle.precisions}
    return {key: Graph(model.session, model.decoder) for key, model in opened.items()}


def put(folder: Path, files: dict[str, bytes]) -> Bundle:
    """Write files into a bundle and list them in its manifest, as the exporter does."""
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        manifest["files"][name] = {"sha256": file_sha256(folder / name), "bytes": len(content)}
    manifest["acceptance"] = sorted({*manifest.get("acceptance", []), *files})
    (folder / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    return read_bundle(folder)


def accepted(folder: Path) -> Bundle:
    bundle = read_bundle(folder)
    return put(folder, make_acceptance(bundle.spec, graphs_of(bundle)))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a bundle of each kind, made once; tests work on copies."""
    root = tmp_path_factory.mktemp("acceptance")
    return {kind: accepted(make(root / kind)).folder for kind, make in MAKERS.items()}


@pytest.fixture(params=MAKERS)
def bundle(request: pytest.FixtureRequest, made: dict[str, Path]) -> Bundle:
    return read_bundle(made[request.param])


@pytest.fixture
def simple(made: dict[str, Path], tmp_path: Path) -> Bundle:
    return read_bundle(Path(shutil.copytree(made["segmentation"], tmp_path / "simple")))


def expected_of(bundle: Bundle) -> dict[str, Any]:
    return dict(json.loads((bundle.folder / EXPECTED).read_text(encoding="utf-8")))


def with_expected(bundle: Bundle, values: Any) -> Bundle:
    text = values if isinstance(values, str) else json.dumps(values)
    return put(bundle.folder, {EXPECTED: text.encode()})


class Another:
    """A session whose answer is changed on the way."""

    def __init__(self, session: Any, change: Callable[[np.ndarray], np.ndarray]) -> None:
        self.session, self.change, self.backend, self.metadata = session, change, "another", session.metadata

    def run(self, batch: np.ndarray) -> np.ndarray:
        return self.change(self.session.run(batch))

    def run_all(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        first, *rest = self.session.run_all(*inputs)
        return self.change(first), *rest

    def close(self) -> None:
        self.session.close()


def test_every_task_says_again_what_it_said(bundle: Bundle) -> None:
    report = check_acceptance(bundle, "cpu")
    require_acceptance(report)
    (graph,) = report.graphs
    assert (graph.key, len(graph.images), report.misses) == ("fp32", 3, ())
    assert report.lines == ("fp32: 3 phantoms as expected, 3 of them to the last bit",)
    assert all(one.differences and not any(one.differences.values()) for one in graph.images)
    assert report.line == f"acceptance: {report.lines[0]}"
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    assert check_acceptance(bundle, "cpu", Precision.FP32) == report


def test_what_is_stored_shows_something_and_is_small(bundle: Bundle) -> None:
    expected = [one["expected"]["fp32"] for one in expected_of(bundle)["inputs"]]
    if bundle.spec.task in (Task.SEGMENTATION, Task.PROMPTED):
        assert all(one["findings"] and one["mask_area_px"] > 20 for one in expected)
    assert sum((bundle.folder / name).stat().st_size for name in bundle.acceptance) < LIMIT_BYTES
    assert all((bundle.folder / name).parent.name == "acceptance" for name in bundle.acceptance)


def test_the_same_graphs_give_the_same_bytes(bundle: Bundle) -> None:
    again = make_acceptance(bundle.spec, graphs_of(bundle))
    assert again == {name: (bundle.folder / name).read_bytes() for name in bundle.acceptance}


def test_another_model_is_caught_and_named(bundle: Bundle) -> None:
    with load_key(bundle, "fp32") as model:
        first, second = model.session, model.decoder

        def other(values: np.ndarray) -> np.ndarray:
            if values.dtype == np.uint8:
                return (values + 1) % np.uint8(len(bundle.spec.classes))
            return np.roll(values, 1, -1) if bundle.spec.task is Task.CLASSIFICATION else 0.9 * values

        changed: Any = (Another(first, other), None) if second is None else (first, Another(second, other))
        graph = check_sessions(bundle, "fp32", *changed)
    report = AcceptanceReport((graph,))
    assert {miss.split(":")[0] for miss in report.misses} == {f"fp32, phantom-{n}.png" for n in (1, 2, 3)}
    assert "accepted: " in report.lines[0]
    with pytest.raises(GateMissed, match=r"fp32, phantom-1\.png: .* \(accepted: ") as caught:
        require_acceptance(report)
    assert caught.value.exit_code == ExitCode.GATE_MISSED


def test_each_precision_has_its_own_answers_and_tolerances(tmp_path: Path) -> None:
    entries = {"fp16": passed(), "int8": passed(backends=["tensorrt"]), "int8-cpu": passed()}
    folder = write_precisions(tmp_path, entries)
    bundle = accepted(folder)
    report = check_acceptance(bundle, "cpu")
    assert [graph.key for graph in report.graphs] == ["fp32", "fp16", "int8-cpu"]
    assert [graph.tolerances for graph in report.graphs] == [TOLERANCES[g.key] for g in report.graphs]
    assert checkable(bundle, "tensorrt") == tuple(Precision)
    with load_key(bundle, "int8") as model:
        graph = check_sessions(bundle, "int8", Another(model.session, lambda p: p * np.float32(0.99)))  # type: ignore[arg-type]
        assert (graph.misses, graph.images[0].identical, graph.expected_from) == ((), False, model.session.backend)
        assert check_sessions(bundle, "fp32", Another(model.session, lambda p: p * np.float32(0.99))).misses  # type: ignore[arg-type]


def test_a_wrong_mask_is_named_with_its_number(simple: Bundle) -> None:
    values = expected_of(simple)
    record = values["inputs"][1]["expected"]["fp32"]
    mask = np.zeros((256, 192), bool)
    mask[10:40, 10:60] = True
    drawn = {f"acceptance/{record['mask']}": mask_png(mask)}
    with pytest.raises(ModelRefused, match="a mask is not the one the record was written with"):
        check_acceptance(put(simple.folder, drawn), "cpu")
    record["mask_sha256"] = pixels_sha256(mask)
    report = check_acceptance(with_expected(simple, values), "cpu")
    (miss,) = report.misses
    assert miss.startswith("fp32, phantom-2.png: ")
    assert miss.endswith("% of the mask differs (accepted: 0.01)")


def test_a_finding_too_many_and_one_elsewhere_are_named(simple: Bundle) -> None:
    values = expected_of(simple)
    first, second = (one["expected"]["fp32"]["findings"] for one in values["inputs"][:2])
    first.append({"area_px": 50, "centroid": [5.0, 5.0]})
    second[0]["centroid"][0] += 3
    second[0]["area_px"] *= 2
    misses = check_acceptance(with_expected(simple, values), "cpu").misses
    assert misses[0] == "fp32, phantom-1.png: 1 findings more or fewer (accepted: 0)"
    assert any("phantom-2.png: the area of a finding differs by" in miss for miss in misses)
    assert "fp32, phantom-2.png: a finding lies 3.00 pixels away (accepted: 0.25)" in misses


def test_nan_fails_the_phantom_by_name(simple: Bundle) -> None:
    with load_key(simple, "fp32") as model:
        graph = check_sessions(simple, "fp32", Another(model.session, lambda p: p * np.float32("nan")))  # type: ignore[arg-type]
    assert [one.image for one in graph.images] == ["phantom-1.png", "phantom-2.png", "phantom-3.png"]
    assert "no probabilities (NaN" in graph.misses[0]


@pytest.mark.parametrize("name", ["acceptance/phantom-1.png", EXPECTED, "acceptance/phantom-2.fp32.mask.png"])
def test_one_changed_bit_is_refused(simple: Bundle, name: str) -> None:
    content = bytearray((simple.folder / name).read_bytes())
    content[-1] ^= 1
    (simple.folder / name).write_bytes(content)
    with pytest.raises(ModelRefused, match="was changed since it was exported"):
        check_acceptance(simple, "cpu")


def test_a_bundle_without_answers_says_so(tmp_path: Path) -> None:
    folder = write_precisions(tmp_path, {"fp16": passed()})
    with pytest.raises(ModelRefused, match="holds no acceptance files; export it again"):
        check_acceptance(read_bundle(folder), "cpu")
    bundle = read_bundle(folder)
    only = put(folder, make_acceptance(bundle.spec, {"fp32": graphs_of(bundle)["fp32"]}))
    with pytest.raises(ModelRefused, match="have no answers of its fp16 graph"):
        check_acceptance(only, "cpu")


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no text": lambda v: "{",
    "deep": lambda v: "[" * 100_000,
    "a list": lambda v: [],
    "later": lambda v: v | {"schema_version": 2},
    "no inputs": lambda v: v | {"inputs": []},
    "inputs of texts": lambda v: v | {"inputs": ["a"]},
    "many inputs": lambda v: v | {"inputs": v["inputs"] * 100},
    "tolerances of text": lambda v: v | {"tolerances": {"fp32": {"mask": "wide"}}},
    "endless tolerance": lambda v: v | {"tolerances": {"fp32": {**v["tolerances"]["fp32"], "mask": float("inf")}}},
    "huge tolerance": lambda v: v | {"tolerances": {"fp32": {"mask": 10**400}}},
    "a tolerance missing": lambda v: v | {"tolerances": {"fp32": {"labels": 1}}},
    "outside": lambda v: v | {"inputs": [{**v["inputs"][0], "image": "../model.fp32.onnx"}]},
    "absolute": lambda v: v | {"inputs": [{**v["inputs"][0], "image": "/etc/passwd"}]},
    "no answer": lambda v: v | {"inputs": [{**v["inputs"][0], "expected": {}}]},
    "boxes": lambda v: v | {"inputs": [{**v["inputs"][0], "boxes": [[1, 2]]}]},
    "no mask": lambda v: v | {"inputs": [{**v["inputs"][0], "expected": {"fp32": {"mask": EXPECTED}}}]},
}


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_expectations_are_refused(simple: Bundle, how: str) -> None:
    with pytest.raises(ModelRefused) as caught:
        check_acceptance(with_expected(simple, HOSTILE[how](expected_of(simple))), "cpu")
    assert "acceptance" in str(caught.value)


def test_no_nonsense_in_what_is_expected_breaks_it(simple: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    values = expected_of(simple)
    del values["inputs"][1:]
    shown = simple.folder / EXPECTED
    monkeypatch.setattr(acceptance_module, "vouched_for", lambda bundle, path: "")
    with load_key(simple, "fp32") as model:
        for what, changed in mutants(values):
            shown.write_text(json.dumps(changed), encoding="utf-8")
            try:
                json.dumps(
                    AcceptanceReport((check_sessions(simple, "fp32", model.session),)).to_dict(), allow_nan=False
                )
            except ModelRefused:
                continue
            except Exception as error:
                pytest.fail(f"{what}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("content", [b"", b"GIF89a" * 9, b"\x89PNG\r\n\x1a\n" + b"\xff" * 40])
def test_a_stored_picture_that_is_none_is_refused(simple: Bundle, content: bytes) -> None:
    name = f"acceptance/{expected_of(simple)['inputs'][0]['expected']['fp32']['mask']}"
    with pytest.raises(ModelRefused, match="is no PNG of at most 4096 pixels a side"):
        check_acceptance(put(simple.folder, {name: content}), "cpu")


def test_phantoms_with_a_finding_are_preferred_and_none_at_all_is_no_bundle(tmp_path: Path) -> None:
    bundle = read_bundle(write_bundle(tmp_path / "b", tiny_spec()))
    session = graphs_of(bundle)["fp32"].session
    calls: list[int] = []

    def sometimes(probability: np.ndarray) -> np.ndarray:
        calls.append(1)
        return probability * np.float32(len(calls) > 6)

    files = make_acceptance(bundle.spec, {"fp32": Graph(Another(session, sometimes))})  # type: ignore[arg-type]
    assert all(one["expected"]["fp32"]["findings"] for one in json.loads(files[EXPECTED])["inputs"])
    broken: Any = Another(session, lambda p: p * np.float32("nan"))
    with pytest.raises(GateMissed, match="could judge none of 9 phantoms"):
        make_acceptance(bundle.spec, {"fp32": Graph(broken)})
    with pytest.raises(GateMissed, match="the fp16 graph fails on phantom 1, which FP32 judges"):
        make_acceptance(bundle.spec, {"fp32": Graph(session), "fp16": Graph(broken)})


def test_answers_come_back_as_they_were_stored() -> None:
    mask = np.zeros((40, 30), bool)
    mask[3:20, 5:9] = True
    probability = np.random.default_rng(0).random((10, 8)).astype(np.float32)
    levels = np.rint(probability * 65535) / np.float32(65535)
    whole = Answer(mask, levels.astype(np.float32), None, ((68, 6.5, 11.0),), (), (0.9,))
    record, pictures = whole.stored("p")
    back = Answer.from_stored(json.loads(json.dumps(record)), pictures)
    assert not any(back.difference(whole).values())
    assert back.difference(Answer())["mask"] == float("inf")
    assert back.difference(replace(whole, mask=~mask))["mask"] > 0.9
    shifted = replace(whole, mask=np.roll(mask, 1, 0))
    assert back.difference(shifted)["mask"] == pytest.approx(4 / 72), "four of the eight pixels are forgiven"
    assert back.difference(replace(whole, predicted_iou=(0.7,)))["predicted_iou"] == pytest.approx(0.2)
    assert back.difference(replace(whole, predicted_iou=()))["predicted_iou"] == float("inf")


def test_every_key_has_a_tolerance_for_every_difference() -> None:
    assert set(TOLERANCES) == set(KEYS)
    assert len({frozenset(limits) for limits in TOLERANCES.values()}) == 1
    for name in TOLERANCES["fp32"]:
        ordered = [TOLERANCES[key][name] for key in ("fp32", "fp16", "int8-cpu", "int8")]
        assert ordered == sorted(ordered), name
    assert STEP == 4, "the README and stored bundles say so"


def test_the_check_needs_neither_torch_nor_onnx(simple: Bundle) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom mammo_runtime.acceptance import check_acceptance\n"
        "from mammo_runtime.bundle import read_bundle\n"
        "print(check_acceptance(read_bundle(Path(sys.argv[1]))).lines[0])\n"
        "assert not {'torch', 'onnx', 'mammo_train', 'mammo_export'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(simple.folder)], capture_output=True, text=True, env=ENVIRONMENT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fp32: 3 phantoms as expected, 3 of them to the last bit\n"
