"""`mammo-train`: what a user types, sees, and gets as exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from click.testing import CliRunner, Result

from mammo_runtime import __version__
from mammo_runtime.errors import UsageError
from mammo_train import checkpoint, models, presets, recipe
from mammo_train.cli import main
from mammo_train.config import TrainConfig
from mammo_train.models import listing
from training_phantoms import PhantomSet, write_phantoms

ROOT = Path(__file__).parents[2]


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def fit_call(phantoms: PhantomSet, tmp_path: Path) -> list[object]:
    """Options of a fit of seconds; the output is tmp_path / "run"."""
    settings = tmp_path / "settings.json"
    settings.write_text(
        json.dumps({"ema_decay": 0.0, "batch_size": 2, "kinds": ["mass", "normal"], "frozen_epochs": 0})
    )
    return ["fit", "--index", phantoms.index, "-o", tmp_path / "run", "--size", "64x64", "--epochs", 1,
            "--train-folds", "2", "--config", settings]  # fmt: skip


def test_help_and_import_are_light() -> None:
    heavy = ("torch", "numpy", "cv2", "matplotlib", "safetensors")
    code = (
        "import sys; sys.path[:0] = ['train', 'runtime']\n"
        "from mammo_train.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print('loaded:', [m for m in {heavy!r} if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "loaded: []" in shown
    assert "check-index" in shown
    assert "130 interrupted" in shown


@pytest.mark.parametrize("command", ["fit", "evaluate", "models", "check-index"])
def test_every_command_explains_itself(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    for option in ("-q", "-v"):
        assert option in result.output


def test_version() -> None:
    assert call("--version").output.strip().endswith(__version__)


def test_fit_and_evaluate(fit_call: list[object], phantoms: PhantomSet, tmp_path: Path) -> None:
    fitted = call(*fit_call, "--data-note", "phantoms=made by tests", "--name", "mine", "--seed", 3)
    run = tmp_path / "run"
    assert fitted.exit_code == 0, fitted.output
    assert fitted.stdout.splitlines()[0].startswith("validation, mass: 2 images of 2 patients: mean Dice ")
    assert "epoch 1/1" in fitted.stderr
    assert "  mean Dice 0." in fitted.stderr
    assert fitted.stdout.endswith("training ended after epoch 1: all epochs asked for are done (1)\n")
    again = call(*fit_call, "--data-note", "phantoms=made by tests", "--name", "mine", "--seed", 3)
    assert "nothing left to train\n" in again.stderr
    _, spec = checkpoint.load_model(run)
    assert (spec.name, spec.input.height, spec.input.width) == ("mine", 64, 64)
    assert [step.name for step in spec.input.cleaning] == ["keep_breast", "stretch"]
    assert spec.training["seed"] == 3
    assert spec.training["data"][0]["licence"] == "made by tests"
    assert spec.licence == "Research use only. Not a medical device."
    seen = json.loads((run / "data.json").read_text())
    assert {"index", "root", "index_sha256", "seen_images", "seen_groups"} == set(seen)
    assert (len(seen["seen_images"]), len(seen["seen_groups"])) == (8, 4)
    assert json.loads((run / "config.json").read_text())["batch_size"] == 2

    evaluated = call("evaluate", run, "--fold", 0)
    assert evaluated.exit_code == 0, evaluated.output
    assert evaluated.stdout.startswith("fold 0, mass: 2 images of 2 patients: mean Dice ")
    assert set(json.loads((run / "metrics.json").read_text())) == {"validation", "fold_0"}
    explicit = call("evaluate", run, "--fold", 0, "--index", phantoms.index, "--root", phantoms.root, "--json")
    assert json.loads(explicit.stdout) == json.loads((run / "metrics.json").read_text())["fold_0"]
    assert explicit.stderr == ""

    other = tmp_path / "other"
    started = call(*fit_call, "--init", run, "-o", other, "-q", "--input", "roi", "--roi-margin", 0.25)
    assert started.exit_code == 0, started.output
    assert started.stderr == ""
    _, child = checkpoint.load_model(other)
    assert child.training["initial_weights"]["sha256"] == checkpoint.weights_sha256(run)
    assert (child.input.mode.value, child.input.roi_margin, child.name) == ("roi", 0.25, "other")


def test_fold_0_is_not_needed_to_fit(fit_call: list[object], tmp_path: Path) -> None:
    own = write_phantoms(tmp_path / "data")
    for path in own.root.glob("phantoms/*/f0_*"):
        path.write_bytes(b"not a picture: " + path.name.encode())
    fit_call[2] = own.index
    assert call(*fit_call).exit_code == 0
    spoiled = call("evaluate", tmp_path / "run", "--fold", 0)
    assert spoiled.exit_code == 2
    assert "f0_0_mass.png" in spoiled.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "70x64"], "error: this model needs sides that are multiples of 32: 70x64 is none, 64x64 is"),
        (["--size", "large"], "give height x width"),
        (["--train-folds", "2,x"], "give fold numbers"),
        (["--train-folds", "1,2"], "error: training, validation and test folds overlap"),
        (["--model", "unet9000"], "error: unknown model 'unet9000'; known: mobilenetv2_resunet"),
        (["--encoder-weights", "none.pt"], "error: there is no encoder weights file none.pt"),
        (["--data-note", "phantoms"], "give FOLDER=LICENCE"),
        (["--validation-fold", "9"], "error: no training sample"),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(fit_call: list[object], words: list[str], message: str) -> None:
    result = call(*fit_call, *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.lower().startswith("error")]) == 1


def test_wrong_settings_files(fit_call: list[object], tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    for content, message in (
        ("{", "is not a JSON file"),
        ("[1]", "one JSON object"),
        ('{"speed": 1}', "unknown training"),
    ):
        settings.write_text(content)
        result = call(*fit_call)
        assert (result.exit_code, message in result.stderr) == (2, True)


def test_an_interrupted_run_says_how_to_go_on(fit_call: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "train", interrupted)
    result = call(*fit_call)
    assert result.exit_code == 130
    assert result.stderr == "interrupted; run the same command again to resume\n"


def test_a_fault_of_ours_is_exit_1_and_v_shows_where(fit_call: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(recipe, "train", faulty)
    plain, verbose = call(*fit_call), call(*fit_call, "-v")
    assert plain.exit_code == verbose.exit_code == 1
    assert plain.stderr == "error: internal error, ZeroDivisionError: oops (-v shows where)\n"
    assert "in faulty" in verbose.stderr


def test_models_as_table_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: models.ARCHITECTURES[name] for name in ("mobilenetv2_resunet", "cobos_vgg")}
    monkeypatch.setattr(listing, "ARCHITECTURES", few)
    table = call("models").output.splitlines()
    assert table[0].split()[:3] == ["name", "study", "input"]
    assert "3x256x256" in table[1]
    assert "whole 5,697,969" in table[1]
    assert [line.split() for line in call("models", "-q").output.splitlines()] == [line.split() for line in table[1:]]
    rows = json.loads(call("models", "--json").stdout)
    assert [row["name"] for row in rows] == list(few)
    assert rows[1]["parameters"] == {"whole": 2_906_681, "tiny": 59_753}


def test_check_index(phantoms: PhantomSet, tmp_path: Path) -> None:
    good = call("check-index", phantoms.index, "--root", phantoms.root)
    assert good.exit_code == 0
    assert "fold 0: 4 pictures of 2 patients (1 findings, 2 mass, 1 normal)" in good.stdout
    assert good.stdout.endswith("no leak: 20 pictures, folds share no patient and no picture\n")
    leaking = tmp_path / "index.csv"
    leaking.write_text(phantoms.index.read_text().replace(",p3_0,3,mass", ",p0_0,3,mass"))
    bad = call("check-index", leaking, "--root", phantoms.root)
    assert bad.exit_code == 2
    assert bad.stderr.startswith("error: leak: patient or group p0_0")
    assert call("check-index", leaking).stderr.startswith("error: index line 2: there is no file")


def test_input_presets() -> None:
    full = presets.input_spec(presets.Wish("full"), presets.Preset(), presets.IMAGENET, 3, 32)
    assert (full.height, full.width, full.breast_crop_margin, full.mean) == (512, 320, 0.02, (0.485, 0.456, 0.406))
    roi = presets.input_spec(presets.Wish("roi", roi_margin=0.4), presets.Preset(), None, 3, 32)
    assert (roi.height, roi.width, roi.breast_crop_margin, roi.roi_margin, roi.std) == (256, 256, None, 0.4, (0.5,) * 3)
    assert [(s.name, dict(s.parameters)) for s in roi.cleaning] == [
        ("stretch", {"low_percent": 1.0, "high_percent": 99.8})
    ]


def test_options_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"epochs": 40, "seed": 5, "train_folds": [3, 4], "augment": {"blur_probability": 0.0}}')
    config = presets.train_config(file, {"epochs": 7, "seed": None}, pretrained=True)
    assert (config.epochs, config.seed, config.train_folds) == (7, 5, (3, 4))
    assert config.augment.blur_probability == 0.0
    assert config.batch_size == TrainConfig().batch_size


@pytest.mark.parametrize(
    ("given", "pretrained", "frozen"),
    [({}, True, 5), ({}, False, 0), ({"epochs": 3}, True, 3), ({"epochs": 3, "frozen_epochs": 1}, False, 1)],
)
def test_only_pretrained_encoders_are_frozen_first(given: dict[str, Any], pretrained: bool, frozen: int) -> None:
    assert presets.train_config(None, given, pretrained).frozen_epochs == frozen


def test_encoder_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import MobileNet_V2_Weights

    asked: list[bool] = []
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", lambda self, *_, **k: asked.append(k["check_hash"]))
    path = presets.encoder_file("imagenet")
    assert path is not None
    assert path.parent == tmp_path / "checkpoints"
    assert path.name.startswith("mobilenet_v2-")
    assert asked == [True]

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(MobileNet_V2_Weights, "get_state_dict", offline)
    with pytest.raises(UsageError, match=r"cannot be downloaded .*give a file"):
        presets.encoder_file("imagenet")
    assert presets.encoder_file("none") is None
    weights = tmp_path / "w.pt"
    weights.touch()
    assert presets.encoder_file(str(weights)) == weights
