"""What the export tests share: a tiny network, exported once for the whole session, and ways to falsify it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from mammo_export.to_onnx import add_activation, logits_graph_from_network, with_parent
from mammo_runtime.hashing import file_sha256
from mammo_runtime.preprocess import preprocess
from mammo_runtime.readers import read_image
from mammo_runtime.session import Session
from mammo_runtime.spec import METADATA_KEY, InputMode, InputSpec, ModelSpec
from mammo_train import checkpoint, models
from mammo_train.index import IndexRow, read_index

ARCHITECTURE = "mobilenetv2_resunet"
ROWS, COLUMNS = 200, 160
LESIONS: tuple[list[tuple[int, int]], ...] = ([(50, 90)], [(40, 60), (60, 140)], [(70, 110)], [], [(45, 100)])
"""Centres (x, y) of the blobs of each phantom."""


@dataclass(frozen=True)
class Exported:
    """A network with what the exporter made of it."""

    network: torch.nn.Module
    spec: ModelSpec
    logits: onnx.ModelProto
    model: onnx.ModelProto


class Altered:
    """A session whose answers (and spec) a test falsifies."""

    def __init__(
        self, session: Session, answer: Callable[[np.ndarray], np.ndarray] = lambda p: p, spec: ModelSpec | None = None
    ) -> None:
        self._session, self._answer = session, answer
        self.metadata = session.metadata if spec is None else {METADATA_KEY: spec.to_json()}
        self.backend = session.backend

    def run(self, batch: np.ndarray) -> np.ndarray:
        return self._answer(self._session.run(batch))

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Altered:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def changed_weight(model: onnx.ModelProto, value: float) -> onnx.ModelProto:
    """Return a copy with one value of the first convolution's weights set."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = next(t for t in changed.graph.initializer if len(t.dims) == 4)
    weight = onnx.numpy_helper.to_array(tensor).copy()
    weight.flat[0] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    return changed


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five phantoms with blobs: p0 to p3 in fold 1 (p1 has two masses, p3 none), p4 in fold 2."""
    root = tmp_path_factory.mktemp("phantoms")
    rng = np.random.default_rng(3)
    rows = []
    for number in range(5):
        picture = np.zeros((ROWS, COLUMNS), np.float32)
        cv2.ellipse(picture, (0, ROWS // 2), (120, 90), 0, 0, 360, 0.4, -1)
        picture[picture > 0] += rng.normal(0, 0.03, int((picture > 0).sum()))
        mask = np.zeros((ROWS, COLUMNS), np.uint8)
        for centre in LESIONS[number]:
            cv2.circle(mask, centre, 10 + number, 255, -1)
        picture = cv2.GaussianBlur(picture + 0.4 * (mask > 0), (0, 0), 2)
        cv2.imwrite(str(root / f"p{number}.png"), np.clip(picture * 255, 0, 255).astype(np.uint8))
        cv2.imwrite(str(root / f"p{number}_mask.png"), mask)
        kind, fold = ("normal" if number == 3 else "mass"), (2 if number == 4 else 1)
        rows.append([f"p{number}.png", "" if number == 3 else f"p{number}_mask.png", f"patient{number}", fold, kind])
    with (root / "index.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["image", "mask", "patient", "fold", "kind"], *rows])
    return root


@pytest.fixture(scope="session")
def rows(collection: Path) -> tuple[IndexRow, ...]:
    """Index rows of fold 1: two phantoms with one mass, one with two, one without."""
    return tuple(row for row in read_index(collection / "index.csv", collection) if row.fold == 1)


@pytest.fixture(scope="session")
def run_folder(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a 64x64 network whose random weights are scaled so that it draws masks."""
    torch.manual_seed(4)
    torch.set_num_threads(1)
    network = models.build(ARCHITECTURE).eval()
    size = InputSpec(height=64, width=64)
    picture = torch.from_numpy(preprocess(read_image(collection / "p0.png"), size)[0])
    with torch.no_grad():
        values = network(picture)
        network.head.weight *= 1 / values.std()
        network.head.bias.copy_(-(network(picture) - network.head.bias).quantile(0.8))
    run = tmp_path_factory.mktemp("runs") / "tiny"
    run.mkdir()
    checkpoint.save_model(run, network.state_dict())
    spec = ModelSpec("tiny", ARCHITECTURE, input=size, toolkit_version="test", licence="Phantoms: no conditions.")
    checkpoint.save_spec(run, replace(spec, parent_sha256=checkpoint.weights_sha256(run)))
    index = collection / "index.csv"
    places = {"index": str(index), "root": str(collection), "index_sha256": file_sha256(index)}
    (run / "data.json").write_text(json.dumps(places))
    (run / "MODEL_CARD.md").write_text("# tiny\n")
    (run / "metrics.json").write_text('{"validation": {"dice": 0.5}}\n')
    return run


@pytest.fixture(scope="session")
def exported(run_folder: Path) -> Exported:
    """The run's graph, made once for all tests (about ten seconds)."""
    network, trained = checkpoint.load_model(run_folder)
    spec = with_parent(trained, checkpoint.weights_sha256(run_folder))
    logits = logits_graph_from_network(network, spec)
    return Exported(network, spec, logits, add_activation(logits, spec))


@pytest.fixture(scope="session")
def exported_roi(exported: Exported) -> Exported:
    """The same network, taken for one that looks at windows round boxes; it answers less there, hence the threshold."""
    windows = replace(exported.spec.input, mode=InputMode.ROI)
    spec = replace(exported.spec, name="tiny-roi", input=windows, threshold=0.3)
    return Exported(exported.network, spec, exported.logits, add_activation(exported.logits, spec))
