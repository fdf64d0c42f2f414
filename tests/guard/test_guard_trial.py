"""A guard's trial in real fits: other weights within a batch, and no trace after it; the policy is a script."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn

import lightning_lr as llr
from lightning_lr.policies.verdict import Side
from tests.pool import Pool
from tests.scripted import LONGER, SIDES, guard
from tests.small import Loader, Model, Sharded, held_out, trainer
from tests.ways import WAYS
from tests.witness import Fit, check, check_resumed

pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`, callbacks",
    "ignore:.training_step. returned .None.",
    "ignore:You're resuming from a checkpoint that ended",
)

BATCHES = 16


def taken(*begin: int, looks: tuple[Side, ...] = SIDES, per_update: int = 1) -> dict[int, bool]:
    """The batches, from 0, that trials take; and whether each is the first one, which counts as any other."""
    updates = {b - 1 + k: k == 0 for b in begin for k in range(len(looks) + 1)}
    return {update * per_update + k: counts for update, counts in updates.items() for k in range(per_update)}


def momentum(module: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def adam(module: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=3e-3)


def cosine(module: Any) -> Any:
    optimizer = adam(module)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 64)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Net(Model):
    """BatchNorm, dropout, a torchmetric, a buffer written by hand; without a loss in the batches of `drops`."""

    def __init__(
        self, configure: Callable[[Any], Any] = momentum, drops: dict[int, bool] | None = None, dropout: float = 0.2
    ) -> None:
        super().__init__(configure, 16)
        self.norm, self.dropout = nn.BatchNorm1d(64), nn.Dropout(dropout)
        self.accuracy = torchmetrics.MeanMetric()
        self.register_buffer("calls", torch.zeros(()))
        self.drops = drops or {}
        self.seen_by_validation: list[list[Tensor]] = []
        self.entered: list[list[Tensor]] = []

    @property
    def number(self) -> int:
        return self.trainer.fit_loop.epoch_loop.total_batch_idx

    def loss(self, batch: list[Tensor]) -> Tensor:
        self.calls += 1
        out = self(self.dropout(self.norm(batch[0])))
        self.accuracy.update((out.argmax(1) == batch[1]).float())
        return nn.functional.cross_entropy(out, batch[1])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        counts = self.drops.get(self.number)
        if counts is False:
            return None
        self.entered.append(self.weights())
        buffers = [b.clone() for b in self.buffers()]
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        if counts is None:
            return loss
        for buffer, before in zip(self.buffers(), buffers, strict=True):
            buffer.copy_(before)
        return None

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.seen_by_validation.append(self.weights())
        super().validation_step(batch, batch_idx)


class ByHand(Net):
    """Manual optimization; a second net follows the first, and the last layer's bias is kept short, by hand."""

    def __init__(self, configure: Callable[[Any], Any] = momentum, drops: dict[int, bool] | None = None) -> None:
        super().__init__(configure, drops)
        self.automatic_optimization = False
        self.target = nn.Linear(16, 10).requires_grad_(False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if loss is None:
            return
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        with torch.no_grad():
            self.head.bias.mul_(0.99)
            for follower, leader in zip(self.target.parameters(), self.head.parameters(), strict=True):
                follower.lerp_(leader, 0.1)


class Pair(Net):
    """Two optimizers, that each make an update in every batch."""

    def __init__(self, drops: dict[int, bool] | None = None) -> None:
        super().__init__(lambda m: [momentum(m.backbone), adam(nn.ModuleList([m.head, m.norm]))], drops)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        if self.number in self.drops:
            return
        for optimizer in self.optimizers():
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


class Books(pl.Callback):
    """What others see at the end of each batch and epoch."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.epochs: list[Any] = []
        self.random: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.batches.append(state(pl_module, trainer))
        self.random.append(torch.get_rng_state())

    def weights(self, module: Any, number: int) -> list[Tensor]:
        """The parameters at a batch's end, without buffers and what optimizers remember."""
        names = list(module.state_dict())
        return [self.batches[number][names.index(name)] for name, _ in module.named_parameters()]

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        found = trainer.callback_metrics
        self.epochs.append({k: float(v) for k, v in found.items() if not k.startswith("lr-")})


def state(module: Any, run: Any) -> list[Any]:
    """Weights, buffers, torchmetrics, and what optimizers remember."""
    found = [t.clone() for t in module.state_dict().values()]
    for metric in (m for m in module.modules() if isinstance(m, torchmetrics.Metric)):
        found += [metric._update_count, *(getattr(metric, name).clone() for name in metric._defaults)]
    for optimizer in run.optimizers:
        for held in optimizer.state.values():
            found += [value.clone() if isinstance(value, Tensor) else value for value in held.values()]
    return found


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True)
    )


