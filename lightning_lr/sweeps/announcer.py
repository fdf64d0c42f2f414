"""What a finder says of its sweeps: on the console, in `lr-events`, and as a figure."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_lr.record.curves import FINDER
from lightning_lr.run.length import accumulation, updates_in_run
from lightning_lr.sweeps.device_space import REMEDY, Space
from lightning_lr.sweeps.finding import Finding
from lightning_lr.sweeps.searcher import Searcher


class Announcer:
    """Puts a finder's decisions into words.

    Args:
        finder: whose decisions.
    """

    def __init__(self, finder: Searcher) -> None:
        self._finder = finder

    def say(self, words: str, *, loud: bool = False) -> None:
        """One line on the console and in `lr-events`.

        Args:
            words: the line, without the callback's name.
            loud: whether it is a warning.
        """
        line = f"{self._finder.name}: {words}"
        self._finder.run.journal.say(line, self._finder.name)
        (rank_zero_warn if loud else rank_zero_info)(line)

    def no_memory(self, why: str, space: Space) -> None:
        """There is no sweep, for it would not fit on the device."""
        self.say(
            f"no sweep ({why}): it takes {space.takes}, and {space.free}. The rate stays as it "
            f"is. {REMEDY}. To do without a finder, {self._finder.left_out}",
            loud=True,
        )

    def out_of_memory(self, why: str, takes: str, done: int) -> None:
        """A sweep has ended after so many updates because the device's memory has run out."""
        self.say(
            f"a device ran out of memory after {done} updates of a sweep ({why}), which takes {takes}; "
            f"no rate was found, the weights are those from before it, and the rate stays as it is. {REMEDY}. To do "
            f"without a finder, {self._finder.left_out}",
            loud=True,
        )

    def begins(self, trainer: Any, why: str, needs: int, space: Space) -> None:
        """A sweep begins: what it costs, at most."""
        left = updates_in_run(trainer, None)
        of = f", {needs / left:.1%} of the {left:.0f} that are left," if left else ""
        memory = f". It takes {space.takes}; {space.free}" if space.free else ""
        self.say(
            f"sweep ({why}): it may take {needs} updates ({needs * accumulation(trainer, trainer.current_epoch)} "
            f"batches of the run){of} during which the model learns nothing{memory}"
        )

    def found(self, trainer: Any, finding: Finding, why: str, unpaired: str | None, index: int) -> None:
        """A sweep is over: the line, its record, and the figure in TensorBoard.

        Args:
            trainer: with its loggers.
            finding: what came out.
            why: why it was made, in words.
            unpaired: why rates were compared on different batches; None: they were not.
            index: of the optimizer that was swept.
        """
        name, applies, run = self._finder.name, self._finder.apply, self._finder.run
        if finding.suggestion is None:
            line = f"{name} ({why}): no suggestion, the rate stays: {finding.refusal}"
        else:
            kept = "" if applies else " (not applied)"
            line = f"{name} ({why}): rate {finding.suggestion:.3g}{kept}: {finding.words}"
        if unpaired is not None:
            line += f"; rates were compared on different batches: {unpaired}"
        found = {"callback": name, "tag": run.names_at((index, 0)).tag, "why": why}
        record = {"kind": "finding", **found, "applied": applies, "finding": finding.to_dict()}
        run.journal.say(line, record=record)
        rank_zero_info(line)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                # not every logger has an `experiment`
                experiment: Any = getattr(logger, "experiment", None)
                if hasattr(experiment, "add_figure"):
                    experiment.add_figure(FINDER.rstrip("/"), finding.plot(), run.journal.step)
