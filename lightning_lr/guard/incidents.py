"""Incidents: what the guard has done, in words, in numbers, and in folders."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_lr.console import count
from lightning_lr.guard.incident_folder import FIRST_KEPT, LATEST_KEPT, keep_few, nonfinite_gradients, write_incident
from lightning_lr.guard.incident_record import SIDES, incident_record
from lightning_lr.guard.unjudged import finite
from lightning_lr.policies.verdict import Signals, Verdict
from lightning_lr.record.curves import INCIDENT
from lightning_lr.run.run import Run
from lightning_lr.signals.measure import Measured

SIGNALS_KEPT = 64
FEW = 3

USUAL = "1e-3"
"""The change of the weights by an update, in parts of their size, at a rate that suits: a rough rule.
Source: CS231n's notes, Neural Networks Part 3, "Ratio of weights:updates"."""

TOLD = {"passed": "trial passed", "data": "trial"}
"""By outcome; of the others the rewind tells."""

COUNTS = (
    *("judged", "limited", "dropped", "held", "rewinds", "lost"),
    *("trials_passed", "trials_data", "trials_weights"),
)


class Rewind(NamedTuple):
    """To where a rewind went.

    Args:
        step: on the loggers' axis: the weights are those that it began with.
        lost: updates that were made since, and those that had to be dropped for it.
    """

    step: int
    lost: int


