"""Judge: all that the guard knows of one optimizer, and how its updates are measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lr.copies.shares import writable
from lightning_lr.internals import scale_of, unscales_itself
from lightning_lr.policies.divergence_state import Side, Signals, Verdict
from lightning_lr.rates.reference import reference_rates
from lightning_lr.run.run import Run
from lightning_lr.shards import local, pieces
from lightning_lr.signals.measure import Measured, Pending, measure, start
from lightning_lr.signals.norms import moved, norms_of, widest_float
from lightning_lr.signals.pulse import Shift
from lightning_lr.signals.track import Track

SCALE_FLOOR = 1.0
"""A gradient scaler above this scale is still calibrating: its overflows are no incidents."""

CAPPED = "the rate is capped since a rewind"


class Job(NamedTuple):
    """One update that is measured but not judged.

    Args:
        pending: its numbers.
        rate: as in `Signals`.
        side: as in `Signals`.
        kept: how often buffers had been kept then.
        asked: what the further numbers are that were summed over the ranks.
        signals: the numbers where they are known already (from a checkpoint).
        shift: what the update before has done to the weights; None where that is not known.
    """

    pending: Pending
    rate: float
    side: Side = "present"
    kept: int = 0
    asked: tuple[str, ...] = ()
    signals: Signals | None = None
    shift: Shift | None = None


@dataclass
class Judge:
    """What the guard knows of one optimizer.

    Args:
        index: of the optimizer.
        state: the policy's.
        reason: why its factor is what it is.
        cap: the highest effective rate that the factor allows; inf for none.
        limit: the largest gradient norm that the next update may have.
        copy: whether the latest verdict lets the weights be copied.
        measure: whether it asks for the weights' size; the first update measures it unasked.
        job: an update that is judged later.
        trained: the number of parameters that the optimizer had at its last update.
        dropped: whether the step under way is to be a skip.
        seen: whether the step under way has been judged.
    """

    index: int
    state: Any
    reason: str = CAPPED
    cap: float = math.inf
    limit: float = math.inf
    copy: bool = False
    measure: bool = True
    job: Job | None = None
    trained: int = 0
    dropped: bool = False
    seen: bool = False

    def factor(self, verdict: Verdict, rate: float) -> float:
        """The factor that a verdict sets at such a rate; notes why."""
        cap, before = (math.inf if verdict.factor == 1.0 else verdict.factor * rate), self.cap
        self.cap = cap
        if verdict.kind in ("rewind", "give_up"):
            self.reason = verdict.cause
        elif verdict.factor == 1.0:
            self.reason = "the rate is back at its full height"
        elif cap > before * (1.0 + 1e-9):
            self.reason = "calm updates let the rate grow back"
        # else the same cap holds, and the factor follows the scheduler's rate
        return verdict.factor

    def to_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, but the state and the job."""
        names = ("reason", "cap", "limit", "copy", "measure")
        return {name: getattr(self, name) for name in names}


class Ground:
    """What all judges of one run measure with.

    Args:
        run: whose optimizers.
        name: of the guard, whose own factor a rate is told without.
        module: the model.
        scaler: a gradient scaler, or None.
        sharded: whether any of the parameters is a DTensor.
    """

    def __init__(self, run: Run, name: str, module: Any, scaler: Any, *, sharded: bool) -> None:
        self._run, self._name, self._module, self.scaler, self.sharded = run, name, module, scaler, sharded
        self._device = run.trainer.strategy.root_device
        # a mask of -inf, say: nobody has broken it; a sparse graph can't be asked
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
    ) -> Job:
        """Starts to measure an update: one small collective where there are several ranks."""
        ledger = self._run.ledger
        scale = None
        if self.scaler is not None and unscales_itself(ledger.optimizers[index]):
            scale = scale_of(self.scaler)
        rate = max(ledger.without(self._name, index, group) for group in range(ledger.groups(index)))
        wide = widest_float(self._device)
        # filled on the device: one that is made here would be waited for
        numbers = [
            number if isinstance(number, Tensor) else torch.full((), number, dtype=wide, device=self._device)
            for number in more.values()
        ]
        pending = start(loss, self.parameters(index), scale, numbers, device=self._device, sharded=self.sharded)
        return Job(pending, max(rate, 0.0), side, kept, tuple(more), None, shift)

    def broken(self) -> bool:
        """Whether the weights are not finite, on any rank; a collective of its own."""
        parts = [local(p.detach()) for name, p in self._module.named_parameters() if name not in self._infinite]
        bad = sum((~p.isfinite().all()).to(self._device, torch.float32) for p in parts if p.is_floating_point())
        number = torch.as_tensor(bad, dtype=torch.float32, device=self._device)
        return measure(None, [], None, [number], device=self._device).more[0] > 0.0

    def shift(self, index: int, *, trying: bool) -> Shift | None:
        """What the last update of an optimizer has done to its weights; in a trial, which makes none, the same.

        None where that is not known: before its second update, after a resume, after a rewind.
        """
        track = self._tracks[index]
        return track.shift if trying else track.see(self.parameters(index), self._run.ledger.updates(index))

    @torch.no_grad()
    def size(self) -> dict[str, float | Tensor]:
        """This rank's shares of the sum of squares of all trained weights and of their number."""
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        shares: dict[int, list[Tensor]] = {}
        for p in self._trained().values():
            shares.setdefault(pieces(p), []).append(local(p.detach()))
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
        """Does a gradient scaler see to this overflow? Not where the loss itself, which it doesn't touch, is none."""
        if self.scaler is None or math.isfinite(measured.grad_norm):
            return False
        if measured.loss is not None and not math.isfinite(measured.loss):
            return False
        scale = scale_of(self.scaler)
        return scale is not None and float(scale) > SCALE_FLOOR

    def planned_rate(self, index: int, owner: Any) -> float:
        """The height to which the schedule and a warm-up may raise the rate without suspicion.

        A cooldown that a longer run takes back, too.
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


def finish(job: Job) -> tuple[Measured, Signals]:
    """An update's numbers; without any loss, a loss of 1."""
    if job.signals is not None:
        return Measured(job.signals.loss, job.signals.grad_norm, (), None), job.signals
    measured, size = job.pending.read(), None
    if "number" in job.asked:
        more = dict(zip(job.asked, measured.more, strict=True))
        size = math.sqrt(max(more["square"], 0.0) / more["number"]) if more["number"] else None
    loss = 1.0 if measured.loss is None else measured.loss
    return measured, Signals(loss, measured.grad_norm, job.rate, job.side, size=size)


def finite(signals: Signals) -> bool:
    """Whether the loss and the gradient are."""
    return math.isfinite(signals.loss) and math.isfinite(signals.grad_norm)


def judges_of(saved: dict[str, Any], kind: type) -> list[Judge]:
    """The judges of a checkpoint; `kind`: of the policy's states."""
    judges = []
    for index, (state, own, job) in enumerate(zip(saved["states"], saved["judges"], saved["jobs"], strict=True)):
        judge = Judge(index, kind.from_dict(state), **own)  # pyright: ignore[reportAttributeAccessIssue]
        judge.job = None if job is None else known(Signals(*job[0]), job[1])
        judges.append(judge)
    return judges


def known(signals: Signals, kept: int) -> Job:
    """An update of which only the numbers are left."""
    return Job(Pending([], lambda _: Measured(None, 0.0, (), None)), signals.rate, signals.side, kept, (), signals)
