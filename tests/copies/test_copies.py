"""Copies in real fits: what they may take, what they hold, and what becomes of them in another run."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from pytorch_lightning.callbacks import ModelCheckpoint, ModelPruning
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics import CatMetric

import lightning_lr as llr
from lightning_lr.callbacks.divergence import DivergenceError, DivergenceGuard
from lightning_lr.copies import host_memory as host
from lightning_lr.copies.copy_pair import CopyPair
from lightning_lr.copies.snapshot import Snapshot
from lightning_lr.copies.source import Source
from lightning_lr.guard import keeper
from lightning_lr.shards import local, reshard
from lightning_lr.trials import own_state
from lightning_lr.trials.own_state import OwnState
from lightning_lr.trials.second_state import SecondState
from tests.pool import Pool
from tests.small import Loader, Model, digits, held_out, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`, callbacks", "ignore:You're resuming from a checkpoint that ended"
)

NAN = math.nan


def adam(module: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=3e-3)


class Net(Model):
    """A small net, into whose weights or data something breaks at the batches named."""

    def __init__(self, configure: Callable[[Any], Any] = adam, breaks: dict[int, str] | None = None) -> None:
        super().__init__(configure, hidden=16)
        self.breaks = breaks or {}
        self.finite: list[bool] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        what = self.breaks.get(self.trainer.fit_loop.epoch_loop.total_batch_idx)
        if what == "weight" and self.global_rank == self.trainer.world_size - 1:
            with torch.no_grad():
                for p in self.backbone.parameters():
                    p.view(-1)[0] = NAN
        return super().training_step([batch[0] * NAN if what == "nan" else batch[0], batch[1]], batch_idx)

    def on_train_batch_end(self, *_: Any) -> None:
        self.finite.append(all(bool(p.isfinite().all()) for p in self.parameters() if p.requires_grad))


class Batches(Loader):
    """As many as wanted, drawn with replacement."""

    def __iter__(self) -> Iterator[list[Tensor]]:
        images, labels = digits()
        self.at = self.at % self.batches if self._resumed else 0
        self._resumed = False
        while self.at < self.batches:
            drawn = torch.Generator().manual_seed(1000 * self.epoch + self.at)
            chosen = torch.randint(len(labels), (self.batch_size,), generator=drawn)
            self.at += 1
            yield [images[chosen], labels[chosen]]


def size(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


class Bytes(pl.Callback):
    """The most that the guard's copies took, after any batch; and what it began with."""

    def __init__(self, guard: DivergenceGuard) -> None:
        self.guard, self.most = guard, 0
        self.began: tuple[int, int] = (0, 0)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        assert self.guard.copy_pair is not None
        self.began = len(self.guard.copy_pair), self.guard._guarded.keeper.policy.interval  # pyright: ignore
        self.most = self.guard.copy_pair.bytes

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.guard.copy_pair is not None
        self.most = max(self.most, self.guard.copy_pair.bytes)


def fit(model: Any, root: Path, *callbacks: Any, batches: int = 60, **more: Any) -> Any:
    path = more.pop("ckpt_path", None)
    made = trainer(root, callbacks=list(callbacks), **{"max_epochs": 1, **more})
    made.fit(model, Batches(batches), ckpt_path=path)
    return made


# memory_limit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copies_of_weights", [2, 3, 5, 6, 8, 9])
def test_copies_never_take_more_than_memory_limit(copies_of_weights: int, tmp_path: Path) -> None:
    model = Net(breaks={50: "weight"})
    limit = copies_of_weights * size(model) + 200
    guard = DivergenceGuard(memory_limit=limit, snapshot_every=4)
    seen = Bytes(guard)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, tmp_path, guard, seen)
    told = [str(w.message) for w in caught if "memory_limit" in str(w.message)]
    assert 0 < seen.most <= limit
    assert guard.rewinds == 1
    assert model.finite[-1]
    # Adam's copies are three times the weights, the start's one has none of its state yet
    assert len(told) == (copies_of_weights < 4)
    assert all("two of them are more than memory_limit" in line and "memory_limit=" in line for line in told)


def test_what_is_told_of_memory_limit_is_enough(tmp_path: Path) -> None:
    model = Net()
    with pytest.warns(UserWarning, match="two of them are more than memory_limit") as caught:
        fit(model, tmp_path, DivergenceGuard(memory_limit=3 * size(model), snapshot_every=4))
    (line,) = [str(w.message) for w in caught if "memory_limit" in str(w.message)]
    enough = int(line.rsplit("memory_limit=", 1)[1].split(")")[0])
    fit(Net(), tmp_path, DivergenceGuard(memory_limit=enough, snapshot_every=4))


