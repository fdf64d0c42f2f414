"""Shares: what all ranks hold alike is copied once, not once per rank: each keeps a part of the bytes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_lr.copies.host_memory import Arena

WORTH = 1024
"""Tensors of fewer elements are kept whole on each rank: bringing them together would cost more."""

CHUNK = 2**20
"""Elements that are brought together at a time; a rewind takes memory for so many on the device (8 MiB of float64)."""

ALIKE = ("parameter/", "optimizer/", "group/")
"""Keys of what strategies that replicate a model keep equal on all ranks. Buffers may be each rank's own."""

HASH = 2**20 - 3
"""A fingerprint is below this: its square, summed over a thousand ranks, is still exact in float64. A prime, so that it
divides no difference that one bit makes to a sum."""

BLOCKS = 16
"""A tensor's bytes are summed in so many parts, so that values which change places are noticed."""

NOTHING = torch.empty(0)


class Share(NamedTuple):
    """What a rank keeps of one tensor.

    Args:
        shape: of the tensor.
        stride: the same; its elements are kept in the order in which they lie in memory.
        dtype: the same.
        start: the first element's place among all that are divided and of this dtype; -1 for one that is kept whole.
        total: the number of those.
        lo, hi: the elements that are kept here.
        data: Tensor, shape (hi - lo,), in host memory.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    start: int
    total: int
    lo: int
    hi: int
    data: Tensor = NOTHING

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def bytes(self) -> int:
        return (self.hi - self.lo) * self.dtype.itemsize

    @property
    def whole(self) -> Tensor | None:
        """The tensor, sharing the memory that it is kept in; None if another rank has a part of it."""
        return shaped(self.data, self) if self.start < 0 or self.hi - self.lo == self.numel else None


class Shares:
    """How the ranks divide what they hold alike; with one rank, or where `divides` is False, each keeps all.

    Args:
        device: where collectives take their tensors (the strategy's).
        divides: whether ranks hold anything alike.
        first: whether the first rank keeps all of it, and the others nothing (it alone writes checkpoints).
    """

    def __init__(self, device: torch.device, *, divides: bool = False, first: bool = False) -> None:
        self.device, self.first = device, first
        there = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.ranks = torch.distributed.get_world_size() if there else 1
        self.rank = torch.distributed.get_rank() if there else 0
        self.divides = divides and self.ranks > 1

    def plan(self, live: dict[str, Tensor], rank: int | None = None) -> dict[str, Share]:
        """What a rank, by default this one, is to keep of each tensor; no memory is allocated yet."""
        totals: dict[torch.dtype, int] = {}
        found: dict[str, Share] = {}
        for key, tensor in live.items():
            count, start = tensor.numel(), -1
            if self.divides and key.startswith(ALIKE) and count >= WORTH:
                start = totals.get(tensor.dtype, 0)
                totals[tensor.dtype] = start + count
            stride = tensor.stride() if _dense(tensor) else torch.empty(tensor.shape, device="meta").stride()
            found[key] = Share(tuple(tensor.shape), tuple(stride), tensor.dtype, start, 0, 0, count)
        for key, kept in found.items():
            if kept.start >= 0:
                total = totals[kept.dtype]
                lo, hi = (
                    min(max(bound - kept.start, 0), kept.hi)
                    for bound in self._part(self.rank if rank is None else rank, total)
                )
                found[key] = kept._replace(total=total, lo=lo, hi=hi)
        return found

    def fingerprint(self, live: dict[str, Tensor]) -> list[Tensor]:
        """A number that is equal on ranks that hold the same weights, to the bit, and its square; without a host sync.

        Of what optimizers remember the shapes are compared: ranks whose moments differ have different weights, too.
        """
        sums: dict[torch.device, list[Tensor]] = {}
        for key, tensor in live.items():
            if key.startswith(ALIKE[0]) and tensor.numel() >= WORTH:
                sums.setdefault(tensor.device, []).append(sums_of(tensor))
        names = "".join(f"{key}{tuple(tensor.shape)}{tensor.dtype}" for key, tensor in sorted(live.items()))
        total: Any = zlib.crc32(names.encode()) % HASH
        for numbers in sums.values():
            every = torch.cat(numbers).remainder(HASH)
            weights = torch.arange(1, 2 * len(every), 2, device=every.device)
            total = (every * weights).sum().remainder(HASH).to(self.device) + total
        number = torch.as_tensor(total % HASH)
        return [number, number * number]

    def differ(self, number: float, square: float) -> bool:
        """Whether ranks hold different things, by the sums of their fingerprints over the ranks."""
        return number * number != self.ranks * square

    @torch.no_grad()
    def gather(self, kept: dict[str, Share], into: dict[str, Tensor]) -> None:
        """Writes the divided tensors, part after part, each from the rank that keeps it; a collective.

        Args:
            kept: the same keys on every rank.
            into: by key; each of the same shape; one that is missing is brought together and dropped.
        """
        whole: dict[str, tuple[Tensor, Tensor]] = {}
        targets: dict[str, Tensor] = {}
        for key, part in kept.items():
            target = into.get(key)
            if target is not None and _dense(target) and tuple(target.stride()) == part.stride:
                targets[key] = flat(target)
            elif target is not None:
                targets[key] = torch.empty(part.numel, dtype=part.dtype, device=target.device)
                whole[key] = target, targets[key]
        for owner, pieces in self._pieces(kept):
            buffer = torch.empty(
                sum(hi - lo for _, lo, hi in pieces), dtype=kept[pieces[0][0]].dtype, device=self.device
            )
            places = buffer.split([hi - lo for _, lo, hi in pieces])
            if owner == self.rank:
                for (key, lo, hi), place in zip(pieces, places, strict=True):
                    place.copy_(kept[key].data[lo - kept[key].lo : hi - kept[key].lo])
            # as bytes: not every backend knows every dtype
            torch.distributed.broadcast(buffer.view(torch.uint8), src=owner)
            for (key, lo, hi), place in zip(pieces, places, strict=True):
                if key in targets:
                    targets[key][lo:hi].copy_(place)
        for key, (target, held) in whole.items():
            target.copy_(shaped(held, kept[key]))

    def _part(self, rank: int, total: int) -> tuple[int, int]:
        if self.first:
            return (0, total) if rank == 0 else (total, total)
        each = -(-total // self.ranks)
        return min(rank * each, total), min((rank + 1) * each, total)

    def _pieces(self, kept: dict[str, Share]) -> Iterator[tuple[int, list[tuple[str, int, int]]]]:
        """Owner and parts of tensors, of one dtype and at most `CHUNK` elements together; the same on every rank."""
        kinds: dict[str, list[tuple[str, Share]]] = {}
        for key, part in sorted(kept.items(), key=lambda item: item[1].start):
            kinds.setdefault(str(part.dtype), []).append((key, part))
        for _, parts in sorted(kinds.items()):
            for owner in range(self.ranks):
                lower, upper = self._part(owner, parts[0][1].total)
                waiting: list[tuple[str, int, int]] = []
                room = CHUNK
                for key, part in parts:
                    at = max(lower - part.start, 0)
                    end = min(upper - part.start, part.numel)
                    while at < end:
                        to = min(at + room, end)
                        waiting.append((key, at, to))
                        room -= to - at
                        at = to
                        if not room:
                            yield owner, waiting
                            waiting, room = [], CHUNK
                if waiting:
                    yield owner, waiting


def alike(plan: dict[str, Share], kept: dict[str, Share]) -> bool:
    """Whether memory that was allocated for one plan serves another."""
    return plan.keys() == kept.keys() and all(kept[key][:-1] == one[:-1] for key, one in plan.items())


def allocated(plan: dict[str, Share], *, pinned: bool) -> tuple[dict[str, Share], Arena]:
    """The plan with memory for it, and the arena that owns the memory."""
    counts: dict[torch.dtype, list[int]] = {}
    for kept in plan.values():
        counts.setdefault(kept.dtype, []).append(kept.hi - kept.lo)
    arena = Arena({dtype: sum(sizes) for dtype, sizes in counts.items()}, pinned=pinned)
    parts = {dtype: iter(arena.split(dtype, sizes)) for dtype, sizes in counts.items()}
    return {key: kept._replace(data=next(parts[kept.dtype])) for key, kept in plan.items()}, arena


def writable(tensor: Tensor) -> bool:
    """Whether values can be written into it: not if it is sparse, or if several elements are one place in memory."""
    if tensor.layout is not torch.strided:
        return False
    return tensor.is_contiguous() or all(
        stride or size < 2 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def flat(tensor: Tensor) -> Tensor:
    """All elements of a dense tensor in the order in which they lie in memory, sharing it."""
    return tensor.as_strided((tensor.numel(),), (1,)) if _dense(tensor) else tensor.reshape(-1)


def sums_of(tensor: Tensor) -> Tensor:
    """Sums of a dense tensor's bytes, eight at a time, without a copy of them; every bit counts.

    Returns:
        Tensor, shape (BLOCKS,), int64, on its device; the same wherever in its storage the tensor begins.
    """
    every = flat(tensor).contiguous().view(torch.uint8)
    even = len(every) // (8 * BLOCKS) * 8 * BLOCKS
    if every.storage_offset() % 8 == 0:
        sums = every[:even].view(torch.int64).view(BLOCKS, even // (8 * BLOCKS)).sum(1)
    else:
        # such a view begins at a whole number of words: piece by piece, each in a storage of its own
        parts = [block.split(8 * (CHUNK // 2)) for block in every[:even].view(BLOCKS, even // BLOCKS)]
        sums = torch.stack([torch.stack([_words(piece) for piece in pieces]).sum() for pieces in parts])
    sums[0] += every[even:].sum(dtype=torch.int64)
    return sums


def shaped(data: Tensor, kept: Share) -> Tensor:
    """A tensor of the share's shape, over elements in the order in which they lie in memory."""
    return data.as_strided(kept.shape, kept.stride)


def _words(piece: Tensor) -> Tensor:
    return piece.clone().view(torch.int64).sum()


def _dense(tensor: Tensor) -> bool:
    """Whether its elements lie in memory without gaps, in whatever order."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted((st, n) for st, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True
