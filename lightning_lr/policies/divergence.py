"""DivergencePolicy: is this update healthy, and if that is in doubt, what does a trial show?"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

from lightning_lr.policies import history, suspicion
from lightning_lr.policies.backoff import LASTING, Backoff
from lightning_lr.policies.conclusion import concluded
from lightning_lr.policies.divergence_state import DivergenceState, Mark
from lightning_lr.policies.evidence import Evidence
from lightning_lr.policies.verdict import Side, Signals, Verdict
from lightning_lr.statistics.window import centre

PROOF = 8
"""Usual updates that must follow a copy before it may become the best."""

ODD = 8
"""Updates before a copy, none of which may have had a loss too good to be true."""

BUDGET, FREE = 0.02, 64
"""Trials that don't blame the weights, and waits, take at most this share of a run's updates, plus so many."""

NOTHING_FINITE = 300
"""Updates in a row that were not finite, at whatever weights, after which nothing is left to try."""


@dataclass(frozen=True)
class DivergencePolicy:
    """Judges each update before it is applied, and asks for a trial where numbers alone can't decide.

    - *Limit, don't drop*: a gradient far above the largest recent one is scaled down; only what is not finite is
      dropped.
    - *Suspicion decides nothing*: a few losses above all of the window, a level that has lost part of the gain, updates
      in a row that are not finite, weights many times as large as at the start with nothing learned; see `suspicion`.
    - *A trial decides*: batches' losses at the present weights and at those of a copy, in turn; see `evidence`. It was
      a batch, or the data: the run goes on, and the next suspicion must last longer. It was the weights: the copy comes
      back, and the learning rate is lowered if it may be to blame; see `backoff`.
    - *Nothing is lost in small steps*: trials and waits have a budget. Where lower and lower rates don't help, the
      level is accepted and the rate comes back. It gives up only when nothing is finite any more, or when rewinds in a
      row don't help: weights stop being finite again, or the copy that comes back has learned nothing.

    Args:
        limit: a gradient's norm is limited to this multiple of the largest of the window, > 1; None: no limit.
        trials: whether trials are made; without them only what is not finite is acted on.
        backoff: the ratio of the rate after a failure to the rate before, in (0, 1).
        max_rewinds: rewinds without lasting progress before it gives up, >= 1.
        loss_falls: whether the loss of a healthy run falls; without it no loss is suspicious.

    Raises:
        ValueError: for a value outside its bounds.

    Example:
        >>> policy = DivergencePolicy()
        >>> state, kinds = policy.start(), []
        >>> for loss in [2.3, 2.2, float("nan"), 2.1]:
        ...     state, verdict = policy.step(state, Signals(loss, grad_norm=1.0))
        ...     kinds.append(verdict.kind)
        >>> kinds
        ['accept', 'accept', 'drop', 'accept']
    """

    limit: float | None = 4.0
    trials: bool = True
    backoff: float = 0.5
    max_rewinds: int = 12
    loss_falls: bool = True

    def __post_init__(self) -> None:
        if self.limit is not None and (isinstance(self.limit, bool) or not 1.0 < self.limit < math.inf):
            raise ValueError(f"limit must be a finite number > 1, or None for no limit, got {self.limit!r}")
        if not 0.0 < self.backoff < 1.0:
            raise ValueError(f"backoff must be in (0, 1), got {self.backoff!r}: 0.5 halves the rate after a failure")
        if isinstance(self.max_rewinds, bool) or not isinstance(self.max_rewinds, int) or self.max_rewinds < 1:
            raise ValueError(f"max_rewinds must be a whole number >= 1, got {self.max_rewinds!r}")

    def start(self, planned_rate: float = 0.0) -> DivergenceState:
        """The state before the first update; `planned_rate`: the highest that the user's schedule plans."""
        return DivergenceState(rate=Backoff(healthy=planned_rate))

    def step(self, state: DivergenceState, signals: Signals) -> tuple[DivergenceState, Verdict]:
        """Judges one update."""
        state = state._replace(update=state.update + 1)
        if state.trying is not None:
            return self._tried(state, state.trying, signals)
        if not (math.isfinite(signals.loss) and math.isfinite(signals.grad_norm)):
            return self._nonfinite(state, signals)
        before, norm = state.seen, signals.grad_norm
        if signals.size is not None:
            before = before.sized(signals.size)
        scale, cause = 1.0, ""
        if before.exceeds(self.limit, norm):
            norm = before.largest_norm(self.limit)
            scale = norm / signals.grad_norm
            cause = f"gradient norm {signals.grad_norm:.3g}, above {self.limit:g} times the recent maximum"
        seen = before.accepted(signals.loss, norm)
        if self.trials and self.loss_falls:
            why = suspicion.reason(seen, started=state.best.seen.updates > history.LOOK)
            if why and state.spent <= FREE + BUDGET * state.update:
                return self._try(state._replace(seen=before._replace(high=seen.high, up=seen.up)), why, signals)
        # without trials nothing could ever clear a level of its suspicion
        level = not self.trials or (seen.up == 0 and signals.loss <= before.usual)
        calm = not self.loss_falls or (seen.high == 0 and level)
        rate = state.rate.accepted(signals.rate, self.backoff, grow=calm)
        state = state._replace(seen=seen, rate=rate)
        return self._answer(state, signals, "accept", cause, scale=scale, copy=calm)

    def copied(self, state: DivergenceState) -> DivergenceState:
        """The state after a copy was taken of the weights at hand: after the update just judged was applied."""
        return state._replace(newest=Mark(state.update, state.seen))

    def dropped(self, state: DivergenceState) -> DivergenceState:
        """The state after the newest copy was dropped because an update at its weights was not usual."""
        return state._replace(newest=state.best)

    def rests(self, state: DivergenceState) -> bool:
        """Has this optimizer made no update since the newest copy?"""
        return state.seen.updates == state.newest.seen.updates

    def waits(self, state: DivergenceState) -> bool:
        """Has the newest copy yet to show whether it may become the best? Replaced too early, no copy ever would."""
        since = state.seen.updates - state.newest.seen.updates
        return state.newest.update != state.best.update and 0 < since < PROOF

    def settled(self, state: DivergenceState, *, slow: bool = False) -> bool:
        """Is the newest copy healthy, and no worse than the best?

        The start's weights stay until something is learned, or a plateau has lasted (longer with weights much larger).

        Args:
            state: of one optimizer.
            slow: whether enough updates of another optimizer have shown it.
        """
        seen, since = state.seen, state.seen.updates - state.newest.seen.updates
        if state.trying is not None or (since < PROOF and not slow):
            return False
        if not self.loss_falls:
            return True
        losses = seen.losses[-min(since, history.LEVEL) :]
        plateau = history.WINDOW * (1 if seen.growth <= suspicion.LARGE else 4)
        fit = seen.gained or seen.updates >= plateau
        return fit and seen.high == 0 and seen.odd >= since + ODD and centre(losses) <= seen.usual

    def promoted(self, state: DivergenceState) -> DivergenceState:
        """The state after the newest copy became the best."""
        return state._replace(best=state.newest, rate=state.rate._replace(recent=0.0))

    def rewound(self, state: DivergenceState, to: Side) -> DivergenceState:
        """The state after a copy was given back because of another optimizer."""
        rate = state.rate._replace(since=0, recent=0.0)
        return state._replace(rate=rate, trying=None).back(to)

    def broken_off(self, state: DivergenceState) -> DivergenceState:
        """The state after a trial that couldn't go on."""
        if state.trying is None:
            return state
        return state._replace(trying=None, seen=suspicion.doubted(state.seen, state.trying.why))

    def again(self, state: DivergenceState) -> DivergenceState:
        """The state from which a run that was given up goes on."""
        seen = state.seen._replace(nonfinite=0, high=0, up=0)
        return state._replace(trying=None, seen=seen, rate=state.rate._replace(rewinds=0, since=0))

    def _nonfinite(self, state: DivergenceState, signals: Signals) -> tuple[DivergenceState, Verdict]:
        seen = state.seen._replace(nonfinite=state.seen.nonfinite + 1)
        state = state._replace(seen=seen)
        what = "the loss" if not math.isfinite(signals.loss) else "a gradient"
        if signals.broken:
            # the newest copy, unless it may be of an explosion too
            fit = seen.high == 0 and (state.rate.since >= PROOF or state.rate.rewinds == 0)
            return self._rewind(state, signals, "newest" if fit else "best", "the weights are not finite")
        if seen.nonfinite > NOTHING_FINITE:
            cause = f"{seen.nonfinite} updates in a row were not finite while the weights were: the data or the model is at fault"
            # nothing speaks against the weights of late
            to = "newest" if seen.high == 0 else "best"
            return self._answer(state.back(to), signals, "give_up", cause, to=to)
        if self.trials and suspicion.reason(seen, started=True) == "nonfinite":
            return self._try(state, "nonfinite", signals)
        return self._answer(state, signals, "drop", f"{what} is not finite")

    def _try(self, state: DivergenceState, why: suspicion.Reason, signals: Signals) -> tuple[DivergenceState, Verdict]:
        """Begins a trial: this update is its first, at the present weights."""
        seen = state.seen
        # neither one that came back just now and broke again, nor one of a start that may be exploding
        early = not seen.gained and seen.updates < history.WINDOW
        newest = state.newest.update != state.best.update and why in ("high", "nonfinite")
        newest = newest and not early and not state.rewinds
        # before there is a level, and where the loss doesn't fall, any finite loss is as usual
        usual = (seen.highest if why == "high" else seen.usual) if self.loss_falls else math.inf
        usual = min(usual, sys.float_info.max)
        margin = 0.04 * abs(seen.initial or 0.0) if why == "start" else seen.margin
        # what comes now is to show whether it were only these batches that were not finite
        here = () if why == "nonfinite" else (signals.loss,)
        began = seen.initial if seen.gained and seen.initial is not None else math.inf
        worse = 0.5 if seen.growth < 2.0 * suspicion.LARGE else 0.25
        evidence = Evidence(why, usual, margin, seen.far, began, worse, "newest" if newest else "best", newest, here)
        return self._look(state._replace(trying=evidence), signals)

    def _look(self, state: DivergenceState, signals: Signals) -> tuple[DivergenceState, Verdict]:
        assert state.trying is not None
        return self._answer(state, signals, "hold", look=state.trying.next_side, batches=state.trying.batches)

    def _tried(self, state: DivergenceState, evidence: Evidence, signals: Signals) -> tuple[DivergenceState, Verdict]:
        if signals.broken:
            return self._rewind(state, signals, "best", "the weights are not finite")
        # where updates were dropped for their gradients, a finite loss says nothing
        useless = evidence.why == "nonfinite" and not math.isfinite(signals.grad_norm)
        evidence, outcome = evidence.after(signals.side, math.inf if useless else signals.loss).judged()
        state = state._replace(trying=evidence)
        if not outcome:
            return self._look(state, signals)
        end = concluded(state, evidence, outcome)
        if end.absolves:
            state = state._replace(rate=state.rate.absolved())
        if end.outcome == "weights":
            cause = f"{end.words}: the weights are to blame"
            return self._rewind(state, signals, evidence.to, cause, **end.numbers)
        blames_data = end.outcome == "data"
        seen = suspicion.doubted(state.seen, evidence.why, 2 if blames_data else 1)
        if blames_data and evidence.why in ("high", "level") and end.here < math.inf:
            seen = seen.at_new_level(end.here)
            state = state._replace(rate=state.rate.held(signals.rate))
        # while nothing is finite the trial's own updates count too
        count = seen.nonfinite + evidence.batches if evidence.why == "nonfinite" and blames_data else 0
        state = state._replace(trying=None, seen=seen._replace(nonfinite=count), spent=state.spent + evidence.batches)
        blame = "the data is to blame" if blames_data else "only the batch was unusual"
        return self._answer(state, signals, "hold", f"{end.words}: {blame}", **end.numbers)

    def _rewind(
        self, state: DivergenceState, signals: Signals, to: Side, cause: str, **numbers: Any
    ) -> tuple[DivergenceState, Verdict]:
        seen, here = state.seen, numbers.get("here")
        back, initial = state.back(to), seen.initial or 0.0
        rate, blamed = state.rate.failed(
            signals.rate,
            self.backoff,
            learned=back.seen.gained or (back.seen.updates >= LASTING and back.seen.growth <= suspicion.LARGE),
            sudden=here is None,
            all_lost=here is not None and here >= initial - 0.1 * seen.gain,
            growth=max(seen.growth, suspicion.LARGE),
        )
        if not blamed and signals.rate > 0.0:
            cause += "; its rate was healthy for long, and stays"
        kind = "rewind" if rate.rewinds <= self.max_rewinds else "give_up"
        return self._answer(back._replace(rate=rate, trying=None), signals, kind, cause, to=to, **numbers)

    def _answer(
        self, state: DivergenceState, signals: Signals, kind: Any, cause: str = "", **more: Any
    ) -> tuple[DivergenceState, Verdict]:
        seen, factor = state.seen, state.rate.factor(signals.rate)
        limit, measure = seen.largest_norm(self.limit), suspicion.wants_size(seen)
        return state, Verdict(kind, cause, limit=limit, factor=factor, measure=measure, **more)
