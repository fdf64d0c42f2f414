"""`autopilot`: all callbacks together, with defaults that go together."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, Literal

from lightning_lr.callbacks.base import LRCallback
from lightning_lr.callbacks.cooldown import Cooldown
from lightning_lr.callbacks.divergence import DivergenceGuard
from lightning_lr.callbacks.finder import LRFinder
from lightning_lr.callbacks.monitor import LRMonitor
from lightning_lr.callbacks.plateau import PlateauDecay
from lightning_lr.callbacks.warmup import Warmup

WARMUP_FRACTION = 0.05
"""The share of the run, after the sweep, over which a warm-up that is asked for rises."""

COOLDOWN_FRACTION = 0.3
"""The share of the run, at its end, over which the rate falls."""

PATIENCE, FACTOR = 3, 0.3
"""Those of `PlateauDecay`: with them it has done its work before the cooldown begins."""

KINDS: dict[str, Callable[..., LRCallback]] = {
    "finder": LRFinder,
    "warmup": Warmup,
    "cooldown": Cooldown,
    "plateau": PlateauDecay,
    "guard": DivergenceGuard,
    "lr_monitor": LRMonitor,
}


class Callbacks(list[LRCallback]):
    """A list that explains itself when it is mistaken for a callback, as in `Trainer(callbacks=[autopilot()])`."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"autopilot gives a list of callbacks, which has no attribute {name!r}: write "
            f"Trainer(callbacks=autopilot(...)), or callbacks=[*autopilot(...), other]"
        )


def autopilot(
    monitor: str = "val_loss", *, mode: Literal["min", "max"] | None = None, **overrides: Any
) -> list[LRCallback]:
    """All callbacks together: find the rate, decay on a plateau, cool down at the end, survive divergence, show it all.

    `Cooldown` falls linearly over the last 0.3 of the run. If the length of the run isn't known, or the optimizer has a
    scheduler of yours, it is left out and one line says so; a cooldown that you ask for (`cooldown={...}`) is made, or
    an error says why it can't be. `PlateauDecay` has patience 3 and factor 0.3. There is no `Warmup` unless you ask for
    one: with a rate that was found, it cost more than it brought (see docs/defaults.md). `warmup={}` warms up over 0.05
    of the run.

    Args:
        monitor: the metric that `PlateauDecay` watches.
        mode: `min` if lower is better, `max` if higher is; None: see `PlateauDecay`.
        overrides: for each of `finder`, `warmup`, `cooldown`, `plateau`, `guard` and `lr_monitor`: a dict of keyword
            arguments, a callback to use instead, or None (or False) to leave it out.

    Returns:
        The callbacks, for `Trainer(callbacks=...)`; with others: `callbacks=[*autopilot(...), other]`.

    Raises:
        ValueError: for an unknown name, an override that is none of the three, or a value outside its bounds.
        TypeError: for a value of the wrong type.

    Example:
        >>> from lightning_lr import autopilot
        >>> autopilot("val_acc", mode="max", warmup={"steps": 100}, cooldown=None, guard=None, lr_monitor=None)
        [LRFinder(), Warmup(steps=100), PlateauDecay(monitor='val_acc', mode='max', factor=0.3, patience=3)]
    """
    for key, value in overrides.items():
        if key not in KINDS:
            raise ValueError(_unknown(key, value))
    plateau = overrides.get("plateau")
    if mode is not None and isinstance(plateau, LRCallback):
        raise ValueError(
            f"mode={mode!r} goes to the PlateauDecay that autopilot makes, but plateau= is a callback of your own: "
            f"write {type(plateau).__name__}(mode={mode!r})"
        )
    defaults: dict[str, dict[str, Any]] = {
        "warmup": {"fraction": WARMUP_FRACTION},
        "cooldown": {"fraction": COOLDOWN_FRACTION},
        "plateau": {"monitor": monitor, "mode": mode, "patience": PATIENCE, "factor": FACTOR},
    }
    callbacks = Callbacks()
    for key, kind in KINDS.items():
        given = overrides.get(key, None if key == "warmup" else {})
        if isinstance(given, LRCallback):
            callbacks.append(given)
        elif isinstance(given, dict):
            replaced = key in ("warmup", "cooldown") and given.keys() & {"steps", "epochs", "fraction"}
            callbacks.append(_made(key, {} if replaced else defaults.get(key, {}), given))
            if isinstance(callbacks[-1], Cooldown):
                callbacks[-1].optional = key not in overrides
        elif given is not None and given is not False:
            raise ValueError(
                f"{key} must be a dict of arguments, a callback of lightning_lr, or None to leave it out, got "
                f"{given!r}: write autopilot({key}={_example(kind, given)})"
            )
    return callbacks


