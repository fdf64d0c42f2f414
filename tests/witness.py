"""What a run did, seen from outside, and the invariants that it must have kept."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

import lightning_lr as llr
from tests.small import pl, trainer
from tests.ways import EPOCHS, Way, validation

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "barrier", "all_gather_object")


@contextlib.contextmanager
def overheard(calls: list[str]) -> Iterator[None]:
    """Notes every collective that this rank asks for (those of DDP's own backward excepted, which torch makes)."""
    kept = {name: getattr(torch.distributed, name) for name in COLLECTIVES}

    def noting(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return kept[name](*args, **kwargs)

        return call

    for name in COLLECTIVES:
        setattr(torch.distributed, name, noting(name))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(torch.distributed, name, function)


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor in one piece; every rank must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore


def digest(thing: Any) -> str:
    """A short name for the bits of all tensors and the text of all else."""
    parts, _ = tree_flatten(thing)
    bits = hashlib.sha1()
    for part in parts:
        if isinstance(part, Tensor):
            bits.update(whole(part).detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:
            bits.update(repr(part).encode())
    return bits.hexdigest()[:12]


def generators() -> str:
    return digest([torch.get_rng_state(), repr(random.getstate()), np.random.get_state()[1].tobytes()])  # type: ignore


class Witness(pl.Callback):
    """Sees every step of every optimizer, and every batch's end.

    Args:
        finder: the `LRFinder` of the run, or None: which updates are a trial's.
        ours: all callbacks of the package in the run.
    """

    def __init__(self, finder: Any = None, ours: Any = ()) -> None:
        self.finder, self.ours = finder, list(ours)
        self.steps: list[tuple[int, int, tuple[float, ...]]] = []
        self.expected: list[tuple[float, ...]] = []
        self.counts: dict[int, int] = {}
        self.rests: list[dict[str, Any]] = []
        self.unhealthy: list[int] = []
        self.swept: list[tuple[int, str]] = []
        self.collectives: list[str] = []
        self.attempts = 0
        self.validations: list[int] = []
        self.handles: list[Any] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.trainer = trainer
        self.see(trainer)
        self.counts = {i: self.ledger.updates(i) for i in range(len(trainer.optimizers))} if self.ours else {}

    def see(self, trainer: Any) -> None:
        for index, optimizer in enumerate(trainer.optimizers):
            handle = optimizer.register_step_post_hook(lambda o, *_, index=index: self.stepped(index, o))
            # before the ledger's own hook, which takes the rates back
            optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)
            self.handles.append(handle)

    @property
    def ledger(self) -> Any:
        return self.ours[0].ledger

    def stepped(self, index: int, optimizer: Any) -> None:
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if all(p.grad is None for p in held):
            return
        if self.ours and self.ledger.in_trial(index):
            return
        rates = tuple(float(group["lr"]) for group in optimizer.param_groups)
        self.steps.append((self.trainer.fit_loop.epoch_loop._batches_that_stepped, index, rates))
        if self.ours:
            self.counts[index] = self.counts.get(index, 0) + 1
            names = [peer.name for peer in self.ours]
            self.expected.append(
                tuple(
                    self.ledger.base(index, g) * math.prod(sorted(self.ledger.factor(n, index, g) for n in names))
                    for g in range(len(optimizer.param_groups))
                )
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.data = digest(batch)
        # within a sweep it gets batches again that came before
        self.own = self.finder is None or not self.finder.sweeping

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        rest = {
            "step": trainer.global_step,
            "data": self.data if self.own else None,
            "rates": [float(g["lr"]) for o in trainer.optimizers for g in o.param_groups],
            "schedulers": [(getattr(s, "last_epoch", None), [float(r) for r in s._last_lr]) for s in schedulers],
            "plateaus": [isinstance(s, torch.optim.lr_scheduler.ReduceLROnPlateau) for s in schedulers],
            "weights": digest(list(pl_module.parameters())),
            "random": generators(),
        }
        self.rests.append(rest)
        if not all(bool((whole(p).abs() < 1e20).all()) for p in pl_module.parameters()):
            self.unhealthy.append(trainer.global_step)
        if self.finder is not None and self.finder.sweeping:
            self.swept.append((len(self.finder.findings), rest["weights"]))

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.attempts += 1

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.validations.append(len(self.rests))
        if not all(bool((whole(p).abs() < 1e20).all()) for p in pl_module.parameters()):
            self.unhealthy.append(trainer.global_step)


class Faults(pl.Callback):
    """Spoils the run at batches by number: `nan` fills the images, `weights` breaks the net; on one rank, or on all."""

    def __init__(self, faults: dict[int, str], rank: int | None = None) -> None:
        self.faults, self.rank = faults, rank

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        kind = self.faults.get(number) if self.rank in (None, trainer.global_rank) else None
        if kind == "nan":
            tree_map_only(Tensor, lambda t: t.fill_(math.nan) if t.is_floating_point() else t, batch)
        elif kind == "weights":
            with torch.no_grad():
                for p in pl_module.parameters():
                    p.mul_(math.nan)


class Saves(pl.Callback):
    """Saves one checkpoint in mid-epoch, after all others have had their turn."""

    def __init__(self, path: Path, batch: int) -> None:
        self.path, self.left = path, batch

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.left -= 1
        if self.left == -1:
            trainer.save_checkpoint(self.path)


class Fit:
    """One run of a way, with what a witness saw of it.

    Args:
        way: how.
        root: a folder of its own.
        ours: the package's callbacks.
        faults: see `Faults`.
        save: after so many batches a checkpoint is saved to `root / "mid.ckpt"`.
        resume: a checkpoint.
        more: further settings of the `Trainer`.
    """

    def __init__(
        self,
        way: Way,
        root: Path,
        ours: Any = (),
        faults: Any = None,
        save: int | None = None,
        resume: Path | None = None,
        **more: Any,
    ) -> None:
        torch.manual_seed(1), random.seed(1), np.random.seed(1)
        self.way, self.ours = way, list(ours)
        finder = next((c for c in self.ours if isinstance(c, llr.LRFinder)), None)
        self.witness = Witness(finder, self.ours)
        others: list[Any] = [self.witness, *way.others(root / "others")]
        others += [faults] if faults is not None else []
        others += [Saves(root / "mid.ckpt", save)] if save is not None else []
        settings = {"max_epochs": EPOCHS, "log_every_n_steps": 10, **way.settings(), **more}
        if any(isinstance(c, llr.LRMonitor) for c in self.ours):
            settings = {"logger": pl.loggers.CSVLogger(root), **settings}
        settings["enable_checkpointing"] = any(isinstance(c, pl.callbacks.ModelCheckpoint) for c in others)
        self.model = way.model()
        self.trainer = trainer(root, callbacks=[*self.ours, *others], **settings)
        with warnings.catch_warnings(), overheard(self.witness.collectives):
            # what Lightning has to say of these runs is not the matter here; what the package says is
            warnings.filterwarnings("ignore", module=r"pytorch_lightning|lightning|torch")
            self.trainer.fit(
                way.wraps(self.model),
                way.data(),
                validation() if way.validates else None,
                ckpt_path=None if resume is None else str(resume),
            )

    @property
    def trace(self) -> list[tuple[int, int, tuple[float, ...]]]:
        """(the loggers' step, the optimizer, the rates of its groups) of every real update."""
        return self.witness.steps

    def end(self) -> dict[str, Any]:
        """All that the run has come to, as digests and plain numbers."""
        return {
            "weights": digest(list(self.model.parameters()) + list(self.model.buffers())),
            "optimizers": [digest(o.state_dict()) for o in self.trainer.optimizers],
            "schedulers": [repr(sorted(c.scheduler.state_dict().items())) for c in self.trainer.lr_scheduler_configs],
            "step": self.trainer.global_step,
            "metrics": {k: repr(float(v)) for k, v in self.trainer.callback_metrics.items() if not k.startswith("lr-")},
            "random": generators(),
        }

    def one(self, kind: type) -> Any:
        return next((c for c in self.ours if isinstance(c, kind)), None)


# the invariants ----------------------------------------------------------------------------------------------------


def check_same(a: Fit, b: Fit) -> None:
    """Two runs are one: every rate, every bit of every weight at every batch's end, every random number."""
    assert a.trace == b.trace
    assert a.witness.rests == b.witness.rests
    assert a.end() == b.end()


def check_rates(run: Fit) -> None:
    """Invariants 1, 2 and 7: each update was made at base times factors; at rest the rate is the scheduler's."""
    for (_, _, rates), expected in zip(run.trace, run.witness.expected, strict=True):
        assert rates == pytest.approx(expected, rel=1e-9)
    for rest in run.witness.rests:
        told = [rate for _, rates in rest["schedulers"] for rate in rates]
        assert not told or rest["rates"] == told, rest
    ledger = run.ours[0].ledger
    for index, count in run.witness.counts.items():
        assert ledger.updates(index) == count


def check_healthy(run: Fit) -> None:
    """Invariant 3: nobody sees weights that are broken, or those of a sweep's trials."""
    assert not run.witness.unhealthy
    for number in {number for number, _ in run.witness.swept}:
        seen = {weights for n, weights in run.witness.swept if n == number}
        assert len(seen) == 1, f"the weights moved within sweep {number}"


def check_time(run: Fit, plain: Fit) -> None:
    """Invariant 5: steps, data and schedulers go on as in the plain run."""
    # what a sweep's validations show ends no run, and is no bad check of a plateau
    swept = run.witness.swept
    assert len(run.witness.rests) == len(plain.witness.rests) or (
        swept and len(run.witness.rests) > len(plain.witness.rests)
    )
    for mine, theirs in zip(run.witness.rests, plain.witness.rests, strict=False):
        assert mine["step"] == theirs["step"]
        assert mine["data"] in (None, theirs["data"])
        for (one, _), (other, _), plateau in zip(
            mine["schedulers"], theirs["schedulers"], mine["plateaus"], strict=True
        ):
            assert one <= other if swept and plateau else one == other


def check_record(run: Fit) -> None:
    """Invariant 6: every change of every rate, once, at the update that it first applies to."""
    monitor = run.one(llr.LRMonitor)
    if monitor is None:
        return
    before: dict[tuple[int, int], float] = {}
    changes = []
    for axis, index, rates in run.trace:
        for group, new in enumerate(rates):
            old = before.get((index, group))
            if old is None or not math.isclose(old, new, rel_tol=1e-9):
                before[index, group] = new
                changes += [] if old is None else [(axis, old, new)]
    told = [(change.step, change.old, change.new) for change in monitor.changes]
    assert [step for step, *_ in told] == [step for step, *_ in changes]
    for mine, theirs in zip(sorted(told), sorted(changes), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)


def check_over(run: Fit) -> None:
    """Invariant 9: what was borrowed is given back."""
    for optimizer in run.trainer.optimizers:
        hooks = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
        assert not [hook for hook in hooks if isinstance(hook, functools.partial)]


def check(run: Fit, plain: Fit) -> None:
    """All that can be said of one run, beside the plain one of the same way."""
    check_rates(run)
    check_healthy(run)
    check_time(run, plain)
    check_record(run)
    check_over(run)


def check_resumed(rest: Fit, whole: Fit) -> None:
    """Invariant 8: the resumed run is the end of the uninterrupted one."""
    done = len(whole.witness.rests) - len(rest.witness.rests)
    assert done > 0
    for mine, theirs in zip(rest.witness.rests, whole.witness.rests[done:], strict=True):
        assert {**mine, "random": None} == {**theirs, "random": None}
    assert rest.trace == whole.trace[len(whole.trace) - len(rest.trace) :]
    mine, theirs = rest.end(), whole.end()
    for what in ("weights", "optimizers", "schedulers", "step"):
        assert mine[what] == theirs[what], what
