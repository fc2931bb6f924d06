"""What the export tests share: a tiny network of each task, exported once a session, and ways to falsify it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch

from mammo_export.activation import add_activation
from mammo_export.files import Files, files_from_network, opened_files
from mammo_export.gates import Parity
from mammo_export.parity import prove_parity
from mammo_export.tally import Graphs
from mammo_export.to_onnx import with_parent
from mammo_runtime.hashing import file_sha256
from mammo_runtime.preprocess import preprocess
from mammo_runtime.readers import read_image
from mammo_runtime.session import Session
from mammo_runtime.spec import ACTIVATION_OF, METADATA_KEY, Fit, InputMode, InputSpec, ModelSpec, Task
from mammo_train import checkpoint, models
from mammo_train.index import IndexRow, read_index
from mammo_train.torch_session import TorchSession

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
    decoder: onnx.ModelProto | None = None

    @property
    def files(self) -> Files:
        """The graphs as the exporter holds them."""
        return Files(self.logits, self.model, self.decoder)


class Altered:
    """A session whose answers (the first, and the others) and spec a test falsifies."""

    def __init__(
        self,
        session: Session,
        answer: Callable[[np.ndarray], np.ndarray] = lambda p: p,
        others: Callable[[np.ndarray], np.ndarray] = lambda p: p,
        spec: ModelSpec | None = None,
    ) -> None:
        self._session, self._answer, self._others = session, answer, others
        self.metadata = session.metadata if spec is None else {METADATA_KEY: spec.to_json()}
        self.backend = session.backend

    def run(self, batch: np.ndarray) -> np.ndarray:
        return self._answer(self._session.run(batch))

    def run_all(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        first, *others = self._session.run_all(*inputs)
        return (self._answer(first), *map(self._others, others))

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Altered:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def measured(
    true: Exported,
    rows: Sequence[IndexRow],
    altered: Mapping[str, Any] | None = None,
    altered_logits: Mapping[str, Any] | None = None,
    altered_decoder: Mapping[str, Any] | None = None,
    **parts: Any,
) -> Parity:
    """Prove `true` with some of its parts (network, logits, model, decoder) replaced and its answers `altered`."""
    tried = replace(true, **parts)
    reference = TorchSession(tried.network, true.spec)
    with opened_files(tried.files) as graphs:
        tried_graphs = Graphs(
            Altered(graphs.logits, **altered_logits or {}),
            Altered(graphs.model, **altered or {}),
            None if graphs.decoder is None else Altered(graphs.decoder, **altered_decoder or {}),
        )
        return prove_parity(reference, tried_graphs, rows)


def changed_weight(model: onnx.ModelProto, value: float) -> onnx.ModelProto:
    """Return a copy with one value of the first convolution's (or linear layer's) weights set."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    weights = [t for t in changed.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1]
    tensor = next((t for t in weights if len(t.dims) == 4), weights[0])
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
    spec = ModelSpec("tiny", ARCHITECTURE, input=size, toolkit_version="test", licence="Phantoms: no conditions.")
    return finished_run(tmp_path_factory.mktemp("runs") / "tiny", network, spec, collection)


def finished_run(run: Path, network: torch.nn.Module, spec: ModelSpec, collection: Path) -> Path:
    """Write what `mammo-train fit` leaves behind."""
    run.mkdir()
    checkpoint.save_model(run, network.state_dict())
    checkpoint.save_spec(run, replace(spec, parent_sha256=checkpoint.weights_sha256(run)))
    index = collection / "index.csv"
    places = {"index": str(index), "root": str(collection), "index_sha256": file_sha256(index)}
    (run / "data.json").write_text(json.dumps(places))
    (run / "MODEL_CARD.md").write_text(f"# {spec.name}\n")
    (run / "metrics.json").write_text('{"validation": {"dice": 0.5}}\n')
    return run


def exported_run(run: Path) -> Exported:
    """Return a run's graphs (2 to 15 seconds)."""
    network, trained = checkpoint.load_model(run)
    spec = with_parent(trained, checkpoint.weights_sha256(run))
    files = files_from_network(network, spec)
    return Exported(network, spec, files.logits, files.model, files.decoder)


