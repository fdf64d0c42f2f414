"""`PlateauDecay` in real fits: whatever was logged, wherever; several ranks; what it says when it can't."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_lr as llr
from tests.pool import Pool
from tests.small import Loader, Model, held_out, sgd, trainer


class Scripted(Model):
    """Logs what a script says, in the hook that it says.

    Args:
        script: the values, one for each time that the hook runs.
        hook: `validation`, `train_epoch`, `train_epoch_end` or `step`.
    """

    def __init__(self, script: list[float], hook: str, configure: Any = sgd) -> None:
        super().__init__(configure)
        self.script, self.hook, self.at = script, hook, 0

    def _log(self, hook: str, **kwargs: Any) -> None:
        if hook == self.hook:
            self.log("scripted", self.script[self.at], **kwargs)
            self.at += 1

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self._log("step")
        if batch_idx == self.trainer.num_training_batches - 1:
            self._log("train_epoch", on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self._log("validation")

    def on_train_epoch_end(self) -> None:
        self._log("train_epoch_end")


@pytest.mark.parametrize("hook", ["validation", "train_epoch", "train_epoch_end"])
def test_the_metric_may_come_once_an_epoch_from_anywhere(hook: str, tmp_path: Path) -> None:
    model = Scripted([1.0, 0.5, 0.5, 0.5, 0.1, 0.2], hook)
    plateau = llr.PlateauDecay("scripted", factor=0.5, patience=1)
    trainer(tmp_path, callbacks=[plateau], max_epochs=6, num_sanity_val_steps=2).fit(model, Loader(2), held_out())
    # the third value no better than 0.5 comes at the end of epoch 3
    assert [row[0] for row in model.trace] == [0.1] * 8 + [0.05] * 4
    assert plateau.state.decays == 1


def test_the_metric_may_come_at_every_step(tmp_path: Path) -> None:
    model = Scripted([1.0, 0.5, 0.5, 0.5, 0.1, 0.2], "step")
    trainer(tmp_path, callbacks=[llr.PlateauDecay("scripted", factor=0.5, patience=1)], max_epochs=1).fit(
        model, Loader(6)
    )
    assert [row[0] for row in model.trace] == [0.1] * 4 + [0.05] * 2


def test_with_accumulation_a_steps_value_is_the_mean_of_its_batches(tmp_path: Path) -> None:
    # means by two: 1.0, 0.5, 0.5, 0.5; single values would have fallen each time
    model = Scripted([1.5, 0.5, 0.9, 0.1, 0.8, 0.2, 0.7, 0.3, 0.0, 0.0], "step")
    plateau = llr.PlateauDecay("scripted", factor=0.5, patience=1)
    trainer(tmp_path, callbacks=[plateau], max_epochs=1, accumulate_grad_batches=2).fit(model, Loader(10))
    assert [row[0] for row in model.trace] == [0.1] * 4 + [0.05]


class ForkedLog(Model):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.log("forked", torch.tensor(1.0 + self.trainer.global_step), on_step=True, on_epoch=True)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("monitor", "decays"), [("forked", 2), ("forked_epoch", 2), ("forked_step", 8)])
def test_of_a_metric_logged_both_ways_the_epoch_is_taken_unless_its_step_is_named(
    monitor: str, decays: int, tmp_path: Path
) -> None:
    plateau = llr.PlateauDecay(monitor, patience=0)
    trainer(tmp_path, callbacks=[plateau], max_epochs=3).fit(ForkedLog(sgd), Loader(3))
    assert plateau.state.decays == decays


class NoisyLabels(Model):
    """Half of the labels are drawn anew at every step, so that the loss soon stops to fall."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        noise = torch.randint(10, labels.shape)
        return super().training_step([images, torch.where(torch.rand(labels.shape) < 0.5, noise, labels)], batch_idx)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_trend_of_the_training_loss_of_every_step(accumulate: int, tmp_path: Path) -> None:
    plateau = llr.PlateauDecay("train_loss", factor=0.1, patience=60, test="trend")
    model = NoisyLabels(lambda m: sgd(m, 2.0))
    trainer(tmp_path, callbacks=[plateau], max_epochs=-1, max_steps=400, accumulate_grad_batches=accumulate).fit(
        model, Loader(24)
    )
    rates = [row[0] for row in model.trace]
    assert plateau.state.decays >= 1
    assert rates.index(0.2) >= 60
    assert sorted(rates, reverse=True) == rates


