"""Origins: which live tensor each key of a snapshot stands for, so that it is known again under another name."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_lr.copies.optimizer_memory import slots

Rename = Callable[[dict[str, Any]], dict[str, Any]]
"""Gives a dict by old keys with its values under the new ones."""


class Origins:
    """The tensors that were copied, by key: names change with pruning and parametrizations, and params change places.

    Example:
        >>> import torch
        >>> weight, origins = torch.nn.Parameter(torch.ones(1)), Origins()
        >>> origins.remember({"parameter/0/weight": weight}, [])
        >>> (rename,) = origins.renames({"parameter/0/weight_orig": weight})
        >>> rename({"parameter/0/weight": 1})
        {'parameter/0/weight_orig': 1}
    """

    def __init__(self) -> None:
        self._named: dict[str, Any] = {}
        self._slots: dict[str, dict[str, Any]] = {}

    def remember(self, tensors: dict[str, Tensor], optimizers: Sequence[Optimizer]) -> None:
        """Notes which tensor each key stands for now.

        A buffer is referred to weakly, since a module may assign another one at each step. A parameter is not: torch
        refuses to convert (`swap_tensors`) one that has weak references.
        """
        parameters = {k: t for k, t in tensors.items() if k.startswith("parameter/")}
        buffers = {k: weakref.ref(t) for k, t in tensors.items() if k.startswith("buffer/")}
        self._named, self._slots = {**parameters, **buffers}, {**slots(optimizers)}

    def add(self, key: str, parameter: Tensor) -> None:
        """Notes one more parameter."""
        self._named[key] = parameter

    def renames(self, named: dict[str, Tensor]) -> list[Rename]:
        """What to rename in all that is kept by key, now that tensors have these names; empty if nothing."""
        moved = _moved(self._named, named)
        if not moved:
            return []
        self._named = _renamed(self._named, moved, whole=True)
        return [lambda held: _renamed(held, moved, whole=True)]

    def slot_renames(self, optimizers: Sequence[Optimizer]) -> list[Rename]:
        """The same for the state of optimizers, whose params may have changed places."""
        found: list[Rename] = []
        for place, live in slots(optimizers).items():
            moved = _moved(self._slots.get(place, {}), live)
            if moved:
                self._slots[place] = _renamed(self._slots[place], moved, whole=False)
                found.append(lambda held, moved=moved: _renamed(held, moved, whole=False))
        return found


def owner_of(key: str) -> tuple[str, str]:
    """A key in two parts: `optimizer/0/3`, which says whose state it is, and the rest."""
    owner = "/".join(key.split("/", 3)[:3])
    return owner, key[len(owner) :]


def _moved(origins: dict[str, Any], live: dict[str, Tensor]) -> dict[str, str]:
    """The keys whose tensors have another key now, and which."""
    keys = {id(tensor): key for key, tensor in live.items()}
    moved = {}
    for key, origin in origins.items():
        tensor = origin() if isinstance(origin, weakref.ref) else origin
        now = key if tensor is None else keys.get(id(tensor), key)
        if now != key:
            moved[key] = now
    return moved


def _renamed(held: dict[str, Any], moved: dict[str, str], *, whole: bool) -> dict[str, Any]:
    """A dict under the new keys; `whole`: a key is one name, and not that of an owner with something after it."""
    # what was kept under a new key, and isn't known again itself, belongs to something that is gone
    gone = set(moved.values()) - set(moved)
    found = {}
    for key, value in held.items():
        owner, rest = (key, "") if whole else owner_of(key)
        if owner not in gone:
            found[moved.get(owner, owner) + rest] = value
    return found
