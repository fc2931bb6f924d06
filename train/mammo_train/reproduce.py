"""`mammo-train reproduce`: every published system trained, evaluated, exported and run, one row of results for each.

A row holds what the study reported and what was measured here, each with its own data; a system that was not trained
has a row that says why. Nothing in a measured column comes from anywhere but the run whose weights' hash stands beside
it.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mammo_runtime.atomic import write_text
from mammo_runtime.errors import MammoError, UsageError
from mammo_runtime.machine import machine_record
from mammo_runtime.mammogram import Modality
from mammo_runtime.spec import ModelSpec
from mammo_train import checkpoint, models, presets, recipe, results, run_data
from mammo_train.config import TrainConfig
from mammo_train.dataset import read_labelled
from mammo_train.headline import headline
from mammo_train.index import IndexRow, read_index
from mammo_train.metrics import reported_row_problem
from mammo_train.phantom_sets import write_phantom_set
from mammo_train.study_presets import preset
from mammo_train.systems import System, chosen_systems

SCHEMA_VERSION = 1
INDEXES: Mapping[Modality, str] = {
    Modality.MAMMOGRAPHY: "splits/mammo_full.csv",
    Modality.ULTRASOUND: "splits/busi.csv",
    Modality.HISTOPATHOLOGY: "splits/bcss.csv",
}
"""Index below the data root; `mammo-train index` makes one for each collection."""
INFERRED = 8
"""Test pictures that `mammo-infer` is run on."""
TINY_EPOCHS = 2

Report = Callable[[str], None]


@dataclass(frozen=True)
class Reproduction:
    """What a user asked `mammo-train reproduce` for."""

    output: Path
    root: Path | None = None
    """Data; None with `tiny`."""
    index: Path | None = None
    """Index of one system's pictures; None: the one of `INDEXES` below `root`."""
    budget_min: float | None = None
    """Minutes of training for each system; None: the preset's epochs."""
    tiny: bool = False
    """Tiny networks on phantoms: proves the path, measures nothing."""
    scale: float = 1.0
    """Factor on the preset's grid."""
    encoder_weights: Path | None = None
    """MobileNetV2 encoder for the systems that start from one."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `TrainConfig` over every preset's."""
    width: str | None = None
    """Width of the networks that have it; None: the one in `SYSTEMS`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options over the preset's, of the networks that have them."""


def reproduce(name: str, wanted: Reproduction, report: Report = print) -> list[dict[str, Any]]:
    """Reproduce one system or "all"; returns the rows, which also lie in OUT/reproduction.json.

    Interrupted, the same call goes on: runs resume. A system that cannot be trained gets a row with the reason and the
    next one follows. Raises UsageError when the call itself makes no sense.
    """
    systems = chosen_systems(name)
    if wanted.root is None and not wanted.tiny:
        raise UsageError("give the data with --root DIR, or --tiny for synthetic phantoms")
    if wanted.index is not None and len(systems) > 1:
        raise UsageError("--index is for one system; `all` takes the indexes below --root")
    possible = {option for system in systems.values() for option in models.known(system.architecture).options}
    if foreign := sorted(set(wanted.options) - possible):
        raise UsageError(f"no network of {name} has an option {', '.join(foreign)}")
    # The next system trains while the last one is exported and run, each in a process of its own.
    with ThreadPoolExecutor(1) as beside:
        waiting = []
        for key, system in systems.items():
            report(f"== {key}")
            row = _trained(key, system, wanted, report)
            waiting.append(beside.submit(_finished, row, wanted.output / key, report))
        rows = [future.result() for future in waiting]
    stored = {row["system"]: row for row in read_rows(wanted.output)}
    table = [stored.get(key) or _blank_row(key, system, wanted) for key, system in chosen_systems("all").items()]
    write_table(wanted.output / "reproduction.json", table)
    return rows


def read_rows(output: Path) -> list[dict[str, Any]]:
    """Return the rows of every system reproduced into a folder so far."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("*/row.json"))]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows as one versioned JSON file."""
    write_text(path, json.dumps({"schema_version": SCHEMA_VERSION, "rows": list(rows)}, indent=1) + "\n")


