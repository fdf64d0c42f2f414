"""A trial's state never touches the healthy one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from lightning_lr.batches.randomness import RandomState
from lightning_lr.copies.optimizer_memory import bytes_of
from lightning_lr.internals import foreach_copy
from lightning_lr.policies.sweep_schedule import SweepSchedule, SweepScheduleState, places
from lightning_lr.rates.reference import reference_rates
from lightning_lr.trials import own_state
from lightning_lr.trials.own_state import OwnState
from lightning_lr.trials.second_state import SecondState
from tests.pool import Pool


class Counts(torch.optim.SGD):
    """Keeps its own count in the param group, as schedule-free optimizers and Prodigy do."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
        return super().step(closure)


class Odd(nn.Module):
    """Assigns a buffer anew, has tied weights, and a metric with a list state."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.register_buffer("seen", torch.zeros(()))
        self.metric = torchmetrics.CatMetric()

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        y = self.two(self.one(x))
        self.metric.update(y.detach().sum())
        return y


def train(net: nn.Module, optimizer: torch.optim.Optimizer, times: int = 1) -> None:
    for _ in range(times):
        optimizer.zero_grad()
        net(torch.ones(2, 3)).square().sum().backward()
        optimizer.step()


def test_what_a_trial_trains_is_its_own_and_goes_on_where_it_was_left() -> None:
    torch.manual_seed(0)
    net = Odd()
    optimizer = Counts(net.parameters(), lr=0.01, momentum=0.9)
    optimizer.param_groups[0]["k"] = 0
    train(net, optimizer, 2)
    pointers = [p.data_ptr() for p in net.parameters()]
    healthy = [p.clone() for p in net.parameters()]
    trial = SecondState(net, [optimizer])
    trial.enter(fresh=True)
    train(net, optimizer, 3)
    assert (float(net.seen), optimizer.param_groups[0]["k"], len(net.metric.value)) == (5.0, 5, 5)
    tried = [p.clone() for p in net.parameters()]
    trial.end_batch()
    assert (float(net.seen), optimizer.param_groups[0]["k"], len(net.metric.value)) == (2.0, 2, 2)
    assert all(map(torch.equal, healthy, net.parameters()))
    assert pointers == [p.data_ptr() for p in net.parameters()]
    trial.enter(fresh=False)
    assert float(net.seen) == 5.0
    assert all(map(torch.equal, tried, net.parameters()))
    trial.leave()
    trial.enter(fresh=True)
    assert all(map(torch.equal, healthy, net.parameters()))
    train(net, optimizer)
    trial.leave()
    train(net, optimizer)
    alone, other = Odd(), None
    torch.manual_seed(0)
    alone = Odd()
    other = Counts(alone.parameters(), lr=0.01, momentum=0.9)
    train(alone, other, 3)
    assert all(map(torch.equal, alone.parameters(), net.parameters()))
    with pytest.raises(RuntimeError, match="in place already"):
        trial.enter(fresh=True) or trial.enter(fresh=True)


def test_the_scaler_and_the_generators_come_back() -> None:
    net = nn.Linear(2, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def train_scaled() -> None:
        optimizer.zero_grad()
        scaler.scale(net(torch.ones(1, 2)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    train_scaled()
    before = scaler.state_dict()
    generators = RandomState(torch.device("cpu"))
    drawn = torch.rand(1), random.random(), np.random.rand()
    trial = SecondState(net, [optimizer], scaler)
    trial.enter(fresh=True)
    train_scaled()
    assert scaler.state_dict() != before
    trial.end_batch()
    assert scaler.state_dict() == before
    generators.restore()
    assert (torch.rand(1), random.random(), np.random.rand()) == drawn


def sharded() -> tuple[bool, bool, bool]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    torch.manual_seed(0)
    net = nn.Linear(4, 4, bias=False)
    net.weight = nn.Parameter(distribute_tensor(net.weight.detach(), mesh, [Shard(0)]))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    healthy = net.weight.to_local().clone()
    pointer = net.weight.to_local().data_ptr()
    trial = SecondState(net, [optimizer])
    trial.enter(fresh=True)
    net.weight.grad = DTensor.from_local(torch.ones_like(healthy), mesh, [Shard(0)])
    optimizer.step()
    tried = net.weight.to_local().clone()
    trial.leave()
    back = torch.equal(net.weight.to_local(), healthy) and not optimizer.state
    trial.enter(fresh=False)
    again = torch.equal(net.weight.to_local(), tried) and not torch.equal(tried, healthy)
    trial.leave()
    return back, again, pointer == net.weight.to_local().data_ptr()


def test_of_sharded_weights_each_rank_exchanges_its_own_piece_in_place(pool: Pool) -> None:
    assert pool.run(sharded) == [(True, True, True)] * 2


# the run's own state -----------------------------------------------------------------------------------------------


def lora() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A large frozen layer, of which somebody may write a part, and a small one that is trained."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 2))
    net[0].requires_grad_(False)
    return net, torch.optim.AdamW(net[1].parameters())


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes were copied, up or down, copy by copy."""
    sizes: list[int] = []

    def copy(into: list[Tensor], live: list[Tensor]) -> None:
        sizes.append(bytes_of(live))
        foreach_copy(into, live)

    monkeypatch.setattr(own_state, "foreach_copy", copy)
    return sizes