def fit(model: Any, root: Path, *callbacks: Any, batches: int = BATCHES, **more: Any) -> Any:
    path = more.pop("ckpt_path", None)
    torch.manual_seed(7)
    made = trainer(root, callbacks=list(callbacks), **{"max_epochs": 2, **more})
    made.fit(model, Loader(batches, 8), held_out(), ckpt_path=path)
    return made


# no trace --------------------------------------------------------------------------------------------------------


def check_no_trace(
    make: Callable[[dict[int, bool]], Any],
    root: Path,
    *begin: int,
    looks: Any = SIDES,
    per_update: int = 1,
    **more: Any,
) -> tuple[Any, llr.DivergenceGuard]:
    """A run with trials is the one in which their batches have no loss, in every bit, at every batch's end."""
    tried, dropped = Books(), Books()
    callbacks = more.pop("callbacks", list)
    watching = guard(*begin, looks=looks, lag=more.pop("lag", 0))
    model = make({})
    run = fit(model, root, *callbacks(), tried, watching, **more)
    other = make(taken(*begin, looks=looks, per_update=per_update))
    bare = fit(other, root, *callbacks(), dropped, **more)
    assert len(tried.batches) == len(dropped.batches)
    for number, (mine, theirs) in enumerate(zip(tried.batches, dropped.batches, strict=True)):
        # a window that is dropped gives its buffers back at its end
        assert number % per_update < per_update - 1 or same(mine, theirs), number
    assert tried.epochs == dropped.epochs
    # between batches of a trial the generators have moved; at its end they are back
    assert torch.equal(tried.random[-1], dropped.random[-1])
    assert run.global_step == bare.global_step
    assert watching.record.counts["trials_passed"] == len(begin)
    assert watching.updates_lost == len(begin) * (len(looks) + 1) == watching.summary()["held"]
    return model, watching


@pytest.mark.parametrize("configure", [momentum, adam, cosine])
def test_a_passed_trial_leaves_no_bit(configure: Any, tmp_path: Path) -> None:
    model, watching = check_no_trace(lambda drops: Net(configure, drops), tmp_path, 8, 24)
    assert [side for side, _ in watching.states[0].seen] == 2 * ["present", *SIDES]
    assert len(model.entered) == 2 * BATCHES


def test_what_a_training_step_writes_by_hand_in_a_trial_is_undone(tmp_path: Path) -> None:
    # the update that begins it is the run's own batch: of that, only what the guard itself drops is undone
    tried, watching = Books(), guard(8)
    fit(ByHand(), tmp_path, tried, watching)
    for batch in range(8, 12):
        assert same(tried.batches[batch][:-10], tried.batches[7][:-10])


def test_clipping_is_left_alone(tmp_path: Path) -> None:
    check_no_trace(lambda drops: Net(adam, drops), tmp_path, 8, looks=LONGER, gradient_clip_val=0.5)


def test_clipping_by_value_finds_gradients_in_a_trial_too(tmp_path: Path) -> None:
    watching = guard(8, looks=LONGER)
    fit(Net(adam), tmp_path, watching, gradient_clip_val=0.01, gradient_clip_algorithm="value")
    assert watching.record.counts["trials_passed"] == 1


