"""A run: the ledger and the journal that all callbacks of a trainer share for the length of one `fit`."""

from __future__ import annotations

import operator
import time
from collections.abc import Sequence
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr import internals
from lightning_lr.console import console, count
from lightning_lr.rates.change import SCHEDULER, Part
from lightning_lr.rates.ledger import Ledger
from lightning_lr.rates.listener import Listener
from lightning_lr.rates.names import GroupName, group_names
from lightning_lr.rates.steps import compiled
from lightning_lr.record.journal import Journal
from lightning_lr.record.pages import address
from lightning_lr.run.length import updates_in_run
from lightning_lr.run.peer import Peer
from lightning_lr.run.refusals import has_stock_monitor, refuse
from lightning_lr.saved import fields

INTERRUPTS = ("KeyboardInterrupt", "SIGTERMException", "_TunerExitException")
"""Exceptions, by name, with which somebody ends a run although nothing is wrong with it."""

VERBS = {"finished": "finished", "stopped": "was stopped", "interrupted": "was interrupted", "failed": "failed"}


class Run(Listener):
    """One `fit`. The first of the callbacks makes it at `setup`, the others find it, and the end drops it.

    Args:
        trainer: the trainer that runs.
        peers: all callbacks of this package in `trainer.callbacks`, in their order; the first is the leader.

    Raises:
        RuntimeError: when the installed packages lack a private name that is needed.
        ValueError: when two peers have the same name, when both `LRMonitor` and `LearningRateMonitor` are there, and
            for a strategy that owns the optimizer's step.
    """

    def __init__(self, trainer: Any, peers: Sequence[Peer]) -> None:
        internals.check(trainer)
        self.trainer = trainer
        self.peers = list(peers)
        self.ledger = Ledger([], self)
        refuse(trainer, peers)
        monitoring, stock = any(peer.monitors for peer in peers), has_stock_monitor(trainer)
        sources = [peer.name for peer in peers if peer.has_factor]
        self.journal = Journal(trainer, self.names_at, sources, monitoring=monitoring, show_rates=not stock)
        if stock:
            ours = "LRMonitor()" if all(peer.option is None for peer in peers) else "autopilot(lr_monitor={})"
            rank_zero_info(
                f"LearningRateMonitor shows the scheduler's rates, without the factors of lightning_lr: {ours}, in "
                f"its place, shows the rates that the updates are made with"
            )
        self._saved: dict[str, Any] | None = None
        self.names: list[list[GroupName]] = []
        self._attached = self._warned = self._compiles = self._began = False
        self.failed = False
        self._updated = False
        self._batches = 0
        self._seen: set[int] = set()

    def attach(self) -> None:
        """Attaches a ledger to the trainer's optimizers, and a new one when the optimizers were replaced."""
        optimizers = _real(self.trainer.strategy.optimizers)
        known = self.ledger.optimizers
        # after a step that raised, in a training step whose author caught the exception
        self.ledger.take_back()
        if self._attached and same(known, optimizers):
            return
        resumed = not self._attached
        if self._attached:
            self._saved = self.ledger.state_dict()
            self.ledger.detach()
        if not optimizers:
            rank_zero_warn(
                "configure_optimizers gave no optimizer, so lightning_lr has no rate to change and does nothing"
            )
        self._attached = True
        leader = self.peers[0]
        self.ledger = Ledger(
            optimizers,
            self,
            lambda: leader in self.trainer.callbacks,
            closure_gives_loss=self.trainer.lightning_module.automatic_optimization,
        )
        if self._saved is not None:
            if resumed and self._saved["optimizers"]:  # there are none before training, when a tuner saves
                self._warn_of_differences(self._saved["optimizers"])
            self.ledger.load_state_dict(self._saved, [peer.name for peer in self.peers])
            self._saved = None
        self.names = group_names(optimizers, self.trainer.lr_scheduler_configs)
        self.ledger.attach()
        if self._began:
            self._describe(resumed=False)

    def begin(self) -> None:
        """Writes the record of the run, once all callbacks have started."""
        self._began = True
        self._describe(resumed=self.journal.step > 0)

    def _describe(self, *, resumed: bool) -> None:
        from lightning_lr import __version__

        left, made = updates_in_run(self.trainer, None), self._made()
        scheduled = {id(config.scheduler.optimizer) for config in self.trainer.lr_scheduler_configs}
        optimizers = zip(self.ledger.optimizers, self.names, strict=True)
        self.journal.record(
            "run",
            package=__version__,
            groups=[{**name.facts, "scheduled": id(o) in scheduled} for o, names in optimizers for name in names],
            factors=[peer.name for peer in self.peers if peer.has_factor],
            callbacks=[{"name": peer.name, "written": repr(peer)} for peer in self.peers],
            resumed=resumed,
            updates=None if left is None else round(self.journal.step + left),
            made=made,
            processes=self.trainer.world_size,
            time=time.time(),
        )

    def _made(self) -> int:
        """The real updates so far, of the optimizer that made the most."""
        return max((self.ledger.updates(index) for index in range(len(self.ledger.optimizers))), default=0)

    def load(self, saved: dict[str, Any]) -> None:
        """Keeps a saved ledger until `attach`. Every peer saves the same one, so that any of them can be removed.

        Raises:
            SavedStateError: for a version that this release can't read.
        """
        fields(saved, 1, "the ledger of rates")
        self._saved = saved

    def _warn_of_differences(self, saved: list[dict[str, Any]]) -> None:
        """Warns when the numbers of optimizers or param groups differ from the saved ones."""
        now = [self.ledger.groups(optimizer) for optimizer in range(len(self.ledger.optimizers))]
        before = [len(optimizer["groups"]) for optimizer in saved]
        if now != before:
            rank_zero_warn(
                f"the rates were saved for {_count(before)}, and this run has {_count(now)}: what is known of the "
                f"rates goes to those at the same place, and any others start afresh"
            )

    def save(self) -> dict[str, Any]:
        """The ledger's state, as plain values."""
        return self._saved if not self._attached and self._saved is not None else self.ledger.state_dict()

    def flush(self) -> None:
        """At the end of every batch: writes what its updates have to say."""
        self._batches += 1
        if self._updated:
            self._updated = False
            self.journal.flush(self.ledger)

    def look_for_updates(self) -> None:
        """At the end of an epoch: warns when an optimizer's steps can't be seen."""
        idle = [type(o).__name__ for i, o in enumerate(self.ledger.optimizers) if i not in self._seen]
        if idle and self._batches and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"lightning_lr has seen no step of {' and '.join(idle)} in {self._batches} batches, so no rate of it "
                f"was changed: if it hands its steps to an optimizer inside it, call its own step() instead"
            )

    def close(self, error: BaseException | None = None) -> None:
        """At the end of training: writes the last words.

        Args:
            error: the exception that ended the run, if one did.
        """
        status = "stopped" if self.trainer.should_stop else "finished"
        if error is not None:
            status = "interrupted" if type(error).__name__ in INTERRUPTS else "failed"
        counts = {name: number for peer in self.peers for name, number in peer.counts.items()}
        told = None if error is None else f"{type(error).__name__}: {error}".splitlines()[0]
        words = f"the run {VERBS[status]} after {count(self._made(), 'update')}" + ("" if told is None else f": {told}")
        facts = {"status": status, "error": told, "updates": self._made(), "counts": counts, "words": words}
        self.journal.close(self.ledger, self.rates(), facts)

    def last_line(self) -> None:
        """Says where to look at it all, if anything was written."""
        if self._batches and (where := address(self.trainer.loggers if self.trainer.is_global_zero else ())):
            console(f"what the learning rates did, and why: {where}")

    def rates(self) -> dict[str, float]:
        """The effective rate of the last update, absolute, by tag."""
        rates = {}
        for optimizer, names in enumerate(self.names):
            for group, name in enumerate(names[: self.ledger.groups(optimizer)]):
                used = self.ledger.used(optimizer, group)
                if used is not None:
                    rates[name.tag] = used
        return rates

    def before_update(self, optimizer: int) -> None:
        self._seen.add(optimizer)
        if len(self.names[optimizer]) != self.ledger.groups(optimizer):
            optimizers: Sequence[Optimizer] = self.ledger.optimizers
            self.names = group_names(optimizers, self.trainer.lr_scheduler_configs)
            self._describe(resumed=False)
        for peer in self.peers:
            peer.before_update(optimizer)

    def gradients_ready(self, optimizer: int) -> None:
        for peer in self.peers:
            peer.gradients_ready(optimizer)

    def rate_used(self, optimizer: int, group: int, old: float | None, new: float, parts: list[Part]) -> None:
        update = self.ledger.updates(optimizer)
        if old is not None and not self._compiles and any(part.source != SCHEDULER for part in parts):
            self._warn_of_compiling(optimizer, group)
        self.journal.rate(update, self.names[optimizer][group], (optimizer, group), old, new, parts)

    def _warn_of_compiling(self, optimizer: int, group: int) -> None:
        stepper = self.ledger.optimizers[optimizer]
        if compiled(stepper) and not isinstance(stepper.param_groups[group]["lr"], Tensor):
            self._compiles = True
            rank_zero_warn(
                f"the step of {type(stepper).__name__} is compiled, and a rate that is a number may make it compile "
                f"anew for each value, until torch runs it uncompiled: give the optimizer "
                f"lr=torch.tensor({self.ledger.base(optimizer, group):.4g}), which is changed in place"
            )

    def after_update(self, optimizer: int) -> None:
        self._updated = True
        self.journal.updated()
        for peer in self.peers:
            peer.after_update(optimizer)

    def names_at(self, place: tuple[int, int]) -> GroupName:
        """The names of the param group at (optimizer, group)."""
        return self.names[place[0]][place[1]]


def same(these: Sequence[Any], those: Sequence[Any]) -> bool:
    """Whether both hold the very same objects, in the same order."""
    return len(these) == len(those) and all(map(operator.is_, these, those))


def _count(groups: list[int]) -> str:
    optimizers = f"{len(groups)} optimizer{'s' * (len(groups) != 1)}"
    return f"{optimizers} with {' and '.join(map(str, groups))} param group{'s' * (groups != [1])}"


def _real(optimizers: Sequence[Any]) -> list[Any]:
    """The optimizers, or none: where `configure_optimizers` returns None, Lightning makes one without param groups."""
    return [] if all(getattr(o, "param_groups", None) == [] for o in optimizers) else list(optimizers)
