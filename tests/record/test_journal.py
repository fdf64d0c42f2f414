"""What the loggers hold after a real run: read back from TensorBoard's event files and from the CSV file."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_lr as llr
from lightning_lr.record.records import TAG
from tests.logged import Remote, bumpy, groups, stairs, two_of_a_type
from tests.pool import Pool
from tests.small import Loader, Model, cosine, held_out, sgd, trainer


class Read:
    """The scalars, the text and the layout of one run's event files; the rows of its CSV file."""

    def __init__(self, root: Path) -> None:
        events = EventAccumulator(str(root / "tb" / "version_0"), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        self.tags = events.Tags()
        self.scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        self.text: dict[int, str] = defaultdict(str)
        self.layout = ""
        for tag in events.Tags()["tensors"]:
            for event in events.Tensors(tag):
                words = event.tensor_proto.string_val[0]
                if tag == "custom_scalars__config__":
                    self.layout = words.decode(errors="replace")
                elif tag != TAG:
                    assert tag == "lr-events/text_summary"
                    self.text[event.step] += words.decode()
        with open(root / "csv" / "version_0" / "metrics.csv") as file:
            self.rows = list(csv.DictReader(file))

    def csv(self, tag: str) -> list[tuple[int, float]]:
        return [(int(row["step"]), float(row[tag])) for row in self.rows if row.get(tag)]


def loggers(root: Any) -> list[Any]:
    return [
        TensorBoardLogger(root, name="tb", version=0, default_hp_metric=False),
        CSVLogger(root, name="csv", version=0),
    ]


def dipped(model: Any) -> Any:
    """Changes the rate 40 times in 1,000 updates: 19 dips of two updates (38), one rise, and the last update."""
    optimizer = sgd(model)

    def factor(k: int) -> float:
        if k == 999:
            return 0.2
        if k >= 980:
            return 0.8
        return 0.5 if k >= 25 and (k - 25) % 50 < 2 and k < 960 else 1.0

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def changes_by_hand() -> dict[int, tuple[float, float]]:
    """Step: (old, new)."""
    changes = {}
    for start in range(25, 960, 50):
        changes[start], changes[start + 2] = (0.1, 0.05), (0.05, 0.1)
    changes[980], changes[999] = (0.1, 0.08), (0.08, 0.02)
    return changes


def fit_dipped(root: str) -> list[Any]:
    monitor = llr.LRMonitor()
    trainer(
        root,
        callbacks=[monitor],
        logger=loggers(root),
        log_every_n_steps=50,
        max_epochs=10,
        devices=2,
        strategy="ddp",
    ).fit(Model(dipped), Loader(100, 2))
    return monitor.changes


@pytest.mark.invariant(6)
def test_of_forty_changes_forty_are_on_record_at_their_own_step(pool: Pool, tmp_path: Path) -> None:
    expected = changes_by_hand()
    assert len(expected) == 40
    first, second = pool.run(fit_dipped, str(tmp_path))
    assert first == second
    assert [(c.step, c.old, c.new) for c in first] == [
        (step, pytest.approx(old), pytest.approx(new)) for step, (old, new) in sorted(expected.items())
    ]
    read = Read(tmp_path)
    # once in the event files and once in the CSV file, though two ranks ran
    assert sorted(read.text) == [0, *sorted(expected)]
    curve, column = dict(read.scalars["lr-SGD"]), dict(read.csv("lr-SGD"))
    assert len(read.scalars["lr-SGD"]) == len(curve)
    events = {int(row["step"]): row["lr-events"] for row in read.rows if row.get("lr-events")}
    for step, (old, new) in expected.items():
        assert curve[step] == pytest.approx(new)
        assert column[step] == pytest.approx(new)
        assert curve[step - 1] == pytest.approx(old), "a step in the rate shows as a step, and not as a slope"
        for words in (read.text[step], events[step]):
            assert f"SGD: {old:g} -> {new:g}: scheduler {old:g} -> {new:g}" in words
    assert curve[0] == pytest.approx(0.1)


def test_a_long_ramp_is_one_curve_and_a_few_words(tmp_path: Path) -> None:
    monitor = llr.LRMonitor()
    trainer(tmp_path, callbacks=[llr.Warmup(40), monitor], logger=loggers(tmp_path), max_epochs=5).fit(
        Model(sgd), Loader(20)
    )
    read = Read(tmp_path)
    # the ramp, what smoothing needs after it, and the trainer's logging steps
    ends = [*range(40, 48), 49, 99]
    assert read.scalars["lr-SGD"] == [(k, pytest.approx(0.1 * (k + 1) / 40)) for k in range(40)] + [
        (k, pytest.approx(0.1)) for k in ends
    ]
    assert read.scalars["lr-factor/Warmup"] == [(k, pytest.approx((k + 1) / 40)) for k in range(40)] + [
        (k, 1.0) for k in ends
    ]
    assert read.csv("lr-SGD") == [(k, pytest.approx(0.1 * min(k + 1, 40) / 40)) for k in [*range(40), 49, 99]]
    assert sorted(read.text) == [0, 1, 2, 3, 40]
    assert "SGD: Warmup 0.025 -> 1 in 39 changes, steps 1 to 39" in read.text[40]
    assert len(monitor.changes) == 39
    assert monitor.rates == {"lr-SGD": 0.1}


class Scripted(Model):
    def on_validation_epoch_end(self) -> None:
        self.log("scripted", 1.0)


def test_a_decay_under_a_schedule_by_step_tells_its_own_cause_alone(tmp_path: Path) -> None:
    plateau = llr.PlateauDecay("scripted", factor=0.5, patience=1)
    trainer(tmp_path, callbacks=[plateau, llr.LRMonitor()], logger=loggers(tmp_path), max_epochs=4).fit(
        Scripted(lambda m: cosine(m, 80)), Loader(20), held_out()
    )
    read = Read(tmp_path)
    assert sorted(read.text) == [0, 1, 2, 3, 60, 80]
    assert "PlateauDecay 1 -> 0.5: scripted 1 is no better than 1 for 2 checks" in read.text[60]
    assert "scheduler" not in read.text[60]
    assert read.csv("lr-factor/PlateauDecay") == [(0, 1.0), (49, 1.0), (59, 1.0), (60, 0.5), (79, 0.5)]


def test_factors_are_logged_without_the_monitor_and_the_schedulers_steps_are_not_told(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[llr.Warmup(2)], logger=loggers(tmp_path), max_epochs=1).fit(Model(cosine), Loader(10))
    read = Read(tmp_path)
    assert read.csv("lr-factor/Warmup") == [(0, 0.5), (1, 1.0), (9, 1.0)]
    assert sorted(read.text) == [1]
    assert "scheduler" not in read.text[1]


def test_momentum_and_weight_decay_have_lightnings_names(tmp_path: Path) -> None:
    def configure(model: Any) -> Any:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.8, 0.99), weight_decay=0.03)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    monitor = llr.LRMonitor(momentum=True, weight_decay=True)
    trainer(tmp_path, callbacks=[monitor], logger=loggers(tmp_path), max_epochs=1).fit(Model(configure), Loader(10))
    read = Read(tmp_path)
    expected = torch.optim.lr_scheduler.OneCycleLR(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]), 0.1, 10)
    momenta = []
    for _ in range(10):
        momenta.append(expected.optimizer.param_groups[0]["betas"][0])
        expected.optimizer.step()
        if len(momenta) < 10:
            expected.step()
    assert [value for _, value in read.scalars["lr-AdamW-momentum"]] == pytest.approx(momenta)
    assert read.scalars["lr-AdamW-weight_decay"] == [(0, pytest.approx(0.03))]


