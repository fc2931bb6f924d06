"""How measurements and verdicts are said to people, the same in report and model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mammo_export.accuracy import UNKNOWN_SIZE, limits_of
from mammo_export.outcome import MISSED, NOT_FASTER, NOT_MADE, NOT_TIMED, PASSED, WAIVED
from mammo_runtime.spec import InputMode, Task
from mammo_train.evaluate_masks import SIZES
from mammo_train.grouping import PATIENT
from mammo_train.grouping import counted as groups_counted

LABELS: Mapping[str, str] = {
    "fp32": "FP32",
    "fp16": "FP16",
    "int8": "INT8 for TensorRT",
    "int8-cpu": "INT8 for CPUs",
}
"""Key → what it is called; in the order of pages."""
MINUS = "−"
FEW_PATIENTS = 30
"""Below these a percentile bootstrap is known to give intervals that are too narrow."""
BUSY_CORES = 0.25
"""Of other processes, on average, from which a timing is told with a reserve."""
NAMES_SHOWN = 12

Entry = Mapping[str, Any]
Evidence = Mapping[str, Any]


def entries(evidence: Evidence) -> dict[str, Entry]:
    """Return key → entry, of what is in the bundle and what is not, in the order of `LABELS`."""
    found = {**(evidence.get("not_shipped") or {}), **evidence["precisions"]}
    return {key: found[key] for key in (*LABELS, *sorted(set(found) - set(LABELS))) if key in found}


def ships(evidence: Evidence, key: str) -> bool:
    """Tell whether a key's graph is in the bundle."""
    return key in evidence["precisions"]


def label(key: str) -> str:
    """Return what a key is called."""
    return LABELS.get(key, key)


def score_name(spec: Mapping[str, Any]) -> str:
    """Return what is scored by a model's task."""
    return {Task.MULTICLASS.value: "macro Dice", Task.CLASSIFICATION.value: "accuracy"}.get(spec["task"], "Dice")


def items_name(spec: Mapping[str, Any]) -> str:
    """Return what has a score each."""
    boxes = spec["task"] == Task.PROMPTED.value or spec["input"]["mode"] == InputMode.ROI.value
    return "lesions" if boxes else "pictures"


def signed(value: float | None, digits: int = 4) -> str:
    """Return a number with sign; "–" for None. A true minus, so that it cannot be broken off from its number."""
    if value is None:
        return "–"
    text = f"{value:+.{digits}f}"
    return ("+" + text[1:] if float(text) == 0 else text).replace("-", MINUS)


def with_interval(values: Mapping[str, Any], digits: int = 4) -> str:
    """Return "+0.0012 (−0.0003 to +0.0027)" of {"mean", "low", "high"}."""
    if values.get("low") is None:
        return signed(values.get("mean"), digits)
    ends = " to ".join(signed(values[end], digits) for end in ("low", "high"))
    return f"{signed(values['mean'], digits)} ({ends})"


def exponent(value: float, digits: int = 1) -> str:
    """Return "3.1e−06", with a true minus."""
    return f"{value:.{digits}e}".replace("-", MINUS)


def counted(number: int, one: str) -> str:
    """Return "1 picture", "3 pictures"."""
    return f"{number} {one.removesuffix('s')}" + ("" if number == 1 else "s")


def groups_words(spec: Mapping[str, Any], number: int) -> str:
    """Return "3 patients", or what else the folds keep together."""
    return groups_counted(number, str((spec.get("training") or {}).get("grouped_by", PATIENT)))


def listed(names: Sequence[str], most: int = NAMES_SHOWN) -> str:
    """Return names with commas, "none" for none."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "none"


def megabytes(count: int | None) -> str:
    """Return a size in MB, "–" for None."""
    return "–" if count is None else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def size_of(evidence: Evidence, key: str) -> int | None:
    """Return the bytes of a key's files; None where it is not in the bundle."""
    entry = evidence["precisions"].get(key)
    if entry is None:
        return None
    if "bytes" in entry:
        return int(entry["bytes"])
    files = evidence.get("files") or {}
    known = [files[entry[name]]["bytes"] for name in ("file", "prompt_decoder") if entry.get(name) in files]
    return sum(known) if known else None


