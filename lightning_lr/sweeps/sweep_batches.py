"""SweepBatches: a sweep's own batches, kept when they come first, and played again under their number."""

from __future__ import annotations

from typing import Any

from lightning_lr.batches.randomness import RandomState
from lightning_lr.batches.replay import Replay
from lightning_lr.trials.aside import drawing

LARGEST_SAVED = 2**26
"""A checkpoint takes no more bytes of kept batches; a sweep with more starts over when it is resumed."""


class SweepBatches:
    """Gives Lightning's loop the batches that a policy asks for by number, one window of accumulation at a time.

    A number that comes for the first time is the run's own next batch, or as many as an update has, which is kept. The
    same number is then played again, and the random generators go back to where they were when it came first, so that
    augmentation and dropout are the same, too. Where there is no room for more, what trains is played again in turn.

    Args:
        trainer: whose loop.
        probes: the numbers below this are compared, and are never taken for another.
        saved: what `state_dict` gave.
    """

    def __init__(self, trainer: Any, probes: int, saved: dict[str, Any] | None) -> None:
        self._trainer, self._probes = trainer, probes
        self._replay = Replay(trainer, saved=None if saved is None else saved["replay"], told=self._draw)
        self._windows: dict[int, list[int]] = {}
        self._partial: set[int] = set()
        """Numbers of which a batch found no room."""
        self._random: dict[int, RandomState] = {}
        self._number: int | None = None
        self._window: list[int] | None = None
        """The kept batches of the window under way; None while it comes for the first time."""
        self._wanted: int | None = None
        self._position = 0
        self._given_up = False
        if saved is not None:
            self._windows = {number: list(window) for number, window in saved["windows"]}
            self._partial, self._given_up = set(saved["partial"]), saved["given_up"]
        self._replay.begin()

    def state_dict(self) -> dict[str, Any] | None:
        """Between two windows: the kept batches; None where a checkpoint can't have them."""
        replay = self._replay.state_dict() if self._replay.bytes <= LARGEST_SAVED else None
        if replay is None:
            return None
        windows = [[number, list(window)] for number, window in self._windows.items()]
        partial = sorted(self._partial)
        return {"replay": replay, "windows": windows, "partial": partial, "given_up": self._given_up}

    @property
    def failed(self) -> str | None:
        """Why batches can't be compared with themselves, in words; None while they can."""
        if self._replay.failed is not None:
            return self._replay.failed
        if self._given_up:
            return "on one rank a kept batch could not be had again"
        short = any(number < self._probes for number in self._partial)
        return "there is no memory for them" if short else None

    @property
    def playing(self) -> bool:
        """Whether the batch under way is a kept one, and not the run's own."""
        return self._wanted is not None

    @property
    def missed(self) -> bool:
        """Whether a batch was not the one asked for, on this rank, of which the others don't know yet."""
        return self._replay.lost is not None and not self._given_up

    def ask(self, number: int | None) -> None:
        """The loop's next batch is of this number; None: the run's own, which nobody wants again."""
        self._number, self._wanted = number, None
        if number is None or self.failed:
            self._replay.pass_next()
            return
        if self._position == 0:
            self._window = self._windows.get(number) or self._substitute(number)
        elif self._window is None and self._replay.full:
            # the rest finds no room: what the window has is all that it ever has
            self._window = self._windows.get(number)
        if self._window is None:
            self._replay.keep_next()
        else:
            # the last window of an epoch may have been shorter when it was kept
            self._wanted = self._window[self._position % len(self._window)]
            self._replay.play_next(self._wanted)

    def _substitute(self, number: int) -> list[int] | None:
        """Where there is no room for more, what trains in the place of a number that never came."""
        trains = [self._windows[other] for other in sorted(self._windows) if other >= self._probes]
        return trains[number % len(trains)] if self._replay.full and trains else None

    def begin_batch(self) -> None:
        """The batch is there: notes where it is kept."""
        if self._number is None or self._wanted is not None or self.failed:
            return
        if self._replay.placed is not None:
            self._windows.setdefault(self._number, []).append(self._replay.placed)
        elif self._replay.full:
            self._partial.add(self._number)

    def forget(self) -> None:
        """The window under way came to nothing: where it is a new one, its number goes to the next."""
        if self._number is not None and self._window is None:
            self._windows.pop(self._number, None)

    def _draw(self, index: int) -> None:
        """Before anything is done to a batch: its random numbers are those of the first time."""
        if index in self._random:
            self._random[index].restore()
        else:
            self._random[index] = RandomState(*drawing(self._trainer, self._trainer.lightning_module))

    def end_batch(self, *, window_over: bool) -> None:
        """Goes on to the next batch of the window, or to the next window."""
        self._position = 0 if window_over else self._position + 1

    def give_up(self) -> None:
        """From here on all batches are the run's own."""
        self._given_up = True

    def close(self) -> None:
        """Gives back what was borrowed, and lets go of all batches."""
        self._replay.close()
