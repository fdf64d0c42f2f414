"""A track: what the latest update of one optimizer did to its weights."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import Tensor

from lightning_lr.signals.pulse import Pulse, Sample, Shift


class Track:
    """Samples an optimizer's weights before each of its updates: one kernel, and nothing waits for it.

    What the samples say is worked out only when it is asked for.

    Example:
        >>> import torch
        >>> w, track = torch.ones(3), Track()
        >>> track.see([w], updates=0)
        >>> _ = w.mul_(1.25)
        >>> shift = track.see([w], updates=1)
        >>> shift is track.see([w], updates=1)  # an update that was dropped
        True
        >>> shift.ratios(torch.device("cpu"))["all"]
        0.25
    """

    def __init__(self) -> None:
        self.shift: Shift | None = None
        """What the last real update changed; None where that is not known."""
        self._pulse = Pulse({})
        self._sample: Sample | None = None
        self._updates = -1

    def see(self, tensors: Sequence[Tensor], updates: int) -> Shift | None:
        """Samples the weights, unless there was no update since the last sample.

        Args:
            tensors: all tensors that the optimizer updates.
            updates: the number of updates that it has made.

        Returns:
            What the last update changed; None the first time, after `forget`, and after several unseen updates.
        """
        same = self._follows(tensors)
        if same and updates == self._updates:
            return self.shift
        before, self._sample = self._sample, self._pulse.take()
        one = updates == self._updates + 1
        self.shift = Shift(self._pulse, before, self._sample) if one and before is not None else None
        self._updates = updates
        return self.shift

    def forget(self) -> None:
        """Forgets the samples and frees their memory: other weights were put in place, or the run is over."""
        self.shift, self._sample, self._updates = None, None, -1
        self._pulse = Pulse({})

    def _follows(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the tensors are the same as before; if not, these are sampled from now on."""
        known = self._pulse.tensors
        if len(known) == len(tensors) and all(map(operator.is_, known, tensors)):
            return bool(tensors)
        self.forget()
        self._pulse = Pulse({"": tensors})
        return False
