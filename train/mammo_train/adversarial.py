"""Adversarial training (study 000's MSANet): critics that learn to tell a network's masks from the truth.

`adv_multiscale` (Chen et al. 2020, in the parts that are public): three spectral-norm critics see image and mask at
three scales; hinge (Lim and Ye 2017) or Wasserstein loss. `segan_l1` (Xue et al. 2018): one critic's multi-scale
features of the masked image; their L1 distance is raised by the critic, whose weights are clamped, and lowered by the
network. Critics live in the run's resumable state, never in its model: nothing can export them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mammo_train import distributed
from mammo_train.config import TrainConfig
from mammo_train.models.critic import MultiscaleCritics, SegANCritic

ADVERSARIAL: Mapping[str, type[nn.Module]] = {"adv_multiscale": MultiscaleCritics, "segan_l1": SegANCritic}
"""Name of a loss → its critic. The network's own loss beside it is BCE + Dice (`losses.LOSSES`)."""

Judged = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Images [N, C, H, W], logits and masks [N, 1, H, W]."""


class Adversary:
    """The critics of a run with their optimiser (Adam, beta1 0.5)."""

    def __init__(self, config: TrainConfig, channels: int, device: torch.device) -> None:
        """Build the critics for images of `channels` channels and one class."""
        self._config = config
        multiscale = config.loss == "adv_multiscale"
        self.critics = ADVERSARIAL[config.loss](channels + 1 if multiscale else channels).to(device)
        self.optimizer = torch.optim.Adam(self.critics.parameters(), lr=config.critic_rate, betas=(0.5, 0.999))

    def penalty(self, images: torch.Tensor, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Return what the network pays for masks that the critics tell from the truth."""
        if isinstance(self.critics, SegANCritic):
            return self._distance((images, logits, masks))
        opinions = self.critics(images, torch.sigmoid(logits))
        return -torch.stack([patches.mean() for patches in opinions]).mean() * self._config.adversarial_weight

    def learn(self, judged: Sequence[Judged], weights: Sequence[float]) -> None:
        """Take one step on the parts of a batch; `weights` (of sum 1 over all processes) say how much each counts."""
        self.optimizer.zero_grad(set_to_none=True)
        for part, weight in zip(judged, weights, strict=True):
            (weight * self._critic_loss(part)).backward()
        distributed.sum_gradients(self.critics)
        self.optimizer.step()
        if isinstance(self.critics, SegANCritic):
            self.critics.clamp()

    def _critic_loss(self, part: Judged) -> torch.Tensor:
        images, logits, masks = part
        logits = logits.detach()
        if isinstance(self.critics, SegANCritic):
            return -self._distance((images, logits, masks))
        real, made = self.critics(images, masks), self.critics(images, torch.sigmoid(logits))
        if self._config.critic_loss == "wasserstein":
            losses = [own.mean() - true.mean() for true, own in zip(real, made)]
        else:
            losses = [F.relu(1 - true).mean() + F.relu(1 + own).mean() for true, own in zip(real, made)]
        return torch.stack(losses).mean()

    def _distance(self, part: Judged) -> torch.Tensor:
        images, logits, masks = part
        distance: torch.Tensor = self.critics(images, torch.sigmoid(logits)) - self.critics(images, masks)
        return distance.abs().mean()

    def state(self) -> dict[str, torch.Tensor]:
        """Return weights and optimiser moments by name, for the resumable state."""
        tensors = {f"weights/{k}": v for k, v in self.critics.state_dict().items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{k}": torch.as_tensor(v) for k, v in moments.items()}
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state` returned."""
        weights = {k.removeprefix("weights/"): v for k, v in tensors.items() if k.startswith("weights/")}
        self.critics.load_state_dict(weights)
        moments: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, number, name = key.split("/")
                moments.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