def _blank_row(key: str, system: System, wanted: Reproduction) -> dict[str, Any]:
    """Return the row of a system before anything was done."""
    network = _network(system, wanted)
    return {
        "system": key,
        "study": system.study,
        "architecture": system.architecture,
        "network": network,
        "parameters": models.count_parameters(system.architecture, **network),
        "preset": system.preset,
        "note": preset(system.architecture, system.preset).note,
        "reported": [{**asdict(r), "problem": reported_row_problem(r.values)} for r in system.reported],
        "status": "not trained",
        "why": f"not run here: mammo-train reproduce {key}",
        "measured": None,
    }


def _trained(key: str, system: System, wanted: Reproduction, report: Report) -> dict[str, Any]:
    """Train and evaluate one system; whatever stops it becomes its row."""
    row = _blank_row(key, system, wanted)
    row |= {"why": "", "machine": {**machine_record(), "torch": _torch_version()}, "deviations": _deviations(wanted)}
    try:
        index, root = _data(system.modality, wanted)
    except UsageError as error:
        report(f"{key}: not trained: {error}")
        return {**row, "why": str(error)}
    run = wanted.output / key / "run"
    try:
        choices = _choices(key, system, wanted)
        config = _config(choices, wanted)
        recipe.train(index, root, run, choices, config, report)
        recipe.evaluate_run(run, config.test_fold, index, root, report)
        return {**row, **_measured(run, config), "status": "trained"}
    except MammoError as error:
        return _failed(row, error, report)


def _finished(row: dict[str, Any], folder: Path, report: Report) -> dict[str, Any]:
    """Export a trained system and run it as a site would; writes and returns its row."""
    if row["status"] == "trained":
        try:
            row = {**row, "exported": _export(folder / "run", folder / "bundle")}
            row = {**row, "inferred": _infer(folder)}
            report(f"{row['system']}: exported and run")
        except MammoError as error:
            row = _failed(row, error, report)
    write_text(folder / "row.json", json.dumps(row, indent=1) + "\n")
    return row


def _failed(row: dict[str, Any], error: MammoError, report: Report) -> dict[str, Any]:
    report(f"{row['system']}: failed: {error}")
    return {**row, "status": "failed", "why": str(error)}


def _network(system: System, wanted: Reproduction) -> dict[str, Any]:
    known = models.known(system.architecture)
    width = models.TINY if wanted.tiny else wanted.width
    wished = {name: value for name, value in wanted.options.items() if name in known.options}
    options: dict[str, Any] = {**preset(system.architecture, system.preset).network, **system.network, **wished}
    return {**options, "width": width} if width in known.widths else options


def _deviations(wanted: Reproduction) -> dict[str, Any]:
    """Return in what a run differs from its study's preset by the user's wish."""
    own = {"budget_min": wanted.budget_min, "tiny": wanted.tiny, "scale": wanted.scale}
    return {**own, **wanted.options, **wanted.overrides}


def _choices(key: str, system: System, wanted: Reproduction) -> recipe.Choices:
    size = None
    if wanted.tiny:
        size = (system.tiny_side, system.tiny_side)
    encoder = str(wanted.encoder_weights) if system.pretrained and wanted.encoder_weights else "none"
    wish = presets.Wish(system.mode, size=size, scale=wanted.scale)
    return recipe.Choices(
        system.architecture, key, system.preset, wish, _network(system, wanted), encoder_weights=encoder
    )


def _config(choices: recipe.Choices, wanted: Reproduction) -> TrainConfig:
    given: dict[str, Any] = {"max_minutes": wanted.budget_min, **wanted.overrides}
    if wanted.tiny:
        given |= {"epochs": TINY_EPOCHS, "repeats": 1, "batch_size": 4, "rate": 1e-3}
    return recipe.config_for(choices, None, given)


