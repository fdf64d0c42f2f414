"""A listener: what wants to know of every update that the ledger sees."""

from __future__ import annotations

from lightning_lr.rates.change import Part


class Listener:
    """What the ledger calls while an optimizer steps, in the order of the methods."""

    def before_update(self, optimizer: int) -> None:
        """The optimizer is about to step: the last chance to set a factor for this update."""

    def gradients_ready(self, optimizer: int) -> None:
        """The gradients of this update are there: the last chance to drop it, or to change its rate.

        A step with a closure calls this after each evaluation of the closure.
        """

    def rate_used(self, optimizer: int, group: int, old: float | None, new: float, parts: list[Part]) -> None:
        """A param group was updated at another rate, or with other factors, than at the update before.

        At a param group's first update `old` is None, and `parts` names the factors that the update was made with. The
        first update after a resume is reported whether its rate differs or not.
        """

    def after_update(self, optimizer: int) -> None:
        """A real update was made. It was counted, unless it was made with a trial rate."""