class Incidents:
    """The record of one run.

    Args:
        name: the guard's.
        folder: for the batches, the signals and the parameters of incidents; None: none is written.
    """

    def __init__(self, name: str, folder: Path | None) -> None:
        self.name, self._folder = name, folder
        self.counts = dict.fromkeys(COUNTS, 0)
        self._window: deque[tuple[Any, ...]] = deque(maxlen=SIGNALS_KEPT)
        self._batches: list[Any] = []
        self._folders: list[Path] = []
        self._tidied = False

    def state_dict(self) -> dict[str, Any]:
        """The counts, and the names of the folders but for the rank."""
        return {"counts": dict(self.counts), "folders": [f.name.rpartition("-")[0] for f in self._folders]}

    def load_state_dict(self, saved: dict[str, Any], rank: int | None = None) -> None:
        """Takes up what `state_dict` gave: without a rank the counts, with one the folders of that rank."""
        if rank is None:
            self.counts = {name: saved["counts"][name] for name in COUNTS}
        elif self._folder is not None:
            self._folders = [self._folder / f"{name}-{rank}" for name in saved["folders"]]

    def batch(self, batch: Any, *, first: bool) -> None:
        """Keeps a micro-batch of the update under way, if there is a folder for it."""
        if self._folder is not None:
            self._batches = [batch] if first else [*self._batches, batch]

    def saw(self, update: int, signals: Signals, verdict: Verdict) -> None:
        """Counts one judged update."""
        self._window.append((update, signals.loss, signals.grad_norm, verdict.kind))
        self.counts["judged"] += 1
        self.counts["limited"] += verdict.kind == "accept" and verdict.scale < 1.0
        if verdict.kind in ("drop", "hold"):
            self.counts["dropped" if verdict.kind == "drop" else "held"] += 1
            self.counts["lost"] += 1
        if verdict.outcome:
            self.counts[f"trials_{verdict.outcome}"] += 1

    def tell(
        self,
        run: Run,
        index: int,
        update: int,
        measured: Measured,
        signals: Signals,
        verdict: Verdict,
        ratio: Callable[[], float | None],
        back: Rewind | None = None,
    ) -> None:
        """Tells what became of an update that was not simply accepted.

        Args:
            run: the run.
            index: of the optimizer.
            update: the number of the update.
            measured, signals, verdict: of the update.
            ratio: gives what the last update changed the weights by, in parts of their size; on every rank alike.
            back: to where a rewind went, if one did.
        """
        if verdict.kind == "accept" and verdict.scale == 1.0:
            return
        record = incident_record(run, self.name, index, update, measured, signals, verdict)
        of = f" of {run.names_at((index, 0)).optimizer}" if len(run.ledger.optimizers) > 1 else ""
        numbers = f"loss {signals.loss:.4g}, gradient norm {signals.grad_norm:.4g}"
        scalars = {f"{INCIDENT}loss": signals.loss, f"{INCIDENT}grad_norm": signals.grad_norm}
        module: Any = run.trainer.lightning_module
        names = [] if finite(signals) or back is not None else nonfinite_gradients(module)
        if verdict.kind == "hold":
            # also where it is the last one, with which the trial ended
            held = f"{self.name}: held this update{of} for a trial, at {SIDES[signals.side]} ({numbers})"
            run.journal.record(**record | {"what": "held", "cause": "", "evidence": None}, words=held)
        if verdict.kind == "accept" and verdict.scale < 1.0:
            words, more = f"limited this update's gradient{of}", f"limited{of}"
            bound = verdict.scale * signals.grad_norm
            # its cause has the norm
            numbers, scalars[f"{INCIDENT}threshold"] = f"loss {signals.loss:.4g}, limit {bound:.4g}", bound
            record |= {"what": "limited", "threshold": bound}
        elif verdict.kind == "drop":
            words, more = f"dropped this update{of}", f"dropped{of}"
            record["what"] = "dropped"
        elif back is not None:
            words, more = f"rewound{of} to step {back.step} ({count(back.lost, 'update')} lost)", f"rewound{of}"
            record |= {"what": "rewound", "back": back._asdict()}
            if verdict.factor != 1.0:
                words += f", factor {verdict.factor:.4g}"
        elif verdict.outcome in TOLD:
            words = more = f"{TOLD[verdict.outcome]}{of}"
            record["what"] = f"trial {verdict.outcome}"
        else:
            return
        # those of a trial's last batch say nothing that its cause doesn't
        evidence, moved = [] if verdict.outcome else [numbers], ratio()
        if moved is not None:
            evidence.append(f"the update before was {moved:.2g} of the weights' size, usual {USUAL}")
            scalars[f"{INCIDENT}update_ratio"] = record["update_ratio"] = moved
        line = f"{self.name}: {words}: {verdict.cause}" + (f" ({', '.join(evidence)})" if evidence else "")
        if names:
            gradients = sum(p.grad is not None for p in module.parameters())
            line += f"; not finite: {few(names, gradients)}"
            record["parameters"] = names[:FEW]
        kind = (self.name, index, verdict.kind, re.sub(r"[\d.]+(e[-+]?\d+)?", "", verdict.cause))
        run.journal.incident(
            kind,
            line,
            f"{self.name}: {more}",
            verdict.cause if verdict.outcome else numbers,
            record=record,
            warn=back is not None,
            **scalars,
        )
        if verdict.kind != "accept":
            self._write(run, index, update, measured, signals, verdict, names, moved)

    def last_words(self, run: Run, size: int) -> None:
        """The run in one line; `size`: of the copies, in bytes, on the rank where they are largest."""
        run.journal.sum_up()
        n = self.counts
        told = {
            f"{n['limited']} limited": n["limited"],
            f"{n['dropped']} dropped": n["dropped"],
            f"{n['held']} held for trials ({self._trials() or 'none ended'})": n["held"] or self._trials(),
            count(n["rewinds"], "rewind"): n["rewinds"],
            f"{count(n['lost'], 'update')} lost": n["lost"],
        }
        said = [words for words, number in told.items() if number] or ["none lost"]
        line = (
            f"{self.name}: {count(n['judged'], 'update')} judged: {', '.join(said)}; copies took {size / 2**20:.3g} MiB"
        )
        if len(said) > 1 or n["lost"] or n["limited"]:
            run.journal.tell(line, self.name)
        else:
            rank_zero_info(line)

    def _trials(self) -> str:
        words = {"passed": "passed", "data": "blamed the data", "weights": "the weights"}
        return ", ".join(f"{n} {w}" for kind, w in words.items() if (n := self.counts[f"trials_{kind}"]))

    def _write(
        self,
        run: Run,
        index: int,
        update: int,
        measured: Measured,
        signals: Signals,
        verdict: Verdict,
        names: list[str],
        moved: float | None,
    ) -> None:
        trainer, own = run.trainer, measured.own_loss
        if self._folder is None or not (trainer.is_global_zero or (own is not None and not math.isfinite(own))):
            return
        facts = {
            "step": run.journal.step,
            "update": update,
            "epoch": trainer.current_epoch,
            "batch": trainer.fit_loop.epoch_loop.batch_idx,
            "rank": trainer.global_rank,
            "optimizer": index,
            "verdict": verdict.kind,
            "outcome": verdict.outcome,
            "cause": verdict.cause,
            "loss": repr(signals.loss),
            "loss_of_this_rank": repr(own),
            "grad_norm": repr(signals.grad_norm),
            "update_ratio": moved,
            "factor": verdict.factor,
            "parameters_with_nonfinite_gradients": names,
        }
        folder = self._folder / f"step-{run.journal.step:08d}-rank-{trainer.global_rank}"
        write_incident(folder, facts, self._window, self._batches)
        self._folders += [folder] * (folder not in self._folders)
        if keep_few(self._folders) and not self._tidied:
            self._tidied = True
            rank_zero_warn(
                f"{self.name}: incidents_dir has more than {FIRST_KEPT + LATEST_KEPT} incidents of this run: of each "
                f"rank's, the first {FIRST_KEPT} and the latest {LATEST_KEPT} stay, and those between are removed"
            )


def few(names: list[str], of: int = 0) -> str:
    """The first three, and the number of the others; or that they are all, where there are `of` in all."""
    if FEW < len(names) == of:
        return f"all {of} gradients"
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
