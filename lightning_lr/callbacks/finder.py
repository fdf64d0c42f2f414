"""`LRFinder`: the rate is found inside the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_lr.arguments import whole_number
from lightning_lr.callbacks.base import LRCallback
from lightning_lr.copies.footprint import out_of_memory
from lightning_lr.copies.optimizer_memory import parted
from lightning_lr.policies.sweep import BRACKET, LEAST_STEPS, SECOND_STEPS, SweepPolicy
from lightning_lr.policies.sweep_schedule import SweepSchedule, SweepScheduleState, places
from lightning_lr.record.curves import FINDER
from lightning_lr.run.length import accumulation, updates_in_run
from lightning_lr.shards import reshard
from lightning_lr.sweeps.device_space import REMEDY, space
from lightning_lr.sweeps.finding import Finding
from lightning_lr.sweeps.paused_checks import PausedChecks
from lightning_lr.sweeps.plan import AUTO, comes_back_at, horizon_of, steps_for
from lightning_lr.sweeps.progress_bar import sweep_bar
from lightning_lr.sweeps.room import AUTO_REST, LEAST_REST, fits, needed, no_room, outlook, shortened
from lightning_lr.sweeps.running_sweep import RunningSweep
from lightning_lr.trials.aside import references

Rule = Literal["bracket", "steepest", "valley", "slide", "minimum"]

ASKED = 3
"""Rewinds without lasting progress after which a guard beside it makes it look for a rate once more."""

SWEPT = frozenset(("min_lr", "max_lr", "steps", "suggest", "optimizer", "replay"))
"""Arguments that make a sweep another one."""


class LRFinder(LRCallback):
    """Finds the rate by trying rates out inside the run, and leaves no other trace.

    All rates are tried from the same weights on the same batches, and compared by what they do to the losses of the
    same probe batches, with a standard error; see `SweepPolicy`. A share of the best rate is suggested, the lower the
    longer the run is and the weaker the evidence. A suggestion is *sure* or *unsure*, with the range of rates that
    can't be told apart (`result.sure`, `.low`, `.high`); where it is unsure, the careful end of that range is taken.

    For at most `steps` updates batches of the run train a trial: a second state of weights, buffers, optimizer and
    torchmetrics that is in place only within a batch. Validation, checkpoints, callbacks at a batch's end and whatever
    follows an exception see the healthy state, which is bit for bit as it was. Then the random generators go back too,
    and the rate found becomes a *factor*: param groups keep their ratio, and any scheduler goes on above it. The rate
    is compared with each group's peak: `max_lr` under OneCycle and Cyclic schedules, else `initial_lr`.

    The batches of a sweep count for `trainer.global_step`, the data loader and the schedulers, not for `Warmup` or for
    anything else that counts real updates. What a sweep costs is said before it begins, in updates and in batches.
    Where no rate changes the loss, or all blow up, the finder refuses in words and the run goes on with the user's
    rate. Where the run is too short for a sweep it says so at the start of `fit`, and makes none: with `steps="auto"`
    where one would take more than half of what is left of the run.

    With `at="auto"` it comes back in runs of 1,500 updates and more, for a second opinion on the present rate: after a
    tenth of the run (150 to 1,000 updates), for at most 41 updates. A rate that raises the loss is lowered to one that
    doesn't, by three or nine; one that nine times itself beats beyond doubt is tripled; else it stays. After an unsure
    sweep it comes back once more, after three tenths.

    In a sweep the model does not learn, and what others see of the run is true to that:

    - Training metrics are those of the healthy weights. A batch counts for what `training_step` logs, torchmetrics
      included, if it ran at them: those before a trial's first update do. Each epoch whose first batch would be another
      one begins with a pause, in which the batch counts and the sweep waits for one update (under accumulation, for all
      of its batches). Where epochs have fewer than four updates, some have none, and keep the values of the one before.
      What is logged in the other batches counts for nothing.
    - Validation runs as always and is logged. But it finds the same weights again and again, so until the first batch
      after the sweep `EarlyStopping` makes no check, a `ModelCheckpoint` that monitors a metric saves nothing, the
      user's `ReduceLROnPlateau` schedulers are not stepped, and `PlateauDecay` rests. A `ModelCheckpoint` without
      `monitor` saves on; a run resumed from such a checkpoint goes on with the sweep.

    Its trial takes a second state of weights, buffers and optimizer on the device. On an accelerator a line says how
    much, before the sweep; where that is more than is free beside the run's own peak, on any rank, there is no sweep
    and the rate stays as it is, in words. So it does where the memory runs out in a sweep's midst.

    It shows a progress bar while it sweeps, one line on the console, `lr-events`, the scalars `lr-finder/rate` and
    `lr-finder/loss`, and the curve as a figure in TensorBoard.

    Args:
        at: the real updates before which it sweeps, from 0; None: only at `epochs`, or when asked; `"auto"`: at the
            start, with a second opinion later. An update inside of a window of accumulation waits for its end.
        epochs: epochs, from 0, at whose start it sweeps too. Beside a `DivergenceGuard` it also sweeps when that asks
            it to, after three rewinds without lasting progress.
        min_lr: the lowest rate tried, absolute, > 0.
        max_lr: the highest, absolute.
        steps: the most updates of a sweep, >= 20; its pauses come on top. `"auto"`: 2% of the run's updates, at least
            60 and at most 300 (60 where the run's length isn't known), or 20 where 60 would take more than half of it.
        suggest: `bracket` (see `SweepPolicy`), or `steepest`, `valley`, `slide`, `minimum` on a plain ramp.
        replay: whether a sweep keeps some of its batches in memory and compares all rates on the same ones. Where they
            can't be kept it goes on without, in words. Where they are too large for a checkpoint, or of a class of
            their own, a resumed run begins its sweep anew.
        apply: False: only report.
        optimizer: the index of the optimizer to sweep, where there are several.
        progress_bar: whether to show one, on rank zero, beside Lightning's own.
        name: under which its factor is kept and shown; by default the class's own. Two callbacks of one kind need
            different ones: `LRFinder(..., name="Second")`.

    Raises:
        ValueError: at construction for a value outside its bounds; at the start of `fit` for several optimizers of
            which none is named, and for reference rates that are all zero.

    Example:
        >>> from lightning_lr import LRFinder
        >>> LRFinder(at=[0, 500], steps=100).result is None
        True
    """

    copies = sweeps = True

    def __init__(
        self,
        *,
        at: int | Sequence[int] | Literal["auto"] | None = "auto",
        epochs: int | Sequence[int] | None = None,
        min_lr: float = 1e-8,
        max_lr: float = 10.0,
        steps: int | Literal["auto"] = "auto",
        suggest: Rule = "bracket",
        replay: bool = True,
        apply: bool = True,
        optimizer: int | None = None,
        progress_bar: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.keep_arguments(locals())
        for name, value in {"at": at, "steps": steps}.items():
            if isinstance(value, str) and value != AUTO:
                raise ValueError(f"{name} must be a number or {AUTO!r}, got {value!r}")
        if steps != AUTO:
            steps = whole_number("steps", steps, LEAST_STEPS, f"fewer show nothing, {AUTO!r} goes by the run's length")
        for name, value in {"replay": replay, "apply": apply, "progress_bar": progress_bar}.items():
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
        self.replay = replay and suggest == BRACKET
        self.steps: int | Literal["auto"] = steps
        self.policy = SweepPolicy(min_lr, max_lr, steps_for(None) if isinstance(steps, str) else steps, suggest)
        unasked = isinstance(at, str)
        self.agenda = SweepSchedule((0,) if unasked else places("at", at), places("epochs", epochs), unasked)
        self._least_rest = AUTO_REST if isinstance(steps, str) else LEAST_REST
        self.comes_back = isinstance(at, str) and suggest == BRACKET
        """Whether it looks at what it found again, later in the run."""
        if optimizer is not None:
            optimizer = whole_number("optimizer", optimizer, 0, "it is an index, or None where there is one only")
        self.apply, self.optimizer, self.progress_bar = apply, optimizer, progress_bar
        self.findings: list[Finding] = []
        self._sweep: RunningSweep | None = None
        self._held: PausedChecks | None = None
        self.reset()

    # what users ask --------------------------------------------------------------------------------------------

    @property
    def result(self) -> Finding | None:
        """What the latest sweep of the last `fit` found; None before the first."""
        return self.findings[-1] if self.findings else None

    @property
    def sweeping(self) -> bool:
        """Whether a sweep is under way."""
        return self._sweep is not None

    @property
    def trying(self) -> bool:
        """Whether a sweep is under way."""
        return self.sweeping

    @property
    def settling(self) -> bool:
        """Whether a sweep is under way, or has ended and no batch has begun since: validation may still come."""
        return self._held is not None

    @property
    def found_nothing(self) -> bool:
        """Whether its sweeps have all ended without a suggestion: nobody knows then what the present rate is worth."""
        return self.apply and bool(self.findings) and all(found.suggestion is None for found in self.findings)

    def request(self, reason: str) -> None:
        """Asks for a sweep at the next batch that begins an update: after unfreezing, say.

        Args:
            reason: why, for `lr-events`.
        """
        self._places = replace(self._places, requested=reason)

    def rewound(self, rewinds: int) -> None:
        if rewinds == ASKED:
            self.request(f"{ASKED} rewinds without lasting progress")

    def plot(self) -> Any:
        """The latest sweep's curve, as a `matplotlib.figure.Figure`.

        Raises:
            RuntimeError: before the first sweep has ended.
        """
        if self.result is None:
            raise RuntimeError(f"{self.name} has nothing to show yet: no sweep has ended")
        return self.result.plot()

    # the run ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.go_first(trainer)

    def reset(self) -> None:
        self._close()
        self._release()
        self.findings = []
        self._places = SweepScheduleState()
        self._before_sweep = self._places
        self._why = self._takes = ""
        self._saved: dict[str, Any] | None = None
        self._was_held = self._parted = False
        self._index = 0
        self._roomless: frozenset[str] = frozenset()
        self._again: list[int] | None = None
        self._before_again: list[int] | None = None
        """The real updates before which it looks again; None: not planned yet."""

    def started(self, trainer: Any, pl_module: Any) -> None:
        optimizers = self.ledger.optimizers
        if not optimizers:
            return
        if self.optimizer is None and len(optimizers) > 1:
            names = ", ".join(f"{i}: {type(o).__name__}" for i, o in enumerate(optimizers))
            raise ValueError(
                f"{self.name} sweeps one optimizer, and configure_optimizers gave {len(optimizers)} ({names}): "
                f"name the one to sweep with {self.written(optimizer=0)}, or {self.left_out}"
            )
        if (self.optimizer or 0) >= len(optimizers):
            raise ValueError(
                f"{self.name}(optimizer={self.optimizer}) names none of the run's {len(optimizers)} optimizers: "
                f"they count from 0, so write {self.written(optimizer=0)}"
            )
        self._index = self.optimizer or 0
        references(self.ledger, trainer, self._index)
        self._parted = reshard(pl_module) or parted(self.ledger.optimizers, trainer.world_size)
        saved, self._saved = self._saved, None
        run = updates_in_run(trainer, None)
        run = None if run is None else run + self.ledger.updates(self._index)
        if self.steps == AUTO:
            chosen = shortened(trainer, steps_for(run), run, replay=self.replay)
            steps = saved["steps"] if saved is not None else chosen
            self.policy = replace(self.policy, steps=steps)
        if self._again is None:
            self._again = comes_back_at(run) if self.comes_back else []
        if saved is not None:
            self._begin(trainer, pl_module, saved)
        elif self._was_held:
            self._held = PausedChecks(trainer)
        self._was_held = False
        self._look_ahead(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._sweep is None:
            self._release()
            # two at once would each take the other's weights for the run's
            free = not any(peer.trying for peer in self.run.peers)
            if free and batch_idx % trainer.accumulate_grad_batches == 0:
                if self._due(trainer):
                    self._begin(trainer, pl_module)
                elif self._again and self._looks_again(trainer):
                    self._begin(trainer, pl_module, around=self._present(trainer))
        if self._sweep is not None:
            self._sweep.begin_batch(batch_idx)
            if self._sweep.failed:
                self._end_short()

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if self._sweep is not None:
            self._sweep.see(loss)

    def after_update(self, optimizer: int) -> None:
        if self._sweep is not None:
            self._sweep.updated(optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._sweep is not None:
            self._sweep.end_batch(batch_idx)
            if self._sweep.failed:
                self._end_short()
            elif self._sweep.over:
                self.findings.append(self._sweep.finding())
                unpaired = self._sweep.unpaired
                self._close()
                self._announce(trainer, self.findings[-1], unpaired)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._sweep is not None:
            self._sweep.cut_batch()
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._release()
        if self._sweep is not None:
            rank_zero_warn(
                f"{self.name}: the run ended after {len(self._sweep.state.losses)} updates of a sweep that may take "
                f"{self.policy.steps}; no rate was found and the weights are those from before it"
            )
            self._break_off()
        super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._was_held = self.settling
        self._release()
        if self._sweep is not None and out_of_memory(exception):
            # a resumed run would only get here again
            self._end_short()
            self._was_held = False
        self._break_off()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._release()
        self._close()
        super().teardown(trainer, pl_module, stage)

    def _close(self) -> None:
        sweep, self._sweep = self._sweep, None
        if sweep is not None:
            sweep.close()

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def _break_off(self) -> None:
        """Ends a sweep before its time; a checkpoint that somebody may still save has it."""
        if self._sweep is not None:
            self._sweep.rest()
            self._saved = self._under_way()
            self._places, self._again = self._before_sweep, self._before_again
            self._close()

    def _end_short(self) -> None:
        """The device's memory has run out in a sweep."""
        assert self._sweep is not None
        done = len(self._sweep.state.losses)
        self._close()
        self._release()
        self._say(
            f"a device ran out of memory after {done} updates of a sweep ({self._why}), which takes {self._takes}; "
            f"no rate was found, the weights are those from before it, and the rate stays as it is. {REMEDY}. To do "
            f"without a finder, {self.left_out}",
            loud=True,
        )

    def _has_room(self, trainer: Any, pl_module: Any, most: int) -> bool:
        """Whether a sweep fits on the device, as far as can be told; says what it takes, or why there is none."""
        found = space(trainer, pl_module, self.ledger.optimizers)
        self._takes = found.takes
        if not found.room.fits:
            self._say(
                f"no sweep ({self._why}): it takes {found.takes}, and {found.free}. The rate stays as it "
                f"is. {REMEDY}. To do without a finder, {self.left_out}",
                loud=True,
            )
            return False
        needs, left = needed(trainer, most, replay=self.replay), updates_in_run(trainer, None)
        of = f", {needs / left:.1%} of the {left:.0f} that are left," if left else ""
        memory = f". It takes {found.takes}, of {found.free}" if found.free else ""
        self._say(
            f"sweep ({self._why}): it may take {needs} updates ({needs * accumulation(trainer, trainer.current_epoch)} "
            f"batches of the run){of} in which the model learns nothing{memory}"
        )
        return True

    def _look_ahead(self, trainer: Any) -> None:
        """Says at the start of a run which sweeps it has no room for."""
        if trainer.fast_dev_run:
            self._say("no sweep in a fast_dev_run")
            return
        if not self.agenda.words:
            self._say(
                f"no sweep of its own, with neither at= nor epochs=: only when it is asked, by finder.request(...) or "
                f"a DivergenceGuard. To find the rate at the start, write {self.written(at=0)}"
            )
        made, shorter = self.ledger.updates(self._index), self.written(steps=LEAST_STEPS)
        length: dict[str, Any] = {"made": made, "steps": self.policy.steps, "least_rest": self._least_rest}
        seen = outlook(trainer, self.agenda, self._places, **length, replay=self.replay, shorter=shorter)
        self._roomless = seen.roomless
        if seen.refusals:
            self._say(
                f"{'; '.join(seen.refusals)}. The rate stays as it is. To do without a finder, {self.left_out}",
                loud=True,
            )

    def _due(self, trainer: Any) -> bool:
        """Whether a sweep is to begin with this batch."""
        if not self.ledger.optimizers:
            return False
        before, update = self._places, self.ledger.updates(self._index)
        self._places, self._why = self.agenda.step(before, update=update, epoch=trainer.current_epoch)
        if not self._why or trainer.fast_dev_run:
            return False
        self._before_sweep, self._before_again = before, self._again
        if set(self._places.done) - set(before.done) - self._roomless:
            return True
        if before.requested is None:
            return False
        left, needs = updates_in_run(trainer, None), needed(trainer, self.policy.steps, replay=self.replay)
        if left is None or fits(needs, left, self._least_rest):
            return True
        self._say(f"no sweep ({self._why}): {no_room(needs, left, self._least_rest)}")
        return False

    def _looks_again(self, trainer: Any) -> bool:
        """Whether what was found is to be looked at again now: where the rate is neither on its way up nor down."""
        assert self._again is not None
        if self.ledger.updates(self._index) < self._again[0] or any(
            peer.settling for peer in self.run.peers if peer is not self
        ):
            return False
        first, *later = self._again
        # whoever was sure at first is asked once more, and not twice
        self._before_again = [first, *later]
        self._again = later if self.result is not None and self.result.sure is not True else []
        left, needs = updates_in_run(trainer, None), needed(trainer, SECOND_STEPS, replay=self.replay)
        self._why = "a second opinion"
        self._before_sweep = self._places
        return self.result is not None and (left is None or fits(needs, left))

    def _present(self, trainer: Any) -> float:
        """The present rate of the group whose reference rate is the highest, absolute."""
        peaks = references(self.ledger, trainer, self._index)
        return self.ledger.effective(self._index, peaks.index(max(peaks)))

    def _begin(
        self, trainer: Any, pl_module: Any, saved: dict[str, Any] | None = None, around: float | None = None
    ) -> None:
        if around is not None and not self.policy.min_lr <= around <= self.policy.max_lr:
            self._say(f"no sweep ({self._why}): the present rate {around:.3g} is not within min_lr and max_lr")
            return
        most = self.policy.steps if around is None else min(SECOND_STEPS, self.policy.steps)
        if saved is None and not self._has_room(trainer, pl_module, most):
            return
        done = 0 if saved is None else len(saved["policy"]["losses"])
        bar = sweep_bar(trainer, self.name, most, done) if self.progress_bar else None
        horizon = horizon_of(trainer, self.ledger.optimizers[self._index], self.run.peers)
        began = self.policy.start(around=around, paired=self.replay, horizon=horizon)
        self._sweep = RunningSweep(
            *(self.policy, trainer, pl_module, self.ledger, self.journal, self._index, bar, began),
            replay=self.replay,
            saved=saved,
        )
        if self._sweep.failed:
            self._end_short()
        else:
            self._held = PausedChecks(trainer)

    # shown -----------------------------------------------------------------------------------------------------

    def _say(self, words: str, *, loud: bool = False) -> None:
        line = f"{self.name}: {words}"
        self.journal.say(line, self.name)
        (rank_zero_warn if loud else rank_zero_info)(line)

    def _announce(self, trainer: Any, finding: Finding, unpaired: str | None) -> None:
        if finding.suggestion is None:
            line = f"{self.name} ({self._why}): no suggestion, the rate stays: {finding.refusal}"
        else:
            kept = "" if self.apply else " (not applied)"
            line = f"{self.name} ({self._why}): rate {finding.suggestion:.3g}{kept}: {finding.words}"
            if self.apply:
                self._apply(trainer, finding)
        if unpaired is not None:
            line += f"; rates were compared on different batches: {unpaired}"
        found = {"callback": self.name, "tag": self.run.names_at((self._index, 0)).tag, "why": self._why}
        record = {"kind": "finding", **found, "applied": self.apply, "finding": finding.to_dict()}
        self.journal.say(line, record=record)
        rank_zero_info(line)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                # not every logger has an `experiment`
                experiment: Any = getattr(logger, "experiment", None)
                if hasattr(experiment, "add_figure"):
                    experiment.add_figure(FINDER.rstrip("/"), finding.plot(), self.journal.step)

    def _apply(self, trainer: Any, finding: Finding) -> None:
        assert finding.suggestion is not None
        factor = finding.suggestion / max(references(self.ledger, trainer, self._index))
        if finding.around is not None:
            # other factors, and a schedule, hold for what was compared as for what comes of it
            factor = self.ledger.factor(self.name, self._index, 0) * finding.suggestion / finding.around
        self.ledger.set_factor(self.name, factor, finding.words, optimizer=self._index)

    # state -----------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        """What has been found and where, and the sweep that is under way.

        Of what ranks have parts of (weights, optimizer state) a checkpoint holds what rank zero says, and so no sweep:
        resumed, it starts over.
        """
        state, again, sweep = self._places, self._again, self._saved
        if self._sweep is not None:
            state, again, sweep = self._before_sweep, self._before_again, self._under_way()
        found = [finding.to_dict() for finding in self.findings]
        held = self.settling or self._was_held
        return {"agenda": state.to_dict(), "again": again, "findings": found, "sweep": sweep, "held": held}

    def _under_way(self) -> dict[str, Any] | None:
        sweep = self._sweep
        if sweep is None or sweep.over or sweep.failed or self._parted or not sweep.between_batches:
            return None
        state = sweep.state_dict()
        if state is None:
            return None
        own = {"agenda": self._places.to_dict(), "again": self._again, "why": self._why, "steps": self.policy.steps}
        return {**own, **state}

    def load_own_state(self, state: dict[str, Any]) -> None:
        self._places = SweepScheduleState.from_dict(state["agenda"])
        self.findings = [Finding.from_dict(saved) for saved in state["findings"]]
        # under other bounds a sweep that was under way starts over
        self._saved = None if self.changed.keys() & SWEPT else state["sweep"]
        self._was_held = state["held"]
        # a state of the release before has neither; its sweep starts over
        self._again = self._before_again = state.get("again")
        if self._saved is not None and "again" not in self._saved:
            self._saved = None
        if self._saved is not None:
            self._before_sweep, self._places = self._places, SweepScheduleState.from_dict(self._saved["agenda"])
            self._again, self._why = self._saved["again"], self._saved["why"]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_sweep": None, "_held": None}
