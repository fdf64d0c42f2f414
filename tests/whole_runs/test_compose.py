"""Rates compose: the golden sequence, the run that changes nothing, the run interrupted after every step."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

import lightning_lr as llr
from tests.pool import Pool
from tests.small import Loader, Model, cosine, held_out, sgd, trainer

UPDATES = 24


class Scripted(Model):
    """Validates on a script: a plateau in the middle."""

    script = (1.0, 0.8, 0.8, 0.8, 0.5, 0.5, 0.5, 0.4, 0.4, 0.4, 0.4, 0.4)

    def on_validation_epoch_end(self) -> None:
        self.log("scripted", self.script[self.current_epoch])


def callbacks() -> list[Any]:
    return [llr.Warmup(8), llr.PlateauDecay("scripted", factor=0.5, patience=1), llr.LRMonitor()]


def golden() -> list[float]:
    """Warm-up over 8 of 24 updates, cosine from 0.1, and a factor of 0.5 from each second bad epoch of 4 updates on.

    The script's bad epochs that count (no longer warming up): 2 and 3, so the second half of 24 updates has 0.5.
    """
    rates = []
    for k in range(UPDATES):
        warm = min(1.0, (k + 1) / 8)
        schedule = 0.1 * (1 + math.cos(math.pi * k / UPDATES)) / 2
        rates.append(schedule * warm * (0.5 if k >= 16 else 1.0))
    return rates


@pytest.mark.parametrize("accumulate", [1, 4])
def test_warm_up_with_cosine_with_plateau_decay_is_the_product_of_the_three(accumulate: int, tmp_path: Path) -> None:
    model = Scripted(cosine)
    fit = trainer(tmp_path, callbacks=callbacks(), logger=True, max_epochs=6, accumulate_grad_batches=accumulate)
    fit.fit(model, Loader(4 * accumulate), held_out())
    assert [row[0] for row in model.trace] == pytest.approx(golden(), rel=1e-12)


@pytest.mark.invariant(2)
def test_the_scheduler_and_the_checkpoint_never_see_a_factor(tmp_path: Path) -> None:
    plain, composed = Scripted(cosine), Scripted(cosine)
    trainer(tmp_path, max_epochs=6).fit(plain, Loader(4), held_out())
    fit = trainer(tmp_path, callbacks=callbacks(), logger=True, max_epochs=6)
    fit.fit(composed, Loader(4), held_out())
    assert composed.at_rest == plain.at_rest
    fit.save_checkpoint(tmp_path / "end.ckpt", weights_only=False)
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == plain.at_rest[-1][0]


def test_with_all_factors_at_one_the_weights_are_bit_identical(tmp_path: Path) -> None:
    plain, composed = Model(cosine, 8), Model(cosine, 8)
    trainer(tmp_path, max_epochs=4).fit(plain, Loader(6), held_out())
    nothing = [llr.Warmup(1), llr.PlateauDecay("val_loss", patience=100), llr.LRMonitor(momentum=True, prog_bar=True)]
    trainer(tmp_path, callbacks=nothing, logger=True, max_epochs=4).fit(composed, Loader(6), held_out())
    assert all(torch.equal(a, b) for a, b in zip(plain.weights(), composed.weights(), strict=True))
    assert plain.trace == composed.trace


class ByStep(Scripted):
    """Logs the script at every fourth step."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 0:
            self.log("by_step", self.script[self.current_epoch])
        return super().training_step(batch, batch_idx)


def run(root: Path, monitor: str, accumulate: int, checkpoint: Path | None = None) -> tuple[Any, Any]:
    made = [llr.Warmup(8), llr.PlateauDecay(monitor, factor=0.5, patience=1), llr.LRMonitor(momentum=True)]
    saving: list[Any] = []
    if checkpoint is None:
        saving = [
            ModelCheckpoint(dirpath=root / "steps", filename="{step}", save_top_k=-1, every_n_train_steps=1),
            ModelCheckpoint(dirpath=root / "validation", filename="{step}", save_top_k=-1),
        ]
    fit = trainer(
        root,
        callbacks=made + saving,
        logger=True,
        max_epochs=6,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=bool(saving),
    )
    model = ByStep(cosine)
    fit.fit(model, Loader(4 * accumulate), held_out(), ckpt_path=checkpoint and str(checkpoint))
    return model, made


