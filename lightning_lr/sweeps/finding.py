"""What a sweep has found, as data and as a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from typing import Any

from lightning_lr.policies.suggestion import Suggestion
from lightning_lr.policies.sweep_state import SweepState
from lightning_lr.saved import fields


@dataclass(frozen=True)
class Finding:
    """What a sweep of `LRFinder` has found.

    Args:
        rates: the rate of each of the sweep's updates, absolute, of the group with the highest reference rate.
        losses: the loss before each of these updates, the mean over micro-batches and ranks.
        trials: (rate, mean loss at the end) of every trial, which starts from the healthy weights; the loss is None if
            it blew up. Empty for a rule on a plain ramp.
        ramp: how many of the updates after the look were the ramp.
        suggestion: the suggested rate, absolute; None for a refusal.
        refusal: why there is none; empty otherwise.
        words: how it was found, or the refusal.
        rule: the rule's name.
        update: how many real updates the optimizer had made before the sweep.
        step: the loggers' step at the end of the sweep.
        look: how many of the first updates only looked at the healthy weights, at rate 0.
        sure: whether the losses left no doubt; None if the rule can't tell.
        low: the lowest rate that can't be told from the best one, absolute; None if that isn't known.
        high: the highest one, absolute; None if that isn't known.
        share: the share of the best rate that is suggested, in (0, 1]; None if that isn't known.
        around: the present rate, absolute, if this is a second opinion on it; else None.
        paired: whether the ramp used the batches of the look again; None if that isn't known.
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
    look: int = 0
    sure: bool | None = None
    low: float | None = None
    high: float | None = None
    share: float | None = None
    around: float | None = None
    paired: bool | None = None

    @classmethod
    def of(cls, state: SweepState, suggestion: Suggestion, rule: str, update: int, step: int) -> Finding:
        """The finding of a sweep, by the policy's last state and its suggestion."""
        count = len(state.losses)
        trained = state.trials[0].start if state.trials else count
        said = suggestion.sure, suggestion.low, suggestion.high, suggestion.share
        return cls(
            state.rates[:count],
            state.losses,
            tuple((trial.rate, None if trial.losses is None else trial.mean) for trial in state.trials),
            trained - state.ramp_start,
            suggestion.rate,
            suggestion.words if suggestion.refused else "",
            suggestion.words,
            rule,
            update,
            step,
            state.ramp_start,
            *said,
            state.around,
            state.paired,
        )

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain values, for a checkpoint."""
        lists = {"rates": list(self.rates), "losses": list(self.losses), "trials": [list(t) for t in self.trials]}
        own = [field.name for field in dataclass_fields(self) if field.name not in lists]
        return {"version": 3, **lists, **{name: getattr(self, name) for name in own}}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Finding:
        """The finding that `to_dict` gave, in this release or one of the two before.

        Raises:
            SavedStateError: for a version that this release doesn't know.
        """
        if saved.get("version") == 1:
            # before, no finding had a certainty, and a sweep began with its ramp
            saved = {**saved, "version": 2, "look": 0, **dict.fromkeys(("sure", "low", "high", "share", "around"))}
        if saved.get("version") == 2:
            saved = {**saved, "version": 3, "paired": None}
        own = fields(saved, 3, cls)
        trials = tuple((rate, mean) for rate, mean in own["trials"])
        return cls(**{**own, "rates": tuple(own["rates"]), "losses": tuple(own["losses"]), "trials": trials})

    def plot(self) -> Any:
        """A figure of the ramp, the trials, the rates that blew up, and the suggestion beside the best rate.

        If the ramp used the batches of the look, the differences between these are taken out: what is drawn is the mean
        of the look plus the change on the same batch.

        Returns:
            A `matplotlib.figure.Figure`.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.set_xscale("log")
        ramp = slice(self.look, self.look + self.ramp)
        points = list(zip(self.rates[ramp], self._ramp_losses(), strict=True))
        shown = [(rate, loss) for rate, loss in points if math.isfinite(loss)]
        if shown:
            axes.plot([r for r, _ in shown], [x for _, x in shown], "o-", color="0.6", markersize=3, label="ramp")
        # of a rate that was tried twice the second trial was the longer one
        ended = sorted((rate, mean) for rate, mean in dict(self.trials).items() if mean is not None)
        if ended:
            axes.plot([r for r, _ in ended], [x for _, x in ended], "s-", color="C0", label="trials: loss at the end")
        if self.look:
            axes.axhline(self._level, color="0.4", linestyle="--", linewidth=1, label="before, on the same batches")
        if self.low is not None and self.high is not None and self.low < self.high:
            axes.axvspan(self.low, self.high, color="C0", alpha=0.12, label="can't be told from the best")
        heights = [loss for _, loss in shown[: (len(shown) + 1) // 2]] + [mean for _, mean in ended]
        if heights:
            # the end of the ramp is far too high, and what matters is the lowest part
            low, high = min([*heights, *(loss for _, loss in shown)]), max(heights)
            room = max(high - low, 0.05 * abs(high), 1e-12)
            axes.set_ylim(low - 0.3 * room, high + room)
        # a blow-up has no height: it is marked at the top edge, whatever the scale
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

    @property
    def _level(self) -> float:
        """The mean loss of the look."""
        return math.fsum(self.losses[: self.look]) / self.look

    def _ramp_losses(self) -> list[float]:
        """The losses of the ramp, without the differences between batches if these are those of the look."""
        losses = self.losses[self.look : self.look + self.ramp]
        if not self.look or not self.paired:
            return list(losses)
        return [self._level + (loss - self.losses[index % self.look]) for index, loss in enumerate(losses)]

    def _plot_suggestion(self, axes: Any, rate: float) -> None:
        words = f"suggestion {rate:.3g} ({self.rule})"
        if self.sure is not None:
            words += ", sure" if self.sure else ", unsure"
        if self.share is not None and self.share < 1.0:
            # without the share the line looks misplaced
            best = rate / self.share
            words += f": {self.share:.2g} x {best:.3g}"
            axes.axvline(best, color="C2", linestyle=":", linewidth=1)
            arrow = {"arrowstyle": "->", "color": "C2"}
            at = axes.get_xaxis_transform()
            axes.annotate("", xy=(rate, 0.06), xytext=(best, 0.06), xycoords=at, textcoords=at, arrowprops=arrow)
            axes.annotate(f" x {self.share:.2g}", xy=(best, 0.04), xycoords=at, fontsize=8)
        axes.axvline(rate, color="C2", label=words)
