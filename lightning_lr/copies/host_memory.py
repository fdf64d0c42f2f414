"""Host memory: how much of it is free, and blocks of it that an accelerator copies to without waiting."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Where Linux says how much memory a container may use, and how much it uses; cgroups version 2 and 1."""


def free_memory() -> int:
    """The host memory that may still be taken, in bytes: of the machine, and of the container that this runs in."""
    free = psutil.virtual_memory().available
    for limit, used in CGROUPS:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue  # not Linux, or no limit ("max")
    return max(free, 0)


class Arena:
    """One block of host memory for each dtype, of the very size that is asked for.

    torch rounds every pinned tensor up to a power of two and never gives it back; here memory of the usual kind is
    registered with CUDA, and is gone when the arena is.

    Args:
        counts: elements by dtype.
        pinned: whether an accelerator copies to it.

    Example:
        >>> arena = Arena({torch.float32: 6})
        >>> [part.shape[0] for part in arena.split(torch.float32, [4, 2])]
        [4, 2]
    """

    def __init__(self, counts: dict[torch.dtype, int], *, pinned: bool = False) -> None:
        self._blocks = {dtype: torch.empty(count, dtype=dtype) for dtype, count in counts.items() if count}
        self._registered = [_register(block) for block in self._blocks.values()] if pinned else []
        if any(self._registered):
            weakref.finalize(self, _unregister, [place for place in self._registered if place]).atexit = False

    def split(self, dtype: torch.dtype, counts: Iterable[int]) -> list[Tensor]:
        """Its block in parts, which share its memory, and are good for as long as the arena is."""
        counts = list(counts)
        block = self._blocks.get(dtype, torch.empty(0, dtype=dtype))
        return list(block[: sum(counts)].split(counts)) if counts else []


def _register(block: Tensor) -> int:
    """Locks a block's pages; 0 if CUDA refuses: copies then wait, and are right."""
    size = block.numel() * block.element_size()
    cuda: Any = torch.cuda.cudart()
    if not int(cuda.cudaHostRegister(block.data_ptr(), size, 0)):
        return block.data_ptr()
    with contextlib.suppress(RuntimeError):
        # the next kernel raises the error that is left: not one of the user's
        torch.ones(1, device="cuda").add_(1.0)
    return 0


def _unregister(places: list[int]) -> None:
    cuda: Any = torch.cuda.cudart()
    for place in places:
        cuda.cudaHostUnregister(place)
