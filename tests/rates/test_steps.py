"""Steps out of the ordinary: one within another, steps that raise, raw ones, tensor rates, compiled ones."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.utils import counters

import lightning_lr as llr
from lightning_lr.rates.change import Part
from lightning_lr.rates.held_rates import rounded
from lightning_lr.rates.ledger import Ledger
from lightning_lr.rates.listener import Listener
from tests.small import Loader, Model, pl, trainer

# one step within another ---------------------------------------------------------------------------------------------


class Rule(torch.optim.Optimizer):
    """The plain rule, p - lr * g, under a class that nobody has hooked yet; keeps the rates that it applied."""

    def __init__(self, params: Any, lr: Any) -> None:
        super().__init__(params, {"lr": lr})
        self.applied: list[float] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            self.applied.append(float(group["lr"]))
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad)
        return loss


def family() -> dict[str, Any]:
    """Fresh classes, none of which torch has hooked: it hooks a class when one of it is made."""

    class Parent(Rule):
        pass

    class Once(Parent):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    class Before(Parent):
        def step(self, closure: Any = None) -> Any:
            loss = None if closure is None else closure()
            super().step()
            return loss

    class Twice(Parent):
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            super().step()
            return loss

    class Stubborn(Parent):
        """Tries once more where its parent raises."""

        def step(self, closure: Any = None) -> Any:
            try:
                super().step(Stubborn.fail)
            except MemoryError:
                return super().step(closure)

        @staticmethod
        def fail() -> None:
            raise MemoryError

    class Around(torch.optim.Optimizer):
        """An optimizer around another one, whose param groups it shares."""

        def __init__(self, params: Any, lr: Any) -> None:
            self.inner = Parent(params, lr)
            super().__init__(self.inner.param_groups, self.inner.defaults)
            self.param_groups = self.inner.param_groups

        @property
        def applied(self) -> list[float]:
            return self.inner.applied

        def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return self.inner.step(closure)

    class SharesHooks(Around):
        """And so do some with the hooks, so that the inner step calls them too."""

        def __init__(self, params: Any, lr: Any) -> None:
            super().__init__(params, lr)
            self.inner._optimizer_step_pre_hooks = self._optimizer_step_pre_hooks
            self.inner._optimizer_step_post_hooks = self._optimizer_step_post_hooks

    kinds = (Parent, Once, Before, Twice, Stubborn, Around, SharesHooks)
    return {kind.__name__: kind for kind in kinds}


class Heard(Listener):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def before_update(self, optimizer: int) -> None:
        self.calls.append("before")

    def gradients_ready(self, optimizer: int) -> None:
        self.calls.append("ready")

    def rate_used(self, optimizer: int, group: int, old: float | None, new: float, parts: list[Part]) -> None:
        self.calls.append(new)

    def after_update(self, optimizer: int) -> None:
        self.calls.append("after")


def train(name: str, *, hooked: bool, closures: bool, tensor: bool = False, attach: bool = True) -> dict[str, Any]:
    """Eight updates under a recursive schedule and a factor that changes in the middle."""
    kinds = family()
    if hooked:
        kinds["Parent"]([nn.Parameter(torch.zeros(1))], lr=1.0)
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3))
    optimizer = kinds[name]([weight], lr=torch.tensor(0.1) if tensor else 0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    heard = Heard()
    ledger = Ledger([optimizer], heard)
    if attach:
        ledger.attach()
    rests = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    for update in range(8):
        if update in (2, 5):
            ledger.set_factor("Test", 0.5 if update == 2 else 0.3, "a test")
        if closures:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        rests.append(float(optimizer.param_groups[0]["lr"]))
        schedule.step()
    return {
        "applied": optimizer.applied,
        "weights": weight.tolist(),
        "rests": rests,
        "updates": ledger.updates(0),
        "heard": heard.calls,
    }


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("closures", [False, True])
@pytest.mark.parametrize("name", ["Once", "Before", "Twice", "Stubborn", "Around", "SharesHooks"])
def test_a_step_that_calls_its_parents_has_the_same_rates_whether_torch_has_hooked_that_or_not(
    name: str, closures: bool, tensor: bool
) -> None:
    alone, nested = (train(name, hooked=hooked, closures=closures, tensor=tensor) for hooked in (False, True))
    assert nested == alone
    assert nested["updates"] == 8
    untouched = train("Parent", hooked=False, closures=False, tensor=tensor, attach=False)
    assert nested["rests"] == untouched["rests"]


@pytest.mark.parametrize("closures", [False, True])
def test_the_update_of_a_nested_step_is_that_of_a_plain_one(closures: bool) -> None:
    plain = train("Parent", hooked=False, closures=closures)
    for name in ("Once", "Before", "Around", "SharesHooks"):
        assert train(name, hooked=True, closures=closures) == plain, name
    assert plain["heard"][:5] == ["before", "ready", 0.1, "after", "before"]


@pytest.mark.parametrize("hooked", [False, True])
def test_a_step_that_raises_midway_and_is_made_again_by_the_user_counts_once(hooked: bool) -> None:
    kinds = family()
    if hooked:
        kinds["Parent"]([nn.Parameter(torch.zeros(1))], lr=1.0)

    class Late(kinds["Once"]):  # type: ignore[misc, valid-type]
        """Raises after its parent's step, when torch calls no more hooks."""

        broken = True

        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            if self.broken:
                self.broken = False
                raise MemoryError
            return loss

    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer = Late([weight], lr=1.0)
    ledger = Ledger([optimizer], Listener())
    ledger.attach()
    ledger.set_factor("Test", 0.25, "a test")
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with pytest.raises(MemoryError):
        optimizer.step()
    optimizer.step()
    schedule.step()
    assert (ledger.updates(0), optimizer.param_groups[0]["lr"], optimizer.applied) == (1, 0.5, [0.25, 0.25])
    optimizer.broken = True
    with pytest.raises(MemoryError):
        optimizer.step()
    ledger.take_back()
    assert optimizer.param_groups[0]["lr"] == 0.5
    optimizer.step()
    assert (ledger.updates(0), optimizer.param_groups[0]["lr"]) == (2, 0.5)


