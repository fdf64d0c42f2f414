"""`DivergenceGuard`: limits unusual updates, drops bad ones, tries out what is in doubt, and rewinds what is broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr.callbacks.base import LRCallback
from lightning_lr.console import count
from lightning_lr.copies.copy_pair import CopyPair
from lightning_lr.guard.checks import check
from lightning_lr.guard.guarded_run import GuardedRun, readable
from lightning_lr.guard.incidents import Incidents
from lightning_lr.guard.update_guard import DivergenceError
from lightning_lr.policies.divergence import DivergencePolicy
from lightning_lr.run.run import same

__all__ = ["DivergenceError", "DivergenceGuard"]

SETTLING = 24
"""Updates after a rewind in which metrics say nothing about the rate."""


class DivergenceGuard(LRCallback):
    """Judges every update before it is applied, and keeps a run alive that would have died.

    An update whose gradient is far larger than any recent one is limited. One that is not finite is dropped (its
    gradients become None, so no optimizer moves). Where the numbers leave open whether the weights, the data or the
    learning rate is to blame, the run tries it out: the batches of a few updates run at the present weights and at
    those of a copy in host memory; meanwhile nothing is updated, logged or counted. Only if the weights are to blame,
    or are not finite, are they restored from the copy, with buffers, optimizer state, gradient scaler, torchmetrics
    states and averaged weights. Time is not rewound: `global_step`, the data loader and the schedulers go on. How it
    judges: `lightning_lr.DivergencePolicy`.

    Without an incident the run is bit-identical to the one without the guard.

    Args:
        limit: the largest gradient norm, in multiples of the largest of the last 128 updates, > 1; None: no limit.
        trials: whether anything is tried out; without trials, the guard limits, and acts only on what is not finite.
        backoff: the ratio of the rate after a failure to the rate before, in (0, 1).
        max_rewinds: rewinds without lasting progress before it gives up, >= 1.
        snapshot_every: the most updates between copies, >= 1; or `"auto"`: between 10 and 500, the more the larger a
            copy is (at most 16 MiB of it for each update) and the longer nothing has happened. A copy stays for at
            least 8 updates, which show whether it is healthy.
        memory_limit: the most host memory for both copies of this rank together, in bytes; `"auto"`: half of what is
            free at the start, divided among the processes of the node; None: no limit. Copies grow with the optimizer's
            state: Adam's are three times the weights. What all ranks hold alike is kept once: each rank keeps a
            part. A trial takes one more copy of weights and buffers for as long as it lasts.
        save_snapshots: whether checkpoints hold the copies, which a resumed run needs in order to rewind, and to go on
            with a trial, as the uninterrupted one. Rank zero, which saves them, then keeps all of them, beyond the end
            of `fit` too. Without it (and always where each rank has a part of the weights or of the optimizer's
            state), checkpoints are no larger than without the guard, and the resumed weights are the first copy.
        loss_falls: whether the loss of a healthy run falls; None: yes with one optimizer, no with several, whose losses
            may be set against each other (a GAN). Without it, no level of the loss is suspicious.
        lag: 0 judges an update before it is applied. 1 judges it one update later, by numbers that were copied to the
            host meanwhile, so that an accelerator never waits. Limits are then applied on the device, and all
            gradients of an update that is not finite are set to zero: the weights stay as they are, except for what
            momentum, weight decay and the like still do. A trial's batches are judged at once. A checkpoint at the end
            of a batch may hold one update that is not judged yet.
        incidents_dir: a folder for the batch, the signals and the parameters of every incident, of which each rank
            keeps the first 10 and the latest 90; None: none is written.
        on_give_up: `raise` a `DivergenceError` on every rank, or `stop` the fit cleanly.
        name: the name under which its factor is kept and shown; by default that of the class.

    Raises:
        ValueError: at construction for a value outside its bounds; at the start of `fit` for a `memory_limit` in bytes
            below two copies, and for a second guard.
        DivergenceError: when it gives up.

    Example:
        >>> from lightning_lr import DivergenceGuard
        >>> DivergenceGuard(backoff=0.3).policy.backoff
        0.3
    """

    copies = True

    def __init__(
        self,
        *,
        limit: float | None = 4.0,
        trials: bool = True,
        backoff: float = 0.5,
        max_rewinds: int = 12,
        snapshot_every: int | Literal["auto"] = "auto",
        memory_limit: int | Literal["auto"] | None = "auto",
        save_snapshots: bool = False,
        loss_falls: bool | None = None,
        lag: Literal[0, 1] = 0,
        incidents_dir: str | Path | None = None,
        on_give_up: Literal["raise", "stop"] = "raise",
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.keep_arguments(locals())
        check(self.arguments)
        self.policy = DivergencePolicy(limit, trials, backoff, max_rewinds)
        self.loss_falls, self.snapshot_every, self.memory_limit = loss_falls, snapshot_every, memory_limit
        self.save_snapshots, self.lag, self.on_give_up = save_snapshots, lag, on_give_up
        self.incidents_dir = None if incidents_dir is None else Path(incidents_dir)
        self._guarded: GuardedRun | None = None
        self.reset()

    # what users ask --------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, float]:
        """The run so far in numbers: updates judged, limited, dropped and held, trials by outcome, rewinds, updates
        lost, and the lowest of the present factors."""
        judges = [] if self._guarded is None or self._run is None else self._guarded.judges
        factors = [self.ledger.factor(self.name, judge.index, 0) for judge in judges]
        return {**self.record.counts, "factor": min(factors, default=1.0)}

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.record.counts)

    @property
    def skips(self) -> int:
        """Updates that were dropped since they were not finite."""
        return self.record.counts["dropped"]

    @property
    def rewinds(self) -> int:
        return self.record.counts["rewinds"]

    @property
    def updates_lost(self) -> int:
        """Updates that were dropped, held for a trial, or taken back by a rewind; each counts once."""
        return self.record.counts["lost"]

    @property
    def states(self) -> list[Any]:
        """What the policy knows of each optimizer."""
        return [] if self._guarded is None else [judge.state for judge in self._guarded.judges]

    @property
    def copy_pair(self) -> CopyPair | None:
        """The copies; None outside of a run."""
        return None if self._guarded is None else self._guarded.keeper.copies

    @property
    def trying(self) -> bool:
        """Whether a trial is under way."""
        return self._guarded is not None and self._guarded.trial is not None

    @property
    def given_up(self) -> bool:
        """Whether it has given the run up."""
        return self._guarded is not None and self._guarded.given_up

    @property
    def settling(self) -> bool:
        """Whether a trial is under way, or a rewind was a moment ago."""
        since = 0 if self._guarded is None else self._guarded.keeper.since
        return self.trying or (self.rewinds > 0 and self.record.counts["judged"] - since < SETTLING)

    # the run ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            guards = [peer.name for peer in self.run.peers if isinstance(peer, DivergenceGuard)]
            if len(guards) > 1:
                # each would take the other's trials and rewinds for updates
                raise ValueError(
                    f"a run has one DivergenceGuard, which judges all optimizers, but got {len(guards)} "
                    f"({', '.join(guards)}): {self.left_out}"
                )
            self.go_first(trainer)

    def reset(self) -> None:
        self.record = Incidents(self.name, self.incidents_dir)
        if self._guarded is not None:
            # before it is seen how much memory is free
            self._guarded.keeper.copies.clear()
        self._guarded = None
        self._saved: dict[str, Any] | None = None

    def started(self, trainer: Any, pl_module: Any) -> None:
        optimizers = self.ledger.optimizers
        if not optimizers:
            return
        saved, self._saved = self._saved, None
        if saved is not None and len(saved["states"]) != len(optimizers):
            rank_zero_warn(
                f"{self.name}: the checkpoint is of a run with {count(len(saved['states']), 'optimizer')}, and this "
                f"one has {len(optimizers)}: it starts afresh, and the resumed weights are the first copy"
            )
            self.reset()
            saved = None
        falls = len(optimizers) == 1 if self.loss_falls is None else self.loss_falls
        self.policy = replace(self.policy, loss_falls=falls)
        if saved is not None:
            self.record.load_state_dict(saved["record"], trainer.global_rank)
        known = [] if self._guarded is None else self._guarded.judges
        if self._guarded is not None:
            self._guarded.close()
            self._guarded.keeper.copies.clear()
        self._guarded = GuardedRun(self, self.run, pl_module, known, saved)
        keeper = self._guarded.keeper
        if keeper.possible:
            rank_zero_info(
                f"{self.name}: a copy takes {keeper.one / 2**20:.3g} MiB of host memory on each rank now, and two are "
                f"kept; optimizer state that comes later adds to it"
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.run.attach()
        known = [] if self._guarded is None else self._guarded.optimizers
        if not same(known, self.ledger.optimizers):
            # the trainer was given other optimizers: what was kept of the old ones is of no use
            self.started(trainer, pl_module)
        if self._guarded is not None:
            self._guarded.begin_batch(batch, batch_idx)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if self._guarded is not None:
            self._guarded.meter.add(loss, trainer.accumulate_grad_batches, self._guarded.gauge.scaler)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        if self._guarded is not None:
            self._guarded.updates.gradients_of(optimizer)

    def gradients_ready(self, optimizer: int) -> None:
        if self._guarded is not None:
            self._guarded.updates.step_begins(optimizer)

    def after_update(self, optimizer: int) -> None:
        if self._guarded is not None:
            self._guarded.take_back = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._guarded is not None:
            self._guarded.end_batch(batch_idx)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._guarded is not None:
            self._guarded.cut_batch()
        super().on_train_epoch_end(trainer, pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self._guarded is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._guarded.updates.judge_late()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._guarded is not None:
            self._guarded.updates.judge_late()
            copies = self._guarded.keeper.copies.kept
            self.record.last_words(self.run, sum(copy.size for copy in copies))
        super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if self._guarded is not None:
            self._guarded.fail()
            self._let_go()
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self._guarded is not None:
            self._guarded.close()
            self._guarded.buffers.free()
            self._let_go()
        super().teardown(trainer, pl_module, stage)

    def _let_go(self) -> None:
        """The run is over: gives its memory back."""
        assert self._guarded is not None
        self._guarded.gauge.forget()
        if not self.save_snapshots:
            # else a checkpoint that is saved after `fit` is to hold them
            self._guarded.keeper.copies.free()

    # state -----------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        """The judges' states and the clocks; with `save_snapshots` the copies, and the trial under way, too."""
        if self._guarded is None:
            return self._saved or {}
        return {"record": self.record.state_dict(), **self._guarded.state_dict()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        if state:
            self._saved = readable(state, self.policy)
            self.record.load_state_dict(state["record"])

    def __getstate__(self) -> dict[str, Any]:
        # what a run has refers to its optimizers
        return {**super().__getstate__(), "_guarded": None}
