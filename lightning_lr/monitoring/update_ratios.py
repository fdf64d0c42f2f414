"""UpdateRatios: how far an optimizer's update moves the weights of each module, in parts of their size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor, nn

from lightning_lr.internals import loggers_step
from lightning_lr.record.curves import UPDATE
from lightning_lr.run.run import Run
from lightning_lr.signals.pulse import Pulse, Sample, Shift

MOST = 4096
"""Elements of one tensor: only logged updates are sampled, so that they may be more than a guard's. They know a norm to
1 or 2% (see `pulse.MOST`), and of a small transformer's 51 tensors nine in ten to 4%, with 256 to 15%."""

CURVES = 100
"""Of one optimizer at most: as many as the layers of a very large model, and more are hard to read."""


class UpdateRatios:
    """Samples the weights before and after the updates that are logged: the first in its batch of each optimizer.

    Args:
        run: whose optimizers.
        module: the model.
    """

    def __init__(self, run: Run, module: nn.Module) -> None:
        self._run, self._module = run, module
        self._pulses: dict[int, Pulse] = {}
        self._before: dict[int, Sample] = {}
        self._seen: dict[int, int] = {}
        self._shared: Counter[str] = Counter()

    def before(self, index: int) -> None:
        """The gradients of an optimizer are there, and not used yet."""
        # of LBFGS and SAM the first evaluation is at the weights that the update begins with
        if self._run.ledger.evaluations(index) > 1:
            return
        self._before.pop(index, None)
        trainer, step = self._run.trainer, loggers_step(self._run.trainer)
        # what Lightning asks itself, but for a wish to stop, which may be one rank's own
        logs = trainer.loggers and trainer.log_every_n_steps and (step + 1) % trainer.log_every_n_steps == 0
        if not logs or self._seen.get(index) == step:
            return
        if self._run.ledger.in_trial(index) or any(peer.trying for peer in self._run.peers):
            return
        self._before[index] = self._pulse(index).take()

    def after(self, index: int) -> dict[str, float]:
        """The optimizer has made an update: the ratios by tag, or none if they are not logged now."""
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
        """The module's name, with the optimizer's where several hold a part of it."""
        return f"{name}/{self._run.names_at((index, 0)).optimizer}" if self._shared[name] > 1 else name


def by_module(module: nn.Module, tensors: Iterable[Tensor], most: int = CURVES) -> dict[str, list[Tensor]]:
    """Parameters by the name of the module that holds them itself; in its own class's name those of the model itself.

    Of more than `most` modules, those with a common beginning of their names are taken together: all that lies in one
    layer, say, with the longest beginnings that make `most` of them or fewer.

    Args:
        module: the model.
        tensors: parameters; `other` are those that are not the model's.
        most: parts at most, >= 1.

    Example:
        >>> layers = nn.Sequential(*(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)) for _ in range(3)))
        >>> list(by_module(layers, layers.parameters()))
        ['0.0', '0.1', '1.0', '1.1', '2.0', '2.1']
        >>> list(by_module(layers, layers.parameters(), most=3))
        ['0', '1', '2']
    """
    owners: dict[int, list[str]] = {}
    for name, part in module.named_modules():
        # torch.compile puts a module of its own around each
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
