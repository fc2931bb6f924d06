"""Everything that was checked at export, once more on this machine; without torch and onnx, what a site can check."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mammo_runtime.acceptance import check_acceptance, checkable, require_acceptance
from mammo_runtime.bundle import Bundle, load_key, read_bundle, vouched_for
from mammo_runtime.errors import GateMissed, ModelRefused, UsageError

Report = Callable[[str], None]
BACKEND = "cpu"


def verify(
    folder: Path,
    run: Path | None,
    index: Path | None,
    root: Path | None,
    fold: int,
    limit: int | None,
    report: Report = print,
) -> dict[str, Any]:
    """Repeat the checks of an export on this machine and return the new measurements, JSON-ready.

    Always: hashes, specs, acceptance inputs. Where onnx is installed: the graphs' form. With the run: FP32's parity
    with the trained network. With an index: every other precision against FP32 on its images. Raises ModelRefused (a
    file changed, is missing or is of another run), GateMissed, and UsageError.
    """
    bundle = read_bundle(folder)
    for name in bundle.files:
        vouched_for(bundle, folder / name)
    report(f"hashes: {len(bundle.files)} files unchanged")
    for key in bundle.precisions:
        load_key(bundle, key).close()
    report(f"specs: {', '.join(bundle.precisions)} as promised")
    _check_forms(bundle, report)
    found: dict[str, Any] = {"acceptance": _accepted(bundle, report), "parity": None, "differences": None}
    if run is not None:
        found["parity"] = _parity(bundle, run, (index, root, fold, limit), report)
    else:
        report("parity was not measured again: that needs --run, the run it was exported from")
    if set(bundle.precisions) == {"fp32"}:
        report("accuracy: there is no other precision to measure against FP32")
    elif index is not None or run is not None:
        found["differences"] = _differences(bundle, run, (index, root, fold, limit), report)
    else:
        report("accuracy was not measured again: that needs --index and --root, or --run")
    return found


def _check_forms(bundle: Bundle, report: Report) -> None:
    if find_spec("onnx") is None:
        report("form: not checked, onnx is not installed here")
        return
    import onnx

    from mammo_export.files import stored_files
    from mammo_export.form import check_form
    from mammo_export.qdq_lint import lint

    stored_files(bundle, bundle.precisions["fp32"])  # refuses another ending than the exporter's

    for key, entry in bundle.precisions.items():
        for name in filter(None, (entry["file"], entry.get("prompt_decoder"))):
            graph = onnx.load(bundle.folder / name, load_external_data=False)
            check_form(graph, key)
            wrong = lint(graph) if key == "int8" else ()
            if wrong:
                raise GateMissed(f"{name}: {'; '.join(wrong)}")
    report(f"form: {', '.join(bundle.precisions)} as promised")


def _accepted(bundle: Bundle, report: Report) -> list[dict[str, Any]]:
    if not bundle.acceptance:
        report("acceptance: this bundle holds no acceptance inputs")
        return []
    found = []
    for precision in checkable(bundle, BACKEND):
        checked = check_acceptance(bundle, BACKEND, precision)
        report(checked.line)
        require_acceptance(checked)
        found.append(checked.to_dict())
    return found


def _parity(bundle: Bundle, run: Path, asked: tuple[Any, ...], report: Report) -> dict[str, Any]:
    from mammo_export.files import stored_files
    from mammo_export.gates import require_parity
    from mammo_export.images import ImageChoice, chosen_rows
    from mammo_export.source import open_source
    from mammo_export.steps import measured_parity
    from mammo_export.words import parity_line

    rows = chosen_rows(run, ImageChoice(*asked))
    source = open_source(run)
    if source.trained is None or source.weights_sha256 != bundle.spec.parent_sha256:
        raise ModelRefused(f"{bundle.folder} was not exported from {run} (other weights). Give its own run to --run")
    parity = measured_parity(source, stored_files(bundle, bundle.precisions["fp32"]), rows)
    report(parity_line(parity, source.trained.spec, len(rows)))
    require_parity(parity)
    return parity.to_dict()


def _differences(bundle: Bundle, run: Path | None, asked: tuple[Any, ...], report: Report) -> dict[str, Any]:
    """Score every precision against FP32 on real images. Raises GateMissed when one misses a limit that it kept."""
    from mammo_export.accuracy import misses
    from mammo_export.difference import difference
    from mammo_export.images import ImageChoice, chosen_pictures
    from mammo_export.source import ignored_codes

    pictures = chosen_pictures(run or bundle.folder, bundle.spec, ImageChoice(*asked))
    rows = pictures.judged(bundle.spec)
    if not rows:
        raise UsageError("the index holds no image of the kinds this model was trained on; give another --index")
    codes = (0,) if run is None else ignored_codes(run)
    reference = _items(bundle, "fp32", rows, codes)
    found, missed = {}, []
    for key, entry in bundle.precisions.items():
        if key == "fp32":
            continue
        measured = difference(reference, _items(bundle, key, rows, codes))
        found[key] = measured.to_dict()
        mean = "no score" if measured.mean is None else f"{measured.mean:+.4f}"
        report(f"{key}: score {mean} against FP32 on {measured.n} items")
        if entry.get("verdict") != "waived":
            missed += [f"{key}: {sentence}" for sentence in misses(key, measured, bundle.spec)]
    if missed:
        raise GateMissed(f"{bundle.folder} misses on these images what it kept at export: {'; '.join(missed)}")
    return found


def _items(bundle: Bundle, key: str, rows: Any, codes: tuple[int, ...]) -> Any:
    import onnx

    from mammo_export.files import opened
    from mammo_export.judged_as import judged_as
    from mammo_export.score import scored

    entry = bundle.precisions[key]
    graphs = [onnx.load(bundle.folder / name) for name in filter(None, (entry["file"], entry.get("prompt_decoder")))]
    model, *decoders = [judged_as(key, graph) for graph in graphs]
    with opened(model) as session:
        if not decoders:
            return scored(bundle.spec, session, None, rows, ignore_codes=codes)
        with opened(decoders[0]) as decoder:
            return scored(bundle.spec, session, decoder, rows, ignore_codes=codes)
