"""Sets of callbacks for the table of ways to train: one with nothing to do, one in which all are at work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning_lr as llr
from tests.ways import Way

NEVER = 10**6


Make = Callable[[str], Any]


NEUTRAL: dict[str, Make] = {
    "LRFinder": lambda monitor: llr.LRFinder(at=None, optimizer=0),
    "Warmup": lambda monitor: llr.Warmup(1),
    # the one update of a fall over one has the rate in full
    "Cooldown": lambda monitor: llr.Cooldown(1),
    "PlateauDecay": lambda monitor: llr.PlateauDecay(monitor, patience=NEVER),
    "DivergenceGuard": lambda monitor: llr.DivergenceGuard(),
    "LRMonitor": lambda monitor: llr.LRMonitor(),
}
"""Callbacks that have nothing to do: with them a run must be the run without, bit for bit."""


ACTIVE: dict[str, Make] = {
    "LRFinder": lambda monitor: llr.LRFinder(at=10, optimizer=0, steps=20, min_lr=1e-4),
    "Warmup": lambda monitor: llr.Warmup(6),
    "Cooldown": lambda monitor: llr.Cooldown(8, on_stop=True),
    # nothing is ever good enough
    "PlateauDecay": lambda monitor: llr.PlateauDecay(
        monitor, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs"
    ),
    "DivergenceGuard": lambda monitor: llr.DivergenceGuard(snapshot_every=5, save_snapshots=True),
    "LRMonitor": lambda monitor: llr.LRMonitor(),
}
"""Callbacks that all have something to do."""


ALL = "all"


def made(makers: dict[str, Make], which: str, way: Way) -> list[Any]:
    monitor = "val_loss" if way.validates else "train_loss_epoch"
    return [make(monitor) for name, make in makers.items() if which in (ALL, name) and name not in way.without]
