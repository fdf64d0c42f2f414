"""Signals: one loss and one gradient norm per update, equal on all ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lightning_lr.signals import LossMeter, Measured, measure
from tests.pool import Pool


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


def _two(losses: list[float], grads: list[float]) -> Measured:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    return measure(torch.tensor(losses[rank]), parameters([grads[rank]]), None, [torch.tensor(1.0 + rank)])


def test_ranks_get_the_same_numbers_and_one_ranks_nan_is_everybodys(pool: Pool) -> None:
    first, second = pool.run(_two, [1.0, 2.0], [3.0, 3.0])
    assert first[:3] == second[:3] == (1.5, 3.0, (3.0,))
    assert (first.own_loss, second.own_loss) == (1.0, 2.0)
    for losses, grads in [([1.0, math.nan], [1.0, 1.0]), ([1.0, math.inf], [1.0, 1.0])]:
        assert all(not math.isfinite(found.loss) for found in pool.run(_two, losses, grads))
    assert all(not math.isfinite(found.grad_norm) for found in pool.run(_two, [1.0, 1.0], [1.0, math.inf]))
