"""Finding: what a sweep over rates has found, as data and as a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightning_lr.policies.suggestion import Suggestion
from lightning_lr.policies.sweep import MARGIN, SweepState
from lightning_lr.saved import fields


@dataclass(frozen=True)
class Finding:
    """What came out of one sweep.

    Args:
        rates: the rate of each of the sweep's updates, absolute, of the group with the highest reference rate.
        losses: the loss before each of these updates, the mean over micro-batches and ranks.
        trials: (rate, mean loss at its end) of every rate that was trained from the healthy start; None: it blew up.
            Empty for a rule on a ramp.
        ramp: how many of the first updates were the ramp.
        suggestion: the suggested rate, absolute; None for a refusal.
        refusal: why there is none; empty otherwise.
        words: how it was found, or the refusal.
        rule: the rule's name.
        update: the optimizer's count of real updates at the sweep.
        step: the loggers' step at the sweep's end.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    trials: tuple[tuple[float, float | None], ...]
    ramp: int
    suggestion: float | None
    refusal: str
    words: str
    rule: str
    update: int
    step: int

    @classmethod
    def of(cls, state: SweepState, suggestion: Suggestion, rule: str, update: int, step: int) -> Finding:
        """What a policy's last state and suggestion say."""
        count = len(state.losses)
        return cls(
            state.rates[:count],
            state.losses,
            tuple((trial.rate, trial.mean) for trial in state.trials),
            state.trials[0].start if state.trials else count,
            suggestion.rate,
            suggestion.words if suggestion.refused else "",
            suggestion.words,
            rule,
            update,
            step,
        )

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain values, for a checkpoint."""
        lists = {"rates": list(self.rates), "losses": list(self.losses), "trials": [list(t) for t in self.trials]}
        names = ("ramp", "suggestion", "refusal", "words", "rule", "update", "step")
        return {"version": 1, **lists, **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Finding:
        """The finding that `to_dict` gave.

        Raises:
            SavedStateError: for a version that this release doesn't know.
        """
        own = fields(saved, 1, cls)
        trials = tuple((rate, mean) for rate, mean in own["trials"])
        return cls(**{**own, "rates": tuple(own["rates"]), "losses": tuple(own["losses"]), "trials": trials})

    def plot(self) -> Any:
        """The ramp's curve, the trials, what blew up, and the suggestion beside the rate that it is a share of.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        points = list(zip(self.rates[: self.ramp], self.losses[: self.ramp], strict=True))
        shown = [(rate, loss) for rate, loss in points if math.isfinite(loss)]
        axes.plot([r for r, _ in shown], [x for _, x in shown], "o-", color="0.6", markersize=3, label="ramp")
        ended = sorted((rate, mean) for rate, mean in self.trials if mean is not None)
        if ended:
            axes.plot([r for r, _ in ended], [x for _, x in ended], "s-", color="C0", label="trials: loss at the end")
        heights = [loss for _, loss in shown[: max(1, len(shown) // 2)]] + [mean for _, mean in ended]
        if heights:
            # the ramp's end goes through the roof, but what lies lowest is what a rule looks at
            low, high = min([*heights, *(loss for _, loss in shown)]), max(heights)
            room = max(high - low, 0.05 * abs(high), 1e-12)
            axes.set_ylim(low - 0.3 * room, high + room)
        # these have no height: at the top edge, whatever the scale
        blown = {rate for rate, mean in self.trials if mean is None} | {r for r, x in points if not math.isfinite(x)}
        if blown:
            edge = axes.get_xaxis_transform()
            top = [0.97] * len(blown)
            axes.plot(sorted(blown), top, "X", transform=edge, color="C3", markersize=9, label="blew up")
        if self.suggestion is not None:
            self._plot_suggestion(axes, self.suggestion)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss")
        if self.refusal:
            axes.set_title(f"no suggestion: {self.refusal}", fontsize=8, wrap=True, pad=12)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
        return figure

    def _plot_suggestion(self, axes: Any, rate: float) -> None:
        words = f"suggestion {rate:.3g} ({self.rule})"
        if self.trials:
            # a share of the best trial's rate: without that word the line looks misplaced
            best = rate / MARGIN
            how = "lowest loss" if "lowest loss" in self.words else "highest stable rate"
            words = f"suggestion {rate:.3g} ({self.rule}): {MARGIN:g} x {best:.3g} ({how})"
            axes.axvline(best, color="C2", linestyle=":", linewidth=1)
            arrow = {"arrowstyle": "->", "color": "C2"}
            at = axes.get_xaxis_transform()
            axes.annotate("", xy=(rate, 0.06), xytext=(best, 0.06), xycoords=at, textcoords=at, arrowprops=arrow)
            axes.annotate(f" x {MARGIN:g}", xy=(best, 0.04), xycoords=at, fontsize=8)
        axes.axvline(rate, color="C2", label=words)