def test_weights_unfrozen_late_stay_within_memory_limit(tmp_path: Path) -> None:
    class Unfreezes(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 30:
                self.backbone.requires_grad_(True)
                self.optimizers().optimizer.add_param_group({"params": list(self.backbone.parameters())})

    model = Unfreezes(lambda m: torch.optim.SGD(m.head.parameters(), lr=0.1))
    model.backbone.requires_grad_(False)
    limit = 2 * size(model) + 200
    guard = DivergenceGuard(memory_limit=limit, snapshot_every=2)
    seen = Bytes(guard)
    fit(model, tmp_path, guard, seen)
    assert size(model) < seen.most <= limit


def test_a_resumed_run_holds_to_the_new_settings(tmp_path: Path) -> None:
    first = fit(Net(), tmp_path, DivergenceGuard(snapshot_every=10, save_snapshots=True), batches=100)
    first.save_checkpoint(tmp_path / "kept.ckpt")

    def resumed(**settings: Any) -> Bytes:
        guard = DivergenceGuard(**settings)
        seen, model = Bytes(guard), Net(breaks={130: "weight"})
        fit(model, tmp_path, guard, seen, batches=100, max_epochs=2, ckpt_path=str(tmp_path / "kept.ckpt"))
        assert guard.rewinds == 1
        assert model.finite[-1]
        return seen

    seen = resumed(snapshot_every=200)
    assert seen.began == (2, 200)
    limit = 7 * size(Net())
    seen = resumed(snapshot_every=3, memory_limit=limit)
    assert seen.began == (2, 3)
    assert seen.most <= limit
    seen = resumed(snapshot_every="auto")
    assert seen.began[0] == 2
    with pytest.raises(ValueError, match="memory_limit must hold two copies"):
        resumed(memory_limit=5 * size(Net()))


@pytest.mark.parametrize("at", [7, 21, 35, 49])
def test_resumed_under_a_memory_limit_the_run_ends_as_the_uninterrupted_one(at: int, tmp_path: Path) -> None:
    def run(*more: Any, **settings: Any) -> Any:
        model = Net(breaks={30: "weight", 52: "weight"})
        # room for two copies with Adam's state, and for more as long as they are smaller
        guard = DivergenceGuard(snapshot_every=4, memory_limit=7 * size(model), save_snapshots=True)
        fit(model, tmp_path, guard, *more, **settings)
        return guard.rewinds, guard.updates_lost, guard.states, [w.tolist() for w in model.weights()]

    keep = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=7, save_top_k=-1)
    end = run(keep, enable_checkpointing=True)
    assert end[0] == 2
    assert run(ckpt_path=str(tmp_path / "kept" / f"step={at}.ckpt")) == end


class Uneven(pl.LightningModule):
    """Of its weights rank 0 has more than rank 1; they break before the batches named."""

    def __init__(self, breaks: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.breaks = breaks
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 10))

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])  # pyright: ignore

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if batch_idx in self.breaks:
            with torch.no_grad():
                for p in self.parameters():
                    p.mul_(NAN)
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.net(batch[0])

    def configure_optimizers(self) -> Any:
        return adam(self)


def fit_uneven(root: str, limit: int) -> Any:
    from pytorch_lightning.strategies import ModelParallelStrategy

    guard = DivergenceGuard(snapshot_every=3, memory_limit=limit)
    seen = Bytes(guard)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Uneven(), Path(root), guard, seen, devices=2, strategy=strategy, use_distributed_sampler=False)
    assert guard.copy_pair is not None
    told = [str(w.message) for w in caught if "two of them are more" in str(w.message)]
    return [(g.clock, g.step) for g in guard.copy_pair.kept], len(told), seen.most


@pytest.mark.parametrize("limit", [2600, 3800, 6000, 12000])
def test_ranks_with_unequal_shares_decide_alike_under_memory_limit(limit: int, pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_uneven, str(tmp_path), limit)
    assert first[0] == second[0]
    assert 0 < second[2] < first[2] <= limit


