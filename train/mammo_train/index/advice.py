"""What `mammo-train index` says at the end: what was made, and what to do next."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mammo_runtime.mammogram import Modality
from mammo_train.index.build import Outcome
from mammo_train.index.contract import LEAKING
from mammo_train.index.entry import Choice
from mammo_train.presets import PICTURES

CLASSIFIER = "vgg16_busi"
"""The network for pictures with classes and no masks."""
TISSUE_MODEL = "bcss_unet_resnet34"
"""The network for code masks."""
TISSUE_MODEL_IGNORES = 7
"""A code that its preset ignores besides 0, as BCSS needs it."""
_SPLITS = {"official": "the published split", "seed": "the study's own split"}


def summary(output: Path, outcome: Outcome, choice: Choice, own: bool) -> list[str]:
    """Return the lines that sum up an index; `own`: of pictures of one's own."""
    counts = sorted(Counter(row["kind"] for row in outcome.rows).items())
    kinds = ", ".join(f"{n} {kind}" for kind, n in counts)
    disjoint = "folds by patient" if outcome.known else "folds by group of near-duplicates (patients are not known)"
    split = _SPLITS.get(choice.split, disjoint)
    return [f"{output}: {len(outcome.rows)} pictures ({kinds}), {split}", *outcome.codes.lines(own)]


def next_command(output: Path, root: Path, outcome: Outcome, choice: Choice, own: bool) -> list[str]:
    """Return the command that trains on the index, and what it needs to be told."""
    words = ["mammo-train fit --index", _quoted(output), "--root", _quoted(root), "--modality", choice.modality]
    notes = ["--root is needed because the paths in the index start there"]
    needed = outcome.codes.classes()
    if needed:
        words += ["--model", TISSUE_MODEL]
    if needed and own:
        words += [
            "--classes",
            ",".join(f"NAME{k}" for k in range(1, min(needed, 3) + 1)) + (",…" if needed > 3 else ""),
        ]
        notes.append(f"--classes takes {needed} names, for code 1 to {needed} in this order")
    if own and TISSUE_MODEL_IGNORES in outcome.codes.pictures:
        notes.append(f'the preset ignores code {TISSUE_MODEL_IGNORES}, too: --config FILE with {{"ignore_codes": [0]}}')
    kinds = sorted({row["kind"] for row in outcome.rows})
    whole = not any(row["mask"] for row in outcome.rows)
    if own and whole:
        words += ["--model", CLASSIFIER, "--classes", ",".join(_quoted(kind) for kind in kinds)]
    if set(kinds) - set(PICTURES[Modality(choice.modality)].kinds) and own:
        # Without a lesion there is no Dice to select by; a classifier is right or wrong about every picture.
        selected = [kind for kind in kinds if whole or kind != "normal"]
        learnt = json.dumps({"kinds": kinds, "validation_kinds": selected})
        words += ["--config", "KINDS.json"]
        notes.append(f"KINDS.json holds {learnt}: by default other kinds are trained on")
    if any(row["split"] == LEAKING for row in outcome.rows):
        words.append("--allow-leak")
    return [f"next: {' '.join([*words, '-o', 'RUN'])}", *(f"  ({note})" for note in notes)]


def _quoted(value: Path | str) -> str:
    """Return a path or a name as every shell takes it."""
    text = str(value)
    return f'"{text}"' if set(text) & set(" '()&;") else text


def told(output: Path, root: Path, outcome: Outcome, choice: Choice, own: bool) -> Sequence[str]:
    """Return everything in order."""
    return [*summary(output, outcome, choice, own), *next_command(output, root, outcome, choice, own)]
