"""Suspicion: whether the history of one optimizer gives reason for a trial.

It decides nothing: what follows from a suspicion is a trial (`evidence`). *Tuning runs*, below, are the seven tasks of
`benchmarks/divergence.py` and the tuning half of `benchmarks/zoo.py`; the zoo's other half took no part.
"""

from __future__ import annotations

from typing import Literal

from lightning_lr.policies.history import LOOK, WINDOW, History

Reason = Literal["", "high", "level", "nonfinite", "start"]
REASONS: tuple[Reason, ...] = ("high", "level", "nonfinite", "start")

IN_A_ROW = 4
"""Losses in a row above all of the window: by chance, once in twelve million. One above where the run began counts
twice."""

UP = 2
"""Looks in a row that must find the level up. With one, half of the tuning half's healthy kinds had trials."""

NONFINITE = 3
"""Updates in a row that are not finite, and are no accident."""

DEAD_AFTER = 40
"""Updates before a run that has learned nothing is suspected to be dead."""

LARGE = 2.6
"""Weights that a learning rate has blown up are so many times as large as at the start (their root mean square, with
`history.LEAST` added): dead nets had 4 to 20 within 96 updates, sound ones at their best rate up to 2, and a parity net
on its plateau, at ten times its best rate, 3.7."""

PATIENCE = 6
"""A suspicion that a trial has not confirmed must last twice as long the next time (four times, for a level). A trial
that blamed the data counts twice. The length is doubled at most so many times."""


def wants_size(history: History) -> bool:
    """Whether the weights' size is to be measured at the next update: while nothing is learned, now and then."""
    due = history.high > 0 or (history.updates % LOOK == LOOK - 1 and history.updates < WINDOW)
    return history.size == 0.0 or (due and not history.gained)


def reason(history: History, *, started: bool) -> Reason:
    """Why a trial is due; empty if none is. `started`: whether the best copy is a later one than the start's."""
    high, level, nonfinite, start = history.patience
    if history.nonfinite >= NONFINITE * 2**nonfinite:
        return "nonfinite"
    if history.high >= IN_A_ROW * 2**high:
        return "high"
    if history.up >= UP * 4**level:
        return "level"
    if (
        not started
        and history.growth > LARGE
        and history.updates - history.asked >= DEAD_AFTER * 2**start
        and not history.gained
        and history.best is not None
    ):
        return "start"
    return ""


def doubted(history: History, why: Reason, times: int = 1) -> History:
    """A trial has not borne this suspicion out; `times`: how often the next one is doubled for it."""
    patience = list(history.patience)
    place = REASONS.index(why)
    patience[place] = min(patience[place] + times, PATIENCE)
    return history._replace(patience=tuple(patience), high=0, up=0, asked=history.updates)