def test_frozen_weights_go_to_the_host_once_in_a_trial(moved: list[int]) -> None:
    net, optimizer = lora()
    own = OwnState(net, [optimizer])
    for _ in range(3):
        own.keep()
        own.leave()
    small = bytes_of(list(net[1].parameters()))
    # trained ones are always given back
    assert moved == [bytes_of(list(net.parameters())), small, small, small]


def point(p: Tensor) -> None:
    p.data = p.data * 2.0


WRITES: dict[str, Any] = {
    "in place": lambda p: p.mul_(2.0),
    "a bit, past torch": lambda p: p.data.view(torch.int32)[77, 3].bitwise_xor_(1),
    "in another order, past torch": lambda p: p.data.copy_(p.data.roll(1, 0)),
    "NaN, past torch": lambda p: p.data[5:7].fill_(float("nan")),
    "elsewhere": point,
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("before", [0, 2])
@torch.no_grad()
def test_frozen_weights_that_a_batch_writes_come_back_bit_for_bit(write: str, before: int) -> None:
    net, optimizer = lora()
    own, weight = OwnState(net, [optimizer]), net[0].weight
    for _ in range(before):
        own.keep()
        own.leave()
    for _ in range(2):
        healthy = weight.clone()
        own.keep()
        WRITES[write](weight)
        assert not torch.equal(weight, healthy)
        own.leave()
        assert torch.equal(weight, healthy)
    # between batches it is the run that writes
    WRITES[write](weight)
    healthy = weight.clone()
    own.keep()
    weight.zero_()
    own.leave()
    assert torch.equal(weight.view(torch.int32), healthy.view(torch.int32))


def frozen_shards() -> tuple[bool, int, int]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    net, optimizer = lora()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    sizes: list[int] = []

    def copy(into: list[Tensor], live: list[Tensor]) -> None:
        sizes.append(bytes_of(live))
        foreach_copy(into, live)

    before, own_state.foreach_copy = own_state.foreach_copy, copy
    try:
        own: Any = OwnState(net, [optimizer])
        mine: Any = net[0].weight.to_local()  # pyright: ignore[reportCallIssue]
        healthy, right = mine.clone(), True
        for number in range(3):
            own.keep()
            if number == 2 and torch.distributed.get_rank() == 0:
                mine.data[0, 0] += 1.0
            own.leave()
            right = right and torch.equal(mine, healthy)
    finally:
        own_state.foreach_copy = before
    return right, sizes[2], bytes_of(mine)


def test_frozen_shards_go_to_the_host_once_in_a_trial(pool: Pool) -> None:
    for right, again, frozen in pool.run(frozen_shards):
        assert right
        assert again < frozen


# where and against what -------------------------------------------------------------------------------------------


def test_a_schedule_says_each_place_once_and_a_request_once() -> None:
    schedule, state = SweepSchedule((0, 5), (2,)), SweepScheduleState()
    said = []
    for update in range(12):
        if update == 9:
            state = SweepScheduleState(state.done, "unfroze")
        state = SweepScheduleState.from_dict(state.to_dict())
        state, why = schedule.step(state, update=update, epoch=update // 5)
        said.append(why)
    assert said == ["asked for at=0", "", "", "", "", "asked for at=5", "", "", "", "unfroze", "asked for epochs=2", ""]


def test_places_passed_over_are_one_occasion() -> None:
    assert (
        SweepSchedule((0, 5), (1,)).step(SweepScheduleState(), update=7, epoch=1)[1] == "asked for at=0, at=5, epochs=1"
    )
    assert places("at", 3) == (3,)
    assert places("at", None) == ()


def test_the_reference_is_the_peak_of_each_group() -> None:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:], "lr": 1.0}], lr=1.0)
    assert reference_rates(optimizer) == [0.1, 1.0]
    cycle = torch.optim.lr_scheduler.CyclicLR(optimizer, [0.01, 0.1], [0.2, 2.0])
    assert reference_rates(optimizer, [cycle]) == [0.2, 2.0]
    torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.3, 3.0], total_steps=5)
    assert reference_rates(optimizer) == [0.3, 3.0]
