"""The console: lines that are said there, through Python's logging, on rank zero."""

from __future__ import annotations

import logging

from lightning_utilities.core import rank_zero

from lightning_lr.internals import lightnings_log


@rank_zero.rank_zero_only
def console(line: str, *, warn: bool = False) -> None:
    """Says a line through Lightning's own logger, at level INFO or WARNING.

    A Python warning would be shown once for each place in the code, and would be an error for those who turn warnings
    into errors. What happens in a run should be neither.
    """
    lightnings_log().log(logging.WARNING if warn else logging.INFO, line)


def count(number: int, noun: str) -> str:
    """A number with its noun: `1 update`, `2 updates`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