def difference_of(entry: Entry) -> Mapping[str, Any] | None:
    """Return what an entry says of its scores against FP32; None where it was not judged."""
    found = (entry.get("gates") or {}).get("difference")
    return found if found and found.get("items") else None


def sizes_of(found: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """Return size class → difference; nothing where no lesion's size is known."""
    sizes = (found or {}).get("by_size") or {}
    return {} if set(sizes) <= {UNKNOWN_SIZE} else {size: sizes[size] for size in SIZES if size in sizes}


def change_words(spec: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return a difference in one phrase."""
    if found["mean"] is None:
        return f"nothing could be scored on {found['items']} {items_name(spec)}"
    over = f"{counted(found['n'], items_name(spec))} of {groups_words(spec, found['patients'])}"
    return f"mean {score_name(spec)} changed by {with_interval(found)} against FP32 on {over}"


def speed_words(one: Mapping[str, Any]) -> str:
    """Return a timing in one phrase."""
    interval = f" (95 % {one['low']:.2f} to {one['high']:.2f})" if one.get("low") is not None else ""
    machine = one.get("machine") or {}
    named = machine.get("processor") or "the CPU here"
    kind = f", {machine['instruction_set']}" if machine.get("instruction_set") else ""
    return f"{one['ratio']:.2f} times as fast as {label(one['than'])}{interval} on {named}{kind}"


def status(evidence: Evidence, key: str, entry: Entry) -> tuple[str, str]:
    """Return ("good" | "reserve" | "bad" | "neutral", the verdict in one sentence)."""
    verdict = entry.get("verdict")
    if verdict == NOT_MADE:
        return "neutral", "Not made."
    if not ships(evidence, key):
        return "bad", "Not in the bundle: it missed a gate." if verdict == MISSED else f"Not in the bundle: {verdict}."
    if verdict == PASSED:
        return "good", "In the bundle: passed every gate."
    if verdict == NOT_FASTER:
        return "reserve", "In the bundle: passes accuracy, but is not faster here; “auto” does not choose it."
    if verdict == NOT_TIMED:
        return "good", "In the bundle: passes accuracy. Its speed shows only on the device that runs it."
    if verdict == WAIVED:
        by = (entry.get("waived") or {}).get("by") or "somebody unnamed"
        return "bad", f"In the bundle although it missed a gate: {by} decided that."
    return "reserve", f"In the bundle: {verdict}."


def facts(evidence: Evidence, entry: Entry) -> list[str]:
    """Return what was measured of one precision, one phrase each."""
    found, parity = difference_of(entry), (entry.get("gates") or {}).get("parity")
    said = [] if found is None else [change_words(evidence["spec"], found)]
    if parity:
        said.append(
            f"compared with the trained network on {counted(parity['images'], 'pictures')}{_parity_words(parity)}"
        )
    return said + [speed_words(one) for one in entry.get("speed") or ()]


def _parity_words(parity: Mapping[str, Any]) -> str:
    said = ""
    if parity.get("logit_error") is not None:
        said += f": logits within {exponent(parity['logit_error'])} of the largest"
    if parity.get("equal_pixels") is not None:
        said += f", {parity['equal_pixels']:.4%} of the mask pixels equal in the worst picture"
    return said


def headline(evidence: Evidence) -> str:
    """Return the verdict on the whole bundle in one sentence."""
    known = entries(evidence)
    inside = [key for key in known if ships(evidence, key)]
    waived = [key for key in inside if known[key].get("verdict") == WAIVED]
    out = [key for key in known if not ships(evidence, key) and known[key].get("verdict") != NOT_MADE]
    sound = [key for key in inside if key not in waived]
    told = f"{_joined([label(key) for key in sound])} {'is' if len(sound) == 1 else 'are'} in this bundle and passed"
    if out:
        told += f"; {_joined([label(key) for key in out])} {'is' if len(out) == 1 else 'are'} not in it"
    slow = [key for key in sound if known[key].get("verdict") == NOT_FASTER]
    if slow:
        told += f"; {_joined([label(key) for key in slow])} {'is' if len(slow) == 1 else 'are'} not faster here"
    if waived:
        told += f"; {_joined([label(key) for key in waived])} ships in spite of a missed gate"
    return told + "."


def warnings(evidence: Evidence) -> list[str]:
    """Return what a reader should know before trusting the numbers."""
    said = []
    spec, known = evidence["spec"], entries(evidence)
    if "parity" not in (known.get("fp32", {}).get("gates") or {}):
        said.append("FP32: its parity with the trained network is not on record in this bundle.")
    about: dict[str, list[str]] = {}
    for key, entry in known.items():
        found = difference_of(entry)
        for sentence in () if found is None else _reserves(found, spec):
            about.setdefault(sentence, []).append(label(key))
    said += [f"{_joined(names)}: {sentence}" for sentence, names in about.items()]
    few = (evidence.get("calibration") or {}).get("fewer_than_100")
    if few:
        said.append(
            f"INT8 was calibrated on {counted(evidence['calibration']['inputs'], 'inputs')}, fewer than 100: {few}."
        )
    return said + _timing_reserves(evidence.get("timing"))


def _reserves(found: Mapping[str, Any], spec: Mapping[str, Any]) -> list[str]:
    said = []
    for name, words in (
        ("appeared", "masks that FP32 does not draw"),
        ("vanished", "masks that only FP32 draws"),
        ("lost", "true lesions that only FP32 finds"),
        ("changed_class", "another class is predicted"),
        ("unusable", "no usable answer"),
    ):
        if found.get(name):
            said.append(f"{words} ({len(found[name])}): {listed(found[name], 5)}.")
    if found["n"] and found["patients"] < FEW_PATIENTS:
        few = groups_words(spec, found["patients"])
        said.append(f"measured on {few} only; with fewer than {FEW_PATIENTS} the intervals come out too narrow.")
    unscored = found["items"] - found["n"] - len(found.get("unusable") or ())
    if unscored > 0:
        said.append(
            f"{unscored} of {found['items']} {items_name(spec)} have no truth to score; they count only for masks that "
            "appear or vanish."
        )
    return said


def _timing_reserves(timing: Mapping[str, Any] | None) -> list[str]:
    if not timing:
        return []
    said = []
    busy = timing.get("other_processes_cores")
    if busy is not None and busy >= BUSY_CORES:
        said.append(f"While speed was measured, other programs kept {busy:.1f} processor cores busy on average.")
    if not timing.get("settled", True):
        said.append("The warm-up of the speed measurement had not come to rest when it began.")
    return said


def limit_words(key: str, spec: Mapping[str, Any]) -> list[str]:
    """Return the limits on a key's score, one phrase each."""
    limits, score = limits_of(key), score_name(spec)
    if spec["task"] == Task.CLASSIFICATION.value:
        return [f"accuracy at least {signed(-(limits.most_accuracy_loss or 0.0), 3)}, or one picture"]
    said = []
    if limits.most_change is not None:
        said.append(f"mean {score} within ±{limits.most_change:g}")
    if limits.most_loss is not None:
        said.append(f"mean {score} at least {signed(-limits.most_loss, 3)}")
    if limits.most_loss_low is not None:
        said.append(f"lower end of the interval at least {signed(-limits.most_loss_low, 3)}")
    if limits.most_loss_of_size is not None:
        said.append(f"no size class below {signed(-limits.most_loss_of_size, 3)} (but those of {UNKNOWN_SIZE})")
    return said


def _joined(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names) or "Nothing"
