"""Held rates: what param groups hold under "lr", a number or a tensor, read only when it has changed."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lr.internals import writes


class Known(NamedTuple):
    """A tensor's value, and how many writes to it torch had counted then."""

    tensor: Tensor
    writes: int | None
    value: float


class HeldRates:
    """The rates of one optimizer's param groups as numbers.

    Reading a tensor from an accelerator makes the host wait. Torch counts the writes to a tensor, so a tensor whose
    count has not changed is not read again. Writes that torch doesn't count (through `.data`, from another process) go
    unseen.

    Example:
        >>> groups = [{"lr": 0.5}, {"lr": torch.tensor(0.25)}]
        >>> HeldRates().read(groups)
        [0.5, 0.25]
    """

    def __init__(self) -> None:
        self._known: list[Known | None] = []

    def one(self, groups: Sequence[dict[str, Any]], index: int) -> float:
        """The rate of one param group; if it has to be read, all others are read with it."""
        rate = groups[index]["lr"]
        if not isinstance(rate, Tensor):
            return float(rate)
        known = self._still_known(rate, index)
        return self.read(groups)[index] if known is None else known.value

    def read(self, groups: Sequence[dict[str, Any]]) -> list[float]:
        """The rates of all param groups; at most one host sync."""
        rates = [group["lr"] for group in groups]
        if not any(isinstance(rate, Tensor) for rate in rates):
            self._known = []
            return [float(rate) for rate in rates]
        known = [self._still_known(r, i) if isinstance(r, Tensor) else None for i, r in enumerate(rates)]
        unread = {id(r): r for r, k in zip(rates, known, strict=True) if k is None and isinstance(r, Tensor)}
        if unread:
            numbers = dict(zip(unread, _numbers(list(unread.values())), strict=True))
            known = [
                Known(r, writes(r), numbers[id(r)]) if k is None and isinstance(r, Tensor) else k
                for r, k in zip(rates, known, strict=True)
            ]
        self._known = known
        return [float(r) if k is None else k.value for r, k in zip(rates, known, strict=True)]

    def wrote(self, groups: Sequence[dict[str, Any]], values: Sequence[float]) -> None:
        """Notes what the param groups hold now, right after they were written."""
        self._known = [
            Known(group["lr"], writes(group["lr"]), value) if isinstance(group["lr"], Tensor) else None
            for group, value in zip(groups, values, strict=True)
        ]

    def _still_known(self, tensor: Tensor, index: int) -> Known | None:
        known = self._known[index] if index < len(self._known) else None
        if known is None or known.tensor is not tensor or known.writes is None or known.writes != writes(tensor):
            return None
        return known


def rounded(value: float, tensor: Tensor) -> float:
    """What the tensor would hold after `fill_(value)`, worked out on the host."""
    if tensor.dtype == torch.float64:
        return value
    if tensor.dtype == torch.float32:
        return ctypes.c_float(value).value
    return float(torch.tensor(value, dtype=tensor.dtype))


def _numbers(tensors: list[Tensor]) -> list[float]:
    away = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    if len(away) < 2:
        return [tensor.item() for tensor in tensors]
    packed = torch.stack([tensor.detach().reshape(()).to(away[0].device) for tensor in away]).tolist()
    numbers = iter(packed)
    return [tensor.item() if tensor.device.type == "cpu" else next(numbers) for tensor in tensors]