def fit_validated(root: str) -> Any:
    from pytorch_lightning.strategies import ModelParallelStrategy

    guard, model = DivergenceGuard(snapshot_every=4), Uneven(breaks=(14,))
    made = trainer(
        Path(root),
        callbacks=[guard],
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
        max_epochs=1,
        val_check_interval=4,
        limit_val_batches=1,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made.fit(model, Batches(24), held_out())
    lacking = [str(w.message) for w in caught if "holds no copy of" in str(w.message)]
    # the last validation has gathered them
    reshard(model)
    return guard.rewinds, lacking, all(bool(local(p).isfinite().all()) for p in model.parameters())


def test_a_copy_taken_after_a_validation_holds_the_shards(pool: Pool, tmp_path: Path) -> None:
    assert pool.run(fit_validated, str(tmp_path)) == [(1, [], True)] * 2


# other models and optimizers ---------------------------------------------------------------------------------------


class Halves(Net):
    """One optimizer for all, or one for each half."""

    def __init__(self, count: int, breaks: dict[int, str] | None = None) -> None:
        parts = (lambda m: [adam(m)]) if count == 1 else (lambda m: [adam(m.backbone), adam(m.head)])
        super().__init__(parts, breaks)
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        loss = super().training_step(batch, batch_idx)
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.filterwarnings("ignore:DivergenceGuard sees no loss", "ignore:the rates were saved for")
def test_resumed_with_another_number_of_optimizers_the_guard_starts_afresh_in_words(
    before: int, after: int, lag: Any, tmp_path: Path
) -> None:
    made = fit(Halves(before), tmp_path, DivergenceGuard(snapshot_every=5, lag=lag))
    made.save_checkpoint(tmp_path / "kept.ckpt")
    saved = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    torch.save({**saved, "optimizer_states": []}, tmp_path / "kept.ckpt")
    model, guard = Halves(after, {90: "weight"}), DivergenceGuard(snapshot_every=5, lag=lag)
    with pytest.warns(UserWarning, match=f"a run with {before} optimizers?, and this one has {after}.*starts afresh"):
        fit(model, tmp_path, guard, max_epochs=2, ckpt_path=str(tmp_path / "kept.ckpt"))
    assert guard.rewinds in (1, 2)
    assert model.finite[-1]


def two_groups(module: Any) -> Any:
    return torch.optim.Adam([{"params": part.parameters()} for part in (module.head, module.backbone)], lr=3e-3)


CHANGED: dict[str, Any] = {
    "another optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9),
    "other groups": two_groups,
    "fewer parameters": lambda m: adam(m.backbone),
}


@pytest.mark.parametrize("how", CHANGED)
@pytest.mark.filterwarnings("ignore:the rates were saved for")
def test_copies_of_other_optimizers_are_dropped_in_words(how: str, tmp_path: Path) -> None:
    made = fit(Net(), tmp_path, DivergenceGuard(snapshot_every=5, save_snapshots=True))
    made.save_checkpoint(tmp_path / "kept.ckpt")
    saved = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    torch.save({**saved, "optimizer_states": []}, tmp_path / "kept.ckpt")
    model, guard = Net(CHANGED[how], {62: "weight"}), DivergenceGuard(snapshot_every=5, save_snapshots=True)
    with pytest.warns(UserWarning, match="the resumed weights are the first copy"):
        fit(model, tmp_path, guard, max_epochs=2, ckpt_path=str(tmp_path / "kept.ckpt"))
    assert guard.rewinds == 1
    assert model.finite[-1]


def test_copies_of_another_model_are_dropped_in_words(tmp_path: Path) -> None:
    made = fit(Net(), tmp_path, DivergenceGuard(snapshot_every=5, save_snapshots=True))
    made.save_checkpoint(tmp_path / "kept.ckpt")
    saved = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    weights = {k: v[:8] if k.startswith("backbone") else v[:, :8] for k, v in saved["state_dict"].items() if v.ndim > 1}
    weights = {**saved["state_dict"], **weights, "backbone.bias": saved["state_dict"]["backbone.bias"][:8]}
    torch.save({**saved, "state_dict": weights, "optimizer_states": []}, tmp_path / "kept.ckpt")
    model, guard = Net(breaks={62: "weight"}), DivergenceGuard(snapshot_every=5, save_snapshots=True)
    model.backbone, model.head = nn.Linear(64, 8), nn.Linear(8, 10)
    with pytest.warns(UserWarning, match="the resumed weights are the first copy"):
        fit(model, tmp_path, guard, max_epochs=2, ckpt_path=str(tmp_path / "kept.ckpt"))
    assert guard.rewinds == 1
    assert model.finite[-1]


# what optimizers remember ------------------------------------------------------------------------------------------


class Adaptive(torch.optim.SGD):
    """Keeps its memory in the param group under names that are in `defaults`, as Prodigy and schedule-free ones do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        own = {"d": 1e-6, "d_numerator": torch.zeros(()), "k": 0, "warm": True, "stage": "first", "last": None}
        self.defaults.update(own)
        for group in self.param_groups:
            group.update(copy.deepcopy(own))

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["d_numerator"] += 1.0
            group.update(d=5.0, k=group["k"] + 1, warm=False, stage="second", last=3)
        return super().step(closure)


class Late(torch.optim.SGD):
    """Begins to count in the param group at its first update, as timm's LAMB does."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
        return super().step(closure)


class Keeps(torch.optim.SGD):
    """Keeps tensors in lists, tuples and dicts, as LBFGS and Shampoo do."""

    def step(self, closure: Any = None) -> Any:
        for p in self.param_groups[0]["params"]:
            own = self.state[p]
            own.setdefault("old", []).append(p.detach().clone())
            own["roots"] = {"left": (p.detach() * 2.0, 3), "right": [[p.detach().t()], "done", None]}
        return super().step(closure)


class Wraps(torch.optim.Optimizer):
    """Holds another optimizer, which has the state."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, {"lr": 0.1})
        self.inner = torch.optim.Adam(params, lr=0.1)

    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        for own, group in zip(self.param_groups, self.inner.param_groups, strict=True):
            group["lr"] = own["lr"]
        return self.inner.step(closure)


class Wraps2(torch.optim.Optimizer):
    """Holds one that holds one; beside the params, it keeps numbers of its own in its state."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, {"lr": 0.1})
        self.base = Wraps(params)
        self.state["seen"] = {"updates": 0, "sum": torch.zeros(())}  # pyright: ignore[reportArgumentType]

    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.state["seen"]["updates"] += 1  # pyright: ignore[reportArgumentType]
        self.state["seen"]["sum"] += 1.0  # pyright: ignore[reportArgumentType]
        return self.base.step(closure)


KINDS: dict[str, Any] = {
    "in the group, by a name of its defaults": Adaptive,
    "in the group, from the first update on": lambda p: Late(p, lr=0.1),
    "in lists, tuples and dicts": lambda p: Keeps(p, lr=0.1),
    "in an optimizer within": Wraps,
    "in an optimizer within an optimizer within": Wraps2,
}


def train(net: nn.Module, optimizer: torch.optim.Optimizer, scale: float = 1.0) -> None:
    optimizer.zero_grad()
    (net(torch.ones(2, 3)) * scale).square().sum().backward()
    optimizer.step()


def memory(optimizer: torch.optim.Optimizer) -> Any:
    own = [optimizer.state_dict(), {k: v for k, v in optimizer.state.items() if isinstance(k, str)}]
    more = [value for value in vars(optimizer).values() if isinstance(value, torch.optim.Optimizer)]
    return copy.deepcopy([own, [memory(inner) for inner in more]])


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("saved", [False, True])
def test_a_rewind_gives_back_what_an_optimizer_remembers(kind: str, before: int, saved: bool, tmp_path: Path) -> None:
    net = nn.Linear(3, 3)
    optimizer = KINDS[kind](net.parameters())
    for _ in range(before):
        train(net, optimizer)
    then = memory(optimizer)
    snapshot = Snapshot(Source([net], [optimizer]))
    snapshot.take()
    if saved:
        torch.save(snapshot.state_dict(), tmp_path / "copy.pt")
        snapshot = Snapshot(Source([net], [optimizer]))
        snapshot.load_state_dict(torch.load(tmp_path / "copy.pt", weights_only=True))
    train(net, optimizer, NAN)
    assert not same(memory(optimizer), then)
    snapshot.restore()
    assert same(memory(optimizer), then)
    train(net, optimizer)
    snapshot.restore()
    assert same(memory(optimizer), then)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [0, 2])
