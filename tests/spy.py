"""A spy on devices, for machines that have but one: the rank's own device is `cpu:0`, the host is `cpu`."""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lightning_lr

OWN, HOST = torch.device("cpu", 0), torch.device("cpu")
"""To torch they are one; what is made on either is told apart by the words with which it was asked for."""

COLLECTIVES = (
    *("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce", "gather", "scatter"),
    *("reduce_scatter", "reduce_scatter_tensor", "all_to_all", "all_to_all_single", "send", "recv"),
)

BETWEEN = ("copy_", "_foreach_copy_", "_to_copy", "index")
"""What takes tensors from one device to another, or may have some on the host."""


PACKAGE, TORCH = str(Path(lightning_lr.__file__).parent), str(Path(torch.__file__).parent)


def caller() -> str:
    """The file and line of the package that calls torch; empty where it is another's."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith((TORCH, __file__)):
        frame = frame.f_back
    if frame is None or not frame.f_code.co_filename.startswith(PACKAGE):
        return ""
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


class Spy(TorchDispatchMode):
    """Knows which tensors an accelerator's rank would have on its host, and keeps what would fail there.

    What the package makes without a word about the device, or moves to `cpu`, is on the host, and what is computed from
    such alone; everything else is on the rank's own device. A number of shape () may join tensors on another device,
    but not be stacked with them, as torch has it. What torch and Lightning join is their own affair.
    """

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.collectives, self.active = 0, False
        self._host: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()

    def on_host(self, tensor: Tensor) -> bool:
        return self._host.get(id(tensor)) is tensor

    def __enter__(self) -> Any:
        self.active = True
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        self.active = False
        super().__exit__(*args)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = str(func).split(".")[1]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        near = [tensor for tensor in given if self.on_host(tensor)]
        far = [tensor for tensor in given if not self.on_host(tensor)]
        together = name in ("stack", "cat") or any(tensor.ndim for tensor in near)
        if near and far and together and name not in BETWEEN and (where := caller()):
            self.wrong.append(f"{name} of tensors on two devices, {where}")
        device = kwargs.get("device")
        asked = device is not None or not given
        host = bool(asked and (device is None or device.index is None) and caller()) or (not asked and not far)
        for tensor in tree_leaves(out):
            if host and isinstance(tensor, Tensor):
                self._host[id(tensor)] = tensor
        return out


@contextlib.contextmanager
def spying() -> Iterator[Spy]:
    """Every rank has `OWN`, and each tensor in a collective has to be there."""
    spy = Spy()

    def watched(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            spy.collectives += 1
            if any(isinstance(leaf, Tensor) and spy.on_host(leaf) for leaf in tree_leaves((args, kwargs))):
                spy.wrong.append(f"{name} of a tensor on the host")
            return function(*args, **kwargs)

        return call

    def made(function: Any) -> Any:
        # these don't tell a dispatch mode where they put what they make
        def call(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
            tensor = function(data, *args, device=device, **kwargs)
            near = device is None or torch.device(device).index is None
            if spy.active and near and not isinstance(data, Tensor) and caller():
                spy._host[id(tensor)] = tensor
            return tensor

        return call

    true: Any = Tensor.device

    def place(tensor: Tensor) -> torch.device:
        device = true.__get__(tensor)
        asked = spy.active and device.type == "cpu" and not spy.on_host(tensor)
        return OWN if asked and caller() else device

    with contextlib.ExitStack() as stack:
        # torch forgets the index; its own code and Lightning's may
        stack.enter_context(mock.patch.object(Tensor, "device", property(place)))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(mock.patch.object(torch, name, made(getattr(torch, name))))
        for name in COLLECTIVES:
            function = getattr(torch.distributed, name)
            stack.enter_context(mock.patch.object(torch.distributed, name, watched(name, function)))
        yield spy