class Failing(torch.optim.SGD):
    """Its fourth step raises, after its parent's has moved the weights."""

    made = 0

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.made += 1
        if self.made == 4:
            raise MemoryError
        return loss


class Swallows(Model):
    def __init__(self) -> None:
        super().__init__(lambda m: Failing(m.parameters(), lr=0.1))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        with contextlib.suppress(MemoryError):
            optimizer.step()

    def on_train_start(self) -> None:
        pass

    def on_train_batch_start(self, *_: Any) -> None:
        self.trace.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])


def test_a_step_that_raised_and_was_let_pass_is_forgotten_at_the_next_batch(tmp_path: Any) -> None:
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    model, warmup = Swallows(), llr.Warmup(12)
    trainer(tmp_path, callbacks=[warmup], max_epochs=2).fit(model, Loader(6))
    assert warmup.ledger.updates(0) == 11
    # the module's hook comes after the callbacks'
    assert model.trace == [[0.1]] * 12
    assert model.at_rest[4:] == [[0.1]] * 8


# tensor rates --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reads(of: Callable[[], list[Tensor]]) -> Iterator[list[str]]:
    """Notes each time that the host asks for what one of the tensors holds."""
    names, seen = ("__float__", "item", "tolist", "__bool__", "__int__", "__format__"), []
    kept = {name: getattr(Tensor, name) for name in names}
    depth = [0]

    def noting(name: str) -> Any:
        def call(self: Tensor, *args: Any) -> Any:
            if not depth[0] and any(self is tensor for tensor in of()):
                seen.append(name)
            depth[0] += 1
            try:
                return kept[name](self, *args)
            finally:
                depth[0] -= 1

        return call

    for name in names:
        setattr(Tensor, name, noting(name))
    try:
        yield seen
    finally:
        for name, function in kept.items():
            setattr(Tensor, name, function)


def two_groups(module: Any, schedule: Any = None) -> Any:
    parts = [{"params": module.backbone.parameters()}, {"params": module.head.parameters()}]
    optimizer = torch.optim.Adam(parts, lr=torch.tensor(1e-3))
    return optimizer if schedule is None else ([optimizer], [{"scheduler": schedule(optimizer), "interval": "step"}])


