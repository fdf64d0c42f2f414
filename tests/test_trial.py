"""A trial's state never touches the healthy one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from lightning_lr.policies.agenda import Agenda, AgendaState, places
from lightning_lr.randomness import RandomState
from lightning_lr.reference import reference_rates
from lightning_lr.trial import Trial
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
    trial = Trial(net, [optimizer])
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
    trial = Trial(net, [optimizer], scaler)
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
    trial = Trial(net, [optimizer])
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


# where and against what -------------------------------------------------------------------------------------------


def test_an_agenda_says_each_place_once_and_a_request_once() -> None:
    agenda, state = Agenda((0, 5), (2,)), AgendaState()
    said = []
    for update in range(12):
        if update == 9:
            state = AgendaState(state.done, "unfroze")
        state = AgendaState.from_dict(state.to_dict())
        state, why = agenda.step(state, update=update, epoch=update // 5)
        said.append(why)
    assert said == ["asked for at=0", "", "", "", "", "asked for at=5", "", "", "", "unfroze", "asked for epochs=2", ""]


def test_places_passed_over_are_one_occasion() -> None:
    assert Agenda((0, 5), (1,)).step(AgendaState(), update=7, epoch=1)[1] == "asked for at=0, at=5, epochs=1"
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
