"""Running out of memory: a real failed allocation becomes a sentence with the next step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mammo_runtime.errors import ExitCode, MammoError
from mammo_train.memory import memory_advice
from training_phantoms import tiny_config, tiny_spec


def test_a_failed_allocation_says_what_to_try() -> None:
    spec = replace(tiny_spec(), architecture="unet", network={"width": "L"})
    words = "memory ran out while training unet at 64x64, batch 4"
    with pytest.raises(MammoError, match=words) as caught, memory_advice(tiny_config(), spec):
        torch.empty(2**46)
    assert "--accumulate 2" in str(caught.value)
    assert "--width S" in str(caught.value)
    assert caught.value.exit_code is ExitCode.INTERNAL


def test_what_was_tried_already_is_not_advised() -> None:
    spec = replace(tiny_spec(), architecture="unet", network={"width": "tiny"})
    with pytest.raises(MammoError) as caught, memory_advice(tiny_config(batch_size=1), spec):
        torch.empty(2**46)
    assert "--accumulate" not in str(caught.value)
    assert "--width" not in str(caught.value)
    assert "smaller --size than 64x64" in str(caught.value)


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), memory_advice(tiny_config(), tiny_spec()):
        torch.ones(2, 3) @ torch.ones(2, 3)
