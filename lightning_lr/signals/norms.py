"""Norms of tensors of any precision, on any device, without an overflow."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from lightning_lr.internals import foreach_norm

HALVES = (torch.float16, torch.bfloat16)


@functools.cache
def widest_float(device: torch.device) -> torch.dtype:
    """The widest float that the device has."""
    if device.type in ("cpu", "cuda", "meta"):
        return torch.float64
    try:
        # MPS has no float64, and only some XPUs have it
        return torch.zeros((), dtype=torch.float64, device=device).dtype
    except (RuntimeError, TypeError):
        return torch.float32


def moved(value: Tensor, device: torch.device) -> Tensor:
    """The value on the device, in a precision that the device has."""
    if value.device.type == device.type and device.index in (None, value.device.index):
        return value
    if value.dtype == torch.float64:
        value = value.to(widest_float(device))
    return value.to(device)


def together(values: list[Tensor], device: torch.device) -> list[Tensor]:
    """All values on the device."""
    if {value.device for value in values} == {device}:
        return values
    return [moved(value, device) for value in values]


def unbounded_norms(tensors: list[Tensor], device: torch.device) -> list[float]:
    """The 2-norms of tensors whose sum of squares may overflow; `[inf]` where an element is infinite."""
    dense = [t.coalesce().values() if t.is_sparse else t.detach() for t in tensors]
    dense = [t for t in dense if t.numel()]
    peaks = torch.stack(together(list(foreach_norm(dense, math.inf)), device)).tolist() if dense else []
    if math.inf in peaks:
        return [math.inf]
    return [
        peak * float((t / peak).norm(dtype=torch.float32 if t.dtype in HALVES else None))
        for t, peak in zip(dense, peaks, strict=True)
        if peak > 0.0
    ]


def norms_of(grads: list[Tensor]) -> list[Tensor]:
    """The 2-norms of tensors; those of half precision are computed in float32."""
    if not grads:
        return []
    kinds = {(grad.dtype, grad.layout) for grad in grads}
    if any(layout is not torch.strided for _, layout in kinds):
        grads = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
    if not any(dtype in HALVES for dtype, _ in kinds):
        return list(foreach_norm(grads))
    half = [grad for grad in grads if grad.dtype in HALVES]
    # in float16 the norm may overflow although every element is finite
    norms = list(foreach_norm(half, 2, dtype=torch.float32))
    rest = [grad for grad in grads if grad.dtype not in HALVES]
    return [*norms, *foreach_norm(rest)] if rest else norms
