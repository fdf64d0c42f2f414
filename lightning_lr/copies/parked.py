"""Parked: tensors in host memory that know their device; values that hold tensors, mapped, copied and exchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers by their size in bytes."""


class Parked(NamedTuple):
    """A tensor in host memory, and the device that it goes back to."""

    tensor: Tensor
    device: torch.device


def map_tensors(value: Any, move: Callable[[Any], Any]) -> Any:
    """A value with `move` applied to all tensors in it, parked ones too; all else stays the same."""
    if isinstance(value, (Tensor, Parked)):
        return move(value)
    if isinstance(value, dict):
        return {key: map_tensors(item, move) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map_tensors(item, move) for item in value)
    return value


def cloned(value: Any, clone: Callable[[Any], Any] = lambda held: held.detach().clone()) -> Any:
    """A deep copy; of tensors without their graph."""
    if isinstance(value, (Tensor, Parked)):
        return clone(value)
    if isinstance(value, dict):
        return {key: cloned(item, clone) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(cloned(item, clone) for item in value)
    return copy.deepcopy(value)


def on_host(value: Any) -> Any:
    """A deep copy in host memory."""
    return cloned(value, lambda held: (held.tensor if isinstance(held, Parked) else held.detach()).to("cpu", copy=True))


def on_devices(value: Any, home: torch.device | None = None) -> Any:
    """A deep copy in which parked tensors are on the devices that they came from, and others at `home`, if any."""
    return cloned(
        value,
        lambda held: (
            held.tensor.to(held.device, copy=True)
            if isinstance(held, Parked)
            else held.detach().to(home or held.device, copy=True)
        ),
    )


def placed(name: str, value: Any, parameter: Tensor, group: dict[str, Any]) -> Any:
    """What an optimizer remembers of a parameter, on the device where torch's own rule has it.

    Args:
        name: under which it does.
        value: as it was read from a checkpoint, into host memory.
        parameter: whose.
        group: its param group.
    """
    counts_on_host = name == "step" and not (group.get("fused") or group.get("capturable"))
    return value if counts_on_host else map_tensors(value, lambda tensor: tensor.to(parameter.device))


def beside(saved: dict[str, Any], live: Any) -> dict[str, Any]:
    """Values read from a checkpoint, on the devices on which there is something by the same name now."""
    return {
        name: value.to(live[name].device) if isinstance(value, Tensor) and isinstance(live.get(name), Tensor) else value
        for name, value in saved.items()
    }


def swap(a: Tensor, b: Tensor) -> None:
    """Exchanges the values of two tensors of one shape and type, bit for bit, without memory.

    Running out of memory halfway would leave a mixture of two models.

    Example:
        >>> one, other = torch.tensor([1.0, float("nan")]), torch.tensor([-2.0, 0.5])
        >>> swap(one, other)
        >>> one.tolist(), other.tolist()
        ([-2.0, 0.5], [1.0, nan])
    """
    size = a.element_size()
    if type(a) is not Tensor or a.dtype != b.dtype or a.layout is not torch.strided or size not in BITS:
        held = a.clone()
        a.copy_(b)
        b.copy_(held)
        return
    one, other = a.view(BITS[size]), b.view(BITS[size])
    one.bitwise_xor_(other)
    other.bitwise_xor_(one)
    one.bitwise_xor_(other)
