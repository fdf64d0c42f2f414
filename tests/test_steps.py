"""Steps out of the ordinary: one within another, steps that raise, raw ones, tensor rates, compiled ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lr.change import Listener, Part
from lightning_lr.ledger import Ledger

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
