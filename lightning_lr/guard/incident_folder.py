"""Incident folder: the files that are written about an update that was not accepted, on the rank that saw it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lr.copies.optimizer_memory import bytes_of
from lightning_lr.shards import local

BATCH_BYTES = 64 * 2**20
"""A batch is saved only up to this size."""

FIRST_KEPT, LATEST_KEPT = 10, 90
"""Folders of a run that stay on each rank: the first show how it began, the latest how it stands. With batches of the
largest size they take 6.4 GB."""


def nonfinite_gradients(module: nn.Module) -> list[str]:
    """The names of the parameters whose gradients are not finite on this rank."""
    return [
        name
        for name, p in module.named_parameters()
        if p.grad is not None and not bool(torch.isfinite(local(p.grad)).all())
    ]


def write_incident(
    folder: Path, facts: Mapping[str, Any], window: Iterable[tuple[Any, ...]], batches: list[Any]
) -> None:
    """Writes `incident.json`, `signals.csv` and, as far as it is small enough, `batch.pt` into a new folder.

    Args:
        folder: is made; on a second incident at the same step it is written over.
        facts: numbers, strings and lists.
        window: rows of (update, loss, gradient norm, verdict), oldest first.
        batches: the micro-batches of the update; of these, only tensors are kept, in lists and dicts as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "incident.json").write_text(json.dumps(facts, indent=1))
    with (folder / "signals.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["update", "loss", "grad_norm", "verdict"])
        rows.writerows(window)
    tensors = _tensors_only(batches)
    if 0 < bytes_of(tensors) <= BATCH_BYTES:
        torch.save(tensors, folder / "batch.pt")


def keep_few(folders: list[Path]) -> bool:
    """Removes all folders but the first and the latest, oldest first, from the list and the disk.

    Returns:
        Whether any was removed.
    """
    gone = folders[FIRST_KEPT:-LATEST_KEPT]
    for folder in gone:
        folders.remove(folder)
        # the user may have removed it already
        shutil.rmtree(folder, ignore_errors=True)
    return bool(gone)


def _tensors_only(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {str(key): _tensors_only(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tensors_only(item) for item in value]
    return None
