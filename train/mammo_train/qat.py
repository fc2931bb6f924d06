"""Quantisation-aware fine-tuning: a network computes as its INT8 graph will, while plain weights learn.

Weights and inputs of the layers that `mammo-export` quantises are rounded in the forward pass; the gradient passes
the rounding unchanged and is stopped where a value is clipped (Jacob et al. 2018, arXiv:1712.05877; Krishnamoorthi
2018, arXiv:1806.08342). The rounding is woven into the calls of the layers, not into the network: its modules and its
weights stay those of any run. torch.ao's own tools would rebuild the network, and are deprecated.

What is simulated is what is exported. Batch norms rest, so that they are a fixed factor and offset of each channel.
The exporter multiplies that factor into the weights; weights that have a scale of their own for every output channel
are rounded to the same integers before and after. The layers that make the logits stay float, as does every transposed
convolution. Not simulated: rounding of sums between layers, which the CPU form has throughout and TensorRT's in part,
and the exporter's search for roundings whose errors cancel, which every step would have to repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from mammo_runtime.errors import UsageError
from mammo_runtime.spec import ModelSpec, Task
from mammo_train import distributed
from mammo_train.adversarial import ADVERSARIAL
from mammo_train.config import QatConfig, TrainConfig

QUANTISED: frozenset[Callable[..., Any]] = frozenset((F.conv2d, F.linear))
FLOAT: frozenset[Callable[..., Any]] = frozenset((F.conv_transpose2d,))
"""Have weights, but the exporter leaves them float."""
MIN_SCALE = 2.0**-14
"""Of an activation: the exporter writes no smaller one, which FP16 could not hold."""
DEPTHWISE_LIMIT = 127
"""Largest integer of a depthwise convolution's weight, in both forms."""


@dataclass(frozen=True)
class Form:
    """The numbers of an exported form."""

    weight_limit: int
    """Largest integer of a weight."""
    symmetric: bool
    """Inputs in -128..127 round 0; else in 0..255 from their smallest value to their largest."""


FORMS: Mapping[str, Form] = {
    "int8": Form(127, True),
    # ONNX Runtime's sums overflow with eight bits where a processor lacks VNNI; its seven reach 64.
    "int8-cpu": Form(64, False),
}
"""Key of a bundle's graph → what it computes with."""


def check_qat(spec: ModelSpec, config: TrainConfig, initial: Path | None) -> None:
    """Raise UsageError where fine-tuning for INT8 makes no sense; `config.qat` may be None."""
    if config.qat is None:
        return
    if initial is None:
        raise UsageError("quantisation-aware training fine-tunes a finished run: say which with --init RUN")
    if spec.task is Task.PROMPTED:
        raise UsageError(
            f"{spec.architecture} takes prompts, and INT8 is not made of such models (their layer norms and attention "
            "lose too much in eight bits): export it as FP16"
        )
    if config.loss in ADVERSARIAL:
        raise UsageError(
            f"quantisation-aware training has no critics, so {config.loss!r} cannot be its loss: give the mask loss "
            "alone with --loss bce_dice"
        )