def test_accumulation_keeps_a_side_for_the_whole_window(tmp_path: Path) -> None:
    model, watching = check_no_trace(
        lambda drops: Net(adam, drops), tmp_path, 3, per_update=2, accumulate_grad_batches=2, batches=32
    )
    pairs = list(zip(model.entered[::2], model.entered[1::2], strict=True))
    assert all(same(*pair) for pair in pairs)
    assert [side for side, _ in watching.states[0].seen] == ["present", *SIDES]


@pytest.mark.parametrize("make", [lambda: torch.ones(1).expand(5), lambda: torch.eye(4).to_sparse()])
def test_a_buffer_that_cant_be_written_in_place_is_left_alone(make: Any, tmp_path: Path) -> None:
    class Replaces(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.odd = make()
            return super().training_step(batch, batch_idx)

    model, watching, found = Replaces(adam), guard(8, looks=LONGER), []
    model.register_buffer("odd", make())
    end = pl.callbacks.LambdaCallback(on_train_batch_end=lambda *_: found.append(model.odd))
    fit(model, tmp_path, watching, end)
    assert watching.record.counts["trials_passed"] == 1
    # the trial's batches come after the eighth
    assert all(odd is found[7] for odd in found[8 : 8 + len(LONGER)])


def test_averaged_weights_are_left_alone(tmp_path: Path) -> None:
    averaging = pytest.importorskip("pytorch_lightning.callbacks.weight_averaging", reason="new in Lightning 2.6")
    made: list[Any] = []

    def callbacks() -> list[Any]:
        made.append(averaging.WeightAveraging(avg_fn=torch.optim.swa_utils.get_ema_avg_fn(0.9)))
        return made[-1:]

    seen: list[list[Tensor]] = []
    watcher = pl.callbacks.LambdaCallback(
        on_train_end=lambda *_: seen.append([p.clone() for p in made[-1]._average_model.parameters()])
    )
    check_no_trace(lambda drops: Net(adam, drops), tmp_path, 8, looks=LONGER, callbacks=lambda: [watcher, *callbacks()])
    assert same(*seen)


def test_two_optimizers_are_both_at_rest_in_the_trial_of_one(tmp_path: Path) -> None:
    watching, tried = guard(8, looks=LONGER), Books()
    model = Pair()
    run = fit(model, tmp_path, tried, watching)
    first, second = watching.states
    # the second one's script asks for its own trial at its own eighth update, which falls into the first one's
    assert [side for side, _ in first.seen] == ["present", *LONGER]
    # each one's trial takes five updates of the other, and the first one's begins before the second's turn
    assert (first.update, second.update) == (2 * BATCHES - 5, 2 * BATCHES - 6)
    for batch in range(8, 13):
        assert same(tried.batches[batch], tried.batches[8])
    assert run.global_step > 0


def test_a_gradient_scaler_comes_back(tmp_path: Path) -> None:
    def run(drops: dict[int, bool], *callbacks: Any) -> tuple[Any, Any]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=6)
        model = Net(adam, drops)
        fit(model, tmp_path, *callbacks, plugins=MixedPrecision("16-mixed", "cpu", scaler))
        return scaler.state_dict(), model.weights()

    watching = guard(8, looks=LONGER)
    scale, _ = run({}, watching)
    assert watching.record.counts["trials_passed"] == 1
    assert scale["scale"] > 2.0**10


# which weights ---------------------------------------------------------------------------------------------------