FIVE: dict[str, Callable[[], list[Any]]] = {
    "warm-up": lambda: [llr.Warmup(20)],
    "guard": lambda: [llr.DivergenceGuard()],
    "all": lambda: [llr.Warmup(20), llr.PlateauDecay("train_loss_step", min_lr=1e-6), llr.DivergenceGuard()],
}


class Stepwise(Model):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_start(self) -> None:
        pass

    def on_train_batch_end(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("callbacks", FIVE)
def test_a_tensor_rate_is_read_only_after_the_schedule_has_written_it(
    callbacks: str, scheduled: bool, tmp_path: Any
) -> None:
    def count(made: list[Any]) -> int:
        schedule = (lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.99)) if scheduled else None
        model = Stepwise(functools.partial(two_groups, schedule=schedule), hidden=16)
        run = trainer(tmp_path, callbacks=made, max_epochs=4)
        with reads(lambda: [g["lr"] for o in run.optimizers for g in o.param_groups]) as seen:
            run.fit(model, Loader(6))
        return len(seen)

    more = count(FIVE[callbacks]()) - count([])
    updates = 4 * 6
    assert more <= (2 * updates if scheduled else 0) + 8  # at the start
    assert more > 0


def test_the_rate_of_a_shared_tensor_is_read_once_for_all_groups() -> None:
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(3)]
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD([{"params": [w]} for w in weights], lr=rate)
    ledger = Ledger([optimizer], Listener())
    ledger.attach()
    with reads(lambda: [rate]) as seen:
        for update in range(6):
            ledger.set_factor("Test", 1.0 / (update + 1), "a test")
            optimizer.step()
            if update == 3:
                rate.mul_(0.5)
    assert len(seen) == 2
    assert rate.item() == float(torch.tensor(0.1)) * 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_what_is_believed_of_a_tensor_rate_is_what_it_holds(dtype: torch.dtype) -> None:
    rate = torch.zeros((), dtype=dtype)
    for value in (0.1, 1e-3, 1 / 3, 7.0, 5e-324, 1e-8, 0.0):
        rate.fill_(value)
        assert rounded(value, rate) == rate.item()


def test_an_optimizer_that_changes_its_own_tensor_rate_within_the_step_keeps_it() -> None:
    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.param_groups[0]["lr"].fill_(0.7)
            return super().step(closure)

    optimizer = Own([nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1))
    ledger = Ledger([optimizer], Listener())
    ledger.attach()
    ledger.set_factor("Test", 0.5, "a test")
    optimizer.step()
    assert optimizer.param_groups[0]["lr"].item() == pytest.approx(0.7)
    assert ledger.base(0, 0) == pytest.approx(0.7)


# raw steps, of which Lightning says nothing ---------------------------------------------------------------------------


class Raw(Model):
    """Steps the bare optimizer by hand; the batches of `bad` have no finite loss.

    Args:
        closure: whether the step gets a closure.
        own: whether the backward pass is the user's own too, so that nobody sees the loss.
        optimizers: of the same weights, stepped one after the other.
    """

    def __init__(self, bad: tuple[int, ...] = (), *, closure: bool = False, own: bool = False) -> None:
        super().__init__(lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
        self.automatic_optimization = False
        self.bad, self.closure, self.own = bad, closure, own
        self.batch, self.rests = 0, []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        broken = float("nan") if self.batch in self.bad else 1.0
        self.batch += 1

        def backward() -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1]) * broken
            loss.backward() if self.own else self.manual_backward(loss)
            return loss

        if self.closure:
            optimizer.step(backward)
        else:
            backward()
            optimizer.step()

    def on_train_batch_end(self, *_: Any) -> None:
        self.rests.append(self.head.weight.detach().clone())