def test_a_trial_leaves_what_an_optimizer_remembers_alone(kind: str, before: int) -> None:
    net = nn.Linear(3, 3)
    optimizer = KINDS[kind](net.parameters())
    for _ in range(before):
        train(net, optimizer)
    healthy = memory(optimizer)
    trial = SecondState(net, [optimizer])
    trial.enter(fresh=True)
    train(net, optimizer)
    tried = memory(optimizer)
    trial.leave()
    assert same(memory(optimizer), healthy)
    trial.enter(fresh=False)
    assert same(memory(optimizer), tried)
    trial.leave()
    assert same(memory(optimizer), healthy)
    other = SecondState(net, [optimizer])
    other.load_state_dict(trial.state_dict())
    other.enter(fresh=False)
    assert same(memory(optimizer), tried)
    other.leave()


@pytest.mark.parametrize("entry", ["lr", "weight_decay", "momentum", "betas", "max_lr", "swa_lr", "name"])
def test_what_the_user_and_schedulers_set_is_left_alone(entry: str) -> None:
    net = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    group = optimizer.param_groups[0]
    group[entry] = 1
    snapshot, trial = Snapshot(Source([net], [optimizer])), SecondState(net, [optimizer])
    snapshot.take()
    trial.enter(fresh=True)
    group[entry] = 2
    trial.leave()
    snapshot.restore()
    assert group[entry] == 2


@pytest.mark.parametrize(("fused", "counts_on"), [(False, "cpu"), (True, "meta")])
def test_optimizer_state_that_was_thrown_away_comes_back_to_where_it_lived(fused: bool, counts_on: str) -> None:
    net = nn.Linear(3, 3)
    optimizer = torch.optim.Adam(net.parameters(), fused=fused)
    train(net, optimizer)
    snapshot = Snapshot(Source([net], [optimizer]))
    snapshot.take()
    optimizer.state.clear()
    # stands for an accelerator
    for p in net.parameters():
        torch.utils.swap_tensors(p, nn.Parameter(p.detach().to("meta")))
    snapshot.restore()
    for state in optimizer.state.values():
        places = {name: value.device.type for name, value in state.items()}
        assert places == {"step": counts_on, "exp_avg": "meta", "exp_avg_sq": "meta"}


class Zero(Net):
    """Each rank has the moments of some of the parameters."""

    def __init__(self, breaks: dict[int, str] | None = None, views: bool = False) -> None:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        super().__init__(
            lambda m: ZeroRedundancyOptimizer(
                m.parameters(), optimizer_class=torch.optim.Adam, lr=3e-3, parameters_as_bucket_view=views
            ),
            breaks,
        )


def fit_zero(root: str, lag: Any, views: bool) -> Any:
    guard = DivergenceGuard(snapshot_every=5, lag=lag)
    finder = llr.LRFinder(at=8, steps=20, apply=False, progress_bar=False)
    model = Zero({50: "weight"}, views)
    more: dict[str, Any] = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    made = fit(model, Path(root), finder, guard, **more)
    made.save_checkpoint(root + "/kept.ckpt")
    own = torch.load(root + "/kept.ckpt", weights_only=True)["callbacks"]["DivergenceGuard[DivergenceGuard]"]["own"]
    again, second = Zero({90: "weight"}, views), DivergenceGuard(snapshot_every=5, lag=lag)
    fit(again, Path(root), second, max_epochs=2, ckpt_path=root + "/kept.ckpt", **more)
    moments = [m for s in made.optimizers[0].optim.state.values() for m in s.values()]
    return (
        (guard.rewinds, second.rewinds, own["generations"], len(finder.findings)),
        [w.tolist() for w in (*model.weights(), *again.weights())],
        all(bool(m.isfinite().all()) for m in moments) and model.finite[-1] and again.finite[-1],
        [s.to_dict() for s in second.states],
    )


@pytest.mark.parametrize(("lag", "views"), [(0, True), (1, False)])
def test_moments_that_each_rank_has_a_part_of_are_rewound(pool: Pool, lag: int, views: bool, tmp_path: Path) -> None:
    first, second = pool.run(fit_zero, str(tmp_path), lag, views)
    assert first == second
    # the counts go on after the resume
    assert first[0] == (1, 2, None, 1)
    assert first[2]


# weights under other names -----------------------------------------------------------------------------------------


def pruning(model: Net, every: bool) -> Any:
    parts: Any = None if every else [(model.backbone, "weight")]
    return ModelPruning("l1_unstructured", parameters_to_prune=parts, amount=0.3)


@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("at", [11, 30])
def test_weights_that_are_pruned_in_mid_run_are_rewound(every: bool, at: int, tmp_path: Path) -> None:
    model, guard = Net(breaks={at: "weight"}), DivergenceGuard(snapshot_every=5, trials=False)
    fit(model, tmp_path, pruning(model, every), guard, batches=10, max_epochs=6)
    assert guard.rewinds == 1
    assert model.finite[-1]


def test_a_pruned_run_of_which_every_copy_is_older_gives_up_with_healthy_weights(tmp_path: Path) -> None:
    model = Net(breaks=dict.fromkeys(range(11, 400), "weight"))
    guard = DivergenceGuard(snapshot_every=5, max_rewinds=2)
    with pytest.raises(DivergenceError, match="The model holds the last healthy weights"):
        fit(model, tmp_path, pruning(model, False), guard, batches=10, max_epochs=40)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


class Doubled(nn.Module):
    """A parametrisation by one tensor."""

    def forward(self, original: Tensor) -> Tensor:
        return original * 1.0

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class Sum(nn.Module):
    """A parametrisation by two new tensors."""

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        return one + two

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight / 2, weight / 2


class Reparametrised(Net):
    def __init__(self, how: type[nn.Module], breaks: dict[int, str]) -> None:
        super().__init__(adam, breaks)
        self.how = how

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 40:
            parametrize.register_parametrization(self.backbone, "weight", self.how())
            known = {id(p) for group in self.optimizers().param_groups for p in group["params"]}
            new = [p for p in self.backbone.parameters() if id(p) not in known]
            if new:
                self.optimizers().optimizer.add_param_group({"params": new})


