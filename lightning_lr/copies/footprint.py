"""Footprint: what a second state of model and optimizers takes on each device, and what is free there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_lr.copies.optimizer_memory import bytes_of, entries, nested, states
from lightning_lr.shards import local

UNITS = ("bytes", "kB", "MB", "GB", "TB")


class Footprint(NamedTuple):
    """The memory of one rank's share.

    Args:
        bytes: by device, that of the second state.
        gradients: by device, that of gradients which aren't there yet, and will be with the first batch.
        foreseen: whether the state that optimizers have yet to make is in it; False: they add to it.
    """

    bytes: dict[torch.device, int]
    gradients: dict[torch.device, int]
    foreseen: bool


class Room(NamedTuple):
    """What a second state takes, and what is free for it, on the device where that is tightest.

    Args:
        rank: which rank's device.
        device: the name of this rank's tightest device.
        takes: bytes of the second state.
        needs: bytes of what has to fit: gradients that aren't there yet, too.
        free: bytes; inf where it can't be known (the CPU).
    """

    rank: int
    device: str
    takes: float
    needs: float
    free: float

    @property
    def fits(self) -> bool:
        """Whether there is room."""
        return self.needs <= self.free


def second_state_footprint(module: nn.Module, optimizers: Sequence[Optimizer]) -> Footprint:
    """What a `SecondState` takes from its first update on: weights, buffers, and the optimizers' state.

    State that an optimizer has yet to make is taken from that of its other parameters, or from what is known of torch's
    own; else it is left out.

    Example:
        >>> layer = nn.Linear(3, 1)
        >>> made = second_state_footprint(layer, [torch.optim.Adam(layer.parameters())])
        >>> made.bytes, made.foreseen
        ({device(type='cpu'): 48}, True)
    """
    held: dict[torch.device, int] = {}
    gradients: dict[torch.device, int] = {}

    def add(to: dict[torch.device, int], device: torch.device, size: float) -> None:
        to[device] = to.get(device, 0) + math.ceil(size)

    for tensor in {id(t): t for t in (*module.parameters(), *module.buffers())}.values():
        add(held, tensor.device, _size(tensor))
        if tensor.requires_grad and tensor.grad is None:
            add(gradients, tensor.device, _size(tensor))
    kept = [value for *_, value in (*states(optimizers), *entries(optimizers))]
    for tensor in _tensors(kept):
        add(held, tensor.device, _size(tensor))
    foreseen = True
    for optimizer in nested(optimizers).values():
        for group in optimizer.param_groups:
            missing = [p for p in group["params"] if p.requires_grad and not optimizer.state.get(p)]
            times = _times(optimizer, group) if missing else 0.0
            foreseen = foreseen and times is not None
            for p in missing:
                add(held, p.device, (times or 0.0) * _size(p))
    return Footprint(held, gradients, foreseen)


def free_on_device(device: torch.device) -> float:
    """What a run like the one so far leaves free on a device, in bytes; inf where it can't be known.

    What the allocator holds and doesn't use is free; what the run's own peak needed is not: the next batch needs it
    again.
    """
    kind: Any = None if device.type in ("cpu", "meta") else torch.get_device_module(device)
    if kind is None or not all(hasattr(kind, name) for name in ("mem_get_info", "memory_reserved")):
        return math.inf
    return kind.mem_get_info(device)[0] + kind.memory_reserved(device) - kind.max_memory_allocated(device)


def room(trainer: Any, footprint: Footprint) -> Room:
    """The tightest device of any rank. Every rank must call this; all get the same, except for the device's name."""
    tightest = Room(trainer.global_rank, "", 0.0, 0.0, math.inf)
    for device in footprint.bytes:
        takes = footprint.bytes[device]
        needs, free = takes + footprint.gradients.get(device, 0), float(free_on_device(device))
        if not tightest.device or needs - free > tightest.needs - tightest.free:
            tightest = Room(trainer.global_rank, str(device), takes, needs, free)
    if trainer.world_size == 1:
        return tightest
    # in float32, which every device has, nothing small enough to matter is lost
    mine = torch.tensor([tightest.takes, tightest.needs, tightest.free], device=trainer.strategy.root_device)
    table = trainer.strategy.all_gather(mine).reshape(trainer.world_size, 3).tolist()
    takes, needs, free = zip(*table, strict=True)
    rank = max(range(trainer.world_size), key=lambda rank: needs[rank] - free[rank])
    return Room(rank, tightest.device, takes[rank], needs[rank], free[rank])


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory is short: torch's own class is not raised on each kind of device."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error)
    )


def amount(size: float) -> str:
    """A number of bytes in words.

    Example:
        >>> amount(48), amount(1.2345e9)
        ('48 bytes', '1.23 GB')
    """
    power = 0 if size < 1000.0 else min(int(math.log10(size) / 3), len(UNITS) - 1)
    return f"{size / 1000.0**power:.3g} {UNITS[power]}"


def _size(tensor: Tensor) -> int:
    return bytes_of(local(tensor.detach()))


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _times(optimizer: Optimizer, group: dict[str, Any]) -> float | None:
    """The size of a parameter's state, in multiples of the parameter; None where it isn't known."""
    known = [
        sum(map(_size, _tensors(state))) / max(_size(p), 1)
        for p, state in optimizer.state.items()
        # a count beside one number is no measure
        if isinstance(p, Tensor) and state and p.numel() > 1
    ]
    if known:
        return max(known)
    optim = torch.optim
    if isinstance(optimizer, (optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax)):
        return 2.0 + bool(group.get("amsgrad"))
    if isinstance(optimizer, optim.SGD):
        return float(group.get("momentum", 0.0) != 0.0)
    if isinstance(optimizer, optim.RMSprop):
        return 1.0 + (group["momentum"] > 0.0) + bool(group["centered"])
    return 2.0 if isinstance(optimizer, (optim.Adadelta, optim.Rprop)) else None
