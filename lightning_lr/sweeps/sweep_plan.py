"""The plan of a run's sweeps: their length, their second opinions, and the horizon of what they find."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

from lightning_lr.policies.horizon import CARE, POWERS, Horizon
from lightning_lr.run.length import updates_in_run
from lightning_lr.run.peer import Peer

AUTO = "auto"

SHARE, FEWEST, MOST = 0.02, 60, 300
"""With `steps="auto"` a sweep may take this share of the run's updates, at least `FEWEST` and at most `MOST`."""

AGAIN, FIRST_AGAIN, LAST_AGAIN = 0.1, 150, 1000
"""A second opinion comes after this share of the run, at least `FIRST_AGAIN` and at most `LAST_AGAIN` updates: by then
the first, easy fall of the loss is over."""

SHORTEST_AGAIN = 1500
"""In a run of fewer updates than this a second opinion costs more than it brings."""


def steps_for(run: float | None) -> int:
    """The most updates of a sweep in a run of `run` updates; None: its length isn't known.

    Example:
        >>> [steps_for(run) for run in (1000, 10000, 100000, None)]
        [60, 200, 300, 60]
    """
    return FEWEST if run is None or math.isinf(run) else max(FEWEST, min(MOST, round(SHARE * run)))


def second_looks_at(run: float | None) -> list[int]:
    """The real updates before which second opinions are due in a run of `run` updates.

    The second one is only made if the rate is still unsure.

    Example:
        >>> second_looks_at(1000), second_looks_at(3000), second_looks_at(None)
        ([], [300, 900], [500, 1500])
    """
    if run is None or math.isinf(run):
        return [LAST_AGAIN // 2, 3 * LAST_AGAIN // 2]
    if run < SHORTEST_AGAIN:
        return []
    first = max(FIRST_AGAIN, min(LAST_AGAIN, round(AGAIN * run)))
    return [first, 3 * first]


def horizon_of(trainer: Any, optimizer: Optimizer, peers: Iterable[Peer]) -> Horizon:
    """How long a rate that is found now must be good for, by the run's length, its schedule and its optimizer."""
    falls = any(peer.falls for peer in peers) or any(
        not config.reduce_on_plateau for config in trainer.lr_scheduler_configs
    )
    kind = "sgd" if "nesterov" in optimizer.defaults else "adaptive"
    return Horizon(updates_in_run(trainer, None), POWERS["falls" if falls else "stays"][kind], CARE[kind])
