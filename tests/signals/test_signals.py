"""Signals: one loss and one gradient norm per update, equal on all ranks."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import lightning_lr as llr
from lightning_lr.signals import loss_meter, norms
from lightning_lr.signals import measure as signals
from lightning_lr.signals.loss_meter import LossMeter
from lightning_lr.signals.measure import Measured
from lightning_lr.signals.norms import widest_float
from tests.pool import Pool
from tests.small import Loader, Model, trainer


def measure(*args: Any) -> Measured:
    return signals.measure(*args, device=torch.device("cpu"))


def parameters(*grads: list[float] | None) -> list[torch.Tensor]:
    made = []
    for grad in grads:
        p = torch.nn.Parameter(torch.zeros(1 if grad is None else len(grad)))
        p.grad = None if grad is None else torch.tensor(grad)
        made.append(p)
    return made


@pytest.mark.parametrize(
    ("losses", "parts", "scale", "mean"),
    [
        ([2.0], 1, None, 2.0),
        ([0.5, 1.0, 1.5, 2.0], 4, None, 5.0),
        ([0.5, 1.0], 4, None, 3.0),  # the last, shorter window of an epoch
        ([1024.0], 1, 512.0, 2.0),
        ([256.0, 512.0], 2, 512.0, 1.5),
    ],
)
def test_the_loss_is_what_the_user_computed(losses: Any, parts: int, scale: float | None, mean: float) -> None:
    scaler = None
    if scale is not None:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(torch.ones(1))
    meter = LossMeter()
    for loss in losses:
        meter.add(torch.tensor(loss, requires_grad=True) * 1.0, parts, scaler)
    taken = meter.take()
    assert taken is not None
    assert float(taken) == pytest.approx(mean)
    assert meter.take() is None


def test_the_norm_is_that_of_the_whole_gradient_and_missing_ones_are_left_out() -> None:
    found = measure(torch.tensor(1.5), parameters([3.0, 0.0], None, [0.0, 4.0]))
    assert found == Measured(1.5, 5.0, (), 1.5)


def test_further_numbers_come_back() -> None:
    more = [torch.tensor(2.0, dtype=torch.float64), torch.tensor(3.0)]
    assert measure(torch.tensor(1.5), parameters([1.0]), None, more).more == (2.0, 3.0)
    assert measure(None, parameters([1.0]), None, more) == Measured(None, 1.0, (2.0, 3.0), None)


def test_a_gradient_that_is_still_scaled_is_unscaled() -> None:
    assert measure(torch.tensor(1.0), parameters([512.0]), torch.tensor([256.0])).grad_norm == 2.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_makes_the_whole_norm_bad(bad: float) -> None:
    assert not math.isfinite(measure(torch.tensor(1.0), parameters([1.0], [bad])).grad_norm)
    loss = measure(torch.tensor(bad), parameters([1.0])).loss
    assert loss is not None
    assert not math.isfinite(loss)


def test_low_precision_and_no_gradients_are_fine() -> None:
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    p.grad = torch.tensor([3.0, 4.0], dtype=torch.bfloat16)
    assert measure(torch.tensor(1.0), [p, *parameters([0.0])]).grad_norm == 5.0
    assert measure(torch.tensor(1.0), parameters(None)).grad_norm == 0.0


def _two(losses: list[float | None], grads: list[float], times: int = 1) -> Measured:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    own = losses[rank]
    loss = None if own is None else torch.tensor(own)
    return measure(loss, parameters([grads[rank]] * times), None, [torch.tensor(1.0 + rank)])


def test_ranks_get_the_same_numbers_and_one_ranks_nan_is_everybodys(pool: Pool) -> None:
    first, second = pool.run(_two, [1.0, 2.0], [3.0, 3.0])
    assert first[:3] == second[:3] == (1.5, 3.0, (3.0,))
    assert (first.own_loss, second.own_loss) == (1.0, 2.0)
    for losses, grads in [([1.0, math.nan], [1.0, 1.0]), ([1.0, math.inf], [1.0, 1.0])]:
        assert all(not math.isfinite(found.loss) for found in pool.run(_two, losses, grads))
    assert all(not math.isfinite(found.grad_norm) for found in pool.run(_two, [1.0, 1.0], [1.0, math.inf]))


def test_a_loss_that_only_one_rank_saw_is_the_loss_of_both(pool: Pool) -> None:
    for losses in ([None, 2.0], [2.0, None]):
        first, second = pool.run(_two, losses, [3.0, 3.0])
        assert first[:3] == second[:3] == (2.0, 3.0, (3.0,))
        assert [first.own_loss, second.own_loss] == losses
    assert [found.loss for found in pool.run(_two, [None, None], [3.0, 3.0])] == [None, None]
    assert all(math.isnan(found.loss) for found in pool.run(_two, [None, math.nan], [3.0, 3.0]))


def test_the_norm_of_a_half_precision_gradient_does_not_overflow() -> None:
    p = torch.nn.Parameter(torch.zeros(2**20, dtype=torch.float16))
    p.grad = torch.full_like(p, 100.0)
    assert measure(torch.tensor(1.0), [p, *parameters([0.0])]).grad_norm == pytest.approx(100.0 * 2**10, rel=0.01)
    assert p.grad is not None
    p.grad[7] = math.inf
    assert measure(torch.tensor(1.0), [p]).grad_norm == math.inf


HUGE = 1e25
"""Finite in float32; its square is not."""


def test_a_gradient_whose_square_is_too_large_for_its_precision_has_a_norm() -> None:
    held = parameters([3.0 * HUGE, 0.0], None, [0.0, 4.0 * HUGE], [1.0], [])
    assert measure(torch.tensor(1.0), held).grad_norm == pytest.approx(5.0 * HUGE)
    assert measure(torch.tensor(1.0), held, torch.tensor([4.0])).grad_norm == pytest.approx(1.25 * HUGE)
    assert measure(None, parameters([HUGE, math.inf])).grad_norm == math.inf
    assert math.isnan(measure(None, parameters([HUGE, math.nan], [math.inf])).grad_norm)
    sparse = parameters([0.0, 0.0])[0]
    sparse.grad = torch.tensor([HUGE, HUGE]).to_sparse()
    assert measure(None, [sparse]).grad_norm == pytest.approx(HUGE * 2**0.5)
    brain = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    brain.grad = torch.full_like(brain, HUGE)
    assert measure(None, [brain]).grad_norm == pytest.approx(HUGE * 2**0.5, rel=0.01)


def test_it_has_one_on_several_ranks_too_and_all_look_again_when_one_has_to(pool: Pool) -> None:
    # the mean over the ranks of squares, of four numbers each
    for grads, norm in [((HUGE, HUGE), 2.0 * HUGE), ((3.0, HUGE), 2.0 * HUGE / 2**0.5)]:
        first, second = pool.run(_two, [1.0, 2.0], list(grads), 4)
        assert first[:3] == second[:3]
        assert first.grad_norm == pytest.approx(norm)
    for grads in [(HUGE, math.inf), (HUGE, math.nan)]:
        assert all(not math.isfinite(found.grad_norm) for found in pool.run(_two, [1.0, 1.0], list(grads), 4))


def test_numbers_that_were_sent_are_not_looked_at_again() -> None:
    held = parameters([HUGE, HUGE])
    pending = signals.start(None, held, device=torch.device("cpu")).send()
    held[0].grad = torch.ones(2)
    assert pending.read().grad_norm == math.inf


# devices -------------------------------------------------------------------------------------------------------------


def cuda(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64, device="cuda") for value in values]


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.Tensor]]:
    """As on two ranks with accelerators that are not there; gives all that went into a collective."""
    given: list[torch.Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, *_, **__: given.append(tensor))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield given


@pytest.mark.parametrize("case", ["an incident", "no loss", "loss on the CPU", "two devices", "nothing"])
def test_a_collective_gets_a_tensor_of_the_ranks_own_device_only(case: str, ranks: list[torch.Tensor]) -> None:
    root = torch.device("cuda", 0)
    loss = torch.tensor(1.0) if case == "loss on the CPU" else None
    held = [torch.nn.Parameter(torch.zeros(3, device=f"cuda:{i}")) for i in range(2)]
    for p in held if case != "an incident" else ():
        p.grad = torch.zeros(3, device=p.device)
    kept = {"an incident": [], "nothing": [], "two devices": held}.get(case, held[:1])
    more = cuda(0.0, 1.0) if case == "an incident" else [torch.tensor(1.0, dtype=torch.float64)]
    signals.start(loss, kept, None, more, device=root)
    assert [tensor.device for tensor in ranks] == [root]
    assert [tensor.numel() for tensor in ranks] == [3 + len(more)]


def test_in_one_process_too_parameters_may_lie_on_several_devices() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        held = [torch.nn.Parameter(torch.zeros(3, device=f"cuda:{i}")) for i in (1, 0)]
        for p in held:
            p.grad = torch.zeros(3, device=p.device)
        found = signals.start(cuda(1.0)[0], held, None, [torch.zeros(())], device=torch.device("cuda", 0))
        assert found.packed().device == torch.device("cuda", 0)


def test_no_float_is_wider_than_the_device_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(shape: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if device.type == "mps" or device.index == 1:
            raise TypeError("this device has no float64")
        return torch.ones(shape, dtype=dtype)

    monkeypatch.setattr(torch, "zeros", made)
    widest_float.cache_clear()
    found = {place: widest_float(torch.device(place)) for place in ("cpu", "cuda:1", "mps", "xpu:0", "xpu:1")}
    widest_float.cache_clear()
    assert [place for place, dtype in found.items() if dtype == torch.float32] == ["mps", "xpu:1"]


def without_doubles(tensor: torch.Tensor) -> None:
    assert tensor.device.type != "cuda" or tensor.dtype != torch.float64


def test_on_a_device_without_doubles_nothing_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # this torch can't even pretend to have one, so another device stands in
    for module in (loss_meter, norms, signals):
        monkeypatch.setattr(module, "widest_float", lambda d: torch.float32 if d.type == "cuda" else torch.float64)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            tree_map_only(torch.Tensor, without_doubles, out)
            return out

    narrow = torch.device("cuda", 0)
    scaler = torch.amp.GradScaler("cpu")
    with FakeTensorMode(allow_non_fake_inputs=True), Watch():
        p = torch.nn.Parameter(torch.zeros(3, device=narrow))
        p.grad = torch.zeros(3, device=narrow)
        scaler._scale = torch.ones((), device=narrow)
        meter = LossMeter()
        meter.add(torch.ones((), device=narrow), 2, scaler)
        more = [torch.zeros((), dtype=torch.float64)]
        signals.start(meter.take(), [p], torch.ones(1, device=narrow), more, device=narrow).packed()


def collected(kind: str) -> Any:
    """A fit on two ranks; gives what differs between the device of a collective and the root device, and the story."""
    wrong: list[str] = []
    kept = {name: getattr(torch.distributed, name) for name in ("all_reduce", "all_gather", "all_gather_into_tensor")}
    callbacks = [llr.LRFinder(steps=20), llr.Warmup(4), llr.PlateauDecay("train_loss"), llr.DivergenceGuard()]
    run = trainer(tempfile.mkdtemp(), callbacks=callbacks, devices=2, strategy="ddp", max_epochs=4)

    def noting(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            tree_map_only(
                torch.Tensor,
                lambda tensor: tensor.device == run.strategy.root_device or wrong.append(name),
                (args, kwargs),
            )
            return kept[name](*args, **kwargs)

        return call

    for name in kept:
        setattr(torch.distributed, name, noting(name))
    try:
        model = Unheard(kind)
        run.fit(model, Loader(12))
    finally:
        for name, function in kept.items():
            setattr(torch.distributed, name, function)
    finder, guard = callbacks[0], callbacks[-1]
    return {
        "wrong": wrong,
        "found": finder.result,
        "judged": repr(guard.record._window),
        "incidents": (guard.skips, guard.rewinds),
        "weights": [p.tolist() for p in model.parameters()],
    }


class Unheard(Model):
    """Manual optimization in which one rank's loss at times, or always, passes Lightning by.

    Args:
        kind: on which batches of rank 1: `often`, `always`, `never`; or `nowhere`: on no batch of either rank.
    """

    def __init__(self, kind: str) -> None:
        super().__init__(lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
        self.automatic_optimization = False
        self.kind, self.batch = kind, 0

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.batch += 1
        bad = float("nan") if self.batch in (30, 39) else 1.0
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1]) * bad
        self.log("train_loss", loss)
        deaf = {"often": self.batch % 3 == 0, "always": True, "never": False, "nowhere": True}[self.kind]
        if deaf and (self.global_rank == 1 or self.kind == "nowhere"):
            # as manual_backward does, but for the hook
            self.trainer.strategy.pre_backward(loss)
            loss.backward()
        else:
            self.manual_backward(loss)
        optimizer.step()


@pytest.mark.parametrize("kind", ["never", "often", "always", "nowhere"])
def test_a_rank_that_hears_no_loss_judges_and_sweeps_as_the_others_do(kind: str, pool: Pool) -> None:
    first, second = pool.run(collected, kind)
    assert first == second
    assert first["wrong"] == []
    assert (first["found"] is None) == (kind == "nowhere")
    # a sweep that never hears of a loss never ends
    assert sum(first["incidents"]) == (0 if kind == "nowhere" else 2)
