"""Prints the README's results from the bundled models' metrics.json: python benchmarks/readme_results.py [--write].

`mammo-train evaluate` measured those numbers and `mammo-export` put the files into the bundles;
benchmarks/bundled/train.sh does all of it again. A test compares this script's output with the README.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUNDLES = ROOT / "runtime" / "mammo_runtime" / "bundles"
MARKS = "<!-- results: begin (written by benchmarks/readme_results.py) -->", "<!-- results: end -->"
BASELINE = {"mass-roi": "0.73", "mass-full": "0.33"}
"""Mean Dice on the same fold of a plain 40-epoch MobileNetV2 U-Net at 256x256 (reported with the data, n and interval
not stated): what these models had to beat."""


def results_section() -> str:
    """Return the section between the marks: fold 0, never looked at before everything was frozen."""
    lines = [
        "Fold 0 of the fixed splits (mini-MIAS film mammograms and CDD-CESM low-energy images): patients",
        "never trained or selected on. By `mammo-train evaluate`, at original resolution; in brackets the 95 %",
        "bootstrap interval over patients. n is small: read the intervals.",
        "",
        "| model | input | measured on | mean Dice | mean IoU | sensitivity (pixels) | plain baseline Dice |",
        "|---|---|---|---|---|---|---|",
    ]
    extra = []
    for folder in sorted(BUNDLES.iterdir()):
        block = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["fold_0"]
        spec = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["spec"]
        mass, name = block["kinds"]["mass"], spec["name"]
        size = f"{spec['input']['height']}x{spec['input']['width']}"
        values = mass["per_image"]
        lines.append(
            f"| `{name}` | {'box' if block['mode'] == 'roi' else 'whole image'}, {size} | {mass['n']} {mass['item']}s "
            f"with a mass, {mass['n_patients']} patients | {_interval(values['dice'])} | {_interval(values['iou'])} | "
            f"{_interval(values['sensitivity'])} | {BASELINE[name]} |"
        )
        extra += _details(name, block)
    machine = block["machine"]
    lines += ["", *extra, "", f"Measured with {block['backend'].rsplit(' ', 1)[0]} on {machine['processor']}, "
              f"{machine['cores']} cores, mammo-edge {block['mammo_edge']}."]  # fmt: skip
    return "\n".join(lines)


def _details(name: str, block: dict[str, Any]) -> list[str]:
    mass, normal = block["kinds"]["mass"], block["kinds"].get("normal")
    found = [f"- `{name}`: pooled Dice {_interval(mass['pooled']['dice'])}, threshold {block['threshold']:g}"]
    if "jittered_boxes" in mass:
        found[0] += f"; with boxes moved by 10 %: mean Dice {_interval(mass['jittered_boxes']['per_image']['dice'])}"
    if "lesion_sensitivity" in mass:
        found[0] += f"; masses touched by a finding {_interval(mass['lesion_sensitivity'])}"
        found[0] += f"; false findings per image with a mass {_interval(mass['false_findings_per_image'])}"
    if normal and "images_with_finding" in normal:
        found[0] += (
            f"; of {normal['n']} normal images, a fraction of {_interval(normal['images_with_finding'])} "
            "gets a (false) finding"
        )
    return found


def _interval(value: dict[str, Any]) -> str:
    return f"{value['value']:.2f} ({value['low']:.2f}–{value['high']:.2f})"


def main() -> None:
    """Print the section, or write it into README.md with --write."""
    section = results_section()
    if "--write" in sys.argv[1:]:
        readme = ROOT / "README.md"
        begin, end = (re.escape(mark) for mark in MARKS)
        text = readme.read_text(encoding="utf-8")
        between = f"{MARKS[0]}\n{section}\n{MARKS[1]}"
        readme.write_text(re.sub(f"{begin}.*{end}", lambda _: between, text, flags=re.DOTALL), encoding="utf-8")
    print(section)


if __name__ == "__main__":
    main()
