"""Cooldown: the fall ends with the run, however long that is and whatever took part of it."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    Timer,
)
from pytorch_lightning.plugins import MixedPrecision
from torch.utils.data import DataLoader, IterableDataset

import lightning_lr as llr
from tests.pool import Pool
from tests.small import Loader, Model, Overflows, TwoOptimizers, cosine, digits, held_out, pl, sgd, trainer


def rates(model: Model, cooldown: llr.Cooldown, root: Path, loader: Any = None, *more: Any, **kwargs: Any) -> list[Any]:
    trainer(root, callbacks=[cooldown, *more], **kwargs).fit(model, Loader(6) if loader is None else loader)
    assert all(rest == [0.1] * len(rest) for rest in model.at_rest)
    return [row[0] for row in model.trace]


def expected(steps: int, count: int, shape: Any = lambda x: 1 - x, end: float = 0.0) -> list[float]:
    """The rates of `count` updates of which the last `steps` fall."""
    return [0.1 * (end + (1 - end) * shape(max(0, k - count + steps) / steps)) for k in range(count)]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"steps": 5}, 5),
        ({"steps": 1}, 1),
        ({"steps": 12}, 12),
        ({"epochs": 1}, 6),
        ({"epochs": 1.5}, 9),
        ({"epochs": 0.5}, 3),
        ({"fraction": 0.25}, 3),
        ({"fraction": 1.0}, 12),
    ],
)
def test_lengths(arguments: dict[str, Any], steps: int, tmp_path: Path) -> None:
    assert rates(Model(sgd), llr.Cooldown(**arguments), tmp_path) == pytest.approx(expected(steps, 12))


SHAPES = {
    "linear": lambda x: 1 - x,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("end", [0.0, 0.1, 0.5])
def test_shapes_to_any_end(shape: Any, end: float, tmp_path: Path) -> None:
    got = rates(Model(sgd), llr.Cooldown(7, shape=shape, end_factor=end), tmp_path)
    assert got == pytest.approx(expected(7, 12, SHAPES[shape], end))
    assert got[-1] > 0.1 * end


# where the run ends --------------------------------------------------------------------------------------------------


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        images, labels = digits()
        for i in range(200):
            yield images[i % 256], labels[i % 256]


class Growing(Model):
    """Its epochs have one batch more each time."""

    def train_dataloader(self) -> Any:
        return Loader(4 + self.trainer.current_epoch)


class Drops(Model):
    """Some batches have no loss, or one that the guard drops."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 1:
            return None
        return loss * math.nan if batch_idx == 3 else loss


ENDS: dict[str, tuple[dict[str, Any], list[Any], int]] = {
    "accumulation": ({"accumulate_grad_batches": 2, "max_epochs": 4}, [], 12),
    "accumulation that leaves a rest": ({"accumulate_grad_batches": 4, "max_epochs": 6}, [], 12),
    "accumulation by a schedule": ({"max_epochs": 3}, [{0: 3, 1: 2, 2: 1}], 2 + 3 + 6),
    "part of the batches": ({"limit_train_batches": 4, "max_epochs": 3}, [], 12),
    "max_steps": ({"max_steps": 10, "max_epochs": -1}, [], 10),
    "max_steps within an epoch": ({"max_steps": 10, "max_epochs": 2}, [], 10),
    "max_steps that is never reached": ({"max_steps": 100, "max_epochs": 2}, [], 12),
    "max_steps under accumulation": ({"max_steps": 7, "max_epochs": -1, "accumulate_grad_batches": 4}, [], 7),
    "one batch an epoch": ({"limit_train_batches": 1, "max_epochs": 12}, [], 12),
    "a time limit that does not end it": ({"max_time": "00:01:00:00", "max_steps": 11, "max_epochs": -1}, [], 11),
}


@pytest.mark.parametrize("case", ENDS)
@pytest.mark.parametrize("steps", [3, 7])
def test_the_fall_ends_with_the_run(case: str, steps: int, tmp_path: Path) -> None:
    settings, schedule, count = ENDS[case]
    more = [GradientAccumulationScheduler(s) for s in schedule]
    assert rates(Model(sgd), llr.Cooldown(steps), tmp_path, None, *more, **settings) == pytest.approx(
        expected(steps, count)
    )


