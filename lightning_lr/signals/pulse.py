"""Pulse: a fixed sample of the weights, a cheap estimate of their size and of how far an update moves them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_lr.internals import foreach_norm
from lightning_lr.shards import local, piece_count
from lightning_lr.signals.norms import moved, widest_float

MOST = 256
"""Sampled elements of one tensor. Where one large tensor dominates, n of them give its norm to 1 / sqrt(2 n), or 5%,
and the effect of SGD on a few of its rows to about 20%; 64 are half as exact. The number of tensors takes the time: 64
elements save only a fifth of it."""

TRIED, LOOKED_AHEAD = 64, 64
"""How many strides are compared for a shape, and by how many of the places that each of them visits."""

Sample = tuple[Tensor, ...]
"""The sampled elements: for each device and dtype a Tensor, shape (n,), float32 or wider."""


class Batch(NamedTuple):
    """The views that one `torch.cat` gathers: those of one device and dtype.

    Args:
        places: the indices of their tensors, part by part.
        lengths: the number of elements of each part.
        parts: the indices of the parts.
        scale: the weight of each element, which makes the sum of squares that of the whole tensors; Tensor, shape (n,).
        half: whether the elements are narrower than float32.
    """

    places: list[int]
    lengths: list[int]
    parts: list[int]
    scale: Tensor
    half: bool


class Pulse:
    """Samples the same elements of the same tensors each time, spread over rows and columns.

    Of a sharded tensor each rank samples its own shard, and the sums of squares add up over the ranks. Tensors without
    elements here, without floats, or without storage of their own (empty, integer, meta, sparse, not initialized,
    wrapped by a subclass) are left out. A tensor whose storage was replaced is followed to the new one. Nothing waits
    for an accelerator.

    Args:
        parts: tensors by part (a module, say); no tensor may appear twice.
        most: the most elements to sample of one tensor, >= 1.

    Example:
        >>> w = torch.nn.Parameter(torch.full((1000, 30), 2.0))
        >>> pulse = Pulse({"net": [w]})
        >>> before = pulse.take()
        >>> _ = w.data.mul_(1.5)
        >>> shift = Shift(pulse, before, pulse.take())
        >>> before[0].numel() <= 256, shift.ratios(torch.device("cpu"))
        (True, {'net': 0.5, 'all': 0.5})
    """

    def __init__(self, parts: Mapping[str, Iterable[Tensor]], most: int = MOST) -> None:
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        self.names = list(parts)
        held = [(part, tensor) for part, tensors in enumerate(parts.values()) for tensor in tensors]
        self.tensors = [tensor for _, tensor in held]
        self.sharded = any(hasattr(tensor, "placements") for tensor in self.tensors)
        self._most = most
        self._batches: list[Batch] = []
        self._views: list[list[Tensor]] = []
        self._at: list[int] = []
        with torch.no_grad():
            held = [(part, tensor) for part, tensor in held if _sampled(tensor)]
            self._kept = [tensor for _, tensor in held]
            groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
            for place, tensor in enumerate(self._storages()):
                groups.setdefault((tensor.device, tensor.dtype), []).append(place)
            shares = [piece_count(tensor) / ranks for tensor in self._kept]
            for places in groups.values():
                self._batches.append(self._batch(places, [held[place][0] for place in places], shares))

    def take(self) -> Sample:
        """The elements as they are now: one kernel for each device and dtype, a few more for very many tensors."""
        if self.sharded:
            with torch.no_grad():
                storages = self._storages()
        else:
            storages = self._kept
        at = [tensor.data_ptr() for tensor in storages]
        if at != self._at:
            with torch.no_grad():
                views = [_view(local(tensor.detach()), self._most) for tensor in storages]
            self._views, self._at = [[views[place] for place in batch.places] for batch in self._batches], at
        taken = (torch.cat(views) for views in self._views)
        return tuple(
            values.float() if batch.half else values for batch, values in zip(self._batches, taken, strict=True)
        )

    def squares(self, sample: Sample, device: torch.device) -> Tensor:
        """This rank's share of each part's sum of squares; Tensor, shape (parts,), on the device."""
        wide = widest_float(device)
        found: list[Tensor] = [torch.zeros((), dtype=wide, device=device)] * len(self.names)
        for batch, values in zip(self._batches, sample, strict=True):
            norms = foreach_norm(list(torch.split(values * batch.scale, batch.lengths)))
            for part, norm in zip(batch.parts, norms, strict=True):
                found[part] = found[part] + moved(norm, device).to(wide).square()
        return torch.stack(found) if found else torch.zeros(0, dtype=wide, device=device)

    def _storages(self) -> list[Tensor]:
        return [local(tensor) for tensor in self._kept]

    def _batch(self, places: list[int], owners: list[int], shares: list[float]) -> Batch:
        lengths: dict[int, int] = {}
        counts, scales = [], []
        for place, part in zip(places, owners, strict=True):
            tensor = local(self._kept[place].detach())
            count, number = _view(tensor, self._most).numel(), tensor.numel() * shares[place]
            lengths[part] = lengths.get(part, 0) + count
            counts.append(count)
            scales.append(math.sqrt(number / count))
        tensor = local(self._kept[places[0]].detach())
        half = tensor.dtype.itemsize < 4
        scale = torch.tensor(scales, dtype=torch.float32 if half else tensor.dtype)
        scale = scale.repeat_interleave(torch.tensor(counts)).to(tensor.device)
        return Batch(places, list(lengths.values()), list(lengths), scale, half)


class Shift(NamedTuple):
    """How weights moved between two samples of one pulse.

    Args:
        pulse: the pulse that took both samples.
        before, after: the two samples.
    """

    pulse: Pulse
    before: Sample
    after: Sample

    def ratios(self, device: torch.device, *, together: bool = False) -> dict[str, float]:
        """The 2-norm of the change divided by that of the weights before, for each part and for `all`.

        Waits for the accelerator. Where weights are sharded, every rank must call it. A part that was all zeros has no
        ratio.

        Args:
            device: where the numbers of several devices and ranks are brought together.
            together: whether to sum over the ranks even where every rank has all weights.
        """
        moves = tuple(after - before for before, after in zip(self.before, self.after, strict=True))
        squares = torch.stack([self.pulse.squares(moves, device), self.pulse.squares(self.before, device)])
        if torch.distributed.is_initialized() and (together or self.pulse.sharded):
            torch.distributed.all_reduce(squares)
        changes, sizes = squares.tolist()
        names = [*self.pulse.names, "all"]
        pairs = zip(names, [*changes, sum(changes)], [*sizes, sum(sizes)], strict=True)
        return {name: math.sqrt(change / size) for name, change, size in pairs if size > 0.0}


def _sampled(tensor: Tensor) -> bool:
    if is_lazy(tensor) or tensor.layout is not torch.strided:
        return False
    here = local(tensor.detach())
    floats = here.is_floating_point() and here.numel() > 0
    return floats and here.device.type != "meta" and type(here) is Tensor


def _view(tensor: Tensor, most: int) -> Tensor:
    """A sample of the tensor as a view of its storage; Tensor, shape (n,), n <= most."""
    layout = sorted(
        ((stride, size) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1), reverse=True
    )
    sizes = tuple(size for _, size in layout)
    if all(stride == math.prod(sizes[place + 1 :]) for place, (stride, _) in enumerate(layout)):
        step = spread(sizes, most)
        count, stride = -(-tensor.numel() // step), step
    else:
        # storage with gaps, or with several elements in one place, is sampled along a diagonal
        count = min(most, *sizes)
        stride = sum(size // count * stride for stride, size in layout)
    return tensor.as_strided((count,), (stride,), tensor.storage_offset())


@functools.cache
def spread(sizes: tuple[int, ...], most: int) -> int:
    """The stride at which a dense tensor is sampled, so that the sample spreads over its columns as well as its rows.

    A stride that divides the length of a row would visit the same few columns again and again. So the stride has no
    factor in common with that length. Of the strides near the smallest possible one it is the one whose places lie
    furthest apart, modulo the length of a row, of a plane, and so on.

    Args:
        sizes: the sizes of the dimensions, the outermost in memory first.
        most: the most elements of the sample.

    Example:
        >>> stride = spread((1024, 512), 256)
        >>> columns = {place % 512 for place in range(0, 1024 * 512, stride)}
        >>> 200 < len(columns) <= 256
        True
    """
    number = math.prod(sizes)
    least = -(-number // most)
    if least <= 1:
        return 1
    periods = [math.prod(sizes[place:]) for place in range(1, len(sizes))]
    row = periods[0] if periods else 1
    best, found = -1.0, least
    for tried in range(TRIED):
        stride = least + tried * least // (4 * TRIED)
        while math.gcd(stride, row) > 1:
            stride += 1
        apart = min((_apart(stride, period) for period in periods), default=0.0)
        if apart > best:
            best, found = apart, stride
    return found


def _apart(stride: int, period: int) -> float:
    """How far apart places are that are a few strides from one another, modulo the period: up to about 0.4."""
    nearest = 1.0
    for ahead in range(1, min(LOOKED_AHEAD, period)):
        place = ahead * stride % period
        nearest = min(nearest, ahead * min(place, period - place) / period)
    return nearest