def test_each_side_is_what_its_name_says(tmp_path: Path) -> None:
    model, rests = Net(momentum, dropout=0.0), Books()
    watching = guard(14, looks=("best", "best"))
    copies: list[Any] = []
    watcher = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda trainer, *_: copies.append(
            (watching.copy_pair.best.step, watching.copy_pair.newest.step)
        )
    )
    fit(model, tmp_path, rests, watcher, watching, max_epochs=1, batches=24)
    best, newest = copies[13]
    assert 0 < best < newest < 13
    weights = [name for name, _ in model.named_parameters()]
    places = [index for index, name in enumerate(model.state_dict()) if name in weights]
    at_best = [rests.batches[best - 1][place] for place in places]
    assert same(model.entered[14], at_best)
    again = guard(14, looks=("newest", "present", "best", "present"))
    model = Net(momentum, dropout=0.0)
    fit(model, tmp_path, again, max_epochs=1, batches=24)
    assert same(model.entered[14], [rests.batches[newest - 1][place] for place in places])
    assert same(model.entered[15], [rests.batches[12][place] for place in places])
    assert same(model.entered[16], at_best)
    assert same(model.entered[17], model.entered[15])


def test_validation_and_checkpoints_in_the_middle_find_the_runs_own_weights(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, save_weights_only=True)
    model, rests, watching = Net(momentum), Books(), guard(14, looks=(*LONGER, *SIDES))
    settings: Any = {"val_check_interval": 4, "enable_checkpointing": True, "batches": 32, "max_epochs": 1}
    fit(model, tmp_path, rests, watching, keep, **settings)
    healthy = rests.batches[12]
    names = list(model.state_dict())
    places = [names.index(name) for name, _ in model.named_parameters()]
    for step in range(15, 23):
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"]
        assert same([saved[name] for name in names], [healthy[k] for k, _ in enumerate(names)])
    for seen in model.seen_by_validation[3:5]:
        assert same(seen, [healthy[place] for place in places])


# logs ------------------------------------------------------------------------------------------------------------


def test_an_epoch_of_three_batches_has_metrics_all_through_a_trial(tmp_path: Path) -> None:
    rests, watching = Books(), guard(4, looks=("best",) * 9)
    fit(Net(), tmp_path, rests, watching, batches=3, max_epochs=6, limit_val_batches=0)
    assert len(rests.epochs) == 6
    assert all(epoch["train_loss_epoch"] > 0.0 and 0.0 <= epoch["accuracy"] <= 1.0 for epoch in rests.epochs)
    assert len({epoch["train_loss_epoch"] for epoch in rests.epochs}) == 6
    # the epochs' first batches look at the present weights
    assert [side for side, _ in watching.states[0].seen] == [
        "present", "best", "best", "present", "best", "best", "present", "best", "best", "present"
    ]  # fmt: skip
    losses = dict(enumerate(rests.epochs))
    first = [loss for side, loss in watching.states[0].seen if side == "present"]
    assert losses[2]["train_loss_epoch"] == pytest.approx(first[1])


@pytest.mark.parametrize("parts", [1, 3])
def test_where_an_epoch_has_one_update_a_trial_comes_to_its_end_and_epochs_have_metrics(
    parts: int, tmp_path: Path
) -> None:
    rests, watching = Books(), guard(4, looks=("present", "best", "best", "present"))
    settings = {"batches": parts, "accumulate_grad_batches": parts, "max_epochs": 12, "limit_val_batches": 0}
    fit(Net(), tmp_path, rests, watching, **settings)
    assert all(epoch["train_loss_epoch"] > 0.0 for epoch in rests.epochs)
    assert [side for side, _ in watching.states[0].seen] == ["present", "present", "present", "best", "present"]
    assert watching.summary()["trials_passed"] == 1
    assert watching.summary()["judged"] == 12


def test_a_trial_of_an_optimizer_that_makes_no_more_updates_is_broken_off_in_words(tmp_path: Path) -> None:
    class Phases(Pair):
        def optimizers(self, use_pl_optimizer: bool = True) -> Any:
            found: Any = super().optimizers(use_pl_optimizer)
            return found[:1] if self.number < 8 else found[1:]

    model, watching = Phases(), guard(8)
    fit(model, tmp_path, watching, batches=32, max_epochs=3)
    assert [mark for mark in watching.states[0].marks if "broken" in mark] == ["broken off 8"]
    assert sum("trial broken off" in line for line in watching.journal.story) == 1
    # the other's updates count from then on: its own eighth begins a trial that ends
    assert watching.summary()["trials_passed"] == 1
    assert watching.states[1].update == 3 * 32 - 8 - 33


