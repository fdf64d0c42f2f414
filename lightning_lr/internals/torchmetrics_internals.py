"""Torchmetrics internals: the states of a metric, read and set."""

from __future__ import annotations

from typing import Any

import torchmetrics


def metric_updates(metric: torchmetrics.Metric) -> int:
    """The updates of a metric since its last reset."""
    return metric._update_count


def set_metric(metric: torchmetrics.Metric, updates: int, states: dict[str, Any]) -> None:
    """Sets a metric's states, and how many updates they come from."""
    for name, value in states.items():
        setattr(metric, name, value)
    metric._update_count, metric._computed = updates, None


def metric_memory(metric: torchmetrics.Metric) -> dict[str, Any]:
    """All attributes that an update of a metric changes, by name, live."""
    names = [*metric._defaults, "_update_count", "_computed", "_forward_cache"]
    return {name: getattr(metric, name) for name in names if hasattr(metric, name)}


def metric_states(metric: torchmetrics.Metric) -> dict[str, Any]:
    """A metric's states, by name, live."""
    return {name: getattr(metric, name) for name in metric._defaults}
