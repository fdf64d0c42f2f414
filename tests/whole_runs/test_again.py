"""The same callbacks again: a second fit, a copy, another trainer in the same process, a run within a run."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lightning_lr as llr
from tests.callback_sets import ACTIVE, ALL, made
from tests.small import Loader, held_out, pl, trainer
from tests.ways import BATCHES, SIZE, WAYS, Net
from tests.witness import Faults, Fit, check, check_same

PLAIN = WAYS["plain"]
FAULTS = {54: "nan", 63: "weights"}


def one(root: Path, ours: Any = None) -> Fit:
    return Fit(PLAIN, root, made(ACTIVE, ALL, PLAIN) if ours is None else ours, Faults(FAULTS))


@pytest.mark.invariant(9)
@pytest.mark.parametrize(
    "again",
    [lambda ours: ours, copy.deepcopy, lambda ours: pickle.loads(pickle.dumps(ours))],
    ids=["the same", "copied", "pickled"],
)
def test_callbacks_that_have_run_run_again_as_new_ones(again: Callable[[Any], Any], tmp_path: Path) -> None:
    first = one(tmp_path / "first")
    story = list(first.one(llr.LRMonitor).story)
    second = one(tmp_path / "second", again(first.ours))
    check_same(second, first)
    assert second.one(llr.LRMonitor).story == story


def test_fit_validate_fit(tmp_path: Path) -> None:
    ours = made(ACTIVE, ALL, PLAIN)
    fit = trainer(tmp_path, callbacks=ours, logger=pl.loggers.CSVLogger(tmp_path), max_epochs=3)
    model = Net()
    fit.fit(model, Loader(BATCHES, SIZE), held_out())
    told = list(ours[-1].story)
    (metrics,) = fit.validate(model, held_out(), verbose=False)
    assert metrics["val_loss"] == pytest.approx(float(fit.callback_metrics["val_loss"]))
    assert ours[-1].story == told
    fit.fit_loop.max_epochs = 6
    fit.fit(model, Loader(BATCHES, SIZE), held_out())
    # afresh: it sweeps and warms up once more, on the weights that are there
    assert [finding.update for finding in ours[0].findings] == [10]
    assert fit.global_step == 6 * BATCHES
    assert [group["lr"] for group in fit.optimizers[0].param_groups] == fit.lr_scheduler_configs[0].scheduler._last_lr


class Inner(pl.Callback):
    """Trains another model in the middle of a run, with callbacks of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.runs = root, []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.runs.append(one(self.root / str(len(self.runs))))


def test_a_run_within_a_run_disturbs_neither(tmp_path: Path) -> None:
    alone = one(tmp_path / "alone")
    inner = Inner(tmp_path / "inner")
    way = WAYS["plain"].__class__(others=lambda _: [inner])
    outer = Fit(way, tmp_path / "outer", made(ACTIVE, ALL, way), Faults(FAULTS))
    assert outer.trace == alone.trace
    for run in inner.runs:
        assert run.trace == alone.trace
    check(outer, Fit(PLAIN, tmp_path / "plain"))


def test_two_trainers_in_turn_share_nothing(tmp_path: Path) -> None:
    alone = one(tmp_path / "alone")
    ours = [made(ACTIVE, ALL, PLAIN), made(ACTIVE, ALL, PLAIN)]
    both = [one(tmp_path / str(i), mine) for i, mine in enumerate(ours)]
    for run in both:
        check_same(run, alone)
    assert ours[0][0].run is not ours[1][0].run
