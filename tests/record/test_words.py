"""What people read: one clock, incidents that are counted, drifts that are true, levels of the console."""

from __future__ import annotations

import contextlib
import csv
import itertools
import logging
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

import lightning_lr as llr
from lightning_lr.callbacks.base import LRCallback
from lightning_lr.console import count
from lightning_lr.record.drift import Drift
from lightning_lr.record.repeats import QUIET, Repeats
from tests.faulty import Faulty, fit
from tests.logged import two_of_a_type
from tests.pool import Pool
from tests.small import Loader, Model, held_out, sgd, trainer

CONSOLE = "pytorch_lightning.utilities.rank_zero"


class Scripted(LRCallback):
    """Sets its factor from a table by update; the last one holds."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.factors = factors

    def before_update(self, optimizer: int) -> None:
        number = min(self.ledger.updates(optimizer), len(self.factors) - 1)
        self.ledger.set_factor(self.name, self.factors[number], "by the book", optimizer=optimizer)


def story(root: Path, factors: list[float]) -> list[str]:
    monitor = llr.LRMonitor(layout=False)
    fit = trainer(root, max_epochs=1, callbacks=[Scripted(factors), monitor], logger=CSVLogger(root))
    fit.fit(Model(sgd), Loader(len(factors) + 3, 4))
    return monitor.story


def curve(start: float, growth: float, number: int) -> list[float]:
    return [start * growth**i for i in range(number)]


# drifts ------------------------------------------------------------------------------------------------------------


def test_a_drop_is_told_on_its_own_and_the_slow_growth_after_it_as_a_drift(tmp_path: Path) -> None:
    lines = story(tmp_path, [*[1.0] * 10, *curve(0.125, 1.01, 20)])
    drops = [line for line in lines if "1 -> 0.125: by the book" in line]
    assert len(drops) == 1
    assert drops[0].startswith("step 10: SGD: 0.1 -> 0.0125:")
    (drift,) = [line for line in lines if "changes" in line]
    assert drift.endswith("SGD: Scripted 0.125 -> 0.151014 in 19 changes, steps 11 to 29")


def test_a_drop_within_a_drift_is_told_on_its_own(tmp_path: Path) -> None:
    lines = story(tmp_path, [*curve(1.0, 0.99, 20), *curve(0.4, 1.3, 8)])
    assert [line for line in lines if line.startswith("step 20: SGD: 0.0826169 -> 0.04: Scripted 0.826169 -> 0.4")]
    drifts = [line.split("Scripted ")[1] for line in lines if "changes" in line]
    assert drifts == [
        "1 -> 0.826169 in 19 changes, steps 1 to 19",
        "0.4 -> 2.50994 in 7 changes, steps 21 to 27",
    ]


def test_a_factor_that_falls_and_grows_is_told_with_its_lowest_value(tmp_path: Path) -> None:
    lines = story(tmp_path, [*curve(1.0, 0.95, 11), *curve(0.6, 1.05, 10)])
    (drift,) = [line for line in lines if "changes" in line]
    assert drift.endswith("Scripted 1 -> 0.930797 in 20 changes, lowest 0.598737, steps 1 to 20")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (curve(0.1, 1.5, 6), "0.1 -> 0.759375 in 5 changes, steps 1 to 5"),
        ([1.0, 1.05, 1.1, 1.15, 1.1, 1.05], "1 -> 1.05 in 5 changes, highest 1.15, steps 1 to 5"),
        ([1.0, 0.95, 1.0, 1.05, 1.0], "1 -> 1 in 4 changes, lowest 0.95, highest 1.05, steps 1 to 4"),
    ],
)
def test_a_drift_says_what_lay_beyond_its_ends(values: list[float], words: str) -> None:
    drift = Drift.begin(values[0], values[1], at=1, step=1)
    for at, (old, new) in enumerate(itertools.pairwise(values[1:]), start=2):
        assert drift.takes(old, new, at=at, step=at)
    assert drift.words == words


@pytest.mark.parametrize(
    "factors",
    [
        [(k + 1) / 40 for k in range(40)],
        [((k + 1) / 20) ** 2 for k in range(20)],
        [k / 10 for k in range(11)],
        curve(1e-4, 1.6, 20),
        [1 - k / 12 for k in range(13)],
    ],
)
def test_every_ramp_is_one_drift(factors: list[float], tmp_path: Path) -> None:
    assert len([line for line in story(tmp_path, factors) if "changes" in line]) == 1


# incidents ---------------------------------------------------------------------------------------------------------


def incidents(guard: llr.DivergenceGuard) -> list[str]:
    return [line for line in guard.journal.story if "DivergenceGuard: dropped" in line]


@pytest.mark.parametrize("apart", [1, 7])
def test_fifty_bad_batches_are_four_lines_and_fifty_points(
    apart: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults = {30 + apart * i: "nan" for i in range(50)}
    guard = llr.DivergenceGuard(snapshot_every=10, trials=False)
    epochs = (40 + apart * 50) // 12
    with caplog.at_level(logging.INFO, CONSOLE):
        fit(Faulty(faults=faults), tmp_path, guard, epochs=epochs, logger=CSVLogger(tmp_path, name="csv"))
    assert guard.skips == 50
    lines = incidents(guard)
    assert len(lines) == 4
    assert [line.split(":")[0] for line in lines[:3]] == [f"step {30 + apart * i}" for i in range(3)]
    assert lines[2].endswith("; more like this are counted")
    last = f"dropped 47 more like this, steps {30 + 3 * apart} to {30 + 49 * apart} (last: loss nan, gradient norm nan)"
    assert lines[3].endswith(last)
    told = [record.message for record in caplog.records if "DivergenceGuard: dropped" in record.message]
    assert told == lines
    with open(tmp_path / "csv" / "version_0" / "metrics.csv") as file:
        assert sum(row["lr-incident/loss"] != "" for row in csv.DictReader(file)) == 50


def test_an_incident_of_another_kind_brings_the_count_up_to_date(tmp_path: Path) -> None:
    faults = {**dict.fromkeys(range(30, 36), "nan"), 45: "grad", 46: "nan"}
    guard = llr.DivergenceGuard(snapshot_every=10, trials=False)
    fit(Faulty(faults=faults), tmp_path, guard)
    words = [re.sub(r" \(.*", "", line.split("DivergenceGuard: ")[1]) for line in incidents(guard)]
    assert words == [
        *["dropped this update: the loss is not finite"] * 3,
        "dropped 3 more like this, steps 33 to 35",
        "dropped this update: a gradient is not finite",
        "dropped 1 more like this, step 46",
    ]


def test_after_a_quiet_while_the_count_is_told_and_the_next_one_is_new() -> None:
    repeats = Repeats()
    told = [repeats.add("a", step, "skipped", f"loss {step}", warn=False) for step in range(10)]
    assert told == [1, 2, 3, 0, 0, 0, 0, 0, 0, 0]
    assert list(repeats.due(9 + QUIET - 1)) == []
    assert list(repeats.due(9 + QUIET)) == [("skipped 7 more like this, steps 3 to 9 (last: loss 9)", False)]
    assert list(repeats.all()) == []
    assert repeats.add("a", 9 + QUIET, "skipped", "", warn=False) == 1


def test_a_trial_has_one_clock_and_blames_once(tmp_path: Path) -> None:
    guard = llr.DivergenceGuard(snapshot_every=10)
    fit(Faulty(faults={**dict.fromkeys(range(20, 26), "nan"), 60: "huge"}), tmp_path, guard, epochs=8)
    tried = [line for line in guard.journal.story if re.search("DivergenceGuard: .* here, ", line)]
    assert [line.split("DivergenceGuard: ")[1].split()[0] for line in tried] == ["trial:", "rewound"]
    for line in tried:
        assert line.count("to blame") == 1
        assert not re.search(r"update \d", line)


def test_a_rewind_warns_and_a_drop_informs_and_neither_is_a_python_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guard = llr.DivergenceGuard(snapshot_every=10)
    with caplog.at_level(logging.INFO, CONSOLE):
        fit(Faulty(faults={20: "nan", 40: "weight"}), tmp_path, guard)
    levels = {"dropped this": set[int](), "rewound to": set[int]()}
    for record in caplog.records:
        for words, seen in levels.items():
            if words in record.message:
                seen.add(record.levelno)
    assert levels == {"dropped this": {logging.INFO}, "rewound to": {logging.WARNING}}


# giving up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["raise", "stop"])
def test_giving_up_says_only_what_there_is_to_say(how: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # bad data at healthy weights: no rewind came before
    guard = llr.DivergenceGuard(snapshot_every=10, on_give_up=how, trials=False)
    model = Faulty(faults=dict.fromkeys(range(30, 600), "nan"))
    with caplog.at_level(logging.INFO, CONSOLE):
        if how == "raise":
            with pytest.raises(llr.DivergenceError, match="^DivergenceGuard gives up: "):
                fit(model, tmp_path, guard, epochs=40)
        else:
            fit(model, tmp_path, guard, epochs=40)
            assert [r.levelno for r in caplog.records if "gives up" in r.message] == [logging.WARNING]
    (line,) = [line for line in guard.journal.story if "gives up" in line]
    assert re.match(
        r"step \d+: DivergenceGuard gives up: \d+ updates in a row were not finite while the weights were", line
    )


@pytest.mark.parametrize(("rewinds", "words"), [(1, "after 2 rewinds without lasting progress: ")])
def test_giving_up_counts_its_rewinds_in_english(rewinds: int, words: str, tmp_path: Path) -> None:
    guard = llr.DivergenceGuard(snapshot_every=10, max_rewinds=rewinds)
    with pytest.raises(llr.DivergenceError, match=f"gives up {words}"):
        fit(Faulty(faults=dict.fromkeys(range(30, 200), "weight")), tmp_path, guard, epochs=20)
    assert all(not re.search(r"\b1 (updates|rewinds)\b", line) for line in guard.journal.story)


def test_one_is_not_many() -> None:
    assert [count(n, "rewind") for n in range(3)] == ["0 rewinds", "1 rewind", "2 rewinds"]


# one clock ---------------------------------------------------------------------------------------------------------


class Weights(pl.Callback):
    """The weights that each step began with."""

    def __init__(self) -> None:
        self.began: dict[int, torch.Tensor] = {}
        self.ended: dict[int, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        self.began.setdefault(step, pl_module.head.weight.detach().clone())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.ended[trainer.fit_loop.epoch_loop._batches_that_stepped] = pl_module.head.weight.detach().clone()


class Spoiled(Model):
    """Whose weights break at one step."""

    def __init__(self, at: int = -1) -> None:
        super().__init__(sgd)
        self.at = at

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.fit_loop.epoch_loop._batches_that_stepped == self.at:
            with torch.no_grad():
                self.head.weight[0] = torch.nan
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:the checkpoint holds no state of", "ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_rewind_names_the_step_whose_weights_come_back(accumulate: int, tmp_path: Path) -> None:
    def fit(model: Model, epochs: int, *callbacks: Any, ckpt_path: Any = None) -> Any:
        made = trainer(tmp_path, max_epochs=epochs, callbacks=list(callbacks), accumulate_grad_batches=accumulate)
        made.fit(model, Loader(12 * accumulate, 8), ckpt_path=ckpt_path)
        return made

    # steps are counted from the run's beginning, updates that the guard judges only from the resume on
    fit(Spoiled(), 2).save_checkpoint(tmp_path / "without.ckpt")
    watch, guard = Weights(), llr.DivergenceGuard(snapshot_every=10)
    fit(Spoiled(65), 7, guard, watch, ckpt_path=tmp_path / "without.ckpt")
    (line,) = [line for line in guard.journal.story if "rewound" in line]
    found = re.match(r"step 65: DivergenceGuard: rewound to step (\d+) \((\d+) updates lost\)", line)
    assert found
    target, lost = int(found[1]), int(found[2])
    assert 24 < target < 65
    assert lost == 65 - target + 1
    assert torch.equal(watch.ended[65], watch.began[target])
    assert not torch.equal(watch.ended[65], watch.began[target + 1])


def test_a_resumed_run_names_the_same_step(tmp_path: Path) -> None:
    lines = []
    for resumed in (False, True):
        guard = llr.DivergenceGuard(snapshot_every=10, save_snapshots=True)
        path = tmp_path / "half.ckpt"
        model = Faulty(faults={40: "weight"})
        if resumed:
            fit(
                Faulty(), tmp_path, llr.DivergenceGuard(snapshot_every=10, save_snapshots=True), epochs=3
            ).save_checkpoint(path)
            fit(model, tmp_path, guard, ckpt_path=path)
        else:
            fit(model, tmp_path, guard)
        lines += [line for line in guard.journal.story if "rewound to step" in line]
    assert len(lines) == 2
    assert lines[0] == lines[1]


def test_every_line_of_the_guard_on_the_console_begins_with_the_loggers_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guard, monitor = llr.DivergenceGuard(snapshot_every=10, trials=False), llr.LRMonitor()
    with caplog.at_level(logging.INFO, CONSOLE):
        fit(Faulty(faults={20: "nan", 40: "weight"}), tmp_path, guard, monitor, logger=CSVLogger(tmp_path))
    told = [r.message for r in caplog.records if "DivergenceGuard" in r.message and "a copy takes" not in r.message]
    assert len(told) == 3
    assert told == [line for line in monitor.story if ": DivergenceGuard: " in line]
    assert not [line for line in monitor.story if re.search(r"update \d", line)]


def test_the_guards_last_words_are_told_whoever_comes_first(tmp_path: Path) -> None:
    guard = llr.DivergenceGuard(snapshot_every=10)
    fit(Faulty(faults={20: "nan"}), tmp_path, llr.Warmup(3), guard)
    assert re.match(
        r"step 72: DivergenceGuard: 72 updates judged: 1 dropped, 1 update lost; copies ", guard.journal.story[-1]
    )


def test_of_several_optimizers_the_one_that_was_dropped_is_named(tmp_path: Path) -> None:
    class Pair(Model):
        """Two nets, each with a loss of its own; one gradient of the second is broken once."""

        def __init__(self) -> None:
            super().__init__(two_of_a_type, 4)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for index, optimizer in enumerate(self.optimizers()):
                optimizer.zero_grad()
                self.manual_backward(torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))
                if index and self.trainer.fit_loop.epoch_loop.total_batch_idx == 20:
                    self.backbone.bias.grad[0] = torch.nan
                optimizer.step()

    guard = llr.DivergenceGuard(snapshot_every=10)
    trainer(tmp_path, max_epochs=3, callbacks=[guard]).fit(Pair(), Loader(12, 16))
    assert guard.skips == 1
    (line,) = incidents(guard)
    assert line.startswith("step 20: DivergenceGuard: dropped this update of Adam-1: a gradient is not finite")


# changes -----------------------------------------------------------------------------------------------------------


def two_groups(model: Any) -> Any:
    return torch.optim.Adam([{"params": [model.head.weight]}, {"params": [model.head.bias]}], lr=0.1)


def one_named(model: Any) -> Any:
    return torch.optim.Adam([{"params": model.head.parameters(), "name": "head"}], lr=0.1)


@pytest.mark.parametrize(
    ("configure", "tags"),
    [(sgd, ["lr-SGD"]), (two_groups, ["lr-Adam/pg1", "lr-Adam/pg2"]), (one_named, ["lr-Adam/head"])],
)
def test_a_changes_optimizer_and_group_spell_the_tag(configure: Any, tags: list[str], tmp_path: Path) -> None:
    monitor = llr.LRMonitor()
    made = trainer(tmp_path, max_epochs=1, callbacks=[llr.Warmup(2), monitor], logger=CSVLogger(tmp_path))
    made.fit(Model(configure), Loader(3))
    spelt = [f"lr-{c.optimizer}{f'/{c.group}' if c.group else ''}" for c in monitor.changes]
    assert spelt == tags
    assert list(monitor.rates) == tags


# two ranks ---------------------------------------------------------------------------------------------------------


def fit_bad(root: str) -> tuple[list[str], list[str]]:
    model = Faulty(faults=dict.fromkeys(range(20, 30), "nan"), rank=1)
    guard = llr.DivergenceGuard(snapshot_every=10, trials=False)
    made = trainer(root, max_epochs=5, callbacks=[guard], devices=2, strategy="ddp")
    kept: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: kept.append(record.getMessage())  # type: ignore[method-assign]
    console = logging.getLogger(CONSOLE)
    level = console.level
    console.addHandler(handler)
    console.setLevel(logging.INFO)
    try:
        made.fit(model, Loader(12, 16, offset=16 * made.global_rank), held_out())
    finally:
        console.removeHandler(handler)
        console.setLevel(level)
    return list(guard.journal.story), [line for line in kept if "dropped" in line]


def test_two_ranks_count_the_same_and_one_tells(pool: Pool, tmp_path: Path) -> None:
    (first, told), (second, silence) = pool.run(fit_bad, str(tmp_path))
    # the names of what is not finite are each rank's own
    assert [re.sub(r"; not finite: .*?(;|$)", r"\1", line) for line in first] == [
        re.sub(r"; not finite: .*?(;|$)", r"\1", line) for line in second
    ]
    assert len(told) == 5
    assert silence == []


@pytest.mark.parametrize("fails", [False, True])
def test_the_last_line_of_a_run_is_the_address_that_shows_it(
    fails: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(trainer: Any, *_: Any) -> None:
        if fails and trainer.global_step == 5:
            raise RuntimeError("of the user's own")

    callbacks = [llr.Warmup(3), pl.callbacks.LambdaCallback(on_train_batch_end=fail)]
    logger = pl.loggers.TensorBoardLogger(tmp_path / "a folder", name="digits")
    with caplog.at_level(logging.INFO, CONSOLE), contextlib.suppress(RuntimeError):
        trainer(tmp_path, callbacks=callbacks, logger=logger).fit(Model(sgd), Loader(10))
    ours = [record.message for record in caplog.records if "learning rates" in record.message]
    folder = shlex.quote(str(tmp_path / "a folder" / "digits"))
    where = f"tensorboard --logdir {folder}, then http://localhost:6006/#lightning_lr"
    assert ours == [f"what the learning rates did, and why: {where}"]
