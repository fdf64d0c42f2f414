"""Update ratios: how far an optimizer's update moves the weights of each module, relative to their size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor, nn

from lightning_lr.internals import loggers_step
from lightning_lr.record.curves import UPDATE
from lightning_lr.run.run import Run
from lightning_lr.signals.pulse import Pulse, Sample, Shift

MOST = 4096
"""Sampled elements of one tensor. Only logged updates are sampled, so they may be more than for the guard. They
give a norm to 1 or 2% (see `pulse.MOST`), and nine in ten of a small transformer's 51 tensors to 4% (256 give 15%)."""

CURVES = 100
"""The most curves of one optimizer: as many as a very large model has layers; more are hard to read."""


class UpdateRatios:
    """Samples the weights before and after the updates that are logged: each optimizer's first in a logged batch.

    Args:
        run: the run with the optimizers.
        module: the model.
    """

    def __init__(self, run: Run, module: nn.Module) -> None:
        self._run, self._module = run, module
        self._pulses: dict[int, Pulse] = {}
        self._before: dict[int, Sample] = {}
        self._seen: dict[int, int] = {}
        self._shared: Counter[str] = Counter()

    def before(self, index: int) -> None:
        """Called when an optimizer's gradients are there and not yet used."""
        # the first evaluation of LBFGS and SAM is at the weights that the update starts from
        if self._run.ledger.evaluations(index) > 1:
            return
        self._before.pop(index, None)
        trainer, step = self._run.trainer, loggers_step(self._run.trainer)
        # Lightning's own condition, without its check for a stop, which one rank alone may have requested
        logs = trainer.loggers and trainer.log_every_n_steps and (step + 1) % trainer.log_every_n_steps == 0
        if not logs or self._seen.get(index) == step:
            return
        if self._run.ledger.in_trial(index) or any(peer.trying for peer in self._run.peers):
            return
        self._before[index] = self._pulse(index).take()

    def after(self, index: int) -> dict[str, float]:
        """Called when the optimizer has made an update: the ratios by tag; empty if they are not logged now."""
        before = self._before.pop(index, None)
        if before is None:
            return {}
        trainer, pulse = self._run.trainer, self._pulses[index]
        self._seen[index] = loggers_step(trainer)
        ratios = Shift(pulse, before, pulse.take()).ratios(trainer.strategy.root_device)
        return {f"{UPDATE}{self._tag(name, index)}": ratio for name, ratio in ratios.items()}

    def _pulse(self, index: int) -> Pulse:
        tensors, known = self._trained(index), self._pulses.get(index)
        if known is None or {id(p) for p in known.tensors} != {id(p) for p in tensors}:
            known = self._pulses[index] = Pulse(by_module(self._module, tensors), MOST)
            names = [by_module(self._module, self._trained(each)) for each in range(len(self._run.ledger.optimizers))]
            self._shared = Counter(name for parts in names for name in (*parts, "all"))
        return known

    def _trained(self, index: int) -> list[Tensor]:
        groups = self._run.ledger.optimizers[index].param_groups
        return [p for group in groups for p in group["params"] if p.requires_grad]

    def _tag(self, name: str, index: int) -> str:
        """The module's name, with the optimizer's if several optimizers hold parts of the module."""
        return f"{name}/{self._run.names_at((index, 0)).optimizer}" if self._shared[name] > 1 else name


def by_module(module: nn.Module, tensors: Iterable[Tensor], most: int = CURVES) -> dict[str, list[Tensor]]:
    """Parameters by the name of the module that directly holds them; the model's own ones are under its class name.

    If there are more than `most` modules, those whose names begin alike are taken together (all of one layer, say), by
    the longest beginnings that leave `most` or fewer.

    Args:
        module: the model.
        tensors: parameters; those that are not the model's go under `other`.
        most: the most parts, >= 1.

    Example:
        >>> layers = nn.Sequential(*(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)) for _ in range(3)))
        >>> list(by_module(layers, layers.parameters()))
        ['0.0', '0.1', '1.0', '1.1', '2.0', '2.1']
        >>> list(by_module(layers, layers.parameters(), most=3))
        ['0', '1', '2']
    """
    owners: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        # torch.compile wraps each module in one of its own
        path = [word for word in name.split(".") if word != "_orig_mod"]
        for parameter in part.parameters(recurse=False):
            owners.setdefault(id(parameter), path if any(path) else [type(module).__name__])
    held = [(owners.get(id(tensor), ["other"]), tensor) for tensor in tensors]
    depth = max((len(path) for path, _ in held), default=1)
    while depth > 1 and len({tuple(path[:depth]) for path, _ in held}) > most:
        depth -= 1
    parts: dict[str, list[Tensor]] = {}
    for path, tensor in held:
        parts.setdefault(".".join(path[:depth]), []).append(tensor)
    return parts
