"""Torch internals: kernels, gradient scalers, and the code around an optimizer's step, none of them public."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

foreach_copy: Any = getattr(torch, "_foreach_copy_", None)
foreach_norm: Any = getattr(torch, "_foreach_norm", None)


def scaler_in_use(trainer: Any) -> Any:
    """The gradient scaler in use, or None."""
    return getattr(trainer.precision_plugin, "scaler", None)


def scale_of(gradient_scaler: Any) -> Tensor | None:
    """What a gradient scaler multiplies losses by; Tensor, shape (); None without one, and before its first loss."""
    return None if gradient_scaler is None else gradient_scaler._scale


def scaler_tensors(gradient_scaler: Any) -> Iterator[tuple[str, Tensor]]:
    """A gradient scaler's state on its device, by name."""
    for name in ("_scale", "_growth_tracker") if gradient_scaler is not None else ():
        value = getattr(gradient_scaler, name)
        if isinstance(value, Tensor):
            yield name, value


def unscales_itself(optimizer: Any) -> bool:
    """Whether the optimizer's own (fused) kernel unscales the gradients, and a gradient scaler leaves them scaled."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def skipped_on_device(optimizer: Any) -> bool:
    """Whether a fused optimizer under a gradient scaler has just skipped the update on its device."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and float(found_inf) != 0.0


def writes(tensor: Tensor) -> int | None:
    """How many writes to the tensor torch has counted; None where it doesn't count."""
    return None if tensor.is_inference() else tensor._version


HOOKED_STEP = Optimizer.profile_hook_step(lambda *_: None).__code__
"""The code with which torch wraps every `step` to call its hooks."""


def is_compiled(function: Any) -> bool:
    """Whether a function was given to `torch.compile`."""
    return hasattr(function, "_torchdynamo_orig_callable") and not getattr(function, "_torchdynamo_disable", False)


def buffers_of(module: nn.Module) -> dict[str, Any]:
    """A module's own buffers by name, live: the module may put another tensor there."""
    return module._buffers
