"""Homes: on which device an optimizer's state lives, and how it is made anew there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr.copies.optimizer_memory import nested, slots
from lightning_lr.copies.origins import Rename, owner_of
from lightning_lr.copies.parked import on_devices
from lightning_lr.shards import local

MEMORY = ("optimizer/", "group/")
"""Keys of what optimizers remember."""


class Homes:
    """The devices of optimizer state that lives apart from its parameter; all other state lives with it."""

    def __init__(self) -> None:
        self._apart: dict[str, torch.device] = {}

    def remember(self, tensors: dict[str, Tensor], optimizers: Sequence[Optimizer]) -> None:
        """Notes which of the tensors live apart."""
        homes: dict[str, torch.device] = {}
        for held in slots(optimizers).values():
            homes.update((key, p.device) for key, p in held.items())
        self._apart = {
            key: tensor.device
            for key, tensor in tensors.items()
            if key.startswith(MEMORY) and tensor.device != homes.get(owner_of(key)[0], torch.device("cpu"))
        }

    def rename(self, rename: Rename) -> None:
        """Takes up new keys."""
        self._apart = rename(self._apart)

    def remade(self, key: str, kept: Any, parameter: Tensor | None, optimizers: Sequence[Optimizer]) -> Any:
        """What an optimizer remembered, made anew; a tensor on the device where it lived.

        Args:
            key: of the value.
            kept: the value in host memory.
            parameter: whose state it is, or None.
            optimizers: all of them.
        """
        if not isinstance(kept, Tensor):
            return on_devices(kept, None if parameter is None else local(parameter.detach()).device)
        if key in self._apart:
            return kept.to(self._apart[key], copy=True)
        if parameter is None or _counts_on_host(key, kept, parameter, optimizers):
            return kept.clone()
        mine = local(parameter.detach())
        if hasattr(parameter, "to_local") and kept.shape == mine.shape:
            made = torch.zeros_like(parameter.detach(), dtype=kept.dtype)
            local(made).copy_(kept)
            return made
        return kept.to(mine.device, copy=True)


def _counts_on_host(key: str, kept: Tensor, parameter: Tensor, optimizers: Sequence[Optimizer]) -> bool:
    """torch's own rule for `step`, which optimizers keep on the host unless they are fused or capturable."""
    if not key.endswith("/step") or kept.device.type != "cpu":
        return False
    group = next(
        group
        for optimizer in nested(optimizers).values()
        for group in optimizer.param_groups
        if any(p is parameter for p in group["params"])
    )
    return not (group.get("fused") or group.get("capturable"))