def _example(kind: Callable[..., LRCallback], given: Any) -> str:
    """The dict that was probably meant, where a plain value was given."""
    first = next(iter(inspect.signature(kind).parameters.values()))
    if given is True:
        return "{}"
    if isinstance(given, float) and 0.0 < given < 1.0 and "fraction" in inspect.signature(kind).parameters:
        return f"{{'fraction': {given!r}}}"
    telling = isinstance(given, (int, float, str)) and first.kind is not first.KEYWORD_ONLY
    return f"{{{first.name!r}: {given!r}}}" if telling else "{...}"


def _made(key: str, defaults: dict[str, Any], given: dict[str, Any]) -> LRCallback:
    """The callback of an option; errors of its constructor are raised in the words of `autopilot`."""
    kind = KINDS[key]
    call = [f"{key}={given!r}"] if given else []
    if key == "plateau":
        shown = {"mode": f"mode={defaults['mode']!r}"} if defaults["mode"] is not None else {}
        call = [repr(defaults["monitor"]), *shown.values(), *call] if shown or not given else call
    written = f"autopilot({', '.join(call)})"
    arguments = inspect.signature(kind).parameters
    for name in given:
        if name not in arguments:
            raise ValueError(f"{written}: {_misplaced(kind, name, given[name])}")
    try:
        callback = kind(**{**defaults, **given})
    except (TypeError, ValueError) as error:
        refused = TypeError if isinstance(error, TypeError) else ValueError
        words = str(error).replace(f"leave {kind.__name__} out", f"write autopilot({key}=None)")
        raise refused(f"{written}: {words}") from error
    callback.option = key
    return callback


def _unknown(key: str, value: Any) -> str:
    """The complaint about a name that is none of `autopilot`'s own."""
    takers = _takers(key)
    if takers:
        return f"autopilot has no argument {key!r}, {_others(takers, key, value)}"
    own = ["monitor", "mode", *KINDS]
    meant = {name: name for name in own} | {_snake(kind.__name__): option for option, kind in KINDS.items()}
    close = difflib.get_close_matches(_snake(key), meant, 1)
    if close:
        hint = f", did you mean {meant[close[0]]!r}? It takes"
    else:
        arguments = {name for kind in KINDS.values() for name in inspect.signature(kind).parameters}
        close = difflib.get_close_matches(key, sorted(arguments), 1)
        hint = f", did you mean {_places(_takers(close[0]), close[0], value)}? It takes" if close else ": it takes"
    return f"autopilot has no argument {key!r}{hint} {', '.join(own)}"


def _misplaced(kind: Callable[..., LRCallback], name: str, value: Any) -> str:
    """The complaint about an argument that a callback does not have."""
    own = list(inspect.signature(kind).parameters)
    close = difflib.get_close_matches(str(name), own, 1)
    takers = _takers(name)
    complaint = f"{kind.__name__} has no argument {name!r}"
    if takers:
        return f"{complaint}, {_others(takers, name, value)}"
    return f"{complaint}, did you mean {close[0]!r}?" if close else f"{complaint}: it takes {', '.join(own)}"


def _takers(name: Any) -> list[str]:
    """The options whose callbacks have an argument of that name."""
    return [option for option, kind in KINDS.items() if name in inspect.signature(kind).parameters]


def _others(takers: list[str], name: str, value: Any) -> str:
    kinds = ", ".join(KINDS[option].__name__ for option in takers)
    have = " and ".join(kinds.rsplit(", ", 1)) + (" has" if len(takers) == 1 else " have")
    return f"but {have}: write {_places(takers, name, value)}"


def _places(takers: list[str], name: str, value: Any) -> str:
    return " or ".join(f"autopilot({option}={{{name!r}: {value!r}}})" for option in takers)


def _snake(name: str) -> str:
    return "".join(f"_{letter}" if letter.isupper() else letter for letter in name).strip("_").lower()
