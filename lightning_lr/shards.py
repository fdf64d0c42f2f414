"""Shards: parameters that are split over the ranks (DTensors of FSDP2)."""

from __future__ import annotations

from torch import Tensor, nn


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, sharing its memory."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def piece_count(tensor: Tensor) -> int:
    """The number of different pieces into which a tensor is split over the ranks; 1 if every rank holds all of it."""
    count = 1
    if hasattr(tensor, "placements"):
        for dimension, placement in enumerate(tensor.placements):  # pyright: ignore[reportAttributeAccessIssue]
            if placement.is_shard():
                count *= tensor.device_mesh.size(dimension)  # pyright: ignore[reportAttributeAccessIssue]
    return count


def reshard(module: nn.Module) -> bool:
    """Makes FSDP2 put the shards back in place; returns whether there are any.

    A forward pass without a backward pass (validation) leaves the gathered copies in the module. Reading its parameters
    then gives the copies and not what the optimizer updates, and the next forward pass ignores what was written to the
    shards.
    """
    found = False
    for part in module.modules():
        # by name: torch has moved the class
        if any(kind.__name__ == "FSDPModule" for kind in type(part).__mro__):
            part.reshard()  # pyright: ignore[reportCallIssue]
            found = True
    return found or any(hasattr(parameter, "placements") for parameter in module.parameters())
