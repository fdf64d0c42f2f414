"""Guarding: gather an update's numbers, ask the policy, act."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr.console import count
from lightning_lr.guard.facts import incident
from lightning_lr.guard.guarded import Guarded
from lightning_lr.guard.incidents import Back, few
from lightning_lr.guard.judge import Job, Judge, finish, finite
from lightning_lr.guard.limits import limit_gradients, scale_gradients
from lightning_lr.policies.verdict import Side, Verdict


class DivergenceError(RuntimeError):
    """The run diverged again and again; the model holds the weights of the last healthy copy."""


class Guarding(Guarded):
    """Takes each update of each optimizer from its gradients to what becomes of it."""

    def gradients_of(self, optimizer: Optimizer) -> None:
        """Lightning tells that the gradients of an optimizer are there."""
        for judge in self.judges:
            if self.run.ledger.optimizers[judge.index] is optimizer:
                judge.dropped, judge.seen = False, True
                self._see(judge)

    def step_begins(self, index: int) -> None:
        """The same within the optimizer's own step, as the ledger tells it."""
        if index >= len(self.judges):
            return
        self.keeper.generations.fence()
        judge = self.judges[index]
        if not judge.seen:
            # a step by the bare optimizer, which Lightning doesn't tell of
            self._see(judge)
        elif judge.dropped:
            # under a gradient scaler the step begins only now
            self.run.ledger.discard_update(index)
        judge.seen = judge.dropped = False

    def _see(self, judge: Judge) -> None:
        """The gradients of an update are there, and not used yet."""
        index, tryout, loss = judge.index, self.tryout, self._loss(judge.index)
        if self.run.ledger.evaluations(index) > 1 or (tryout is None and self.run.ledger.in_trial(index)):
            # what LBFGS or SAM tries out on the way, or a sweep, is not where the run stands
            return
        if self.given_up:
            self._drop(judge)
            return
        if loss is None and self._stepless(index):
            # training_step returned None, which Lightning allows on one process: the ledger discards the step
            return
        if tryout is not None and (tryout.owner != index or tryout.over):
            self._drop(judge)
            # in the batch in which a trial begins, and after a rewind, they are the run's own
            self.buffers.restore()
            return
        self.take_back = self._remember()
        job = self._start(judge, loss)
        if self.lag and tryout is None:
            limit_gradients(self.ground.parameters(index), job.pending, judge.limit)
            job.pending.send()
            job, judge.job = judge.job, job
            if job is not None:
                self._judge(judge, job, late=True)
            if self.tryout is None or self.tryout.owner != index:
                return
            # a trial begins: the update at hand is part of it, and judged at once
            job, judge.job = judge.job, None
        if job is not None:
            self._judge(judge, job)

    def _stepless(self, index: int) -> bool:
        """Whether an update without a loss is to be none."""
        alone = self.module.automatic_optimization and self.run.trainer.world_size == 1
        return alone and all(p.grad is None for p in self.ground.parameters(index))

    def _loss(self, index: int) -> Tensor | None:
        """The loss of an update: of optimizers that share one backward pass in a batch each has the same."""
        loss = self.meter.take()
        if loss is not None:
            self.shared = index, loss
        elif self.shared is not None and self.shared[0] != index:
            loss = self.shared[1]
        return loss

    def judge_late(self) -> None:
        """Before somebody looks at the weights, or writes them: judges what `lag` has left open."""
        self.keeper.generations.fence()
        for judge in self.judges:
            # a rewind for the one before may have dropped it
            if judge.job is not None and self.tryout is None and not self.given_up:
                job, judge.job = judge.job, None
                self._judge(judge, job, late=True)
                judge.dropped = False

    def _start(self, judge: Judge, loss: Tensor | None) -> Job:
        self.keeper.adopt(judge)
        more: dict[str, float | Tensor] = {}
        side: Side = "present"
        if self.keeper.unlike:
            more["copied"], more["squared"] = self.keeper.generations.newest.snapshot.fingerprint
        if self.tryout is not None and self.tryout.side is not None:
            side = self.tryout.side
        shift = self.ground.shift(judge.index, trying=self.tryout is not None)
        if judge.measure and side == "present":
            more.update(self.ground.size())
        return self.ground.start(judge.index, loss, side, self.buffers.count, more, shift)

    def _judge(self, judge: Judge, job: Job, *, late: bool = False) -> None:
        measured, signals = finish(job)
        if self.keeper.unlike and "copied" in job.asked:
            self.keeper.compare(dict(zip(job.asked, measured.more, strict=True)))
        if job.signals is None and measured.loss is None and not self._blind:
            self._blind = True
            rank_zero_warn(f"{self.name} sees no loss (use self.manual_backward): it judges by gradients alone")
        if self.ground.calibrating(measured):
            if self.tryout is None:
                return
            # a trial asks for the loss
            signals = signals._replace(grad_norm=0.0)
        if signals.side == "present" and not finite(signals):
            signals = signals._replace(broken=self.ground.broken())
        if judge.state.update == 0:
            planned = self.ground.planned_rate(judge.index, self.guard)
            judge.state = self.first_copy(self.policy.start(planned))
        judge.state, verdict = self.policy.step(judge.state, signals)
        judge.limit, judge.copy, judge.measure = verdict.limit, verdict.copy, verdict.measure
        if verdict.kind == "rewind" and not len(self.keeper.generations):
            verdict = verdict._replace(kind="give_up", cause=f"{verdict.cause}, and there is no copy")
        self.keeper.prove(verdict)
        clock = self.record.counts["judged"]
        self.record.saw(judge.state.update, signals, verdict)
        back = None
        if verdict.kind in ("rewind", "give_up"):
            self._drop(judge)
            back = self._rewind(judge, verdict, clock) if len(self.keeper.generations) else None
        elif not late:
            self._apply(judge, verdict)
        elif not finite(signals):
            # dropped, or the first of a trial
            self.buffers.restore(self.buffers.count - job.kept + 1)
        self._plan(judge, verdict)
        ledger = self.run.ledger
        # at a rate of 0 any factor would do: the one before stays
        if signals.rate > 0.0 and ledger.factor(self.name, judge.index, 0) != verdict.factor:
            factor = judge.factor(verdict, signals.rate)
            ledger.set_factor(self.name, factor, judge.reason, optimizer=judge.index)
        ratio = partial(self.ground.ratio, job.shift)
        self.record.tell(self.run, judge.index, judge.state.update, measured, signals, verdict, ratio, back)
        if verdict.kind == "give_up":
            known = self.run, self.name, judge.index, judge.state.update, measured, signals, verdict
            self._give_up(judge, verdict, {**incident(*known), "what": "gave up", "told": True})

    def _apply(self, judge: Judge, verdict: Verdict) -> None:
        """Makes the update at hand what the verdict says: limited, dropped, or made as it is."""
        tryout = self.tryout
        if verdict.kind != "accept" or tryout is not None:
            self._drop(judge)
            if tryout is None or tryout.side is None:
                self.buffers.restore()
        elif verdict.scale < 1.0:
            scale_gradients(self.ground.parameters(judge.index), verdict.scale)

    def _plan(self, judge: Judge, verdict: Verdict) -> None:
        if verdict.look is not None and self.tryout is None:
            self.tryout = self._try_out(judge.index)
        if self.tryout is not None:
            self.tryout.plan(verdict)

    def _rewind(self, judge: Judge, verdict: Verdict, clock: int) -> Back:
        """Gives a copy back; says where it was taken and what is lost."""
        if self.tryout is not None:
            self.tryout.leave()
        target, counts = self.keeper.generations.get(verdict.to), self.record.counts
        # those that were dropped or held since are lost already
        lost = max(clock + 1 - target.clock - (counts["lost"] - target.lost), 0)
        counts["lost"] += lost
        counts["rewinds"] += 1
        if lacking := target.snapshot.lacking():
            rank_zero_warn(
                f"{self.name} rewinds, but holds no copy of {few(lacking)}: they came into the model, or were changed "
                f"in size, after it was taken, and stay as they are"
            )
        self.keeper.restore(verdict.to, clock + 1)
        target.lost = counts["lost"]
        # what is dropped after this in the same batch must not bring those of the broken weights
        self.buffers.keep()
        self.ground.forget()
        self.take_back = None
        for other in self.judges:
            other.job, other.copy = None, False
            if other is not judge:
                other.state = self.policy.rewound(other.state, verdict.to)
        for peer in self.run.peers:
            peer.rewound(judge.state.rewinds)
        return Back(target.step, lost)

    def _give_up(self, judge: Judge, verdict: Verdict, record: dict[str, Any]) -> None:
        self.given_up = True
        in_a_row, rewinds = judge.state.rewinds, self.record.counts["rewinds"]
        some = "" if in_a_row == rewinds else f", {in_a_row} of them"
        after = f" after {count(rewinds, 'rewind')}{some} without lasting progress" if in_a_row else ""
        line = f"{self.name} gives up{after}: {verdict.cause}. {self._weights_left()}"
        journal = self.run.journal
        journal.sum_up()
        if self.guard.on_give_up == "raise":
            journal.say(line, record=record)
            raise DivergenceError(line)
        journal.tell(line, warn=True, record=record)
        self.run.trainer.should_stop = True

    def _weights_left(self) -> str:
        """What weights the model holds at the end, in words."""
        if not self.ground.broken():
            return "The model holds the last healthy weights"
        broken = self.ground.nonfinite()
        where = few(broken) if broken else "some of another rank's"
        return f"The model does not hold healthy weights, since there is no healthy copy of all; not finite: {where}"

    def _drop(self, judge: Judge) -> None:
        judge.dropped = True
        self.run.ledger.discard_update(judge.index)
