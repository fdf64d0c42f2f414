"""Parameters of a request, with their bounds; errors are full sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class BadRequestError(ValueError):
    """A request that can't be answered; the message has the bound, the value and the remedy."""

    status = 400


class NotFoundError(BadRequestError):
    """A request for something that isn't there."""

    status = 404


class Parameters:
    """The query of one request.

    Args:
        args: werkzeug's `request.args`, or any mapping with `getlist`.

    Example:
        >>> from werkzeug.datastructures import MultiDict
        >>> given = Parameters(MultiDict({"points": "7", "from": "x"}))
        >>> given.whole("points", 1000, 10, 5000)
        Traceback (most recent call last):
        lightning_lr.tensorboard.parameters.BadRequestError: points must be a whole number from 10 to 5000, got '7': \
leave it out for 1000
        >>> given.step("from")
        Traceback (most recent call last):
        lightning_lr.tensorboard.parameters.BadRequestError: from must be a step, a whole number, got 'x': \
leave it out for the whole run
    """

    def __init__(self, args: Any) -> None:
        self._args: Mapping[str, str] = args
        self._list = args.getlist

    def text(self, name: str) -> str:
        """A text that must be given."""
        value = self._args.get(name)
        if value is None:
            raise BadRequestError(f"{name} must be given, got none: add {name}= to the address")
        return value

    def words(self, name: str, most: int) -> list[str]:
        """A text that may be given several times, at most `most`."""
        values = self._list(name)
        if len(values) > most:
            raise BadRequestError(f"{name} may be given {most} times at most, got {len(values)}: ask in parts")
        return values

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number from `low` to `high`."""
        value = self._args.get(name)
        number = default if value is None else _whole(value)
        if number is None or not low <= number <= high:
            raise BadRequestError(
                f"{name} must be a whole number from {low} to {high}, got {value!r}: leave it out for {default}"
            )
        return number

    def step(self, name: str) -> int | None:
        """A step, or None where it isn't given."""
        value = self._args.get(name)
        if value is None:
            return None
        number = _whole(value)
        if number is None:
            raise BadRequestError(
                f"{name} must be a step, a whole number, got {value!r}: leave it out for the whole run"
            )
        return number

    def span(self) -> tuple[int | None, int | None]:
        """The steps `from` and `to`, both included; None for an open end."""
        first, last = self.step("from"), self.step("to")
        if first is not None and last is not None and first > last:
            raise BadRequestError(f"from must be at most to, got {first} and {last}: swap them")
        return first, last


def _whole(value: str) -> int | None:
    try:
        number = int(value)
    except ValueError:
        return None
    # what numpy's int64 holds
    return number if abs(number) < 2**63 else None
