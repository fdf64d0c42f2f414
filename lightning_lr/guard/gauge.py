"""Gauge: what the updates of one run are measured with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_lr.copies.shares import writable
from lightning_lr.guard.unjudged import UnjudgedUpdate
from lightning_lr.internals import scale_of, unscales_itself
from lightning_lr.policies.verdict import Side
from lightning_lr.rates.reference import reference_rates
from lightning_lr.run.run import Run
from lightning_lr.shards import local, piece_count
from lightning_lr.signals.measure import Measured, measure, start
from lightning_lr.signals.norms import moved, norms_of, widest_float
from lightning_lr.signals.pulse import Shift
from lightning_lr.signals.track import Track

SCALE_FLOOR = 1.0
"""A gradient scaler above this scale is still calibrating: its overflows are no incidents."""


class Gauge:
    """What all judges of one run measure with.

    Args:
        run: whose optimizers.
        name: of the guard, whose own factor is left out of the rates.
        module: the model.
        scaler: a gradient scaler, or None.
        sharded: whether any of the parameters is a DTensor.
    """

    def __init__(self, run: Run, name: str, module: Any, scaler: Any, *, sharded: bool) -> None:
        self._run, self._name, self._module, self.scaler, self.sharded = run, name, module, scaler, sharded
        self._device = run.trainer.strategy.root_device
        # a mask of -inf, say, is not broken weights; sparse tensors can't be checked
        frozen = [(name, p) for name, p in module.named_parameters() if not p.requires_grad]
        self._infinite = {name for name, p in frozen if not (writable(p) and bool(local(p.detach()).isfinite().all()))}
        self._tracks = [Track() for _ in run.ledger.optimizers]

    def parameters(self, index: int) -> list[Tensor]:
        """The parameters of an optimizer."""
        return [p for group in self._run.ledger.optimizers[index].param_groups for p in group["params"]]

    def count(self, index: int) -> int:
        """The number of an optimizer's parameters."""
        return sum(len(group["params"]) for group in self._run.ledger.optimizers[index].param_groups)

    def start(
        self,
        index: int,
        loss: Tensor | None,
        side: Side,
        kept: int,
        more: dict[str, float | Tensor],
        shift: Shift | None = None,
    ) -> UnjudgedUpdate:
        """Starts to measure an update: one small collective where there are several ranks."""
        ledger = self._run.ledger
        scale = None
        if self.scaler is not None and unscales_itself(ledger.optimizers[index]):
            scale = scale_of(self.scaler)
        rate = max(ledger.without(self._name, index, group) for group in range(ledger.groups(index)))
        wide = widest_float(self._device)
        # filled on the device: a tensor made on the host would have to be waited for
        numbers = [
            number if isinstance(number, Tensor) else torch.full((), number, dtype=wide, device=self._device)
            for number in more.values()
        ]
        pending = start(loss, self.parameters(index), scale, numbers, device=self._device, sharded=self.sharded)
        return UnjudgedUpdate(pending, max(rate, 0.0), side, kept, tuple(more), None, shift)

    def broken(self) -> bool:
        """Whether the weights are not finite, on any rank; a collective of its own."""
        parts = [local(p.detach()) for name, p in self._module.named_parameters() if name not in self._infinite]
        bad = sum((~p.isfinite().all()).to(self._device, torch.float32) for p in parts if p.is_floating_point())
        number = torch.as_tensor(bad, dtype=torch.float32, device=self._device)
        return measure(None, [], None, [number], device=self._device).more[0] > 0.0

    def shift(self, index: int, *, trying: bool) -> Shift | None:
        """How the last update of an optimizer changed its weights; a trial makes none, so that it stays the same.

        None where it is not known: before the second update, after a resume, after a rewind.
        """
        track = self._tracks[index]
        return track.shift if trying else track.see(self.parameters(index), self._run.ledger.updates(index))

    @torch.no_grad()
    def size(self) -> dict[str, float | Tensor]:
        """This rank's shares of the sum of squares of all trained weights and of their number."""
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        shares: dict[int, list[Tensor]] = {}
        for p in self._trained().values():
            shares.setdefault(piece_count(p), []).append(local(p.detach()))
        square, number = torch.zeros((), dtype=widest_float(self._device), device=self._device), 0.0
        for count, parts in shares.items():
            for norm in norms_of(parts):
                square = square + moved(norm, self._device).to(square.dtype).square() * (count / ranks)
            number += sum(part.numel() for part in parts) * count / ranks
        return {"square": square, "number": number}

    def forget(self) -> None:
        """A copy of the weights was given back, or the run is over."""
        for track in self._tracks:
            track.forget()

    def ratio(self, shift: Shift | None) -> float | None:
        """The size of a change by that of the weights; a host sync, and a collective of its own.

        None where it is not known, or not finite.
        """
        ratios = {} if shift is None else shift.ratios(self._device, together=True)
        ratio = ratios.get("all", math.nan)
        return ratio if math.isfinite(ratio) else None

    def calibrating(self, measured: Measured) -> bool:
        """Whether a gradient scaler takes care of this overflow; it doesn't if the loss itself is not finite."""
        if self.scaler is None or math.isfinite(measured.grad_norm):
            return False
        if measured.loss is not None and not math.isfinite(measured.loss):
            return False
        scale = scale_of(self.scaler)
        return scale is not None and float(scale) > SCALE_FLOOR

    def planned_rate(self, index: int, owner: Any) -> float:
        """The highest rate that the schedule and a warm-up may reach without suspicion.

        A cool-down that a longer run takes back counts too.
        """
        ledger, trainer = self._run.ledger, self._run.trainer
        peaks = reference_rates(ledger.optimizers[index], [config.scheduler for config in trainer.lr_scheduler_configs])
        others = [p for p in self._run.peers if p.has_factor and p is not owner and not p.temporary]
        return max(
            peak * math.prod(ledger.factor(peer.name, index, group) for peer in others)
            for group, peak in enumerate(peaks)
        )

    def nonfinite(self) -> list[str]:
        """The names of the parameters that are not finite on this rank."""
        found = [(name, p) for name, p in self._module.named_parameters() if name not in self._infinite]
        return [name for name, p in found if not bool(local(p.detach()).isfinite().all())]

    def _trained(self) -> dict[str, Tensor]:
        held = {id(p) for index in range(len(self._run.ledger.optimizers)) for p in self.parameters(index)}
        return {name: p for name, p in self._module.named_parameters() if p.requires_grad or id(p) in held}