@pytest.mark.parametrize("how", [Doubled, Sum])
def test_parametrised_weights_are_rewound(how: Any, tmp_path: Path) -> None:
    model, guard = Reparametrised(how, {43: "weight", 55: "weight"}), DivergenceGuard(snapshot_every=4)
    fit(model, tmp_path, guard)
    assert guard.rewinds == 2
    assert model.finite[-1]


class Regrown(Net):
    """Puts another tensor, of another size, into the net, and breaks it for good."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 43:
            self.backbone, self.head = nn.Linear(64, 20), nn.Linear(20, 10)


def test_weights_that_no_copy_has_are_named_and_not_called_healthy(tmp_path: Path) -> None:
    model = Regrown(breaks=dict.fromkeys(range(44, 300), "weight"))
    guard = DivergenceGuard(snapshot_every=100, max_rewinds=1)
    with (
        pytest.warns(UserWarning, match="holds no copy of backbone.weight, backbone.bias, head.weight: they"),
        pytest.raises(DivergenceError, match="does not hold healthy weights.*not finite: backbone.weight"),
    ):
        fit(model, tmp_path, guard, batches=300)


def test_a_pruned_runs_checkpoint_gives_its_copies_the_new_names() -> None:
    layer: Any = nn.Linear(3, 3)
    net = nn.Sequential(layer)
    snapshot = Snapshot(Source([net], []))
    snapshot.take()
    healthy = layer.weight.detach().clone()
    prune.l1_unstructured(layer, "weight", amount=0.3)
    elsewhere = Snapshot(Source([net], []))
    elsewhere.load_state_dict(snapshot.state_dict())
    with torch.no_grad():
        layer.weight_orig.fill_(NAN)
    elsewhere.restore()
    assert torch.equal(layer.weight_orig, healthy)
    assert float(layer.weight_mask.sum()) < 9
    assert pickle.loads(pickle.dumps(snapshot)).bytes == snapshot.bytes


def test_buffers_that_go_away_in_mid_run_stop_nothing(tmp_path: Path) -> None:
    class Forgets(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 30:
                del self.backbone._buffers["extra"]

    model = Forgets(breaks={40: "nan", 50: "weight"})
    model.backbone.register_buffer("extra", torch.zeros(1))
    guard = DivergenceGuard(snapshot_every=5)
    fit(model, tmp_path, guard)
    assert (guard.skips > 0, guard.rewinds, model.finite[-1]) == (True, 1, True)


ODD: dict[str, Callable[[int], Tensor]] = {
    "expanded": lambda _: torch.ones(1).expand(5),
    "coo": lambda _: torch.eye(4).to_sparse(),
    "csr": lambda _: torch.eye(4).to_sparse_csr(),
    "now and then": lambda turn: torch.ones(1).expand(5) if turn % 2 else torch.ones(5),
    "of another size": lambda turn: torch.zeros(1 + turn % 3),
}


class Odd(Net):
    """Has a buffer that can't be written in place, and may put another there in each batch."""

    def __init__(self, kind: str, breaks: dict[int, str], *, replaces: bool) -> None:
        super().__init__(breaks=breaks)
        self.make, self.replaces = ODD[kind], replaces
        self.register_buffer("odd", self.make(0))
        self.at_start: list[Any] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.at_start.append(self.odd)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.replaces:
            self.odd = self.make(batch_idx + 1)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_a_buffer_that_cant_be_written_in_place_stops_nothing(
    kind: str, replaces: bool, lag: Any, tmp_path: Path
) -> None:
    model = Odd(kind, {30: "nan", 45: "weight"}, replaces=replaces)
    guard = DivergenceGuard(snapshot_every=5, lag=lag)
    fit(model, tmp_path, guard)
    assert (guard.skips > 0, guard.rewinds, model.finite[-1]) == (True, 1, True)
    if not lag:
        # a batch that was dropped leaves it as it was
        before, after = model.at_start[30:32]
        assert torch.equal(before.to_dense(), after.to_dense())


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_a_sweep_leaves_a_buffer_that_cant_be_written_in_place(kind: str, replaces: bool, tmp_path: Path) -> None:
    finder = llr.LRFinder(at=10, progress_bar=False)
    fit(Odd(kind, {}, replaces=replaces), tmp_path, finder, batches=150)
    assert len(finder.findings) == 1


@pytest.mark.parametrize("make", [lambda: torch.ones(1).expand(5), lambda: torch.eye(4).to_sparse()])
def test_a_frozen_parameter_that_cant_be_written_in_place_stops_nothing(
    make: Callable[[], Tensor], tmp_path: Path
) -> None:
    def net(breaks: dict[int, str] | None = None) -> Net:
        model = Net(breaks=breaks)
        model.register_parameter("graph", nn.Parameter(make(), requires_grad=False))
        return model

    model, guard = net({30: "nan", 45: "weight"}), DivergenceGuard(snapshot_every=5)
    fit(model, tmp_path, guard)
    assert (guard.skips > 0, guard.rewinds, model.finite[-1]) == (True, 1, True)
    finder = llr.LRFinder(at=10, progress_bar=False)
    fit(net(), tmp_path, finder, DivergenceGuard(), batches=150)
    assert len(finder.findings) == 1


class Memory(Net):
    """Its hidden state is a buffer that is None at first, and now and then again."""

    def __init__(self, breaks: dict[int, str], resets: int) -> None:
        super().__init__(breaks=breaks)
        self.resets = resets
        self.register_buffer("state", None)
        self.state: Any

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        if batch_idx in self.breaks:
            batch = [batch[0] * NAN, batch[1]]
        if batch_idx == self.resets:
            self.state = None
        held = 0.0 if self.state is None else self.state
        hidden = self.backbone(batch[0]) + 0.1 * held
        self.state = hidden.mean(dim=0).detach()
        return nn.functional.cross_entropy(self.head(torch.relu(hidden)), batch[1])


