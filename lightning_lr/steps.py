"""Steps: what can be told of an optimizer's `step` from outside."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.optim import Optimizer

F = TypeVar("F", bound=Callable[..., Any])

HOOKED = Optimizer.profile_hook_step(lambda *_: None).__code__
"""The code that torch puts around every `step` in order to call its hooks."""


def hooked_steps(*optimizers: Any) -> int:
    """How many steps of the optimizers, one within the other, are under way by the stack of calls.

    None is seen of a step whose code torch has compiled.
    """
    count, frame = 0, sys._getframe(1)
    while frame is not None:
        if frame.f_code is HOOKED and any(frame.f_locals.get("self") is optimizer for optimizer in optimizers):
            count += 1
        frame = frame.f_back
    return count


def untraced(function: F) -> F:
    """Keeps a function, with all that it calls, out of the graph of a step that is compiled."""
    return cast(F, torch.compiler.disable(function))


def compiled(optimizer: Any) -> bool:
    """Whether the optimizer's `step` was given to `torch.compile`."""
    step = optimizer.step
    return hasattr(step, "_torchdynamo_orig_callable") and not getattr(step, "_torchdynamo_disable", False)
