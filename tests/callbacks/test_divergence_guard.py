"""`DivergenceGuard` in real fits: what is skipped, what is rewound, what nobody ever sees."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, StochasticWeightAveraging
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn

import lightning_lr as llr
from lightning_lr.callbacks.divergence import DivergenceError, DivergenceGuard
from lightning_lr.callbacks.finder import LRFinder
from tests.faulty import BATCHES, NAN, Faulty, adamw, fit, fit_on_a_rank, momentum, same, state
from tests.pool import Pool
from tests.small import Loader, Model, Sharded, cosine, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")


def rmsprop(module: Any, lr: float = 1e-3) -> Any:
    return torch.optim.RMSprop(module.parameters(), lr=lr, momentum=0.5)


class Watch(pl.Callback):
    """Keeps the state before and after one batch."""

    def __init__(self, at: int) -> None:
        self.at, self.before, self.after = at, [], []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.at:
            self.before = state(pl_module, trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.at:
            self.after = state(pl_module, trainer)


@pytest.mark.parametrize("configure", [adamw, momentum, cosine])
def test_a_healthy_run_has_the_same_bits_with_and_without_the_guard(configure: Any, tmp_path: Path) -> None:
    plain, guarded = Faulty(configure), Faulty(configure)
    first = fit(plain, tmp_path)
    guard = DivergenceGuard(snapshot_every=5)
    second = fit(guarded, tmp_path, guard)
    assert (guard.skips, guard.rewinds) == (0, 0)
    assert same(state(plain, first), state(guarded, second))


@pytest.mark.invariant(10)
@pytest.mark.parametrize("configure", [adamw, momentum, rmsprop])
@pytest.mark.parametrize("fault", ["nan", "grad"])
@pytest.mark.parametrize("way", ["plain", "scaler", "clipped"])
def test_a_dropped_update_moves_not_one_bit(configure: Any, fault: str, way: str, tmp_path: Path) -> None:
    watch, guard, more = Watch(40), DivergenceGuard(snapshot_every=10), {}
    if way == "scaler":
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=1000)
        more["plugins"] = MixedPrecision("16-mixed", "cpu", scaler)
    if way == "clipped":
        more["gradient_clip_val"] = 1.0
    model = Faulty(configure, {40: fault})
    fit(model, tmp_path, watch, guard, **more)
    assert (guard.skips, guard.rewinds) == (1, 0)
    assert watch.before
    assert same(watch.before, watch.after)
    assert guard.ledger.updates(0) == 6 * BATCHES - 1
    assert all(model.finite_at_rest)


class Steep(Faulty):
    """One finite gradient whose square is too large for float32."""

    def on_after_backward(self) -> None:
        if self.fault == "steep":
            self.head.weight.grad = torch.full_like(self.head.weight, 1e25)


@pytest.mark.parametrize("lag", [0, 1])
def test_a_gradient_whose_square_overflows_is_limited_and_with_a_lag_dropped(lag: Any, tmp_path: Path) -> None:
    guard, model = DivergenceGuard(snapshot_every=10, lag=lag), Steep(faults={40: "steep"})
    fit(model, tmp_path, guard)
    found = guard.summary()
    assert (found["limited"], found["dropped"]) == ((0, 1) if lag else (1, 0))
    assert all(model.finite_at_rest)


def test_an_overflow_that_the_scaler_calibrates_is_no_incident(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    guard = DivergenceGuard(snapshot_every=10)
    fit(Faulty(), tmp_path, guard, plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert (guard.skips, guard.rewinds) == (0, 0)
    assert guard.summary()["judged"] < 6 * BATCHES


@pytest.mark.invariant(3)
@pytest.mark.parametrize("configure", [adamw, momentum])
def test_broken_weights_are_rewound_and_never_seen_by_validation_or_checkpoints(configure: Any, tmp_path: Path) -> None:
    model, guard = Faulty(configure, {40: "weight"}), DivergenceGuard(snapshot_every=10)
    keep = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1, save_top_k=-1, save_weights_only=True)
    made = fit(model, tmp_path, guard, keep, enable_checkpointing=True, epochs=15)
    assert guard.rewinds == 1
    assert all(model.seen_by_validation)
    assert len(list((tmp_path / "kept").iterdir())) == 15 * BATCHES
    for path in (tmp_path / "kept").iterdir():
        weights = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(bool((t.abs() < 1e20).all()) for t in weights)
    clean = float(fit(Faulty(configure), tmp_path, epochs=15).callback_metrics["val_loss"])
    assert float(made.callback_metrics["val_loss"]) < clean + 0.1 * (2.3 - clean)


def test_weights_that_are_huge_come_back_after_a_trial_whose_words_name_both_losses(tmp_path: Path) -> None:
    model, guard = Faulty(momentum, {60: "huge"}), DivergenceGuard(snapshot_every=10)
    fit(model, tmp_path, guard, epochs=10, logger=True)
    counts = guard.summary()
    assert (counts["trials_weights"], counts["rewinds"]) == (1, 1)
    # a gradient that is not finite is dropped meanwhile
    assert counts["dropped"] <= 2
    assert model.finite_at_rest[-1]
    assert not all(model.finite_at_rest)
    (line,) = [line for line in guard.journal.story if "rewound to step" in line]
    numbers = r"loss (?:or gradient )?(\S+) here, (\S+) at the copy's weights .*the weights are to blame"
    found = re.search(r"rewound to step (\d+) .*" + numbers, line)
    assert found, line
    step, here, there = map(float, found.groups())
    assert here > 1e6
    assert there < CHANCE
    assert 0 < step < 60


CHANCE = math.log(10)
"""The loss of a net that knows nothing of the ten digits."""


@pytest.mark.parametrize(("configure", "lr", "most"), [(adamw, 0.3, 0.75), (momentum, 5.0, 0.75)])
def test_a_rate_that_kills_most_stock_runs_is_survived_by_most_with_the_guard(
    configure: Any, lr: float, most: float, tmp_path: Path
) -> None:
    """A share of several seeds: how a single run goes hangs on the processor's kernels."""
    ends: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(4):
        for guarded in ends:
            callbacks = [DivergenceGuard(snapshot_every=10)] if guarded else []
            model = reseeded(Faulty(lambda m: configure(m, lr)), seed)
            made = fit(model, tmp_path, *callbacks, epochs=25)
            ends[guarded].append(float(made.callback_metrics["val_loss"]))
            assert made.optimizers[0].param_groups[0]["lr"] == lr
            assert all(guard.rewinds >= 1 for guard in callbacks)
    learned = {guarded: sum(end < CHANCE / 2 for end in found) / 4 for guarded, found in ends.items()}
    assert learned[True] >= most > 2 * learned[False], ends


