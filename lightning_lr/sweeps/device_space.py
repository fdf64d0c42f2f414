"""The device memory that a sweep takes, and whether there is enough of it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.optim import Optimizer

from lightning_lr.copies.footprint import Room, amount, room, second_state_footprint

REMEDY = "Smaller batches, or sharded weights, leave room for it"


class Space(NamedTuple):
    """What is known of a sweep's memory before it begins: the same on every rank, but for the name of the device.

    Args:
        room: what it takes, and what is free.
        takes: what it takes, in words.
        free: what is free, in words; empty if that isn't known (on the CPU).
    """

    room: Room
    takes: str
    free: str


def space(trainer: Any, module: Any, optimizers: list[Optimizer]) -> Space:
    """Asks on every rank; one small collective where there are several."""
    footprint = second_state_footprint(module, optimizers)
    found = room(trainer, footprint)
    where = found.device if trainer.world_size == 1 else f"the device of rank {found.rank}"
    more = "" if footprint.foreseen else ", and what the optimizer adds to it,"
    takes = f"{amount(found.takes)}{more} on {where} for a second state of weights and optimizer"
    if found.needs > found.takes:
        takes += f" ({amount(found.needs)} with the gradients to come)"
    if found.free == float("inf"):
        return Space(found, takes, "")
    return Space(found, takes, f"{amount(max(found.free, 0.0))} are free there beside the run's own peak")
