"""The policy of a plateau: has a metric stopped improving?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from lightning_lr.arguments import real_number, whole_number
from lightning_lr.saved import fields
from lightning_lr.statistics.trend import probability_of_decrease, probability_of_decrease_robust

NO_DECREASE = 0.51
"""Below this probability a series counts as not falling, as in dlib's `count_steps_without_decrease`."""

CHECKS_PER_WINDOW = 20
"""The trend is tested this many times per window of values, so a verdict comes at most 5% of a window late."""


@dataclass(frozen=True)
class PlateauState:
    """What `PlateauPolicy` remembers: plain numbers.

    Args:
        best: the best value so far; None before the first.
        bad_checks: values in a row that were no better than the best (`test="patience"`).
        cooldown_left: values that are still passed over after a decay.
        decays: decays so far.
        window: the latest values, oldest first, at most `patience` of them (`test="trend"`).
        since_test: values since the trend was last tested (`test="trend"`).
    """

    best: float | None = None
    bad_checks: int = 0
    cooldown_left: int = 0
    decays: int = 0
    window: tuple[float, ...] = ()
    since_test: int = 0

    def to_dict(self) -> dict[str, Any]:
        """A dict of numbers and lists, for a checkpoint."""
        return {
            "version": 1,
            "best": self.best,
            "bad_checks": self.bad_checks,
            "cooldown_left": self.cooldown_left,
            "decays": self.decays,
            "window": list(self.window),
            "since_test": self.since_test,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> PlateauState:
        """The state that `to_dict` gave.

        Raises:
            SavedStateError: for a version that this release doesn't know.
        """
        own = fields(saved, 1, cls)
        return cls(**{**own, "window": tuple(own["window"])})


@dataclass(frozen=True)
class PlateauPolicy:
    """Says when the learning rate should decay, from one metric.

    With `test="patience"` the decays come exactly where those of `torch.optim.lr_scheduler.ReduceLROnPlateau` come, for
    the same finite values. With `test="trend"` a decay comes when `patience` values show no improving trend: the
    probability that the line through them falls (with `mode="min"`), with and without their largest tenth, is below
    0.51. This test is meant for noisy values at every update; it needs no `threshold` and is robust to outliers.

    Args:
        mode: `min` if lower is better, `max` if higher is.
        patience: how many bad values in a row are tolerated, >= 0 (`patience`), or the length of the window in values,
            >= 3 (`trend`).
        threshold: the least improvement that counts, >= 0: a ratio below 1 (`rel`) or absolute (`abs`); `trend` does
            not use it.
        threshold_mode: `rel` (relative to the best value) or `abs`.
        cooldown: values passed over after each decay, >= 0.
        test: `patience` or `trend`.

    Raises:
        ValueError: for a value outside its bounds.

    Source: torch's `ReduceLROnPlateau`; dlib's `dnn_trainer` and `count_steps_without_decrease{,_robust}`.

    Example:
        >>> policy, state = PlateauPolicy(patience=1), PlateauState()
        >>> decays = []
        >>> for loss in [1.0, 0.9, 0.9, 0.9, 0.9]:
        ...     state, decay = policy.step(state, loss)
        ...     decays.append(decay)
        >>> decays
        [False, False, False, True, False]
    """

    mode: str = "min"
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    test: str = "patience"

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {self.mode!r}")
        if self.test not in ("patience", "trend"):
            raise ValueError(f"test must be 'patience' or 'trend', got {self.test!r}")
        if self.threshold_mode not in ("rel", "abs"):
            raise ValueError(f"threshold_mode must be 'rel' or 'abs', got {self.threshold_mode!r}")
        object.__setattr__(self, "patience", whole_number("patience", self.patience, 3 if self.test == "trend" else 0))
        object.__setattr__(self, "cooldown", whole_number("cooldown", self.cooldown, 0))
        relative = self.threshold_mode == "rel"
        real_number("threshold", self.threshold, "[0, 1)" if relative else "[0, inf)", "a ratio" if relative else "")

    def step(self, state: PlateauState, value: float, *, resting: bool = False) -> tuple[PlateauState, bool]:
        """Takes one value of the metric.

        Args:
            state: the state that the step before returned.
            value: the metric. A value that is not finite changes nothing: it is not a bad check.
            resting: True while the metric says nothing about the rate (during warm-up, for example): the value can
                improve the best one, but never counts against the rate.

        Returns:
            The new state, and whether the rate should decay now.
        """
        if not math.isfinite(value):
            return state, False
        if self.test == "trend":
            return self._step_trend(state, value, resting)
        state, bad = self._compare(state, value)
        if resting:
            return replace(state, bad_checks=0), False
        bad_checks = state.bad_checks + 1 if bad else 0
        cooldown_left = state.cooldown_left
        if cooldown_left > 0:
            cooldown_left, bad_checks = cooldown_left - 1, 0
        if bad_checks > self.patience:
            return replace(state, bad_checks=0, cooldown_left=self.cooldown, decays=state.decays + 1), True
        return replace(state, bad_checks=bad_checks, cooldown_left=cooldown_left), False

    def forget(self, state: PlateauState) -> PlateauState:
        """The state without what counts against the present rate, for example after a rewind. The best value stays."""
        return replace(state, bad_checks=0, window=(), since_test=0)

    def _compare(self, state: PlateauState, value: float) -> tuple[PlateauState, bool]:
        best = state.best
        if best is not None:
            sign = -1.0 if self.mode == "min" else 1.0
            bound = (
                best * (1.0 + sign * self.threshold) if self.threshold_mode == "rel" else best + sign * self.threshold
            )
            if not (value < bound if self.mode == "min" else value > bound):
                return state, True
        return replace(state, best=value), False

    def _step_trend(self, state: PlateauState, value: float, resting: bool) -> tuple[PlateauState, bool]:
        better = state.best is None or (value < state.best if self.mode == "min" else value > state.best)
        best = value if better else state.best
        if resting:
            return replace(self.forget(state), best=best), False
        if state.cooldown_left > 0:
            return replace(state, best=best, cooldown_left=state.cooldown_left - 1), False
        window = (*state.window[-(self.patience - 1) :], value)
        since_test = state.since_test + 1
        state = replace(state, best=best, window=window, since_test=since_test)
        if len(window) < self.patience or since_test < max(1, self.patience // CHECKS_PER_WINDOW):
            return state, False
        series = window if self.mode == "min" else tuple(-v for v in window)
        flat = probability_of_decrease(series) < NO_DECREASE and probability_of_decrease_robust(series) < NO_DECREASE
        if not flat:
            return replace(state, since_test=0), False
        return (
            replace(self.forget(state), cooldown_left=self.cooldown, decays=state.decays + 1),
            True,
        )
