"""The search for a rate in one run: when a sweep begins, what it borrows, and what becomes of its finding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_lr.copies.footprint import out_of_memory
from lightning_lr.copies.optimizer_memory import parted
from lightning_lr.policies.sweep import LEAST_STEPS, SECOND_STEPS
from lightning_lr.rates.ledger import Ledger
from lightning_lr.run.length import updates_in_run
from lightning_lr.shards import reshard
from lightning_lr.sweeps.announcer import Announcer
from lightning_lr.sweeps.device_space import space
from lightning_lr.sweeps.finding import Finding
from lightning_lr.sweeps.occasions import Occasions
from lightning_lr.sweeps.outlook import needed, shortened
from lightning_lr.sweeps.paused_checks import PausedChecks
from lightning_lr.sweeps.progress_bar import sweep_bar
from lightning_lr.sweeps.running_sweep import RunningSweep
from lightning_lr.sweeps.searcher import Searcher
from lightning_lr.sweeps.sweep_plan import horizon_of, steps_for
from lightning_lr.trials.aside import references


class RateSearch:
    """All sweeps of one finder in one `fit`, one at a time.

    Args:
        finder: whose sweeps.
        occasions: when they are due.
    """

    def __init__(self, finder: Searcher, occasions: Occasions) -> None:
        self._finder, self.occasions = finder, occasions
        self._announcer = Announcer(finder)
        self.sweep: RunningSweep | None = None
        """The sweep under way."""
        self._paused_checks: PausedChecks | None = None
        self._saved: dict[str, Any] | None = None
        """A sweep that was under way when a run was saved, or broken off."""
        self._checks_were_paused = self._parted = False
        self._index = 0
        self._takes = ""
        """What the latest sweep takes on the device, in words."""

    @property
    def checks_paused(self) -> bool:
        """Whether a sweep is under way, or has ended and no batch has begun since."""
        return self._paused_checks is not None

    # the run ---------------------------------------------------------------------------------------------------

    def start(self, trainer: Any, module: Any, index: int, *, auto: bool) -> None:
        """Training starts: plans the sweeps, and goes on with one that was saved.

        Args:
            trainer: at the start of training.
            module: whose weights.
            index: of the optimizer to sweep.
            auto: whether nobody chose the sweeps' length.
        """
        self._index = index
        references(self._ledger, trainer, index)
        self._parted = reshard(module) or parted(self._ledger.optimizers, trainer.world_size)
        saved, self._saved = self._saved, None
        left = updates_in_run(trainer, None)
        run = None if left is None else left + self._ledger.updates(index)
        if auto:
            steps = shortened(trainer, steps_for(run), run, replay=self._finder.replay)
            steps = steps if saved is None else saved["steps"]
            self._finder.policy = replace(self._finder.policy, steps=steps)
        self.occasions.plan(run)
        if saved is not None:
            self._begin(trainer, module, saved)
        elif self._checks_were_paused:
            self._paused_checks = PausedChecks(trainer)
        self._checks_were_paused = False
        self._look_ahead(trainer)

    def begin_batch(self, trainer: Any, module: Any, batch_idx: int) -> None:
        """At the start of a batch: begins a sweep if one is due, and puts its state in place."""
        if self.sweep is None:
            self._resume_checks()
            # two at once would each take the other's weights for the run's
            free = not any(peer.trying for peer in self._finder.run.peers)
            if free and batch_idx % trainer.accumulate_grad_batches == 0:
                if self._due(trainer):
                    self._begin(trainer, module)
                elif self._second_look_due(trainer):
                    self._begin(trainer, module, around=self._present(trainer))
        if self.sweep is not None:
            self.sweep.begin_batch(batch_idx)
            if self.sweep.failed:
                self._end_for_memory()

    def end_batch(self, trainer: Any, batch_idx: int) -> None:
        """At the end of a batch of a sweep: takes the healthy state back, and the finding if the sweep is over."""
        assert self.sweep is not None
        self.sweep.end_batch(batch_idx)
        if self.sweep.failed:
            self._end_for_memory()
        elif self.sweep.over:
            finding, unpaired = self.sweep.finding(), self.sweep.unpaired
            self._finder.findings.append(finding)
            self._drop_sweep()
            if finding.suggestion is not None and self._finder.apply:
                self._apply(trainer, finding, finding.suggestion)
            self._announcer.found(trainer, finding, self.occasions.why, unpaired, self._index)

    def end(self) -> None:
        """Training is over: breaks a sweep off that is under way."""
        self._resume_checks()
        if self.sweep is not None:
            rank_zero_warn(
                f"{self._finder.name}: the run ended after {len(self.sweep.state.losses)} updates of a sweep that may "
                f"take {self._finder.policy.steps}; no rate was found and the weights are those from before it"
            )
            self._break_off()

    def fail(self, exception: BaseException) -> None:
        """Something raised: breaks a sweep off; a checkpoint that somebody may still save has it."""
        self._checks_were_paused = self.checks_paused
        self._resume_checks()
        if self.sweep is not None and out_of_memory(exception):
            # a resumed run would only get here again
            self._end_for_memory()
            self._checks_were_paused = False
        self._break_off()

    def close(self) -> None:
        """Gives back all that was borrowed."""
        self._resume_checks()
        self._drop_sweep()

    def _drop_sweep(self) -> None:
        sweep, self.sweep = self.sweep, None
        if sweep is not None:
            sweep.close()

    def _resume_checks(self) -> None:
        checks, self._paused_checks = self._paused_checks, None
        if checks is not None:
            checks.release()

    def _break_off(self) -> None:
        """Ends a sweep before its time; a checkpoint that somebody may still save has it."""
        if self.sweep is not None:
            self.sweep.rest()
            self._saved = self._under_way()
            self.occasions.take_back()
            self._drop_sweep()

    def _end_for_memory(self) -> None:
        """The device's memory has run out in a sweep."""
        assert self.sweep is not None
        done = len(self.sweep.state.losses)
        self.close()
        self._announcer.out_of_memory(self.occasions.why, self._takes, done)

    # when ------------------------------------------------------------------------------------------------------

    def _look_ahead(self, trainer: Any) -> None:
        """Says at the start of a run which sweeps it has no room for."""
        finder, say = self._finder, self._announcer.say
        if trainer.fast_dev_run:
            say("no sweep in a fast_dev_run")
            return
        if not self.occasions.schedule.words:
            say(
                f"at= and epochs= are both None, so it sweeps only on request, by finder.request(...) or "
                f"a DivergenceGuard. To find the rate at the start, write {finder.written(at=0)}"
            )
        made, shorter = self._ledger.updates(self._index), finder.written(steps=LEAST_STEPS)
        refusals = self.occasions.look_ahead(trainer, made=made, steps=finder.policy.steps, shorter=shorter)
        if refusals:
            say(f"{'; '.join(refusals)}. The rate stays as it is. To do without a finder, {finder.left_out}", loud=True)

    def _due(self, trainer: Any) -> bool:
        if not self._ledger.optimizers:
            return False
        update, steps = self._ledger.updates(self._index), self._finder.policy.steps
        return self.occasions.due(trainer, update=update, steps=steps, say=self._announcer.say)

    def _second_look_due(self, trainer: Any) -> bool:
        """Whether a second opinion is due, where the rate is neither on its way up nor down."""
        planned = self.occasions.second_looks
        if not planned or self._ledger.updates(self._index) < planned[0]:
            return False
        if any(peer.settling for peer in self._finder.run.peers if peer is not self._finder):
            return False
        found = self._finder.findings
        return self.occasions.take_second_look(trainer, found=bool(found), sure=bool(found) and found[-1].sure is True)

    # a sweep begins, and is over -------------------------------------------------------------------------------

    def _begin(
        self, trainer: Any, module: Any, saved: dict[str, Any] | None = None, around: float | None = None
    ) -> None:
        finder, policy = self._finder, self._finder.policy
        if around is not None and not policy.min_lr <= around <= policy.max_lr:
            why = self.occasions.why
            self._announcer.say(f"no sweep ({why}): the present rate {around:.3g} is not within min_lr and max_lr")
            return
        most = policy.steps if around is None else min(SECOND_STEPS, policy.steps)
        if saved is None and not self._has_room(trainer, module, most):
            return
        done = 0 if saved is None else len(saved["policy"]["losses"])
        bar = sweep_bar(trainer, finder.name, most, done) if finder.progress_bar else None
        horizon = horizon_of(trainer, self._ledger.optimizers[self._index], finder.run.peers)
        began = policy.start(around=around, paired=finder.replay, horizon=horizon)
        self.sweep = RunningSweep(
            *(policy, trainer, module, self._ledger, finder.run.journal, self._index, bar, began),
            replay=finder.replay,
            saved=saved,
        )
        if self.sweep.failed:
            self._end_for_memory()
        else:
            self._paused_checks = PausedChecks(trainer)

    def _has_room(self, trainer: Any, module: Any, most: int) -> bool:
        """Whether a sweep fits on the device, as far as can be told; says what it takes, or why there is none."""
        found = space(trainer, module, self._ledger.optimizers)
        self._takes = found.takes
        if not found.room.fits:
            self._announcer.no_memory(self.occasions.why, found)
            return False
        needs = needed(trainer, most, replay=self._finder.replay)
        self._announcer.begins(trainer, self.occasions.why, needs, found)
        return True

    def _present(self, trainer: Any) -> float:
        """The present rate of the group whose reference rate is the highest, absolute."""
        peaks = references(self._ledger, trainer, self._index)
        return self._ledger.effective(self._index, peaks.index(max(peaks)))

    def _apply(self, trainer: Any, finding: Finding, rate: float) -> None:
        name = self._finder.name
        factor = rate / max(references(self._ledger, trainer, self._index))
        if finding.around is not None:
            # other factors, and a schedule, hold for what was compared as for what comes of it
            factor = self._ledger.factor(name, self._index, 0) * rate / finding.around
        self._ledger.set_factor(name, factor, finding.words, optimizer=self._index)

    @property
    def _ledger(self) -> Ledger:
        return self._finder.run.ledger

    # state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What has been found and where, and the sweep that is under way.

        Where ranks hold parts of the weights or of the optimizer's state, a checkpoint holds what rank zero gives, and
        so no sweep: when the run is resumed, the sweep starts over.
        """
        sweep = self._saved if self.sweep is None else self._under_way()
        found = [finding.to_dict() for finding in self._finder.findings]
        held = self.checks_paused or self._checks_were_paused
        occasions = self.occasions.state_dict(before_sweep=self.sweep is not None)
        return {**occasions, "findings": found, "sweep": sweep, "held": held}

    def _under_way(self) -> dict[str, Any] | None:
        sweep = self.sweep
        if sweep is None or sweep.over or sweep.failed or self._parted or not sweep.between_batches:
            return None
        state = sweep.state_dict()
        if state is None:
            return None
        own = {**self.occasions.state_dict(), "why": self.occasions.why, "steps": self._finder.policy.steps}
        return {**own, **state}

    def load_state_dict(self, saved: dict[str, Any], *, anew: bool) -> None:
        """Takes up what `state_dict` gave.

        Args:
            saved: what it gave.
            anew: whether a sweep that was under way starts over: it is another one now.
        """
        sweep = None if anew else saved["sweep"]
        if sweep is not None and "again" not in sweep:
            # of the release before: its sweep starts over
            sweep = None
        self._saved, self._checks_were_paused = sweep, saved["held"]
        self.occasions.load_state_dict(saved, sweep)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "sweep": None, "_paused_checks": None}
