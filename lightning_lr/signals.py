"""Signals: the loss and the gradient of one optimizer update as numbers that are equal on all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, _foreach_norm  # pyright: ignore[reportPrivateImportUsage]

from lightning_lr.shards import local, pieces


class Measured(NamedTuple):
    """What was measured before an update; every rank has the same, except for `own_loss` and `norms`.

    Args:
        loss: the mean over micro-batches and ranks, unscaled; None when no loss was seen.
        grad_norm: the 2-norm of the whole gradient before clipping; inf or NaN when any part of it is not finite.
        more: the sums over all ranks of the further numbers that were given.
        own_loss: this rank's own loss; None when no loss was seen.
    """

    loss: float | None
    grad_norm: float
    more: tuple[float, ...]
    own_loss: float | None


class LossMeter:
    """Gathers the loss of an update's micro-batches, as it comes to Lightning's `on_before_backward`."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self._parts = 1

    def add(self, loss: Tensor, parts: int, scaler: Any = None) -> None:
        """Takes one micro-batch's loss.

        Args:
            loss: Tensor, shape () or of one element: divided by `parts`, and multiplied by the scaler's scale.
            parts: `trainer.accumulate_grad_batches`.
            scaler: the gradient scaler in use, or None.
        """
        loss = loss.detach()
        loss = loss if loss.ndim == 0 else loss.sum()
        scale = getattr(scaler, "_scale", None)
        self.losses.append(loss if scale is None else loss.double() / scale.to(loss.device))
        self._parts = parts

    def take(self) -> Tensor | None:
        """The mean of the losses since the last `take`; Tensor, shape (), on their device; None for none."""
        losses, self.losses = self.losses, []
        if not losses:
            return None
        if len(losses) == 1:
            return losses[0] if self._parts == 1 else losses[0] * self._parts
        return torch.stack(losses).mean() * self._parts


class Pending:
    """Numbers of one update that may still be on the accelerator."""

    def __init__(self, values: list[Tensor], finish: Callable[[list[float]], Measured]) -> None:
        self._values, self._finish = values, finish
        self._sent: Any = None

    def send(self) -> Pending:
        """Starts the copy to pinned host memory and does not wait for it; on the CPU there is nothing to copy."""
        if self._values and self._values[0].is_cuda:
            device = self._values[0].device
            packed = torch.stack([value.to(device).double() for value in self._values])
            host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            host.copy_(packed, non_blocking=True)
            self._sent = torch.cuda.Event()
            self._sent.record()
            self._values = list(host)
        return self

    def read(self) -> Measured:
        """The numbers: one host sync, or none that waits when they were sent an update ago."""
        if self._sent is not None:
            self._sent.synchronize()
        return self._finish(_read(self._values))


def measure(
    loss: Tensor | None,
    parameters: Sequence[Tensor],
    scale: Tensor | None = None,
    more: Sequence[Tensor] = (),
    *,
    sharded: bool = False,
) -> Measured:
    """Measures an update and reads the numbers at once; see `start`."""
    return start(loss, parameters, scale, more, sharded=sharded).read()


def start(
    loss: Tensor | None,
    parameters: Sequence[Tensor],
    scale: Tensor | None = None,
    more: Sequence[Tensor] = (),
    *,
    sharded: bool = False,
) -> Pending:
    """Starts to measure an update; one small collective where there is more than one process.

    Args:
        loss: this rank's loss; Tensor, shape (); None when it saw none (on every rank then).
        parameters: whose gradients make up the update; one without a gradient is left out.
        scale: what the gradients are still multiplied by; Tensor, shape (1,) or (); None for nothing.
        more: further numbers, to be summed over the ranks; each a Tensor, shape ().
        sharded: whether any of the parameters is a DTensor.

    Returns:
        The numbers, in float64 once they are read.
    """
    grads = [grad for p in parameters if (grad := p.grad) is not None]
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if ranks > 1 or sharded:
        return _start_together(loss, grads, scale, more, ranks)
    values = _norms(grads)
    count = len(values)
    if loss is not None:
        values.append(loss)
    values += [number.to(loss.device) if loss is not None else number for number in more]
    if scale is not None:
        values.append(scale.reshape(()))

    def finish(numbers: list[float]) -> Measured:
        square = 0.0
        for number in numbers[:count]:
            square += number * number
        norm = math.sqrt(square) if square < math.inf else square
        if scale is not None:
            norm /= numbers.pop()
        own = numbers[count] if loss is not None else None
        return Measured(own, norm, tuple(numbers[count + (loss is not None) :]), own)

    return Pending(values, finish)


def _start_together(
    loss: Tensor | None, grads: list[Tensor], scale: Tensor | None, more: Sequence[Tensor], ranks: int
) -> Pending:
    device = local(grads[0]).device if grads else torch.device("cpu") if loss is None else loss.device
    square = torch.zeros((), dtype=torch.float64, device=device)
    cut: dict[int, list[Tensor]] = {}
    for grad in grads:
        cut.setdefault(pieces(grad), []).append(local(grad))
    for count, shards in cut.items():
        norms = torch.stack([norm.double() for norm in _norms(shards)])
        square = square + norms.square().sum() * (count / ranks)
    if scale is not None:
        square = square / scale.to(device).double().reshape(()).square()
    own = torch.zeros((), dtype=torch.float64, device=device) if loss is None else loss.to(device).double()
    packed = torch.stack([own, own / ranks, square, *(number.to(device).double() for number in more)])
    if ranks > 1:
        rest = packed[1:].contiguous()
        torch.distributed.all_reduce(rest)
        packed = torch.cat([packed[:1], rest])

    def finish(numbers: list[float]) -> Measured:
        own_loss, mean, total, *sums = numbers
        norm = math.sqrt(total) if 0.0 <= total < math.inf else total
        return Measured(None if loss is None else mean, norm, tuple(sums), None if loss is None else own_loss)

    return Pending(list(packed), finish)


def _norms(grads: list[Tensor]) -> list[Tensor]:
    if not grads:
        return []
    if any(grad.layout is not torch.strided for grad in grads):
        grads = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
    return list(_foreach_norm(grads))


def _read(values: list[Tensor]) -> list[float]:
    """All values at once: one host sync."""
    if not values:
        return []
    if values[0].device.type == "cpu":
        return [value.item() for value in values]
    # from an accelerator all at once
    device = values[0].device
    return torch.stack([value.to(device) for value in values]).tolist()