def test_nothing_counts_against_the_rate_while_it_warms_up(tmp_path: Path) -> None:
    script = [1.0, 2.0, 3.0, 1.0, 1.0, 1.0]
    model = Scripted(script, "validation")
    callbacks = [llr.PlateauDecay("scripted", factor=0.5, patience=0), llr.Warmup(6)]
    trainer(tmp_path, callbacks=callbacks, max_epochs=6).fit(model, Loader(2), held_out())
    factors = [row[0] / 0.1 for row in model.trace]
    # warm-up ends with update 5: the validation after it is the third, which is the first that counts
    assert factors == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_is_no_bad_check_and_is_on_record(value: float, tmp_path: Path) -> None:
    model = Scripted([1.0, value, value, value, 1.0, 1.0], "validation")
    plateau, monitor = llr.PlateauDecay("scripted", factor=0.5, patience=1), llr.LRMonitor(layout=False)
    trainer(tmp_path, callbacks=[plateau, monitor], logger=True, max_epochs=6).fit(model, Loader(2), held_out())
    assert plateau.state.decays == 1
    assert plateau.state.bad_checks == 0
    assert any(f"scripted is {value}: not counted" in line for line in monitor.story)


def test_min_lr_bounds_the_decays_and_not_the_scheduler(tmp_path: Path) -> None:
    def configure(model: Any) -> Any:
        optimizer = torch.optim.SGD(
            [{"params": [model.head.weight], "lr": 0.1}, {"params": [model.head.bias], "lr": 0.02}]
        )
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [10], 0.01)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    model = Scripted([1.0] * 7, "validation", configure)
    plateau = llr.PlateauDecay("scripted", factor=0.1, patience=0, min_lr=0.005)
    trainer(tmp_path, callbacks=[plateau], max_epochs=7).fit(model, Loader(2), held_out())
    assert [row[0] for row in model.trace] == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.005] * 4 + [0.00005] * 4)
    assert [row[1] for row in model.trace] == pytest.approx([0.02] * 4 + [0.005] * 6 + [0.00005] * 4)


@pytest.mark.parametrize(("max_decays", "epochs"), [(0, 2), (2, 4)])
def test_after_max_decays_the_next_plateau_stops_the_training(max_decays: int, epochs: int, tmp_path: Path) -> None:
    model = Scripted([1.0] * 9, "validation")
    monitor = llr.LRMonitor(layout=False)
    callbacks = [llr.PlateauDecay("scripted", factor=0.1, patience=0, max_decays=max_decays), monitor]
    fit = trainer(tmp_path, callbacks=callbacks, max_epochs=9, logger=True)
    fit.fit(model, Loader(2), held_out())
    assert fit.current_epoch == epochs
    assert len({row[0] for row in model.trace}) == max_decays + 1
    assert f"PlateauDecay asks the trainer to stop after {max_decays} decays" in monitor.story[-1]


def test_two_plateaus_on_two_metrics_multiply(tmp_path: Path) -> None:
    class Both(Scripted):
        def on_validation_epoch_end(self) -> None:
            super().on_validation_epoch_end()
            self.log("other", 1.0)

    model = Both([1.0, 1.0, 0.5, 0.5], "validation")
    callbacks = [
        llr.PlateauDecay("scripted", factor=0.5, patience=0, name="Loss"),
        llr.PlateauDecay("other", factor=0.1, patience=2),
    ]
    trainer(tmp_path, callbacks=callbacks, max_epochs=4).fit(model, Loader(1), held_out())
    assert [row[0] for row in model.trace] == pytest.approx([0.1, 0.1, 0.05, 0.05])
    assert [c.state.decays for c in callbacks] == [2, 1]


def test_a_metric_that_nobody_logs_says_which_there_are(tmp_path: Path) -> None:
    callbacks = [llr.PlateauDecay("val_los")]
    missing = "'val_los', which was never logged; these were: train_loss, val_loss. Did you mean 'val_loss'"
    with pytest.warns(UserWarning, match="has not logged"), pytest.raises(llr.MetricError, match=missing):
        trainer(tmp_path, callbacks=callbacks).fit(Model(sgd), Loader(2), held_out())


def test_a_run_of_one_epoch_without_the_metric_warns_at_its_end(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="'val_los', which validation has not logged"),
        pytest.warns(UserWarning, match="'val_los', which was never logged: it changed no rate"),
    ):
        trainer(tmp_path, callbacks=[llr.PlateauDecay("val_los")], max_epochs=1).fit(Model(sgd), Loader(2), held_out())


def test_validation_that_comes_late_is_no_missing_metric(tmp_path: Path) -> None:
    plateau = llr.PlateauDecay("val_loss")
    trainer(tmp_path, callbacks=[plateau], max_epochs=4, check_val_every_n_epoch=3).fit(
        Model(sgd), Loader(2), held_out()
    )
    assert plateau.state.best is not None


