"""The README's commands, options, links and numbers are true."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = {"mammo-infer": "mammo_runtime.cli", "mammo-train": "mammo_train.cli", "mammo-export": "mammo_export.cli"}


def bash_lines() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def help_of(*command: str) -> str:
    module = COMMANDS[command[0]]
    paths = [str(ROOT / room) for room in ("runtime", "train", "export")]
    start = f"import sys; sys.path[:0] = {paths!r}; sys.argv = {[*command, '--help']!r}"
    code = f"{start}; from {module} import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("line", [line for line in bash_lines() if line.startswith("mammo-")])
def test_every_option_in_the_readme_exists(line: str) -> None:
    words = line.split()
    depth = 0 if words[0] != "mammo-train" else 2 if words[1] == "index" else 1
    if words[0] == "mammo-export" and re.fullmatch(r"[a-z-]+", words[1]):
        depth = 1
    subcommand = words[1 : 1 + depth]
    text = help_of(words[0], *subcommand)
    options = [word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)]
    assert words
    for option in options:
        assert re.search(rf"(?<![\w-]){re.escape(option)}\b", text), f"{option} is not an option of {words[0]}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in bash_lines() if line.startswith("make ")]
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_exit_codes_are_those_of_the_code() -> None:
    from mammo_runtime.errors import ExitCode

    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert listed == {int(code) for code in ExitCode}


def script(name: str) -> ModuleType:
    """Load a script of `benchmarks/`."""
    specification = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_numbers_are_those_of_the_bundled_metrics() -> None:
    assert script("readme_results").results_section() in README


def test_the_page_of_the_reproduction_is_that_of_its_results() -> None:
    module = script("reproduction_page")
    results = json.loads(module.RESULTS.read_text(encoding="utf-8"))
    assert module.PAGE.read_text(encoding="utf-8") == module.page(results)


def test_the_page_of_the_precisions_is_that_of_its_results() -> None:
    module = script("precisions_page")
    results = json.loads(module.RESULTS.read_text(encoding="utf-8"))
    assert module.PAGE.read_text(encoding="utf-8") == module.page(results)
