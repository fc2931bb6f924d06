"""One suite for every network of the registry, at its smallest width. A new network takes part by its name alone.

Its graphs: tests/export/test_trt_graphs.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mammo_runtime.spec import Task
from mammo_train import models
from network_cases import CASES, EXTRA_NAMES, IMAGES, learned

NAMES = (*models.ARCHITECTURES, *EXTRA_NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_output_has_the_tasks_shape(name: str) -> None:
    entry, made = models.known(name), learned(name)
    side = made.spec.input.height
    assert side % entry.multiple == 0
    if entry.task is Task.CLASSIFICATION:
        assert made.shape == (IMAGES, entry.classes)
    elif entry.task is Task.PROMPTED:
        assert made.spec.prompt is not None
        mask_side = made.spec.prompt.mask_side
        assert made.shape == (IMAGES, 2, 1, mask_side, mask_side)
    else:
        assert made.shape == (IMAGES, entry.classes, side, side)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str) -> None:
    idle = CASES[models.known(name).task].idle
    assert [n for n in learned(name).unreached if not any(part in n for part in idle)] == []


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_lower_the_loss(name: str) -> None:
    first, second, third = learned(name).losses
    assert third < second < first


@pytest.mark.parametrize("name", NAMES)
def test_stored_network_is_rebuilt_from_its_spec(name: str, tmp_path: Path) -> None:
    made = learned(name)
    save_file(made.network.state_dict(), tmp_path / "n.safetensors")
    torch.manual_seed(4)
    rebuilt = models.build_for(made.spec).eval()
    with torch.no_grad():
        assert not torch.allclose(first(rebuilt(*made.inputs)), first(made.network(*made.inputs)))
        rebuilt.load_state_dict(load_file(tmp_path / "n.safetensors"))
        assert torch.equal(first(rebuilt(*made.inputs)), first(made.network(*made.inputs)))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_does_not_mix_pictures(name: str) -> None:
    made = learned(name)
    with torch.no_grad():
        together = first(made.network(*made.inputs))
        alone = torch.cat([first(made.network(*(t[k : k + 1] for t in made.inputs))) for k in range(IMAGES)])
    assert float((alone - together).abs().max()) <= 1e-5 * float(together.abs().max())


def first(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
