"""UpdateGuard: gathers the numbers of an update, asks the policy, and acts on its verdict."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr.console import count
from lightning_lr.guard.incident_record import incident_record
from lightning_lr.guard.incidents import Rewind, few
from lightning_lr.guard.judge import Judge
from lightning_lr.guard.limits import limit_gradients, scale_gradients
from lightning_lr.guard.unjudged import UnjudgedUpdate, finish, finite
from lightning_lr.policies.verdict import Side, Verdict

if TYPE_CHECKING:
    from lightning_lr.guard.guarded_run import GuardedRun


class DivergenceError(RuntimeError):
    """The run diverged again and again; the model holds the weights of the last healthy copy."""


class UpdateGuard:
    """Takes each update of each optimizer from its gradients to what becomes of it.

    Args:
        guarded: the run: its judges, its copies and the trial under way.
    """

    def __init__(self, guarded: GuardedRun) -> None:
        self._guarded, self._run, self._name = guarded, guarded.run, guarded.name
        self._gauge, self._keeper, self._record = guarded.gauge, guarded.keeper, guarded.record
        self._meter, self._buffers = guarded.meter, guarded.buffers
        self._blind = False

    def gradients_of(self, optimizer: Optimizer) -> None:
        """The gradients of an optimizer are complete: called from `on_before_optimizer_step`."""
        for judge in self._guarded.judges:
            if self._run.ledger.optimizers[judge.index] is optimizer:
                judge.dropped, judge.seen = False, True
                self._see(judge)

    def step_begins(self, index: int) -> None:
        """The optimizer's own step begins: called by the ledger."""
        if index >= len(self._guarded.judges):
            return
        self._keeper.copies.fence()
        judge = self._guarded.judges[index]
        if not judge.seen:
            # a step of the bare optimizer, for which Lightning calls no hook
            self._see(judge)
        elif judge.dropped:
            # under a gradient scaler the step begins only now
            self._run.ledger.discard_update(index)
        judge.seen = judge.dropped = False

    def _see(self, judge: Judge) -> None:
        """Looks at the gradients of an update before they are used."""
        index, trial, loss = judge.index, self._guarded.trial, self._loss(judge.index)
        if self._run.ledger.evaluations(index) > 1 or (trial is None and self._run.ledger.in_trial(index)):
            # what LBFGS, SAM or a sweep tries out says nothing of where the run stands
            return
        if self._guarded.given_up:
            self._drop(judge)
            return
        if loss is None and self._stepless(index):
            # training_step returned None, which Lightning allows on one process: the ledger discards the step
            return
        if trial is not None and (trial.owner != index or trial.over):
            self._drop(judge)
            # in the batch in which a trial begins, and after a rewind, they are the run's own
            self._buffers.restore()
            return
        self._guarded.take_back = self._guarded.remember()
        update = self._start(judge, loss)
        if self._guarded.lag and trial is None:
            limit_gradients(self._gauge.parameters(index), update.pending, judge.limit)
            update.pending.send()
            update, judge.unjudged = judge.unjudged, update
            if update is not None:
                self._judge(judge, update, late=True)
            if self._guarded.trial is None or self._guarded.trial.owner != index:
                return
            # a trial begins: the update at hand is part of it, and judged at once
            update, judge.unjudged = judge.unjudged, None
        if update is not None:
            self._judge(judge, update)

    def _stepless(self, index: int) -> bool:
        """Whether an update without a loss is no update at all."""
        alone = self._guarded.module.automatic_optimization and self._run.trainer.world_size == 1
        return alone and all(p.grad is None for p in self._gauge.parameters(index))

    def _loss(self, index: int) -> Tensor | None:
        """The loss of an update; optimizers that share one backward pass in a batch share its loss."""
        loss = self._meter.take()
        if loss is not None:
            self._guarded.shared = index, loss
        elif self._guarded.shared is not None and self._guarded.shared[0] != index:
            loss = self._guarded.shared[1]
        return loss

    def judge_late(self) -> None:
        """Judges what `lag` has left open, before the weights are read or written by others."""
        self._keeper.copies.fence()
        for judge in self._guarded.judges:
            # a rewind for the one before may have dropped it
            if judge.unjudged is not None and self._guarded.trial is None and not self._guarded.given_up:
                update, judge.unjudged = judge.unjudged, None
                self._judge(judge, update, late=True)
                judge.dropped = False

    def _start(self, judge: Judge, loss: Tensor | None) -> UnjudgedUpdate:
        self._keeper.adopt(judge)
        more: dict[str, float | Tensor] = {}
        side: Side = "present"
        if self._keeper.unlike:
            more["copied"], more["squared"] = self._keeper.copies.newest.snapshot.fingerprint
        if self._guarded.trial is not None and self._guarded.trial.side is not None:
            side = self._guarded.trial.side
        shift = self._gauge.shift(judge.index, trying=self._guarded.trial is not None)
        if judge.measure and side == "present":
            more.update(self._gauge.size())
        return self._gauge.start(judge.index, loss, side, self._buffers.count, more, shift)

    def _judge(self, judge: Judge, update: UnjudgedUpdate, *, late: bool = False) -> None:
        measured, signals = finish(update)
        if self._keeper.unlike and "copied" in update.asked:
            self._keeper.compare(dict(zip(update.asked, measured.more, strict=True)))
        if update.signals is None and measured.loss is None and not self._blind:
            self._blind = True
            rank_zero_warn(
                f"{self._name} sees no loss: call self.manual_backward(loss); until then it judges by gradients alone"
            )
        if self._gauge.calibrating(measured):
            if self._guarded.trial is None:
                return
            # a trial asks for the loss
            signals = signals._replace(grad_norm=0.0)
        if signals.side == "present" and not finite(signals):
            signals = signals._replace(broken=self._gauge.broken())
        if judge.state.update == 0:
            planned = self._gauge.planned_rate(judge.index, self._guarded.guard)
            judge.state = self._guarded.first_copy(self._guarded.policy.start(planned))
        judge.state, verdict = self._guarded.policy.step(judge.state, signals)
        judge.limit, judge.copy, judge.measure = verdict.limit, verdict.copy, verdict.measure
        if verdict.kind == "rewind" and not len(self._keeper.copies):
            verdict = verdict._replace(kind="give_up", cause=f"{verdict.cause}, and there is no copy")
        self._keeper.prove(verdict)
        clock = self._record.counts["judged"]
        self._record.saw(judge.state.update, signals, verdict)
        back = None
        if verdict.kind in ("rewind", "give_up"):
            self._drop(judge)
            back = self._rewind(judge, verdict, clock) if len(self._keeper.copies) else None
        elif not late:
            self._apply(judge, verdict)
        elif not finite(signals):
            # dropped, or the first of a trial
            self._buffers.restore(self._buffers.count - update.kept + 1)
        self._plan(judge, verdict)
        ledger = self._run.ledger
        # at a rate of 0 any factor would do: the one before stays
        if signals.rate > 0.0 and ledger.factor(self._name, judge.index, 0) != verdict.factor:
            factor = judge.factor(verdict, signals.rate)
            ledger.set_factor(self._name, factor, judge.reason, optimizer=judge.index)
        ratio = partial(self._gauge.ratio, update.shift)
        self._record.tell(self._run, judge.index, judge.state.update, measured, signals, verdict, ratio, back)
        if verdict.kind == "give_up":
            known = self._run, self._name, judge.index, judge.state.update, measured, signals, verdict
            self._give_up(judge, verdict, {**incident_record(*known), "what": "gave up", "told": True})

    def _apply(self, judge: Judge, verdict: Verdict) -> None:
        """Does to the update at hand what the verdict says: limits it, drops it, or leaves it as it is."""
        trial = self._guarded.trial
        if verdict.kind != "accept" or trial is not None:
            self._drop(judge)
            if trial is None or trial.side is None:
                self._buffers.restore()
        elif verdict.scale < 1.0:
            scale_gradients(self._gauge.parameters(judge.index), verdict.scale)

    def _plan(self, judge: Judge, verdict: Verdict) -> None:
        if verdict.look is not None and self._guarded.trial is None:
            self._guarded.trial = self._guarded.begin_trial(judge.index)
        if self._guarded.trial is not None:
            self._guarded.trial.plan(verdict)

    def _rewind(self, judge: Judge, verdict: Verdict, clock: int) -> Rewind:
        """Gives a copy back, and returns where it was taken and what is lost."""
        if self._guarded.trial is not None:
            self._guarded.trial.leave()
        target, counts = self._keeper.copies.get(verdict.to), self._record.counts
        # those that were dropped or held since are lost already
        lost = max(clock + 1 - target.clock - (counts["lost"] - target.lost), 0)
        counts["lost"] += lost
        counts["rewinds"] += 1
        if lacking := target.snapshot.lacking():
            rank_zero_warn(
                f"{self._name} rewinds, but holds no copy of {few(lacking)}: they came into the model, or were changed "
                f"in size, after it was taken, and stay as they are"
            )
        self._keeper.restore(verdict.to, clock + 1)
        target.lost = counts["lost"]
        # what is dropped after this in the same batch must not bring those of the broken weights
        self._buffers.keep()
        self._gauge.forget()
        self._guarded.take_back = None
        for other in self._guarded.judges:
            other.unjudged, other.copy = None, False
            if other is not judge:
                other.state = self._guarded.policy.rewound(other.state, verdict.to)
        for peer in self._run.peers:
            peer.rewound(judge.state.rewinds)
        return Rewind(target.step, lost)

    def _give_up(self, judge: Judge, verdict: Verdict, record: dict[str, Any]) -> None:
        self._guarded.given_up = True
        in_a_row, rewinds = judge.state.rewinds, self._record.counts["rewinds"]
        some = "" if in_a_row == rewinds else f", {in_a_row} of them"
        after = f" after {count(rewinds, 'rewind')}{some} without lasting progress" if in_a_row and rewinds else ""
        line = f"{self._name} gives up{after}: {verdict.cause}. {self._weights_left()}"
        journal = self._run.journal
        journal.sum_up()
        if self._guarded.guard.on_give_up == "raise":
            journal.say(line, record=record)
            raise DivergenceError(line)
        journal.tell(line, warn=True, record=record)
        self._run.trainer.should_stop = True

    def _weights_left(self) -> str:
        """Which weights the model holds at the end, in words."""
        if not self._gauge.broken():
            return "The model holds the last healthy weights"
        broken = self._gauge.nonfinite()
        where = few(broken) if broken else "some of another rank's"
        return f"The model does not hold healthy weights, since no healthy copy covers all of them; not finite: {where}"

    def _drop(self, judge: Judge) -> None:
        judge.dropped = True
        self._run.ledger.discard_update(judge.index)
