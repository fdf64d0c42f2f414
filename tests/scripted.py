"""A policy that plays a script: what a guard does with verdicts, whatever asks for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning_lr as llr
from lightning_lr.policies.verdict import Kind, Outcome, Side, Signals, Verdict


class Played(NamedTuple):
    """What has happened: updates judged, the place in the script, and what a trial saw."""

    update: int = 0
    at: int = -1
    rewinds: int = 0
    seen: tuple[tuple[str, float], ...] = ()
    marks: tuple[str, ...] = ()

    @property
    def trying(self) -> bool:
        return self.at >= 0

    def to_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "seen": [list(one) for one in self.seen], "marks": list(self.marks)}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Played:
        seen = tuple((side, loss) for side, loss in saved["seen"])
        return cls(saved["update"], saved["at"], saved["rewinds"], seen, tuple(saved["marks"]))


@dataclass(frozen=True)
class Script:
    """Begins a trial at the updates named, each with the same looks, and ends it as told.

    Args:
        begin: updates, from 1, that are held and begin a trial.
        looks: at what the updates after it look.
        outcome: of each.
        kind: of the last verdict.
        to: the copy that it gives back.
        loss_falls: is set by the guard.
    """

    begin: tuple[int, ...] = ()
    looks: tuple[Side, ...] = ()
    outcome: Outcome = "passed"
    kind: Kind = "hold"
    to: Side = "best"
    scale: float = 1.0
    limit: float = math.inf
    loss_falls: bool = True

    def start(self, planned_rate: float = 0.0) -> Played:
        return Played()

    def step(self, state: Played, signals: Signals) -> tuple[Played, Verdict]:
        state = state._replace(update=state.update + 1)
        if state.trying:
            state = state._replace(at=state.at + 1, seen=(*state.seen, (signals.side, signals.loss)))
            if state.at < len(self.looks):
                return state, self._look(state)
            rewinds = state.rewinds + (self.kind == "rewind")
            state = state._replace(at=-1, rewinds=rewinds)
            return state, Verdict(self.kind, "as the script has it", to=self.to, outcome=self.outcome, here=1.0)
        if not (math.isfinite(signals.loss) and math.isfinite(signals.grad_norm)):
            if signals.broken:
                rewinds = state.rewinds + 1
                return state._replace(rewinds=rewinds), Verdict("rewind", "the weights are not finite", to="best")
            return state, Verdict("drop", "the loss or a gradient is not finite")
        if state.update in self.begin:
            state = state._replace(at=0, seen=(*state.seen, (signals.side, signals.loss)))
            return state, self._look(state)
        limit = self.limit if signals.grad_norm > self.limit else signals.grad_norm
        scale = limit / signals.grad_norm if signals.grad_norm else 1.0
        cause = "the gradient is too large" if scale < 1.0 else ""
        return state, Verdict("accept", cause, scale=scale, limit=self.limit, copy=True)

    def _look(self, state: Played) -> Verdict:
        return Verdict("hold", look=self.looks[state.at])

    def dropped(self, state: Played) -> Played:
        return state._replace(marks=(*state.marks, f"dropped {state.update}"))

    def copied(self, state: Played) -> Played:
        return state._replace(marks=(*state.marks, f"copied {state.update}"))

    def rests(self, state: Played) -> bool:
        return False

    def waits(self, state: Played) -> bool:
        return False

    def settled(self, state: Played, *, slow: bool = False) -> bool:
        return state.update >= 9

    def promoted(self, state: Played) -> Played:
        return state._replace(marks=(*state.marks, f"promoted {state.update}"))

    def rewound(self, state: Played, to: Side) -> Played:
        return state._replace(at=-1)

    def broken_off(self, state: Played) -> Played:
        return state._replace(at=-1, marks=(*state.marks, f"broken off {state.update}")) if state.trying else state

    def again(self, state: Played) -> Played:
        return state._replace(at=-1)


SIDES: tuple[Side, ...] = ("present", "best", "newest", "present")
LONGER: tuple[Side, ...] = ("best", "newest", "present", "newest", "best")


def guard(*begin: int, looks: tuple[Side, ...] = SIDES, lag: Any = 0, **more: Any) -> llr.DivergenceGuard:
    """One that makes a trial of `looks` after each of the updates named."""
    script = {key: more.pop(key) for key in ("outcome", "kind", "to", "limit") if key in more}
    made = llr.DivergenceGuard(**{"snapshot_every": 4, "lag": lag, "save_snapshots": True, **more})
    made.policy = Script(begin, looks, **script)  # pyright: ignore[reportAttributeAccessIssue]
    return made