def test_a_share_of_a_run_with_accumulation_by_a_schedule(tmp_path: Path) -> None:
    schedule = GradientAccumulationScheduler({0: 3, 1: 1})
    assert rates(Model(sgd), llr.Cooldown(epochs=1.5), tmp_path, None, schedule) == pytest.approx(expected(7, 8))
    schedule = GradientAccumulationScheduler({0: 3, 1: 1})
    assert rates(Model(sgd), llr.Cooldown(fraction=0.5), tmp_path, None, schedule) == pytest.approx(expected(4, 8))


def test_data_without_a_length_and_max_steps(tmp_path: Path) -> None:
    loader = DataLoader(Endless(), batch_size=8)
    assert rates(Model(sgd), llr.Cooldown(fraction=0.5), tmp_path, loader, max_steps=8, max_epochs=-1) == pytest.approx(
        expected(4, 8)
    )


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step", "ignore:.*autocast")
def test_updates_that_a_gradient_scaler_skipped_take_their_time(tmp_path: Path) -> None:
    model = Overflows(sgd)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # pyright: ignore[reportPrivateImportUsage]
    got = rates(model, llr.Cooldown(10), tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    whole = expected(10, 12)
    assert got == pytest.approx([rate for k, rate in enumerate(whole) if k not in (0, 1, 5)])


@pytest.mark.filterwarnings("ignore:.*training_step.*returned.*None")
def test_updates_without_a_loss_and_dropped_ones_take_their_time(tmp_path: Path) -> None:
    guard, model = llr.DivergenceGuard(), Drops(sgd)
    got = rates(model, llr.Cooldown(10), tmp_path, None, guard)
    # the optimizer is called for every one of them, to no effect
    assert got == pytest.approx(expected(10, 12))
    assert guard.skips == 2
    assert guard.ledger.updates(0) == 8


def test_a_sweep_before_the_fall_does_not_move_its_end(tmp_path: Path) -> None:
    model, monitor = Model(sgd), llr.LRMonitor()
    finder = llr.LRFinder(steps=20, progress_bar=False)
    made = [finder, llr.Cooldown(fraction=0.25), monitor]
    trainer(tmp_path, callbacks=made, max_epochs=10).fit(model, Loader(6), held_out())
    assert finder.result is not None
    full = 0.1 * made[1].ledger.factor("LRFinder", 0, 0)
    assert [row[0] for row in model.trace[-15:]] == pytest.approx([full * (15 - k) / 15 for k in range(15)])
    assert model.trace[-16][0] == pytest.approx(full)


def test_every_optimizer_of_several_falls_to_the_same_end(tmp_path: Path) -> None:
    model = TwoOptimizers()
    trainer(tmp_path, callbacks=[llr.Cooldown(4)], max_epochs=1).fit(model, Loader(6))
    fall = [0.1, 0.1, 0.1, 0.075, 0.05, 0.025]
    # the second steps in every other batch, after the first
    assert [row[0] for row in model.trace] == pytest.approx([r for k, r in enumerate(fall) for _ in range(1 + k % 2)])


class Both(TwoOptimizers):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        super().training_step(batch, 1)


@pytest.mark.parametrize(("limit", "count"), [({"max_epochs": 1}, 6), ({"max_steps": 8}, 4), ({"max_steps": 7}, 4)])
def test_steps_of_several_optimizers_are_counted_together_by_lightning(limit: Any, count: int, tmp_path: Path) -> None:
    model = Both()
    trainer(tmp_path, callbacks=[llr.Cooldown(3)], **limit).fit(model, Loader(6))
    got = [row[0] for row in model.trace]
    assert len(got) == 2 * count
    assert got[-1] == pytest.approx(0.1 / 3)
    if limit != {"max_steps": 7}:
        assert got[::2] == got[1::2] == pytest.approx(expected(3, count))


class Thrice(Both):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        for _ in range(3):
            super().training_step(batch, batch_idx)


def test_several_steps_of_an_optimizer_in_a_batch_under_max_steps(tmp_path: Path) -> None:
    model = Thrice()
    trainer(tmp_path, callbacks=[llr.Cooldown(5)], max_steps=48, max_epochs=-1).fit(model, Loader(6))
    assert [row[0] for row in model.trace][::2] == pytest.approx(expected(5, 24))


@pytest.mark.parametrize(
    ("arguments", "fall"),
    [
        ({"steps": 5}, [1.0, 0.8, 0.6, 0.4, 0.2]),
        # known to be two epochs of five batches in the second: then six are left, and the sixth is one more than told
        ({"epochs": 1}, [6 / 6, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        # eight are left of ten; then six are left, where there should have been five
        ({"steps": 8}, [1.0, 0.875, 0.75, *(0.625 * k / 6 for k in (6, 5, 4, 3, 2, 1))]),
    ],
)
def test_epochs_that_change_their_length_do_not_move_the_end(arguments: Any, fall: list[float], tmp_path: Path) -> None:
    model = Growing(sgd)
    made = trainer(tmp_path, callbacks=[llr.Cooldown(**arguments)], max_epochs=3, reload_dataloaders_every_n_epochs=1)
    made.fit(model)
    whole = [1.0] * (15 - len(fall)) + fall
    assert [row[0] for row in model.trace] == pytest.approx([0.1 * factor for factor in whole])


def test_a_run_shorter_than_the_cooldown_falls_from_its_first_update_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"over 20 updates and the run has 12: .*Cooldown\(fraction=0.2\)"):
        assert rates(Model(sgd), llr.Cooldown(20), tmp_path) == pytest.approx(expected(12, 12))


def test_a_group_that_comes_within_the_fall_falls_with_the_others(tmp_path: Path) -> None:
    def configure(model: Any) -> Any:
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    model = Model(configure, hidden=8)
    unfreeze = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.02, train_bn=False)
    trainer(tmp_path, callbacks=[unfreeze, llr.Cooldown(10)], max_epochs=2).fit(model, Loader(6))
    assert [row[0] for row in model.trace] == pytest.approx(expected(10, 12))
    late = [row[1] for row in model.trace if len(row) > 1]
    assert late == pytest.approx([0.02 * k / 10 for k in (6, 5, 4, 3, 2, 1)])


# with the others -----------------------------------------------------------------------------------------------------


class Scripted(Model):
    """Its metric is at a plateau throughout."""

    def on_validation_epoch_end(self) -> None:
        self.log("flat", 1.0)


TRAPEZOID = [*(k / 4 for k in range(1, 4)), *[1.0] * 13, *(k / 8 for k in range(8, 0, -1))]


def callbacks() -> list[Any]:
    return [llr.Warmup(4), llr.Cooldown(8, shape="linear"), llr.LRMonitor()]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_warm_up_and_cooldown_make_a_trapezoid_over_any_schedule(accumulate: int, tmp_path: Path) -> None:
    for configure, shape in ((sgd, lambda k: 1.0), (cosine, lambda k: (1 + math.cos(math.pi * k / 24)) / 2)):
        model = Model(configure)
        made = trainer(tmp_path, callbacks=callbacks(), max_epochs=6, accumulate_grad_batches=accumulate)
        made.fit(model, Loader(4 * accumulate))
        whole = [0.1 * shape(k) * factor for k, factor in enumerate(TRAPEZOID)]
        assert [row[0] for row in model.trace] == pytest.approx(whole)


def test_the_fall_reads_well(tmp_path: Path) -> None:
    made = callbacks()
    trainer(tmp_path, callbacks=made, max_epochs=6).fit(Model(sgd), Loader(4))
    told = [line for line in made[2].story if "Cooldown" in line]
    assert told[0] == "step 17: SGD: 0.1 -> 0.0875: Cooldown 1 -> 0.875: linear, update 2 of 8"
    assert told[-1] == "step 24: SGD: Cooldown 1 -> 0.125 in 7 changes, steps 17 to 23"
    assert len(told) == 4


def test_a_plateau_within_the_fall_lowers_no_rate(tmp_path: Path) -> None:
    made = [llr.PlateauDecay("flat", factor=0.5, patience=0), llr.Cooldown(epochs=3)]
    model = Scripted(sgd)
    trainer(tmp_path, callbacks=made, max_epochs=6).fit(model, Loader(4), held_out())
    # the first check is the best; the two after it count; the third epoch's, and all later ones, come within the fall
    assert made[0].state.decays == 2
    assert model.trace[-1][0] == pytest.approx(0.1 * 0.25 / 12)


def test_before_the_fall_an_update_costs_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    left = llr.Cooldown._left

    def counted(self: Any, made: Any) -> Any:
        asked.append(made.global_step)
        return left(self, made)

    monkeypatch.setattr(llr.Cooldown, "_left", counted)
    rates(Model(sgd), llr.Cooldown(2), tmp_path, Loader(30), max_epochs=2)
    assert asked == [0, 30, 58, 59]


# refused -------------------------------------------------------------------------------------------------------------

REMEDY = r"give Trainer\(max_epochs=...\) and a dataloader of known length, or Trainer\(max_steps=...\)"


@pytest.mark.parametrize(
    ("arguments", "limits", "message"),
    [
        ({"steps": 5}, {"max_epochs": 1}, rf"Cooldown\(steps=5\) needs .* dataloader has no length: {REMEDY}"),
        ({"steps": 5}, {"max_epochs": -1}, rf"max_epochs is -1: {REMEDY}"),
        ({"steps": 5}, {"max_time": "00:00:01:00", "max_epochs": None}, rf"max_epochs is -1: {REMEDY}"),
        ({"fraction": 0.5}, {"max_epochs": 1}, rf"Cooldown\(fraction=0.5\) needs .*: {REMEDY}"),
        ({"epochs": 1}, {"max_steps": 5, "max_epochs": -1}, r"has no length: count .*Cooldown\(steps=100\)"),
        (
            {"fraction": 0.5, "on_stop": True},
            {"max_epochs": 1},
            r"Cooldown\(fraction=0.5, on_stop=True\) .*: count .*Cooldown\(steps=100, on_stop=True\)",
        ),
    ],
)
def test_a_run_whose_end_cannot_be_told_is_refused(arguments: Any, limits: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        rates(Model(sgd), llr.Cooldown(**arguments), tmp_path, DataLoader(Endless(), batch_size=8), **limits)


BAD = [
    ({}, "give exactly one of steps, epochs and fraction, got none"),
    ({"steps": 5, "fraction": 0.1}, "got steps=5, fraction=0.1"),
    ({"steps": 0}, "steps must be a whole number >= 1, got 0: for no cooldown, leave Cooldown out"),
    ({"steps": 2.5}, "got 2.5"),
    ({"steps": True}, "got True"),
    ({"steps": "auto"}, "steps must be a whole number >= 1, got 'auto'"),
    ({"epochs": 0}, "epochs must be in (0, inf), got 0: for no cooldown, leave Cooldown out"),
    ({"epochs": math.nan}, "epochs must be in (0, inf), got nan"),
    ({"fraction": 0.0}, "fraction must be in (0, 1], got 0.0"),
    ({"fraction": 1.5}, "fraction must be in (0, 1], got 1.5"),
    ({"steps": 5, "shape": "sqrt"}, "shape must be one of linear, 1-sqrt, cosine, got 'sqrt'"),
    ({"steps": 5, "shape": []}, "shape must be one of linear, 1-sqrt, cosine, got []"),
    ({"steps": 5, "end_factor": 1.0}, "end_factor must be in [0, 1), got 1.0"),
    ({"steps": 5, "end_factor": -0.1}, "end_factor must be in [0, 1), got -0.1"),
    ({"steps": 5, "end_factor": math.nan}, "end_factor must be in [0, 1), got nan"),
    ({"steps": 5, "on_stop": 1}, "on_stop must be True or False, got 1"),
    ({"steps": 5, "name": "a/b"}, "name must be a word without '/'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        llr.Cooldown(**arguments)
    assert message in str(caught.value)


# resumed -------------------------------------------------------------------------------------------------------------


class Stops(pl.Callback):
    """Asks the trainer to stop after so many steps, at a batch's end."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step >= self.step:
            trainer.should_stop = True


RESUMED: dict[str, tuple[Any, dict[str, Any], list[Any]]] = {
    "steps": ({"steps": 9}, {}, []),
    "accumulation": ({"epochs": 1.5}, {"accumulate_grad_batches": 4}, []),
    "a share": ({"fraction": 0.6, "shape": "1-sqrt"}, {}, []),
    "max_steps": ({"steps": 5, "shape": "cosine", "end_factor": 0.1}, {"max_steps": 16, "max_epochs": -1}, []),
    "longer than the run": ({"steps": 100}, {}, []),
    "epochs that grow": ({"steps": 8}, {"reload_dataloaders_every_n_epochs": 1, "max_epochs": 3}, []),
    "asked to stop": ({"steps": 5, "on_stop": True}, {"max_epochs": 40}, [7]),
    "asked to stop, without an end": ({"steps": 5, "on_stop": True}, {"max_epochs": -1}, [7]),
}


def run(root: Path, case: str, checkpoint: Path | None = None) -> Any:
    arguments, settings, stops = RESUMED[case]
    saving: list[Any] = []
    if checkpoint is None:
        saving = [ModelCheckpoint(dirpath=root / "steps", filename="{step}", save_top_k=-1, every_n_train_steps=1)]
    model = Growing(cosine) if "grow" in case else Model(cosine)
    accumulate = settings.get("accumulate_grad_batches", 1)
    made = [llr.Cooldown(**arguments), *map(Stops, stops), *saving]
    fit = trainer(root, callbacks=made, enable_checkpointing=bool(saving), **{"max_epochs": 4, **settings})
    data = [] if "grow" in case else [Loader(4 * accumulate)]
    fit.fit(model, *data, ckpt_path=checkpoint and str(checkpoint))
    return model, made[0], fit


@pytest.mark.filterwarnings("ignore:.*Please add the following callbacks.*ModelCheckpoint")
@pytest.mark.filterwarnings("ignore:.*is to fall over 100 updates")
@pytest.mark.parametrize("case", RESUMED)
def test_saved_at_any_step_the_run_ends_as_if_it_had_not_been(case: str, tmp_path: Path) -> None:
    whole, made, fit = run(tmp_path, case)
    assert whole.trace[-1][0] < 0.5 * whole.at_rest[-2][0]
    for done in range(1, fit.global_step + 1):
        if "grow" in case and done in (4, 9):
            continue  # at the end of an epoch Lightning takes the next one for the rest of it, as it is longer
        checkpoint = tmp_path / "steps" / f"step={done}.ckpt"
        model, resumed, again = run(tmp_path, case, checkpoint)
        assert model.trace == whole.trace[done:], checkpoint
        assert again.global_step == fit.global_step
        assert all(torch.equal(a, b) for a, b in zip(model.weights(), whole.weights(), strict=True)), checkpoint
        assert resumed.run.save() == made.run.save(), checkpoint


def prolonged(root: Path, arguments: Any, saved_at: int, before: Any, after: Any, monitor: Any = None) -> list[float]:
    """The rates of a run that is saved after so many steps, and resumed with other limits."""
    saving = ModelCheckpoint(dirpath=root, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    first = trainer(root, callbacks=[llr.Cooldown(**arguments), saving], enable_checkpointing=True, **before)
    first.fit(Model(sgd), Loader(4))
    model, made = Model(sgd), [llr.Cooldown(**arguments), *([monitor] if monitor else [])]
    trainer(root, callbacks=made, **after).fit(model, Loader(4), ckpt_path=str(root / f"step={saved_at}.ckpt"))
    return [row[0] for row in model.trace]


@pytest.mark.filterwarnings("ignore:.*Please add the following callbacks.*ModelCheckpoint")
@pytest.mark.parametrize("saved_at", [2, 4, 7, 9, 12])
@pytest.mark.parametrize(
    ("arguments", "steps"), [({"steps": 6}, 6), ({"epochs": 1}, 4), ({"fraction": 0.5}, 12)], ids=str
)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"max_epochs": 3}, {"max_epochs": 6}),
        ({"max_steps": 12, "max_epochs": -1}, {"max_steps": 24, "max_epochs": -1}),
    ],
)
def test_a_run_that_is_made_longer_falls_at_its_new_end(
    saved_at: int, arguments: Any, steps: int, before: Any, after: Any, tmp_path: Path
) -> None:
    monitor = llr.LRMonitor()
    got = prolonged(tmp_path, arguments, saved_at, before, after, monitor)
    told = [line for line in monitor.story if "at its full height again" in line]
    within = saved_at > 12 - {6: 6, 4: 4, 12: 6}[steps]
    if saved_at == 12 and steps == 12:
        # the new fall has begun by then: it goes on from where it is
        assert got[-1] == pytest.approx(0.1 * (1 / 6) / 12)
        assert not told
        return
    assert got == pytest.approx(expected(steps, 24)[saved_at:])
    assert len(told) == (1 if within else 0), told


@pytest.mark.filterwarnings("ignore:.*Please add the following callbacks.*ModelCheckpoint")
def test_a_run_that_is_made_shorter_falls_over_what_is_left(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="is to fall over 6 updates and the run has 4"):
        got = prolonged(tmp_path, {"steps": 6}, 4, {"max_epochs": 4}, {"max_epochs": 2})
    assert got == pytest.approx([0.1, 0.075, 0.05, 0.025])


@pytest.mark.filterwarnings("ignore:.*callbacks used to create")
@pytest.mark.filterwarnings("ignore:the checkpoint holds no state of DivergenceGuard")
def test_a_guard_that_comes_within_the_fall_takes_the_full_rate_for_planned(tmp_path: Path) -> None:
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    first = trainer(tmp_path, callbacks=[llr.Cooldown(5), saving], enable_checkpointing=True)
    first.fit(Model(sgd), Loader(6))
    guard = llr.DivergenceGuard()
    again = trainer(tmp_path, callbacks=[llr.Cooldown(5), guard])
    again.fit(Model(sgd), Loader(6), ckpt_path=str(tmp_path / "step=9.ckpt"))
    # where the run is made longer from here, it has it again
    assert guard.states[0].rate.healthy == pytest.approx(0.1)


@pytest.mark.filterwarnings("ignore:.*Please add the following callbacks.*Stops", "ignore:.*callbacks used to create")
@pytest.mark.parametrize(
    "more", [{"max_epochs": -1}, {"max_epochs": 41}, {"max_epochs": 40, "on_stop": False}], ids=str
)
def test_a_run_that_was_stopped_late_goes_on_with_other_limits_at_the_full_rate(more: Any, tmp_path: Path) -> None:
    first = trainer(tmp_path, callbacks=[llr.Cooldown(5, on_stop=True), Stops(7)], max_epochs=40)
    first.fit(Model(sgd), Loader(4))
    assert first.global_step == 12
    first.save_checkpoint(tmp_path / "end.ckpt")
    on_stop = more.get("on_stop", True)
    model, limits = Model(sgd), {"max_epochs": more["max_epochs"]}
    again = trainer(tmp_path, callbacks=[llr.Cooldown(5, on_stop=on_stop), Stops(20)], **limits)
    again.fit(model, Loader(4), ckpt_path=str(tmp_path / "end.ckpt"))
    # asked again at the end of update 20, it falls from the next on
    assert [row[0] for row in model.trace] == pytest.approx(expected(5, 25)[12:] if on_stop else [0.1] * 8)


def test_a_run_that_was_stopped_late_is_over_with_the_same_limits_and_says_so(tmp_path: Path) -> None:
    for resumed in (None, str(tmp_path / "end.ckpt")):
        model, monitor = Model(sgd), llr.LRMonitor()
        made = trainer(tmp_path, callbacks=[llr.Cooldown(5, on_stop=True), Stops(7), monitor], max_epochs=40)
        made.fit(model, Loader(4), ckpt_path=resumed)
        assert len(model.trace) == (0 if resumed else 12)
        made.save_checkpoint(tmp_path / "end.ckpt")
    assert ["give a larger max_epochs or max_steps to go on" in line for line in monitor.story] == [True]


def test_a_second_fit_with_the_same_callback_starts_afresh(tmp_path: Path) -> None:
    made = [llr.Cooldown(5, on_stop=True), Stops(7)]
    for callbacks in (made, made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        model = Model(sgd)
        trainer(tmp_path, callbacks=callbacks, max_epochs=40).fit(model, Loader(4))
        assert [row[0] for row in model.trace] == pytest.approx(expected(5, 12))


# asked to stop -------------------------------------------------------------------------------------------------------


def early(**more: Any) -> Any:
    return EarlyStopping("flat", patience=2, **more)


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize(
    ("stop", "step"),
    [
        (lambda: early(), 12),
        (lambda: early(check_on_train_epoch_end=False), 12),
        (lambda: Stops(9), 9),
        (lambda: Timer(duration={"seconds": 0}), 0),
    ],
    ids=["early stopping at the epoch's end", "early stopping after validation", "a user's own", "a timer"],
)
@pytest.mark.parametrize("limits", [{"max_epochs": 40}, {"max_epochs": -1}], ids=str)
def test_a_run_that_is_asked_to_stop_falls_and_then_ends(
    limits: Any, stop: Any, step: int, first: bool, tmp_path: Path
) -> None:
    others, model, monitor = [stop()], Scripted(sgd), llr.LRMonitor()
    ours = [llr.Cooldown(6, on_stop=True), monitor]
    made = trainer(tmp_path, callbacks=ours + others if first else others + ours, **limits)
    made.fit(model, Loader(4), held_out())
    if isinstance(others[0], Timer):
        # asked before the first batch: there is nothing to end
        assert model.trace == []
        return
    assert [row[0] for row in model.trace] == pytest.approx(expected(6, step + 6))
    assert (
        sum(
            "asked to stop: the rate falls over 6 more updates, and then the run ends" in line for line in monitor.story
        )
        == 1
    )
    assert made.min_steps is None


def test_a_stop_late_in_the_run_falls_to_the_end_that_comes_first(tmp_path: Path) -> None:
    model = Model(sgd)
    # within the fall a stop waits for its end; before it the shorter way counts
    monitor = llr.LRMonitor()
    got = rates(model, llr.Cooldown(6, on_stop=True), tmp_path, None, Stops(9), monitor)
    assert got == pytest.approx(expected(6, 12))
    assert not any("asked to stop" in line for line in monitor.story)
    got = rates(Model(sgd), llr.Cooldown(6, on_stop=True), tmp_path, None, Stops(3))
    assert got == pytest.approx(expected(6, 9))


def test_a_late_stop_does_not_make_lightning_log_every_step(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            seen.append(trainer.should_stop)

    class Once(Stops):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop |= trainer.global_step == self.step

    rates(Model(sgd), llr.Cooldown(4, on_stop=True), tmp_path, None, Once(3), Look())
    assert seen == [False, False, True, False, False, False, True]


def test_min_epochs_and_min_steps_hold_as_ever(tmp_path: Path) -> None:
    got = rates(Model(sgd), llr.Cooldown(4, on_stop=True), tmp_path, None, Stops(2), min_epochs=2, max_epochs=9)
    assert got == pytest.approx(expected(4, 12 + 4))
    made = trainer(tmp_path, callbacks=[llr.Cooldown(4, on_stop=True), Stops(2)], min_steps=8, max_epochs=9)
    model = Model(sgd)
    made.fit(model, Loader(6))
    assert [row[0] for row in model.trace] == pytest.approx(expected(4, 8 + 4))
    assert made.min_steps == 8


def test_two_that_wait_for_a_stop_are_refused(tmp_path: Path) -> None:
    made = [llr.Cooldown(4, on_stop=True), llr.Cooldown(9, on_stop=True, name="Other")]
    with pytest.raises(ValueError, match="only one Cooldown of a run can have on_stop=True"):
        trainer(tmp_path, callbacks=made).fit(Model(sgd), Loader(6))
    model = Model(sgd)
    trainer(tmp_path, callbacks=[llr.Cooldown(4), llr.Cooldown(9, on_stop=True, name="Other")]).fit(model, Loader(6))
    both = [a * b * 10 for a, b in zip(expected(4, 12), expected(9, 12), strict=True)]
    assert [row[0] for row in model.trace] == pytest.approx(both)


class Shrinks(Model):
    """Its second epoch has no length any more."""

    def train_dataloader(self) -> Any:
        return Loader(6) if self.trainer.current_epoch == 0 else DataLoader(Endless(), batch_size=40)


@pytest.mark.parametrize("on_stop", [False, True])
def test_data_that_lose_their_length_within_the_run_are_told(on_stop: bool, tmp_path: Path) -> None:
    model = Shrinks(sgd)
    made = trainer(
        tmp_path, callbacks=[llr.Cooldown(fraction=0.7, on_stop=on_stop)], reload_dataloaders_every_n_epochs=1
    )
    if on_stop:
        made.fit(model)
    else:
        with pytest.warns(UserWarning, match="no length any more, .* falls no further"):
            made.fit(model)
    # 8 of 12 updates were to fall: two have begun to
    assert [row[0] for row in model.trace] == pytest.approx([0.1] * 5 + [0.1 * 7 / 8] * 6)


def test_without_on_stop_a_stop_is_a_stop(tmp_path: Path) -> None:
    assert rates(Model(sgd), llr.Cooldown(4), tmp_path, None, Stops(3)) == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_stop_under_accumulation_and_of_several_optimizers(accumulate: int, tmp_path: Path) -> None:
    model = Model(sgd)
    made = [llr.Cooldown(4, on_stop=True), Stops(3)]
    trainer(tmp_path, callbacks=made, accumulate_grad_batches=accumulate, max_epochs=9).fit(model, Loader(8))
    assert [row[0] for row in model.trace] == pytest.approx(expected(4, 7))
    both = Both()
    trainer(tmp_path, callbacks=made, max_epochs=9).fit(both, Loader(6))
    assert [row[0] for row in both.trace][::2] == pytest.approx(expected(4, 2 + 4))


class Broken(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * (math.nan if self.trainer.global_step >= 10 else 1.0)


def test_a_guard_that_gives_up_ends_the_run_at_once(tmp_path: Path) -> None:
    ends = []
    for more in ([], [llr.Cooldown(50, on_stop=True)]):
        guard = llr.DivergenceGuard(on_give_up="stop", snapshot_every=5, trials=False)
        made = trainer(tmp_path, callbacks=[*more, guard], max_epochs=100)
        made.fit(Broken(sgd), Loader(6))
        assert made.should_stop
        ends.append(made.global_step)
    assert ends[0] == ends[1]


# several ranks -------------------------------------------------------------------------------------------------------


def fit_on_a_rank(root: str, stop: bool) -> Any:
    model = Scripted(cosine)
    made = [llr.Warmup(4), llr.Cooldown(8, on_stop=stop), llr.LRMonitor(), *([early()] if stop else [])]
    fit = trainer(root, callbacks=made, logger=True, max_epochs=6 if not stop else 50, devices=2, strategy="ddp")
    fit.fit(model, Loader(4, offset=64 * fit.global_rank), held_out())
    return model.trace, [w.tolist() for w in model.weights()], made[2].changes


@pytest.mark.parametrize("stop", [False, True])
def test_two_ranks_with_different_data_have_the_same_rates_and_weights(stop: bool, pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_on_a_rank, str(tmp_path), stop)
    count = 20 if stop else 24
    schedule = [0.1 * (1 + math.cos(math.pi * k / 24)) / 2 for k in range(count)]
    factors = [min(1.0, (k + 1) / 4) * min(1.0, (count - k) / 8) for k in range(count)]
    assert [row[0] for row in first[0]] == pytest.approx([a * b for a, b in zip(schedule, factors, strict=True)])
    assert first == second
