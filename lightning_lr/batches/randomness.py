"""Randomness: the generators that a training step draws from, as they were."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


class RandomState:
    """The states of the generators a training step may draw from: torch's (of the devices too), numpy's, Python's.

    Args:
        devices: of the model, and the one that batches go to.
    """

    def __init__(self, *devices: torch.device) -> None:
        self._torch, self._python, self._numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
        self._devices = {device: draws(device) for device in devices if device.type not in ("cpu", "meta")}

    def restore(self) -> None:
        """Puts them back."""
        torch.set_rng_state(self._torch)
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        for device, state in self._devices.items():
            draws(device, state)


def draws(device: torch.device, state: Tensor | None = None) -> Tensor | None:
    """Returns the state of a device's generator, or sets it; None for a device without one."""
    kind: Any = torch.get_device_module(device)
    if not hasattr(kind, "get_rng_state"):
        return None
    # MPS has one device, and its functions take no argument
    place = () if device.type == "mps" else (device,)
    return kind.get_rng_state(*place) if state is None else kind.set_rng_state(state, *place)