@pytest.mark.parametrize(("broken", "resets"), [(30, -1), (30, 20), (30, 30), (0, -1)])
def test_a_dropped_batch_leaves_a_buffer_as_it_was_that_is_none_at_times(
    broken: int, resets: int, tmp_path: Path
) -> None:
    guard = DivergenceGuard()
    fit(Memory({broken: "nan"}, resets), tmp_path, guard)
    assert {k: v for k, v in guard.summary().items() if v} == {"judged": 60, "dropped": 1, "lost": 1, "factor": 1.0}


class Thaws(Net):
    """Adds a group to its optimizer in mid-run, with an entry of the user's own, and soon after it breaks."""

    def __init__(self, kind: Any) -> None:
        super().__init__(lambda m: kind(m.head.parameters(), lr=0.01), {24: "weight"})
        self.backbone.requires_grad_(False)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 20:
            self.backbone.requires_grad_(True)
            self.trainer.optimizers[0].add_param_group({"params": list(self.backbone.parameters()), "depth": 0})


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("every", [5, 500])
def test_a_group_that_came_after_the_copy_keeps_its_entries(kind: Any, every: int, tmp_path: Path) -> None:
    model, guard = Thaws(kind), DivergenceGuard(snapshot_every=every)
    made = fit(model, tmp_path, guard)
    assert (guard.rewinds, model.finite[-1]) == (1, True)
    first, second = made.optimizers[0].param_groups
    assert second.keys() == {*first.keys(), "depth"}
    assert second["depth"] == 0


@pytest.mark.parametrize("broken", [26, 27, 28])
@pytest.mark.parametrize("saved", [False, True])
def test_a_metric_that_was_reset_since_the_copy_holds_nothing_of_before(
    broken: int, saved: bool, tmp_path: Path
) -> None:
    class Measures(Net):
        def __init__(self, breaks: dict[int, str]) -> None:
            super().__init__(breaks=breaks)
            self.seen, self.epochs = torchmetrics.CatMetric(), []

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            self.seen.update(torch.tensor(float(self.trainer.fit_loop.epoch_loop.total_batch_idx)))
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self) -> None:
            self.epochs.append([int(number) for number in self.seen.compute().flatten().tolist()])
            self.seen.reset()

    # epochs of 6 batches, and copies every 10
    path, model = None, Measures({broken: "weight"})
    if saved:
        made = fit(Measures({}), tmp_path, DivergenceGuard(save_snapshots=True), batches=6, max_epochs=4)
        path = tmp_path / "mid.ckpt"
        made.save_checkpoint(path)
    guard = DivergenceGuard(save_snapshots=saved)
    fit(model, tmp_path, guard, batches=6, max_epochs=8, ckpt_path=path)
    assert guard.rewinds == 1
    for epoch, held in enumerate(model.epochs, 4 if saved else 0):
        assert all(6 * epoch <= number < 6 * epoch + 6 for number in held)


@pytest.mark.parametrize("make", [DivergenceGuard, llr.LRFinder])
def test_weights_that_are_not_there_yet_are_refused_in_words(make: Any, tmp_path: Path) -> None:
    class Lazy(Net):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.LazyLinear(16)

    with pytest.raises(ValueError, match=r"lazy modules are not there yet \(backbone.weight, backbone.bias\): run a"):
        fit(Lazy(), tmp_path, make())


@pytest.mark.parametrize("lag", [0, 1])
def test_momentum_of_sparse_gradients_stops_nothing(lag: Any, tmp_path: Path) -> None:
    class Embeds(Net):
        def __init__(self) -> None:
            super().__init__(lambda m: torch.optim.SGD(m.backbone.parameters(), 0.1, momentum=0.9), {45: "weight"})
            self.backbone = nn.Embedding(10, 16, sparse=True)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.backbone(images.argmax(dim=1) % 10))

    model, guard = Embeds(), DivergenceGuard(snapshot_every=5, lag=lag)
    fit(model, tmp_path, guard)
    assert (guard.rewinds, model.finite[-1]) == (1, True)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("raises", [False, True])
