"""Limits: gradients are scaled in place, before they are used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lightning_lr.shards import local
from lightning_lr.signals.measure import Pending
from lightning_lr.signals.norms import moved


@torch.no_grad()
def scale_gradients(parameters: Iterable[Tensor], factor: float) -> None:
    """Multiplies the gradients of the parameters in place.

    Example:
        >>> p = torch.nn.Parameter(torch.ones(2))
        >>> p.grad = torch.tensor([2.0, 4.0])
        >>> scale_gradients([p], 0.5)
        >>> p.grad.tolist()
        [1.0, 2.0]
    """
    for numbers in _numbers(parameters):
        numbers.mul_(factor)


@torch.no_grad()
def limit_gradients(parameters: Iterable[Tensor], pending: Pending, limit: float) -> None:
    """Scales gradients so that their norm is `limit` at most, without waiting for it.

    A factor of 1 leaves every bit. Where loss or gradient are not finite, all gradients become zero: the weights then
    stay finite, but an optimizer that has momentum still moves.
    """
    factor, finite = pending.coefficient(limit)
    here: dict[torch.device, tuple[Tensor, Tensor]] = {}
    for numbers in _numbers(parameters):
        if numbers.device not in here:
            here[numbers.device] = moved(factor, numbers.device), finite.to(numbers.device).logical_not()
        ratio, bad = here[numbers.device]
        numbers.mul_(ratio).masked_fill_(bad, 0.0)


def _numbers(parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    """The gradients' numbers on this rank, sharing their memory; each once."""
    for p in dict.fromkeys(parameters):
        if p.grad is None:
            continue
        if p.grad.layout is not torch.strided:
            p.grad = p.grad.coalesce() if p.grad.is_sparse else p.grad
            yield p.grad.values()
        else:
            yield local(p.grad)
