"""Cost: how often the host waits at an update, and how many kernels it takes; no times."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_lr as llr
from lightning_lr.guard.limits import limit_gradients
from lightning_lr.signals import measure as signals
from tests.pool import Pool
from tests.small import Loader, Model, held_out, pl, trainer
from tests.witness import overheard

UPDATES = 24


class Counts(TorchDispatchMode):
    """Counts kernels, and what the host waits for.

    Here is no accelerator, so nothing waits. Counted is what would: an `item`, which `float`, `int` and `bool` of a
    tensor are too (`aten._local_scalar_dense`), a `tolist`, and a copy to the host that is not told not to wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.waits = 0

    def __enter__(self) -> Any:
        self._tolist = Tensor.tolist

        def tolist(tensor: Tensor) -> Any:
            self.waits += 1
            return self._tolist(tensor)

        Tensor.tolist = tolist
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        Tensor.tolist = self._tolist
        super().__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.kernels += not func.is_view
        if func is torch.ops.aten._local_scalar_dense.default:
            self.waits += 1
        elif func in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default):
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            waits = not (args[2] if len(args) > 2 else (kwargs or {}).get("non_blocking", False))
            self.waits += waits and out.device.type == "cpu" and source.device.type != "cpu"
        return out


class Each(pl.Callback):
    """What was counted from the start of each batch to that of the next: (waits, kernels)."""

    def __init__(self, counts: Counts) -> None:
        self.counts, self.seen, self.each = counts, (0, 0), []

    def on_train_batch_start(self, *_: Any) -> None:
        self._look()

    def on_train_batch_end(self, *_: Any) -> None:
        if len(self.each) == UPDATES:
            self._look()

    def _look(self) -> None:
        now = self.counts.waits, self.counts.kernels
        self.each.append((now[0] - self.seen[0], now[1] - self.seen[1]))
        self.seen = now


class Many(Model):
    """A model of 300 small tensors."""

    def __init__(self, rate: Any) -> None:
        super().__init__(lambda m: torch.optim.SGD(m.parameters(), lr=rate, foreach=True))
        self.many = nn.ParameterList([nn.Parameter(torch.ones(4)) for _ in range(298)])

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1]) + torch.cat(list(self.many)).square().mean()


def counted(callbacks: list[Any], *, tensor: bool = False, ranks: int = 1) -> tuple[list[tuple[int, int]], list[str]]:
    """What each update takes, and the collectives of all."""
    calls: list[str] = []
    with Counts() as counts, overheard(calls):
        each = Each(counts)
        more = {"devices": ranks, "strategy": "ddp"} if ranks > 1 else {}
        run = trainer(tempfile.mkdtemp(), callbacks=[*callbacks, each], max_epochs=1, **more)
        run.fit(Many(torch.tensor(0.1) if tensor else 0.1), Loader(UPDATES), held_out())
    return each.each[1:], calls


def added(make: Callable[[], list[Any]], **how: Any) -> tuple[list[int], list[int], int]:
    """The waits and the kernels of each update, and the collectives, beyond those of the run without callbacks."""
    with_it, calls = counted(make(), **how)
    without, plain = counted([], **how)
    assert len(with_it) == len(without) == UPDATES
    waits, kernels = ([a[i] - b[i] for a, b in zip(with_it, without, strict=True)] for i in (0, 1))
    return waits, kernels, len(calls) - len(plain)


def guard() -> list[Any]:
    return [llr.DivergenceGuard()]


def late_guard() -> list[Any]:
    return [llr.DivergenceGuard(lag=1)]


def ledger() -> list[Any]:
    return [llr.Warmup(10), llr.LRMonitor()]


def five() -> list[Any]:
    return llr.autopilot("val_loss", finder={"at": 10**9})


@pytest.mark.invariant(14)
@pytest.mark.parametrize(
    ("make", "tensor", "most", "at_a_copy"),
    [
        (guard, False, 1, 1),
        (late_guard, False, 1, 1),
        (ledger, False, 0, 0),
        (ledger, True, 1, 1),
        (five, False, 1, 1),
    ],
    ids=["guard", "guard with a lag", "ledger", "ledger with a tensor rate", "all five"],
)
@pytest.mark.filterwarnings("ignore:LRFinder. no sweep")
def test_an_update_waits_for_so_many_reads_at_most(make: Any, tensor: bool, most: int, at_a_copy: int) -> None:
    waits, _, _ = added(make, tensor=tensor)
    assert max(waits) <= at_a_copy
    assert sum(wait > most for wait in waits) <= 2


def test_a_tensor_rate_that_nobody_writes_is_read_once_in_a_run() -> None:
    waits, _, _ = added(lambda: [llr.LRMonitor()], tensor=True)
    assert sum(waits) <= 1


def test_with_a_lag_nothing_of_the_update_at_hand_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # a fake accelerator has no numbers: whoever asks for one raises
    class Event:
        def record(self, stream: Any) -> None: ...

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **kwargs: empty(*size, **kwargs))
    with FakeTensorMode(allow_non_fake_inputs=True), Counts() as counts:
        held = [nn.Parameter(torch.zeros(3, device="cuda:0")) for _ in range(5)]
        for p in held:
            p.grad = torch.zeros(3, device="cuda:0")
        loss = torch.zeros((), device="cuda:0")
        pending = signals.start(loss, held, device=torch.device("cuda", 0))
        limit_gradients(held, pending, 1.0)
        pending.send()
        assert counts.waits == 0
        # that is what the count would show without the lag
        pending = signals.start(loss, held, device=torch.device("cuda", 0))
        pending.packed().cpu()
    assert counts.waits == 1


def on_a_rank() -> Any:
    return [added(make, ranks=2) for make in (guard, five)]


def test_on_two_processes_an_update_of_300_tensors_takes_few_kernels_one_read_and_one_collective(pool: Pool) -> None:
    for alone, all_five in pool.run(on_a_rank):
        for waits, kernels, collectives in (alone, all_five):
            # in the first, whether any rank has logged the metric
            assert max(waits[1:]) <= 1
            assert statistics.median(kernels) <= 15
            assert collectives <= UPDATES + 4
        # and one at the start: on which rank least memory is free, and whether copies differ in size
        assert alone[2] == UPDATES + 1
