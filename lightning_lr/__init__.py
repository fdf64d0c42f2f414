"""Learning rates for PyTorch Lightning that compose, and explain themselves."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_lr.callbacks.autopilot import autopilot
    from lightning_lr.callbacks.cooldown import Cooldown
    from lightning_lr.callbacks.divergence import DivergenceError, DivergenceGuard
    from lightning_lr.callbacks.finder import LRFinder
    from lightning_lr.callbacks.monitor import LRMonitor
    from lightning_lr.callbacks.plateau import PlateauDecay
    from lightning_lr.callbacks.warmup import Warmup
    from lightning_lr.policies.cooldown import CooldownPolicy
    from lightning_lr.policies.divergence import DivergencePolicy
    from lightning_lr.policies.divergence_state import DivergenceState
    from lightning_lr.policies.plateau import PlateauPolicy, PlateauState
    from lightning_lr.policies.suggestion import Suggestion
    from lightning_lr.policies.sweep import SweepPolicy
    from lightning_lr.policies.sweep_state import SweepState
    from lightning_lr.policies.verdict import Signals, Verdict
    from lightning_lr.policies.warmup import WarmupPolicy
    from lightning_lr.rates.change import RateChange
    from lightning_lr.signals.metric import MetricError
    from lightning_lr.sweeps.finding import Finding

__version__ = "0.1.0.dev0"

__all__ = [
    "Cooldown",
    "CooldownPolicy",
    "DivergenceError",
    "DivergenceGuard",
    "DivergencePolicy",
    "DivergenceState",
    "Finding",
    "LRFinder",
    "LRMonitor",
    "MetricError",
    "PlateauDecay",
    "PlateauPolicy",
    "PlateauState",
    "RateChange",
    "Signals",
    "Suggestion",
    "SweepPolicy",
    "SweepState",
    "Verdict",
    "Warmup",
    "WarmupPolicy",
    "autopilot",
]

_HOMES = {
    "callbacks.autopilot": ["autopilot"],
    "callbacks.cooldown": ["Cooldown"],
    "callbacks.divergence": ["DivergenceError", "DivergenceGuard"],
    "callbacks.finder": ["LRFinder"],
    "callbacks.monitor": ["LRMonitor"],
    "callbacks.plateau": ["PlateauDecay"],
    "callbacks.warmup": ["Warmup"],
    "rates.change": ["RateChange"],
    "sweeps.finding": ["Finding"],
    "signals.metric": ["MetricError"],
    "policies.cooldown": ["CooldownPolicy"],
    "policies.divergence": ["DivergencePolicy"],
    "policies.divergence_state": ["DivergenceState"],
    "policies.plateau": ["PlateauPolicy", "PlateauState"],
    "policies.suggestion": ["Suggestion"],
    "policies.sweep": ["SweepPolicy"],
    "policies.sweep_state": ["SweepState"],
    "policies.verdict": ["Signals", "Verdict"],
    "policies.warmup": ["WarmupPolicy"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # TensorBoard imports this package for its tab, and the report does: neither should wait for torch and Lightning
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