@pytest.mark.invariant(8)
@pytest.mark.filterwarnings("ignore:.*Please add the following callbacks.*ModelCheckpoint")
@pytest.mark.filterwarnings("ignore:the checkpoint was saved at the end of an epoch before its validation")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("monitor", ["scripted", "by_step"])
def test_interrupted_after_any_step_the_run_ends_as_if_it_had_not_been(
    accumulate: int, monitor: str, tmp_path: Path
) -> None:
    whole, made = run(tmp_path, monitor, accumulate)
    assert made[1].state.decays >= 1
    steps = [tmp_path / "steps" / f"step={k}.ckpt" for k in range(1, UPDATES + 1)]
    if monitor == "scripted":
        # resumed from before an epoch's validation, Lightning passes over that validation
        steps = [path for k, path in enumerate(steps, start=1) if k % 4]
    for checkpoint in steps + [tmp_path / "validation" / f"step={k}.ckpt" for k in range(4, UPDATES + 1, 4)]:
        done = torch.load(checkpoint, weights_only=True)["global_step"]
        model, resumed = run(tmp_path, monitor, accumulate, checkpoint)
        assert model.trace == whole.trace[done:], checkpoint
        assert all(torch.equal(a, b) for a, b in zip(model.weights(), whole.weights(), strict=True)), checkpoint
        assert resumed[1].state == made[1].state, checkpoint
        assert resumed[0].run.save() == made[0].run.save(), checkpoint
        assert resumed[2].changes == [change for change in made[2].changes if change.step >= done], checkpoint


@pytest.mark.filterwarnings("ignore:.*Please add the following callbacks.*ModelCheckpoint")
def test_a_validation_that_lightning_passes_over_on_resume_is_said(tmp_path: Path) -> None:
    run(tmp_path, "scripted", 1)
    with pytest.warns(UserWarning, match="saved at the end of an epoch before its validation"):
        run(tmp_path, "scripted", 1, tmp_path / "steps" / "step=12.ckpt")


def test_a_resumed_run_that_was_made_longer_does_not_warm_up_again(tmp_path: Path) -> None:
    first = Model(sgd)
    short = trainer(tmp_path, callbacks=[llr.Warmup(fraction=0.5)], max_epochs=2)
    short.fit(first, Loader(4))
    short.save_checkpoint(tmp_path / "end.ckpt")
    model = Model(sgd)
    longer = trainer(tmp_path, callbacks=[llr.Warmup(fraction=0.5)], max_epochs=20)
    longer.fit(model, Loader(4), ckpt_path=str(tmp_path / "end.ckpt"))
    assert {row[0] for row in model.trace} == {0.1}


def test_a_checkpoint_goes_with_and_without_the_package(tmp_path: Path) -> None:
    with_it = trainer(tmp_path, callbacks=[llr.Warmup(4)], max_epochs=1)
    with_it.fit(Model(sgd), Loader(4))
    with_it.save_checkpoint(tmp_path / "with.ckpt")
    plain = Model(sgd)
    with pytest.warns(UserWarning, match="Please add the following callbacks"):
        trainer(tmp_path, max_epochs=2).fit(plain, Loader(4), ckpt_path=str(tmp_path / "with.ckpt"))
    assert {row[0] for row in plain.trace} == {0.1}

    without = trainer(tmp_path, max_epochs=1)
    without.fit(Model(sgd), Loader(4))
    without.save_checkpoint(tmp_path / "without.ckpt")
    model = Model(sgd)
    with pytest.warns(UserWarning, match="holds no state of Warmup: it starts afresh at step 4"):
        trainer(tmp_path, callbacks=[llr.Warmup(2)], max_epochs=2).fit(
            model, Loader(4), ckpt_path=str(tmp_path / "without.ckpt")
        )
    assert [row[0] for row in model.trace] == [0.05, 0.1, 0.1, 0.1]


