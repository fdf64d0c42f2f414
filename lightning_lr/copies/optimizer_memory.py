"""Optimizer memory: what an optimizer remembers from update to update, wherever it keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

SETTINGS = frozenset(
    (
        *("params", "name", "lr", "initial_lr", "max_lr", "min_lr", "swa_lr"),
        *("momentum", "betas", "base_momentum", "max_momentum", "weight_decay"),
    )
)
"""Entries of a param group that belong to the user and the schedulers; all others may be the optimizer's own memory:
Prodigy and schedule-free optimizers keep theirs there, under names that are in `defaults` too."""


def nested(optimizers: Sequence[Optimizer]) -> dict[str, Optimizer]:
    """The optimizers by place (`0`, `1`), and those that they hold in turn, with state of their own (`0.optim`).

    A wrapper's `state` is empty where the optimizer within has it (`ZeroRedundancyOptimizer`).
    """
    found = {str(index): optimizer for index, optimizer in enumerate(optimizers)}
    states = {id(optimizer.state) for optimizer in optimizers}
    waiting = list(found.items())
    for place, outer in waiting:
        for name, inner in vars(outer).items():
            if isinstance(inner, Optimizer) and id(inner.state) not in states:
                states.add(id(inner.state))
                found[f"{place}.{name}"] = inner
                waiting.append((f"{place}.{name}", inner))
    return found


def parted(optimizers: Sequence[Optimizer], ranks: int) -> bool:
    """Whether each rank may remember something else; every rank gets the same answer.

    Which part of the state an optimizer within another has can't be seen from outside.
    """
    return ranks > 1 and len(nested(optimizers)) > len(optimizers)


def slots(optimizers: Sequence[Optimizer]) -> dict[str, dict[str, Tensor]]:
    """The parameters by place of the optimizer and key: `optimizer/0/3` is the fourth of the first optimizer."""
    found: dict[str, dict[str, Tensor]] = {}
    for place, optimizer in nested(optimizers).items():
        held = [p for group in optimizer.param_groups for p in group["params"]]
        found[place] = {f"optimizer/{place}/{number}": p for number, p in enumerate(held)}
    return found


def states(optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, dict[Any, Any], str, Any]]:
    """All that is in `optimizer.state`: the key, the dict that holds it, the name therein, the value."""
    held = slots(optimizers)
    for place, optimizer in nested(optimizers).items():
        for key, p in held[place].items():
            # ZeroRedundancyOptimizer has None for another rank's
            own = optimizer.state.get(p) or {}
            for name, value in own.items():
                yield f"{key}/{name}", own, name, value
        for name, value in optimizer.state.items():
            if isinstance(name, str):
                yield f"optimizer/{place}/own/{name}", optimizer.state, name, value  # pyright: ignore


def entries(optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, dict[str, Any], str, Any]]:
    """What may be memory in the param groups, as `states`: numbers, bools, strings, tensors, None."""
    for place, optimizer in nested(optimizers).items():
        for number, group in enumerate(optimizer.param_groups):
            for name, value in group.items():
                if name not in SETTINGS and (value is None or isinstance(value, (bool, int, float, str, Tensor))):
                    yield f"group/{place}/{number}/{name}", group, name, value
                elif name not in SETTINGS and isinstance(value, np.generic):
                    yield f"group/{place}/{number}/{name}", group, name, value.item()


def bytes_of(value: Any) -> int:
    """The memory of all tensors in a value: in lists and dicts too."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(bytes_of(item) for item in value.values())
    return sum(bytes_of(item) for item in value) if isinstance(value, (list, tuple)) else 0
