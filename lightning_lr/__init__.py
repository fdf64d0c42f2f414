"""Learning rates for PyTorch Lightning that compose, and explain themselves."""

from lightning_lr.callbacks.monitor import LRMonitor
from lightning_lr.callbacks.plateau import PlateauDecay
from lightning_lr.callbacks.warmup import Warmup
from lightning_lr.ledger import RateChange
from lightning_lr.metric import MetricError
from lightning_lr.policies.plateau import PlateauPolicy, PlateauState
from lightning_lr.policies.warmup import WarmupPolicy

__version__ = "0.1.0.dev0"

__all__ = [
    "LRMonitor",
    "MetricError",
    "PlateauDecay",
    "PlateauPolicy",
    "PlateauState",
    "RateChange",
    "Warmup",
    "WarmupPolicy",
]
