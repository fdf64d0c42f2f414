"""The ledger under every scheduler that torch has: the exact effective rate within a step, the scheduler's at rest."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import lightning_lr
from lightning_lr.rates.ledger import Ledger
from lightning_lr.rates.listener import Listener
from tests.small import watch

UPDATES = 12
FACTOR = 0.3

SCHEDULERS: dict[str, Any] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda k: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 5, 6], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.2, 4),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 7),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.5, UPDATES + 1),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 4), lr_scheduler.ExponentialLR(o, 0.9)], [4]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 3), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "none": lambda o: None,
    "cosine after step": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.StepLR(o, 2, 0.5), lr_scheduler.CosineAnnealingLR(o, 5)], [5]
    ),
    "two at once": lambda o: (lr_scheduler.LinearLR(o, 0.2, 1.0, 6), lr_scheduler.StepLR(o, 4, 0.5)),
}

OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1),
    "tensor rate": lambda groups: torch.optim.SGD(groups, lr=torch.tensor(0.1), momentum=0.9),
}


def run(optimizer_name: str, scheduler_name: str, factor: float | None) -> tuple[list[Any], list[Any], Any]:
    """Trains two groups; returns the rates within each step, the rates at rest after it, and the optimizer."""
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    optimizer = OPTIMIZERS[optimizer_name]([{"params": [weights[0]]}, {"params": [weights[1]]}])
    made = SCHEDULERS[scheduler_name](optimizer)
    schedulers = made if isinstance(made, tuple) else (made,) if made is not None else ()
    ledger = Ledger([optimizer], Listener())
    inside: list[list[float]] = []
    if factor is not None:
        ledger.attach()
        ledger.set_factor("Test", factor, "a test")
    watch(optimizer, inside)
    at_rest = []
    for _ in range(UPDATES):
        optimizer.zero_grad()
        sum((w**2).sum() for w in weights).backward()
        optimizer.step()
        at_rest.append([float(group["lr"]) for group in optimizer.param_groups])
        for scheduler in schedulers:
            scheduler.step(1.0) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else scheduler.step()
        at_rest.append([float(group["lr"]) for group in optimizer.param_groups])
    ledger.detach()
    return inside, at_rest, optimizer


def test_every_scheduler_of_torch_is_in_the_table() -> None:
    public = {
        name
        for name, kind in inspect.getmembers(lr_scheduler, inspect.isclass)
        if issubclass(kind, lr_scheduler.LRScheduler) and not name.startswith("_") and name != "LRScheduler"
    }
    # SWALR lives elsewhere
    assert public - set(SCHEDULERS) == set()


@pytest.mark.filterwarnings("ignore:.*EPOCH_DEPRECATION.*", "ignore:The epoch parameter")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_factor_scales_every_step_exactly_and_never_reaches_the_scheduler(optimizer: str, scheduler: str) -> None:
    plain, plain_rest, _ = run(optimizer, scheduler, None)
    scaled, scaled_rest, _ = run(optimizer, scheduler, FACTOR)
    exact = (lambda x: float(torch.tensor(x))) if optimizer == "tensor rate" else (lambda x: x)
    assert len(plain) == UPDATES
    assert scaled == [[exact(rate * FACTOR) for rate in rates] for rates in plain]
    assert scaled_rest == plain_rest


def test_a_tensor_rate_stays_the_same_tensor() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD([weight], lr=rate)
    ledger = Ledger([optimizer], Listener())
    ledger.attach()
    ledger.set_factor("Test", 0.5, "a test")
    weight.grad = torch.ones(1)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] is rate
    assert (weight.item(), rate.item()) == (0.75, 0.5)


def test_groups_that_share_a_tensor_rate_can_have_different_factors() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    rate = torch.tensor(1.0)
    optimizer = torch.optim.SGD([{"params": [w]} for w in weights], lr=rate)
    ledger = Ledger([optimizer], Listener())
    ledger.attach()
    ledger.set_factor("Test", 0.5, "a test", group=1)
    for weight in weights:
        weight.grad = torch.ones(1)
    optimizer.step()
    assert [w.item() for w in weights] == [-1.0, -0.5]
    assert [g["lr"].item() for g in optimizer.param_groups] == [1.0, 1.0]


def test_an_exception_within_the_step_leaves_the_schedulers_rate() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    ledger = Ledger([optimizer], Listener())
    ledger.attach()
    ledger.set_factor("Test", 0.1, "a test")

    def closure() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    ledger.take_back()
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert ledger.updates(0) == 0


def test_code_within_the_closure_sees_and_changes_the_schedulers_rate() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    ledger = Ledger([optimizer], Listener())
    ledger.attach()
    ledger.set_factor("Test", 0.1, "a test")

    def closure() -> float:
        weight.grad = torch.ones(1)
        assert optimizer.param_groups[0]["lr"] == 0.5
        optimizer.param_groups[0]["lr"] *= 0.5
        return 0.0

    optimizer.step(closure)
    assert weight.item() == pytest.approx(1.0 - 0.025)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_an_exception_in_the_closure_that_the_user_swallows_leaves_no_factor_behind() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    ledger = Ledger([optimizer], Listener())
    ledger.attach()
    ledger.set_factor("Test", 0.1, "a test")

    def closure() -> float:
        raise MemoryError

    for _ in range(3):
        with pytest.raises(MemoryError):
            optimizer.step(closure)
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.5**4


def test_lbfgs_which_reads_its_rate_before_the_closure_has_the_effective_one() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.LBFGS([weight], lr=1.0, max_iter=1)
    ledger = Ledger([optimizer], Listener())
    ledger.attach()
    ledger.set_factor("Test", 0.25, "a test")

    def closure() -> torch.Tensor:
        assert optimizer.param_groups[0]["lr"] == 1.0
        weight.grad = torch.full((1,), 0.5)
        return torch.tensor(0.0)

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    # the first step of LBFGS is min(1, 1 / |g|) * lr * g
    assert weight.item() == 1.0 - 0.25 * 0.5


def test_a_whole_number_as_rate_comes_back_as_it_was() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1)
    ledger = Ledger([optimizer], Listener())
    ledger.attach()
    ledger.set_factor("Test", 0.1, "a test")
    optimizer.step()
    assert isinstance(optimizer.param_groups[0]["lr"], int)


def test_an_optimizer_without_hooks_is_refused() -> None:
    class Mine:
        param_groups = [{"lr": 0.1}]  # noqa: RUF012

    with pytest.raises(ValueError, match="optimizer 0 is a Mine: derive it from"):
        Ledger([Mine()], Listener()).attach()  # type: ignore[list-item]


def test_a_verdict_within_the_step_changes_this_very_update() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    ledger = Ledger([optimizer], Listener())
    ledger.attach()

    def closure() -> float:
        weight.grad = torch.ones(1)
        ledger.set_factor("Test", 0.5, "seen in the gradients")
        return 0.0

    optimizer.step(closure)
    assert weight.item() == -0.5
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_a_trial_rate_overrides_and_its_updates_do_not_count() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    ledger = Ledger([optimizer], Listener())
    ledger.attach()
    ledger.set_factor("Test", 0.5, "a test")
    ledger.set_trial([0.125])
    weight.grad = torch.ones(1)
    optimizer.step()
    assert (weight.item(), ledger.updates(0)) == (-0.125, 0)
    ledger.set_trial(None)
    optimizer.step()
    assert (weight.item(), ledger.updates(0)) == (-0.625, 1)
    with pytest.raises(ValueError, match="1 param groups"):
        ledger.set_trial([0.1, 0.2])


def test_a_discarded_update_is_not_counted() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    ledger = Ledger([optimizer], Listener())
    ledger.attach()
    optimizer.step(lambda: ledger.discard_update(0) or 0.0)
    assert ledger.updates(0) == 0
    optimizer.step(lambda: 0.0)
    assert ledger.updates(0) == 1


@pytest.mark.parametrize("factor", [-0.1, float("nan"), float("inf")])
def test_a_factor_that_is_no_ratio_is_refused(factor: float) -> None:
    ledger = Ledger([torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)], Listener())
    with pytest.raises(ValueError, match="finite and >= 0"):
        ledger.set_factor("Test", factor, "a test")


PACKAGE = Path(lightning_lr.__file__).parent


@pytest.mark.invariant(1)
def test_only_the_ledger_writes_a_rate() -> None:
    writers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets:
                if (
                    isinstance(target, ast.Subscript)
                    and isinstance(target.slice, ast.Constant)
                    and target.slice.value == "lr"
                ):
                    writers.add(path.name)
    assert writers == {"ledger.py"}
