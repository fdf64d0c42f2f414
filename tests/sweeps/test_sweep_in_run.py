"""A sweep in the midst of a run: what metrics, validation, other callbacks and the console make of it."""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import re
import struct
import termios
import warnings
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from packaging.version import Version
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn

import lightning_lr as llr
from lightning_lr.policies.sweep_schedule import SweepSchedule, SweepScheduleState
from lightning_lr.sweeps.outlook import longest, places_ahead
from tests.fresh import Python, python
from tests.small import Loader, Model, held_out, sgd, trainer

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed from", "ignore:Checkpoint directory .* exists")
SHORT: dict[str, Any] = {"steps": 30, "min_lr": 1e-4}


def momentum(module: Any) -> torch.optim.Optimizer:
    return sgd(module, 0.1, momentum=0.9)


class Logs(Model):
    """Logs 10 in epoch 0, 11 in epoch 1, ...; in validation, how far the weights are from the first ones."""

    def __init__(self, configure: Any = momentum, manual: bool = False, **how: Any) -> None:
        super().__init__(configure, 8)
        self.how, self.automatic_optimization = how, not manual
        self.first = self.weights()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.log("metric", 10.0 + self.current_epoch, **self.how)
        loss = super().training_step(batch, batch_idx)
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        moved = sum(float((a - b).abs().sum()) for a, b in zip(self.weights(), self.first, strict=True))
        self.log("moved", moved)


class Watch(pl.Callback):
    """What others find at the end of batches, epochs and validations, and whether a sweep was on."""

    def __init__(self, finder: llr.LRFinder) -> None:
        self.finder = finder
        self.batches: list[bool] = []
        self.missing: list[int] = []
        self.epochs: list[float] = []
        self.moved: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.batches.append(self.finder.sweeping)
        if "metric" not in trainer.callback_metrics:
            self.missing.append(trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append(round(float(trainer.callback_metrics.get("metric", -1.0)), 3))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.moved.append(float(trainer.callback_metrics["moved"]))


def fit(root: Path, model: Any, callbacks: Any, loader: Any = None, **kwargs: Any) -> Any:
    run = trainer(root, callbacks=callbacks, **{"max_epochs": 8, **kwargs})
    run.fit(model, Loader(8) if loader is None else loader, held_out())
    return run


# training metrics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize("how", [{}, {"on_step": False, "on_epoch": True}, {"on_step": True, "on_epoch": True}])
def test_every_batch_and_epoch_of_a_sweep_has_its_own_training_metric(how: Any, manual: bool, tmp_path: Path) -> None:
    finder = llr.LRFinder(**SHORT)
    watch = Watch(finder)
    fit(tmp_path, Logs(manual=manual, **how), [watch, finder])
    assert watch.epochs == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0]
    assert sum(watch.batches) > 20
    assert not how.get("on_step", True) or not watch.missing