def _data(modality: Modality, wanted: Reproduction) -> tuple[Path, Path]:
    """Return index and root. Raises UsageError naming the way to get the data when there is none."""
    if wanted.tiny:
        root = wanted.output / "phantoms"
        return write_phantom_set(root, modality), root
    assert wanted.root is not None
    index = wanted.index or wanted.root / INDEXES[modality]
    if not index.is_file():
        raise UsageError(
            f"no {modality.value} pictures are at hand (there is no {INDEXES[modality]} below the data's root); "
            "`mammo-train index --help` says where to get a collection and how to index it"
        )
    return index, wanted.root


def _measured(run: Path, config: TrainConfig) -> dict[str, Any]:
    """Return what the finished run measured, and with which settings."""
    spec, blocks = checkpoint.load_spec(run), results.read_metrics(run)
    return {
        "trained_s": spec.training["epochs_s"],
        "measured": {
            "data": [f"{d['title']} ({d['images']} training pictures)" for d in spec.training["data"]],
            "validation": headline(blocks["validation"], config.validation_kinds),
            "test": headline(blocks[f"fold_{config.test_fold}"], config.validation_kinds),
        },
        "settings": _settings(spec, config),
        "weights_sha256": spec.parent_sha256,
    }


def _settings(spec: ModelSpec, config: TrainConfig) -> dict[str, Any]:
    kept = ("train_images", "train_patients", "epochs", "best_epoch", "stopped_by", "precision", "encoder_weights")
    return {
        "input": f"{spec.input.mode.value} {spec.input.channels}x{spec.input.height}x{spec.input.width}",
        "cleaning": [step.name for step in spec.input.cleaning],
        "threshold": spec.threshold,
        **{name: spec.training[name] for name in kept if name in spec.training},
        "config": json.loads(config.to_json()),
    }


def _export(run: Path, bundle: Path) -> dict[str, Any]:
    """Export through `mammo-export` itself, in a process of its own: training must not know the exporter."""
    wish = ("--precision", "fp32", "--limit", "6")
    done = _command("mammo_export.cli", str(run), "-o", str(bundle), "--overwrite", *wish, "--json", "--quiet")
    gates = json.loads(done.stdout)["precisions"]["fp32"]
    return {"verdict": gates["verdict"], "gates": gates["gates"]}


def _infer(folder: Path) -> dict[str, Any]:
    """Run `mammo-infer` on test pictures as a site would; boxes, where the model needs them, come from the truth."""
    spec, config = checkpoint.load_spec(folder / "run"), results.read_config(folder / "run")
    index, root = run_data.read_data_json(folder / "run")
    rows = [row for row in read_index(index, root) if row.fold == config.test_fold and row.kind in config.kinds]
    usable = [row for row in rows if row.mask is not None or not spec.takes_boxes][:INFERRED]
    arguments = [str(row.image) for row in usable]
    if spec.takes_boxes:
        write_boxes(folder / "boxes.csv", usable)
        arguments += ["--boxes", str(folder / "boxes.csv")]
    output = folder / "inferred"
    _command("mammo_runtime.cli", *arguments, "-o", str(output), "--model", str(folder / "bundle"), "--overwrite", "-q")
    summary = json.loads((output / "run.json").read_text(encoding="utf-8"))
    return {"images": len(usable), "ok": summary["counts"]["ok"], "exit_code": summary["exit_code"],
            "backend": summary["backend"]}  # fmt: skip


def write_boxes(path: Path, rows: Sequence[IndexRow]) -> None:
    """Write the boxes of the true lesions as `mammo-infer --boxes` reads them."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["image", "x", "y", "width", "height"])
        for row in rows:
            table.writerows([row.image, b.x, b.y, b.width, b.height] for b in read_labelled(row).boxes)


def _command(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one of our commands. Raises MammoError with its last line when it fails."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise MammoError(f"{module.split('.')[0]} ended with exit code {done.returncode}: {' '.join(last)}")
    return done


def _torch_version() -> str:
    import torch

    return str(torch.__version__)
