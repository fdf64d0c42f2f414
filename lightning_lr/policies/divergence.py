"""Divergence: is this update healthy, and if that is in doubt, what does a trial show?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from lightning_lr.policies import backoff as rates
from lightning_lr.policies import evidence, suspicion
from lightning_lr.policies.backoff import Rate
from lightning_lr.policies.divergence_state import Side, Signals, Verdict
from lightning_lr.policies.evidence import Trying
from lightning_lr.policies.suspicion import Seen
from lightning_lr.saved import fields
from lightning_lr.statistics.window import centre

PROOF = 8
"""Updates after a copy that must be as usual before it may become the best."""

BUDGET, FREE = 0.02, 64
"""Trials that blame no weights, and holds, take at most this share of a run's updates, and so many more."""

NOTHING_FINITE = 300
"""Updates in a row that were not finite, at whatever weights, after which nothing is left to try."""


class Mark(NamedTuple):
    """What was known when a copy was taken.

    Args:
        update: the number of the update before which it was taken.
        seen: all that had been seen.
        rate: the highest effective rate of the updates since the copy before it.
    """

    update: int
    seen: Seen


class DivergenceState(NamedTuple):
    """What the guard knows of one optimizer.

    Args:
        update: updates judged so far, those not applied included.
        seen: what has been seen of losses and gradients.
        rate: what is known about rates.
        newest: of the newest copy.
        best: of the best.
        trying: the trial under way.
        spent: updates that trials without a rewind have taken.
        lows: by how many powers of the start's backoff the next trial that trains is lower.
    """

    update: int = 0
    seen: Seen = Seen()
    rate: Rate = Rate()
    newest: Mark = Mark(0, Seen())
    best: Mark = Mark(0, Seen())
    trying: Trying | None = None
    spent: int = 0
    lows: int = 0

    @property
    def rewinds(self) -> int:
        """In a row, without lasting progress."""
        return self.rate.rewinds

    def to_dict(self) -> dict[str, Any]:
        """A dict of numbers, lists and dicts, for a checkpoint."""

        def plain(value: Any) -> Any:
            if isinstance(value, tuple) and hasattr(value, "_asdict"):
                return {key: plain(item) for key, item in value._asdict().items()}  # pyright: ignore
            return [plain(item) for item in value] if isinstance(value, tuple) else value

        return {"version": 2, **plain(self)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> DivergenceState:
        """The state that `to_dict` gave.

        Raises:
            SavedStateError: for a version that this release doesn't know.
        """
        own = fields(saved, 2, cls)

        def seen(held: dict[str, Any]) -> Seen:
            return Seen(**{k: tuple(v) if isinstance(v, list) else v for k, v in held.items()})

        def mark(held: dict[str, Any]) -> Mark:
            return Mark(held["update"], seen(held["seen"]))

        trying = own["trying"]
        if trying is not None:
            trying = Trying(**{k: tuple(v) if isinstance(v, list) else v for k, v in trying.items()})
        return cls(
            own["update"], seen(own["seen"]), Rate(**own["rate"]), mark(own["newest"]), mark(own["best"]), trying,
            own["spent"], own["lows"],
        )  # fmt: skip


@dataclass(frozen=True)
class DivergencePolicy:
    """Judges each update before it is applied, and asks for a trial where numbers alone can't decide.

    Args:
        limit: a gradient's norm is limited to this multiple of the largest of the window, > 1; None: to nothing.
        trials: whether trials are made; without them only what is not finite is acted on.
        backoff: the ratio of the rate after a failure to the rate before, in (0, 1).
        max_rewinds: rewinds without lasting progress before it gives up, >= 1.
        loss_falls: whether the loss of a healthy run falls; without it no level is suspicious.
    """

    limit: float | None = 4.0
    trials: bool = True
    backoff: float = 0.5
    max_rewinds: int = 12
    loss_falls: bool = True

    def start(self, planned_rate: float = 0.0) -> DivergenceState:
        """The state before the first update; `planned_rate`: the highest that the user's schedule plans."""
        return DivergenceState(rate=Rate(healthy=planned_rate))

    def step(self, state: DivergenceState, signals: Signals) -> tuple[DivergenceState, Verdict]:
        """Judges one update."""
        state = state._replace(update=state.update + 1)
        finite = math.isfinite(signals.loss) and math.isfinite(signals.grad_norm)
        if state.trying is not None:
            return self._tried(state, state.trying, signals)
        if not finite:
            return self._nonfinite(state, signals)
        seen, bound = state.seen, suspicion.largest_norm(state.seen, self.limit)
        scale = 1.0 if signals.grad_norm <= bound else bound / signals.grad_norm
        if signals.size is not None:
            seen = suspicion.sized(seen, signals.size)
        before, usual = seen, signals.loss <= seen.usual
        seen = suspicion.accepted(seen, signals.loss, min(signals.grad_norm, bound))
        state = state._replace(seen=seen)
        why = suspicion.reason(seen) if self.trials and self.loss_falls else ""
        if why and state.spent <= FREE + BUDGET * state.update:
            return self._try(state._replace(seen=before._replace(high=seen.high, up=seen.up)), why, signals)
        calm = seen.high == 0 and seen.up == 0 and usual
        rate = rates.calm(state.rate, signals.rate, self.backoff, grow=calm)
        state = state._replace(rate=rate)
        cause = ""
        if scale < 1.0:
            cause = f"the gradient's norm {signals.grad_norm:.3g} is above {bound:.3g}, {self.limit:g} times the largest of late"
        return self._answer(state, signals, "accept", cause, scale=scale, copy=calm)

    def copied(self, state: DivergenceState) -> DivergenceState:
        """The state after a copy was taken of the weights at hand: before the update just judged was applied."""
        return state._replace(newest=Mark(state.update - 1, state.seen))

    def settled(self, state: DivergenceState) -> bool:
        """Is the newest copy healthy, and no worse than the best?"""
        seen, mark = state.seen, state.newest
        since = seen.count - mark.seen.count
        if state.trying is not None or since < PROOF or seen.high or seen.odd < since + FEW_ODD:
            return False
        losses = seen.losses[-min(since, suspicion.LEVEL) :]
        if not losses:
            return False
        usual = seen.usual
        return not self.loss_falls or (seen.gained and centre(losses) <= usual)

    def promoted(self, state: DivergenceState) -> DivergenceState:
        """The state after the newest copy became the best."""
        return state._replace(best=state.newest, rate=state.rate._replace(recent=0.0))

    def rewound(self, state: DivergenceState, to: Side) -> DivergenceState:
        """The state after somebody else gave a copy back."""
        mark = state.newest if to == "newest" else state.best
        return state._replace(
            seen=_back(state.seen, mark), newest=mark, best=mark, trying=None, rate=state.rate._replace(since=0, recent=0.0)
        )

    def broken_off(self, state: DivergenceState) -> DivergenceState:
        """The state after a trial that couldn't go on."""
        if state.trying is None:
            return state
        return state._replace(trying=None, seen=suspicion.asked(state.seen, state.trying.why, doubt=True))

    def again(self, state: DivergenceState) -> DivergenceState:
        """The state from which a run that was given up goes on."""
        return state._replace(
            trying=None, seen=state.seen._replace(nonfinite=0, high=0, up=0), rate=state.rate._replace(rewinds=0, since=0)
        )

    def _nonfinite(self, state: DivergenceState, signals: Signals) -> tuple[DivergenceState, Verdict]:
        seen = state.seen._replace(nonfinite=state.seen.nonfinite + 1)
        state = state._replace(seen=seen)
        what = "the loss" if not math.isfinite(signals.loss) else "a gradient"
        if signals.broken:
            to: Side = "newest" if seen.high == 0 and state.rate.since >= PROOF else "best"
            return self._rewind(state, signals, to, "the weights are not finite", sudden=True)
        if seen.nonfinite > NOTHING_FINITE:
            cause = f"{seen.nonfinite} updates in a row were not finite at weights that are: the data or the model is at fault"
            return self._answer(state, signals, "give_up", cause)
        if self.trials and suspicion.reason(seen) == "nonfinite" and seen.nonfinite < NOTHING_FINITE:
            return self._try(state, "nonfinite", signals)
        return self._answer(state, signals, "drop", f"{what} is not finite")

    def _try(self, state: DivergenceState, why: suspicion.Reason, signals: Signals) -> tuple[DivergenceState, Verdict]:
        """Begins a trial: this update is its first, at the present weights."""
        seen = state.seen
        usual, margin = seen.usual, seen.margin
        if why == "high":
            usual = seen.highest
        if margin == math.inf:
            margin = max(abs(seen.initial or 0.0) * 0.5, suspicion.NOISE * seen.noise)
        if why == "start":
            margin = 0.04 * abs(seen.initial or 0.0)
        both = state.newest.update != state.best.update
        lows = state.lows + 2 if why == "start" and seen.patience[3] else state.lows
        rate = min(signals.rate, state.rate.cap) * self.backoff ** (rates.STEPS * max(lows - 2, 0))
        trying = evidence.begin(
            why, usual, margin, seen.far if seen.gained else math.inf, newest=both and why != "level", both=both, loss=signals.loss, rate=rate, asked=seen.patience[3]
        )
        state = state._replace(trying=trying, lows=lows)
        return self._look(state, signals, trying)

    def _tried(self, state: DivergenceState, trying: Trying, signals: Signals) -> tuple[DivergenceState, Verdict]:
        if signals.broken:
            return self._rewind(state, signals, "best", "the weights are not finite", sudden=True)
        trying = evidence.seen(trying, signals.side, signals.loss)
        trying, outcome = evidence.judged(trying)
        state = state._replace(trying=trying)
        if not outcome:
            return self._look(state, signals, trying)
        here = centre(trying.here) if trying.here else None
        there = centre(trying.there) if trying.there else None
        numbers: dict[str, Any] = {"outcome": outcome, "here": here, "there": there, "batches": trying.batches}
        mark = state.newest if trying.to == "newest" else state.best
        at = f"{there:.3g} at those of update {mark.update}" if there is not None else "the copy's were not needed"
        words = f"loss {here:.3g} at the present weights, {at} ({trying.batches} updates)"
        started = state.best.seen.gained
        if outcome == "weights" and not started and math.isfinite(here) and state.seen.growth <= suspicion.LARGE:
            # nothing was learned yet, and the weights are no larger: a loss that rises from next to nothing
            outcome, numbers["outcome"] = "data", "data"
        if outcome == "weights" and started and math.isfinite(here) and state.rate.rewinds >= rates.HELPLESS:
            outcome, numbers["outcome"] = "data", "data"
            state = state._replace(rate=rates.absolved(state.rate))
            words += f", and {rates.HELPLESS} rewinds to ever lower rates have not helped"
        if outcome in ("weights", "rate"):
            to: Side = "newest" if trying.to == "newest" else "best"
            seen = state.seen
            sudden = trying.why in ("high", "nonfinite")
            state = state._replace(trying=None)
            blame = "the weights are to blame" if outcome == "weights" else f"after {trying.trained} updates at {trying.rate:.3g}: the rate is to blame"
            return self._rewind(state, signals, to, f"{words}: {blame}", sudden=sudden, trying=trying, **numbers)
        seen = suspicion.asked(state.seen, trying.why, doubt=True)
        if outcome == "data" and trying.why in ("high", "level") and here is not None and math.isfinite(here):
            seen = suspicion.new_level(seen, here)
        state = state._replace(trying=None, seen=seen, spent=state.spent + trying.batches)
        blame = "it was a batch" if outcome == "passed" else "the data is to blame"
        if trying.why == "start":
            blame = "a lower rate does no better"
        return self._answer(state, signals, "hold", f"{words}: {blame}", **numbers)

    def _look(self, state: DivergenceState, signals: Signals, trying: Trying) -> tuple[DivergenceState, Verdict]:
        side = evidence.next_side(trying)
        rate = trying.rate if trying.training else None
        return self._answer(
            state, signals, "hold", look=side, rate=rate, fresh=trying.training and trying.trained == 0, batches=trying.batches
        )

    def _rewind(
        self,
        state: DivergenceState,
        signals: Signals,
        to: Side,
        cause: str,
        *,
        sudden: bool,
        trying: Trying | None = None,
        **numbers: Any,
    ) -> tuple[DivergenceState, Verdict]:
        mark = state.newest if to == "newest" else state.best
        seen0 = state.seen
        rate, blamed = rates.failed(
            state.rate,
            signals.rate,
            self.backoff,
            sudden=sudden,
            started=mark.seen.gained,
            blown=signals.broken or (numbers.get("here") is not None and seen0.initial is not None and numbers["here"] > seen0.initial + 0.5 * abs(seen0.initial)),
            all_lost=seen0.initial is not None and numbers.get("here") is not None and numbers["here"] >= seen0.initial - 0.1 * seen0.gain,
        )
        if trying is not None and trying.to == "trained":
            rate = rate._replace(cap=trying.rate, ceiling=trying.rate)
        seen = _back(state.seen, mark)
        there = numbers.get("there")
        if there is not None and math.isfinite(there) and seen.best is not None:
            seen = seen._replace(best=max(seen.best, there - seen.margin))
        state = state._replace(seen=seen, rate=rate, newest=mark, best=mark, trying=None, lows=0)
        if not blamed:
            cause += "; this rate was healthy for long, and stays"
        kind = "rewind" if rate.rewinds <= self.max_rewinds else "give_up"
        return self._answer(state, signals, kind, cause, to=to, **numbers)

    def _answer(
        self, state: DivergenceState, signals: Signals, kind: Any, cause: str = "", **more: Any
    ) -> tuple[DivergenceState, Verdict]:
        bound = suspicion.largest_norm(state.seen, self.limit)
        return state, Verdict(kind, cause, limit=bound, factor=state.rate.factor(signals.rate), measure=suspicion.wants_size(state.seen), **more)


FEW_ODD = 8
"""Updates before a copy that must not hold a loss that is too good to be true."""


def _back(seen: Seen, mark: Mark) -> Seen:
    """What had been seen when the copy was taken; how often a suspicion was wrong is not forgotten."""
    return mark.seen._replace(patience=seen.patience, high=0, up=0, nonfinite=0, size=seen.size)
