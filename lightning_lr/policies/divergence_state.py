"""DivergenceState: what `DivergencePolicy` knows of one optimizer, and how a checkpoint holds it."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning_lr.policies.backoff import Backoff
from lightning_lr.policies.evidence import Evidence
from lightning_lr.policies.history import LOOK, History
from lightning_lr.policies.verdict import Side
from lightning_lr.saved import fields


class Mark(NamedTuple):
    """What was known when a copy was taken.

    Args:
        update: the number of the update before which it was taken.
        seen: all that had been seen.
    """

    update: int
    seen: History


class DivergenceState(NamedTuple):
    """What the guard knows of one optimizer.

    Args:
        update: updates judged so far, those not applied included.
        seen: what has been seen of losses and gradients.
        rate: what is known about rates.
        newest: what was known at the newest copy.
        best: what was known at the best copy.
        trying: what the trial under way has shown; None without one.
        spent: updates that trials which ended without a rewind have taken.
    """

    update: int = 0
    seen: History = History()
    rate: Backoff = Backoff()
    newest: Mark = Mark(0, History())
    best: Mark = Mark(0, History())
    trying: Evidence | None = None
    spent: int = 0

    @property
    def rewinds(self) -> int:
        """Rewinds in a row, without lasting progress."""
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

        def tuples(held: dict[str, Any]) -> dict[str, Any]:
            return {k: tuple(v) if isinstance(v, list) else v for k, v in held.items()}

        def seen(held: dict[str, Any]) -> History:
            return History(**tuples(held))

        def mark(held: dict[str, Any]) -> Mark:
            return Mark(held["update"], seen(held["seen"]))

        trying = own["trying"]
        if trying is not None:
            trying = Evidence(**tuples(trying))
        return cls(
            own["update"], seen(own["seen"]), Backoff(**own["rate"]), mark(own["newest"]), mark(own["best"]), trying,
            own["spent"],
        )  # fmt: skip

    def back(self, to: Side) -> DivergenceState:
        """The state after a copy was given back, and with it what had been seen when it was taken.

        How often a suspicion was wrong is not forgotten.
        """
        mark, seen = self.newest if to == "newest" else self.best, self.seen
        then = mark.seen._replace(patience=seen.patience, size=seen.size, high=0, up=0, nonfinite=0)
        if then.updates < LOOK and seen.initial is not None:
            # the level at the start is known: what comes now may be an explosion again
            then = then._replace(initial=seen.initial, updates=LOOK, asked=LOOK)
        mark = Mark(mark.update, then)
        # the newest may have something wrong that its loss doesn't show: the best stays, for the next time
        return self._replace(seen=then, newest=mark, best=self.best if to == "newest" else mark)
