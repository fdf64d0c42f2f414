"""`Cooldown`: every learning rate falls over the last updates of the run."""

from __future__ import annotations

from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_lr.arguments import one_length
from lightning_lr.callbacks.base import LRCallback
from lightning_lr.policies.cooldown import CooldownPolicy
from lightning_lr.run.clock import Clock
from lightning_lr.run.length import updates_in_epochs, updates_in_last_epochs, updates_in_run
from lightning_lr.run.run_end import RunEnd

Shape = Literal["linear", "1-sqrt", "cosine"]


class Cooldown(LRCallback):
    """Multiplies every learning rate by a factor that falls from 1 to `end_factor` over the last updates of the run.

    Together with `Warmup` it makes a trapezoid: warm-up, constant rate, decay. It works with any scheduler and without
    one. Of n updates the first is made with the full rate, and the last, which is the run's last, with one n-th of it
    (`shape="linear"`, `end_factor=0`).

    Give exactly one of `steps`, `epochs` and `fraction`.

    The end is that of the run, by `max_steps` or `max_epochs`, whichever comes first, and is determined anew in each
    epoch. So it stays where it is when updates are dropped, skipped by a gradient scaler, or spent on a sweep or a
    trial. If the length of the epochs changes during the fall, the rest of the fall is spread over the updates that
    are left. If the run is no longer than the cooldown, the rate falls from the first update on, and a warning says so.
    While the rate falls, no check of `PlateauDecay` counts against it. Under manual optimization, each optimizer is
    taken to make one update per batch.

    A run that is resumed with other limits ends elsewhere. Up to its last updates the rate is at its full height, so
    it rises again if the checkpoint was saved during the fall; one line says so. To go on as if the run had always been
    that long, resume from a checkpoint that was saved before the fall.

    Args:
        steps: the length in updates, >= 1.
        epochs: the length in epochs, > 0; may be fractional.
        fraction: the length as a share of the whole run, in (0, 1].
        shape: `linear`, `1-sqrt` (one minus the square root of progress) or `cosine` (half a wave).
        end_factor: the factor to which it falls, in [0, 1).
        on_stop: True: when somebody asks the trainer to stop (`EarlyStopping`, a timer, your own code), the fall begins
            then, and the run ends after it; a stop during the fall waits for its end. With `steps` or `epochs`
            the end of the run need not be known then. If `DivergenceGuard` gives up, the run ends at once.
        name: the name under which the factor is kept and shown; by default the class's own. A second `Cooldown` in the
            same trainer needs another: `Cooldown(50, name="Other")`.

    Raises:
        ValueError: at construction, for a value outside its bounds; at the start of `fit`, if the end of the run or
            the length can't be determined (no limit, or a dataloader without a length), and for a second `Cooldown`
            with `on_stop=True`.

    Source: Hägele et al. 2024, "Scaling laws and compute-optimal training beyond fixed training durations"
    (arXiv 2405.18392).

    Example:
        >>> from lightning_lr import Cooldown
        >>> Cooldown(fraction=0.2, shape="1-sqrt")
        Cooldown(fraction=0.2, shape='1-sqrt')
        >>> Cooldown(steps=100, epochs=1)
        Traceback (most recent call last):
        ValueError: give exactly one of steps, epochs and fraction, got steps=100, epochs=1
    """

    temporary = True

    def __init__(
        self,
        steps: int | None = None,
        *,
        epochs: float | None = None,
        fraction: float | None = None,
        shape: Shape = "linear",
        end_factor: float = 0.0,
        on_stop: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.keep_arguments(locals())
        one_length(steps, epochs, fraction, "for no cooldown, leave Cooldown out")
        if not isinstance(on_stop, bool):
            raise ValueError(f"on_stop must be True or False, got {on_stop!r}")
        self.steps, self.epochs, self.fraction = steps, epochs, fraction
        self.shape, self.end_factor, self.on_stop = shape, end_factor, on_stop
        self._policy(1 if steps is None else steps)
        self.optional = False
        """Whether it leaves itself out where the run's end isn't known, or the user has a scheduler."""
        self.rests = False
        """Whether it has left itself out of this run."""
        self.reset()

    @property
    def settling(self) -> bool:
        return self._fall is not None

    @property
    def falls(self) -> bool:
        return not self.rests

    def reset(self) -> None:
        self._length: int | None = None
        self._fall: CooldownPolicy | None = None
        self._end = RunEnd()
        self._renewed = False
        """Whether a resumed run has other limits, or this callback another length."""
        self._sleeps = 0
        """The batch, counted over the whole run, before which no fall can begin."""

    def started(self, trainer: Any, pl_module: Any) -> None:
        if not self.ledger.optimizers:
            return
        self.rests = self.optional and self._does_without(trainer)
        if self.rests:
            return
        on_stop = {"on_stop": True} if self.on_stop else {}
        given = {"steps": self.steps, "epochs": self.epochs, "fraction": self.fraction}
        asking = self.written(**{key: value for key, value in given.items() if value is not None}, **on_stop)
        instead = f"count updates instead, as in {self.written(steps=100, **on_stop)}"
        if self.epochs is not None:
            updates_in_epochs(trainer, 0, asking, instead)
        if self.on_stop and self.fraction is not None:
            updates_in_run(trainer, asking, instead)
        elif not self.on_stop:
            updates_in_run(trainer, asking, "give Trainer(max_epochs=...) and a dataloader of known length")
        self._end.release()
        if self._end.clock is not None:
            self._renewed = self._end.other_limits(trainer) or bool(self.changed.keys() & {*given, "on_stop"})
        if self._renewed:
            self._end.stop_at = None
        if self._end.stop_at is not None and trainer.global_step >= self._end.stop_at:
            self._say(
                "the checkpoint was saved at the end of a run that was asked to stop, so nothing is left to do: "
                "give a larger max_epochs or max_steps to go on"
            )
        if self.on_stop:
            if sum(isinstance(peer, Cooldown) and peer.on_stop for peer in self.run.peers) > 1:
                raise ValueError(f"only one Cooldown of a run can have on_stop=True: leave it out of {self.name}")
            self._end.put_off_stops(trainer)

    def _does_without(self, trainer: Any) -> bool:
        """Whether there is a reason not to cool down; says which."""
        why = "the run's length isn't known" if updates_in_run(trainer, None) is None else ""
        if trainer.lr_scheduler_configs:
            why = "the optimizer has a schedule of its own"
        if why:
            self._say(f"no fall at the run's end: {why}. For one all the same, write {self.written(fraction=0.3)}")
        return bool(why)

    # the run ---------------------------------------------------------------------------------------------------

    def before_update(self, optimizer: int) -> None:
        trainer = self.run.trainer
        if self.rests or trainer.fit_loop.total_batch_idx < self._sleeps:
            return
        left = self._left(trainer)
        if left is None:
            return
        fall = self._fall or self._begin(trainer, left)
        if fall is None:
            return
        update = fall.steps - left
        factor = fall.factor(update)
        if factor != self.ledger.factor(self.name, optimizer, 0):
            self.ledger.set_factor(
                self.name, factor, f"{fall.shape}, update {update + 1} of {fall.steps}", optimizer=optimizer
            )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._end.current, self._sleeps = False, 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        late = self._end.late
        if late is None or self._given_up():
            return
        if self._length is None or not self._end.current:
            self._left(trainer)
        if late.begin_batch(self._steps, falling=self._fall is not None):
            self._sleeps = 0
            over = self._left(trainer)
            self._say(f"the trainer was asked to stop: the rate falls over {over} more updates, and then the run ends")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        late = self._end.late
        if late is not None and not self._given_up():
            late.end_batch()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._end.release()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._end.release()
        super().teardown(trainer, pl_module, stage)

    def _given_up(self) -> bool:
        """Whether another callback has given the run up: then the run must end at once."""
        given_up = any(peer.given_up for peer in self.run.peers)
        if given_up:
            self._end.release()
        return given_up

    def _begin(self, trainer: Any, left: int) -> CooldownPolicy | None:
        """Begins the fall, if it is time for it."""
        assert self._length is not None
        if left > self._length:
            if trainer.lightning_module.automatic_optimization or trainer.max_steps == -1:
                # nothing takes more than one update off the run in a batch
                self._sleeps = trainer.fit_loop.total_batch_idx + left - self._length
            return None
        if left < self._length and self._end.at is None:
            rank_zero_warn(
                f"{self.name} is to fall over {self._length} updates and the run has {left}: it falls from the first "
                f"of them on; {self.written(fraction=0.2)} falls over a fifth of the run"
            )
        self._fall = self._policy(left)
        return self._fall

    # how long ---------------------------------------------------------------------------------------------------

    @property
    def _steps(self) -> int:
        """The length of the fall by `trainer.global_step`, which counts the steps of all optimizers."""
        return (self._length or 0) * max(1, len(self.ledger.optimizers))

    def _left(self, trainer: Any) -> int | None:
        """The updates of each optimizer that are left, the present one included; None if that isn't known."""
        if not self._end.current or self._end.clock is None:
            self._set_clock(trainer)
        return self._end.left(trainer)

    def _set_clock(self, trainer: Any) -> None:
        """Once an epoch, and after a resume: determines when the run ends now, and adapts the fall to it."""
        was, left = self._end.set_clock(trainer)
        renewed, self._renewed = self._renewed, False
        if left is None and not self.on_stop:
            rank_zero_warn(
                f"{self.name}: the training dataloader has no length any more, so the end of the run can't be told and "
                f"the rate falls no further: give Trainer(max_steps=...)"
            )
            return
        if self._length is None or renewed or (self._fall is None and left not in (None, was)):
            self._length = self._given_length(trainer, left)
        fall = self._fall
        if fall is None:
            return
        if renewed and (left is None or left > self._length):
            self._fall = None
            self.ledger.set_factor(self.name, 1.0, "the run has become longer")
            self._say(
                f"the checkpoint was saved within the fall, and the run is longer now: until its last {self._length} "
                f"updates the rate is at its full height again"
            )
        elif left is not None and was is not None and left != was:
            self._fall = fall.rest(fall.steps - was, left)

    def _given_length(self, trainer: Any, left: int | None) -> int:
        """The length of the fall in updates, if `left` updates are left of the run."""
        clock = self._end.clock
        assert clock is not None
        if self.epochs is not None:
            end = clock.max_epochs if clock.after is not None else trainer.current_epoch + 1
            length = updates_in_last_epochs(trainer, self.epochs, "", "", end)
        elif self.fraction is not None:
            assert left is not None
            length = self.fraction * (clock.made(trainer) + left)
        else:
            assert self.steps is not None
            length = self.steps
        return max(1, round(length))

    def _say(self, words: str) -> None:
        line = f"{self.name}: {words}"
        self.journal.say(line, self.name)
        rank_zero_info(line)

    def _policy(self, steps: int, begun: float = 0.0) -> CooldownPolicy:
        return CooldownPolicy(steps, self.shape, self.end_factor, begun)

    # state -----------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        """The length of the fall, the fall under way, and the clock that they were determined by."""
        end, late = self._end, self._end.late
        return {
            "length": self._length,
            "clock": None if end.clock is None else list(end.clock),
            "fall": None if self._fall is None else [self._fall.steps, self._fall.begun],
            "stop_at": late.planned(self._steps, falling=self.settling) if late else end.stop_at,
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        self._length, self._end.stop_at = state["length"], state["stop_at"]
        self._end.clock = None if state["clock"] is None else Clock(*state["clock"])
        self._fall = None if state["fall"] is None else self._policy(*state["fall"])
