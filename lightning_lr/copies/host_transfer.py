"""HostTransfer: copies from CUDA devices to host memory, on streams of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lr.internals import foreach_copy


class HostTransfer:
    """Copies to host memory that are under way. From any other device than CUDA a copy is made at once."""

    def __init__(self) -> None:
        self._events: list[Any] = []
        self._open = False
        self._streams: dict[torch.device, Any] = {}

    def copy(self, into: Sequence[Tensor], live: Sequence[Tensor], *, aside: bool) -> None:
        """Copies tensors to the host.

        Args:
            into: in host memory; from CUDA, pinned.
            live: of the same sizes.
            aside: whether on a stream of its own, while other work goes on: `fence` keeps it from writing them.
        """
        devices: dict[torch.device, list[int]] = {}
        for place, tensor in enumerate(live):
            devices.setdefault(tensor.device, []).append(place)
        for device, places in devices.items():
            sources, targets = [live[place] for place in places], [into[place] for place in places]
            if device.type != "cuda":
                foreach_copy(targets, sources)
                continue
            stream = here = torch.cuda.current_stream(device)
            if aside:
                if device not in self._streams:
                    self._streams[device] = torch.cuda.Stream(device)
                stream = self._streams[device]
                # work that writes them, as far as it was given, comes first
                stream.wait_stream(here)
            with torch.cuda.stream(stream):
                foreach_copy(targets, sources, non_blocking=True)
                event = torch.cuda.Event()
                event.record(stream)
            self._events.append((device, event))
            if aside:
                self._open = True
                for tensor in sources:
                    # the allocator must not reuse the memory of a tensor that is released meanwhile
                    tensor.record_stream(stream)

    def fence(self) -> None:
        """Work that is given to the devices from here on begins after these copies; the host waits for none."""
        if self._open:
            self._open = False
            for device, event in self._events:
                torch.cuda.current_stream(device).wait_event(event)

    def wait(self) -> None:
        """Waits until all copies are complete."""
        for _, event in self._events:
            event.synchronize()
        self._events, self._open = [], False