def test_with_accumulation_a_pause_is_the_whole_window_and_all_of_it_counts(tmp_path: Path) -> None:
    class Counts(Logs):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            self.log("ones", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
            return super().training_step(batch, batch_idx)

    sums: list[float] = []
    finder = ramp()
    watcher = pl.callbacks.LambdaCallback(
        on_train_epoch_end=lambda trainer, _: sums.append(float(trainer.callback_metrics["ones"]))
    )
    run = fit(tmp_path, Counts(), [watcher, finder], Loader(16), accumulate_grad_batches=2, max_epochs=7)
    # of a ramp only the first window is at the healthy weights: 8 points, then a pause and 7 points three times, and 3
    assert sums == [2.0, 2.0, 2.0, 2.0, 2.0 + 8.0, 16.0, 16.0]
    assert taken(run, finder) == 32 + 4


def taken(run: Any, finder: llr.LRFinder) -> int:
    return run.global_step - finder.ledger.updates(0)


def test_epochs_of_one_batch_do_not_keep_a_sweep_from_ending(tmp_path: Path) -> None:
    finder = llr.LRFinder(suggest="minimum", **SHORT)
    watch = Watch(finder)
    run = fit(tmp_path, Logs(), [watch, finder], Loader(1, 32), max_epochs=60, limit_val_batches=0)
    assert len(finder.findings) == 1
    assert taken(run, finder) <= longest(30, 1)
    assert not watch.missing
    # between two pauses the value of the last one stays
    assert all(epoch - 4 <= value - 10 <= epoch for epoch, value in enumerate(watch.epochs))


def test_what_a_training_step_does_to_weights_by_hand_in_a_pause_is_undone_too(tmp_path: Path) -> None:
    class Momentum(Logs):
        """A second net follows the first, as in BYOL and MoCo, and in DQN."""

        def __init__(self) -> None:
            super().__init__(manual=True)
            self.target = nn.Linear(8, 10).requires_grad_(False)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            super().training_step(batch, batch_idx)
            with torch.no_grad():
                for follower, leader in zip(self.target.parameters(), self.head.parameters(), strict=True):
                    follower.lerp_(leader, 0.1)

    finder, model = llr.LRFinder(**SHORT), Momentum()
    seen: list[list[Tensor]] = []
    watcher = pl.callbacks.LambdaCallback(
        on_train_batch_start=lambda *_: seen.append(model.weights()) if not finder.findings else None
    )
    model.first = model.weights()
    fit(tmp_path, model, [watcher, finder], limit_val_batches=0)
    ended = [model.first, *seen[:1]]
    assert all(map(torch.equal, *ended))
    assert len(finder.findings) == 1


@pytest.mark.parametrize("pause", [False, True], ids=["in a trial", "in a pause"])
def test_healthy_weights_are_in_place_after_each_batch_with_or_without_a_pause(pause: bool, tmp_path: Path) -> None:
    finder, model = llr.LRFinder(**SHORT), Logs(manual=pause)
    moved: list[bool] = []
    watcher = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_: (
            moved.append(not all(map(torch.equal, model.first, model.weights()))) if finder.sweeping else None
        )
    )
    fit(tmp_path, model, [watcher, finder], limit_val_batches=0)
    assert len(moved) > 20
    assert not any(moved)


# validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", ["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize("monitor", ["val_loss", "metric"])
def test_early_stopping_does_not_end_a_run_for_validations_of_a_sweep(
    monitor: str, namespace: str, tmp_path: Path
) -> None:
    home = pytest.importorskip(namespace)

    class Rises(home.LightningModule):
        """A model of that namespace, whose training metric gets worse; under `min_delta` no val_loss is ever better."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Linear(64, 10)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.log("metric", float(self.global_step))
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            return sgd(self)

    stopping = home.callbacks.EarlyStopping(monitor, patience=1, min_delta=5.0, check_on_train_epoch_end=False)
    finder = llr.LRFinder(**SHORT)
    seen: list[tuple[bool, int]] = []
    watcher = home.callbacks.LambdaCallback(
        on_validation_end=lambda *_: seen.append((finder.settling, stopping.wait_count))
    )
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    run = home.Trainer(
        accelerator="cpu",
        max_epochs=12,
        val_check_interval=2,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[stopping, watcher, finder],
        **settings,
    )
    run.fit(Rises(), Loader(8), held_out())
    assert len([rested for rested, _ in seen if rested]) >= 10
    assert {count for rested, count in seen if rested} == {0}
    # the first check after the sweep sets the best, the second ends the run
    assert run.should_stop
    assert len([rested for rested, _ in seen if not rested]) == 2
    assert "_should_skip_check" not in vars(stopping)


def test_no_checkpoint_of_a_sweep_becomes_the_best_and_one_without_a_monitor_goes_on(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "best", filename="{step}", monitor="moved", mode="min", save_top_k=-1)
    by_step = ModelCheckpoint(
        tmp_path / "step", filename="{step}", monitor="metric", every_n_train_steps=4, save_top_k=-1, mode="max"
    )
    late = ModelCheckpoint(tmp_path / "late", filename="{step}", monitor="moved", every_n_train_steps=4, save_top_k=-1)
    plain = ModelCheckpoint(tmp_path / "plain", filename="{step}", every_n_train_steps=4, save_top_k=-1)
    finder = llr.LRFinder(**SHORT)
    watch = Watch(finder)
    run = fit(tmp_path, Logs(), [watch, best, by_step, late, plain, finder], enable_checkpointing=True)
    end = taken(run, finder)

    def steps(folder: str) -> list[int]:
        return sorted(int(re.findall(r"\d+", path.stem)[0]) for path in (tmp_path / folder).glob("*.ckpt"))

    assert steps("plain") == list(range(4, 65, 4))
    assert steps("step") == [step for step in range(4, 65, 4) if step > end]
    assert steps("best") == [step for step in range(8, 65, 8) if step > end]
    assert min(steps("late")) > end
    assert float(best.best_model_score) > 0.0
    assert watch.moved.count(0.0) == end // 8
    for callback in (best, by_step, late):
        assert "_should_skip_saving_checkpoint" not in vars(callback)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_the_users_plateau_scheduler_counts_no_bad_check_in_a_sweep(interval: str, tmp_path: Path) -> None:
    def configure(module: Any) -> Any:
        optimizer = momentum(module)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1000)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "interval": interval, "monitor": "metric"},
        }

    finder, model = llr.LRFinder(**SHORT), Logs(configure)
    run = fit(tmp_path, model, [finder])
    (config,) = run.lr_scheduler_configs
    end = taken(run, finder)
    steps = 64 - end if interval == "step" else 8 - (end // 8)
    assert config.scheduler.last_epoch == steps
    assert config.interval == interval


@pytest.mark.parametrize("raises", [False, True])
def test_all_that_a_sweep_borrows_comes_back(raises: bool, tmp_path: Path) -> None:
    class Breaks(Logs):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            if raises and self.trainer.global_step == 9:
                raise RuntimeError("the user's own")
            return super().training_step(batch, batch_idx)

    def configure(module: Any) -> Any:
        optimizer = momentum(module)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}

    stopping, best = EarlyStopping("val_loss"), ModelCheckpoint(tmp_path, monitor="val_loss")
    run = trainer(tmp_path, callbacks=[stopping, best, llr.LRFinder(**SHORT)], max_epochs=8, enable_checkpointing=True)
    if raises:
        with pytest.raises(RuntimeError, match="the user's own"):
            run.fit(Breaks(configure), Loader(8), held_out())
    else:
        run.fit(Breaks(configure), Loader(8), held_out())
    assert not [name for callback in (stopping, best) for name in vars(callback) if name.startswith("_should")]
    assert run.lr_scheduler_configs[0].interval == "epoch"
    assert getattr(best, "_defer_save_until_validation", False) is False


def ramp(**more: Any) -> llr.LRFinder:
    """A sweep whose length is known: of 32 updates, in one epoch."""
    return llr.LRFinder(suggest="minimum", steps=32, min_lr=1e-8, max_lr=1e-3, **more)


def test_a_validation_right_after_the_last_batch_of_a_sweep_decides_nothing_yet(tmp_path: Path) -> None:
    finder = ramp()
    stopping = EarlyStopping("val_loss", patience=1000, check_on_train_epoch_end=False)
    best = ModelCheckpoint(tmp_path, filename="{step}", monitor="moved", save_top_k=-1, every_n_train_steps=8)
    checks: list[tuple[int, int, bool]] = []
    watcher = pl.callbacks.LambdaCallback(
        on_validation_end=lambda trainer, _: checks.append(
            (trainer.global_step, len(best.best_k_models), bool(torch.isfinite(stopping.best_score)))
        )
    )
    settings: Any = {"val_check_interval": 8, "max_epochs": 2, "enable_checkpointing": True}
    fit(tmp_path, Logs(), [stopping, best, watcher, finder], Loader(32), **settings)
    assert [check for check in checks if check[0] <= 40] == [
        (8, 0, False), (16, 0, False), (24, 0, False), (32, 0, False), (40, 1, True)
    ]  # fmt: skip
    assert finder.findings[0].step == 31
    assert min(int(re.findall(r"\d+", Path(path).stem)[0]) for path in best.best_k_models) == 40


def test_resumed_right_after_the_last_batch_of_a_sweep_its_validation_still_decides_nothing(tmp_path: Path) -> None:
    def run(root: Path, resume: Any = None) -> tuple[Any, Any]:
        stopping = EarlyStopping("val_loss", patience=1000, check_on_train_epoch_end=False)
        saving = ModelCheckpoint(tmp_path / root, filename="{step}", save_top_k=-1, every_n_train_steps=32)
        model = Logs()
        callbacks = [stopping, saving, ramp()]
        made = trainer(tmp_path, callbacks=callbacks, max_epochs=2, val_check_interval=16, enable_checkpointing=True)
        made.fit(model, Loader(32), held_out(), ckpt_path=resume)
        return stopping.state_dict(), model.weights()

    whole, weights = run(Path("a"))
    resumed, again = run(Path("b"), str(tmp_path / "a" / "step=32.ckpt"))
    saved = torch.load(tmp_path / "a" / "step=32.ckpt", weights_only=True)["callbacks"]
    assert saved["LRFinder[LRFinder]"]["own"]["held"]
    assert not torch.isfinite(next(s for key, s in saved.items() if "EarlyStopping" in key)["best_score"])
    assert float(whole["best_score"]) == float(resumed["best_score"])
    assert all(map(torch.equal, weights, again))


class Saves(pl.Callback):
    def __init__(self, root: Path) -> None:
        self.root = root

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.save_checkpoint(self.root / f"batch-{trainer.fit_loop.epoch_loop.total_batch_idx}.ckpt")


@pytest.mark.parametrize("manual", [False, True], ids=["automatic, accumulated", "manual"])
def test_resumed_before_and_after_a_pause_a_sweep_ends_as_if_uninterrupted(manual: bool, tmp_path: Path) -> None:
    def run(resume: Any = None) -> tuple[Any, ...]:
        finder, model = llr.LRFinder(**SHORT), Logs(manual=manual)
        watch = Watch(finder)
        settings: Any = {"accumulate_grad_batches": 1 if manual else 2, "max_epochs": 7, "limit_val_batches": 0}
        callbacks = [watch, finder] if resume else [watch, finder, Saves(tmp_path)]
        made = trainer(tmp_path, callbacks=callbacks, **settings)
        made.fit(model, Loader(10 if manual else 20), ckpt_path=resume)
        return finder.findings, model.weights(), model.trace, watch.epochs

    findings, weights, trace, epochs = run()
    first = 9 if manual else 19  # the last batch of the first epoch
    for batch in (first - 2, first, first + (1 if manual else 2), 2 * first + 1):
        again = run(str(tmp_path / f"batch-{batch}.ckpt"))
        assert again[0] == findings
        assert all(map(torch.equal, again[1], weights))
        assert again[2] == trace[len(trace) - len(again[2]) :]
        # of the epoch in which it went on there may be no batch left that counts
        assert again[3][1:] == epochs[len(epochs) - len(again[3]) + 1 :]


# batches that end in the middle ----------------------------------------------------------------------------------


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_module_that_skips_the_rest_of_an_epoch_in_a_sweep_keeps_healthy_weights(
    at: int, accumulate: int, manual: bool, tmp_path: Path
) -> None:
    if manual and accumulate > 1:
        pytest.skip("Lightning refuses it")

    class Skips(Logs):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            return -1 if batch_idx == at and self.current_epoch % 3 == 1 else None

        def on_train_epoch_end(self) -> None:
            if finder.sweeping:
                healthy.append(all(map(torch.equal, self.weights(), self.first)))

    healthy: list[bool] = []
    finder, model = llr.LRFinder(**SHORT), Skips(manual=manual)
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    settings: Any = {"accumulate_grad_batches": accumulate, "max_epochs": 12 * accumulate, "enable_checkpointing": True}
    fit(tmp_path, model, [finder, saving], Loader(7), **settings)
    assert len(finder.findings) == 1
    assert len(healthy) >= 3
    assert all(healthy)
    # an epoch without an update is saved by nobody
    saved_epochs = [epoch for epoch in range(len(healthy)) if (tmp_path / f"epoch={epoch}.ckpt").exists()]
    assert len(saved_epochs) >= 3
    for epoch in saved_epochs:
        saved = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"]
        names = [name for name, _ in model.named_parameters()]
        assert all(torch.equal(saved[name], first) for name, first in zip(names, model.first, strict=True))


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_a_training_step_without_a_loss_is_no_point_and_the_metrics_stay(tmp_path: Path) -> None:
    class Sparse(Logs):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 3 else loss

    finder = llr.LRFinder(suggest="minimum", **SHORT)
    watch = Watch(finder)
    fit(tmp_path, Sparse(), [watch, finder])
    assert len(finder.findings[0].losses) <= 30
    assert watch.epochs == [10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0]


# a run too short -------------------------------------------------------------------------------------------------


@pytest.fixture
def said(caplog: Any) -> Any:
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    caplog.set_level(logging.INFO, logger="pytorch_lightning")
    logger.addHandler(caplog.handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    # Lightning's loggers may pass a record on to the one that pytest has, too
    yield lambda: list(dict.fromkeys(r.getMessage() for r in caplog.records if "LRFinder" in r.getMessage()))
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)


def test_a_run_too_short_for_its_sweep_is_told_before_it_starts_and_trains_at_the_users_rate(tmp_path: Path) -> None:
    finder, model = llr.LRFinder(at=0, steps=60), Model(momentum, 8)
    with pytest.warns(
        UserWarning,
        match=r"LRFinder: no sweep for at=0: it may take 70 updates, and the run has 62 left: train longer, or write "
        r"LRFinder\(steps=20\)\. The rate stays as it is\. To do without a finder, leave LRFinder out",
    ) as warned:
        fit(tmp_path, model, [finder], max_steps=62, max_epochs=-1)
    assert len([w for w in warned if "LRFinder" in str(w.message)]) == 1
    assert not finder.findings
    assert {row[0] for row in model.trace} == {0.1}
    assert len(model.trace) == finder.ledger.updates(0) == 62


def test_the_words_for_a_short_run_are_those_in_which_the_finder_was_written(tmp_path: Path) -> None:
    callbacks = llr.autopilot(warmup={"steps": 4}, plateau=None, guard=None, lr_monitor=None)
    with pytest.warns(UserWarning, match=r"write autopilot\(finder={'steps': 20}\).*write autopilot\(finder=None\)"):
        fit(tmp_path, Model(momentum, 8), callbacks, max_epochs=5)


@pytest.mark.parametrize(("updates", "steps"), [(40, 0), (48, 20), (62, 20), (139, 20), (140, 60)])
def test_a_sweep_whose_length_nobody_chose_leaves_half_of_the_run_to_training(
    updates: int, steps: int, tmp_path: Path
) -> None:
    finder, model = llr.LRFinder(progress_bar=False), Model(momentum, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, model, [finder], max_epochs=-1, max_steps=updates)
    told = [str(w.message) for w in caught if "LRFinder" in str(w.message)]
    assert bool(finder.findings) == (not told) == (steps > 0)
    if steps:
        assert finder.policy.steps == steps
        assert finder.ledger.updates(0) >= updates / 2
    else:
        assert told[0].startswith(
            "LRFinder: no sweep at the start: it may take 24 updates, and the run has 40 left, of which a sweep with "
            "steps='auto' takes half at most: train longer, or write LRFinder(steps=20). The rate stays as it is."
        )


def test_a_later_place_of_such_a_sweep_needs_twice_its_length_too_and_one_that_is_chosen_does_not(
    tmp_path: Path,
) -> None:
    with pytest.warns(UserWarning, match=r"no sweep for at=100: it may take 70 updates, and the run has 100 left, of"):
        fit(tmp_path, Model(momentum, 8), [llr.LRFinder(at=100)], max_steps=200, max_epochs=-1)
    finder = llr.LRFinder(at=100, steps=60)
    fit(tmp_path, Model(momentum, 8), [finder], max_steps=200, max_epochs=-1)
    assert len(finder.findings) == 1


def test_of_several_places_those_without_room_and_those_beyond_the_end_are_told_at_once(tmp_path: Path) -> None:
    finder = llr.LRFinder(at=[0, 25, 500], epochs=[30], **SHORT)
    with pytest.warns(
        UserWarning,
        match=r"no sweep for at=25: it may take 36 updates, and the run has \d left: train longer; "
        r"no sweep for epochs=30, at=500: the run ends first, after 64 updates",
    ) as warned:
        fit(tmp_path, Model(momentum, 8), [finder])
    assert len([w for w in warned if "LRFinder" in str(w.message)]) == 1
    assert len(finder.findings) == 1


@pytest.mark.parametrize(("accumulate", "batches"), [(1, 36), (2, 80)])
def test_every_sweep_says_before_it_what_it_costs(accumulate: int, batches: int, said: Any, tmp_path: Path) -> None:
    class Reads(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            early.extend(said() if not early else [])

    early: list[str] = []
    settings: Any = {"accumulate_grad_batches": accumulate, "max_epochs": 20}
    fit(tmp_path, Model(momentum, 8), [llr.LRFinder(**SHORT), Reads()], **settings)
    updates, left = batches // accumulate, 160 // accumulate
    assert early == [
        f"LRFinder: sweep (at the start): it may take {updates} updates ({batches} batches of the run), "
        f"{updates / left:.1%} of the {left} that are left, during which the model learns nothing"
    ]


def test_a_request_too_late_in_the_run_is_answered_in_words(said: Any, tmp_path: Path) -> None:
    finder = llr.LRFinder(at=None, **SHORT)
    asks = pl.callbacks.LambdaCallback(
        on_train_epoch_start=lambda trainer, _: finder.request("unfroze") if trainer.current_epoch == 6 else None
    )
    fit(tmp_path, Model(momentum, 8), [asks, finder])
    assert not finder.findings
    assert said()[1:] == ["LRFinder: no sweep (unfroze): it may take 36 updates, and the run has 16 left: train longer"]


def test_a_fast_dev_run_makes_no_sweep_and_says_so(said: Any, tmp_path: Path) -> None:
    finder = llr.LRFinder()
    fit(tmp_path, Model(momentum, 8), [finder], fast_dev_run=3)
    assert not finder.findings
    assert said() == ["LRFinder: no sweep in a fast_dev_run"]


@pytest.mark.parametrize(
    ("steps", "epoch", "most"), [(60, float("inf"), 61), (60, 10.0, 68), (60, 1.0, 80), (30, 2.0, 40)]
)
def test_how_long_a_sweep_may_get_with_its_pauses(steps: int, epoch: float, most: int) -> None:
    assert longest(steps, epoch) == most


def test_a_sweep_puts_off_the_places_after_it() -> None:
    settings: Any = {"made": 10, "epoch": 1, "per_epoch": 10.0, "run": 200.0, "needs": 30}
    ahead = places_ahead(SweepSchedule((0, 15, 100), (1, 2)), SweepScheduleState(("update 0",)), **settings)
    assert [(place.words, place.left) for place in ahead] == [
        ("epochs=1", 200.0), ("epochs=2", 190.0), ("at=15", 135.0), ("at=100", 20.0)
    ]  # fmt: skip


# who shows it ----------------------------------------------------------------------------------------------------


class Plain(Logger):
    """As in Lightning's own documentation: no `experiment`."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, float] = {}

    @property
    def name(self) -> str:
        return "plain"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.update(metrics)