def test_after_the_run_the_guard_holds_no_buffers(raises: bool, lag: Any, tmp_path: Path) -> None:
    class Stops(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if raises and batch_idx == 20:
                raise KeyError("stop")

    model, guard = Stops(), DivergenceGuard(lag=lag)
    model.register_buffer("seen", torch.zeros(100))
    with pytest.raises(KeyError) if raises else contextlib.nullcontext():
        fit(model, tmp_path, guard)
    # a checkpoint that is saved now may need those of an update that is not judged yet
    expected = 2 if raises and lag else 0
    assert len(guard._guarded.buffers.state_dict()) == expected  # pyright: ignore


# several devices ---------------------------------------------------------------------------------------------------


def test_a_copy_runs_aside_on_every_device_and_only_what_writes_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Stream:
        def __init__(self, device: Any, name: str = "aside") -> None:
            self.name = f"{name} {device}"

        def wait_stream(self, other: Any) -> None:
            told.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event: Any) -> None:
            told.append(f"{self.name} waits for the copy on {event.stream.name}")

    class Event:
        def record(self, stream: Any) -> None:
            self.stream = stream
            told.append(f"copied on {stream.name}")

        def synchronize(self) -> None:
            told.append(f"the host waits for {self.stream.name}")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device, "main"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: told.append(f"kept for {stream.name}"))
    monkeypatch.setattr(host, "_register", lambda block: 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        places = ["cuda:0", "cuda:1", "cuda:0", "cpu"]
        net = nn.ParameterList([nn.Parameter(torch.zeros(3, device=place)) for place in places])
        net.register_buffer("seen", torch.zeros(3, device="cuda:1"))
        snapshot = Snapshot(Source([net], []))
        snapshot.take()
        # a buffer is written by the next forward pass
        assert told[:1] == ["copied on main cuda:1"]
        for device in ("cuda:0", "cuda:1"):
            assert f"aside {device} waits for main {device}" in told
            assert told.count(f"kept for aside {device}") == places.count(device)
        assert not any("main" in line.split(" waits")[0] for line in told if " waits" in line)
        told.clear()
        snapshot.fence()
        assert {f"main {d} waits for the copy on aside {d}" for d in ("cuda:0", "cuda:1")} <= set(told)
        assert not any("host" in line for line in told)
        told.clear()
        snapshot.fence()
        assert told == []
        snapshot.wait()
    assert {line for line in told if "aside" in line} == {f"the host waits for aside cuda:{k}" for k in (0, 1)}


# the incidents' folder ---------------------------------------------------------------------------------------------


def test_incident_folders_of_a_run_are_bounded_also_over_a_resume(tmp_path: Path) -> None:
    root = tmp_path / "incidents"
    (root / "step-00000003-rank-0").mkdir(parents=True)
    (root / "notes").mkdir()
    breaks = dict.fromkeys(range(21, 1000, 2), "nan")
    guard = DivergenceGuard(incidents_dir=root, trials=False)
    with pytest.warns(UserWarning, match="incidents_dir") as caught:
        made = fit(Net(breaks=breaks), tmp_path, guard, batches=300)
    assert len([w for w in caught if "incidents_dir" in str(w.message)]) == 1
    assert guard.skips > 110
    made.save_checkpoint(tmp_path / "kept.ckpt")
    model, guard = Net(breaks=breaks), DivergenceGuard(incidents_dir=root, trials=False)
    with pytest.warns(UserWarning, match="incidents_dir"):
        fit(model, tmp_path, guard, batches=300, max_epochs=2, ckpt_path=str(tmp_path / "kept.ckpt"))
    kept = sorted(path.name for path in root.iterdir())
    assert kept[0] == "notes"
    assert kept[1] == "step-00000003-rank-0"
    assert len(kept) == 102
    assert kept[2:12] == [f"step-{step:08d}-rank-0" for step in range(21, 41, 2)]


# what they cost ------------------------------------------------------------------------------------------------------


def test_with_too_little_free_memory_it_makes_no_copies_says_so_and_still_drops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "free_memory", lambda: 3 * size(Net()))
    guard, model = DivergenceGuard(), Net(breaks={20: "nan"})
    with pytest.warns(UserWarning, match="half of what is free.*so it makes no copies") as caught:
        fit(model, tmp_path, guard)
    assert guard.copy_pair is not None
    assert (guard.skips, len(guard.copy_pair)) == (1, 0)
    assert model.finite[-1]
    (line,) = [str(w.message) for w in caught if "so it makes no copies" in str(w.message)]
    assert "memory_limit=" in line
    with pytest.raises(DivergenceError, match="there is no copy"), pytest.warns(UserWarning, match="makes no copies"):
        fit(Net(breaks={20: "weight"}), tmp_path, DivergenceGuard())
    kept = DivergenceGuard(memory_limit=None)
    fit(Net(breaks={20: "weight"}), tmp_path, kept)
    assert kept.rewinds == 1


def test_auto_takes_half_of_what_is_free_and_holds_to_it_when_optimizer_state_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "free_memory", lambda: 10 * size(Net()))
    guard = DivergenceGuard(snapshot_every=4)
    seen = Bytes(guard)
    fit(Net(), tmp_path, guard, seen)
    # the start's copy and one with Adam's state; two of those would be six times the weights
    assert seen.most <= 5 * size(Net())
    assert seen.began[0] == 1


def test_the_same_run_twice_copies_at_the_same_updates_however_slow_it_is(tmp_path: Path) -> None:
    class Slow(pl.Callback):
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def on_train_batch_start(self, *_: Any) -> None:
            time.sleep(self.seconds)

    def taken(seconds: float) -> list[int]:
        guard, clocks = DivergenceGuard(), []

        class Notes(pl.Callback):
            def on_train_batch_end(self, *_: Any) -> None:
                assert guard.copy_pair is not None
                clocks.append(guard.copy_pair.newest.clock)

        fit(Net(), tmp_path, Slow(seconds), guard, Notes())
        return clocks

    first = taken(0.0)
    assert first == taken(0.004)
    assert len(set(first)) > 4


