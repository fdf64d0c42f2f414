"""`DivergenceGuard`: skips the bad update, rewinds the diverged run, lowers the rate, and carries on."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr.callbacks.base import LRCallback
from lightning_lr.callbacks.finder import LRFinder
from lightning_lr.callbacks.plateau import PlateauDecay
from lightning_lr.callbacks.warmup import Warmup
from lightning_lr.console import count
from lightning_lr.curves import INCIDENT
from lightning_lr.generations import Generations
from lightning_lr.incident import FIRST_KEPT, LATEST_KEPT, keep_few, nonfinite_gradients, write_incident
from lightning_lr.internals import averaged_models, buffers_of, foreach_copy, scale_of, scaler_in_use, unscales_itself
from lightning_lr.memory import parted
from lightning_lr.policies.divergence import DivergencePolicy
from lightning_lr.policies.divergence_evidence import DRIFT_AGE
from lightning_lr.policies.divergence_state import DivergenceState, Signals, Verdict
from lightning_lr.reference import reference_rates
from lightning_lr.shards import local, reshard
from lightning_lr.signals import LossMeter, Measured, Pending, measure, start
from lightning_lr.source import Source

CLOSE_LOOK = 8
"""Updates after a start or a rewind at each of which the drift is measured: a rate too high kills within them."""

LEAST_INTERVAL = 10
"""Updates between two snapshots in a run whose steps are long against a copy."""

MOST_INTERVAL = 500
TIMED_UPDATES = 20
"""After so many updates `snapshot_every="auto"` decides."""

COST_SHARE = 0.01
"""Of the training time, for snapshots."""

SETTLING = 24
"""Accepted updates after a rewind in which metrics say nothing about the rate."""

ASK_FINDER = 3
"""Rewinds without lasting progress after which an `LRFinder` beside the guard is asked for a rate."""

SCALE_FLOOR = 1.0
"""A gradient scaler above this scale is still calibrating: its overflows are no incidents."""

SIGNALS_KEPT = 64

JUDGED = ("states", "_proven", "_caps", "_reasons", "_jobs")
COUNTED = ("_clock", "_look_due", "_copy_due", "_look", "_decided", "_interval", "skips", "rewinds", "updates_lost")
"""What a verdict changes: lists by optimizer, and numbers."""


class DivergenceError(RuntimeError):
    """The run diverged again and again; the model holds the weights of the last healthy snapshot."""


class Job(NamedTuple):
    """One update that is measured but not judged.

    Args:
        pending: its numbers.
        rate: as in `Signals`.
        weight_age: as in `Signals`.
        drift_age: as in `Signals`.
        timed: whether the last number decides how often snapshots are taken.
        signals: the numbers where they are known already (from a checkpoint).
    """

    pending: Pending
    rate: float
    weight_age: int
    drift_age: int
    timed: bool
    signals: Signals | None = None


class DivergenceGuard(LRCallback):
    """Judges every update before it is applied, and keeps a run alive that would have died.

    Loss and gradient that are not finite, and single spikes, cost the update (its gradients become None, so no
    optimizer moves). A sustained rise, a slow divergence and a dead run are rewound: weights, buffers, optimizer state,
    gradient scaler, torchmetrics states and averaged weights come back from the newest snapshot in host memory that was
    proven healthy; the effective rate is capped and grows back. Time is not rewound: `global_step`, the data loader and
    the schedulers go on. How it judges: `lightning_lr.DivergencePolicy`.

    Without an incident the run is bit-identical to the one without the guard.

    Args:
        spike_threshold: how far into the tail of the run's own losses a spike lies, in mean excesses, >= 3.
        window: accepted updates that are remembered, a multiple of 8, >= 32.
        backoff: the ratio of the rate after a failure to the rate before, in (0, 1).
        max_rewinds: rewinds without lasting progress before it gives up, >= 1.
        regrow: calm updates in which a lowered rate doubles, >= 8.
        loss_falls: whether the loss of a healthy run falls; None: yes with one optimizer, no with several, whose losses
            may be set against each other (a GAN). Without it, a climb and a dead run are not seen: what is not finite,
            and spikes, are.
        snapshot_every: updates between snapshots, >= 1; or `"auto"`: as often as costs at most 1% of the training time,
            between 10 and 500. Only a number gives two runs the same rewinds for certain.
        snapshots: the most copies kept, >= 2.
        memory_limit: the most host memory for all copies of this rank together, in bytes; None: no limit but
            `snapshots`. Copies grow with the optimizer's state: Adam's are three times the weights.
        save_snapshots: whether checkpoints hold the copies, which a resumed run needs in order to rewind as the
            uninterrupted one; without (and always where each rank has a part of the weights or of the optimizer's
            state), they are smaller, and the resumed weights are the first snapshot.
        incidents_dir: a folder for the batch, the signals and the parameters of every incident, of which each rank
            keeps the first 10 and the latest 90; None: none is written.
        rewarm: whether `Warmup` callbacks warm up again after a rewind.
        lag: 0 judges an update before it is applied. 1 judges it one update later, by numbers that were copied to the
            host meanwhile: an accelerator never waits for it, and what would have been skipped is rewound instead. A
            checkpoint at a batch's end may then hold one update that is not judged yet.
        on_give_up: `raise` a `DivergenceError` on every rank, or `stop` the fit cleanly.
        name: under which its factor is kept and shown; by default the class's own. Two callbacks of one kind need
            different ones: `DivergenceGuard(..., name="Second")`.

    Raises:
        ValueError: at construction for a value outside its bounds; at the start of `fit` for a `memory_limit` below two
            copies.
        DivergenceError: when it gives up.

    Example:
        >>> from lightning_lr import DivergenceGuard
        >>> DivergenceGuard(backoff=0.3).policy.backoff
        0.3
    """

    def __init__(
        self,
        *,
        spike_threshold: float = 14.0,
        window: int = 128,
        backoff: float = 0.5,
        max_rewinds: int = 12,
        regrow: int = 200,
        loss_falls: bool | None = None,
        snapshot_every: int | Literal["auto"] = "auto",
        snapshots: int = 4,
        memory_limit: int | None = None,
        save_snapshots: bool = True,
        incidents_dir: str | Path | None = None,
        rewarm: bool = False,
        lag: Literal[0, 1] = 0,
        on_give_up: Literal["raise", "stop"] = "raise",
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.keep_arguments(locals())
        self.policy = DivergencePolicy(spike_threshold, window, backoff, max_rewinds, regrow)
        if loss_falls is not None and not isinstance(loss_falls, bool):
            raise ValueError(f"loss_falls must be True, False, or None to go by the optimizers, got {loss_falls!r}")
        self.loss_falls = loss_falls
        if snapshot_every != "auto" and not _whole(snapshot_every, 1):
            raise ValueError(f"snapshot_every must be a whole number >= 1 or 'auto', got {snapshot_every!r}")
        if not _whole(snapshots, 2):
            raise ValueError(f"snapshots must be a whole number >= 2, got {snapshots!r}: one proven, one to become it")
        if memory_limit is not None and not _whole(memory_limit, 1):
            raise ValueError(f"memory_limit must be a whole number of bytes >= 1, or None, got {memory_limit!r}")
        if lag not in (0, 1):
            raise ValueError(f"lag must be 0 or 1, got {lag!r}: the updates after which a verdict comes")
        if on_give_up not in ("raise", "stop"):
            raise ValueError(f"on_give_up must be 'raise' or 'stop', got {on_give_up!r}")
        self.snapshot_every, self.snapshots, self.memory_limit = snapshot_every, snapshots, memory_limit
        self.save_snapshots, self.rewarm, self.lag, self.on_give_up = save_snapshots, rewarm, lag, on_give_up
        self.incidents_dir = None if incidents_dir is None else Path(incidents_dir)
        self.reset()

    # the run ---------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        self.skips = self.rewinds = self.updates_lost = 0
        self.states: list[DivergenceState] = []
        self._saved: dict[str, Any] | None = None
        self._interval: int = LEAST_INTERVAL if isinstance(self.snapshot_every, str) else self.snapshot_every
        self._clock = self._anchor_clock = 0
        self._look_due = self._copy_due = 1
        self._look = False
        self._proven: list[int] = []
        self._dropped: list[bool] = []
        self._seen: list[bool] = []
        self._trained: list[int] = []
        self._caps: list[float] = []
        self._reasons: list[str] = []
        self._jobs: list[Job | None] = []
        self._before: dict[str, Any] | None = None
        self._meter = LossMeter()
        self._batches: list[Any] = []
        self._folders: list[Path] = []
        self._short = self._tidied = False
        self._window: deque[tuple[Any, ...]] = deque(maxlen=SIGNALS_KEPT)
        self._copy_seconds, self._look_seconds, self._step_seconds, self._last_time = 0.0, 0.0, 0.0, 0.0
        self._given_up = self._warned = self._decided = False
        self._buffers: list[tuple[dict[str, Any], str]] = []
        self._buffers_before: list[Tensor] = []
        self.generations: Generations | None = None

    @property
    def settling(self) -> bool:
        """Whether a rewind was a moment ago."""
        return self.rewinds > 0 and self._clock - self._anchor_clock < SETTLING

    def started(self, trainer: Any, pl_module: Any) -> None:
        optimizers = self.ledger.optimizers
        if not optimizers:
            return
        saved_for = len(optimizers) if self._saved is None else len(self._saved["states"])
        if saved_for != len(optimizers):
            rank_zero_warn(
                f"{self.name}: the checkpoint is of a run with {count(saved_for, 'optimizer')}, and this one has "
                f"{len(optimizers)}: it starts afresh, and the resumed weights are the first copy"
            )
            self.reset()
        self._sharded = reshard(pl_module)
        self._scaler = scaler_in_use(trainer)
        source = Source([pl_module, *averaged_models(trainer.callbacks)], optimizers, self._scaler)
        self._parted = self._sharded or parted(optimizers, trainer.world_size)
        self.generations = Generations(
            source, self.snapshots, self.memory_limit, partial(_largest, pl_module.device) if self._parted else int
        )
        falls = len(optimizers) == 1 if self.loss_falls is None else self.loss_falls
        self.policy = replace(self.policy, loss_falls=falls)
        self._dropped, self._seen = [False] * len(optimizers), [False] * len(optimizers)
        self._trained = [len(self._parameters(index)) for index in range(len(optimizers))]
        # by name: a module may put another tensor there
        held = [buffers_of(module) for module in pl_module.modules()]
        self._buffers = [(buffers, name) for buffers in held for name, b in buffers.items() if b is not None]
        saved, self._saved = self._saved, None
        if len(self._jobs) != len(optimizers):
            self._jobs = [None] * len(optimizers)
        if saved is None or len(self.states) != len(optimizers):
            self.states = [self.policy.start() for _ in optimizers]
            self._proven = [0] * len(optimizers)
            self._caps = [math.inf] * len(optimizers)
            self._reasons = ["the rate is capped since a rewind"] * len(optimizers)
        if saved is not None and self.incidents_dir is not None:
            names = saved.get("folders", ())
            self._folders = [self.incidents_dir / f"{name}-{trainer.global_rank}" for name in names]
        one = self.generations.measure()
        if self.memory_limit is not None and self.generations.room < 2:
            raise ValueError(
                f"memory_limit must hold two copies of {one} bytes each, got {self.memory_limit}: "
                f"write {self.written(memory_limit=2 * one)}, or {self.left_out}"
            )
        copies = None if saved is None or self._parted else saved["generations"]
        if copies is not None and not self.generations.load_state_dict(copies, tuple(self._proven)):
            rank_zero_warn(
                f"{self.name}: the checkpoint's copies are of another model or of other optimizers, and are dropped: "
                f"the resumed weights are the first copy"
            )
        if not len(self.generations):
            label = tuple(state.update for state in self.states)
            self.generations.take(label, self._clock, label, self.journal.step, keep_anchor=False)
            if saved is not None:
                # the resumed weights are all there is to go back to
                self._proven = list(label)
                self._anchor_clock = self._clock
        rank_zero_info(
            f"{self.name}: a snapshot takes {one / 2**20:.3g} MiB of host memory on each rank now, and up to "
            f"{self.generations.room} are kept; optimizer state that comes later adds to it"
        )
        self._last_time = time.perf_counter()

    def _renew(self, trainer: Any, pl_module: Any) -> None:
        known = [] if self.generations is None else self.generations.source.optimizers
        now = self.ledger.optimizers
        if len(known) != len(now) or any(a is not b for a, b in zip(known, now, strict=True)):
            # somebody gave the trainer other optimizers: what was kept of the old ones is of no use
            self._jobs = [None] * len(now)
            self._anchor_clock = self._clock
            self.started(trainer, pl_module)

    # signals ---------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._renew(trainer, pl_module)
        self._seen = [False] * len(self._seen)
        if not self._meter.losses:
            self._batches = []
            self._dropped = [False] * len(self._dropped)
            if self._buffers:
                self._keep_buffers()
        if self.incidents_dir is not None:
            self._batches.append(batch)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if self.ledger.optimizers:
            self._meter.add(loss, trainer.accumulate_grad_batches, self._scaler)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        for index, known in enumerate(self.ledger.optimizers):
            if known is optimizer:
                self._dropped[index], self._seen[index] = False, True
                self._see(trainer, pl_module, index)

    def gradients_ready(self, optimizer: int) -> None:
        if self._seen[optimizer]:
            self._seen[optimizer] = False
            if self._dropped[optimizer]:
                # under a gradient scaler the step begins only now
                self.ledger.discard_update(optimizer)
        else:
            # a step by the bare optimizer, which Lightning doesn't tell of
            self._see(self.run.trainer, self.run.trainer.lightning_module, optimizer)
        self._dropped[optimizer] = False

    def _see(self, trainer: Any, pl_module: Any, index: int) -> None:
        """The gradients of an update are there, and not used yet."""
        ledger = self.ledger
        loss = self._meter.take()
        if ledger.in_trial(index) or ledger.evaluations(index) > 1:
            # what LBFGS or SAM tries out on the way is not where the run stands
            return
        if self._given_up:
            self._drop(index)
            return
        automatic_alone = pl_module.automatic_optimization and trainer.world_size == 1
        if loss is None and automatic_alone and all(p.grad is None for p in self._parameters(index)):
            # training_step returned None, which Lightning allows on one process: the ledger discards the step
            return
        self._before = {name: list(getattr(self, name)) for name in JUDGED}
        self._before.update((name, getattr(self, name)) for name in COUNTED)
        job = self._start(index, loss)
        if self.lag:
            job.pending.send()
            job, self._jobs[index] = self._jobs[index], job
        if job is not None:
            self._judge(trainer, pl_module, index, job)

    def after_update(self, optimizer: int) -> None:
        self._before = None

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._before = None
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        before, self._before = self._before, None
        if before is not None and before["rewinds"] == self.rewinds:
            # something raised between the verdict and the update, and a resumed run makes the batch again
            self.__dict__.update(before)
        super().on_exception(trainer, pl_module, exception)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._judge_late(trainer, pl_module)

    def _judge_late(self, trainer: Any, pl_module: Any) -> None:
        """Before somebody looks at the weights: judges what `lag` has left open."""
        for index in range(len(self._jobs)):
            job = self._jobs[index]  # a rewind for the one before has dropped it, maybe
            if job is not None and not self._given_up:
                self._jobs[index] = None
                self._judge(trainer, pl_module, index, job)
                self._dropped[index] = False

    def _judge(self, trainer: Any, pl_module: Any, index: int, job: Job) -> None:
        measured, signals = self._finish(job)
        if self._calibrating(measured):
            return
        if self.states[index].update == 0:
            self.states[index] = self.policy.start(self._planned_rate(trainer, index))
        state, verdict = self.policy.step(self.states[index], signals)
        # before the first update the weights are the user's own
        ours = signals.weight_age > 0 or self.rewinds > 0
        if verdict.kind == "skip" and signals.weight_change is None and ours and not self.lag:
            # is it the batch, or are the weights broken already? Nobody is to see them if they are
            signals = signals._replace(weight_change=self._look_again())
            state, verdict = self.policy.step(self.states[index], signals)
        self.states[index] = state
        self._proven[index] = verdict.healthy_before
        self._look = verdict.measure
        self._window.append((state.update, signals.loss, signals.grad_norm, verdict.kind))
        if verdict.kind == "accept":
            self._accepted(index, verdict)
        else:
            self._incident(trainer, pl_module, index, measured, signals, verdict)
        self._clock += 1
        if self.ledger.factor(self.name, index, 0) != verdict.factor:
            self._set_factor(index, verdict)

    def _start(self, index: int, loss: Tensor | None) -> Job:
        generations, parameters = self._generations, self._parameters(index)
        if len(parameters) > self._trained[index] and not generations.adopt(tuple(self._proven)):
            self._tell_short()
        self._trained[index] = len(parameters)
        age, drift_age = self._clock - generations.newest.clock, self._clock - self._anchor_clock
        due = self._clock >= self._look_due
        more: tuple[Tensor, ...] = ()
        if (due or self._look) and age > 0:
            began = self._time()
            more = generations.change(anchor=due and drift_age <= DRIFT_AGE and not self._tried_out())
            self._look_seconds = self._time() - began
        timed = self.snapshot_every == "auto" and not self._decided and self._clock >= TIMED_UPDATES
        if self.snapshot_every == "auto" and not self._decided:
            now = time.perf_counter()
            if self._clock:
                self._step_seconds += now - self._last_time
            self._last_time = now
            if timed:
                self._decided = True
                share = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
                steps = (
                    (self._copy_seconds + self._look_seconds)
                    / max(self._step_seconds / TIMED_UPDATES, 1e-9)
                    / COST_SHARE
                )
                more = (*more, torch.tensor(steps / share, dtype=torch.float64))
        ledger, rate = self.ledger, 0.0
        scale = scale_of(self._scaler) if unscales_itself(ledger.optimizers[index]) else None
        for group in range(ledger.groups(index)):
            rate = max(rate, ledger.effective(index, group) / ledger.factor(self.name, index, group))
        device = self.run.trainer.strategy.root_device
        pending = start(loss, parameters, scale, more, device=device, sharded=self._sharded)
        return Job(pending, rate if rate > 0.0 else 1.0, age, drift_age, timed)

    def _finish(self, job: Job) -> tuple[Measured, Signals]:
        if job.signals is not None:
            return Measured(job.signals.loss, job.signals.grad_norm, (), None), job.signals
        measured = job.pending.read()
        sums = list(measured.more)
        if job.timed:
            self._interval = min(max(math.ceil(sums.pop()), LEAST_INTERVAL), MOST_INTERVAL)
        change = drift = None
        if sums:
            change = _ratio(*sums[:2])
            if len(sums) > 2:
                drift = _ratio(*sums[2:])
        number = measured.loss
        if number is None:
            number = 1.0
            if not self._warned:
                self._warned = True
                rank_zero_warn(f"{self.name} sees no loss (use self.manual_backward): it judges by gradients alone")
        finite = math.isfinite(number) and math.isfinite(measured.grad_norm)
        signals = Signals(number, measured.grad_norm, finite, job.rate, change, job.weight_age, drift, job.drift_age)
        return measured, signals

    def _time(self) -> float:
        """Seconds; while `snapshot_every="auto"` is still undecided, of an accelerator too."""
        if self.snapshot_every == "auto" and not self._decided and torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _parameters(self, index: int) -> list[Tensor]:
        return [p for group in self.ledger.optimizers[index].param_groups for p in group["params"]]

    def _look_again(self) -> float | None:
        """The weights' change now; on an incident only, since it is a collective of its own."""
        device = self.run.trainer.strategy.root_device
        far, size = measure(None, [], None, self._generations.change(anchor=False), device=device).more
        return _ratio(far, size)

    def _tried_out(self) -> bool:
        """Did a finder see the loss fall at this rate? Then no start is held too hot on the weights' drift alone."""
        found = (peer.result for peer in self.run.peers if isinstance(peer, LRFinder) and peer.apply)
        return self.rewinds == 0 and any(result is not None and result.suggestion is not None for result in found)

    def _planned_rate(self, trainer: Any, index: int) -> float:
        """The height to which the schedule and a warm-up may raise the rate without suspicion."""
        ledger = self.ledger
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        peaks = reference_rates(ledger.optimizers[index], schedulers)
        others = [p for p in self.run.peers if p.has_factor and p is not self and not isinstance(p, Warmup)]
        return max(
            peak * math.prod(ledger.factor(peer.name, index, group) for peer in others)
            for group, peak in enumerate(peaks)
        )

    def _calibrating(self, measured: Measured) -> bool:
        """Does a gradient scaler see to this overflow? Not where the loss itself, which it doesn't touch, is none."""
        if self._scaler is None or math.isfinite(measured.grad_norm):
            return False
        if measured.loss is not None and not math.isfinite(measured.loss):
            return False
        scale = scale_of(self._scaler)
        return scale is not None and float(scale) > SCALE_FLOOR

    # verdicts --------------------------------------------------------------------------------------------------

    def _accepted(self, index: int, verdict: Verdict) -> None:
        if self._clock >= self._look_due:
            since = self._clock - self._anchor_clock
            apart = 1 if since < CLOSE_LOOK else LEAST_INTERVAL if since <= DRIFT_AGE else self._interval
            self._look_due = self._clock + min(apart, self._interval)
        if self._clock >= self._copy_due and self._clock - self._anchor_clock >= CLOSE_LOOK:
            if self.lag:
                # the update just judged is in the weights; of another optimizer there may be one that is not judged
                label = tuple(s.update + (i != index and self._jobs[i] is not None) for i, s in enumerate(self.states))
            else:
                label = tuple(state.update - (i == index) for i, state in enumerate(self.states))
            young = self._clock - self._anchor_clock <= DRIFT_AGE
            began = self._time()
            if self._generations.take(label, self._clock, tuple(self._proven), self.journal.step, keep_anchor=young):
                # the first copies make their memory: only the latest one's time counts
                self._copy_seconds = self._time() - began
                self._copy_due = self._clock + self._interval
            if self._generations.room < 2:
                self._copy_due = self._clock + self._interval
                self._tell_short()

    def _tell_short(self) -> None:
        """Two copies are more than `memory_limit` by now."""
        if not self._short:
            self._short = True
            one = self._generations.measure()
            rank_zero_warn(
                f"{self.name}: a copy takes {one} bytes of host memory by now, and two of them are more than "
                f"memory_limit={self.memory_limit}: it takes no more copies, and a rewind goes back to one that it has "
                f"(the newest is {self._clock - self._generations.newest.clock} updates old), so that it may lose "
                f"much. For two copies write {self.written(memory_limit=2 * one)}"
            )

    def _incident(
        self, trainer: Any, pl_module: Any, index: int, measured: Measured, signals: Signals, verdict: Verdict
    ) -> None:
        names = [] if signals.finite else nonfinite_gradients(pl_module)
        self._drop(index)
        numbers, of = _numbers(signals, verdict), self._of(index)
        if verdict.kind == "skip" and not self.lag:
            self.skips += 1
            self.updates_lost += 1
            self._restore_buffers()
            words, more = f"skipped this update{of}", "skipped"
        else:
            lost = self._rewind(index, forget=verdict.kind == "skip")
            self.rewinds += 1
            self.updates_lost += lost
            step = self._generations.newest.step
            words, more = f"rewound to step {step} ({count(lost, 'update')}{of} lost)", "rewound for"
            if verdict.factor != 1.0:
                words += f", factor {verdict.factor:.4g}"
        line = f"{self.name}: {words}: {verdict.cause} ({numbers})"
        if names:
            line += f"; not finite: {_few(names)}"
        scalars = {f"{INCIDENT}loss": signals.loss, f"{INCIDENT}grad_norm": signals.grad_norm}
        if verdict.threshold is not None:
            scalars[f"{INCIDENT}threshold"] = verdict.threshold
        kind = (self.name, index, verdict.kind, re.sub(r"\d+", "", verdict.cause))
        self.journal.incident(kind, line, f"{self.name}: {more}", numbers, warn=more != "skipped", **scalars)
        self._write(trainer, index, measured, signals, verdict, names)
        if verdict.kind == "give_up":
            self._give_up(trainer, index, verdict)

    def _rewind(self, index: int, *, forget: bool) -> int:
        """Gives the newest healthy generation back; returns the updates that this loses.

        With `forget` the judge of `index` has not seen to it itself, and is told as the others are.
        """
        self._jobs = [None] * len(self._jobs)
        judged = self.states[index].update
        target = self._generations.rewind(tuple(self._proven), self._clock + 1)
        if lacking := target.snapshot.lacking():
            rank_zero_warn(
                f"{self.name} rewinds, but holds no copy of {_few(lacking)}: they came into the model, or were changed "
                f"in size, after it was taken, and stay as they are"
            )
        for other, state in enumerate(self.states):
            if other != index or forget:
                self.states[other] = self.policy.rewound(state, target.label[other])
                self._proven[other] = self.states[other].memory.proven
        lost = judged - target.label[index]
        target.label = tuple(min(mine, proven) for mine, proven in zip(target.label, self._proven, strict=True))
        self._anchor_clock = self._clock + 1
        self._look_due = self._copy_due = self._clock + 2
        self._look = False
        in_a_row = self.states[index].memory.rewinds
        for peer in self.run.peers:
            if isinstance(peer, PlateauDecay):
                peer.forget()
            elif isinstance(peer, LRFinder) and in_a_row == ASK_FINDER:
                peer.request(f"{in_a_row} rewinds without lasting progress")
            elif isinstance(peer, Warmup) and self.rewarm:
                peer.restart()
        return lost

    def _give_up(self, trainer: Any, index: int, verdict: Verdict) -> None:
        self._given_up = True
        in_a_row = self.states[index].memory.rewinds
        after = ""
        if in_a_row:
            some = "" if in_a_row == self.rewinds else f", {in_a_row} of them"
            after = f" after {count(self.rewinds, 'rewind')}{some} without lasting progress"
        line = f"{self.name} gives up{after}: {verdict.cause}. {self._left(trainer)}"
        self.journal.sum_up()
        if self.on_give_up == "raise":
            self.journal.say(line)
            raise DivergenceError(line)
        self.journal.tell(line, warn=True)
        trainer.should_stop = True

    def _left(self, trainer: Any) -> str:
        """What weights the model holds at the end, in words."""
        source = self._generations.source
        broken = [k.split("/", 2)[2] for k, p in source.parameters().items() if not bool(local(p).isfinite().all())]
        # another rank's part may be broken
        number = torch.tensor(float(len(broken)), device=trainer.strategy.root_device)
        if measure(None, [], None, [number], device=number.device).more[0] == 0.0:
            return "The model holds the last healthy weights"
        where = _few(broken) if broken else "some of another rank's"
        return f"The model does not hold healthy weights, since there is no healthy copy of all; not finite: {where}"

    def _of(self, index: int) -> str:
        return f" of {self.run.names_at((index, 0)).optimizer}" if len(self.ledger.optimizers) > 1 else ""

    def _drop(self, index: int) -> None:
        self._dropped[index] = True
        self.ledger.discard_update(index)

    @torch.no_grad()
    def _keep_buffers(self) -> None:
        """Before the forward pass, which moves running statistics, on a batch that may turn out to be bad."""
        # a module may have given one up (a parametrisation that was removed)
        self._buffers = [(buffers, name) for buffers, name in self._buffers if buffers.get(name) is not None]
        live = [buffers[name] for buffers, name in self._buffers]
        kept = self._buffers_before
        if len(kept) != len(live) or any(a.shape != b.shape for a, b in zip(kept, live, strict=True)):
            self._buffers_before = [buffer.clone() for buffer in live]
        else:
            foreach_copy(kept, live)

    @torch.no_grad()
    def _restore_buffers(self) -> None:
        if self._buffers:
            foreach_copy([buffers[name] for buffers, name in self._buffers], self._buffers_before)

    def _set_factor(self, index: int, verdict: Verdict) -> None:
        cap, before = self.states[index].memory.cap, self._caps[index]
        self._caps[index] = cap
        if verdict.kind in ("rewind", "give_up"):
            self._reasons[index] = verdict.cause
        elif verdict.factor == 1.0:
            self._reasons[index] = "the rate is back at its full height"
        elif cap > before:
            self._reasons[index] = "calm updates let the rate grow back"
        # else the same cap holds, and the factor follows the scheduler's rate
        reason = self._reasons[index]
        self.ledger.set_factor(self.name, verdict.factor, reason, optimizer=index)

    # the record ------------------------------------------------------------------------------------------------

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.generations is None:
            super().on_train_end(trainer, pl_module)
            return
        self._judge_late(trainer, pl_module)
        self.journal.sum_up()
        size = f"snapshots took {self._generations.bytes / 2**20:.3g} MiB"
        judged = f"{self.name}: {count(self._clock, 'update')} judged"
        if self.skips or self.rewinds:
            self.journal.tell(
                f"{judged}: {self.skips} skipped, {count(self.rewinds, 'rewind')}, "
                f"{count(self.updates_lost, 'update')} lost; {size}"
            )
        else:
            rank_zero_info(f"{judged}, none lost; {size}")
        super().on_train_end(trainer, pl_module)

    def _write(
        self, trainer: Any, index: int, measured: Measured, signals: Signals, verdict: Verdict, names: list[str]
    ) -> None:
        if self.incidents_dir is None:
            return
        own = measured.own_loss
        bound = verdict.threshold if verdict.threshold is not None else math.inf
        saw = own is not None and (not math.isfinite(own) or own > bound)
        if not saw and not trainer.is_global_zero:
            return
        facts = {
            "step": self.journal.step,
            "update": self.states[index].update,
            "epoch": trainer.current_epoch,
            "batch": trainer.fit_loop.epoch_loop.batch_idx,
            "rank": trainer.global_rank,
            "optimizer": index,
            "verdict": verdict.kind,
            "cause": verdict.cause,
            "loss": repr(signals.loss),
            "loss_of_this_rank": repr(own),
            "grad_norm": repr(signals.grad_norm),
            "threshold": repr(verdict.threshold),
            "factor": verdict.factor,
            "parameters_with_nonfinite_gradients": names,
        }
        folder = self.incidents_dir / f"step-{self.journal.step:08d}-rank-{trainer.global_rank}"
        write_incident(folder, facts, self._window, self._batches)
        self._folders += [folder] * (folder not in self._folders)
        if keep_few(self._folders) and not self._tidied:
            self._tidied = True
            rank_zero_warn(
                f"{self.name}: incidents_dir has more than {FIRST_KEPT + LATEST_KEPT} incidents of this run: of each "
                f"rank's, the first {FIRST_KEPT} and the latest {LATEST_KEPT} stay, and those between are removed"
            )

    # state -----------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        """The judges' states and the clocks; with `save_snapshots` the copies too."""
        if self.generations is None or not self.states:
            return self._saved or {}
        return {
            "states": [state.to_dict() for state in self.states],
            "proven": list(self._proven),
            "clocks": [self._clock, self._anchor_clock, self._look_due, self._copy_due, self._interval],
            "flags": [self._look, self._decided, self._given_up],
            "caps": list(self._caps),
            "reasons": list(self._reasons),
            "jobs": [None if job is None else list(self._finish(job)[1]) for job in self._jobs],
            "counts": [self.skips, self.rewinds, self.updates_lost],
            "folders": [folder.name.rpartition("-")[0] for folder in self._folders],
            # a checkpoint holds the state of rank zero, and of what is parted every rank has its own copies
            "generations": self.generations.state_dict() if self.save_snapshots and not self._parted else None,
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        if not state:
            return
        self._saved = state
        self.states = [DivergenceState.from_dict(saved) for saved in state["states"]]
        self._proven = list(state["proven"])
        self._caps, self._reasons = list(state["caps"]), list(state["reasons"])
        self._clock, self._anchor_clock, self._look_due, self._copy_due, self._interval = state["clocks"]
        self._look, self._decided, given_up = state["flags"]
        if given_up:
            rank_zero_warn(
                f"the checkpoint was saved after {self.name} had given up: it judges the run anew, from the weights in "
                f"the checkpoint on, at the rate that the last rewind left"
            )
            self.states = [state.again() for state in self.states]
        if not isinstance(self.snapshot_every, str):
            self._interval = self.snapshot_every
            self._look_due = min(self._look_due, self._clock + self._interval)
            self._copy_due = min(self._copy_due, self._clock + self._interval)
        self.skips, self.rewinds, self.updates_lost = state["counts"]
        self._jobs = [
            None if saved is None else Job(Pending([], _nothing), 1.0, 0, 0, False, Signals(*saved))
            for saved in state["jobs"]
        ]

    @property
    def _generations(self) -> Generations:
        if self.generations is None:
            raise RuntimeError(f"{self.name} has no snapshots outside of trainer.fit")
        return self.generations


def _nothing(_: list[float]) -> Measured:
    return Measured(None, 0.0, (), None)


def _ratio(far: float, size: float) -> float | None:
    if size == 0.0:
        # no parameter has a copy
        return None
    return math.sqrt(far / size) if far >= 0.0 else math.nan


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _largest(device: torch.device, number: int) -> int:
    """The largest of the numbers that the ranks have, on every rank."""
    mine = torch.tensor(number, device=device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX)
    return int(mine)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _numbers(signals: Signals, verdict: Verdict) -> str:
    text = f"loss {signals.loss:.4g}, gradient norm {signals.grad_norm:.4g}"
    return text if verdict.threshold is None else f"{text}, limit {verdict.threshold:.4g}"