@pytest.fixture(scope="session")
def exported(run_folder: Path) -> Exported:
    """The segmentation run's graph, made once for all tests."""
    return exported_run(run_folder)


@pytest.fixture(scope="session")
def exported_roi(exported: Exported) -> Exported:
    """The same network, taken for one that looks at windows round boxes; it answers less there, hence the threshold."""
    windows = replace(exported.spec.input, mode=InputMode.ROI)
    spec = replace(exported.spec, name="tiny-roi", input=windows, threshold=0.3)
    return Exported(exported.network, spec, exported.logits, add_activation(exported.logits, spec))


@pytest.fixture(scope="session")
def task_runs(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    """Finished runs of tiny 64x64 networks of the tasks beyond segmentation, scaled so that answers vary."""
    root = tmp_path_factory.mktemp("task_runs")
    return {task: make(root / task.value, collection) for task, make in TASK_RUNS.items()}


@pytest.fixture(scope="session")
def exported_tasks(task_runs: dict[Task, Path]) -> dict[Task, Exported]:
    """The graphs of `task_runs`, made once for all tests."""
    return {task: exported_run(run) for task, run in task_runs.items()}


def _inputs(collection: Path, size: InputSpec) -> torch.Tensor:
    """Return the phantoms of fold 1 as the network sees them."""
    pictures = [preprocess(read_image(collection / f"p{k}.png"), size)[0] for k in range(4)]
    return torch.from_numpy(np.concatenate(pictures))


def _spec(task: Task, architecture: str, size: InputSpec, classes: tuple[str, ...], **more: Any) -> ModelSpec:
    name, activation = f"tiny-{task.value}", ACTIVATION_OF[task]
    return ModelSpec(name, architecture, task=task, activation=activation, input=size, classes=classes, **more)


def _of_classes(run: Path, collection: Path, spec: ModelSpec) -> Path:
    """Spread the classes: every logit gets mean 0 and deviation 1 over the phantoms."""
    torch.manual_seed(5)
    network = models.build_for(spec).eval()
    last = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)][-1]
    with torch.no_grad():
        values = network(_inputs(collection, spec.input)).transpose(0, 1).flatten(1)
        scale = 1 / values.std(1)
        last.weight *= scale.reshape(-1, *[1] * (last.weight.dim() - 1))
        last.bias.copy_((last.bias - values.mean(1)) * scale)
    return finished_run(run, network, spec, collection)


def _multiclass_run(run: Path, collection: Path) -> Path:
    classes = ("tumour", "stroma", "fat")
    size = InputSpec(height=64, width=64)
    return _of_classes(run, collection, _spec(Task.MULTICLASS, "unet", size, classes, network={"width": "tiny"}))


def _classification_run(run: Path, collection: Path) -> Path:
    classes, options = ("normal", "benign", "malignant"), {"width": "tiny", "head": "pool"}
    size = InputSpec(height=64, width=64)
    return _of_classes(run, collection, _spec(Task.CLASSIFICATION, "vgg16_busi", size, classes, network=options))


def _prompted_run(run: Path, collection: Path) -> Path:
    torch.manual_seed(6)
    size, options = InputSpec(height=64, width=64, fit=Fit.CORNER), {"width": "tiny"}
    network = models.build("sam_box", **options).eval()
    picture = _inputs(collection, size)[:1]
    boxes = torch.tensor([[[8.0, 20.0, 40.0, 44.0]]])
    last = network.get_submodule("decoder.mask_decoder.output_hypernetworks_mlps.0.proj_out")
    with torch.no_grad():
        scale = 2 / network(picture, boxes)[0].std()
        last.weight *= scale
        last.bias *= scale
        threshold = float(torch.sigmoid(network(picture, boxes)[0]).quantile(0.3))
    spec = _spec(Task.PROMPTED, "sam_box", size, ("mass",), network=options, threshold=threshold,
                 prompt=network.prompt_spec())  # fmt: skip
    return finished_run(run, network, spec, collection)


TASK_RUNS: dict[Task, Callable[[Path, Path], Path]] = {
    Task.MULTICLASS: _multiclass_run,
    Task.CLASSIFICATION: _classification_run,
    Task.PROMPTED: _prompted_run,
}
