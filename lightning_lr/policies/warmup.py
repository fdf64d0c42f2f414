"""The policy of a warm-up: a factor that rises to 1 over a param group's first updates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lightning_lr.arguments import real_number, whole_number

EXPONENT = 5.0
"""The length of the exponential shape in time constants: after a fifth of the warm-up, 63% of the rise is over."""

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cosine": lambda x: 0.5 - 0.5 * math.cos(math.pi * x),
    "exponential": lambda x: math.expm1(-EXPONENT * x) / math.expm1(-EXPONENT),
    "constant": lambda x: float(x >= 1.0),
}
"""Each maps progress in [0, 1] to a share of the rise, from 0 at 0 to 1 at 1."""


@dataclass(frozen=True)
class WarmupPolicy:
    """The factor of update k (from 0) is `start_factor + (1 - start_factor) * shape((k + 1) / steps)`.

    The last update of the warm-up, k = steps - 1, has the full rate, and so have all that follow.

    Args:
        steps: the length, in optimizer updates, >= 1.
        shape: `linear`, `cosine`, `exponential` (five time constants) or `constant` (`start_factor` until the last
            update).
        start_factor: the factor from which it rises, a ratio in [0, 1).

    Raises:
        ValueError: for a value outside its bounds.

    Source: Goyal et al. 2017, section 2.2 (linear; `constant` is theirs too); Ma & Yarats 2021, section 5
    (exponential, untuned length).

    Example:
        >>> policy = WarmupPolicy(steps=4)
        >>> [policy.factor(k) for k in range(6)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    steps: int
    shape: str = "linear"
    start_factor: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole_number("steps", self.steps, 1, "for no warm-up, leave Warmup out"))
        if self.shape not in tuple(SHAPES):
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")
        real_number("start_factor", self.start_factor, "[0, 1)", "it is the share of the rate at the start")
        if self.shape == "constant" and self.start_factor == 0.0:
            raise ValueError(
                "start_factor must be in (0, 1) with shape='constant', got 0.0: "
                "the rate would stay zero until the last update of the warm-up; give start_factor=0.1, say"
            )

    def factor(self, update: int) -> float:
        """The factor of update `update` (from 0), a ratio in [start_factor, 1]."""
        if update + 1 >= self.steps:
            return 1.0
        return self.start_factor + (1.0 - self.start_factor) * SHAPES[self.shape]((update + 1) / self.steps)


def untuned_steps(beta2: float) -> int:
    """The warm-up length for an Adam-type optimizer that needs no tuning: `2 / (1 - beta2)` updates.

    Args:
        beta2: the decay of the second moment, in [0, 1).

    Source: Ma & Yarats 2021, "On the adequacy of untuned warmup for adaptive optimization", section 5.

    Example:
        >>> untuned_steps(0.999)
        2000
    """
    return max(1, round(2.0 / (1.0 - beta2)))
