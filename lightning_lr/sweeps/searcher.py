"""What the parts of a finder know of the callback that they belong to."""

from __future__ import annotations

from typing import Any, Protocol

from lightning_lr.policies.sweep import SweepPolicy
from lightning_lr.run.run import Run
from lightning_lr.sweeps.finding import Finding


class Searcher(Protocol):
    """A callback that finds rates: what the user chose, and how it is written.

    Attributes:
        name: under which its factor is kept and shown.
        policy: which rates a sweep tries.
        replay: whether batches are kept and played again.
        apply: whether what is found becomes a factor.
        progress_bar: whether a sweep shows one.
        findings: what its sweeps have found in this `fit`, oldest first.
    """

    name: str
    policy: SweepPolicy
    replay: bool
    apply: bool
    progress_bar: bool
    findings: list[Finding]

    @property
    def run(self) -> Run: ...

    @property
    def left_out(self) -> str: ...

    def written(self, **arguments: Any) -> str: ...
