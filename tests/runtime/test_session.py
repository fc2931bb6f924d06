from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fake_tensorrt import fake_session
from mammo_runtime.backends.onnx_wire import has_external_data, metadata_of
from mammo_runtime.errors import ExitCode, InferenceFailed, ModelRefused
from mammo_runtime.session import Session, SessionOptions, open_session
from mammo_runtime.spec import METADATA_KEY, ModelSpec
from tiny_model import TINY, field, tiny_spec, varint, with_metadata, write_model

Open = Callable[[Path], Session]
BACKENDS: dict[str, Open] = {
    "onnxruntime": lambda path: open_session(path, "cpu", SessionOptions(threads=1)),
    "tensorrt": fake_session,  # the real session on a fake TensorRT
}


@pytest.fixture(params=BACKENDS)
def opened(request: pytest.FixtureRequest) -> Open:
    """Every backend keeps the contract of `Session`."""
    return BACKENDS[request.param]


def batch(count: int = 1, side: int = 16) -> np.ndarray:
    return np.zeros((count, 3, side, side), np.float32)


def test_it_runs_any_batch_and_tells_what_it_is(tmp_path: Path, opened: Open) -> None:
    with opened(write_model(tmp_path / "m.onnx", tiny_spec())) as session:
        assert session.backend.startswith(tuple(BACKENDS))
        assert ModelSpec.from_metadata(session.metadata) == tiny_spec()
        for count in (1, 3, 9):
            found = session.run(batch(count))
            assert found.shape == (count, 1, 16, 16)
            assert found == pytest.approx(0.5)
        bright = session.run(batch() + 1)
        assert bright[0, 0, 8, 8] == pytest.approx(1 / (1 + np.exp(-10)), rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        batch().astype(np.float64),
        batch().astype(np.uint8),
        batch()[:, :2],
        batch()[0],
        np.zeros((1, 3, 16), np.float32),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_a_wrong_batch_is_refused(wrong: np.ndarray, opened: Open) -> None:
    with opened(TINY) as session, pytest.raises(ModelRefused, match="float32"):
        session.run(wrong)


def test_a_failing_run_is_about_the_image() -> None:
    with open_session(TINY, "cpu") as session, pytest.raises(InferenceFailed, match="could not be run"):
        session.run(np.zeros((1, 3, 0, 16), np.float32))


def test_closed_is_closed(opened: Open) -> None:
    session = opened(TINY)
    session.close()
    session.close()
    with pytest.raises(ModelRefused, match="closed"):
        session.run(batch())


def test_an_unknown_backend_names_the_known_ones() -> None:
    with pytest.raises(ModelRefused, match="cpu"):
        open_session(TINY, "tpu")


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\x00" * 100, b"\xff" * 100, TINY.read_bytes()[:-1], TINY.read_bytes()[:150], b"PK\x03\x04zip"],
    ids=["empty", "text", "zeros", "ones", "cut", "half", "zip"],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelRefused, match=r"broken\.onnx") as caught:
        open_session(path, "cpu")
    assert caught.value.exit_code == ExitCode.MODEL_REFUSED
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="cannot read"):
        open_session(tmp_path / "none.onnx", "cpu")


def external_tensor(name: str, location: str) -> bytes:
    """Return a TensorProto float [1, 1, 3, 3] whose values lie in another file."""
    entry = field(1, b"location") + field(2, location.encode())
    sizes = b"".join(varint(1 << 3) + varint(n) for n in (1, 1, 3, 3))
    return sizes + varint(2 << 3) + varint(1) + field(8, name.encode()) + field(13, entry) + varint(14 << 3) + varint(1)


def with_external_kernel(location: str) -> bytes:
    """Return tiny.onnx with one more convolution, whose kernel lies in another file."""
    # A second graph field merges into the first one; its node reads the external tensor.
    node = field(1, b"grey") + field(1, b"outside") + field(2, b"unused") + field(4, b"Conv")
    return TINY.read_bytes() + field(7, field(1, node) + field(5, external_tensor("outside", location)))


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd", "sub/weights.bin"])
def test_external_data_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    """ONNX Runtime itself would look for it from the working directory, "../" included."""
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    for folder in (tmp_path, work, work / "sub"):
        np.full(9, 7, np.float32).tofile(folder / "weights.bin")
    monkeypatch.chdir(work)
    path = tmp_path / "external.onnx"
    path.write_bytes(with_external_kernel(location))
    with pytest.raises(ModelRefused, match="single file"):
        open_session(path, "cpu")


def test_external_data_is_found_wherever_a_tensor_can_be() -> None:
    tensor = external_tensor("w", "x")
    plain = field(8, b"w")
    attribute = {"t": 5, "tensors": 10}
    graphs = {
        "initializer": lambda t: field(5, t),
        "sparse values": lambda t: field(15, field(1, t)),
        **{name: (lambda t, n=number: field(1, field(5, field(n, t)))) for name, number in attribute.items()},
        "sub-graph": lambda t: field(1, field(5, field(6, field(5, t)))),
        "sub-graphs": lambda t: field(1, field(5, field(11, field(5, t)))),
    }
    for name, make in graphs.items():
        assert has_external_data(field(7, make(tensor))), name
        assert not has_external_data(field(7, make(plain))), name
    function = lambda t: field(25, field(7, field(5, field(5, t))))  # noqa: E731
    assert has_external_data(function(tensor))
    assert not has_external_data(function(plain))


def test_a_nesting_bomb_is_refused() -> None:
    graph = b""
    for _ in range(200):
        graph = field(1, field(5, field(6, graph)))
    with pytest.raises(ValueError, match="nested"):
        has_external_data(field(7, graph))


def test_appended_metadata_is_what_onnx_runtime_reads(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(with_metadata(TINY.read_bytes(), {METADATA_KEY: "{}", "other": "ü" * 200}))
    with open_session(path, "cpu") as session:
        assert dict(session.metadata) == {METADATA_KEY: "{}", "other": "ü" * 200}
    assert metadata_of(path.read_bytes()) == {METADATA_KEY: "{}", "other": "ü" * 200}


def test_a_graph_of_several_inputs_and_outputs_runs_by_run_all(opened: Open) -> None:
    embedding, boxes = np.zeros((1, 3, 16, 16), np.float32), np.array([[[4, 8, 20, 24], [8, 8, 12, 12]]], np.float32)
    with opened(TINY.parent / "tiny_decoder.onnx") as session:
        maps, overlaps = session.run_all(embedding, boxes)
        assert maps.shape == (1, 2, 1, 16, 16)
        assert (maps > 0).sum(axis=(0, 2, 3, 4)).tolist() == [16, 1]
        assert overlaps == pytest.approx(np.array([[4 / 64, 8 / 64]]))
        with pytest.raises(ModelRefused, match=r"2 input\(s\) and 2 output\(s\)"):
            session.run(embedding)
        with pytest.raises(ModelRefused, match=r"takes 2 input\(s\) \(embedding, boxes\), got 1"):
            session.run_all(embedding)
        for wrong in ((boxes, embedding), (embedding, boxes[0]), (embedding, boxes.astype(np.float64))):
            with pytest.raises(ModelRefused, match=r"float32 .* as (embedding|boxes)"):
                session.run_all(*wrong)
    with pytest.raises(ModelRefused, match="closed"):
        session.run_all(embedding, boxes)


def test_labels_come_as_bytes(opened: Open) -> None:
    with opened(TINY.parent / "tiny_multiclass.onnx") as session:
        assert session.run(batch(2) - 1).dtype == np.uint8
        assert session.run_all(batch(2) + 1)[0].min() == 255, "white is NaN to this graph"
