"""Steps: what can be seen of an optimizer's `step` from outside."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from lightning_lr.internals import HOOKED_STEP, is_compiled

F = TypeVar("F", bound=Callable[..., Any])


def hooked_steps(*optimizers: Any) -> int:
    """How many steps of the optimizers are under way, one within the other, by the call stack.

    A step that torch has compiled is not seen.
    """
    count, frame = 0, sys._getframe(1)
    while frame is not None:
        if frame.f_code is HOOKED_STEP and any(frame.f_locals.get("self") is optimizer for optimizer in optimizers):
            count += 1
        frame = frame.f_back
    return count


def untraced(function: F) -> F:
    """Keeps a function, and all that it calls, out of the graph of a compiled step."""
    return cast(F, torch.compiler.disable(function))


def compiled(optimizer: Any) -> bool:
    """Whether the optimizer's `step` was given to `torch.compile`."""
    return is_compiled(optimizer.step)
