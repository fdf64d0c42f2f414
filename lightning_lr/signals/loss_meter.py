"""A loss meter: the loss of an update, from the losses of its micro-batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_lr.internals import scale_of
from lightning_lr.signals.norms import moved, widest_float


class LossMeter:
    """Gathers the losses of an update's micro-batches, as Lightning's `on_before_backward` sees them."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self._parts = 1

    def add(self, loss: Tensor, parts: int, scaler: Any = None) -> None:
        """Takes one micro-batch's loss.

        Args:
            loss: Tensor, shape () or of one element; divided by `parts` and multiplied by the scaler's scale.
            parts: `trainer.accumulate_grad_batches`.
            scaler: the gradient scaler in use, or None.
        """
        loss = loss.detach() if loss.ndim == 0 else loss.detach().sum()
        scale = scale_of(scaler)
        self.losses.append(loss if scale is None else loss.to(widest_float(loss.device)) / scale.to(loss.device))
        self._parts = parts

    def take(self) -> Tensor | None:
        """The mean of the losses since the last `take`; Tensor, shape (), on their device; None without any."""
        losses, self.losses = self.losses, []
        if not losses:
            return None
        if len(losses) == 1:
            return losses[0] if self._parts == 1 else losses[0] * self._parts
        return torch.stack([moved(loss, losses[-1].device) for loss in losses]).mean() * self._parts
