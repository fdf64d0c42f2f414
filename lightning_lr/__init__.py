"""Learning rates for PyTorch Lightning that compose, and explain themselves."""

from lightning_lr.callbacks.autopilot import autopilot
from lightning_lr.callbacks.cooldown import Cooldown
from lightning_lr.callbacks.divergence import DivergenceError, DivergenceGuard
from lightning_lr.callbacks.finder import LRFinder
from lightning_lr.callbacks.monitor import LRMonitor
from lightning_lr.callbacks.plateau import PlateauDecay
from lightning_lr.callbacks.warmup import Warmup
from lightning_lr.change import RateChange
from lightning_lr.finding import Finding
from lightning_lr.metric import MetricError
from lightning_lr.policies.cooldown import CooldownPolicy
from lightning_lr.policies.divergence import DivergencePolicy, DivergenceState
from lightning_lr.policies.divergence_state import Signals, Verdict
from lightning_lr.policies.plateau import PlateauPolicy, PlateauState
from lightning_lr.policies.suggestion import Suggestion
from lightning_lr.policies.sweep import SweepPolicy, SweepState
from lightning_lr.policies.warmup import WarmupPolicy

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
