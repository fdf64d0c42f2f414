"""What an update does to the weights, made visible: `lr-update/<module>`, and the guard's words."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_lr as llr
from lightning_lr.monitoring.update_ratios import by_module
from tests.pool import Pool
from tests.small import Loader, Model, pl, sgd, trainer

EVERY = 3


def written(root: Path, prefix: str = "lr-update/") -> dict[str, dict[int, float]]:
    """What the CSV file holds: by tag, by step."""
    found: dict[str, dict[int, float]] = {}
    with open(root / "csv" / "version_0" / "metrics.csv") as file:
        for row in csv.DictReader(file):
            for tag, value in row.items():
                if tag.startswith(prefix) and value:
                    found.setdefault(tag.removeprefix(prefix), {})[int(row["step"])] = float(value)
    return found


class Exact(pl.Callback):
    """Works the ratios out of whole tensors: rate x gradient / weight, which is what SGD does."""

    def __init__(self) -> None:
        self.found: dict[int, dict[str, float]] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        squares: dict[str, list[float]] = {}
        for name, p in pl_module.named_parameters():
            if id(p) in held and p.grad is not None:
                change = float((optimizer.param_groups[0]["lr"] * p.grad).double().square().sum())
                for part in (name.rpartition(".")[0] or type(pl_module).__name__, "all"):
                    sums = squares.setdefault(part, [0.0, 0.0])
                    sums[0] += change
                    sums[1] += float(p.detach().double().square().sum())
        ratios = {part: math.sqrt(change / size) for part, (change, size) in squares.items()}
        self.found.setdefault(step, {}).update(ratios)


def run(model: Any, root: Path, *callbacks: Any, batches: int = 12, **kwargs: Any) -> dict[str, dict[int, float]]:
    more = {"log_every_n_steps": EVERY, "max_epochs": 1, **kwargs}
    logger = pl.loggers.CSVLogger(root, name="csv", version=0)
    trainer(root, callbacks=list(callbacks), logger=logger, **more).fit(model, Loader(batches))
    return written(root)


def agree(found: dict[str, dict[int, float]], exact: dict[int, dict[str, float]], steps: list[int]) -> None:
    assert found.keys() == exact[steps[0]].keys()
    for part, points in found.items():
        assert points == pytest.approx({step: exact[step][part] for step in steps}, rel=1e-4), part


@pytest.mark.parametrize(("accumulate", "steps"), [(1, [2, 5, 8, 11]), (2, [2, 5])])
def test_the_ratio_of_plain_sgd_is_rate_times_gradient_by_weight(
    accumulate: int, steps: list[int], tmp_path: Path
) -> None:
    exact = Exact()
    monitor = llr.LRMonitor(update_ratio=True)
    found = run(Model(sgd, hidden=16), tmp_path, monitor, exact, accumulate_grad_batches=accumulate)
    agree(found, exact.found, steps)
    assert found.keys() == {"backbone", "head", "all"}


def test_a_factor_counts(tmp_path: Path) -> None:
    exact = Exact()
    warmup = llr.Warmup(10, shape="constant", start_factor=0.5)
    found = run(Model(sgd), tmp_path, warmup, llr.LRMonitor(update_ratio=True), exact)
    # at rest, and so in the callback, the group holds the scheduler's rate
    assert found["head"][2] == pytest.approx(0.5 * exact.found[2]["head"], rel=1e-4)


class Two(Model):
    """Two optimizers, of which the second holds a weight of the model itself, and of the head the bias."""

    def __init__(self, steps: int = 1) -> None:
        super().__init__(lambda module: None, hidden=8)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.automatic_optimization, self.steps = False, steps

    def configure_optimizers(self) -> Any:
        first = torch.optim.SGD([*self.backbone.parameters(), self.head.weight], lr=0.1)
        return [first, torch.optim.SGD([self.scale, self.head.bias], lr=0.01)]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            for _ in range(self.steps):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self(batch[0]) * self.scale, batch[1])
                self.manual_backward(loss)
                optimizer.step()


def test_two_optimizers_under_manual_optimization_have_curves_of_their_own(tmp_path: Path) -> None:
    # the loggers' step goes by batches
    found = run(Two(), tmp_path, llr.LRMonitor(update_ratio=True))
    assert found.keys() == {"backbone", "head/SGD", "head/SGD-1", "Two", "all/SGD", "all/SGD-1"}
    assert {tuple(points) for points in found.values()} == {(2, 5, 8, 11)}
    assert all(0.0 < value < 1.0 for points in found.values() for value in points.values())


def test_of_several_updates_in_a_batch_the_first_is_written(tmp_path: Path) -> None:
    one = run(Two(), tmp_path / "one", llr.LRMonitor(update_ratio=True), batches=1, log_every_n_steps=1)
    three = run(Two(3), tmp_path / "three", llr.LRMonitor(update_ratio=True), batches=1, log_every_n_steps=1)
    assert three["backbone"] == one["backbone"]


class Nans(Model):
    """Its loss is NaN at the batches named."""

    def __init__(self, at: set[int], hidden: int = 0) -> None:
        super().__init__(sgd, hidden)
        self.at = at

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (math.nan if batch_idx in self.at else 1.0)


def test_of_an_update_that_was_dropped_nothing_is_written(tmp_path: Path) -> None:
    guard = llr.DivergenceGuard(snapshot_every=4)
    found = run(Nans({5}), tmp_path, guard, llr.LRMonitor(update_ratio=True))
    assert guard.skips == 1
    assert list(found["head"]) == [2, 8, 11]


def test_of_a_sweep_nothing_is_written(tmp_path: Path) -> None:
    finder = llr.LRFinder(at=6, steps=20)
    found = run(Model(sgd), tmp_path, finder, llr.LRMonitor(update_ratio=True), batches=30, max_epochs=2)
    (sweep,) = finder.findings
    assert sweep is not None
    steps = list(found["head"])
    assert steps[:2] == [2, 5]
    assert not any(6 <= step < 26 for step in steps)
    assert steps[-1] == 59


@pytest.mark.parametrize("make", [sgd, lambda module: torch.optim.AdamW(module.parameters(), 0.01)])
def test_training_is_the_same_bit_for_bit(make: Any, tmp_path: Path) -> None:
    ends = []
    for ratio in (False, True):
        model = Model(make, hidden=16)
        run(model, tmp_path / str(ratio), llr.LRMonitor(update_ratio=ratio), log_every_n_steps=1)
        ends.append(model.weights())
    assert all(map(torch.equal, *ends))


def test_a_second_fit_and_a_copy_work(tmp_path: Path) -> None:
    import copy

    monitor = llr.LRMonitor(update_ratio=True)
    first = run(Model(sgd), tmp_path / "first", monitor)
    assert run(Model(sgd), tmp_path / "second", copy.deepcopy(monitor)) == first


def test_it_is_off_by_default_and_a_bool() -> None:
    assert not llr.LRMonitor().update_ratio
    with pytest.raises(ValueError, match="update_ratio must be True or False, got 10"):
        llr.LRMonitor(update_ratio=10)  # pyright: ignore[reportArgumentType]


# modules -------------------------------------------------------------------------------------------------------------


def test_many_modules_are_taken_together_by_layer() -> None:
    layers = nn.ModuleList(nn.ModuleDict({name: nn.Linear(1, 1) for name in "abcde"}) for _ in range(40))
    model = nn.ModuleDict({"layers": layers, "head": nn.Linear(1, 1)})
    parts = by_module(model, model.parameters())
    assert list(parts) == [*(f"layers.{layer}" for layer in range(40)), "head"]
    assert sum(len(tensors) for tensors in parts.values()) == len(list(model.parameters()))


def test_shared_compiled_and_foreign_parameters_have_one_name_each() -> None:
    model = nn.Module()
    model.embedding, model.head = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    model.head.weight = model.embedding.weight
    model.wrapped = nn.Module()
    model.wrapped._orig_mod = nn.Linear(1, 1)
    parts = by_module(model, [*model.parameters(), nn.Parameter(torch.ones(1))])
    assert {name: len(tensors) for name, tensors in parts.items()} == {
        "embedding": 1,
        "head": 1,
        "wrapped": 2,
        "other": 1,
    }


# ranks ---------------------------------------------------------------------------------------------------------------


class Cut(Model):
    """Sharded where the strategy shards."""

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, pl.strategies.ModelParallelStrategy):
            from torch.distributed.fsdp import fully_shard

            for part in (self.backbone, self.head):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])


def fit_on_a_rank(root: str, strategy: str) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if strategy:
        chosen = pl.strategies.ModelParallelStrategy(2, 1) if strategy == "fsdp" else strategy
        more = {"devices": 2, "strategy": chosen}
    guard, monitor = llr.DivergenceGuard(snapshot_every=4), llr.LRMonitor(update_ratio=True)
    logger = pl.loggers.CSVLogger(root, name="csv", version=0)
    model = Faulty(sgd, hidden=17)
    fit = trainer(root, callbacks=[guard, monitor], logger=logger, log_every_n_steps=EVERY, max_epochs=1, **more)
    fit.fit(model, Loader(12))
    told = [line for line in monitor.story if "dropped this update" in line]
    return {"told": [re.sub("; not finite.*", "", line) for line in told], "rank": fit.global_rank}


class Faulty(Cut):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (math.nan if batch_idx == 7 else 1.0)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_tell_what_one_process_does(strategy: str, pool: Pool, tmp_path: Path) -> None:
    alone = fit_on_a_rank(str(tmp_path / "one"), "")["told"]
    first, second = pool.run(fit_on_a_rank, str(tmp_path / "two"), strategy)
    assert first["told"] == second["told"]
    assert len(alone) == len(first["told"]) == 1
    # each rank samples its own shard, as many elements as of a whole tensor
    assert moved(first["told"][0]) == pytest.approx(moved(alone[0]), rel=0.1)
    one, two = written(tmp_path / "one"), written(tmp_path / "two")
    assert one.keys() == two.keys() == {"backbone", "head", "all"}
    for part, points in one.items():
        assert two[part] == pytest.approx(points, rel=1e-4), part


# the guard's words ---------------------------------------------------------------------------------------------------


def moved(line: str) -> float:
    found = re.search(r"the update before was (\S+) of the weights' size, usual 1e-3\)", line)
    assert found is not None, line
    return float(found[1])


def test_the_guard_tells_what_the_last_update_did(tmp_path: Path) -> None:
    exact, guard = Exact(), llr.DivergenceGuard(snapshot_every=4, incidents_dir=tmp_path / "incidents")
    run(Nans({0, 5, 6}, hidden=8), tmp_path, guard, exact)
    first, *lines = [line for line in guard.journal.story if "dropped this update" in line]
    # before the first there is none
    assert "changed the weights" not in first
    assert [moved(line) for line in lines] == pytest.approx([exact.found[4]["all"]] * 2, rel=0.05)
    points = written(tmp_path, "lr-incident/update_ratio")[""]
    assert points == pytest.approx({5: exact.found[4]["all"], 6: exact.found[4]["all"]}, rel=0.02)
    (facts,) = (tmp_path / "incidents").glob("step-00000005*/*.json")
    assert json.loads(facts.read_text())["update_ratio"] == pytest.approx(points[5])


@pytest.mark.parametrize("lag", [0, 1])
def test_the_words_are_the_same_with_lag(lag: int, tmp_path: Path) -> None:
    exact, guard = Exact(), llr.DivergenceGuard(snapshot_every=4, lag=lag)
    run(Nans({5}, hidden=8), tmp_path, guard, exact)
    (line,) = [line for line in guard.journal.story if "dropped this update" in line]
    assert moved(line) == pytest.approx(exact.found[4]["all"], rel=0.05)


class Blown(Model):
    """After its 40th update all weights are 50 times as large."""

    def on_train_batch_end(self, *_: Any) -> None:
        super().on_train_batch_end()
        if self.trainer.global_step == 40:
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.mul_(50.0)


def test_a_rewind_names_the_last_update_before_the_trial(tmp_path: Path) -> None:
    guard = llr.DivergenceGuard(snapshot_every=10)
    run(Blown(sgd, hidden=8), tmp_path, guard, batches=20, max_epochs=5)
    lines = [line for line in guard.journal.story if "rewound to" in line]
    assert lines, list(guard.journal.story)
    assert moved(lines[0]) > 1e-6


def test_the_layout_has_a_chart_of_it_only_if_it_is_written(tmp_path: Path) -> None:
    for ratio in (False, True):
        logger = pl.loggers.TensorBoardLogger(tmp_path, name=str(ratio), version=0)
        monitor = llr.LRMonitor(update_ratio=ratio)
        trainer(tmp_path, callbacks=[monitor], logger=logger, max_epochs=1).fit(Model(sgd), Loader(2))
        events = b"".join(path.read_bytes() for path in Path(logger.log_dir).glob("events*"))
        assert (b"^lr-update/.*" in events) is ratio
