"""The console: what is said there, by Python's logging, on rank zero."""

from __future__ import annotations

import logging

from lightning_utilities.core import rank_zero

from lightning_lr.internals import lightnings_log


@rank_zero.rank_zero_only
def console(line: str, *, warn: bool = False) -> None:
    """Says a line through Lightning's own logger: the level INFO, or WARNING.

    A Python warning is said once for each place in the code, and is an error for those who have made warnings errors:
    nothing that happens in a run is to be either.
    """
    lightnings_log().log(logging.WARNING if warn else logging.INFO, line)


def count(number: int, noun: str) -> str:
    """`1 update`, `2 updates`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
