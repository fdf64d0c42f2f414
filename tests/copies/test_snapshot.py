"""Snapshots: what comes back is bit for bit what was there, and what was not there is gone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

from lightning_lr.copies.copy_pair import CopyPair
from lightning_lr.copies.snapshot import Snapshot
from lightning_lr.copies.source import Source
from lightning_lr.trials.second_state import SecondState
from tests.pool import Pool

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.1),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.seen = MeanMetric()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def update(net: Net, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    loss = net(x).square().mean()
    net.seen.update(loss.detach())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def everything(net: Net, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state = {f"w {k}": v.clone() for k, v in net.state_dict().items()}
    for number, p in enumerate(net.parameters()):
        for key, value in optimizer.state.get(p, {}).items():
            state[f"o {number} {key}"] = value.clone() if isinstance(value, torch.Tensor) else value
    state["metric"] = (net.seen._update_count, net.seen.mean_value.clone())
    return state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, tuple):
        return all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_rewind_gives_back_every_bit_and_training_repeats_itself(name: str, before: int) -> None:
    net = Net()
    optimizer = OPTIMIZERS[name](net.parameters())
    for k in range(before):
        update(net, optimizer, k)
    snapshot = Snapshot(Source([net], [optimizer]))
    snapshot.take()
    then = everything(net, optimizer)
    for k in range(3):
        update(net, optimizer, 100 + k)
    first = everything(net, optimizer)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(float("nan"))
    snapshot.restore()
    now = everything(net, optimizer)
    assert now.keys() == then.keys()
    assert all(same(now[key], then[key]) for key in then)
    for k in range(3):
        update(net, optimizer, 100 + k)
    again = everything(net, optimizer)
    assert all(same(again[key], first[key]) for key in first)


def test_a_second_copy_uses_the_same_memory() -> None:
    net = Net()
    optimizer = OPTIMIZERS["AdamW"](net.parameters())
    update(net, optimizer, 0)
    snapshot = Snapshot(Source([net], [optimizer]))
    snapshot.take()
    places = {key: kept.data.data_ptr() for key, kept in snapshot._host.items()}
    size = snapshot.bytes
    update(net, optimizer, 1)
    snapshot.take()
    assert {key: kept.data.data_ptr() for key, kept in snapshot._host.items()} == places
    assert snapshot.bytes == size


def test_rates_are_left_alone_and_an_optimizers_own_numbers_are_not() -> None:
    net = Net()
    optimizer = OPTIMIZERS["SGD"](net.parameters())
    group = optimizer.param_groups[0]
    group["own_count"] = 3
    snapshot = Snapshot(Source([net], [optimizer]))
    snapshot.take()
    group["lr"], group["momentum"], group["own_count"] = 0.7, 0.5, 9
    snapshot.restore()
    assert (group["lr"], group["momentum"], group["own_count"]) == (0.7, 0.5, 3)


def test_a_metric_that_began_a_new_epoch_is_reset_and_not_given_the_old_one() -> None:
    net = Net()
    optimizer = OPTIMIZERS["SGD"](net.parameters())
    for k in range(4):
        update(net, optimizer, k)
    snapshot = Snapshot(Source([net], [optimizer]))
    snapshot.take()
    net.seen.reset()
    update(net, optimizer, 9)
    snapshot.restore()
    assert net.seen._update_count == 0


def test_averaged_weights_and_the_scalers_scale_come_along() -> None:
    net = Net()
    average = torch.optim.swa_utils.AveragedModel(net)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(1))
    snapshot = Snapshot(Source([net, average], [], scaler))
    snapshot.take()
    scale = scaler.get_scale()
    assert scaler._scale is not None
    scaler._scale.fill_(1.0)
    with torch.no_grad():
        for p in average.parameters():
            p.zero_()
    snapshot.restore()
    assert scaler.get_scale() == scale
    assert all(torch.equal(a, b) for a, b in zip(average.module.parameters(), net.parameters(), strict=True))


def test_frozen_parameters_take_no_memory() -> None:
    net = Net()
    for p in net.body[0].parameters():
        p.requires_grad_(False)
    snapshot = Snapshot(Source([net], []))
    snapshot.take()
    assert "parameter/0/body.0.weight" not in snapshot._host
    assert "parameter/0/body.3.weight" in snapshot._host


def test_frozen_parameters_that_somebody_writes_are_copied_from_then_on() -> None:
    net = Net()
    for p in net.body[0].parameters():
        p.requires_grad_(False)
    source = Source([net], [])
    assert not source.notice()
    with torch.no_grad():
        net.body[0].weight.mul_(0.9)
    assert source.notice()
    assert not source.notice()
    snapshot = Snapshot(source)
    snapshot.take()
    then = net.body[0].weight.clone()
    with torch.no_grad():
        net.body[0].weight.fill_(float("nan"))
    snapshot.restore()
    assert torch.equal(net.body[0].weight, then)
    assert "parameter/0/body.0.bias" not in snapshot._host


def test_a_saved_copy_gives_back_the_same_bits_elsewhere(tmp_path: Any) -> None:
    net = Net()
    optimizer = OPTIMIZERS["AdamW"](net.parameters())
    update(net, optimizer, 0)
    snapshot = Snapshot(Source([net], [optimizer]))
    snapshot.take()
    then = everything(net, optimizer)
    torch.save(snapshot.state_dict(), tmp_path / "copy.pt")
    other = Net()
    fresh = OPTIMIZERS["AdamW"](other.parameters())
    elsewhere = Snapshot(Source([other], [fresh]))
    elsewhere.load_state_dict(torch.load(tmp_path / "copy.pt", weights_only=True))
    elsewhere.restore()
    now = everything(other, fresh)
    del then["metric"]  # the other one's epoch has not seen what this one's had
    assert all(same(now[key], then[key]) for key in then)


def _sharded() -> list[float]:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    size = torch.distributed.get_world_size()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5))
    mesh = init_device_mesh("cpu", (size,))
    fully_shard(net, mesh=mesh)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    source = Source([net], [optimizer])
    snapshot = Snapshot(source)

    def step(seed: int) -> None:
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    step(0)
    snapshot.take()
    before = [p.full_tensor().clone() for p in net.parameters()]  # pyright: ignore[reportCallIssue]
    step(1)
    snapshot.restore()
    back = [p.full_tensor() for p in net.parameters()]  # pyright: ignore[reportCallIssue]
    held = sum(p.to_local().numel() for p in net.parameters())  # pyright: ignore[reportCallIssue]
    kept = sum(t.data.numel() for k, t in snapshot._host.items() if k.startswith("parameter/"))
    return [float(all(torch.equal(a, b) for a, b in zip(back, before, strict=True))), held, kept]


def test_each_rank_keeps_its_own_shard(pool: Pool) -> None:
    for came_back, held, kept in pool.run(_sharded):
        assert came_back == 1.0
        assert held == kept


def test_only_what_is_the_models_own_is_shown_over_a_trials_state() -> None:
    net = Net()
    optimizer = OPTIMIZERS["AdamW"](net.parameters())
    average = torch.optim.swa_utils.AveragedModel(net)
    update(net, optimizer, 0)
    snapshot = Snapshot(Source([net, average], [optimizer]))
    snapshot.take()
    then = everything(net, optimizer)
    for k in range(3):
        update(net, optimizer, 100 + k)
    average.update_parameters(net)
    now, averaged = everything(net, optimizer), [p.clone() for p in average.parameters()]
    trial = SecondState(net, [optimizer])
    trial.enter(fresh=True)
    snapshot.show()
    for key, value in everything(net, optimizer).items():
        assert same(value, (then if key.startswith("w") else now)[key]), key
    assert all(map(torch.equal, averaged, average.parameters()))
    trial.end_batch()
    left = everything(net, optimizer)
    assert all(same(left[key], now[key]) for key in now)


def numbered(net: Net, value: float) -> None:
    with torch.no_grad():
        net.body[3].weight.fill_(value)


def test_the_first_copy_is_both_and_never_written_over_before_another_is_the_best() -> None:
    net = Net()
    pair = CopyPair(Source([net], []))
    for clock in range(4):
        numbered(net, float(clock))
        pair.take(clock, clock)
    assert [g.step for g in pair.kept] == [0, 3]
    numbered(net, 4.0)
    pair.take(4, 4, promote=True)
    assert [g.step for g in pair.kept] == [3, 4]
    numbered(net, 9.0)
    assert pair.restore("best", 7) is pair.newest is pair.best
    assert float(net.body[3].weight.detach()[0, 0]) == 3.0
    assert (pair.best.step, pair.best.clock, len(pair)) == (3, 7, 1)


def test_the_newest_copy_that_comes_back_leaves_the_best_as_it_is() -> None:
    net = Net()
    pair = CopyPair(Source([net], []))
    for clock in (0, 3, 5):
        numbered(net, float(clock))
        pair.take(clock, clock, promote=clock == 5)
    numbered(net, 9.0)
    assert pair.restore("newest", 6) is pair.newest
    assert float(net.body[3].weight.detach()[0, 0]) == 5.0
    assert [(g.step, g.clock) for g in pair.kept] == [(3, 3), (5, 6)]
    assert pair.restore("best", 8) is pair.newest is pair.best
    assert float(net.body[3].weight.detach()[0, 0]) == 3.0


def test_two_copies_take_the_memory_of_two_whatever_becomes_of_them() -> None:
    net = Net()
    optimizer = OPTIMIZERS["AdamW"](net.parameters())
    pair = CopyPair(Source([net], [optimizer]))
    update(net, optimizer, 0)
    for clock in range(12):
        pair.take(clock, clock, promote=clock % 3 == 0)
        if clock % 5 == 4:
            pair.restore("newest" if clock % 2 else "best", clock)
        assert pair.bytes <= 2 * pair.measure()


def test_a_saved_pair_is_the_same_pair_elsewhere(tmp_path: Any) -> None:
    net = Net()
    pair = CopyPair(Source([net], []))
    for clock in (0, 5, 9):
        numbered(net, float(clock))
        pair.take(clock, clock, 2, promote=clock == 9)
    torch.save(pair.state_dict(), tmp_path / "pair.pt")
    saved = torch.load(tmp_path / "pair.pt", weights_only=True)
    for limit, steps in ((None, [5, 9]), (pair.measure() + 1, [5])):
        other = Net()
        again = CopyPair(Source([other], []), limit)
        assert again.load_state_dict(saved)
        assert [(g.step, g.lost) for g in again.kept] == [(step, 2) for step in steps]
        again.restore("best", 1)
        assert float(other.body[3].weight.detach()[0, 0]) == 5.0