@pytest.mark.parametrize("saved", [False, True])
def test_a_run_that_raises_gives_its_memory_back(saved: bool, tmp_path: Path) -> None:
    class Raises(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise KeyError("the user's own")

    guard = DivergenceGuard(save_snapshots=saved)
    with pytest.raises(KeyError, match="the user's own"):
        fit(Net(), tmp_path, guard, Raises())
    assert guard.copy_pair is not None
    # a checkpoint that somebody saves after it is to hold them
    assert (guard.copy_pair.bytes > 0) == saved
    before = guard.copy_pair
    fit(Net(), tmp_path, guard)
    assert guard.copy_pair is not before
    assert before.bytes == 0


class Large(Model):
    def __init__(self) -> None:
        super().__init__(adam, hidden=2000)


def test_a_checkpoint_is_no_larger_and_with_copies_nothing_is_cloned(tmp_path: Path) -> None:
    def saved(*callbacks: Any) -> int:
        made = fit(Large(), tmp_path, *callbacks, batches=40)
        made.save_checkpoint(tmp_path / "kept.ckpt")
        return (tmp_path / "kept.ckpt").stat().st_size

    bare = saved()
    assert bare < saved(DivergenceGuard(), llr.LRMonitor(), llr.Warmup(10)) < 1.02 * bare
    guard = DivergenceGuard(save_snapshots=True)
    assert 2.5 * bare < saved(guard)
    assert guard.copy_pair is not None
    state = guard.state_dict()
    held = state["own"]["generations"]["kept"][0][-1]["tensors"]
    mine = guard.copy_pair.best.snapshot._host
    assert all(held[key].untyped_storage().data_ptr() == mine[key].data.untyped_storage().data_ptr() for key in held)


class Taken(TorchDispatchMode):
    """The bytes of all tensors that are made on a device, as fake ones tell."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device.type == "cuda":
                own = id(tensor.untyped_storage()) not in given and not function.is_view
                self.bytes += tensor.numel() * tensor.element_size() * own
        return made


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CUDA device of which only the shapes are computed."""
    monkeypatch.setattr(host, "_register", lambda block: 0)
    for name in ("Stream", "Event", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(own_state, "_mark", id)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("what", ["take", "restore", "trial"])
def test_nothing_is_taken_on_the_device(what: str) -> None:
    net = nn.ParameterList([nn.Parameter(torch.zeros(1000, 1000, device="cuda")) for _ in range(3)])
    net.register_buffer("seen", torch.zeros(1000, device="cuda"))
    optimizer = torch.optim.Adam(net.parameters())
    for p in net.parameters():
        optimizer.state[p] = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    snapshot, own = Snapshot(Source([net], [optimizer])), OwnState(net, [optimizer])
    snapshot.take()
    with Taken() as taken:
        if what == "take":
            snapshot.take()
        elif what == "restore":
            snapshot.restore()
        else:
            own.keep()
            snapshot.show()
            own.leave()
    assert taken.bytes <= 0.02 * size(net)


@pytest.mark.usefixtures("fake")
def test_lists_and_metrics_are_copied_to_the_host_and_come_back_to_their_devices() -> None:
    net = nn.Module()
    net.weight, net.seen = nn.Parameter(torch.zeros(1000, 1000, device="cuda")), CatMetric()
    net.seen.value.append(torch.zeros(10**6, device="cuda"))
    net.seen._device, net.seen._update_count = torch.device("cuda", 0), 1  # pyright: ignore[reportAttributeAccessIssue]
    optimizer = torch.optim.SGD(net.parameters())
    own = optimizer.state[net.weight]
    own.update(old=[torch.zeros_like(net.weight)], roots={"left": (torch.zeros(9, device="cuda"), torch.zeros(9))})
    snapshot = Snapshot(Source([net], [optimizer]))
    with Taken() as taken:
        snapshot.take()
    assert taken.bytes == 0
    assert snapshot.bytes == 4 * (3 * 10**6 + 18)
    own.clear()
    snapshot.restore()
    left, right = own["roots"]["left"]
    assert [t.device.type for t in (own["old"][0], left, right, net.seen.value[0])] == ["cuda", "cuda", "cpu", "cuda"]
    saved = snapshot.state_dict()
    assert {t.device.type for t in tree_leaves(saved) if isinstance(t, Tensor)} == {"cpu"}
    again = Snapshot(Source([net], [optimizer]))
    again.load_state_dict(saved)
    again.restore()
    assert [t.device.type for t in (*own["old"], *own["roots"]["left"], *net.seen.value)] == ["cuda"] * 4


def test_lists_count_against_memory_limit() -> None:
    net = nn.Linear(100, 100, bias=False)
    optimizer = torch.optim.LBFGS(net.parameters(), history_size=20, max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (net(torch.arange(6400.0).reshape(64, 100).sin()) - 1.0).square().mean() + net.weight.pow(4).mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    pair = CopyPair(Source([net], [optimizer]))
    one = pair.measure()
    assert one > 6 * size(net)
    assert pair.take(0, 0)
    assert pair.bytes == one
    pair.limit = 2 * one - 1
    assert not pair.take(1, 1)
    pair.limit = 2 * one
    assert pair.take(1, 1)
    assert pair.bytes == 2 * one


def test_lists_of_the_same_sizes_use_the_same_memory() -> None:
    net = nn.Linear(3, 3)
    optimizer = Keeps(net.parameters(), lr=0.1)
    train(net, optimizer)
    snapshot = Snapshot(Source([net], [optimizer]))

    def places() -> list[int]:
        snapshot.take()
        return [t.data_ptr() for t in tree_leaves(snapshot.state_dict()["plain"]) if isinstance(t, Tensor)]

    first = places()
    assert first == places() != []
    train(net, optimizer)
    assert len(places()) == len(first) + 2


class Uncounted(Net):
    """Keeps all that a metric sees, of which each rank sees another number."""

    def __init__(self) -> None:
        super().__init__()
        self.all = CatMetric()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.all.update(torch.ones(40 * (1 + self.global_rank)))
        return super().training_step(batch, batch_idx)


def fit_uncounted(root: str, limit: int) -> Any:
    guard = DivergenceGuard(snapshot_every=3, memory_limit=limit)
    seen = Bytes(guard)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Uncounted(), Path(root), guard, seen, devices=2, strategy="ddp", use_distributed_sampler=False)
    assert guard.copy_pair is not None
    told = [str(w.message) for w in caught if "two of them are more" in str(w.message)]
    return [(g.clock, g.step) for g in guard.copy_pair.kept], len(told), seen.most


def test_ranks_whose_metrics_hold_unequal_lists_decide_alike_under_memory_limit(pool: Pool, tmp_path: Path) -> None:
    limit = 24000
    first, second = pool.run(fit_uncounted, str(tmp_path), limit)
    assert first[0] == second[0]
    assert first[0][-1][0] < 50
    assert (first[1], second[1]) == (1, 0)
    assert 0 < first[2] < second[2] <= limit
