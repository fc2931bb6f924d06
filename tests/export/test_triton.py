"""Model repositories for Triton, read with its own protobuf; a client that follows the README gets the same masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mammo_export.triton import Wish, write_repository
from mammo_export.triton_cli import triton_command
from mammo_export.triton_text import Word, check_config, config_text, quoted
from mammo_runtime.backends.engine_files import EngineRecord, Tensor, record_path, sha256_of, write_engine
from mammo_runtime.bundle import load_model
from mammo_runtime.errors import ModelRefused, OutputError, UsageError
from mammo_runtime.hashing import file_sha256
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.segmenter import segment
from mammo_runtime.spec import METADATA_KEY, ModelSpec, Task
from tiny_precisions import passed, write_precisions
from tiny_tasks import SPECS, quarters, spotted, write_task_bundle

TYPES = {"TYPE_FP32": np.float32, "TYPE_UINT8": np.uint8}


def config(repository: Path, model: str) -> Any:
    """Return a model's configuration as Triton reads it."""
    pytest.importorskip("tritonclient")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    text = (repository / model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


class Served:
    """What a client has in hand: a configuration, and calls that keep it. Runs the file that Triton would."""

    def __init__(self, repository: Path, model: str) -> None:
        import onnxruntime

        self.config = config(repository, model)
        path = repository / model / "1" / "model.onnx"
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.metadata: dict[str, str] = {}
        self.backend = "triton"

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec.from_dict(json.loads(self.config.parameters[METADATA_KEY].string_value))

    def run(self, batch: np.ndarray) -> np.ndarray:
        (answer,) = self.run_all(batch)
        return answer

    def run_all(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        for described, tensor in zip(self.config.input, inputs, strict=True):
            self._check(described, tensor)
        named = {described.name: tensor for described, tensor in zip(self.config.input, inputs)}
        answers = tuple(self._session.run([one.name for one in self.config.output], named))
        for described, tensor in zip(self.config.output, answers, strict=True):
            self._check(described, tensor)
        return answers

    def _check(self, described: Any, tensor: np.ndarray) -> None:
        assert tensor.dtype == TYPES[type(self.config).DESCRIPTOR.file.enum_types_by_name["DataType"]
                                    .values_by_number[described.data_type].name]  # fmt: skip
        sides = tensor.shape
        if self.config.max_batch_size:
            assert sides[0] <= self.config.max_batch_size
            sides = sides[1:]
        assert len(sides) == len(described.dims)
        assert all(want in (-1, have) for want, have in zip(described.dims, sides))

    def close(self) -> None:
        pass

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def picture(pixels: np.ndarray) -> Mammogram:
    return Mammogram(pixels, 255, "as it is", "0" * 64)


def engine(folder: Path, bundle: Path, name: str = "model.int8.onnx", **changes: Any) -> Path:
    """Write a plan with its record, as mammo-export engine does."""
    plan = b"plan of " + name.encode()
    image = Tensor("image", "FLOAT", (-1, 3, 64, 64), (1, 3, 64, 64), (1, 3, 64, 64), (6, 3, 64, 64))
    values: dict[str, Any] = {
        "plan": "a.engine", "plan_sha256": sha256_of(plan), "plan_version": "TensorRT 10.3", "module": "tensorrt",
        "module_version": "10.3.0", "precision": "int8", "key": "int8",
        "onnx": {"file": name, "sha256": file_sha256(bundle / name), "bundle": "tiny"}, "metadata": {},
        "inputs": (image,), "outputs": (Tensor("probability", "FLOAT", (-1, 1, 64, 64)),), "built_on": {},
        "settings": {},
    }  # fmt: skip
    return write_engine(folder, plan, EngineRecord(**{**values, **changes}))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    entries = {"fp16": passed(), "int8": passed(), "int8-cpu": passed()}
    return write_precisions(tmp_path / "bundle", entries)


def test_every_graph_is_a_model_of_its_own(bundle: Path, tmp_path: Path) -> None:
    written = write_repository(bundle, tmp_path / "r", wish=Wish(max_batch=8, queue_delay_us=500))
    assert written["models"] == ["tiny-fp32", "tiny-fp16", "tiny-int8-cpu"]
    assert written["validated"]
    for model in written["models"]:
        read = config(tmp_path / "r", model)
        assert (read.name, read.platform, read.max_batch_size) == (model, "onnxruntime_onnx", 8)
        assert read.dynamic_batching.max_queue_delay_microseconds == 500
        assert read.version_policy.latest.num_versions == 1
        key = model.removeprefix("tiny-")
        assert file_sha256(tmp_path / "r" / model / "1" / "model.onnx") == file_sha256(bundle / f"model.{key}.onnx")
        assert read.parameters["mammo_edge_sha256"].string_value == file_sha256(bundle / f"model.{key}.onnx")
    on_cpu = config(tmp_path / "r", "tiny-int8-cpu").instance_group[0]
    assert on_cpu.Kind.Name(on_cpu.kind) == "KIND_CPU"


def test_int8_for_tensorrt_is_served_as_an_engine_only(bundle: Path, tmp_path: Path) -> None:
    without = write_repository(bundle, tmp_path / "a")
    assert "--plan" in without["left_out"]["int8"]
    assert "Left out: int8" in Path(without["readme"]).read_text(encoding="utf-8")
    plan = engine(tmp_path / "e", bundle)
    written = write_repository(bundle, tmp_path / "b", [plan])
    assert written["left_out"] == {}
    read = config(tmp_path / "b", "tiny-int8-tensorrt")
    assert (read.platform, read.max_batch_size, list(read.input[0].dims)) == ("tensorrt_plan", 6, [3, 64, 64])
    assert read.instance_group[0].Kind.Name(read.instance_group[0].kind) == "KIND_GPU"
    assert (tmp_path / "b" / "tiny-int8-tensorrt" / "1" / "model.plan").read_bytes() == plan.read_bytes()


def test_engines_that_do_not_belong_are_refused(bundle: Path, tmp_path: Path) -> None:
    other = engine(tmp_path / "o", bundle, onnx={"file": "model.int8.onnx", "sha256": "0" * 64, "bundle": "tiny"})
    with pytest.raises(ModelRefused, match=r"another model\.int8\.onnx"):
        write_repository(bundle, tmp_path / "r", [other])
    rtx = engine(tmp_path / "x", bundle, module="tensorrt_rtx")
    with pytest.raises(UsageError, match="tensorrt_rtx"):
        write_repository(bundle, tmp_path / "r", [rtx])
    loose = engine(tmp_path / "l", bundle)
    record_path(loose).unlink()
    with pytest.raises(ModelRefused):
        write_repository(bundle, tmp_path / "r", [loose])
    assert not (tmp_path / "r").exists()


def test_a_changed_graph_is_not_served(bundle: Path, tmp_path: Path) -> None:
    with (bundle / "model.fp16.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(ModelRefused, match="changed"):
        write_repository(bundle, tmp_path / "r")


def test_nothing_is_overwritten_and_versions_are_added(bundle: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "r")
    with pytest.raises(UsageError, match="--version"):
        write_repository(bundle, tmp_path / "r")
    write_repository(bundle, tmp_path / "r", wish=Wish(version=2))
    assert sorted(p.name for p in (tmp_path / "r" / "tiny-fp32").iterdir()) == ["1", "2", "config.pbtxt"]
    with pytest.raises(UsageError, match="--name"):
        write_repository(bundle, tmp_path / "r", wish=Wish(version=3, max_batch=9))
    write_repository(bundle, tmp_path / "r", wish=Wish(name="again"))
    assert config(tmp_path / "r", "again-fp32").max_batch_size == 4
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["a/b", "..", "a b", "é", ".hidden"])
def test_names_that_triton_or_a_file_system_would_misread_are_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        write_repository(bundle, tmp_path / "r", wish=Wish(name=name))


def test_a_client_of_a_prompted_model_does_what_the_readme_says(tmp_path: Path) -> None:
    bundle = write_task_bundle(tmp_path / "b", SPECS[Task.PROMPTED])
    written = write_repository(bundle, tmp_path / "r")
    assert written["models"] == ["tiny-prompted-fp32-encoder", "tiny-prompted-fp32-decoder"]
    encoder, decoder = (Served(tmp_path / "r", model) for model in written["models"])
    assert (encoder.config.max_batch_size, decoder.config.max_batch_size) == (0, 0)
    assert list(decoder.config.input[1].dims) == [1, -1, 4]
    assert not decoder.config.HasField("dynamic_batching")
    image, boxes = picture(spotted((48, 40, 12), (40, 96, 10))), [Box(28, 36, 24, 24), Box(86, 30, 20, 20)]
    served = segment(image, encoder, encoder.spec, boxes=boxes, decoder=decoder)
    with load_model(str(bundle), "cpu") as model:
        direct = segment(image, model.session, model.spec, boxes=boxes, decoder=model.decoder)
    assert direct.mask.any()
    assert np.array_equal(served.mask, direct.mask)
    text = Path(written["readme"]).read_text(encoding="utf-8")
    for words in ("box_to_grid", "embedding", "[1, any, 4]", "never give it to another's decoder", METADATA_KEY):
        assert words in text


@pytest.mark.parametrize("task", [Task.MULTICLASS, Task.CLASSIFICATION])
def test_clients_of_other_tasks_get_the_same_answers(tmp_path: Path, task: Task) -> None:
    bundle = write_task_bundle(tmp_path / "b", SPECS[task])
    (model,) = write_repository(bundle, tmp_path / "r")["models"]
    session = Served(tmp_path / "r", model)
    pixels = quarters(30, 90, 150, 210)
    image = picture(np.repeat(pixels[:, :, None], 3, axis=2) if task is Task.MULTICLASS else pixels)
    served = segment(image, session, session.spec)
    with load_model(str(bundle), "cpu") as direct:
        expected = segment(image, direct.session, direct.spec)
    assert served.predicted_class == expected.predicted_class
    assert served.classes == expected.classes
    if task is Task.CLASSIFICATION:
        assert session.config.output[0].label_filename == "labels.txt"
        labels = (tmp_path / "r" / model / "labels.txt").read_text().splitlines()
        assert labels == list(SPECS[task].classes)


def test_the_command_says_what_it_wrote(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(bundle), "-o", str(tmp_path / "r"), "--json"]
    triton_command.main(arguments, standalone_mode=False)
    told = json.loads(capsys.readouterr().out)
    assert told["models"] == ["tiny-fp32", "tiny-fp16", "tiny-int8-cpu"]
    assert Path(told["readme"]).is_file()


def test_text_that_triton_would_not_read_is_found_before_it_is_written() -> None:
    pytest.importorskip("tritonclient")
    assert check_config(config_text({"name": "a", "max_batch_size": 4}), "a")
    for broken in ({"name": "a", "no_such_field": 1}, {"name": "a", "max_batch_size": "four"}, {"name": "b"}):
        with pytest.raises(OutputError):
            check_config(config_text(broken), "a")


def test_text_without_the_client_is_written_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tritonclient.grpc.model_config_pb2", None)
    assert not check_config("name: 1", "a")


def test_any_text_survives_its_quotes() -> None:
    pytest.importorskip("tritonclient")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    nasty = 'quote " back \\ line\nreturn\r tab\t bell\x07 delete\x7f ü 乳 \\n \\101 {}'
    read = text_format.Parse(config_text({"name": nasty}), model_config_pb2.ModelConfig())
    assert read.name == nasty
    assert quoted("\x07" + "1") == '"\\0071"'
    assert config_text({"kind": Word("KIND_GPU"), "dims": [1, -1]}) == "kind: KIND_GPU\ndims: [ 1, -1 ]\n"
