"""Snapshots: what comes back is bit for bit what was there, and what was not there is gone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric

from lightning_lr.generations import Generations
from lightning_lr.snapshot import Snapshot
from lightning_lr.source import Source
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
    places = {key: tensor.data_ptr() for key, tensor in snapshot._host.items()}
    size = snapshot.bytes
    update(net, optimizer, 1)
    snapshot.take()
    assert {key: tensor.data_ptr() for key, tensor in snapshot._host.items()} == places
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


def test_the_change_is_the_distance_over_the_norm() -> None:
    net = nn.Linear(100, 100, bias=False)
    nn.init.constant_(net.weight, 1.0)
    snapshot = Snapshot(Source([net], []))
    snapshot.take()
    with torch.no_grad():
        net.weight.add_(0.5)
    far, size = snapshot.change()
    assert float((far / size).sqrt()) == pytest.approx(0.5, rel=1e-3)


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
    far, norm = snapshot.change()
    both = torch.stack([far, norm])
    torch.distributed.all_reduce(both)
    after = [p.full_tensor().clone() for p in net.parameters()]  # pyright: ignore[reportCallIssue]
    true = sum(float((a - b).double().square().sum()) for a, b in zip(after, before, strict=True))
    snapshot.restore()
    back = [p.full_tensor() for p in net.parameters()]  # pyright: ignore[reportCallIssue]
    held = sum(p.to_local().numel() for p in net.parameters())  # pyright: ignore[reportCallIssue]
    kept = sum(t.numel() for k, t in snapshot._host.items() if k.startswith("parameter/"))
    return [float(both[0]), true, float(all(torch.equal(a, b) for a, b in zip(back, before, strict=True))), held, kept]


def test_each_rank_keeps_its_own_shard(pool: Pool) -> None:
    first = pool.run(_sharded)
    for measured, true, came_back, held, kept in first:
        assert measured == pytest.approx(true, rel=1e-5)
        assert came_back == 1.0
        assert held == kept
    assert first[0][0] == first[1][0]


def test_the_ring_never_loses_its_only_healthy_copy() -> None:
    net = Net()
    ring = Generations(Source([net], []), 2)
    ring.take((0,), 0, (0,), keep_anchor=True)
    weight = net.body[3].weight
    for clock in range(1, 20):
        with torch.no_grad():
            weight.fill_(float(clock))
        ring.take((clock,), clock, (0,), keep_anchor=True)
    assert [generation.label for generation in ring._kept] == [(0,), (1,)]
    assert ring.rewind((0,), 20).label == (0,)
    assert weight[0, 0].item() < 1.0


@pytest.mark.parametrize(
    ("proven", "keep_anchor", "labels"),
    [
        (0, True, [0, 10, 20, 30]),
        (15, True, [0, 10, 20, 30, 40]),
        (25, True, [0, 20, 30, 40]),
        (25, False, [20, 30, 40]),
    ],
)
def test_the_ring_keeps_anchor_newest_proven_and_candidates(proven: int, keep_anchor: bool, labels: list[int]) -> None:
    ring = Generations(Source([Net()], []), 4 if proven == 0 else 5)
    for clock in (0, 10, 20, 30):
        ring.take((clock,), clock, (0,), keep_anchor=True)
    ring.take((40,), 40, (proven,), keep_anchor=keep_anchor)
    assert [generation.label[0] for generation in ring._kept] == labels


def test_a_ring_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity must be >= 2, got 1"):
        Generations(Source([], []), 1)
