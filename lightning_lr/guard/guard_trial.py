"""GuardTrial: a guard's trial, from the batch after the verdict that asks for it to the one that ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_lr.copies.copy_pair import CopyPair
from lightning_lr.policies.verdict import Side, Verdict
from lightning_lr.rates.ledger import Ledger
from lightning_lr.trials.aside import Aside
from lightning_lr.trials.own_state import OwnState

IDLE = 32
"""Windows in a row without an update of the optimizer that asked for the trial, after which it makes none any more."""


class GuardTrial:
    """Puts the state that a verdict asks to look at in place, within each batch, until a verdict asks for none.

    At `present` the batches run at the run's own weights, at `newest` and `best` at those of that copy; nothing is
    updated, so that only weights and buffers change places: the run's own wait in host memory. What a batch does to
    weights, buffers and torchmetrics, and by hand, is gone at its end. Averaged models are left alone.

    An update is the unit: in a window of accumulation the side stays the same, and so it does for all updates that a
    training step makes under manual optimization. What is logged counts for nothing, except in an epoch's first
    window, which looks at `present` whatever is wanted: an epoch has to have training metrics. Where epochs have only
    one window, every other one looks at what is wanted, and counts.

    Args:
        owner: the index of the optimizer whose judge asked for it.
        trainer: whose batches.
        module: whose weights.
        ledger: of the optimizers.
        copies: the copies.
        saved: what `state_dict` gave, of a trial that goes on.
    """

    def __init__(
        self,
        owner: int,
        trainer: Any,
        module: Any,
        ledger: Ledger,
        copies: CopyPair,
        saved: dict[str, Any] | None = None,
    ) -> None:
        self.owner = owner
        self._trainer, self._module, self._ledger, self._copies = trainer, module, ledger, copies
        self._aside: Aside | None = None
        self._own: OwnState | None = None
        self._wanted: Side = "present"
        self._counts = self._put_off = self.inside = self.over = False
        self._idle = 0
        self.side: Side | None = None
        """The weights of the window under way; None between two."""
        if saved is not None:
            self._wanted, self.side, self._counts = saved["wanted"], saved["side"], saved["counts"]
            self._put_off, self._idle = saved["put_off"], saved["idle"]

    def state_dict(self) -> dict[str, Any]:
        """All that the next batch needs; to be asked between two batches."""
        window = {"side": self.side, "counts": self._counts, "put_off": self._put_off, "idle": self._idle}
        return {"owner": self.owner, "wanted": self._wanted, **window}

    def plan(self, verdict: Verdict) -> None:
        """Notes where the batches of the next update are run; the trial is `over` if nowhere."""
        self.over, self._idle = verdict.look is None, 0
        if verdict.look is not None:
            self._wanted = verdict.look

    def remember(self) -> Callable[[], None]:
        """Returns a function that takes `plan` back."""
        before = self._wanted, self.over, self._idle

        def back() -> None:
            self._wanted, self.over, self._idle = before

        return back

    @property
    def idle(self) -> bool:
        """Whether the optimizer that asked makes no updates any more."""
        return self._idle > IDLE

    @property
    def counted(self) -> bool:
        """Whether the batch under way counts."""
        return self.inside and self._counts

    def begin_batch(self, batch_idx: int, *, must_count: bool) -> None:
        """Puts a side in place.

        Args:
            batch_idx: of the batch.
            must_count: whether none has counted in this epoch yet.
        """
        aside = self._began()
        if self.side is None or aside.window_begins(batch_idx):
            self._counts = must_count
            # the epoch before may have had no other window for it
            self._put_off = must_count and not self._put_off and self._wanted != "present"
            self.side = "present" if self._put_off else self._wanted
        self.inside = True
        aside.begin_batch(counts=self._counts)
        if self._own is None:
            self._own = OwnState(self._module, self._ledger.optimizers, aside.scaler)
        self._own.keep(metrics=not self._counts)
        if self.side != "present":
            self._copies.fence()
            self._copies.get(self.side).snapshot.show()

    def leave(self) -> None:
        """Puts the run's own state in place before the batch's end: a copy is about to be given back."""
        if self._own is not None:
            self._own.leave()

    def end_batch(self, batch_idx: int) -> None:
        """Puts the run's own state in place."""
        inside = self.inside
        self.rest()
        if self._aside is not None and self._aside.window_over(batch_idx):
            self.side = None
            self._idle += inside

    def rest(self) -> None:
        """Puts the run's own state in place, wherever in a batch something raised."""
        if self._own is not None:
            self._own.end_batch()
        if self._aside is not None:
            self._aside.rest()
        self.inside = False

    def close(self) -> None:
        """Gives back all that was borrowed, the random generators too."""
        self.rest()
        if self._aside is not None:
            self._aside.close()
        self._aside = self._own = None

    def _began(self) -> Aside:
        if self._aside is None:
            self._aside = Aside(self._trainer, self._module, self._ledger)
        return self._aside