def reseeded(model: Model, seed: int) -> Model:
    """The model with other initial weights."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.BatchNorm1d)):
            module.reset_parameters()
    return model


def test_bad_batches_in_a_row_are_no_reason_to_blame_the_weights(tmp_path: Path) -> None:
    model, guard = Faulty(momentum, dict.fromkeys(range(60, 63), "nanloss")), DivergenceGuard(snapshot_every=10)
    fit(model, tmp_path, guard, epochs=10)
    assert (guard.rewinds, guard.summary()["factor"]) == (0, 1.0)
    assert 3 <= guard.updates_lost <= 8


INCIDENT = {20: "nan", 33: "weight", 50: "loss", 60: "grad"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    root = tmp_path_factory.mktemp("resume")
    model, guard = Faulty(cosine, INCIDENT), DivergenceGuard(snapshot_every=6, save_snapshots=True)
    keep = ModelCheckpoint(root / "kept", "{step}", every_n_train_steps=1, save_top_k=-1)
    made = fit(model, root, guard, keep, enable_checkpointing=True)
    assert guard.rewinds >= 1
    assert guard.skips >= 2
    return root, state(model, made), (guard.skips, guard.rewinds, guard.states, guard.ledger.state_dict())


@pytest.mark.parametrize("step", [1, 5, 9, *range(18, 24), *range(30, 48), 51, 59, 61])
def test_resumed_after_any_update_the_run_ends_as_the_uninterrupted_one(step: int, uninterrupted: Any) -> None:
    root, end, decisions = uninterrupted
    model, guard = Faulty(cosine, INCIDENT), DivergenceGuard(snapshot_every=6, save_snapshots=True)
    path = root / "kept" / f"step={step}.ckpt"
    torch.load(path, weights_only=True)
    made = fit(model, root / "again", guard, ckpt_path=str(path))
    assert (guard.skips, guard.rewinds, guard.states, guard.ledger.state_dict()) == decisions
    assert same(state(model, made), end)


def test_without_saved_snapshots_the_resumed_weights_are_the_first_one(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(Faulty(), tmp_path, DivergenceGuard(save_snapshots=False), keep, enable_checkpointing=True, epochs=3)
    guard = DivergenceGuard(save_snapshots=False)
    model = Faulty(faults={33: "weight"})
    fit(model, tmp_path, guard, ckpt_path=str(tmp_path / "kept" / "step=30.ckpt"), epochs=6)
    assert guard.rewinds == 1
    assert model.is_finite()


@pytest.mark.invariant(7)
def test_accumulated_micro_batches_are_one_update(tmp_path: Path) -> None:
    guard = DivergenceGuard(snapshot_every=10)
    model = Faulty(faults={42: "nan"})
    fit(model, tmp_path, guard, accumulate_grad_batches=4, epochs=8)
    assert (guard.skips, guard.summary()["judged"]) == (1, 8 * BATCHES // 4)
    assert model.is_finite()


class TwoOptimizers(Faulty):
    """Manual optimization: two optimizers, each with its own loss."""

    def __init__(self, faults: dict[int, str]) -> None:
        super().__init__(lambda m: [adamw(m.backbone), adamw(m.head)], faults)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        for optimizer in self.optimizers():  # pyright: ignore[reportGeneralTypeIssues]
            loss = super().training_step(batch, batch_idx)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


def test_two_optimizers_are_judged_each_and_rewound_together(tmp_path: Path) -> None:
    guard = DivergenceGuard(snapshot_every=10)
    model = TwoOptimizers({30: "nan", 45: "weight"})
    fit(model, tmp_path, guard)
    assert guard.skips >= 2
    assert guard.rewinds >= 1
    assert model.is_finite()


def test_averaged_weights_are_rewound_too(tmp_path: Path) -> None:
    averaging = pytest.importorskip("pytorch_lightning.callbacks.weight_averaging", reason="new in Lightning 2.6")
    model, guard = Faulty(faults={40: "weight"}), DivergenceGuard(snapshot_every=10)
    fit(model, tmp_path, guard, averaging.WeightAveraging())
    assert guard.rewinds == 1
    assert model.is_finite()


class Averaged(Faulty):
    """Keeps its weights at the start of each epoch, and after each rewind; may break at the end of an epoch."""

    def __init__(self, guard: DivergenceGuard, faults: dict[int, str], breaks: int | None = None) -> None:
        super().__init__(momentum, faults)
        # without: Lightning's callback runs an epoch more for its statistics
        self.norm = nn.Identity()
        self.guard, self.breaks, self.rewinds = guard, breaks, 0
        self.samples: dict[str, list[Tensor]] = {}

    def on_train_epoch_start(self) -> None:
        self.samples[f"epoch {self.current_epoch}"] = self.weights()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.guard.rewinds > self.rewinds:
            self.rewinds = self.guard.rewinds
            self.samples["rewind"] = self.weights()

    def on_train_epoch_end(self) -> None:
        if self.current_epoch == self.breaks:
            with torch.no_grad():
                self.head.weight[0, :] = NAN

    def mean(self, *names: str) -> list[Tensor]:
        return [torch.stack(list(of)).mean(0) for of in zip(*(self.samples[name] for name in names), strict=True)]


# epochs begin at updates 72, 84 and 96, and copies are of 70, 80 and 90
@pytest.mark.parametrize(
    ("first", "faults", "breaks", "mean"),
    [
        (8, {98: "weight"}, None, ["rewind"]),
        (8, {}, 7, ["rewind"]),
        (7, {86: "weight"}, None, ["rewind", "epoch 8"]),
        (6, {86: "weight"}, None, ["epoch 6", "epoch 8"]),
        (7, {94: "weight"}, None, ["epoch 7", "epoch 8"]),
        (8, {75: "weight"}, None, ["epoch 8"]),
    ],
    ids=["all taken back", "of broken weights", "and more come", "some taken back", "none taken back", "none yet"],
)
def test_an_average_by_swa_holds_no_weights_that_a_rewind_took_back(
    first: int, faults: dict[int, str], breaks: int | None, mean: list[str], tmp_path: Path
) -> None:
    guard = DivergenceGuard(snapshot_every=10)
    model, average = Averaged(guard, faults, breaks), StochasticWeightAveraging(0.02, swa_epoch_start=first + 1)
    fit(model, tmp_path, guard, average, epochs=9)
    assert guard.rewinds == 1
    torch.testing.assert_close(model.weights(), model.mean(*mean))


def test_an_average_by_swa_that_was_resumed_begins_anew_too(tmp_path: Path) -> None:
    def run(*faults: int, **more: Any) -> Averaged:
        guard = DivergenceGuard(snapshot_every=10, save_snapshots=True)
        model = Averaged(guard, dict.fromkeys(faults, "weight"))
        fit(model, tmp_path, guard, StochasticWeightAveraging(0.02, swa_epoch_start=9), *more.pop("to", ()), **more)
        return model

    # the copy is of 90, and the only epoch that is averaged in begins at 96
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=98, save_top_k=-1)
    run(to=[saver], epochs=9, enable_checkpointing=True)
    model = run(98, epochs=9, ckpt_path=saver.best_model_path)
    assert model.guard.rewinds == 1
    torch.testing.assert_close(model.weights(), model.samples["rewind"])


def test_an_average_that_a_rewind_empties_begins_anew(tmp_path: Path) -> None:
    averaging = pytest.importorskip("pytorch_lightning.callbacks.weight_averaging", reason="new in Lightning 2.6")

    class Once(averaging.WeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return epoch_idx == 7

    guard = DivergenceGuard(snapshot_every=10)
    model = Averaged(guard, {98: "weight"})
    fit(model, tmp_path, guard, Once(), epochs=9)
    assert guard.rewinds == 1
    torch.testing.assert_close(model.weights(), model.samples["rewind"])


@pytest.mark.parametrize("apart", [1, 2, 5])
def test_weights_that_break_again_right_after_a_rewind_come_back_again(apart: int, tmp_path: Path) -> None:
    guard = DivergenceGuard(snapshot_every=5)
    model = Faulty(momentum, {40: "weight", 40 + apart: "weight"})
    fit(model, tmp_path, guard)
    assert guard.rewinds == 2
    assert guard.skips <= 4
    assert all(model.finite_at_rest)


def always(faults: str, start: int = 30) -> dict[int, str]:
    return dict.fromkeys(range(start, 1000), faults)


def test_it_gives_up_with_healthy_weights_and_says_so(tmp_path: Path) -> None:
    model, guard = Faulty(faults=always("weight")), DivergenceGuard(snapshot_every=10, max_rewinds=2)
    with pytest.raises(DivergenceError, match="gives up.*last healthy weights"):
        fit(model, tmp_path, guard, epochs=20)
    assert model.is_finite()


def test_it_can_stop_the_run_cleanly_instead(tmp_path: Path) -> None:
    model = Faulty(faults=always("weight"))
    guard = DivergenceGuard(snapshot_every=10, max_rewinds=2, on_give_up="stop")
    made = fit(model, tmp_path, guard, epochs=20)
    assert made.current_epoch < 19
    assert model.is_finite()


def test_an_incident_leaves_batch_signals_and_names(tmp_path: Path) -> None:
    guard = DivergenceGuard(snapshot_every=10, incidents_dir=tmp_path / "incidents")
    fit(Faulty(faults={40: "grad"}), tmp_path, guard)
    (folder,) = (tmp_path / "incidents").iterdir()
    facts = json.loads((folder / "incident.json").read_text())
    assert facts["parameters_with_nonfinite_gradients"] == ["head.bias"]
    assert (facts["update"], facts["rank"], facts["verdict"]) == (41, 0, "drop")
    images, labels = torch.load(folder / "batch.pt", weights_only=True)[0]
    assert (images.shape, labels.shape) == ((16, 64), (16,))
    rows = list(csv.reader((folder / "signals.csv").read_text().splitlines()))
    assert len(rows) == 42
    assert rows[-1][-1] == "drop"


def test_the_story_is_told_once_for_each_incident(tmp_path: Path) -> None:
    guard = DivergenceGuard(snapshot_every=10)
    fit(Faulty(faults={20: "nan", 40: "weight"}), tmp_path, guard, logger=True)
    story = [line for line in guard.journal.story if re.search("DivergenceGuard: (dropped|rewound)", line)]
    assert len(story) == guard.skips + guard.rewinds
    assert "dropped this update: the loss is not finite" in story[0]
    assert any("rewound to step" in line for line in story)
    assert any("updates judged" in line for line in guard.journal.story)


def test_a_rewind_makes_plateau_decay_forget(tmp_path: Path) -> None:
    class Forgets(llr.PlateauDecay):
        def forget(self) -> None:
            super().forget()
            forgotten.append(guard.rewinds)

    forgotten: list[int] = []
    guard = DivergenceGuard(snapshot_every=10)
    fit(Faulty(faults={40: "weight"}), tmp_path, guard, Forgets("val_loss", patience=100))
    assert forgotten == [1]


def test_after_three_rewinds_without_progress_a_finder_is_asked_for_a_rate(tmp_path: Path) -> None:
    finder, guard = LRFinder(at=None, progress_bar=False), DivergenceGuard(snapshot_every=10)
    model = Faulty(lambda m: momentum(m, 5e4))
    made = fit(model, tmp_path, guard, finder, epochs=24)
    assert guard.rewinds >= 3
    assert len(finder.findings) == 1
    assert finder.result is not None
    assert finder.result.suggestion is not None
    assert finder.result.suggestion < 5.0
    assert made.callback_metrics["val_loss"] < 1.5


def test_memory_for_fewer_than_two_copies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="memory_limit must hold two copies of .* bytes each, got 10"):
        fit(Faulty(), tmp_path, DivergenceGuard(memory_limit=10))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"snapshot_every": 0}, "snapshot_every must be a whole number >= 1 or 'auto', got 0"),
        ({"snapshot_every": "often"}, "snapshot_every must be"),
        ({"limit": 1.0}, "limit must be a number > 1 .*, or None for no limit, got 1.0"),
        ({"trials": 3}, "trials must be True or False, got 3"),
        ({"save_snapshots": None}, "save_snapshots must be True or False, got None"),
        ({"loss_falls": "yes"}, "loss_falls must be True, False, or None"),
        ({"memory_limit": 0}, "memory_limit must be"),
        ({"on_give_up": "cry"}, "on_give_up must be 'raise' or 'stop', got 'cry'"),
        ({"backoff": 2.0}, "backoff must be in"),
    ],
)
def test_settings_outside_their_bounds_are_refused(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DivergenceGuard(**settings)


def test_a_second_guard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one DivergenceGuard.* got 2 \(DivergenceGuard, Second\): leave Divergence"):
        fit(Faulty(), tmp_path, DivergenceGuard(), DivergenceGuard(name="Second"))


def test_a_second_fit_starts_from_nothing(tmp_path: Path) -> None:
    guard = DivergenceGuard(snapshot_every=10)
    fit(Faulty(faults={40: "weight"}), tmp_path, guard)
    model = Faulty()
    made = fit(model, tmp_path, guard)
    plain = Faulty()
    assert same(state(model, made), state(plain, fit(plain, tmp_path)))


# several ranks ---------------------------------------------------------------------------------------------------


@pytest.mark.invariant(4)
def test_a_fault_on_one_rank_is_everybodys(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_on_a_rank, str(tmp_path), {20: "nan", 30: "grad", 40: "loss"})
    assert first == second
    assert first[3] == 2


def test_weights_that_break_on_one_rank_come_back_on_all(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_on_a_rank, str(tmp_path), {40: "weight"})
    assert first == second
    assert first[4] == 1


def fit_with_a_trial(root: str, save: int | None, path: str | None, rank: int | None, faults: dict[int, str]) -> Any:
    """Weights, verdicts, rates and numbers; whether a trial was under way when the checkpoint was saved."""
    model, guard = Faulty(momentum, faults, rank=rank), DivergenceGuard(snapshot_every=10, save_snapshots=True)
    verdicts: list[Any] = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            verdicts.append(
                (guard.trying, guard.summary(), [s.to_dict() for s in guard.states], guard.ledger.state_dict())
            )
            if trainer.fit_loop.epoch_loop.total_batch_idx == save:
                trainer.save_checkpoint(f"{root}/mid.ckpt")

    made = trainer(root, max_epochs=10, callbacks=[guard, Keep()], devices=2, strategy="ddp")
    made.fit(model, Loader(BATCHES, 16, offset=16 * made.global_rank), ckpt_path=path)
    end = [v.tolist() if isinstance(v, Tensor) else v for v in state(model, made)]
    # BatchNorm's averages are each rank's own
    return end, [w.tolist() for w in model.weights()], verdicts


@pytest.mark.parametrize(
    ("rank", "faults"),
    [
        (None, {60: "huge"}),
        (1, dict.fromkeys(range(60, 63), "nanloss")),
        (1, dict.fromkeys(range(60, 70), "nanloss")),
        (1, dict.fromkeys(range(60, 70), "loss")),
    ],
)
def test_ranks_see_one_trial_alike(rank: Any, faults: Any, pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_with_a_trial, str(tmp_path), None, None, rank, faults)
    assert first[1] == second[1]
    assert first[2] == second[2]
    counts = first[2][-1][1]
    assert sum(counts[f"trials_{outcome}"] for outcome in ("passed", "data", "weights")) == 1, counts
    assert rank is not None or counts["rewinds"] == 1


def test_ranks_that_resume_in_the_middle_of_a_trial_end_alike(pool: Pool, tmp_path: Path) -> None:
    faults = {60: "huge"}
    whole = pool.run(fit_with_a_trial, str(tmp_path), 63, None, None, faults)
    trying, counts, *_ = whole[0][2][63]
    assert trying
    assert counts["held"] > 0
    again = pool.run(fit_with_a_trial, str(tmp_path), None, str(tmp_path / "mid.ckpt"), None, faults)
    for mine, its in zip(whole, again, strict=True):
        assert its[1] == mine[1]
        assert its[2] == mine[2][64:]
    # rank zero's own buffers and optimizer state are those that the checkpoint holds
    assert again[0][0] == whole[0][0]


def fit_forever_bad(root: str) -> Any:
    return fit_on_a_rank(root, always("weight"), max_rewinds=1)


def test_ranks_give_up_together(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_forever_bad, str(tmp_path))
    assert first == second
    assert "gives up" in first[5]


class Broken(Sharded):
    """With one fault each of two kinds on rank 1."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return loss * NAN if self.global_rank == 1 and self.trainer.global_step == 20 else loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.global_rank == 1 and self.trainer.global_step == 40:
            with torch.no_grad():
                next(self.net.parameters()).to_local().fill_(NAN)  # pyright: ignore


