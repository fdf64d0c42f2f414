"""Saved state: versioned dicts of plain values, whose version is checked here and nowhere else."""

from __future__ import annotations

from typing import Any


class SavedStateError(ValueError):
    """A checkpoint holds a state that this release can't take up."""


def fields(saved: dict[str, Any], version: int, what: str | type) -> dict[str, Any]:
    """The entries of a saved state without its version.

    Args:
        saved: what a `to_dict` or `state_dict` of this package returned, in this release or another.
        version: the version that can be read.
        what: the saved thing: a dataclass or named tuple, whose fields must be exactly the entries; or a name in words.

    Raises:
        SavedStateError: for another version or none, and for other entries.

    Example:
        >>> fields({"version": 1, "decays": 2}, 1, "PlateauState")
        {'decays': 2}
        >>> fields({"version": 3}, 1, "PlateauState")
        Traceback (most recent call last):
        lightning_lr.saved.SavedStateError: PlateauState is saved in version 3, and version 1 can be read
    """
    found = saved.get("version")
    name = what if isinstance(what, str) else what.__name__
    if found != version:
        raise SavedStateError(f"{name} is saved in version {found!r}, and version {version} can be read")
    own = {key: value for key, value in saved.items() if key != "version"}
    if isinstance(what, type):
        other = own.keys() ^ what.__annotations__.keys()
        if other:
            raise SavedStateError(
                f"{name} is saved with other entries than this release has: {', '.join(sorted(other))}"
            )
    return own


def plain(value: Any) -> Any:
    """An argument as a checkpoint can hold it: numbers, strings, lists and dicts as they are, others as strings."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return str(value)