def test_a_trial_is_told_and_counted(tmp_path: Path) -> None:
    watching = guard(8, outcome="data", incidents_dir=tmp_path / "kept")
    fit(Net(), tmp_path, watching, logger=True)
    told = [line for line in watching.journal.story if "trial" in line]
    assert "DivergenceGuard: trial: as the script has it" in told[0]
    assert watching.summary()["trials_data"] == 1
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert "5 held for trials (1 blamed the data)" in watching.journal.story[-1]


# how a trial ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["best", "newest"])
@pytest.mark.parametrize("last", ["present", "best", "newest"])
def test_weights_that_are_to_blame_come_back_at_the_trials_end(to: Any, last: Any, tmp_path: Path) -> None:
    model, rests = Net(momentum), Books()
    watching = guard(14, looks=(*LONGER, last), outcome="weights", kind="rewind", to=to)
    copies: list[Any] = []
    watcher = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_: copies.append((watching.copy_pair.best.step, watching.copy_pair.newest.step))
    )
    fit(model, tmp_path, rests, watcher, watching, batches=32, max_epochs=1)
    back = copies[12][to == "newest"]
    assert copies[19] == (copies[12][0], back)
    assert copies[-1][1] > copies[-1][0] > back
    assert same(rests.weights(model, 19), rests.weights(model, back - 1))
    assert watching.rewinds == 1
    assert watching.updates_lost == 20 - back
    assert watching.settling