def fit_sharded(root: str) -> Any:
    from pytorch_lightning.strategies import ModelParallelStrategy

    model, guard = Broken(adamw), DivergenceGuard(snapshot_every=10)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    made = trainer(root, max_epochs=6, callbacks=[guard], devices=2, strategy=strategy)
    made.fit(model, Loader(BATCHES, 16, offset=16 * made.global_rank))
    weights = [p.full_tensor().tolist() for p in model.net.parameters()]  # pyright: ignore
    return weights, [s.to_dict() for s in guard.states], guard.skips, guard.rewinds


def test_sharded_weights_are_guarded_shard_by_shard(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_sharded, str(tmp_path))
    assert first == second
    assert first[2] == 1
    assert first[3] == 1
    assert all(abs(x) < 1e3 for row in first[0][0] for x in row)


class Seldom(Faulty):
    """Has a small loss for two batches of three, and for the third none."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return None if batch_idx % 3 == 2 else 1e-3 * super().training_step(batch, batch_idx)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.filterwarnings("ignore:.training_step. returned .None.", "ignore:DivergenceGuard sees no loss")
def test_batches_without_a_loss_are_no_updates_and_no_incidents(lag: Any, tmp_path: Path) -> None:
    guard = DivergenceGuard(snapshot_every=10, lag=lag)
    fit(Seldom(), tmp_path, guard, epochs=8)
    assert (guard.skips, guard.rewinds, guard.updates_lost) == (0, 0, 0)
    assert guard.states[0].update == 8 * BATCHES * 2 // 3


class TwoAtTheEnd(Model):
    """Two optimizers under manual optimization, and a batch of NaN, or weights that break, at the end of an epoch."""

    breaks = False

    def __init__(self) -> None:
        super().__init__(lambda m: [torch.optim.SGD(part.parameters(), lr=0.1) for part in (m.backbone, m.head)], 16)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        bad = self.trainer.fit_loop.epoch_loop.total_batch_idx == 4 * BATCHES - 1
        if bad and self.breaks:
            with torch.no_grad():
                self.head.weight.fill_(NAN)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]) * (NAN if bad else 1.0))
            optimizer.step()


def test_a_rewind_before_validation_leaves_no_job_of_another_optimizer(tmp_path: Path) -> None:
    for breaks in (False, True):
        guard, model = DivergenceGuard(snapshot_every=10, lag=1), TwoAtTheEnd()
        model.breaks = breaks
        fit(model, tmp_path, guard, epochs=6)
        assert (guard.skips, guard.rewinds) == ((0, 1) if breaks else (2, 0))
        assert all(bool(weight.isfinite().all()) for weight in model.weights())


@pytest.mark.filterwarnings("ignore:lightning_lr has seen no step of SGD")
@pytest.mark.parametrize(("second", "every"), [(1, 10), (1, "auto"), (5, 10), (50, 10), (1000, "auto"), (None, 5)])
def test_a_copy_is_proven_however_often_copies_are_taken_and_optimizers_step(
    second: int | None, every: Any, tmp_path: Path
) -> None:
    class Uneven(TwoAtTheEnd):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            number = self.trainer.fit_loop.epoch_loop.total_batch_idx
            for index, optimizer in enumerate(self.optimizers()):
                if index == 0 or (second is not None and number % second == second - 1):
                    optimizer.zero_grad()
                    self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
                    optimizer.step()

    class Look(pl.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            steps.extend(copy.clock for copy in guard.copy_pair.kept)

    steps: list[int] = []
    guard: Any = DivergenceGuard(snapshot_every=every, loss_falls=second is None)
    fit(Uneven(), tmp_path, guard, Look(), epochs=10)
    best, newest = steps
    assert guard.record.counts["judged"] - 50 < best < newest


@pytest.mark.parametrize("lag", [0, 1])
def test_optimizers_that_share_one_backward_pass_share_its_loss(lag: Any, tmp_path: Path) -> None:
    class Shared(TwoAtTheEnd):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            # a loss that is not finite, and gradients that are
            bad = torch.tensor(math.inf if self.trainer.fit_loop.epoch_loop.total_batch_idx == 20 else 0.0)
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss + bad)
            for optimizer in self.optimizers():
                optimizer.step()

    guard: Any = DivergenceGuard(lag=lag)
    # it would warn that it sees no loss
    fit(Shared(), tmp_path, guard)
    assert guard.skips == 2
    first, second = (state.seen.losses for state in guard.states)
    assert first == second
    assert len(set(first)) > 50


def test_what_is_frozen_and_was_never_finite_is_nobodys_fault(tmp_path: Path) -> None:
    model = Faulty(momentum, {20: "nanloss", 40: "nanloss", 60: "weight"})
    model.mask = nn.Parameter(torch.tensor([0.0, -math.inf]), requires_grad=False)
    guard: Any = DivergenceGuard(snapshot_every=10)
    fit(model, tmp_path, guard)
    assert (guard.skips, guard.rewinds) == (2, 1)


class Follows(Faulty):
    """Its teacher, which no optimizer has, follows the head by hand."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.teacher = nn.Linear(32, 10).requires_grad_(False)

    def on_train_batch_end(self, *_: Any) -> None:
        super().on_train_batch_end()
        with torch.no_grad():
            self.teacher.weight.lerp_(self.head.weight, 0.1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        apart = (self.teacher.weight - self.head.weight).square().mean()
        return super().training_step(batch, batch_idx) + apart


def trained(module: Any) -> Any:
    return torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.05)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("optimizer", [trained, momentum])
