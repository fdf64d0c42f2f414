"""A sweep's batches: every rate trains on the same ones and is scored on the same ones, and nothing stays behind."""

from __future__ import annotations

import gc
import itertools
import math
import random
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lr as llr
from lightning_lr.batches import replay
from lightning_lr.batches.batch import KeptBatch, contents
from lightning_lr.sweeps import sweep_batches, sweep_plan
from lightning_lr.sweeps.outlook import needed
from tests.pool import Pool
from tests.small import Loader, Sharded, digits, trainer
from tests.ways import Sam, lbfgs, scaler

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed from", "ignore:Checkpoint directory .* exists", "ignore:Be aware that when using"
)
SHORT: dict[str, Any] = {"steps": 30, "min_lr": 1e-4, "progress_bar": False}
PROBES = 4
"""With 30 steps."""


def momentum(module: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)


def falling(module: Any) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.995**k)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def halves(module: Any) -> list[torch.optim.Optimizer]:
    return [momentum(module.net[1]), momentum(module.net[3])]


class Net(pl.LightningModule):
    """Keeps what `training_step` gets, with the point of the sweep that it is for: the look, or a trial.

    Args:
        configure: gives the optimizer.
        drop: the dropout's share.
        jitter: the size of a random augmentation in a batch hook.
        times: updates of a batch by hand; 0: automatic optimization.
        every: batches of an update by hand.
        raises: raises this at the 9th batch.
    """

    def __init__(
        self,
        configure: Callable[[Any], Any] = momentum,
        *,
        drop: float = 0.0,
        jitter: float = 0.0,
        times: int = 0,
        every: int = 1,
        raises: BaseException | None = None,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Dropout(drop), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=10)
        self.configure, self.jitter, self.times, self.every = configure, jitter, times, every
        self.raises, self.automatic_optimization = raises, not times
        self.finder: Any = None
        self.seen: list[tuple[str, int, bytes]] = []
        self.counted: list[bytes] = []

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer.training and self.jitter:
            images, labels = batch
            return [images + self.jitter * torch.randn_like(images), labels]
        return batch

    def loss(self, batch: Any) -> Tensor:
        logits = self.net(batch[0])
        if self.trainer.training:
            self.accuracy(logits, batch[1])
            self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return nn.functional.cross_entropy(logits, batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        random.random(), np.random.rand()
        sweep = self.finder._search.sweep if self.finder is not None else None
        if sweep is not None:
            what = "pause" if sweep.pausing else "try"
            self.seen.append((what, len(sweep.state.losses), batch[0].numpy().tobytes()))
        if self.raises is not None and self.trainer.fit_loop.epoch_loop.total_batch_idx == 9:
            raise self.raises
        if self.automatic_optimization:
            return self.loss(batch)
        optimizers: Any = self.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for _ in range(self.times):
                self.manual_backward(self.loss(batch) / self.every)
                if (batch_idx + 1) % self.every == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        return None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return self.configure(self)

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters()]

    def points(self) -> dict[int, list[bytes]]:
        """The batches of each of the sweep's points."""
        found: dict[int, list[bytes]] = {}
        for what, point, data in self.seen:
            if what == "try":
                found.setdefault(point, []).append(data)
        return found


def fit(root: Path, model: Net, finder: llr.LRFinder, loader: Any = None, others: Any = (), **more: Any) -> Any:
    model.finder = finder
    run = trainer(root, callbacks=[*others, finder], **{"max_epochs": 10, **more})
    run.fit(model, Loader(8) if loader is None else loader, ckpt_path=more.pop("ckpt_path", None))
    return run


def trials(finder: llr.LRFinder, starts: list[int] | None = None) -> list[range]:
    """The points of each trial of the first sweep."""
    finding = finder.findings[0]
    begin, found = finding.look + finding.ramp, []
    rates = [*finding.rates[begin:], None]
    # a trial ends where the rate changes: no two in a row have one
    for place in range(len(rates) - 1):
        if rates[place + 1] != rates[place]:
            found.append(range(begin, finding.look + finding.ramp + place + 1))
            begin = found[-1].stop
    return found