def test_the_layout_puts_rate_factors_and_loss_on_one_page(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[llr.LRMonitor()], logger=loggers(tmp_path), max_epochs=1).fit(Model(sgd), Loader(2))
    layout = Read(tmp_path).layout
    for part in ("effective rate", r"^lr\-SGD$", "factors", "^lr-factor/.*", ".*loss.*"):
        assert part in layout


def named(model: Any) -> Any:
    optimizer = torch.optim.Adam([{"params": [model.head.weight], "name": "heads"}], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    return [optimizer], [{"scheduler": schedule, "name": "mine", "interval": "step"}]


def group_names(model: Any) -> Any:
    return torch.optim.SGD(
        [{"params": [model.head.weight], "name": "w"}, {"params": [model.head.bias], "name": "b"}], lr=0.1
    )


class Manual(Model):
    """Several optimizers under manual optimization."""

    def __init__(self, configure: Any) -> None:
        super().__init__(configure, 4)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()


def mixed(model: Any) -> Any:
    first = torch.optim.Adam(model.head.parameters(), 0.1)
    second = torch.optim.SGD([{"params": [model.backbone.weight]}, {"params": [model.backbone.bias]}], 0.2)
    third = torch.optim.Adam(model.head.parameters(), 0.3)
    return [first, second, third], [torch.optim.lr_scheduler.StepLR(third, 5)]


TABLE = [
    (Model, sgd),
    (Model, cosine),
    (Model, named),
    (Model, groups),
    (Model, group_names),
    (Manual, two_of_a_type),
    (Manual, mixed),
]


@pytest.mark.parametrize(("kind", "configure"), TABLE)
def test_the_tags_and_first_values_are_those_of_lightnings_own_monitor(
    kind: Any, configure: Any, tmp_path: Path
) -> None:
    stock, ours = LearningRateMonitor(logging_interval="step"), llr.LRMonitor()
    for name, callback in (("stock", stock), ("ours", ours)):
        trainer(tmp_path, callbacks=[callback], logger=loggers(tmp_path / name), max_epochs=1, log_every_n_steps=1).fit(
            kind(configure), Loader(2)
        )
    before, after = Read(tmp_path / "stock").scalars, Read(tmp_path / "ours").scalars
    tags = {tag for tag in before if tag.startswith(("lr-", "mine"))}
    assert tags == {tag for tag in after if tag.startswith(("lr-", "mine"))}
    assert tags == set(ours.rates)
    for tag in tags:
        assert after[tag][0] == before[tag][0]


def test_groups_of_one_name_are_told_apart_by_numbers(tmp_path: Path) -> None:
    class Grows(Model):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.trainer.optimizers[0].add_param_group({"params": [self.backbone.bias], "name": "w"})

    def configure(model: Any) -> Any:
        parts = [model.head.weight, model.head.bias, model.backbone.weight]
        named = [{"params": [p], "name": name} for p, name in zip(parts, ("w", "w", "w-1"), strict=True)]
        return torch.optim.SGD(named, lr=0.1)

    monitor = llr.LRMonitor()
    trainer(tmp_path, callbacks=[llr.Warmup(2), monitor], logger=loggers(tmp_path)).fit(Grows(configure, 4), Loader(2))
    tags = ["lr-SGD/w", "lr-SGD/w-1", "lr-SGD/w-1-1", "lr-SGD/w-2"]
    assert list(monitor.rates) == tags
    read = Read(tmp_path)
    assert [read.scalars[tag][0] for tag in tags] == [(0, pytest.approx(0.05))] * 3 + [(2, pytest.approx(0.05))]


def test_groups_that_warm_up_at_different_times_have_their_own_factor_curves(tmp_path: Path) -> None:
    class Unfreeze(Model):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.trainer.optimizers[0].add_param_group({"params": self.backbone.parameters()})

    model = Unfreeze(lambda m: torch.optim.SGD(m.head.parameters(), lr=0.1), 4)
    trainer(tmp_path, callbacks=[llr.Warmup(2), llr.LRMonitor()], logger=loggers(tmp_path), max_epochs=2).fit(
        model, Loader(4)
    )
    read = Read(tmp_path)
    assert read.csv("lr-factor/Warmup") == [(0, 0.5), (1, 1.0), (7, 1.0)]
    assert read.csv("lr-factor/Warmup/lr-SGD/pg2") == [(4, 0.5), (5, 1.0), (7, 1.0)]
    assert read.scalars["lr-SGD/pg2"][:2] == [(4, pytest.approx(0.05)), (5, pytest.approx(0.1))]


def test_two_monitors_on_the_same_tags_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="LRMonitor and LearningRateMonitor write the same tags"):
        trainer(tmp_path, callbacks=[llr.LRMonitor(), LearningRateMonitor()], logger=True).fit(Model(sgd), Loader(2))


