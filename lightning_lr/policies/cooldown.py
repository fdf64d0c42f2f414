"""The policy of a cooldown: a factor that falls from 1 over the last updates of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from lightning_lr.arguments import real_number, whole_number

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1.0 - x,
    "1-sqrt": lambda x: 1.0 - math.sqrt(x),
    "cosine": lambda x: 0.5 + 0.5 * math.cos(math.pi * x),
}
"""Each maps progress in [0, 1] to the share of the fall that is left, from 1 at 0 to 0 at 1."""


@dataclass(frozen=True)
class CooldownPolicy:
    """The factor of update k (from 0) of the fall is `end_factor + (1 - end_factor) * shape(k / steps)`.

    So the first update has the full rate, and the last one, k = steps - 1, is one step above `end_factor`: with
    `end_factor=0` it still changes the weights. With `shape="linear"` it is a linear warm-up of the same length in
    reverse.

    Args:
        steps: the length, in optimizer updates, >= 1.
        shape: `linear`, `1-sqrt` (one minus the square root of progress) or `cosine` (half a wave).
        end_factor: the factor to which it falls, a ratio in [0, 1).
        begun: the progress with which it begins, in [0, 1). Above 0 it is the rest of a fall whose end has moved:
            `shape(begun + (1 - begun) * k / steps)`.

    Raises:
        ValueError: for a value outside its bounds.

    Source: Hägele et al. 2024, "Scaling laws and compute-optimal training beyond fixed training durations", section 3
    (arXiv 2405.18392; linear and 1-sqrt).

    Example:
        >>> policy = CooldownPolicy(steps=4)
        >>> [policy.factor(k) for k in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """

    steps: int
    shape: str = "linear"
    end_factor: float = 0.0
    begun: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole_number("steps", self.steps, 1, "for no cooldown, leave Cooldown out"))
        if self.shape not in tuple(SHAPES):
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")
        real_number("end_factor", self.end_factor, "[0, 1)", "it is the share of the rate at the end")
        real_number("begun", self.begun, "[0, 1)", "it is the share of the way that lies behind")

    def progress(self, update: int) -> float:
        """The share of the fall that is over at update `update` (from 0), in [begun, 1]."""
        return self.begun + (1.0 - self.begun) * min(max(update, 0), self.steps) / self.steps

    def factor(self, update: int) -> float:
        """The factor of update `update` (from 0), a ratio in [end_factor, 1]."""
        return self.end_factor + (1.0 - self.end_factor) * SHAPES[self.shape](self.progress(update))

    def rest(self, update: int, steps: int) -> CooldownPolicy:
        """The rest of the fall from update `update` on, spread over `steps` updates, because its end has moved.

        Example:
            >>> policy = CooldownPolicy(steps=4).rest(2, steps=5)
            >>> [round(policy.factor(k), 3) for k in range(5)]
            [0.5, 0.4, 0.3, 0.2, 0.1]
        """
        return replace(self, steps=steps, begun=self.progress(min(update, self.steps - 1)))
