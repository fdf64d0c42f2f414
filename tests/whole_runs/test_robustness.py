"""Runs that once broke the callbacks: each must go on as the run without them, with the right rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger

import lightning_lr as llr
from tests.small import Loader, Model, held_out, sgd, trainer, watch


class Strict(Logger):
    """A logger without an `experiment` that takes no step twice nor backward, as some services do."""

    def __init__(self, broken_from: int | None = None) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.broken_from = broken_from

    name = version = "strict"  # type: ignore[assignment]

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        if self.broken_from is not None and step >= self.broken_from:
            raise OSError("no space left")
        rates = {tag: value for tag, value in metrics.items() if tag.startswith("lr")}
        if rates:
            assert not self.rows or step >= self.rows[-1][0], (step, self.rows[-1])
            self.rows.append((step, rates))


def constant(model: Any) -> Any:
    return sgd(model)


class Constant(Model):
    """Its metric never improves."""

    def on_validation_epoch_end(self) -> None:
        self.log("constant", 1.0)


@pytest.mark.invariant(5)
def test_a_logger_with_no_experiment_gets_the_scalars_and_never_a_step_backward(tmp_path: Path) -> None:
    logger = Strict()
    callbacks = [llr.Warmup(4), llr.PlateauDecay("constant", factor=0.5, patience=0), llr.LRMonitor()]
    trainer(tmp_path, callbacks=callbacks, logger=logger, max_epochs=6, log_every_n_steps=1).fit(
        Constant(sgd), Loader(3), held_out()
    )
    rates = {step: row["lr-SGD"] for step, row in logger.rows if "lr-SGD" in row}
    assert rates[0] == pytest.approx(0.025)
    assert rates[17] == pytest.approx(0.1 * 0.5**4)


def test_a_second_fit_on_a_training_metric_without_validation(tmp_path: Path) -> None:
    plateau = llr.PlateauDecay("train_loss")
    fit = trainer(tmp_path, callbacks=[plateau], max_epochs=2)
    model = Model(sgd)
    fit.fit(model, Loader(3))
    fit.fit_loop.max_epochs = 4
    fit.fit(model, Loader(3))
    assert len(model.trace) == 12


class RemovesGroup(Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 2:
            trainer.optimizers[0].param_groups.pop()


def two_groups(model: Any) -> Any:
    return torch.optim.SGD([{"params": [model.head.weight]}, {"params": [model.head.bias]}], lr=0.1)


def test_a_param_group_that_goes(tmp_path: Path) -> None:
    model = Constant(two_groups)
    callbacks = [llr.Warmup(2), llr.PlateauDecay("constant", factor=0.5, patience=0), RemovesGroup()]
    trainer(tmp_path, callbacks=callbacks, max_epochs=4).fit(model, Loader(2), held_out())
    assert [len(row) for row in model.trace] == [2] * 4 + [1] * 4
    assert [row[0] for row in model.trace] == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025])


class AddsGroup(Callback):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 3:
            trainer.optimizers[0].add_param_group({"params": pl_module.backbone.parameters(), "lr": 0.05})


def head_only(model: Any) -> Any:
    return torch.optim.SGD(model.head.parameters(), lr=0.1)


def test_min_lr_holds_for_a_group_that_comes_later(tmp_path: Path) -> None:
    model = Constant(head_only, 4)
    plateau = llr.PlateauDecay("constant", factor=0.1, patience=0, min_lr=0.02)
    trainer(tmp_path, callbacks=[plateau, AddsGroup()], max_epochs=5).fit(model, Loader(1), held_out())
    assert model.trace[-1] == pytest.approx([0.02, 0.02])


def test_a_group_that_comes_after_a_resume_warms_up_as_in_the_uninterrupted_run(tmp_path: Path) -> None:
    def run(epochs: int, checkpoint: str | None = None) -> tuple[Any, Any]:
        model = Model(head_only, 4)
        fit = trainer(tmp_path, callbacks=[llr.Warmup(fraction=0.5), AddsGroup()], max_epochs=epochs)
        fit.fit(model, Loader(4), ckpt_path=checkpoint)
        return model, fit

    whole, _ = run(5)
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    fit = trainer(
        tmp_path,
        callbacks=[llr.Warmup(fraction=0.5), AddsGroup(), keep],
        max_epochs=5,
        enable_checkpointing=True,
    )
    fit.fit(Model(head_only, 4), Loader(4))
    with pytest.warns(UserWarning, match="Please add the following callbacks"):
        resumed, _ = run(5, str(tmp_path / "epoch=1.ckpt"))
    assert resumed.trace == whole.trace[8:]


class Replaces(Callback):
    def __init__(self, in_place: bool) -> None:
        self.in_place = in_place

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            optimizer = sgd(pl_module, 0.2)
            watch(optimizer, pl_module.trace)
            if self.in_place:
                trainer.strategy._optimizers[0] = optimizer
                trainer.strategy._lightning_optimizers[0]._optimizer = optimizer
            else:
                trainer.strategy.optimizers = [optimizer]


@pytest.mark.parametrize("in_place", [True, False])
def test_an_optimizer_that_is_replaced_in_mid_run(in_place: bool, tmp_path: Path) -> None:
    model = Model(sgd)
    trainer(tmp_path, callbacks=[Replaces(in_place), llr.Warmup(10)], max_epochs=2).fit(model, Loader(6))
    assert [row[0] for row in model.trace] == pytest.approx(
        [0.01, 0.02, 0.03, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.2, 0.2]
    )


class NoneEveryOther(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 2 else loss


@pytest.mark.filterwarnings("ignore:.*training_step.*returned.*None")
def test_a_training_step_that_returns_none_makes_no_update(tmp_path: Path) -> None:
    model, warmup = NoneEveryOther(sgd), llr.Warmup(4)
    trainer(tmp_path, callbacks=[warmup], max_epochs=1).fit(model, Loader(8))
    assert warmup.ledger.updates(0) == 4
    assert [row[0] for row in model.trace][::2] == pytest.approx([0.025, 0.05, 0.075, 0.1])


class Late(Model):
    """Two optimizers, of which the second has yet to step."""

    def __init__(self) -> None:
        super().__init__(lambda m: [sgd(m.head), sgd(m.backbone)], 4)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()[0]
        optimizer.zero_grad()
        self.manual_backward(torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()

    def on_validation_epoch_end(self) -> None:
        self.log("constant", 1.0)


def test_an_optimizer_that_never_steps_is_named_and_keeps_no_other_from_decaying(tmp_path: Path) -> None:
    plateau = llr.PlateauDecay("constant", factor=0.5, patience=0)
    with pytest.warns(UserWarning, match="has seen no step of SGD in 3 batches"):
        trainer(tmp_path, callbacks=[llr.Warmup(3), plateau], max_epochs=4).fit(Late(), Loader(3), held_out())
    assert plateau.state.decays == 3


class Hears(Callback):
    told = False

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.told = True


@pytest.mark.filterwarnings("ignore:the last rates could not be written")
def test_a_logger_that_fails_does_not_keep_later_callbacks_from_saving(tmp_path: Path) -> None:
    hears = Hears()
    fit = trainer(tmp_path, callbacks=[llr.Warmup(8), llr.LRMonitor(), hears], logger=Strict(broken_from=3))
    with pytest.raises(OSError, match="no space left"):
        fit.fit(Model(sgd), Loader(6))
    assert hears.told


class RaisesAtBatchEnd(Callback):
    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("before the flush")


def test_what_was_not_yet_written_is_written_after_an_exception(tmp_path: Path) -> None:
    logger = Strict()
    fit = trainer(tmp_path, callbacks=[RaisesAtBatchEnd(), llr.Warmup(8), llr.LRMonitor()], logger=logger)
    with pytest.raises(RuntimeError, match="before the flush"):
        fit.fit(Model(sgd), Loader(6))
    assert logger.rows[-1] == (2, {"lr-SGD": pytest.approx(0.0375), "lr-factor/Warmup": pytest.approx(0.375)})


def test_a_resumed_runs_log_begins_with_the_rate_and_every_factor(tmp_path: Path) -> None:
    def made() -> list[Any]:
        return [llr.Warmup(2), llr.PlateauDecay("val_loss"), llr.LRMonitor()]

    first = trainer(tmp_path, callbacks=made(), logger=Strict(), max_epochs=1)
    first.fit(Model(sgd), Loader(4), held_out())
    first.save_checkpoint(tmp_path / "one.ckpt")
    logger = Strict()
    trainer(tmp_path, callbacks=made(), logger=logger, max_epochs=2).fit(
        Model(sgd), Loader(4), held_out(), ckpt_path=str(tmp_path / "one.ckpt")
    )
    assert logger.rows[0] == (4, {"lr-SGD": 0.1, "lr-factor/Warmup": 1.0, "lr-factor/PlateauDecay": 1.0})


def test_warm_up_that_is_added_on_resume_starts_afresh_whatever_else_was_saved(tmp_path: Path) -> None:
    first = trainer(tmp_path, callbacks=[llr.PlateauDecay("val_loss")], max_epochs=1)
    first.fit(Model(sgd), Loader(4), held_out())
    first.save_checkpoint(tmp_path / "one.ckpt")
    model = Model(sgd)
    second = trainer(tmp_path, callbacks=[llr.PlateauDecay("val_loss"), llr.Warmup(2)], max_epochs=2)
    with pytest.warns(UserWarning, match="holds no state of Warmup: it starts afresh at step 4"):
        second.fit(model, Loader(4), held_out(), ckpt_path=str(tmp_path / "one.ckpt"))
    assert [row[0] for row in model.trace] == [0.05, 0.1, 0.1, 0.1]


class TwoLoaders(Model):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self.log(f"loss{dataloader_idx}", 1.0, add_dataloader_idx=False)
        self.log("loss", 1.0)


@pytest.mark.parametrize("monitor", ["loss1", "loss/dataloader_idx_1"])
def test_a_metric_of_one_of_several_validation_loaders(monitor: str, tmp_path: Path) -> None:
    plateau = llr.PlateauDecay(monitor, patience=0)
    trainer(tmp_path, callbacks=[plateau], max_epochs=2, val_check_interval=2).fit(
        TwoLoaders(sgd), Loader(6), [held_out(), held_out()]
    )
    assert plateau.state.decays == 5


def test_many_values_that_are_not_finite_are_told_once(tmp_path: Path) -> None:
    class NaNs(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("nans", float("nan") if batch_idx < 8 else 1.0)
            return super().training_step(batch, batch_idx)

    monitor = llr.LRMonitor()
    callbacks = [llr.PlateauDecay("nans"), monitor]
    trainer(tmp_path, callbacks=callbacks, logger=Strict(), max_epochs=1).fit(NaNs(sgd), Loader(10))
    told = [line for line in monitor.story if "nans" in line]
    assert len(told) == 2
    assert "finite again after 8 values" in told[1]