BAD = [
    ({"factor": 1.5}, "factor must be in (0, 1), got 1.5: to keep the rate, leave PlateauDecay out"),
    ({"factor": 0.0}, "factor must be in (0, 1), got 0.0"),
    ({"factor": math.nan}, "factor must be in (0, 1), got nan"),
    ({"min_lr": -1.0}, "min_lr must be in [0, inf), got -1.0"),
    ({"factor": "0.5"}, "factor must be in (0, 1), got '0.5'"),
    ({"threshold": "1e-4"}, "threshold must be in [0, 1), got '1e-4'"),
    ({"max_decays": -1}, "max_decays must be a whole number >= 0"),
    ({"mode": "best"}, "mode must be 'min' or 'max', got 'best'"),
    ({"threshold": math.nan}, "threshold must be in [0, 1)"),
    ({"monitor": ""}, "monitor must be the name of a logged metric"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        llr.PlateauDecay(**arguments)
    assert message in str(caught.value)


# several ranks ---------------------------------------------------------------------------------------------------


class ByRank(Scripted):
    """Each rank logs its own script."""

    def __init__(self, scripts: list[list[float]], hook: str) -> None:
        super().__init__([], hook)
        self.scripts = scripts

    def _log(self, hook: str, **kwargs: Any) -> None:
        self.script = self.scripts[self.global_rank]
        if self.at < len(self.script):
            super()._log(hook, **kwargs)


def fit_by_rank(scripts: list[list[float]], hook: str, root: str) -> list[float]:
    model = ByRank(scripts, hook)
    plateau = llr.PlateauDecay("scripted", factor=0.5, patience=0)
    trainer(root, callbacks=[plateau], max_epochs=4, devices=2, strategy="ddp").fit(
        model, Loader(1, shuffle=False), held_out()
    )
    return [row[0] for row in model.trace]


@pytest.mark.parametrize("hook", ["validation", "train_epoch", "train_epoch_end", "step"])
def test_ranks_decide_from_the_mean_of_a_metric_that_differs(pool: Pool, hook: str, tmp_path: Path) -> None:
    # rank 0 improves always, rank 1 never, their mean until the third
    scripts = [[1.0, 0.9, 0.8, 0.7], [1.0, 1.0, 1.3, 1.0]]
    first, second = pool.run(fit_by_rank, scripts, hook, str(tmp_path))
    assert first == second == pytest.approx([0.1, 0.1, 0.1, 0.05])


@pytest.mark.parametrize("hook", ["validation", "train_epoch", "step"])
def test_a_metric_that_one_rank_lacks_is_an_error_on_every_rank(pool: Pool, hook: str, tmp_path: Path) -> None:
    outcomes = pool.outcomes(fit_by_rank, [[1.0, 1.0, 1.0, 1.0], []], hook, str(tmp_path))
    for worked, answer in outcomes:
        assert not worked
        assert "MetricError" in answer
        assert "must be logged on every rank alike, but rank 1 did not log it" in answer


def test_one_check_is_said_to_be_one(tmp_path: Path) -> None:
    monitor = llr.LRMonitor()
    callbacks = [llr.PlateauDecay("scripted", patience=0), monitor]
    trainer(tmp_path, callbacks=callbacks, max_epochs=3).fit(Scripted([1.0] * 3, "validation"), Loader(1), held_out())
    assert [change.cause for change in monitor.changes] == [
        "PlateauDecay 1 -> 0.1: scripted 1 is no better than 1 for 1 check"
    ]


# several optimizers ----------------------------------------------------------------------------------------------


class Two(Scripted):
    """Two optimizers by hand, each with a rate of its own."""

    def __init__(self, script: list[float]) -> None:
        super().__init__(script, "validation", lambda m: [torch.optim.SGD(m.parameters(), lr=lr) for lr in (0.1, 0.2)])
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()


@pytest.mark.parametrize(("optimizer", "falls"), [(None, (0.5, 0.5)), (0, (0.5, 1.0)), (1, (1.0, 0.5))])
def test_of_two_optimizers_the_named_one_falls_and_goes_on_so_after_a_resume(
    optimizer: int | None, falls: tuple[float, float], tmp_path: Path
) -> None:
    script = [1.0, 1.0, 1.0, 1.0]

    def plateau() -> llr.PlateauDecay:
        return llr.PlateauDecay("scripted", factor=0.5, patience=0, min_lr=1e-3, max_decays=1, optimizer=optimizer)

    model = Two(script)
    run = trainer(tmp_path, callbacks=[plateau()], max_epochs=3)
    run.fit(model, Loader(1), held_out())
    rows = [rates[0] for rates in model.trace]
    assert rows == pytest.approx([0.1, 0.2, 0.1, 0.2, 0.1 * falls[0], 0.2 * falls[1]])
    run.save_checkpoint(tmp_path / "two.ckpt")
    again = Two(script)
    trainer(tmp_path, callbacks=[plateau()], max_epochs=4).fit(
        again, Loader(1), held_out(), ckpt_path=tmp_path / "two.ckpt"
    )
    assert [rates[0] for rates in again.trace] == pytest.approx([0.1 * falls[0], 0.2 * falls[1]])


def test_an_optimizer_that_the_run_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="optimizer must be a whole number >= 0, got -1: it is an index, or None for"):
        llr.PlateauDecay(optimizer=-1)
    with pytest.raises(
        ValueError, match=r"names no optimizer of this run, which has 2.* write PlateauDecay\(optimizer=0\)"
    ):
        trainer(tmp_path, callbacks=[llr.PlateauDecay(optimizer=2)]).fit(Two([1.0] * 2), Loader(1), held_out())