@pytest.mark.parametrize("logger", [False, Plain()], ids=["none", "without experiment"])
def test_a_sweep_ends_with_any_logger(logger: Any, tmp_path: Path) -> None:
    finder = llr.LRFinder(**SHORT)
    fit(tmp_path, Model(momentum, 8), [finder], logger=logger, log_every_n_steps=1)
    assert finder.result is not None
    assert not logger or "lr-finder/loss" in logger.rows


PROGRAM = """
import logging, sys, warnings
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
import pytorch_lightning as pl
from pytorch_lightning import callbacks
import lightning_lr as llr
from tests.small import Loader, Model, held_out, sgd
bar = getattr(callbacks, sys.argv[1])()
finder = [llr.LRFinder(steps=30, min_lr=1e-4)] if sys.argv[2] == "with" else []
run = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False, max_epochs=8,
                 callbacks=[bar, *finder], num_sanity_val_steps=0, default_root_dir=sys.argv[3])
run.fit(Model(sgd, 8), Loader(8), held_out())
"""


def screen(kind: str, finder: str, root: Path, terminal: bool) -> str:
    """All that a run writes to its terminal, or to a pipe."""
    command, more = ("-c", PROGRAM, kind, finder, str(root)), {"environment": {"TERM": "xterm"}}
    if not terminal:
        done = python(*command, **more)
        assert done.returncode == 0, done.stderr
        return done.stdout
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = Python(*command, **more, screen=os.ttyname(follower))
    written, ended = b"", False
    while True:
        if not ended and leader not in wait([leader, process.sentinel]):
            os.close(follower)
            ended = True
        try:
            read = os.read(leader, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            break
        if not read:
            break
        written += read
    os.close(leader)
    assert process.ended().returncode == 0, written
    return written.decode(errors="replace")


def lines(text: str) -> int:
    """How far down the cursor ends."""
    return text.count("\n") - sum(int(n or 1) for n in re.findall(r"\x1b\[(\d*)A", text))


def with_rich() -> None:
    """Skips where Lightning's own bar can't be drawn."""
    pytest.importorskip("rich")
    if Version(pl.__version__) < Version("2.6"):
        pytest.skip("the RichProgressBar of this Lightning fails with this rich, with or without a sweep")


@pytest.mark.parametrize("kind", ["TQDMProgressBar", "RichProgressBar"])
def test_the_bar_of_a_sweep_stays_within_lightnings_own_and_leaves_no_line(kind: str, tmp_path: Path) -> None:
    if kind == "RichProgressBar":
        with_rich()
    plain, swept = (screen(kind, finder, tmp_path, True) for finder in ("without", "with"))
    assert "LRFinder" in swept
    assert lines(swept) == lines(plain)


@pytest.mark.parametrize("kind", ["TQDMProgressBar", "RichProgressBar"])
def test_without_a_terminal_a_sweep_adds_no_line(kind: str, tmp_path: Path) -> None:
    if kind == "RichProgressBar":
        with_rich()
    plain, swept = (screen(kind, finder, tmp_path, False) for finder in ("without", "with"))
    assert "LRFinder" not in swept
    assert swept.count("\n") == plain.count("\n")


# no optimizer ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*configure_optimizers.* returned .None.")
def test_without_an_optimizer_there_is_no_sweep() -> None:
    class Ledger:
        optimizers: tuple[Any, ...] = ()

    class Run:
        ledger, peers = Ledger(), ()

    finder = llr.LRFinder(optimizer=1)
    finder._run = Run()  # pyright: ignore[reportAttributeAccessIssue]
    finder.started(None, None)
    assert not finder._search._due(None)
