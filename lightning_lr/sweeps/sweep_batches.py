"""The batches of a sweep: kept when they first come, and played again under their number."""

from __future__ import annotations

from typing import Any

from lightning_lr.batches.randomness import RandomState
from lightning_lr.batches.replay import Replay
from lightning_lr.trials.aside import drawing

LARGEST_SAVED = 2**26
"""The most bytes of kept batches in a checkpoint; a sweep with more starts over when the run is resumed."""


class SweepBatches:
    """Gives Lightning's loop the batches that a policy asks for by number, one window of accumulation at a time.

    A number that comes for the first time stands for the run's own next batch, or for as many as an update has; these
    are kept. When the same number comes again they are played again, and the random generators go back to where they
    were the first time, so that augmentation and dropout are the same too. If there is no room for more batches, those
    that were trained on are played again in turn.

    Args:
        trainer: whose loop.
        probes: losses are compared on the numbers below this one, so no other batch ever takes their place.
        saved: what `state_dict` gave.
    """

    def __init__(self, trainer: Any, probes: int, saved: dict[str, Any] | None) -> None:
        self._trainer, self._probes = trainer, probes
        self._replay = Replay(trainer, saved=None if saved is None else saved["replay"], told=self._draw)
        self._windows: dict[int, list[int]] = {}
        self._partial: set[int] = set()
        """Numbers with a batch for which there was no room."""
        self._random: dict[int, RandomState] = {}
        self._number: int | None = None
        self._window: list[int] | None = None
        """The kept batches of the present window; None while it comes for the first time."""
        self._wanted: int | None = None
        self._position = 0
        self._given_up = False
        if saved is not None:
            self._windows = {number: list(window) for number, window in saved["windows"]}
            self._partial, self._given_up = set(saved["partial"]), saved["given_up"]
        self._replay.begin()

    def state_dict(self) -> dict[str, Any] | None:
        """Between two windows: the kept batches; None if they can't be in a checkpoint."""
        replay = self._replay.state_dict() if self._replay.bytes <= LARGEST_SAVED else None
        if replay is None:
            return None
        windows = [[number, list(window)] for number, window in self._windows.items()]
        partial = sorted(self._partial)
        return {"replay": replay, "windows": windows, "partial": partial, "given_up": self._given_up}

    @property
    def failed(self) -> str | None:
        """Why rates can't be compared on the same batches, in words; None while they can."""
        if self._replay.failed is not None:
            return self._replay.failed
        if self._given_up:
            return "on one rank a kept batch could not be had again"
        short = any(number < self._probes for number in self._partial)
        return "there is no memory for them" if short else None

    @property
    def playing(self) -> bool:
        """Whether the present batch is a kept one, not the run's own."""
        return self._wanted is not None

    @property
    def missed(self) -> bool:
        """Whether on this rank a batch was not the one asked for, and the others don't know it yet."""
        return self._replay.lost is not None and not self._given_up

    def ask(self, number: int | None) -> None:
        """Makes the loop's next batch one of this number; None: the run's own, which is not used again."""
        self._number, self._wanted = number, None
        if number is None or self.failed:
            self._replay.pass_next()
            return
        if self._position == 0:
            self._window = self._windows.get(number) or self._substitute(number)
        elif self._window is None and self._replay.full:
            # there is no room for the rest: the window keeps the batches that it has
            self._window = self._windows.get(number)
        if self._window is None:
            self._replay.keep_next()
        else:
            # the window may have been shorter when it was kept, at the end of an epoch
            self._wanted = self._window[self._position % len(self._window)]
            self._replay.play_next(self._wanted)

    def _substitute(self, number: int) -> list[int] | None:
        """If there is no room for more, the kept batches that are trained on in place of a new number."""
        trains = [self._windows[other] for other in sorted(self._windows) if other >= self._probes]
        return trains[number % len(trains)] if self._replay.full and trains else None

    def begin_batch(self) -> None:
        """The batch has come: notes where it is kept."""
        if self._number is None or self._wanted is not None or self.failed:
            return
        if self._replay.placed is not None:
            self._windows.setdefault(self._number, []).append(self._replay.placed)
        elif self._replay.full:
            self._partial.add(self._number)

    def forget(self) -> None:
        """The present window came to nothing: if it is a new one, its number goes to the next window."""
        if self._number is not None and self._window is None:
            self._windows.pop(self._number, None)

    def _draw(self, index: int) -> None:
        """Before anything is done to a batch: restores the random generators to where they were the first time."""
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
