"""Judge: all that the guard knows of one optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightning_lr.guard.unjudged import UnjudgedUpdate, restored
from lightning_lr.policies.verdict import Signals, Verdict

CAPPED = "the rate is capped since a rewind"


@dataclass
class Judge:
    """What the guard knows of one optimizer.

    Args:
        index: of the optimizer.
        state: the policy's.
        reason: why its factor is what it is.
        cap: the highest effective rate that the factor allows; inf for none.
        limit: the largest gradient norm that the next update may have.
        copy: whether the latest verdict lets the weights be copied.
        measure: whether it asks for the weights' size; the first update measures it unasked.
        unjudged: an update that is judged later.
        trained: the number of parameters that the optimizer had at its last update.
        dropped: whether the step under way is to be a skip.
        seen: whether the step under way has been judged.
    """

    index: int
    state: Any
    reason: str = CAPPED
    cap: float = math.inf
    limit: float = math.inf
    copy: bool = False
    measure: bool = True
    unjudged: UnjudgedUpdate | None = None
    trained: int = 0
    dropped: bool = False
    seen: bool = False

    def factor(self, verdict: Verdict, rate: float) -> float:
        """The factor that a verdict sets at this rate; notes why."""
        cap, before = (math.inf if verdict.factor == 1.0 else verdict.factor * rate), self.cap
        self.cap = cap
        if verdict.kind in ("rewind", "give_up"):
            self.reason = verdict.cause
        elif verdict.factor == 1.0:
            self.reason = "the rate is back at its full height"
        elif cap > before * (1.0 + 1e-9):
            self.reason = "calm updates let the rate grow back"
        # else the same cap holds, and the factor follows the scheduler's rate
        return verdict.factor

    def to_dict(self) -> dict[str, Any]:
        """All that a resumed run needs, except the state and the unjudged update."""
        names = ("reason", "cap", "limit", "copy", "measure")
        return {name: getattr(self, name) for name in names}


def judges_of(saved: dict[str, Any], kind: type) -> list[Judge]:
    """The judges of a checkpoint; `kind`: of the policy's states."""
    judges = []
    for index, (state, own, job) in enumerate(zip(saved["states"], saved["judges"], saved["jobs"], strict=True)):
        judge = Judge(index, kind.from_dict(state), **own)  # pyright: ignore[reportAttributeAccessIssue]
        judge.unjudged = None if job is None else restored(Signals(*job[0]), job[1])
        judges.append(judge)
    return judges