class Simulation:
    """The ranges of a network's quantised inputs, and the contexts in which it computes as in INT8.

    Lives beside the network, like the critics of adversarial training: in a run's resumable state, never in its model.
    """

    def __init__(self, network: nn.Module, config: QatConfig, example: torch.Tensor) -> None:
        """Find the layers to quantise by running `example` [1, C, H, W]. Raises UsageError when there are none."""
        self.config, self.form = config, FORMS[config.form]
        self.layers = quantised_weights(network, example)
        if not self.layers:
            raise UsageError("this network has no layer that INT8 would quantise: there is nothing to fine-tune for")
        self.watching = True
        """Whether a context that learns moves the ranges."""
        self.before: torch.Tensor = torch.full((2,), torch.nan, dtype=torch.float64)
        """Validation loss and score in simulated INT8 before the first step."""
        self._ranges: dict[str, torch.Tensor] = {}
        """Weight's name → float32 [2]: of its layer's input, minus the smallest value and the largest."""
        self._seen: dict[str, torch.Tensor] = {}
        """The same, of the step under way."""

    def of(self, network: nn.Module, learning: bool = False) -> AbstractContextManager[Any]:
        """Return the context in which a network of this kind computes as in INT8; `learning` also watches ranges."""
        return _Rounding(self, network, learning and self.watching)

    def calibrate(self, network: nn.Module, batches: Iterable[torch.Tensor]) -> None:
        """Set the ranges to their mean over `batches` [N, C, H, W], in float and with batch norms at rest."""
        found: dict[str, list[torch.Tensor]] = {name: [] for name in self.layers}
        network.eval()
        with torch.no_grad():
            for batch in batches:
                with _Rounding(self, network, True, rounded=False):
                    network(batch)
                for name, seen in self._seen.items():
                    found[name].append(seen)
                self._seen = {}
        self._ranges = {name: torch.stack(values).mean(0) for name, values in found.items()}

    def watch(self, name: str, values: torch.Tensor) -> None:
        """Take note of an input of a layer."""
        low, high = torch.aminmax(values.detach())
        seen = torch.stack((-low, high)).float()
        self._seen[name] = torch.maximum(self._seen[name], seen) if name in self._seen else seen

    def step(self) -> None:
        """After a step of the optimiser: let the ranges follow what all parts of the batch have shown."""
        if not self._seen:
            return
        names = list(self._seen)
        largest = distributed.largest(torch.stack([self._seen[name] for name in names]))
        for name, seen in zip(names, largest):
            self._ranges[name] = self._ranges[name].lerp(seen, 1 - self.config.range_decay)
        self._seen = {}

    def enter_epoch(self, network: nn.Module, epoch: int) -> None:
        """Let batch norms of a network in train mode rest, and the ranges after `range_epochs`."""
        self.watching = epoch < self.config.range_epochs
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()

    def round_input(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Return a layer's input as the integers of its range give it back."""
        below, above = self._ranges[name].clamp_min(0)
        if self.form.symmetric:
            scale = (torch.maximum(below, above) / 127).clamp_min(MIN_SCALE)
            zero, least, most = torch.zeros_like(scale, dtype=torch.int32), -128, 127
        else:
            scale = ((below + above) / 255).clamp_min(MIN_SCALE)
            zero, least, most = (below / scale).round().int(), 0, 255
        rounded: torch.Tensor = torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, least, most)
        return rounded

    def round_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight [out, in, ...] as its integers give it back; every output channel has its own scale."""
        depthwise = weight.shape[1] == 1 < weight.shape[0]
        most = DEPTHWISE_LIMIT if depthwise else self.form.weight_limit
        scale = weight.detach().float().flatten(1).abs().amax(1) / most
        zero = torch.zeros_like(scale, dtype=torch.int32)
        # A channel of zeros has no scale; any serves.
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return torch.fake_quantize_per_channel_affine(weight.float(), scale, zero, 0, -most, most)

    def note(self, loss: float, score: float) -> str:
        """Keep what validation in INT8 says before the first step, and return it in words."""
        self.before = torch.tensor((loss, score), dtype=torch.float64)
        return f"INT8 of {len(self.layers)} layers before fine-tuning: validation loss {loss:.4f}, score {score:.4f}"

    def state(self) -> dict[str, torch.Tensor]:
        """Return all that changes while training, for the run's resumable state."""
        return {f"ranges/{name}": value for name, value in self._ranges.items()} | {"before": self.before}

    def restore(self, tensors: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Take over what `state` returned."""
        self.before = tensors["before"]
        self._ranges = {k.removeprefix("ranges/"): v.to(device) for k, v in tensors.items() if k.startswith("ranges/")}

    def record(self) -> dict[str, Any]:
        """Return what a run's spec says of it, JSON-ready."""
        loss, score = (round(float(value), 4) for value in self.before)
        return {**asdict(self.config), "layers": len(self.layers),
                "validation_loss_before": loss, "validation_score_before": score}  # fmt: skip


def simulated(simulation: Simulation | None, network: nn.Module, learning: bool = False) -> AbstractContextManager[Any]:
    """Return the simulation's context of a network, or one that does nothing where INT8 is not simulated."""
    return nullcontext() if simulation is None else simulation.of(network, learning)


def calibration_batches(
    samples: Sequence[Sequence[torch.Tensor]], config: TrainConfig, device: torch.device
) -> Iterable[torch.Tensor]:
    """Yield images of training samples, taken evenly from all of them, in batches of the size that is trained with."""
    assert config.qat is not None
    count = min(len(samples), config.qat.calibration_images)
    chosen = [k * len(samples) // count for k in range(count)]
    for start in range(0, count, config.batch_size):
        yield torch.stack([samples[k][0] for k in chosen[start : start + config.batch_size]]).to(device)


def quantised_weights(network: nn.Module, example: torch.Tensor) -> tuple[str, ...]:
    """Return the names of the weights that INT8 quantises, in the order of their calls.

    Those of convolutions and linear layers that a network in eval mode calls, but for the ones that no other layer
    with weights follows: they make the logits.
    """
    calls = _Calls(network)
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    with torch.enable_grad(), calls:
        output = network(example)
    for module, mode in modes:
        module.training = mode
    follow: set[str] = set()
    last: set[str] = set()
    left: list[tuple[Any, bool]] = [(output.grad_fn, False)]
    visited = set()
    while left:
        node, followed = left.pop()
        if node is None or (node, followed) in visited:
            continue
        visited.add((node, followed))
        name = calls.made_by.get(node)
        if name is not None:
            (follow if followed else last).add(name)
            followed = True
        left += [(earlier, followed) for earlier, _ in node.next_functions]
    return tuple(name for name in calls.quantised if name not in last - follow)


Call = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A layer as a function of its input and its weight."""


class _Layers(TorchFunctionMode):
    """Sees every call of a layer whose weight is a parameter of the network. Layers hand both by position."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in network.named_parameters()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        name = self._names.get(id(args[1])) if func in QUANTISED | FLOAT and len(args) > 1 else None
        if name is None:
            return func(*args, **given)
        return self.called(name, func, lambda values, weight: func(values, weight, *args[2:], **given), *args[:2])

    def called(self, name: str, func: Any, call: Call, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class _Calls(_Layers):
    """Notes which layers are called, and which node of the gradient's graph each of them made."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.quantised: dict[str, None] = {}
        self.made_by: dict[Any, str] = {}

    def called(self, name: str, func: Any, call: Call, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        made = call(values, weight)
        self.made_by[made.grad_fn] = name
        if func in QUANTISED:
            self.quantised[name] = None
        return made


class _Rounding(_Layers):
    """Rounds inputs and weights of the quantised layers."""

    def __init__(self, simulation: Simulation, network: nn.Module, watching: bool, rounded: bool = True) -> None:
        super().__init__(network)
        self._simulation, self._watching, self._rounded = simulation, watching, rounded
        self._layers = frozenset(simulation.layers)

    def called(self, name: str, func: Any, call: Call, values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if name not in self._layers:
            return call(values, weight)
        if self._watching:
            self._simulation.watch(name, values)
        if not self._rounded:
            return call(values, weight)
        return call(self._simulation.round_input(name, values), self._simulation.round_weight(weight))