def test_beside_lightnings_monitor_the_other_callbacks_leave_its_tags_alone(tmp_path: Path) -> None:
    trainer(
        tmp_path,
        callbacks=[llr.Warmup(4), LearningRateMonitor("step")],
        logger=loggers(tmp_path),
        max_epochs=1,
        log_every_n_steps=1,
    ).fit(Model(sgd), Loader(4))
    read = Read(tmp_path)
    assert read.scalars["lr-SGD"] == [(k, pytest.approx(0.1)) for k in range(4)]
    assert len(read.scalars["lr-factor/Warmup"]) == 4


def test_with_accumulation_each_point_is_written_once_on_the_loggers_axis(tmp_path: Path) -> None:
    trainer(
        tmp_path,
        callbacks=[llr.Warmup(3), llr.LRMonitor()],
        logger=loggers(tmp_path),
        accumulate_grad_batches=4,
        max_epochs=1,
    ).fit(Model(sgd), Loader(16))
    read = Read(tmp_path)
    assert [step for step, _ in read.scalars["lr-SGD"]] == [0, 1, 2, 3]
    assert [step for step, _ in read.csv("lr-SGD")] == [0, 1, 2, 3]


def test_a_checkpoints_name_can_hold_the_rate_and_the_progress_bar_shows_it(tmp_path: Path) -> None:
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="{lr-SGD:.3f}", save_top_k=-1)
    fit = trainer(
        tmp_path,
        callbacks=[llr.Warmup(4), llr.LRMonitor(prog_bar=True), keep],
        enable_checkpointing=True,
        logger=True,
        max_epochs=2,
        log_every_n_steps=1,
    )
    fit.fit(Model(sgd), Loader(2))
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["lr-SGD=0.050.ckpt", "lr-SGD=0.100.ckpt"]
    assert fit.progress_bar_metrics["lr-SGD"] == pytest.approx(0.1)