def test_a_teacher_that_is_written_by_hand_comes_back_too(optimizer: Any, lag: Any, tmp_path: Path) -> None:
    model, guard = Follows(optimizer, {40: "weight"}), DivergenceGuard(lag=lag)
    fit(model, tmp_path, guard)
    assert guard.rewinds == 1
    assert model.is_finite()


def test_frozen_weights_that_no_copy_has_are_named_when_it_gives_up(tmp_path: Path) -> None:
    model, guard = Follows(trained, {4: "weight"}), DivergenceGuard(lag=1)
    with pytest.raises(DivergenceError, match=r"not finite: teacher\.weight$"):
        fit(model, tmp_path, guard)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("bad", [3, 4, 10, 40])
def test_bad_batches_of_two_optimizers_leave_no_trace_in_running_statistics(bad: int, lag: Any, tmp_path: Path) -> None:
    class Normed(TwoAtTheEnd):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(64)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            number = self.trainer.fit_loop.epoch_loop.total_batch_idx
            images = batch[0] * (NAN if 50 <= number < 50 + bad else 1.0)
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(nn.functional.cross_entropy(self(self.norm(images)), batch[1]))
                optimizer.step()

    model, guard = Normed(), DivergenceGuard(snapshot_every=10, lag=lag)
    fit(model, tmp_path, guard, epochs=12)
    assert guard.summary()["held"] > 0
    assert guard.rewinds == 0
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


class Second(pl.Callback):
    """Gives the trainer two optimizers in the middle of an epoch."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == 15:
            trainer.strategy.optimizers = [
                torch.optim.SGD(part.parameters(), lr=0.1) for part in (pl_module.backbone, pl_module.head)
            ]


def test_optimizers_that_are_replaced_within_an_epoch_are_guarded(tmp_path: Path) -> None:
    class OneOrTwo(TwoAtTheEnd):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def optimizers(self, use_pl_optimizer: bool = True) -> Any:
            found = super().optimizers(use_pl_optimizer)
            return found if isinstance(found, list) else [found]

    guard, model = DivergenceGuard(snapshot_every=10), OneOrTwo()
    fit(model, tmp_path, Second(), guard, epochs=6)
    assert len(guard.states) == 2
    assert guard.skips >= 1
    assert all(bool(weight.isfinite().all()) for weight in model.weights())
