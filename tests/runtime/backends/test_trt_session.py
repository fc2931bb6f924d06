from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_tensorrt import GPU, FakeDriver, FakeTensorRT, packed
from fake_trt_parts import Knobs
from mammo_runtime.backends import trt as backend
from mammo_runtime.backends.engine_files import read_engine, record_path, write_engine
from mammo_runtime.backends.engine_settings import EngineSettings
from mammo_runtime.backends.trt import TensorRTSession
from mammo_runtime.errors import InferenceFailed, ModelRefused
from mammo_runtime.session import open_session
from mammo_runtime.spec import InputSpec, ModelSpec
from tiny_model import TINY

SPEC = ModelSpec("tiny", "blur", input=InputSpec(height=16, width=16))


def batch(count: int = 1) -> np.ndarray:
    return np.linspace(-1, 1, count * 3 * 16 * 16, dtype=np.float32).reshape(count, 3, 16, 16)


def opened(driver: FakeDriver | None = None, knobs: Knobs | None = None, **settings: Any) -> TensorRTSession:
    fake = FakeTensorRT(knobs)
    plan, record = packed(TINY.read_bytes(), fake, SPEC, EngineSettings(**settings))
    return TensorRTSession.from_plan(plan, record, fake, driver or FakeDriver())


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An engine on disk, on a machine with a (fake) GPU."""
    fake = FakeTensorRT()
    monkeypatch.setattr(backend, "load_library", lambda name: fake)
    monkeypatch.setattr(backend, "open_driver", FakeDriver)
    monkeypatch.setattr(backend, "require_device", lambda: GPU)
    return write_engine(tmp_path, *packed(TINY.read_bytes(), fake, SPEC))


def test_it_answers_what_onnx_runtime_answers(engine: Path) -> None:
    with open_session(engine, "tensorrt") as session, open_session(TINY, "cpu") as reference:
        assert np.array_equal(session.run(batch(4)), reference.run(batch(4)))
        assert session.backend == "tensorrt 10.3.0 fp32 engine, fake CUDA"


def test_a_batch_beyond_the_profile_runs_in_parts() -> None:
    driver = FakeDriver()
    with opened(driver, batch=(1, 2, 2)) as session, open_session(TINY, "cpu") as reference:
        assert np.array_equal(session.run(batch(5)), reference.run(batch(5)))
        assert driver.waits == 3


def test_what_the_engine_was_not_built_for_is_refused() -> None:
    with opened(batch=(2, 2, 4)) as session:
        with pytest.raises(ModelRefused, match=r"takes float32 \[2, 3, 16, 16\] to \[4, 3, 16, 16\].*--batch"):
            session.run(batch(1))
        with pytest.raises(ModelRefused, match=r"got \[2, 3, 8, 16\]"):
            session.run(batch(2)[:, :, :8])


def test_all_memory_and_the_stream_come_back() -> None:
    driver = FakeDriver()
    session = opened(driver)
    session.run(batch(1))
    session.run(batch(3))
    assert len(driver.blocks) == 2, "one buffer for each tensor, grown"
    session.close()
    session.close()
    assert not driver.blocks
    assert not driver.streams


def test_threads_wait_for_each_other() -> None:
    with opened() as session, open_session(TINY, "cpu") as reference:
        expected = [reference.run(batch(k)) for k in (1, 2, 3, 4)]
        wrong: list[int] = []

        def work(k: int) -> None:
            for _ in range(20):
                if not np.array_equal(session.run(batch(k)), expected[k - 1]):
                    wrong.append(k)

        threads = [threading.Thread(target=work, args=(k,)) for k in (1, 2, 3, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_a_gpu_that_gives_up_fails_the_image() -> None:
    with opened(FakeDriver(room=100)) as session, pytest.raises(InferenceFailed, match="allocate"):
        session.run(batch())
    with opened() as session:
        session._engine._session = None  # what runs inside the fake
        with pytest.raises(InferenceFailed, match="could not be run"):
            session.run(batch())


def test_layers_and_their_times_are_read() -> None:
    with opened() as session:
        assert json.loads(session.layer_information())["Layers"][0]["Name"] == "conv"
        assert session.layer_times(runs=4) == {"conv": pytest.approx(2.0)}
        session.run(batch())


def test_a_plan_of_another_version_names_both_and_the_command() -> None:
    plan, record = packed(TINY.read_bytes(), FakeTensorRT(), SPEC)
    newer = FakeTensorRT(Knobs(version=(10, 13, 3, 9)))
    with pytest.raises(ModelRefused, match=r"TensorRT 10\.3\.0\.26, here is tensorrt 10\.13\.3.*engine BUNDLE"):
        TensorRTSession.from_plan(plan, record, newer, FakeDriver())


def test_a_portable_plan_runs_on_a_later_version() -> None:
    plan, record = packed(TINY.read_bytes(), FakeTensorRT(), SPEC, flags={"VERSION_COMPATIBLE": "slower"})
    newer = FakeTensorRT(Knobs(version=(10, 13, 3, 9)))
    with TensorRTSession.from_plan(plan, record, newer, FakeDriver()) as session:
        assert session._runtime.engine_host_code_allowed
        session.run(batch())


def test_a_plan_for_another_gpu_is_refused_with_tensorrts_words() -> None:
    plan, record = packed(TINY.read_bytes(), FakeTensorRT(), SPEC)
    with pytest.raises(ModelRefused, match=r"incompatible device.*kind of GPU it was built on"):
        TensorRTSession.from_plan(plan, record, FakeTensorRT(Knobs(accepts=False)), FakeDriver())


def test_an_engine_with_other_tensors_than_its_record_is_refused() -> None:
    fake = FakeTensorRT()
    plan, record = packed(TINY.read_bytes(), fake, SPEC)
    wrong = replace(record, outputs=(replace(record.outputs[0], element="UINT8"),))
    with pytest.raises(ModelRefused, match="its record says"):
        TensorRTSession.from_plan(plan, wrong, fake, FakeDriver())


def test_without_a_gpu_it_says_so(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(ModelRefused, match="no usable NVIDIA GPU"):
        open_session(engine, "tensorrt")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def without_record(path: Path) -> None:
    record_path(path).unlink()


def with_values(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        values = json.loads(record_path(path).read_text())
        record_path(path).write_text(json.dumps({**values, **changes}))

    return change


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, "not the engine that"),
        (without_record, "no engine of mammo-edge"),
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.write_bytes(b""), "no engine of mammo-edge"),
        (with_values(schema_version=2), "schema version 2"),
        (with_values(inputs=[]), "no tensors"),
        (with_values(inputs=[{"name": "x"}]), "not valid"),
        (with_values(plan=3), "wrong type"),
        (lambda path: record_path(path).write_text("[" * 9999), "not valid"),
    ],
)
def test_a_pair_that_is_not_as_written_is_refused(engine: Path, spoil: Callable[[Path], Any], words: str) -> None:
    spoil(engine)
    with pytest.raises(ModelRefused, match=words):
        open_session(engine, "tensorrt")


def test_a_file_that_is_no_plan_is_refused(engine: Path, tmp_path: Path) -> None:
    _, record = read_engine(engine)
    with pytest.raises(ModelRefused, match="no TensorRT engine"):
        TensorRTSession.from_plan(b"PK\x03\x04" * 20, record, FakeTensorRT(), FakeDriver())
    with pytest.raises(ModelRefused, match="no engine of mammo-edge"):
        open_session(TINY, "tensorrt")