def test_fast_dev_run_and_no_logger_at_all(tmp_path: Path) -> None:
    for settings in ({"fast_dev_run": 2, "logger": True}, {"logger": False}):
        model = Model(sgd)
        trainer(tmp_path, callbacks=[llr.Warmup(2), llr.LRMonitor()], **settings).fit(model, Loader(2), held_out())
        assert [row[0] for row in model.trace][:2] == pytest.approx([0.05, 0.1])


# what each kind of logger gets ------------------------------------------------------------------------------------


def smoothed(points: list[tuple[int, float]], weight: float = 0.6) -> list[tuple[int, float]]:
    """What TensorBoard draws (`resmoothDataset` in its sources): by points, whatever lies between them."""
    if len({value for _, value in points}) == 1:
        return points
    last, shown = 0.0, []
    for number, (step, value) in enumerate(points, start=1):
        last = weight * last + (1.0 - weight) * value
        shown.append((step, last / (1.0 - weight**number)))
    return shown


def test_tensorboards_smoothing_shows_the_rate_again_a_few_updates_after_a_change(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[llr.LRMonitor()], logger=loggers(tmp_path), max_epochs=15, log_every_n_steps=50).fit(
        Model(stairs), Loader(20)
    )
    points = Read(tmp_path).scalars["lr-SGD"]
    drawn = dict(smoothed(points))
    assert len(points) == len(drawn)
    for step, rate in ((101, 0.1), (104, 0.02), (112, 0.004), (229, 0.004), (238, 0.0008), (299, 0.0008)):
        near = max(k for k in drawn if k <= step)
        assert step - near <= 50
        if step not in (101, 104):
            assert drawn[near] == pytest.approx(rate, abs=0.02 * 0.1)
    for before, at in ((100, 101), (104, 105), (229, 230)):
        assert dict(points)[before] == pytest.approx(5 * dict(points)[at])


def test_curves_have_a_point_at_each_of_the_trainers_logging_steps(tmp_path: Path) -> None:
    callbacks = [llr.Warmup(4), llr.LRMonitor(momentum=True)]
    trainer(tmp_path, callbacks=callbacks, logger=loggers(tmp_path), max_epochs=5, log_every_n_steps=10).fit(
        Model(lambda m: sgd(m, momentum=0.9)), Loader(10)
    )
    read = Read(tmp_path)
    for tag in ("lr-SGD", "lr-factor/Warmup", "lr-SGD-momentum"):
        for points in (read.scalars[tag], read.csv(tag)):
            assert {9, 19, 29, 39, 49} <= {step for step, _ in points}
            assert len(points) == len(dict(points))