def test_after_the_newest_copy_the_best_is_still_there_and_nothing_is_lost_twice(tmp_path: Path) -> None:
    class Breaks(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.number == 21:
                kept.append((watching.copy_pair.best.step, watching.copy_pair.newest.step))
                with torch.no_grad():
                    self.head.weight.fill_(math.nan)

    kept: list[tuple[int, int]] = []
    model, rests = Breaks(momentum), Books()
    watching = guard(14, looks=LONGER, outcome="weights", kind="rewind", to="newest")
    fit(model, tmp_path, rests, watching, batches=32, max_epochs=1)
    ((best, newest),) = kept
    assert best < newest
    assert same(rests.weights(model, 21), rests.weights(model, best - 1))
    assert watching.rewinds == 2
    # of 22 updates, all but those that the best copy has
    assert watching.updates_lost == 22 - best


def test_an_exception_in_the_middle_leaves_healthy_weights_and_a_checkpoint_that_goes_on(tmp_path: Path) -> None:
    class Breaks(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if self.number == 15 and raises:
                raise RuntimeError("the user's own")
            return loss

    raises = True
    model, rests = Breaks(adam, dropout=0.0), Books()
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    with pytest.raises(RuntimeError, match="the user's own"):
        fit(model, tmp_path, rests, guard(14, looks=LONGER), keep, enable_checkpointing=True, batches=32)
    assert same([t.clone() for t in model.state_dict().values()], rests.batches[12][: len(model.state_dict())])
    raises = False
    whole = Breaks(adam, dropout=0.0)
    end = state(whole, fit(whole, tmp_path, guard(14, looks=LONGER), batches=32))
    again = Breaks(adam, dropout=0.0)
    made = fit(again, tmp_path, guard(14, looks=LONGER), batches=32, ckpt_path=str(tmp_path / "step=15.ckpt"))
    assert same(state(again, made), end)


def test_an_epoch_that_is_cut_in_the_middle_of_a_trial_has_healthy_weights(tmp_path: Path) -> None:
    class Cuts(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            return -1 if self.number == 14 else None

        def on_train_epoch_end(self) -> None:
            ends.append([t.clone() for t in self.state_dict().values()])

    ends: list[Any] = []
    model, rests, watching = Cuts(momentum), Books(), guard(14)
    fit(model, tmp_path, rests, watching, batches=20)
    assert same(ends[0], rests.batches[13][: len(ends[0])])
    assert watching.record.counts["trials_passed"] == 1


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_in_its_middle_the_run_ends_as_the_uninterrupted_one(lag: Any, accumulate: int, tmp_path: Path) -> None:
    def run(*more: Any, **settings: Any) -> Any:
        model, watching = Net(cosine, dropout=0.0), guard(14, looks=LONGER, lag=lag)
        settings = {"accumulate_grad_batches": accumulate, "max_epochs": 2 * accumulate, **settings}
        made = fit(model, tmp_path, watching, *more, **settings)
        return state(model, made), watching.states, watching.summary()

    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    end, states, numbers = run(keep, enable_checkpointing=True)
    assert numbers["trials_passed"] == 1
    for step in range(13, 21):
        path = tmp_path / f"step={step}.ckpt"
        torch.load(path, weights_only=True)
        again = run(ckpt_path=str(path))
        assert (again[1], again[2]) == (states, numbers), step
        assert same(again[0], end), step


def test_without_saved_copies_a_resumed_run_breaks_its_trial_off(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(Net(adam), tmp_path, guard(14, save_snapshots=False), keep, enable_checkpointing=True)
    watching = guard(14, save_snapshots=False)
    fit(Net(adam), tmp_path, watching, ckpt_path=str(tmp_path / "step=15.ckpt"))
    assert "broken off 15" in watching.states[0].marks
    assert not watching.trying
    assert watching.summary()["judged"] == 32


# together with others --------------------------------------------------------------------------------------------


def test_a_sweep_waits_for_a_trial_and_a_trial_for_none(tmp_path: Path) -> None:
    def watch(*_: Any) -> None:
        both.append((finder.sweeping, watching.trying))
        if watching.trying and not any(trying for _, trying in both[:-1]):
            finder.request("in the midst of a trial")

    finder = llr.LRFinder(at=None, steps=20, min_lr=1e-4, apply=False, progress_bar=False)
    both: list[tuple[bool, bool]] = []
    watching = guard(8, looks=SIDES * 2)
    watcher = pl.callbacks.LambdaCallback(on_train_batch_end=watch)
    fit(Net(), tmp_path, finder, watcher, watching, max_epochs=5)
    assert len(finder.findings) == 1
    assert watching.record.counts["trials_passed"] == 1
    assert (True, False) in both
    assert (False, True) in both
    assert (True, True) not in both


def test_settling_and_a_second_fit(tmp_path: Path) -> None:
    watching = guard(8)
    settled: list[bool] = []
    watcher = pl.callbacks.LambdaCallback(on_train_batch_end=lambda *_: settled.append(watching.settling))
    fit(Net(), tmp_path, watching, watcher)
    assert settled == [7 <= batch < 11 for batch in range(2 * BATCHES)]
    fit(Net(), tmp_path, watching)
    assert watching.record.counts["trials_passed"] == 1


# limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0, 1])
def test_a_limit_is_what_clipping_by_norm_does(lag: Any, tmp_path: Path) -> None:
    watching, model = guard(limit=0.3, lag=lag), Net(momentum, dropout=0.0)
    fit(model, tmp_path, watching)
    plain = Net(momentum, dropout=0.0)
    fit(plain, tmp_path, gradient_clip_val=0.3)
    counts = watching.record.counts
    assert counts["limited"] > 5
    if lag:
        # the first update is made before there is a verdict
        assert counts["limited"] <= 2 * BATCHES
    else:
        for a, b in zip(model.weights(), plain.weights(), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    assert watching.updates_lost == 0


def test_with_lag_what_is_not_finite_never_gets_into_weights_buffers_or_moments(tmp_path: Path) -> None:
    class Bad(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            images = batch[0] * math.nan if self.number in (10, 11, 20) else batch[0]
            return super().training_step([images, batch[1]], batch_idx)

    watching, model, rests = guard(lag=1), Bad(adam), Books()
    made = fit(model, tmp_path, rests, watching)
    assert (watching.skips, watching.rewinds, watching.updates_lost) == (3, 0, 3)
    assert all(bool(t.isfinite().all()) for t in state(model, made)[: len(model.state_dict())])
    for held in made.optimizers[0].state.values():
        assert all(bool(value.isfinite().all()) for value in held.values())


# several ranks ---------------------------------------------------------------------------------------------------


class Share(Loader):
    """Of each batch this rank's half."""

    def __init__(self, rank: int) -> None:
        super().__init__(BATCHES, 8, offset=8 * BATCHES * rank)


def fit_on_a_rank(root: str, looks: Any, kind: Any, lag: Any) -> Any:
    model, rests = Net(adam, dropout=0.0), Books()
    more = {"kind": kind, "outcome": "weights" if kind == "rewind" else "passed"}
    watching = guard(8, 24, looks=looks, lag=lag, **more)
    made = trainer(root, max_epochs=3, callbacks=[rests, watching], devices=2, strategy="ddp")
    made.fit(model, Share(made.global_rank), held_out())
    weights = [w.tolist() for w in model.weights()]
    return weights, watching.states, watching.summary(), [same(rests.batches[k], rests.batches[8]) for k in (9, 10)]


@pytest.mark.parametrize(("kind", "lag"), [("hold", 0), ("rewind", 0), ("hold", 1)])
def test_ranks_try_out_alike(kind: Any, lag: Any, pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_on_a_rank, str(tmp_path), LONGER, kind, lag)
    assert first[0] == second[0]
    assert first[1] == second[1]
    assert {**first[2]} == {**second[2]}
    assert first[3] == [True, True] == second[3]


def fit_sharded(root: str, limit: float) -> Any:
    from pytorch_lightning.strategies import ModelParallelStrategy

    model, watching = Sharded(adam), guard(8, 24, looks=LONGER, limit=limit)
    kept: list[list[Tensor]] = []
    watcher = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_: kept.append([p.to_local().clone() for p in model.net.parameters()])  # pyright: ignore
    )
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    made = trainer(root, max_epochs=3, callbacks=[watcher, watching], devices=2, strategy=strategy)
    made.fit(model, Share(made.global_rank))
    weights = [p.full_tensor().tolist() for p in model.net.parameters()]  # pyright: ignore
    return weights, watching.states, watching.summary(), all(same(kept[k], kept[6]) for k in range(7, 13))


@pytest.mark.parametrize("limit", [math.inf, 0.2])
def test_sharded_weights_are_tried_out_shard_by_shard(limit: float, pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_sharded, str(tmp_path), limit)
    assert first == second
    assert first[3]
    assert first[2]["trials_passed"] == 2
    assert (first[2]["limited"] > 0) == (limit < 1.0)


# every way to train ------------------------------------------------------------------------------------------------


def with_trials() -> list[Any]:
    return [guard(8, 20, 33, looks=LONGER), llr.Warmup(4)]


@pytest.mark.filterwarnings("ignore:.*the dataloader.*", "ignore::UserWarning")
@pytest.mark.parametrize("name", [name for name in WAYS if "DivergenceGuard" not in WAYS[name].without])
def test_a_trial_keeps_every_invariant_in_every_way_to_train(name: str, tmp_path: Path) -> None:
    way = WAYS[name]
    without, ours = Fit(way, tmp_path / "plain"), with_trials()
    steps = [0, *(rest["step"] for rest in without.witness.rests)]
    updating = [b for b in range(len(without.witness.rests)) if steps[b + 1] > steps[b]]
    # within the second trial
    save = next((b for b in updating if steps[b + 1] >= 22), None) if way.whole and way.resumes else None
    run = Fit(way, tmp_path / "run", ours, None, save)
    check(run, without)
    counts = ours[0].record.counts
    assert counts["trials_passed"] >= 1 or counts["judged"] < 8 + len(LONGER), counts
    if save is not None:
        rest = Fit(way, tmp_path / "rest", with_trials(), None, resume=tmp_path / "run" / "mid.ckpt")
        check_resumed(rest, run)