def check_same(model: Net, finder: llr.LRFinder) -> None:
    """All trials train on the same batches in one order, and end on those of the look."""
    points, finding = model.points(), finder.findings[0]
    assert len(points) == len(finding.losses)
    look = [points[place] for place in range(finding.look)]
    ramp = range(finding.look, finding.look + finding.ramp)
    for index, place in enumerate(ramp):
        assert points[place] == look[index % finding.look]
    found = trials(finder)
    assert len(found) == len(finding.trials) >= 2
    whole = max(map(len, found))
    trained: dict[int, list[bytes]] = {}
    for trial, (_, mean) in zip(found, finding.trials, strict=True):
        for index, place in enumerate(trial):
            if index < whole - finding.look:
                assert trained.setdefault(index, points[place]) == points[place]
            else:
                assert points[place] == look[index - whole + finding.look]
        assert mean is None or len(trial) == whole
    flat = [data for window in [*look, *trained.values()] for data in window]
    assert len(set(flat)) > len(look)


def shuffled(batches: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*(t[: 8 * batches] for t in digits())), batch_size=8, shuffle=True)


WAYS: dict[str, tuple[Callable[[], Net], Callable[[], Any], dict[str, Any]]] = {
    "plain": (Net, lambda: Loader(8), {}),
    "short epochs": (Net, lambda: Loader(3), {"max_epochs": 30}),
    "shuffled": (Net, lambda: shuffled(7), {}),
    "accumulation": (Net, lambda: Loader(16, 4), {"accumulate_grad_batches": 4, "max_epochs": 20}),
    "accumulation, a rest": (Net, lambda: Loader(14, 4), {"accumulate_grad_batches": 4, "max_epochs": 30}),
    "accumulation, much rest": (Net, lambda: Loader(6, 4), {"accumulate_grad_batches": 4, "max_epochs": 60}),
    "manual": (lambda: Net(times=1), lambda: Loader(8), {}),
    "manual, two updates": (lambda: Net(times=2), lambda: Loader(8), {}),
    "manual accumulation": (lambda: Net(times=1, every=2), lambda: Loader(8), {"max_epochs": 20}),
    "two optimizers": (lambda: Net(halves, times=1), lambda: Loader(8), {}),
    "16-mixed": (Net, lambda: Loader(8), {"plugins": scaler()}),
    "16-mixed that calibrates": (Net, lambda: Loader(8), {"plugins": scaler(2.0**24)}),
    "augmented": (lambda: Net(jitter=0.3, drop=0.2), lambda: shuffled(8), {}),
    "LBFGS": (lambda: Net(lbfgs), lambda: Loader(8), {}),
    "SAM": (lambda: Net(lambda m: Sam(m.parameters(), 0.1)), lambda: Loader(8), {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_all_rates_train_on_the_same_batches_and_are_scored_on_those_of_the_look(way: str, tmp_path: Path) -> None:
    make, data, settings = WAYS[way]
    finder = llr.LRFinder(at=2, apply=False, optimizer=0 if way == "two optimizers" else None, **SHORT)
    model = make()
    most: list[int] = []
    watcher = pl.callbacks.LambdaCallback(
        on_train_batch_start=lambda run, *_: most.append(needed(run, 30, replay=True)) if not most else None
    )
    run = fit(tmp_path, model, finder, data(), [watcher], **settings)
    assert len(finder.findings) == 1
    if way in ("LBFGS", "SAM", "16-mixed that calibrates"):
        # each evaluation of the loss, and an update that is skipped, is one more training step with the same batch
        points = model.points()
        assert all(len(set(batches)) == 1 for batches in points.values())
        model.seen = [("try", point, batches[0]) for point, batches in points.items()]
    check_same(model, finder)
    if not model.times and "calibrates" not in way:
        assert run.global_step - finder.ledger.updates(0) <= most[0]


# random numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_that_is_played_again_has_its_random_numbers_again(accumulate: int, tmp_path: Path) -> None:
    class Look(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            if not before:
                before.append(states())

        def on_train_batch_end(self, *_: Any) -> None:
            if finder.findings and not after:
                after.append(states())

    def states() -> Any:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before: list[Any] = []
    after: list[Any] = []
    finder, model = llr.LRFinder(apply=False, **SHORT), Net(drop=0.5, jitter=0.2)
    others, loader = [Look()], Loader(8 * accumulate, 8 // accumulate)
    fit(tmp_path, model, finder, loader, others, accumulate_grad_batches=accumulate)
    finding = finder.findings[0]
    # the weights are the start's wherever a trial begins, and its first batch is the same
    assert len({finding.losses[trial.start] for trial in trials(finder)}) == 1
    assert finding.losses[finding.look] == finding.losses[0]
    assert len(set(finding.losses[: finding.look])) == finding.look
    assert before == after


# metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [0, 1], ids=["automatic", "manual"])
def test_no_played_batch_counts_and_every_epoch_has_metrics(times: int, tmp_path: Path) -> None:
    class Count(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            counts.append(pl_module.accuracy._update_count)

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            epochs.append("accuracy" in trainer.callback_metrics and pl_module.accuracy._update_count > 0)

    counts: list[int] = []
    epochs: list[bool] = []
    finder, model = llr.LRFinder(apply=False, **SHORT), Net(times=times)
    fit(tmp_path, model, finder, Loader(6), [Count()], max_epochs=12)
    assert all(epochs)
    seen: set[bytes] = set()
    for place, (what, _, data) in enumerate(model.seen):
        # the sixth batch of an epoch is the last, and then the metric begins anew
        counted = counts[place] > (counts[place - 1] if place % 6 else 0)
        assert not (counted and data in seen and what == "try")
        assert counted or what == "try"
        if what == "try":
            seen.add(data)


# without -------------------------------------------------------------------------------------------------------------


@dataclass
class Own:
    """A batch that only its class can build."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, index: int) -> Tensor:
        return (self.images, self.labels)[index]


class Wrapped(Loader):
    """Gives batches of another kind."""

    def __init__(self, kind: str, **more: Any) -> None:
        super().__init__(8, **more)
        self.kind, self.given = kind, 0

    def __iter__(self) -> Iterator[Any]:
        for images, labels in super().__iter__():
            self.given += 1
            spent = self.kind == "generator" or (self.kind == "late generator" and self.given > 10)
            yield Own(images, labels) if self.kind == "dataclass" else [images, labels, *([iter(())] if spent else [])]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr("lightning_lr.sweeps.announcer.rank_zero_info", lines.append)
    return lines


@pytest.mark.parametrize("kind", ["replay=False", "generator", "late generator", "no room"])
def test_where_batches_cant_be_kept_others_are_taken_and_that_is_said_once(
    kind: str, said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if kind == "no room":
        monkeypatch.setattr(replay, "ROOM", 3 * taken(8))
    finder, model = llr.LRFinder(apply=False, replay=kind != "replay=False", **SHORT), Net()
    states: list[Any] = []
    watcher = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_: states.append(finder._search.sweep.state) if finder._search.sweep else None
    )
    fit(tmp_path, model, finder, Wrapped(kind), [watcher])
    assert len(finder.findings) == 1
    assert not states[-1].paired
    told = [line for line in said if "different batches" in line]
    reason = {"replay=False": kind, "no room": "no memory"}.get(kind, "can be read only once")
    assert len(told) == 1
    assert reason in told[0]
    points, finding = model.points(), finder.findings[0]
    first, *_, last = trials(finder)
    assert points[last.stop - 1] != points[finding.look - 1]
    assert first != last


def taken(size: int) -> int:
    """The bytes of a batch of so many."""
    return sum(contents([tensor[:size].clone() for tensor in digits()]).bytes.values())


def test_with_little_room_what_trains_comes_again_in_turn_and_the_scored_ones_stay(
    said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(replay, "ROOM", (PROBES + 1) * taken(8))
    finder, model = llr.LRFinder(apply=False, **SHORT), Net()
    fit(tmp_path, model, finder, Loader(16))
    check_same(model, finder)
    assert len({model.points()[place][0] for trial in trials(finder) for place in trial}) == PROBES + 1
    assert len(trials(finder)[0]) > PROBES + 1
    assert not [line for line in said if "different batches" in line]


def test_a_window_of_which_a_part_finds_no_room_is_the_same_each_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(replay, "ROOM", (4 * PROBES + 2) * taken(4))
    finder, model = llr.LRFinder(apply=False, **SHORT), Net()
    fit(tmp_path, model, finder, Loader(32, 4), accumulate_grad_batches=4)
    points = model.points()
    check_same(model, finder)
    assert len(set(points[trials(finder)[0].start])) == 2


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_a_batch_without_a_loss_is_not_played_for_ever(tmp_path: Path) -> None:
    class Sparse(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if int(batch[1][0]) < 4 else loss

    finder, model = llr.LRFinder(apply=False, **SHORT), Sparse()
    fit(tmp_path, model, finder, Loader(16), max_epochs=12)
    assert len(finder.findings) == 1


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_a_trial_whose_losses_are_passed_over_for_not_being_finite_has_blown_up(tmp_path: Path) -> None:
    class Cautious(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            # the ramp's end, and nothing before it, breaks the weights
            rates = finder._search.sweep.state.rates if finder._search.sweep else ()
            loss = super().training_step(batch, batch_idx)
            loss = loss * math.nan if any(rate > 1.0 for rate in rates[-3:]) else loss
            return loss if loss.isfinite() else None

    finder, model = llr.LRFinder(apply=False, **SHORT), Cautious()
    fit(tmp_path, model, finder, Loader(16), max_epochs=12)
    assert len(finder.findings) == 1


# optimizers that move at rate 0 ----------------------------------------------------------------------------------


class Restless(torch.optim.SGD):
    """Decays weights whatever the rate."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.7)
        return loss


def test_an_optimizer_that_moves_at_rate_0_is_looked_at_from_the_start_each_time(tmp_path: Path) -> None:
    finder = llr.LRFinder(apply=False, **SHORT)
    model = Net(lambda m: Restless(m.parameters(), 0.1))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit(tmp_path, model, finder, limit_val_batches=0)
    points, fresh = model.points(), Net()
    fresh.load_state_dict(start)
    images, labels = digits()
    for place in range(PROBES):
        chosen = torch.frombuffer(bytearray(points[place][0]), dtype=torch.float32).view(8, 64)
        where = [int((images == row).all(1).nonzero()[0]) for row in chosen]
        loss = nn.functional.cross_entropy(fresh.net(chosen), labels[where])
        assert finder.findings[0].losses[place] == pytest.approx(loss.item(), rel=1e-5)


# nothing left --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["sweep", "exception", "interrupt", "stop"])
def test_nothing_is_left_of_what_a_sweep_borrowed_and_kept(end: str, tmp_path: Path) -> None:
    raised = {"exception": RuntimeError("the user's own"), "interrupt": KeyboardInterrupt()}.get(end)
    finder, model = llr.LRFinder(apply=False, **SHORT), Net(raises=raised)
    kept: list[weakref.ref[Any]] = []
    watcher = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda run, *_: (
            kept.extend(weakref.ref(k) for k in finder._search.sweep._batches._replay._kept)
            if finder._search.sweep
            else None,
            setattr(run, "should_stop", end == "stop" and run.global_step == 12),
        )
    )
    run = trainer(tmp_path, callbacks=[watcher, finder], max_epochs=8)
    model.finder = finder
    if end == "exception":
        with pytest.raises(RuntimeError, match="the user's own"):
            run.fit(model, Loader(8))
    elif end == "interrupt":
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run.fit(model, Loader(8))
    elif end == "stop":
        with pytest.warns(UserWarning, match="the run ended after"):
            run.fit(model, Loader(8))
    else:
        run.fit(model, Loader(8))
    assert "convert_input" not in vars(run.precision_plugin)
    assert len(kept) > 4
    gc.collect()
    assert not [ref for ref in kept if ref() is not None]


def test_a_sweep_that_cant_be_taken_up_leaves_nothing_in_the_loop(tmp_path: Path) -> None:
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 20:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    fit(tmp_path, Net(), llr.LRFinder(apply=False, **SHORT), others=[Save()])
    saved = torch.load(tmp_path / "mid.ckpt", weights_only=True)
    sweep = saved["callbacks"]["LRFinder[LRFinder]"]["own"]["sweep"]
    assert sweep["trial"] is not None
    sweep["trial"]["tensors"].pop()
    torch.save(saved, tmp_path / "broken.ckpt")
    run = trainer(tmp_path, callbacks=[llr.LRFinder(apply=False, **SHORT)], max_epochs=10)
    with pytest.raises(ValueError, match="shorter|argument"):
        run.fit(Net(), Loader(8), ckpt_path=str(tmp_path / "broken.ckpt"))
    assert "convert_input" not in vars(run.precision_plugin)


# resuming ------------------------------------------------------------------------------------------------------------


class Rests(pl.Callback):
    def __init__(self) -> None:
        self.rests: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.rests.append(pl_module.weights())


def resumable(root: Path, resume: str | None = None, kind: str = "", **finder: Any) -> Any:
    found, model, rests = llr.LRFinder(**{**SHORT, **finder}), Net(), Rests()
    saving = [] if resume else [ModelCheckpoint(root, filename="{step}", save_top_k=-1, every_n_train_steps=1)]
    run = trainer(root, callbacks=[rests, found, *saving], max_epochs=12, enable_checkpointing=not resume)
    model.finder = found
    run.fit(model, Wrapped(kind), ckpt_path=resume)
    return found, model, rests.rests, run


def check_resumed(root: Path, first: int, last: int, **finder: Any) -> None:
    whole, model, rests, _ = resumable(root, **finder)
    assert len(whole.findings) == (2 if finder else 1)
    for step in range(first, last):
        again, resumed, found, _ = resumable(root, str(root / f"step={step}.ckpt"), **finder)
        assert again.findings == whole.findings, step
        assert all(all(map(torch.equal, a, b)) for a, b in zip(found, rests[step:], strict=True)), step
        assert all(map(torch.equal, resumed.weights(), model.weights()))


def test_resumed_at_every_step_of_a_sweep_the_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    check_resumed(tmp_path, 1, 36)


def soon(monkeypatch: pytest.MonkeyPatch, first: int = 8) -> None:
    """A second opinion in a run of some ten epochs."""
    for name, value in {"SHORTEST_AGAIN": 50, "AGAIN": 0.0, "FIRST_AGAIN": first}.items():
        monkeypatch.setattr(sweep_plan, name, value)


def test_resumed_at_every_step_of_a_second_opinion_the_run_is_the_uninterrupted_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    soon(monkeypatch)
    check_resumed(tmp_path, 38, 74, at="auto")


@pytest.mark.parametrize("kind", ["large", "dataclass"])
def test_what_no_checkpoint_can_hold_is_swept_again(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if kind == "large":
        monkeypatch.setattr(sweep_batches, "LARGEST_SAVED", 1000)
    whole, _, _, _ = resumable(tmp_path, kind=kind)
    assert len(whole.findings) == 1
    again, model, _, run = resumable(tmp_path, str(tmp_path / "step=15.ckpt"), kind=kind)
    assert len(again.findings) == 1
    assert again.findings[0].step > whole.findings[0].step
    assert run.global_step == 96
    assert all(bool(w.isfinite().all()) for w in model.weights())


# a second opinion ----------------------------------------------------------------------------------------------------


def again_at(root: Path, monkeypatch: pytest.MonkeyPatch, configure: Any, others: Any = (), **more: Any) -> Any:
    soon(monkeypatch)
    finder, model = llr.LRFinder(at="auto", **SHORT), Net(configure)
    run = fit(root, model, finder, others=others, **{"max_epochs": 20, **more})
    return finder, model, run


@pytest.mark.parametrize(("change", "words"), [(8.0, "is kept"), (150.0, "raises the loss"), (1.0, "is better")])
def test_a_second_opinion_keeps_lowers_or_raises_the_finders_own_factor(
    change: float, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Bends(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            ledger = finders[0].ledger
            if ledger.updates(0) == 8 and not before:
                ledger.set_factor("Other", 0.5, "a test")
                own = ledger.factor("LRFinder", 0, 0)
                ledger.set_factor("LRFinder", own * change, "a test")
                before.append(own * change)
            if ledger.updates(0) == 9 and not present:
                present.append(ledger.effective(0, 0))

    finders: list[Any] = []
    before: list[float] = []
    present: list[float] = []
    soon(monkeypatch, 9)
    monitor, finder, model = llr.LRMonitor(), llr.LRFinder(at="auto", **SHORT), Net(falling)
    finders.append(finder)
    fit(tmp_path, model, finder, others=[Bends(), monitor], max_epochs=20, logger=pl.loggers.CSVLogger(tmp_path))
    first, second = finder.findings[:2]
    assert second.update == 9
    assert second.around == pytest.approx(present[0])
    assert words in second.words
    ratio = second.suggestion / second.around
    assert (ratio == 1.0, ratio < 1.0, ratio > 1.0) == ("kept" in words, "raises" in words, "better" in words)
    assert finder.ledger.factor("LRFinder", 0, 0) == pytest.approx(before[0] * ratio)
    causes = [change.cause for change in monitor.changes if "second opinion" in change.cause]
    assert len(causes) == (words != "is kept")
    assert finder.ledger.factor("Other", 0, 0) == 0.5
    assert len(finder.findings) == (2 if first.sure else 3)


@pytest.mark.parametrize("kind", ["warm-up", "cool-down"])
def test_no_second_opinion_while_the_rate_rises_or_falls(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = llr.Warmup(30) if kind == "warm-up" else llr.Cooldown(130)
    finder, _, _ = again_at(tmp_path, monkeypatch, momentum, [other])
    assert [finding.around is None for finding in finder.findings] == (
        [True] if kind == "cool-down" else [True, *[False] * (len(finder.findings) - 1)]
    )
    assert kind == "cool-down" or finder.findings[1].update >= 30


def test_a_guard_and_a_finder_never_try_at_once_and_the_guard_judges_no_batch_of_a_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Both(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            assert not (finder.trying and guard.trying)
            judged.append((finder.trying, guard.record.counts["judged"]))

    judged: list[tuple[bool, int]] = []
    soon(monkeypatch)
    guard, finder = llr.DivergenceGuard(), llr.LRFinder(at="auto", **SHORT)
    fit(tmp_path, Net(), finder, others=[Both(), guard], max_epochs=20)
    assert len(finder.findings) >= 2
    sweeping = [(a, b) for a, b in itertools.pairwise(judged) if a[0] and b[0]]
    assert len(sweeping) > 40
    assert all(a[1] == b[1] for a, b in sweeping)
    assert guard.rewinds == guard.skips == 0


# several ranks -------------------------------------------------------------------------------------------------------


def fit_on_a_rank(root: str, kind: str) -> Any:
    import os

    rank = int(os.environ["RANK"])
    finder, model = llr.LRFinder(at=2, **SHORT), Net(drop=0.2)
    parts = 2 if "window" in kind else 1
    states: list[bool] = []
    watcher = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_: states.append(finder._search.sweep.state.paired) if finder._search.sweep else None
    )
    fresh, plays = KeptBatch.fresh, [0]

    def fails(kept: Any) -> Any:
        plays[0] += 1
        # the first of a window of two, the last of which works
        if rank == 1 and plays[0] == 7:
            raise torch.OutOfMemoryError("out of memory")
        return fresh(kept)

    with pytest.MonkeyPatch.context() as patch:
        if kind.startswith("lost"):
            patch.setattr(KeptBatch, "fresh", fails)
        data = Wrapped("late generator" if kind == "unkeepable" and rank == 1 else "", offset=64 * rank)
        settings = {"devices": 2, "strategy": "ddp", "accumulate_grad_batches": parts, "max_epochs": 10 * parts}
        fit(Path(root), model, finder, data, [watcher], **settings)
    if kind == "plain":
        check_same(model, finder)
    return finder.findings, [w.tolist() for w in model.weights()], states


@pytest.mark.parametrize("kind", ["plain", "unkeepable", "lost", "lost in a window"])
def test_two_ranks_are_paired_alike_and_find_one_rate(kind: str, pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_on_a_rank, str(tmp_path), kind)
    assert first == second
    assert len(first[0]) == 1
    assert first[2][-1] is (kind == "plain")
    assert first[2][0]


class Shards(Sharded):
    def __init__(self) -> None:
        super().__init__(momentum)
        self.seen: list[tuple[int, float]] = []
        self.finder: Any = None

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        sweep = self.finder._search.sweep
        if sweep is not None and not sweep.pausing:
            self.seen.append((len(sweep.state.losses), float(batch[0].sum())))
        return super().training_step(batch, batch_idx)


def fit_sharded(root: str) -> Any:
    from pytorch_lightning.strategies import ModelParallelStrategy

    finder, model = llr.LRFinder(**SHORT), Shards()
    model.finder = finder
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    run = trainer(root, max_epochs=10, callbacks=[finder], devices=2, strategy=strategy)
    run.fit(model, Loader(8, 16, offset=16 * run.global_rank))
    points = dict(model.seen)
    scored = [[points[place] for place in trial][-PROBES:] for trial in trials(finder) if len(trial) > PROBES + 1]
    return finder.findings, scored == [[points[place] for place in range(PROBES)]] * len(scored), len(scored)


def test_sharded_weights_are_tried_on_the_same_batches(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_sharded, str(tmp_path))
    assert first == second
    assert first[1]
    assert first[2] >= 1