@pytest.mark.parametrize("callbacks", [lambda: [llr.LRMonitor()], lambda: [llr.Warmup(30)], llr.autopilot])
def test_under_a_schedule_by_step_a_remote_logger_is_called_about_as_often_as_by_lightnings_monitor(
    callbacks: Any, tmp_path: Path
) -> None:
    mine = callbacks()
    remote, finder = Remote(), any(isinstance(c, llr.LRFinder) for c in mine)
    model = Model(lambda m: cosine(m, 400))
    model.log = lambda *args, **kwargs: pl.LightningModule.log(model, *args, **kwargs, logger=False)  # type: ignore
    trainer(tmp_path, callbacks=mine, logger=remote, max_epochs=20, log_every_n_steps=20).fit(
        model, Loader(20), held_out()
    )
    # 20 logging steps, the first changes, the ends; a sweep is told point by point
    assert len([row for _, row in remote.calls if "lr-finder/loss" not in row]) <= 20 + 4 + 4 + 4 * finder
    steps = [step for step, _ in remote.calls]
    assert steps == sorted(steps)
    assert steps[-1] == 399
    for _, row in remote.calls:
        assert all(isinstance(value, float) for value in row.values())
    curve = remote.curve("lr-SGD")
    assert len(curve) == len(dict(curve)) > 20


def test_a_remote_logger_gets_an_isolated_change_within_a_drift_at_its_very_step(tmp_path: Path) -> None:
    remote = Remote()
    trainer(tmp_path, callbacks=[llr.LRMonitor()], logger=remote, max_epochs=4, log_every_n_steps=20).fit(
        Model(bumpy), Loader(20)
    )
    curve = remote.curve("lr-SGD")
    assert [step for step, _ in curve] == [0, 1, 2, 3, 19, 39, 43, 44, 45, 46, 59, 79]
    for step, rate in curve:
        assert rate == pytest.approx(0.1 * 0.99**step * (0.1 if step >= 43 else 1.0))


class Fails(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == 27:
            raise KeyError("broken")
        return super().training_step(batch, batch_idx)


def test_when_the_run_fails_a_remote_logger_has_the_last_rate(tmp_path: Path) -> None:
    remote = Remote()
    with pytest.raises(KeyError, match="broken"):
        trainer(tmp_path, callbacks=[llr.Warmup(100)], logger=remote, max_epochs=6, log_every_n_steps=20).fit(
            Fails(sgd), Loader(20)
        )
    for tag, rate in (("lr-SGD", 0.1), ("lr-factor/Warmup", 1.0)):
        assert remote.curve(tag)[-1] == (26, pytest.approx(rate * 27 / 100))


def test_a_drift_that_ends_between_logging_steps_is_whole_at_a_remote_logger_soon_after(tmp_path: Path) -> None:
    remote = Remote()
    trainer(tmp_path, callbacks=[llr.Warmup(30)], logger=remote, max_epochs=4, log_every_n_steps=20).fit(
        Model(sgd), Loader(20)
    )
    assert remote.curve("lr-SGD")[-1] == (30, pytest.approx(0.1))


def test_incidents_and_sweeps_stay_out_of_the_losses_chart(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[llr.LRMonitor()], logger=loggers(tmp_path), max_epochs=1).fit(Model(sgd), Loader(2))
    layout = Read(tmp_path).layout
    charts = {"train_loss": 0, "val_loss": 0, "loss": 0, "lr-incident/loss": 0, "lr-finder/loss": 0}
    for pattern in (r"(?!lr-).*loss.*", r"^lr-incident/.*"):
        assert pattern in layout
        for tag in charts:
            charts[tag] += bool(re.match(pattern, tag))
    assert charts == {"train_loss": 1, "val_loss": 1, "loss": 1, "lr-incident/loss": 1, "lr-finder/loss": 0}
    assert not re.match(r"(?!lr-).*loss.*", "lr-incident/loss")


def test_a_factor_that_changes_while_the_rate_is_zero_is_on_record(tmp_path: Path) -> None:
    def ends(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        stops = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: float(k < 10))
        return [optimizer], [{"scheduler": stops, "interval": "step"}]

    monitor = llr.LRMonitor()
    callbacks = [llr.PlateauDecay("val_loss", factor=0.5, patience=0), monitor]
    trainer(tmp_path, callbacks=callbacks, max_epochs=4).fit(Model(ends), Loader(10), held_out())
    (line,) = [line for line in monitor.story if "at 0 as before" in line][:1]
    assert "SGD: at 0 as before: PlateauDecay 1 -> 0.5: val_loss" in line
    assert all(change.old != change.new for change in monitor.changes)
