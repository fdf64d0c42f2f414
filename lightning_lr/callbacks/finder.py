"""`LRFinder`: the learning rate is found inside the run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from lightning_lr.arguments import whole_number
from lightning_lr.callbacks.base import LRCallback
from lightning_lr.policies.sweep import BRACKET, LEAST_STEPS, SweepPolicy
from lightning_lr.policies.sweep_schedule import SweepSchedule, places
from lightning_lr.sweeps.finding import Finding
from lightning_lr.sweeps.occasions import Occasions
from lightning_lr.sweeps.outlook import AUTO_REST, LEAST_REST
from lightning_lr.sweeps.rate_search import RateSearch
from lightning_lr.sweeps.sweep_plan import AUTO, steps_for

Rule = Literal["bracket", "steepest", "valley", "slide", "minimum"]

ASKED = 3
"""After this many rewinds without lasting progress it looks for a rate once more."""

SWEPT = frozenset(("min_lr", "max_lr", "steps", "suggest", "optimizer", "replay"))
"""Arguments that decide what a sweep does: if one of them has changed, a sweep that was saved starts over."""


class LRFinder(LRCallback):
    """Finds the learning rate by trying rates inside the run, and leaves no other trace.

    All rates are tried from the same weights on the same batches. They are compared by what they do to the loss on the
    same probe batches, with a standard error; see `SweepPolicy`. What is suggested is a share of the best rate: the
    longer the run and the weaker the evidence, the smaller the share. A suggestion is *sure* or *unsure*, and comes
    with the range of rates that can't be told apart (`result.sure`, `.low`, `.high`). If it is unsure, it is taken from
    the careful end of that range.

    **What a sweep does to the run.** For at most `steps` updates, batches of the run train a second state of weights,
    buffers, optimizer and torchmetrics, which is in place only within a batch. Validation, checkpoints, other callbacks
    at the end of a batch, and whatever follows an exception see the healthy state, which is bit for bit as it was.
    After the sweep the random generators go back too, and the rate found becomes a *factor*: param groups keep their
    ratio, and any scheduler goes on as before. The rate is compared with each group's peak: `max_lr` under OneCycle and
    Cyclic schedules, otherwise `initial_lr`.

    **What it costs.** The batches of a sweep count for `trainer.global_step`, the data loader and the schedulers, but
    not for `Warmup` or anything else that counts real updates. Before a sweep begins, one line states its cost in
    updates and in batches. If no rate changes the loss, or all blow up, the finder suggests nothing, says why, and the
    run goes on with your rate. If the run is too short for a sweep, it says so at the start of `fit` and makes none;
    with `steps="auto"` that is a run in which a sweep would take more than half of what is left.

    **Second opinions.** With `at="auto"` it comes back in runs of 1,500 updates or more (and in runs of unknown
    length), for a second opinion on the present rate: after a tenth of the run (150 to 1,000 updates; 500 if the
    length isn't known), for at most 41 updates. A rate that raises the loss is lowered to a third or a ninth of itself,
    whichever is the first that doesn't. A rate that is clearly beaten by nine times itself is tripled. Otherwise it
    stays. After an unsure sweep it comes back once more, after three times as many updates.

    **What others see.** During a sweep the model does not learn, and metrics are treated accordingly:

    - Training metrics are those of the healthy weights. What `training_step` logs, torchmetrics included, counts only
      for batches that ran at these weights: those before the first update of a rate's turn. An epoch whose first batch
      would not count begins with a pause, in which the batch counts and the sweep waits for one update (under
      accumulation, for all of its batches). If epochs have fewer than four updates, some have no pause, and keep the
      metrics of the epoch before.
    - Validation runs as always and is logged, but finds the same weights again and again. So until the first batch
      after the sweep, `EarlyStopping` makes no check, a `ModelCheckpoint` that monitors a metric saves nothing,
      `ReduceLROnPlateau` schedulers of yours are not stepped, and no check of `PlateauDecay` counts against the rate. A
      `ModelCheckpoint` without `monitor` goes on saving, and a run that is resumed from such a checkpoint goes on with
      the sweep.

    **Memory.** A sweep needs a second state of weights, buffers and optimizer on the device. On an accelerator, one
    line before the sweep says how much that is. If it is more than is free beside the run's own peak, on any rank,
    there is no sweep and the rate stays as it is; a warning says so. The same holds if memory runs out during a sweep.

    While it sweeps it shows a progress bar. It also writes a line to the console and to `lr-events`, the scalars
    `lr-finder/rate` and `lr-finder/loss`, and the curve as a figure in TensorBoard.

    Args:
        at: the real updates, from 0, before which it sweeps; None: only at `epochs`, or when asked; `"auto"`: at the
            start, with second opinions later. If an update begins within a window of accumulation, the sweep waits for
            the window's end.
        epochs: the epochs, from 0, at whose start it sweeps too. Beside a `DivergenceGuard` it also sweeps after three
            rewinds without lasting progress.
        min_lr: the lowest rate that is tried, absolute, > 0.
        max_lr: the highest, absolute, > `min_lr`.
        steps: the most updates of a sweep, >= 20, to which its pauses are added. `"auto"`: 2% of the run's updates, at
            least 60 and at most 300 (60 if the length of the run isn't known), or 20 if 60 would take more than half of
            the run.
        suggest: `bracket` (see `SweepPolicy`), or `steepest`, `valley`, `slide` or `minimum` on a plain ramp.
        replay: whether a sweep keeps some of its batches in memory and compares all rates on the same ones. If they
            can't be kept, it goes on without and says so. If they are too large for a checkpoint, or of a class of your
            own, a resumed run starts its sweep over.
        apply: False: only report what was found.
        optimizer: the index of the optimizer to sweep, if there are several.
        progress_bar: whether to show a progress bar, on rank zero, beside Lightning's own.
        name: the name under which the factor is kept and shown; by default the class's own. A second `LRFinder` in the
            same trainer needs another: `LRFinder(..., name="Second")`.

    Raises:
        ValueError: at construction, for a value outside its bounds; at the start of `fit`, for several optimizers with
            none of them named, for an optimizer that the run doesn't have, and for reference rates that are all zero.

    Example:
        >>> from lightning_lr import LRFinder
        >>> LRFinder(at=[0, 500], steps=100).result is None
        True
    """

    copies = sweeps = True

    def __init__(
        self,
        *,
        at: int | Sequence[int] | Literal["auto"] | None = "auto",
        epochs: int | Sequence[int] | None = None,
        min_lr: float = 1e-8,
        max_lr: float = 10.0,
        steps: int | Literal["auto"] = "auto",
        suggest: Rule = "bracket",
        replay: bool = True,
        apply: bool = True,
        optimizer: int | None = None,
        progress_bar: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.keep_arguments(locals())
        for name, value in {"at": at, "steps": steps}.items():
            if isinstance(value, str) and value != AUTO:
                raise ValueError(f"{name} must be a number or {AUTO!r}, got {value!r}")
        if steps != AUTO:
            steps = whole_number("steps", steps, LEAST_STEPS, f"fewer show nothing, {AUTO!r} goes by the run's length")
        for name, value in {"replay": replay, "apply": apply, "progress_bar": progress_bar}.items():
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
        self.replay = replay and suggest == BRACKET
        self.steps: int | Literal["auto"] = steps
        self.policy = SweepPolicy(min_lr, max_lr, steps_for(None) if isinstance(steps, str) else steps, suggest)
        unasked = isinstance(at, str)
        self.schedule = SweepSchedule((0,) if unasked else places("at", at), places("epochs", epochs), unasked)
        self.comes_back = unasked and suggest == BRACKET
        """Whether it comes back for second opinions."""
        if optimizer is not None:
            optimizer = whole_number("optimizer", optimizer, 0, "it is an index, or None where there is one only")
        self.apply, self.optimizer, self.progress_bar = apply, optimizer, progress_bar
        self.findings: list[Finding] = []
        """What the sweeps of the last `fit` have found, oldest first."""
        self._search = self._new_search()

    # what users ask --------------------------------------------------------------------------------------------

    @property
    def result(self) -> Finding | None:
        """What the latest sweep of the last `fit` found; None before the first."""
        return self.findings[-1] if self.findings else None

    @property
    def sweeping(self) -> bool:
        """Whether a sweep is under way."""
        return self._search.sweep is not None

    @property
    def trying(self) -> bool:
        """Whether a sweep is under way."""
        return self.sweeping

    @property
    def settling(self) -> bool:
        """Whether a sweep is under way, or has ended and no batch has begun since: a validation may still follow."""
        return self._search.checks_paused

    @property
    def found_nothing(self) -> bool:
        """Whether all of its sweeps have ended without a suggestion, so that nothing is known of the present rate."""
        return self.apply and bool(self.findings) and all(found.suggestion is None for found in self.findings)

    def request(self, reason: str) -> None:
        """Asks for a sweep at the next batch that begins an update, for example after layers were unfrozen.

        Args:
            reason: why, in words, for `lr-events`.
        """
        self._search.occasions.request(reason)

    def rewound(self, rewinds: int) -> None:
        if rewinds == ASKED:
            self.request(f"{ASKED} rewinds without lasting progress")

    def plot(self) -> Any:
        """The latest sweep's curve, as a `matplotlib.figure.Figure`.

        Raises:
            RuntimeError: before the first sweep has ended.
        """
        if self.result is None:
            raise RuntimeError(f"{self.name} has nothing to show yet: no sweep has ended")
        return self.result.plot()

    # the run ---------------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.go_first(trainer)

    def reset(self) -> None:
        self._search.close()
        self.findings = []
        self._search = self._new_search()

    def _new_search(self) -> RateSearch:
        least_rest = AUTO_REST if self.steps == AUTO else LEAST_REST
        occasions = Occasions(self.schedule, comes_back=self.comes_back, least_rest=least_rest, replay=self.replay)
        return RateSearch(self, occasions)

    def started(self, trainer: Any, pl_module: Any) -> None:
        optimizers = self.ledger.optimizers
        if not optimizers:
            return
        if self.optimizer is None and len(optimizers) > 1:
            names = ", ".join(f"{i}: {type(o).__name__}" for i, o in enumerate(optimizers))
            raise ValueError(
                f"{self.name} sweeps one optimizer, and configure_optimizers gave {len(optimizers)} ({names}): "
                f"name the one to sweep with {self.written(optimizer=0)}, or {self.left_out}"
            )
        if (self.optimizer or 0) >= len(optimizers):
            raise ValueError(
                f"{self.name}(optimizer={self.optimizer}) names no optimizer of this run, which has {len(optimizers)}: "
                f"they count from 0, so write {self.written(optimizer=0)}"
            )
        self._search.start(trainer, pl_module, self.optimizer or 0, auto=self.steps == AUTO)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._search.begin_batch(trainer, pl_module, batch_idx)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        if self._search.sweep is not None:
            self._search.sweep.see(loss)

    def after_update(self, optimizer: int) -> None:
        if self._search.sweep is not None:
            self._search.sweep.updated(optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._search.sweep is not None:
            self._search.end_batch(trainer, batch_idx)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._search.sweep is not None:
            self._search.sweep.cut_batch()
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._search.end()
        super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._search.fail(exception)
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._search.close()
        super().teardown(trainer, pl_module, stage)

    # state -----------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        """What has been found and where, and the sweep that is under way."""
        return self._search.state_dict()

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.findings = [Finding.from_dict(saved) for saved in state["findings"]]
        # under other bounds a sweep that was under way starts over
        self._search.load_state_dict(state, anew=bool(self.changed.keys() & SWEPT))
