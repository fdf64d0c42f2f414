"""A peer: one of the callbacks that share a run."""

from __future__ import annotations

from typing import Any


class Peer:
    """A callback as the run and its other callbacks see it. They ask these questions, and never for a class by name.

    Attributes:
        name: the name under which its factor is kept and shown.
        option: its argument of `autopilot` if `autopilot` made it; else None.
    """

    has_factor = True
    """Whether the ledger holds a factor under its name."""
    monitors = False
    """Whether it shows the rates."""
    copies = False
    """Whether it copies weights, and needs all of them to be there from the start."""
    sweeps = False
    """Whether it swaps the run's weights for those of a sweep."""
    temporary = False
    """Whether its factor only leads up to the planned rate, or down from it at the end."""

    name: str
    option: str | None

    @property
    def falls(self) -> bool:
        """Whether it always lowers the rate at the end of the run."""
        return False

    @property
    def settling(self) -> bool:
        """Whether metrics say nothing about the rate now (warm-up, a sweep, the updates after a rewind)."""
        return False

    @property
    def found_nothing(self) -> bool:
        """Whether it has looked for a rate and found none, so that the user's own stays."""
        return False

    @property
    def given_up(self) -> bool:
        """Whether it has asked the trainer to stop because nothing more can be learned."""
        return False

    @property
    def trying(self) -> bool:
        """Whether it is running batches at other weights than the run's own."""
        return False

    @property
    def counts(self) -> dict[str, int]:
        """What it has counted in the run, for the record of the run's end."""
        return {}

    @property
    def left_out(self) -> str:
        """How the user does without this callback: `leave LRFinder out`, or `write autopilot(finder=None)`."""
        return f"leave {type(self).__name__} out" if self.option is None else f"write autopilot({self.option}=None)"

    def written(self, **arguments: Any) -> str:
        """How the user writes this callback with other arguments, as an argument of `autopilot` if that made it.

        Example:
            >>> from lightning_lr import LRFinder, autopilot
            >>> LRFinder().written(optimizer=0)
            'LRFinder(optimizer=0)'
            >>> autopilot()[0].written(optimizer=0)
            "autopilot(finder={'optimizer': 0})"
        """
        if self.option is not None:
            return f"autopilot({self.option}={arguments!r})"
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"

    def before_update(self, optimizer: int) -> None:
        """Called within the optimizer's step before the rate is written; see `Listener.before_update`."""

    def gradients_ready(self, optimizer: int) -> None:
        """Called within the optimizer's step when its gradients are there; see `Listener.gradients_ready`."""

    def after_update(self, optimizer: int) -> None:
        """Called within the optimizer's step after a real update; see `Listener.after_update`."""

    def rewound(self, rewinds: int) -> None:
        """Called when the run's weights have come back from a copy.

        Args:
            rewinds: how many times in a row, without lasting progress between them.
        """
