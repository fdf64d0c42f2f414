"""The memory that a sweep takes on the device: said beforehand, and short in its midst."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_lr as llr
from lightning_lr.batches import randomness
from lightning_lr.copies import footprint
from lightning_lr.copies.footprint import amount, free_on_device, second_state_footprint
from lightning_lr.copies.optimizer_memory import bytes_of
from lightning_lr.copies.parked import swap
from lightning_lr.trials.second_state import SecondState
from tests.pool import Pool
from tests.small import Loader, Model, pl, sgd, trainer
from tests.witness import Saves

SHORT: dict[str, Any] = {"steps": 20, "min_lr": 1e-4, "progress_bar": False}
CPU = torch.device("cpu")

# what it takes -------------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "momentum": functools.partial(torch.optim.SGD, momentum=0.9),
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "amsgrad": functools.partial(torch.optim.AdamW, amsgrad=True),
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adamax": torch.optim.Adamax,
    "RMSprop": torch.optim.RMSprop,
    "centered": functools.partial(torch.optim.RMSprop, centered=True, momentum=0.9),
    "Adagrad": torch.optim.Adagrad,
    "Adadelta": torch.optim.Adadelta,
    "Rprop": torch.optim.Rprop,
}


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.ones(2, 64)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("made", [0, 1], ids=["before the first update", "after one"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_foreseen_is_what_a_trial_takes_after_its_first_update(kind: str, made: int) -> None:
    net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 64))
    optimizer = KINDS[kind](net.parameters())
    for _ in range(made):
        step(net, optimizer)
    found = second_state_footprint(net, [optimizer])
    trial = SecondState(net, [optimizer])
    trial.enter(fresh=True)
    step(net, optimizer)
    trial.leave()
    held = bytes_of(list(trial._tensors.values()))
    held += sum(bytes_of(state) for states in trial._states for state in states.values())
    assert found.foreseen
    # counts and the like are a few numbers a parameter
    assert abs(found.bytes[CPU] - held) <= 0.01 * held
    assert found.gradients == ({} if made else {CPU: bytes_of(list(net.parameters()))})


def test_of_an_unknown_optimizer_its_own_state_is_left_to_words_until_it_has_some() -> None:
    class Own(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1})

        def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            for p in self.param_groups[0]["params"][:1]:
                self.state[p]["three"] = torch.zeros(3, *p.shape)

    net = nn.Linear(64, 64)
    optimizer = Own(net.parameters())
    assert second_state_footprint(net, [optimizer]) == ({CPU: 4 * 65 * 64}, {CPU: 4 * 65 * 64}, False)
    step(net, optimizer)
    assert second_state_footprint(net, [optimizer]).bytes == {CPU: 4 * 4 * 65 * 64}
    assert second_state_footprint(net, [optimizer]).foreseen


def test_frozen_weights_are_copied_and_have_no_state_and_tied_ones_count_once() -> None:
    net = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    net[1].weight = net[0].weight
    net[2].weight.requires_grad_(False)
    found = second_state_footprint(net, [torch.optim.Adam(net.parameters())])
    assert (found.bytes, found.gradients) == ({CPU: 4 * 64 * (2 + 2)}, {CPU: 4 * 64})


def test_each_device_is_counted_for_itself() -> None:
    net = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(8, 8, bias=False, device="meta")])
    found = second_state_footprint(net, [torch.optim.SGD(net.parameters(), momentum=0.9)])
    assert found.bytes == {CPU: 4 * 16 * 2, torch.device("meta"): 4 * 64 * 2}


def test_free_is_what_the_runs_own_peak_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(
        mem_get_info=lambda device: (30, 100), memory_reserved=lambda device: 60, max_memory_allocated=lambda device: 50
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: card)
    assert free_on_device(torch.device("cuda", 0)) == 40
    assert free_on_device(CPU) == float("inf")
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace())
    assert free_on_device(torch.device("cuda", 0)) == float("inf")


def test_amounts_are_said_in_words() -> None:
    assert [amount(n) for n in (0, 999, 1000, 123456, 5e9, 7e13)] == [
        *("0 bytes", "999 bytes", "1 kB", "123 kB", "5 GB", "70 TB"),
    ]


# beforehand ----------------------------------------------------------------------------------------------------------


class Rests(Model):
    """Keeps its weights at every batch's end."""

    def __init__(self, configure: Any = None, **kwargs: Any) -> None:
        super().__init__(configure or functools.partial(sgd, momentum=0.9), **kwargs)
        self.rests: list[list[Tensor]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.rests.append(self.weights())


def fit(root: Path, finder: llr.LRFinder, model: Any = None, **settings: Any) -> tuple[Any, list[str]]:
    """The model, and what was warned of."""
    model = Rests() if model is None else model
    made = trainer(root, callbacks=[finder, llr.LRMonitor()], **{"max_epochs": 6, **settings})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made.fit(model, Loader(8, offset=64 * made.global_rank))
    return model, [str(w.message) for w in told if "LRFinder" in str(w.message)]


def same(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    return all(x.equal(y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


WEIGHTS = 4 * 65 * 10


@pytest.mark.parametrize(("free", "sweeps"), [(3 * WEIGHTS, True), (3 * WEIGHTS - 1, False)])
def test_a_sweep_that_does_not_fit_is_refused_in_words_and_leaves_no_trace(
    free: int, sweeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # weights, momentum, and the gradients of the first batch
    monkeypatch.setattr(footprint, "free_on_device", lambda device: free)
    finder = llr.LRFinder(**SHORT)
    model, told = fit(tmp_path, finder)
    takes = "t takes 5.2 kB on cpu for a second state of weights and optimizer (7.8 kB with the gradients to come)"
    story = [line for line in finder.run.peers[-1].story if takes in line]
    assert (len(finder.findings), len(told), len(story)) == (int(sweeps), int(not sweeps), 1)
    assert "7.8 kB are free there beside the run's own peak" in story[0]
    if not sweeps:
        assert "no sweep (at the start)" in told[0]
        assert "The rate stays as it is" in told[0]
        assert "leave LRFinder out" in told[0]
        bare = Rests()
        trainer(tmp_path, max_epochs=6).fit(bare, Loader(8))
        assert same(model.rests, bare.rests)


def test_on_the_cpu_nothing_is_said_of_it(tmp_path: Path) -> None:
    finder = llr.LRFinder(**SHORT)
    _, told = fit(tmp_path, finder)
    assert not told
    assert not [line for line in finder.run.peers[-1].story if "second state" in line]


def test_after_a_sweep_without_room_the_next_one_that_fits_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [0.0, 1e9]
    monkeypatch.setattr(footprint, "free_on_device", lambda device: left.pop(0))
    finder = llr.LRFinder(at=[0, 9], **SHORT)
    _, told = fit(tmp_path, finder, max_epochs=12)
    assert len(told) == len(finder.findings) == 1
    assert left == []


def free_on_a_rank(root: str, poor: int | None) -> dict[str, Any]:
    kept = footprint.free_on_device
    finder = llr.LRFinder(**SHORT)
    try:
        footprint.free_on_device = lambda device: 1e3 if finder.run.trainer.global_rank == poor else 1e6
        model, told = fit(Path(root), finder, devices=2, strategy="ddp")
    finally:
        footprint.free_on_device = kept
    story = [line for line in finder.run.peers[-1].story if "second state" in line]
    return {
        "told": story,
        "warned": len(told),
        "found": finder.findings,
        "weights": [w.tolist() for w in model.weights()],
    }


@pytest.mark.parametrize("poor", [None, 0, 1])
def test_where_one_rank_is_short_of_memory_none_sweeps(poor: int | None, pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(free_on_a_rank, str(tmp_path), poor)
    # warnings are rank zero's alone
    assert (first.pop("warned"), second.pop("warned")) == (int(poor is not None), 0)
    assert first == second
    assert len(first["found"]) == (poor is None)
    if poor is not None:
        assert f"on the device of rank {poor} for a second state" in first["told"][0]
        assert "1 kB are free" in first["told"][0]


# in its midst --------------------------------------------------------------------------------------------------------


class Short:
    """Lets the memory run out when a trial makes its state for the n-th time; or as a parked one comes back.

    Args:
        nth: from 1.
        midway: after the copies of the weights have been made.
        how: what is short.
    """

    def __init__(self, nth: int, *, midway: bool = True, how: str = "copy") -> None:
        self.left, self.midway, self.how = nth, midway, how
        self.copy, self.unpark = SecondState._copy, SecondState.unpark

    def __enter__(self) -> Short:
        def copy(trial: Any) -> None:
            self.out("copy", before=True)
            self.copy(trial)
            self.out("copy", before=False)

        def unpark(trial: Any) -> None:
            if trial.parked:
                self.out("unpark", before=self.midway is False)
            self.unpark(trial)

        SecondState._copy, SecondState.unpark = copy, unpark
        return self

    def out(self, how: str, *, before: bool) -> None:
        if how == self.how and before != self.midway:
            self.left -= 1
            if self.left == 0:
                raise torch.cuda.OutOfMemoryError("no memory")

    def __exit__(self, *_: Any) -> None:
        SecondState._copy, SecondState.unpark = self.copy, self.unpark


class Ends(pl.Callback):
    """What the weights are at the batches' ends within the sweep, and how many such there were."""

    def __init__(self, finder: llr.LRFinder) -> None:
        self.finder, self.seen = finder, []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.finder.sweeping:
            self.seen.append(pl_module.weights())


class Steps(Rests):
    """Under manual optimization."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def run_short(
    root: str, nth: int, where: dict[str, Any], rank: int | None = None, manual: bool = False, resume: bool = False
) -> dict[str, Any]:
    """A run in which memory runs out (on one rank, or in the only process), and what is to be seen of it."""
    finder, model = llr.LRFinder(**SHORT), (Steps if manual else Rests)()
    ends, monitor = Ends(finder), llr.LRMonitor()
    more: dict[str, Any] = {} if rank is None else {"devices": 2, "strategy": "ddp"}
    made = trainer(root, callbacks=[finder, ends, monitor], max_epochs=6, **more)
    nth = nth if rank in (None, made.global_rank) else -1
    with warnings.catch_warnings(), Short(nth, **where):
        warnings.simplefilter("ignore")
        made.fit(
            model, Loader(8, offset=64 * made.global_rank), ckpt_path=str(Path(root) / "mid.ckpt") if resume else None
        )
    return {
        "found": finder.findings,
        "swept": len(ends.seen),
        "still": same(ends.seen, ends.seen[:1] * len(ends.seen)),
        "updates": finder.ledger.updates(0),
        "rates": monitor.rates,
        "story": [line for line in monitor.story if "memory" in line],
        "weights": [w.tolist() for w in model.weights()],
    }


MOMENTS: dict[str, tuple[int, dict[str, Any], int]] = {
    "the first state": (1, {"midway": False}, 0),
    "the first state, midway": (1, {}, 0),
    "the second trial": (8, {}, 13),
    "a pause": (9, {}, 16),
    "after a pause": (1, {"how": "unpark"}, 17),
}
"""When memory runs out: the how many-th time, how, and how many batches the sweep had ended by then."""


def check_short(found: dict[str, Any], moment: str) -> None:
    assert found["found"] == []
    assert found["still"]
    # the batch in which it ran out is the run's own, and so are all after it
    assert found["updates"] == 48 - found["swept"]
    assert set(found["rates"].values()) == {0.1}
    assert len(found["story"]) == 1
    assert "ran out of memory after" in found["story"][0]
    assert "takes 5.2 kB" in found["story"][0]
    assert found["swept"] == MOMENTS[moment][2]


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_memory_that_runs_out_ends_the_sweep_at_the_healthy_weights(moment: str, manual: bool, tmp_path: Path) -> None:
    nth, where, _ = MOMENTS[moment]
    found = run_short(str(tmp_path), nth, where, manual=manual)
    if manual:
        # the moments are others, since no batch of a trial counts
        found["swept"] = MOMENTS[moment][2]
        found["updates"] = 48 - found["swept"]
    check_short(found, moment)


@pytest.mark.parametrize("moment", MOMENTS)
def test_memory_that_runs_out_on_one_rank_ends_the_sweep_on_all(moment: str, pool: Pool, tmp_path: Path) -> None:
    nth, where, _ = MOMENTS[moment]
    first, second = pool.run(run_short, str(tmp_path), nth, where, 1)
    assert first == second
    check_short(first, moment)


class Bursts(Rests):
    """In one of its steps memory runs out."""

    burst = 12

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.burst == self.trainer.global_step:
            raise torch.cuda.OutOfMemoryError("no memory")
        return super().training_step(batch, batch_idx)


def test_memory_that_runs_out_in_the_users_step_is_his_error_and_a_resumed_run_makes_no_sweep(tmp_path: Path) -> None:
    finder, model = llr.LRFinder(**SHORT), Bursts()
    first = model.weights()
    saves = pl.callbacks.LambdaCallback(on_exception=lambda t, *_: t.save_checkpoint(tmp_path / "end.ckpt"))
    made = trainer(tmp_path, callbacks=[finder, saves], max_epochs=6)
    with pytest.raises(torch.cuda.OutOfMemoryError), pytest.warns(UserWarning, match="ran out of memory after"):
        made.fit(model, Loader(8))
    assert same([model.weights()], [first])
    again, rest = llr.LRFinder(**SHORT), Rests()
    made = trainer(tmp_path, callbacks=[again], max_epochs=6)
    made.fit(rest, Loader(8), ckpt_path=str(tmp_path / "end.ckpt"))
    assert again.findings == []
    # the batch that raised is not made again
    assert again.ledger.updates(0) == 48 - 13


def test_a_sweep_that_finds_no_memory_on_resume_is_over(tmp_path: Path) -> None:
    finder = llr.LRFinder(**SHORT)
    made = trainer(tmp_path, callbacks=[finder, Saves(tmp_path / "mid.ckpt", 10)], max_epochs=6)
    made.fit(Rests(), Loader(8))
    assert len(finder.findings) == 1
    found = run_short(str(tmp_path), 1, {}, resume=True)
    assert (found["found"], found["swept"], len(found["story"])) == ([], 0, 1)
    assert found["updates"] == 48 - 11


# the state itself ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.complex64])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4)])
def test_values_are_exchanged_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(shape).to(dtype) for _ in range(2))
    if len(shape) == 2:
        a = a.t().contiguous().t()
    before = a.clone(), b.clone()
    places = a.data_ptr(), b.data_ptr()
    swap(a, b)
    assert a.equal(before[1])
    assert b.equal(before[0])
    assert (a.data_ptr(), b.data_ptr()) == places


def test_an_exchange_in_place_asks_for_no_memory() -> None:
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            seen.append(str(func))
            return out

    seen: list[str] = []
    a, b = torch.zeros(3), torch.ones(3)
    with Watch():
        swap(a, b)
    assert {name.split(".")[1] for name in seen} == {"detach", "view", "bitwise_xor_"}


def test_a_saved_trial_is_in_host_memory_and_comes_back_to_where_torch_has_it() -> None:
    def made(device: str) -> tuple[Any, SecondState]:
        net = nn.Linear(2, 2)
        optimizer = torch.optim.Adam(net.parameters())
        trial = SecondState(net, [optimizer])
        if device == "meta":
            for p in list(net.parameters()):
                torch.utils.swap_tensors(p, nn.Parameter(p.detach().to("meta")))
        return net, trial

    net, trial = made("cpu")
    trial.enter(fresh=True)
    net(torch.ones(1, 2)).sum().backward()
    trial._optimizers[0].step()
    trial.leave()
    state = trial.state_dict()
    trial.park()
    parked = trial.state_dict()
    assert trial.parked
    assert all(map(torch.equal, parked["tensors"], state["tensors"]))
    _, other = made("meta")
    other.load_state_dict(state)
    for held in other._states[0].values():
        places = {name: value.device.type for name, value in held.items()}
        assert places == {"step": "cpu", "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_between_trials_there_is_never_more_than_one_state() -> None:
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    trial = SecondState(net, [optimizer])
    trial.enter(fresh=True)
    trial.leave()
    old = [weakref.ref(t) for state in trial._states[0].values() for t in state.values()]
    left: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "clone" in str(func):
                left.append(sum(ref() is not None for ref in old))
            return func(*args, **(kwargs or {}))

    with Watch():
        trial.enter(fresh=True)
    trial.leave()
    assert set(left) == {0}


def test_the_generators_of_every_device_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Tensor] = {}

    def card(device: torch.device) -> Any:
        if device.type == "mps":
            return SimpleNamespace(get_rng_state=lambda: drawn["mps"], set_rng_state=lambda s: drawn.update(mps=s))
        if device.type == "xpu":
            return SimpleNamespace()
        return SimpleNamespace(
            get_rng_state=lambda d: drawn[str(d)], set_rng_state=lambda s, d: drawn.update({str(d): s})
        )

    monkeypatch.setattr(torch, "get_device_module", card)
    places = [torch.device(name) for name in ("cpu", "cuda:0", "cuda:1", "mps", "xpu", "meta")]
    before = {name: torch.tensor(n) for n, name in enumerate(("cuda:0", "cuda:1", "mps"))}
    drawn.update(before)
    state = randomness.RandomState(*places)
    drawn.update((name, torch.tensor(-1)) for name in before)
    state.restore()
    assert drawn == before
