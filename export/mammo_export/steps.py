"""From a trained run to a bundle, read from top to bottom; nothing is written before FP32 has passed its gates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mammo_export.bundle import LICENCE, METRICS, MODEL_CARD, check_target, write_bundle
from mammo_export.calibration import WANTED, choose_calibration
from mammo_export.files import Files, opened_files
from mammo_export.form import check_form, form_line, form_of
from mammo_export.gates import Parity, require_parity
from mammo_export.images import Pictures
from mammo_export.memory import Memory
from mammo_export.outcome import Outcome
from mammo_export.pages import extras_of
from mammo_export.parity import prove_parity
from mammo_export.precisions import make_fp16, make_int8
from mammo_export.quantize import Form
from mammo_export.source import Source
from mammo_export.timing import timed
from mammo_export.words import outcome_line, parity_line
from mammo_export.workshop import Report, Workshop
from mammo_runtime.bundle import Bundle
from mammo_runtime.errors import GateMissed, UsageError
from mammo_runtime.spec import Precision
from mammo_train.index import IndexRow

ALL = tuple(precision.value for precision in Precision)


@dataclass(frozen=True)
class Wish:
    """What a user asked `mammo-export` for."""

    precisions: tuple[str, ...] = ALL
    """FP32 is always made: every other one comes from it and is judged by it."""
    calibrate: int = WANTED
    """Inputs at most that INT8 is calibrated on."""
    rank: bool = True
    """Measure every group's effect on accuracy, for the report."""
    allow_miss: tuple[str, ...] = ()
    """Keys that ship in spite of a missed gate; "int8" means both of its forms."""
    waived_by: str = ""
    """Who decided that."""
    pictures: bool = True
    """Show the worst cases in the report, which travels with the bundle; False where pictures may not be passed on."""
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.allow_miss and not self.waived_by.strip():
            raise UsageError("--allow-miss needs --waived-by: the bundle records who decided to ship a missed gate")
        if Precision.FP32.value in self.allow_miss:
            raise UsageError("an FP32 graph that is not the trained network is never shipped")


def bundle_from(source: Source, pictures: Pictures, target: Path, wish: Wish, report: Report = print) -> Bundle:
    """Export FP32 and the other precisions asked for, judge each and write the bundle with those that pass.

    A killed export goes on where it stopped when it is called again. Raises UsageError (target exists, no usable
    image, a leaking calibration set) and GateMissed: for FP32 nothing is written; for another precision the bundle is
    written without it, and its report says why.
    """
    check_target(target, wish.overwrite)
    spec = source.spec
    report(f"{spec.name}: {spec.architecture}, {spec.input.mode.value} {spec.input.height}x{spec.input.width}")
    fp32 = _prove_fp32(source, pictures.proof, report)
    memory = Memory(target.resolve().with_name(f".{target.resolve().name}.work"))
    judged = pictures.judged(spec)
    lower = [name for name in ALL if name in wish.precisions and name != Precision.FP32.value]
    outcomes = [fp32]
    shop = speed = None
    if lower:
        calibration = choose_calibration(pictures.training, pictures.protected, spec, wish.calibrate)
        shop = Workshop(source, judged, calibration, memory, report)
        report(f"judging on {len(judged)} validation pictures, calibrating on {calibration.count} inputs")
        for name in lower:
            outcomes += _made(shop, name, wish)
        speed, outcomes = timed(shop, outcomes)
    for outcome in outcomes[1:]:
        report(outcome_line(outcome))
    extras = extras_of(source, outcomes, shop, speed, wish.pictures)
    proven = {outcome.key: outcome.proven() for outcome in outcomes if outcome.ships}
    bundle = write_bundle(target, spec, proven, source.folder, source.weights_sha256, wish.overwrite, extras)
    memory.remove()
    missing = [name for name in (MODEL_CARD, METRICS, LICENCE) if name not in bundle.files]
    without = f"; the run has no {', '.join(missing)}" if missing else ""
    report(f"wrote {target}: {', '.join(sorted(bundle.files))}{without}")
    return bundle


def require_all(bundle: Bundle) -> None:
    """Raise GateMissed naming every precision that was asked for and missed a gate."""
    missed = {key: entry for key, entry in bundle.not_shipped.items() if entry.get("verdict") == "missed"}
    if missed:
        told = "; ".join(f"{key}: {'; '.join(entry['why'])}" for key, entry in missed.items())
        raise GateMissed(f"{bundle.folder} was written without {', '.join(missed)}. {told}")


def _prove_fp32(source: Source, rows: Sequence[IndexRow], report: Report) -> Outcome:
    """Prove the FP32 graph against the trained network; of a bundle, whose network is not at hand, its form."""
    files = source.files
    for graph in files.shipped:
        check_form(graph)
    described = "; decoder: ".join(form_line(graph) for graph in files.shipped)
    gates = {**source.recorded, "form": form_of(files.model)}
    if files.decoder is not None:
        gates["decoder_form"] = form_of(files.decoder)
    if source.trained is None:
        report(f"ONNX graph: {described}; its parity with the trained network was proved when it was exported")
    else:
        report(f"ONNX graph: {described}; comparing on {len(rows)} images")
        parity = measured_parity(source, files, rows)
        report(parity_line(parity, source.trained.spec, len(rows)))
        require_parity(parity)
        gates = {"parity": parity.to_dict(), **gates}
    return Outcome("fp32", files.shipped, files.shipped, None, gates)


def measured_parity(source: Source, files: Files, rows: Sequence[IndexRow]) -> Parity:
    """Compare graphs with the source's trained network on real images."""
    assert source.trained is not None
    with opened_files(files) as graphs:
        return prove_parity(source.trained, graphs, rows)


def _made(shop: Workshop, name: str, wish: Wish) -> list[Outcome]:
    """Make one precision; INT8 has two forms."""
    made = [make_fp16(shop)] if name == Precision.FP16.value else [make_int8(shop, form, wish.rank) for form in Form]
    allowed = {*wish.allow_miss, *(form.value for form in Form if Precision.INT8.value in wish.allow_miss)}
    return [one.waived(wish.waived_by) if one.key in allowed else one for one in made]
