"""The sweep's progress bar, beside the trainer's own."""

from __future__ import annotations

import sys
from typing import Any, Protocol


class Bar(Protocol):
    """Shows how far a sweep is."""

    def show(self, done: int, words: str) -> None:
        """Shows that `done` updates are done, and some words."""

    def close(self) -> None:
        """Removes the bar from the screen."""


def sweep_bar(trainer: Any, title: str, total: int, done: int) -> Bar | None:
    """A bar that goes with the trainer's; None if that shows none, or one of another kind, or there is no terminal.

    Args:
        trainer: with its progress bar.
        title: before the bar.
        total: the most updates.
        done: those that are done already.
    """
    owner = trainer.progress_bar_callback
    if not trainer.is_global_zero or not getattr(owner, "is_enabled", False):
        return None
    kinds = {kind.__name__ for kind in type(owner).__mro__}
    if "RichProgressBar" in kinds:
        return RichBar(owner, title, total)
    # a notebook is no terminal, but tqdm has a bar for it
    if "TQDMProgressBar" in kinds and (sys.stdout.isatty() or "ipykernel" in sys.modules):
        return TqdmBar(owner, title, total, done)
    return None


class TqdmBar:
    """A line below those that `TQDMProgressBar` has for training and validation."""

    def __init__(self, owner: Any, title: str, total: int, done: int) -> None:
        from tqdm.auto import tqdm

        # where Lightning writes too: two streams would not know of each other's lines
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=title,
            position=2 * owner.process_position + 2,
            leave=False,
            dynamic_ncols=True,
            file=sys.stdout,
        )

    def show(self, done: int, words: str) -> None:
        self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class RichBar:
    """A task in the display that `RichProgressBar` has: two displays would scroll each other away."""

    def __init__(self, owner: Any, title: str, total: int) -> None:
        self._owner, self._title, self._total = owner, title, total
        self._progress: Any = None
        self._task: Any = None

    def show(self, done: int, words: str) -> None:
        progress = self._owner.progress
        if progress is None:
            return
        if progress is not self._progress:
            # the display is made late, and again in each epoch under `leave=True`
            self._progress, self._task = progress, progress.add_task(self._title, total=self._total)
        progress.update(self._task, completed=done, description=f"{self._title}: {words}")

    def close(self) -> None:
        if self._progress is not None:
            # hidden, not removed: Lightning finds its own tasks by their place in the list
            self._progress.update(self._task, visible=False)
            self._owner.refresh()