UNSEEN = "DivergenceGuard sees no loss"


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("closure", [False, True])
def test_a_raw_step_is_judged_and_a_bad_one_is_truly_skipped(closure: bool, own: bool, tmp_path: Any) -> None:
    model, guard = Raw((7, 12), closure=closure, own=own), llr.DivergenceGuard(snapshot_every=5)
    told = pytest.warns(UserWarning, match=UNSEEN) if own else contextlib.nullcontext()
    with told:
        trainer(tmp_path, callbacks=[guard], max_epochs=3).fit(model, Loader(6))
    assert (guard.skips, guard.rewinds, guard.ledger.updates(0)) == (2, 0, 16)
    for update in (7, 12):
        assert model.rests[update].equal(model.rests[update - 1])
        assert not model.rests[update + 1].equal(model.rests[update])
    assert model.rests[-1].isfinite().all()
    assert guard._guarded.meter.losses == []


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("closure", [False, True])
def test_the_guard_leaves_no_trace_in_a_healthy_run_of_raw_steps(closure: bool, lag: Any, tmp_path: Any) -> None:
    runs = []
    for callbacks in ([], [llr.DivergenceGuard(lag=lag, snapshot_every=5)]):
        runs.append(Raw(closure=closure))
        trainer(tmp_path, callbacks=callbacks, max_epochs=3).fit(runs[-1], Loader(6))
    assert all(ours.equal(theirs) for ours, theirs in zip(runs[1].rests, runs[0].rests, strict=True))


class Mixed(Raw):
    """Every batch one step by Lightning's optimizer, then a raw one of the same weights."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for raw in (False, True):
            optimizer = self.optimizers(use_pl_optimizer=not raw)
            optimizer.zero_grad()
            broken = float("nan") if (self.batch, raw) in self.bad else 1.0
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]) * broken)
            before = self.head.weight.detach().clone()
            optimizer.step()
            self.moved.append(not self.head.weight.equal(before))
        self.batch += 1


@pytest.mark.parametrize("raw", [False, True])
def test_of_two_steps_in_a_batch_each_is_judged_once_and_only_the_bad_one_is_skipped(raw: bool, tmp_path: Any) -> None:
    model, guard = Mixed(((7, raw),)), llr.DivergenceGuard(snapshot_every=5)  # type: ignore[arg-type]
    model.moved = []
    trainer(tmp_path, callbacks=[guard], max_epochs=3).fit(model, Loader(6))
    assert [at for at, moved in enumerate(model.moved) if not moved] == [2 * 7 + raw]
    assert guard.summary()["judged"] == 36
    assert guard.ledger.updates(0) == 35


# no optimizer at all -------------------------------------------------------------------------------------------------


class Unoptimised(Model):
    """Lightning runs it with a mock of an optimizer, and says so."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)

    def on_train_start(self) -> None:
        pass


EACH: dict[str, Callable[[], list[Any]]] = {
    "Warmup": lambda: [llr.Warmup(fraction=0.1)],
    "Cooldown": lambda: [llr.Cooldown(fraction=0.1, on_stop=True)],
    "PlateauDecay": lambda: [llr.PlateauDecay("nobody logs it")],
    "DivergenceGuard": lambda: [llr.DivergenceGuard()],
    "LRFinder": lambda: [llr.LRFinder(steps=20)],
    "the finder of the second": lambda: [llr.LRFinder(steps=20, optimizer=1)],
    "LRMonitor": lambda: [llr.LRMonitor(momentum=True)],
    "all": lambda: llr.autopilot(),
}


