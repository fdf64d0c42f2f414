"""The loss and the gradient norm of one optimizer step, as numbers that are equal on all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lr.shards import local, piece_count
from lightning_lr.signals.norms import moved, norms_of, together, unbounded_norms, widest_float

CPU = torch.device("cpu")


class Measured(NamedTuple):
    """What was measured before an update; all but `own_loss` is equal on all ranks.

    Args:
        loss: the mean over micro-batches and the ranks that saw one, unscaled; None when none did.
        grad_norm: the 2-norm of the whole gradient before clipping; inf or NaN when any part of it is not finite.
        more: the further numbers that were given, each summed over all ranks.
        own_loss: this rank's own loss; None when it saw none.
    """

    loss: float | None
    grad_norm: float
    more: tuple[float, ...]
    own_loss: float | None


class Pending:
    """Numbers of one update that may still be on an accelerator.

    Args:
        values: each a Tensor, shape (); or one Tensor, shape (n,), on the device.
        finish: makes the measurement out of the numbers, on the host.
        device: where the numbers are brought together.
        healthy: returns the gradient norm, and whether it and the loss are finite, on the device.
        again: measures the gradient norm once more, where it may have overflowed although every element is finite; None
            where there is nothing more to see. Either all ranks call it or none.
    """

    def __init__(
        self,
        values: list[Tensor] | Tensor,
        finish: Callable[[list[float]], Measured],
        device: torch.device = CPU,
        healthy: Callable[[], tuple[Tensor, Tensor]] | None = None,
        again: Callable[[], float] | None = None,
    ) -> None:
        self._values, self._finish, self._device, self._healthy, self._again = values, finish, device, healthy, again
        self._sent: Any = None

    def send(self) -> Pending:
        """Starts the copy to pinned host memory without waiting for it; on the CPU there is nothing to copy.

        By the time the numbers are read, the gradients are those of a later update and can't be measured again.
        """
        self._again = None
        if len(self._values) and self._device.type == "cuda":
            packed = self.packed()
            host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            host.copy_(packed, non_blocking=True)
            self._sent = torch.cuda.Event()
            self._sent.record(torch.cuda.current_stream(packed.device))
            self._values, self._device = host, CPU
        return self

    def packed(self) -> Tensor:
        """All numbers in one tensor on the device; shape (n,)."""
        return self._values if isinstance(self._values, Tensor) else torch.stack(together(self._values, self._device))

    def coefficient(self, limit: float) -> tuple[Tensor, Tensor]:
        """What to multiply the gradient by so that its norm is at most `limit`, and whether all is finite.

        Nobody waits for them: Tensors, shape (), on the device.
        """
        assert self._healthy is not None
        norm, finite = self._healthy()
        return (limit / norm).clamp(max=1.0), finite

    def read(self) -> Measured:
        """The numbers: one host sync; it doesn't wait for numbers that were sent an update ago."""
        if self._sent is not None:
            self._sent.synchronize()
        measured = self._finish(self.packed().tolist() if len(self._values) else [])
        if measured.grad_norm == math.inf and self._again is not None:
            measured = measured._replace(grad_norm=self._again())
        return measured


def measure(
    loss: Tensor | None,
    parameters: Sequence[Tensor],
    scale: Tensor | None = None,
    more: Sequence[Tensor] = (),
    *,
    device: torch.device,
    sharded: bool = False,
) -> Measured:
    """Measures an update and reads the numbers at once; see `start`."""
    return start(loss, parameters, scale, more, device=device, sharded=sharded).read()


def start(
    loss: Tensor | None,
    parameters: Sequence[Tensor],
    scale: Tensor | None = None,
    more: Sequence[Tensor] = (),
    *,
    device: torch.device,
    sharded: bool = False,
) -> Pending:
    """Starts to measure an update, with one small collective where there is more than one process.

    Args:
        loss: this rank's loss; Tensor, shape (); None when it saw none.
        parameters: their gradients make up the update; those without a gradient are left out.
        scale: the factor that the gradients still hold; Tensor, shape (1,) or (); None for 1.
        more: further numbers to sum over the ranks; each a Tensor, shape ().
        device: the strategy's root device, on which every rank's backend can reduce.
        sharded: whether any of the parameters is a DTensor.

    Returns:
        The numbers, as float64 when they are read.
    """
    grads = [grad for p in parameters if (grad := p.grad) is not None]
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if ranks > 1 or sharded:
        return _start_together(loss, grads, scale, more, ranks, device)
    values = norms_of(grads)
    count = len(values)
    if loss is not None:
        values.append(loss)
    values += more
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

    def healthy() -> tuple[Tensor, Tensor]:
        wide = widest_float(device)
        norms = together(values[:count], device)
        zero = torch.zeros((), dtype=wide, device=device)
        norm = torch.stack(norms).to(wide).square().sum().sqrt() if norms else zero
        if scale is not None:
            norm = norm / moved(scale, device).reshape(())
        return norm, norm.isfinite() if loss is None else norm.isfinite() & moved(loss, device).isfinite()

    def again() -> float:
        norm = math.hypot(*unbounded_norms(grads, device))
        return norm if scale is None else norm / float(scale)

    return Pending(values, finish, device, healthy, again)


def _start_together(
    loss: Tensor | None,
    grads: list[Tensor],
    scale: Tensor | None,
    more: Sequence[Tensor],
    ranks: int,
    device: torch.device,
) -> Pending:
    wide = widest_float(device)
    zero = torch.zeros((), dtype=wide, device=device)
    cut: dict[int, list[Tensor]] = {}
    for grad in grads:
        cut.setdefault(piece_count(grad), []).append(local(grad))
    shrink = None if scale is None else moved(scale, device).to(wide).reshape(())

    def squares(norms: Callable[[list[Tensor]], Tensor]) -> Tensor:
        square = zero
        for count, shards in cut.items():
            square = square + norms(shards).square().sum() * (count / ranks)
        return square if shrink is None else square / shrink.square()

    square = squares(lambda shards: torch.stack(together(norms_of(shards), device)).to(wide))
    own, heard = (zero, zero) if loss is None else (moved(loss, device).to(wide), zero + 1.0)
    # the first is this rank's own and is not reduced
    packed = torch.stack([own, own, heard, square, *(moved(number, device).to(wide) for number in more)])
    shared = packed.narrow(0, 1, len(packed) - 1)
    if ranks > 1:
        torch.distributed.all_reduce(shared)

    def finish(numbers: list[float]) -> Measured:
        own_loss, losses, heard, total, *sums = numbers
        norm = math.sqrt(total) if 0.0 <= total < math.inf else total
        mean = losses / heard if heard else None
        return Measured(mean, norm, tuple(sums), None if loss is None else own_loss)

    def healthy() -> tuple[Tensor, Tensor]:
        return shared[2].sqrt(), shared[0].isfinite() & shared[2].isfinite()

    def again() -> float:
        # the sum over the ranks is inf on every rank, so every rank gets here
        found = squares(lambda shards: torch.tensor(unbounded_norms(shards, device), dtype=wide, device=device))
        if ranks > 1:
            torch.distributed.all_reduce(found)
        return float(found) ** 0.5

    return Pending(packed, finish, device, healthy, again)