def test_a_factor_goes_when_its_callback_is_taken_out_of_a_resumed_run(tmp_path: Path) -> None:
    first = trainer(tmp_path, callbacks=callbacks(), logger=True, max_epochs=5)
    first.fit(Scripted(sgd), Loader(4), held_out())
    first.save_checkpoint(tmp_path / "five.ckpt")
    model = Scripted(sgd)
    second = trainer(tmp_path, callbacks=[llr.Warmup(8)], max_epochs=6)
    with pytest.warns(UserWarning, match="Please add the following callbacks"):
        second.fit(model, Loader(4), held_out(), ckpt_path=str(tmp_path / "five.ckpt"))
    assert [row[0] for row in model.trace] == [0.1] * 4


def test_a_second_fit_with_the_same_callbacks_starts_afresh(tmp_path: Path) -> None:
    made = callbacks()
    traces = []
    for _ in range(2):
        model = Scripted(cosine)
        trainer(tmp_path, callbacks=made, logger=True, max_epochs=6).fit(model, Loader(4), held_out())
        traces.append((model.trace, model.weights()))
    assert traces[0][0] == traces[1][0]
    assert all(torch.equal(a, b) for a, b in zip(traces[0][1], traces[1][1], strict=True))


def test_callbacks_that_have_run_can_be_copied_and_pickled(tmp_path: Path) -> None:
    made = callbacks()
    trainer(tmp_path, callbacks=made, logger=True, max_epochs=6).fit(Scripted(cosine), Loader(4), held_out())
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        model = Scripted(cosine)
        trainer(tmp_path, callbacks=copied, logger=True, max_epochs=6).fit(model, Loader(4), held_out())
        assert [row[0] for row in model.trace] == pytest.approx(golden())


class Fails(Scripted):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.trainer.global_step == 3:
            raise RuntimeError("the user's own")


def test_an_exception_within_the_step_leaves_the_schedulers_rate_and_no_hook(tmp_path: Path) -> None:
    model = Fails(sgd)
    fit = trainer(tmp_path, callbacks=callbacks(), logger=True)
    with pytest.raises(RuntimeError, match="the user's own"):
        fit.fit(model, Loader(4), held_out())
    (optimizer,) = fit.optimizers
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert len(optimizer._optimizer_step_pre_hooks) == 0


def test_after_a_run_no_hook_stays_on_the_optimizer(tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=callbacks(), logger=True)
    fit.fit(Scripted(cosine), Loader(4), held_out())
    assert len(fit.optimizers[0]._optimizer_step_pre_hooks) == 0


@pytest.mark.parametrize("name", ["DeepSpeedStrategy", "FSDPStrategy", "XLAStrategy"])
def test_a_strategy_that_owns_the_step_is_refused_before_training(name: str, tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=[llr.Warmup(4)])
    kind = type(fit.strategy)
    fit.strategy.__class__ = type(name, (kind,), {})
    with pytest.raises(ValueError, match=f"can't change rates under {name}.*ModelParallelStrategy"):
        fit.fit(Model(sgd), Loader(4))


def test_two_callbacks_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises((ValueError, RuntimeError), match="Warmup"):
        trainer(tmp_path, callbacks=[llr.Warmup(4), llr.Warmup(8)]).fit(Model(sgd), Loader(4))


# several ranks ---------------------------------------------------------------------------------------------------


def fit_on_a_rank(root: str) -> tuple[Any, Any, Any]:
    model, made = Scripted(cosine), callbacks()
    fit = trainer(root, callbacks=made, logger=True, max_epochs=6, devices=2, strategy="ddp")
    fit.fit(model, Loader(4, offset=64 * fit.global_rank), held_out())
    return model.trace, [w.tolist() for w in model.weights()], made[2].changes


def test_two_ranks_with_different_data_have_the_same_rates_and_weights(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_on_a_rank, str(tmp_path))
    assert [row[0] for row in first[0]] == pytest.approx(golden())
    assert first == second