@pytest.mark.parametrize("each", EACH)
def test_without_an_optimizer_the_callbacks_say_so_once_and_do_nothing(each: str, tmp_path: Any) -> None:
    callbacks = EACH[each]()
    logger = pl.loggers.CSVLogger(tmp_path) if each in ("LRMonitor", "all") else False
    run = trainer(tmp_path, callbacks=callbacks, logger=logger, max_epochs=3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run.fit(Unoptimised(), Loader(12))
        run.save_checkpoint(tmp_path / "idle.ckpt")
        run.fit_loop.max_epochs = 5
        run.fit(Unoptimised(), Loader(12), ckpt_path=tmp_path / "idle.ckpt")
    ours = [str(w.message) for w in told if "lightning_lr" in str(w.message)]
    assert len(ours) == 2, ours  # one for each fit
    assert "no optimizer" in ours[0]
    others = [str(w.message) for w in told if any(kind.name in str(w.message) for kind in callbacks)]
    assert others == []
    assert run.current_epoch == 5


# compiled steps ------------------------------------------------------------------------------------------------------


COMPILING = pytest.mark.filterwarnings("ignore")
"""What torch warns itself of while it compiles, and would take for a failure where warnings are errors."""


class Compiled(Stepwise):
    """Compiles the optimizer's step, its rate a number or a tensor."""

    def __init__(self, rate: Any) -> None:
        super().__init__(lambda m: torch.optim.SGD(m.parameters(), lr=rate, momentum=0.9), hidden=16)

    def on_train_start(self) -> None:
        optimizer = self.trainer.optimizers[0]
        optimizer.step = torch.compile(optimizer.step, backend="eager")


def compiled_run(root: Any, callbacks: list[Any], rate: Any) -> tuple[dict[str, int], list[Tensor]]:
    torch._dynamo.reset()
    counters.clear()
    model = Compiled(rate)
    trainer(root, callbacks=callbacks, max_epochs=4).fit(model, Loader(6))
    return dict(counters["frames"]), model.weights()


@COMPILING
def test_a_compiled_step_has_the_factor_and_compiles_none_of_what_listens_to_it(tmp_path: Any) -> None:
    def both() -> list[Any]:
        return [llr.Warmup(20), llr.DivergenceGuard(snapshot_every=5)]

    plain, plain_weights = compiled_run(tmp_path, [], torch.tensor(0.1))
    frames = {}
    for name, made in (("warm-up", [llr.Warmup(20)]), ("both", both())):
        frames[name], weights = compiled_run(tmp_path, made, torch.tensor(0.1))
    assert frames["warm-up"] == frames["both"]
    assert frames["both"]["total"] < plain["total"]
    model = Stepwise(lambda m: torch.optim.SGD(m.parameters(), lr=torch.tensor(0.1), momentum=0.9), hidden=16)
    trainer(tmp_path, callbacks=both(), max_epochs=4).fit(model, Loader(6))
    # torch has other kernels for a step that it compiles
    assert all(ours.allclose(theirs, 1e-3, 1e-4) for ours, theirs in zip(weights, model.weights(), strict=True))
    assert not any(ours.allclose(theirs, 1e-3, 1e-4) for ours, theirs in zip(weights, plain_weights, strict=True))


@COMPILING
def test_a_tensor_rate_that_changes_compiles_nothing_anew(tmp_path: Any) -> None:
    compiled_run(tmp_path, [], torch.tensor(0.1))  # what torch compiles once in a process
    still, _ = compiled_run(tmp_path, [llr.DivergenceGuard(snapshot_every=5)], torch.tensor(0.1))
    moving, _ = compiled_run(tmp_path, [llr.Warmup(20)], torch.tensor(0.1))
    assert moving == still


@pytest.mark.parametrize("steps", [1, 20])
def test_a_compiled_step_with_a_number_for_a_rate_is_told_of_once_when_that_changes(steps: int, tmp_path: Any) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        compiled_run(tmp_path, [llr.Warmup(steps)], 0.1)
    ours = [str(w.message) for w in told if "is compiled" in str(w.message)]
    assert len(ours) == (steps > 1)
    if ours:
        assert "lr=torch.tensor(0.1)" in ours[0]


@COMPILING
def test_a_step_within_a_compiled_step_counts_once() -> None:
    torch._dynamo.reset()
    kinds = family()
    kinds["Parent"]([nn.Parameter(torch.zeros(1))], lr=1.0)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = kinds["Once"]([weight], lr=torch.tensor(1.0))
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    ledger = Ledger([optimizer], Listener())
    ledger.attach()
    for update in range(4):
        ledger.set_factor("Test", 1.0 / (update + 2), "a test")
        weight.grad = torch.ones(1)
        optimizer.step()
        assert optimizer.param_groups[0]["lr"].item() == 1.0
    assert ledger.updates(0) == 4
    assert weight.item() == pytest.approx(-(1 / 2 + 1 / 3 + 1 / 4 + 1 / 5))
