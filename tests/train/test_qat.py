"""Fine-tuning for INT8: what is rounded, what stays plain, that it helps, and that a stop changes nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mammo_runtime.errors import UsageError
from mammo_runtime.preprocess import preprocess
from mammo_runtime.readers import read_image
from mammo_runtime.spec import ACTIVATION_OF, InputSpec, ModelSpec, Task
from mammo_train import checkpoint, fine_tune, models, run_data
from mammo_train.cli import main
from mammo_train.config import AUGMENTATIONS, QatConfig, TrainConfig
from mammo_train.fit import fit
from mammo_train.objectives import OBJECTIVES, Batch
from mammo_train.qat import Simulation, calibration_batches, check_qat, quantised_weights, simulated
from training_phantoms import PhantomSet, tiny_config, tiny_spec

SPEC = replace(tiny_spec(), architecture="small")
PLAIN = replace(SPEC, architecture="busi_unet", network={"width": "tiny", "dropout_down": 0.0, "dropout_up": 0.0})
"""Without batch norm and dropout: the parts of a batch are independent."""
BAD_CHANNEL = 100.0
"""Factor on one channel between two layers; undone behind it, so that float32 computes the same."""


class Small(nn.Module):
    """Two layers with batch norm that find the phantoms' discs within seconds."""

    def __init__(self, channels: int, classes: int, width: object) -> None:
        super().__init__()
        first, second = nn.Conv2d(channels, 8, 5, 2, 2, bias=False), nn.Conv2d(8, 8, 5, padding=2, bias=False)
        self.first = nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(second, nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(8, classes, 1), nn.Upsample(scale_factor=2, mode="bilinear"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module", autouse=True)
def _small_is_known() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        entry = models.Architecture(Small, "test", "two layers", 2, {"whole": ()})
        patched.setitem(models.ARCHITECTURES, "small", entry)  # type: ignore[arg-type]
        yield


def silent(_line: str) -> None:
    pass


def fine_tuning(**changes: Any) -> TrainConfig:
    own = {"frozen_epochs": 0, "ema_decay": 0.0, "weight_decay": 0.0, "schedule": "constant", "qat": QatConfig(),
           "augment": AUGMENTATIONS["none"]}  # fmt: skip
    return tiny_config(**{**own, **changes})


def log_of(run: Path) -> list[dict[str, float]]:
    with (run / "log.csv").open(newline="") as stream:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(stream)]


@pytest.fixture(scope="module")
def parent(phantoms: PhantomSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run with one badly scaled channel, which per-tensor ranges of activations cannot serve."""
    run = tmp_path_factory.mktemp("parent")
    fit(phantoms.rows(), SPEC, fine_tuning(epochs=40, rate=1e-2, qat=None), run, report=silent)
    network, spec = checkpoint.load_model(run)
    assert isinstance(network, Small)
    picture = torch.from_numpy(preprocess(read_image(phantoms.rows()[0].image), SPEC.input)[0])
    before = network(picture)
    with torch.no_grad():
        loudest = int(network.first(picture).amax((0, 2, 3)).argmax())
        norm, behind = network.first[1], network.second[0]
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(behind, nn.Conv2d)
        norm.weight[loudest] *= BAD_CHANNEL
        norm.bias[loudest] *= BAD_CHANNEL
        behind.weight[:, loudest] /= BAD_CHANNEL
    assert torch.allclose(network(picture), before, rtol=1e-4, atol=1e-4)
    checkpoint.save_model(run, network.state_dict())
    checkpoint.save_spec(run, replace(spec, parent_sha256=checkpoint.weights_sha256(run)))
    run_data.write_data_json(run, phantoms.index, phantoms.root, [r for r in phantoms.rows() if r.fold])
    return run


def test_weights_get_one_scale_for_each_output_channel() -> None:
    weight = torch.randn(5, 3, 3, 3) * torch.tensor([1e-3, 1.0, 7.0, 0.3, 0.0]).reshape(5, 1, 1, 1)
    for form, most in (("int8", 127), ("int8-cpu", 64)):
        rounded = a_simulation(form=form).round_weight(weight)
        scale = weight.flatten(1).abs().amax(1).reshape(5, 1, 1, 1) / most
        wanted = torch.where(scale > 0, (weight / scale).round() * scale, weight)
        assert torch.allclose(rounded, wanted, rtol=1e-5, atol=1e-7)
        assert int((rounded / scale).nan_to_num().round().abs().max()) == most
    depthwise = torch.randn(4, 1, 3, 3)
    scale = depthwise.flatten(1).abs().amax(1).reshape(4, 1, 1, 1) / 127
    assert torch.allclose(a_simulation(form="int8-cpu").round_weight(depthwise), (depthwise / scale).round() * scale)


@pytest.mark.parametrize("form", ["int8", "int8-cpu"])
def test_inputs_are_rounded_to_their_range_and_gradients_stop_outside(form: str) -> None:
    simulation = a_simulation(form=form)
    simulation._ranges = {"layer": torch.tensor([2.0, 6.0])}
    values = torch.tensor([-9.0, -2.0, -0.011, 0.0, 0.5, 5.99, 9.0], requires_grad=True)
    rounded = simulation.round_input("layer", values)
    rounded.sum().backward()
    least, most = {"int8": (-128 * 6 / 127, 6.0), "int8-cpu": (-64 * 8 / 255, 191 * 8 / 255)}[form]
    step = {"int8": 6 / 127, "int8-cpu": 8 / 255}[form]
    assert float(rounded[3].detach()) == 0.0  # zero is a point of every grid
    assert (float(rounded[0].detach()), float(rounded[-1].detach())) == pytest.approx((least, most))
    assert torch.all((rounded - values).detach()[1:-1].abs() <= step / 2 + 1e-6)
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


def a_simulation(**changes: Any) -> Simulation:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 1, 1))
    return Simulation(network, QatConfig(**changes), torch.zeros(1, 3, 8, 8))


def test_rounding_before_a_resting_batch_norm_is_rounding_of_the_folded_weights() -> None:
    conv, norm = nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d(5).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.01, 30.0, 0.5]))
        norm.running_var.uniform_(0.1, 9)  # type: ignore[union-attr]
        norm.running_mean.normal_()  # type: ignore[union-attr]
    folded, bias = fuse_conv_bn_weights(
        conv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    simulation, images = a_simulation(), torch.randn(2, 6, 9, 9)
    ours = norm(torch.conv2d(images, simulation.round_weight(conv.weight)))
    exported = torch.conv2d(images, simulation.round_weight(folded), bias)
    assert torch.allclose(ours, exported, rtol=1e-4, atol=1e-4 * float(exported.detach().abs().max()))


def test_logits_and_transposed_convolutions_stay_float() -> None:
    network = models.build("unet", width="tiny")
    modes = [module.training for module in network.modules()]
    names = quantised_weights(network, torch.zeros(1, 3, 64, 64))
    layers = {name for name, p in network.named_parameters() if p.ndim == 4}
    assert layers - set(names) == {"head.weight", *(f"up.ups.{k}.weight" for k in range(4))}
    assert names[0] == "down.blocks.0.0.0.weight"
    assert [module.training for module in network.modules()] == modes
    # A skip that reaches the logits beside other layers is followed by layers all the same.
    deep = models.build("unetpp", width="tiny", deep_supervision=True)
    kept = {n for n, p in deep.named_parameters() if p.ndim == 4} - set(
        quantised_weights(deep, torch.zeros(1, 3, 64, 64))
    )
    assert kept == {f"heads.{k}.weight" for k in range(1, 5)}
    with pytest.raises(UsageError, match="no layer that INT8 would quantise"):
        Simulation(nn.Conv2d(3, 1, 1), QatConfig(), torch.zeros(1, 3, 8, 8))


def test_fine_tuning_lowers_the_loss_in_int8_and_leaves_an_ordinary_run(
    parent: Path, phantoms: PhantomSet, tmp_path: Path
) -> None:
    config = fine_tuning(epochs=12, rate=1e-3, qat=QatConfig(range_epochs=4))
    spec = fit(phantoms.rows(), SPEC, config, tmp_path, report=silent, initial=parent)
    qat, log = spec.training["qat"], log_of(tmp_path)
    in_float = checkpoint.load_spec(parent).training["validation_score_grid"]
    assert qat["validation_score_before"] < in_float - 0.1  # the channel does harm
    assert max(row["validation_score"] for row in log) > qat["validation_score_before"] + 0.05
    assert log[-1]["validation_loss"] < 0.7 * qat["validation_loss_before"]
    assert {k: qat[k] for k in asdict(config.qat)} == asdict(config.qat)  # type: ignore[arg-type]
    assert qat["layers"] == 2
    assert spec.training["initial_weights"]["sha256"] == checkpoint.weights_sha256(parent)
    stored = load_file(tmp_path / checkpoint.WEIGHTS)
    plain = models.build_for(SPEC).state_dict()
    assert {k: (v.shape, v.dtype) for k, v in stored.items()} == {k: (v.shape, v.dtype) for k, v in plain.items()}
    network, _ = checkpoint.load_model(tmp_path)
    before = checkpoint.load_model(parent)[0].state_dict()
    resting = [k for k in before if "running_" in k or "num_batches" in k]
    assert resting
    assert all(torch.equal(network.state_dict()[k], before[k]) for k in resting)
    weight = network.get_parameter("first.0.weight")
    assert len(weight[0].unique()) == weight[0].numel()  # not the rounded ones


class Stopped(Exception):
    pass


def test_a_run_stopped_amid_an_epoch_goes_on_to_the_same_weights(
    parent: Path, phantoms: PhantomSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fine_tuning(epochs=4, rate=1e-3, train_folds=(2, 3), qat=QatConfig(range_epochs=2))
    whole, broken = tmp_path / "whole", tmp_path / "broken"

    def run(folder: Path) -> None:
        fit(phantoms.rows(), SPEC, config, folder, report=silent, initial=parent)

    run(whole)
    step, taken = Simulation.step, []

    def stopping(self: Simulation) -> None:
        step(self)
        taken.append(1)
        if len(taken) == 3:  # the first step of the second epoch, while the ranges still move
            raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(Simulation, "step", stopping)
        with pytest.raises(Stopped):
            run(broken)
    run(broken)
    for name in (checkpoint.WEIGHTS, "log.csv"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes()
    first, second = load_file(whole / checkpoint.STATE), load_file(broken / checkpoint.STATE)
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {name for name in first if name.startswith("simulation/")} > {"simulation/before"}
    other = replace(config, qat=QatConfig("int8-cpu"))
    with pytest.raises(UsageError, match="other data or settings"):
        fit(phantoms.rows(), SPEC, other, whole, report=silent, initial=parent)


def test_ranges_follow_whole_steps_then_rest() -> None:
    torch.manual_seed(3)
    network, images = models.build_for(PLAIN), torch.rand(4, 3, 64, 64)
    names = quantised_weights(network, images[:1])
    whole, split = (Simulation(network, QatConfig(range_decay=0.5), images[:1]) for _ in range(2))
    for simulation, parts in ((whole, [images]), (split, [images[:3], images[3:]])):
        simulation.calibrate(network, [images[:2] / 2])
        before = {k: v.clone() for k, v in simulation.state().items()}
        simulation.enter_epoch(network.train(), 0)
        for part in parts:
            with simulated(simulation, network, learning=True):
                network(part)
        simulation.step()
        moved = simulation.state()
        # The first layer reads the images themselves: their largest value is known.
        halfway = (before[f"ranges/{names[0]}"][1] + images.max()) / 2
        assert float(moved[f"ranges/{names[0]}"][1]) == pytest.approx(float(halfway))
    for key, value in whole.state().items():
        assert torch.equal(value.nan_to_num(), split.state()[key].nan_to_num()) or torch.allclose(
            value, split.state()[key], rtol=1e-5
        ), key
    resting = whole.state()
    whole.enter_epoch(network, QatConfig().range_epochs)
    with simulated(whole, network, learning=True):
        network(9 * images)
    whole.step()
    assert all(torch.equal(v.nan_to_num(), resting[k].nan_to_num()) for k, v in whole.state().items())


def spec_of(task: Task, architecture: str, classes: tuple[str, ...], **network: Any) -> ModelSpec:
    return ModelSpec(
        "tiny", architecture, network, task, input=InputSpec(height=64, width=64), classes=classes,
        activation=ACTIVATION_OF[task],
    )  # fmt: skip


LEARNED: dict[str, tuple[ModelSpec, str, Callable[[], Batch]]] = {
    "segmentation": (
        spec_of(Task.SEGMENTATION, "resunet", ("mass",), width="tiny"),
        "tversky_bce",
        lambda: [torch.rand(2, 3, 64, 64), (torch.rand(2, 1, 64, 64) > 0.7).float(), torch.ones(2, 1, 64, 64)],
    ),
    "multiclass": (
        spec_of(Task.MULTICLASS, "unet", ("a", "b", "c"), width="tiny"),
        "ce_dice",
        lambda: [torch.rand(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64)), torch.ones(2, 1, 64, 64)],
    ),
    "classification": (
        spec_of(Task.CLASSIFICATION, "vgg16_busi", ("a", "b", "c"), width="tiny", head="pool"),
        "cross_entropy",
        lambda: [torch.rand(2, 3, 64, 64), torch.tensor([0, 2]), torch.ones(2, 1, 64, 64)],
    ),
}


@pytest.mark.parametrize("task", LEARNED)
@pytest.mark.parametrize("autocast", [False, True])
def test_every_task_learns_through_the_rounding(task: str, autocast: bool) -> None:
    torch.manual_seed(7)
    spec, loss, make = LEARNED[task]
    config, batch = fine_tuning(loss=loss), make()
    network, objective = models.build_for(spec), OBJECTIVES[spec.task]
    simulation = Simulation(network, QatConfig(), batch[0][:1])
    simulation.calibrate(network, calibration_batches([[image] for image in batch[0]], config, torch.device("cpu")))
    simulation.enter_epoch(network.train(), 0)
    exact = objective.outputs(network, batch, config).detach()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), simulated(simulation, network, learning=True):
        outputs = objective.outputs(network, batch, config)
    cost = objective.cost(outputs.float(), batch, config)
    cost.backward()
    assert 0 < float((outputs.detach() - exact).abs().max()) < float(exact.abs().max())
    assert torch.isfinite(cost)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_what_cannot_be_fine_tuned_is_refused(parent: Path, phantoms: PhantomSet, tmp_path: Path) -> None:
    prompted = ModelSpec(
        "boxed", "lite_medsam", {"width": "tiny"}, Task.PROMPTED,
        prompt=models.build("lite_medsam", width="tiny").prompt_spec(),  # type: ignore[operator]
    )  # fmt: skip
    cases = (
        (SPEC, fine_tuning(), None, "say which with --init RUN"),
        (prompted, fine_tuning(loss="dice_ce"), parent, "takes prompts, and INT8 is not made of such models"),
        (SPEC, fine_tuning(loss="segan_l1"), parent, r"has no critics, .* give the mask loss alone with --loss"),
    )
    for spec, config, initial, words in cases:
        with pytest.raises(UsageError, match=words):
            fit(phantoms.rows(), spec, config, tmp_path / "run", report=silent, initial=initial)
    check_qat(prompted, tiny_config(), None)  # training in float is another matter
    for wrong in ({"form": "fp8"}, {"range_decay": 1.0}, {"calibration_images": 0}):
        with pytest.raises(UsageError, match="qat"):
            QatConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"unknown training setting.*bits"):
        TrainConfig.from_dict({"qat": {"bits": 8}})
    assert TrainConfig.from_dict(json.loads(fine_tuning().to_json())) == fine_tuning()


def test_settings_come_from_the_parent(parent: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"qat": {"form": "int8-cpu"}, "epochs": 3}))
    config = fine_tune.qat_config(parent, "int8", file, {"epochs": None, "batch_size": 2})
    assert (config.epochs, config.batch_size, config.qat) == (3, 2, QatConfig("int8-cpu"))
    assert (config.rate, config.schedule, config.ema_decay, config.frozen_epochs) == (1e-5, "constant", 0.0, 0)
    assert config.augment == AUGMENTATIONS["none"]
    file.write_text(json.dumps({"validation_fold": 4, "train_folds": [2, 3]}))
    with pytest.raises(UsageError, match=r"keeps the folds of .* validation_fold 1"):
        fine_tune.qat_config(parent, "int8", file, {})


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_needs_a_run_and_no_more(parent: Path, tmp_path: Path) -> None:
    run = tmp_path / "int8"
    done = call("fit", "--qat", "int8-cpu", "--init", parent, "-o", run, "--epochs", 1)
    assert done.exit_code == 0, done.output
    assert "INT8 of 2 layers before fine-tuning: validation loss 0." in done.stderr
    assert "warning: Fine-tuning for INT8 gained nothing" in done.stdout  # a rate of 1e-5 for three steps
    network, spec = checkpoint.load_model(run)
    assert isinstance(network, Small)
    assert (spec.name, spec.input, spec.classes) == ("int8", SPEC.input, SPEC.classes)
    card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "Fine-tuned for INT8: 2 layers computed as in the `int8-cpu` graph" in card
    assert spec.training["qat"]["validation_score_of_parent"] > 0.9
    assert call("evaluate", run, "--fold", 0).exit_code == 0
    again = call("fit", "--qat", "int8-cpu", "--init", parent, "-o", run, "--epochs", 1)
    assert "nothing left to train" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--qat"], "--qat fine-tunes a finished run: say which with --init RUN"),
        (["--qat", "--init", "PARENT", "--model", "unet", "--size", "32x32"], "leave out --model, --size"),
        (["--qat", "--init", "PARENT", "--validation-fold", "0"], "overlap"),
        (["--qat", "--init", "PARENT", "--train-folds", "2"], "fine-tuning keeps the folds"),
        (["--init", "PARENT"], "Missing option '--index'"),
    ],
)
def test_wrong_commands_say_what_to_do(words: list[str], message: str, parent: Path, tmp_path: Path) -> None:
    done = call("fit", "-o", tmp_path / "run", *(parent if word == "PARENT" else word for word in words))
    assert done.exit_code == 2
    assert message in done.stderr
