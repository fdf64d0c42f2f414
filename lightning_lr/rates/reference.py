"""Reference rates: what a suggested rate is compared with, one for each param group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer


def reference_rates(optimizer: Optimizer, schedulers: Iterable[Any] = ()) -> list[float]:
    """Each param group's peak: `max_lr` under a schedule that rises to it (OneCycleLR, CyclicLR), else its first rate.

    Args:
        optimizer: the optimizer.
        schedulers: the trainer's; CyclicLR writes its peaks into no param group.

    Returns:
        Absolute rates, one for each param group.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> _ = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2.0, total_steps=10)
        >>> reference_rates(optimizer)
        [2.0]
    """
    groups = optimizer.param_groups
    rates = [float(group.get("max_lr", group.get("initial_lr", group["lr"]))) for group in groups]
    for scheduler in schedulers:
        peaks = getattr(scheduler, "max_lrs", None)
        if peaks is not None and getattr(scheduler, "optimizer", None) is optimizer:
            rates[: len(peaks)] = [float(peak) for peak in peaks]
    return rates
