"""The ledger of rates: it multiplies base rates by named factors, and is the only code that writes a rate."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_lr.internals import skipped_on_device
from lightning_lr.rates.change import SCHEDULER, Listener, Part
from lightning_lr.rates.group_rate import GroupRate, Used
from lightning_lr.rates.held_rates import HeldRates, rounded
from lightning_lr.rates.steps import hooked_steps, untraced

ROUNDING = 1e-9
"""Rates that differ by less than this ratio are one rate: a factor that holds a rate still against a falling base."""


class Ledger:
    """Multiplies the factors, writes the effective rate into the optimizer for the length of a step, and takes it back.

    Between steps, and in the user's code within a step's closure, the param groups hold exactly what the user's
    scheduler wrote: recursive schedulers, closed-form ones and checkpoints never see a factor. A tensor rate is filled
    in place, never replaced, and read only after somebody else has written it. Of steps within steps (one that calls
    its parent's) only the outermost is an update.

    Args:
        optimizers: the optimizers, in the trainer's order.
        listener: is told of every update; see `Listener`.
        active: asked at each step; while it answers False (somebody borrows the optimizer for steps of their own)
            the ledger neither writes nor counts.
        closure_gives_loss: whether a closure that returns None had no loss to give (automatic optimization); its step,
            with no gradients, is then not counted.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([w], lr=0.5)
        >>> ledger = Ledger([optimizer], Listener())
        >>> ledger.attach()
        >>> ledger.set_factor("Warmup", 0.5, "half of the way")
        >>> w.grad = torch.ones(1)
        >>> optimizer.step()
        >>> w.item(), optimizer.param_groups[0]["lr"], ledger.updates(0)
        (0.75, 0.5, 1)
        >>> ledger.detach()
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        listener: Listener,
        active: Callable[[], bool] = lambda: True,
        *,
        closure_gives_loss: bool = False,
    ) -> None:
        self.optimizers = list(optimizers)
        self._listener = listener
        self._active = active
        self._closure_gives_loss = closure_gives_loss
        self._updates = [0] * len(self.optimizers)
        self._lines: list[list[GroupRate]] = [[GroupRate() for _ in o.param_groups] for o in self.optimizers]
        self._defaults: list[dict[str, tuple[float, str]]] = [{} for _ in self.optimizers]
        self._trial: list[list[float] | None] = [None] * len(self.optimizers)
        self._inside: list[list[tuple[Any, float, float]] | None] = [None] * len(self.optimizers)
        self._discarded = [False] * len(self.optimizers)
        self._evaluations = [0] * len(self.optimizers)
        self._held = [HeldRates() for _ in self.optimizers]
        self._depth = [0] * len(self.optimizers)
        self._handles: list[Any] = []

    # what others ask -------------------------------------------------------------------------------------------

    def updates(self, optimizer: int) -> int:
        """The number of real updates that the optimizer has made; skipped ones and those of a trial are none."""
        return self._updates[optimizer]

    def groups(self, optimizer: int) -> int:
        """The number of the optimizer's param groups."""
        if self._inside[optimizer] is None:
            self._adopt(optimizer)
        return len(self._lines[optimizer])

    def age(self, optimizer: int, group: int) -> int:
        """The number of real updates that the optimizer has made since the group came."""
        return self._updates[optimizer] - self._lines[optimizer][group].born

    def base(self, optimizer: int, group: int) -> float:
        """The rate that the user's scheduler (or the user) set for the group, absolute."""
        inside = self._inside[optimizer]
        if inside is not None and group < len(inside):
            return inside[group][1]
        return self._held[optimizer].one(self.optimizers[optimizer].param_groups, group)

    def factor(self, source: str, optimizer: int, group: int) -> float:
        """The source's present factor for the group, a ratio; 1 when it has set none."""
        return self._lines[optimizer][group].factors.get(source, 1.0)

    def effective(self, optimizer: int, group: int) -> float:
        """The rate that an update made now would use, absolute."""
        trial = self._trial[optimizer]
        if trial is not None:
            return trial[group]
        return self.base(optimizer, group) * self._lines[optimizer][group].product

    def without(self, source: str, optimizer: int, group: int) -> float:
        """The rate that the run's next real update would have without the source's factor, absolute."""
        line = self._lines[optimizer][group]
        return self.base(optimizer, group) * line.product / line.factors.get(source, 1.0)

    def in_trial(self, optimizer: int) -> bool:
        """Whether a trial rate is set: the updates made now are to be taken back."""
        return self._trial[optimizer] is not None

    def used(self, optimizer: int, group: int) -> float | None:
        """The effective rate of the last real update, absolute; None before the first."""
        used = self._lines[optimizer][group].used
        return None if used is None else used.effective

    def used_factor(self, source: str, optimizer: int, group: int) -> float:
        """The source's factor at the group's last real update, a ratio; 1 when it had none."""
        used = self._lines[optimizer][group].used
        return 1.0 if used is None else dict(used.factors).get(source, 1.0)

    # what callbacks set ----------------------------------------------------------------------------------------

    def set_factor(
        self, source: str, factor: float, reason: str, *, optimizer: int | None = None, group: int | None = None
    ) -> None:
        """Sets a source's factor from the next update on (or this one, before `before_update` returns).

        Args:
            source: the name under which the factor is kept.
            factor: a finite ratio >= 0.
            reason: why, in words; becomes the cause of the change.
            optimizer: its index; None: all, those param groups included that come later.
            group: its index; None: all groups of the optimizer, later ones included.

        Raises:
            ValueError: when the factor is negative or not finite.
        """
        if not 0.0 <= factor < float("inf"):
            raise ValueError(f"a rate's factor must be finite and >= 0, got {factor} from {source}")
        for index in range(len(self.optimizers)) if optimizer is None else (optimizer,):
            if group is None:
                self._defaults[index][source] = (factor, reason)
            lines = self._lines[index]
            for line in lines if group is None else (lines[group],):
                line.set(source, factor, reason)
            if self._inside[index] is not None:
                self._take_back(index)
                self._put(index)

    def set_trial(self, rates: Sequence[float] | None, *, optimizer: int = 0) -> None:
        """Overrides base and factors by absolute rates, one for each param group, until called with None.

        Updates made with a trial rate are neither counted nor recorded: they are to be taken back.
        """
        if rates is not None and len(rates) != self.groups(optimizer):
            raise ValueError(
                f"one trial rate for each of the {self.groups(optimizer)} param groups is needed, got {len(rates)}"
            )
        self._trial[optimizer] = None if rates is None else [float(r) for r in rates]
        if self._inside[optimizer] is not None:
            self._take_back(optimizer)
            self._put(optimizer)

    def discard_update(self, optimizer: int) -> None:
        """Makes the step under way a true skip: it is not counted, and its gradients become None before they are used.

        Called from within the step, its closure included. What comes until then (clipping, the user's own hooks) still
        finds the gradients: torch's clipping by value raises an error where there are none.
        """
        self._discarded[optimizer] = True

    def evaluations(self, optimizer: int) -> int:
        """How often the step under way has called its closure: LBFGS and SAM do so several times an update."""
        return self._evaluations[optimizer]

    # around the step -------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Registers the hooks on the optimizers.

        Raises:
            ValueError: for an optimizer that is no `torch.optim.Optimizer`, and so has no hooks.
        """
        for index, optimizer in enumerate(self.optimizers):
            if not isinstance(optimizer, Optimizer):
                raise ValueError(
                    f"rates can be changed only in a torch.optim.Optimizer, whose step has hooks, but optimizer "
                    f"{index} is a {type(optimizer).__name__}: derive it from torch.optim.Optimizer"
                )
            self._handles += [
                optimizer.register_step_pre_hook(functools.partial(self._before_step, index)),
                optimizer.register_step_post_hook(functools.partial(self._after_step, index)),
            ]

    def detach(self) -> None:
        """Takes every rate back and removes the hooks; safe to call twice."""
        self.take_back()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take_back(self) -> None:
        """Gives every param group the scheduler's rate again, after an exception inside a step too."""
        for index in range(len(self.optimizers)):
            self._depth[index] = 0
            self._take_back(index)

    @untraced
    def _before_step(self, index: int, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        if not self._active() or self._enter(index, optimizer) > 1:
            return None
        self._take_back(index)
        self._discarded[index], self._evaluations[index] = False, 0
        self._adopt(index)
        self._listener.before_update(index)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._listener.gradients_ready(index)
        self._put(index)
        self._drop_gradients(index)
        if closure is None:
            return None
        # some optimizers read the rate before they call the closure, most after it; the user's code within the closure
        # (with automatic optimization that is all of training_step) is to see the scheduler's
        wrapped = functools.partial(self._within, index, closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    @untraced
    def _within(self, index: int, closure: Callable[[], Any]) -> Any:
        self._take_back(index)
        self._evaluations[index] += 1
        loss = closure()
        if loss is None and self._closure_gives_loss and not self._has_gradients(index):
            self._discarded[index] = True  # training_step returned None
        if len(self._lines[index]) != len(self.optimizers[index].param_groups):
            self._adopt(index)
            self._listener.before_update(index)
        self._listener.gradients_ready(index)
        self._drop_gradients(index)
        self._put(index)
        return loss

    @untraced
    def _after_step(self, index: int, optimizer: Optimizer, *_: Any) -> None:
        if self._leave(index, optimizer) > 0:
            return
        written = self._inside[index]
        if written is None:
            return
        self._take_back(index)
        # a fused optimizer under a gradient scaler is called even when it then skips the update on the device
        if self._discarded[index] or skipped_on_device(self.optimizers[index]):
            return
        if self._trial[index] is None:
            self._updates[index] += 1
            for group, (line, (_, base, effective)) in enumerate(zip(self._lines[index], written, strict=False)):
                used = line.used
                if used is not None and math.isclose(used.effective, effective, rel_tol=ROUNDING):
                    # compared with the rate last told, so that a slow drift is told in the end
                    if used.factors == line.shares and line.told:
                        continue
                    effective = used.effective
                self._record(index, group, line, Used(base, line.shares, effective))
        self._listener.after_update(index)

    def _enter(self, index: int, optimizer: Optimizer) -> int:
        """Counts a step that begins: 1 is the outermost."""
        depth = self._depth[index] + 1
        if depth > 1:
            # of a step that raised torch tells nothing: the stack knows which ones are still under way
            depth = hooked_steps(self.optimizers[index], optimizer) or depth
        self._depth[index] = depth
        return depth

    def _leave(self, index: int, optimizer: Optimizer) -> int:
        """Counts a step that ends: 0 was the outermost."""
        depth = self._depth[index]
        if depth > 1:
            depth = hooked_steps(self.optimizers[index], optimizer) or depth
        self._depth[index] = max(0, depth - 1)
        return self._depth[index]

    def _put(self, index: int) -> None:
        trial, groups = self._trial[index], self.optimizers[index].param_groups
        bases = self._held[index].read(groups)
        if trial is None:
            wanted = [base * line.product for base, line in zip(bases, self._lines[index], strict=True)]
        else:
            wanted = trial
        if wanted == bases:
            self._inside[index] = [(base, base, base) for base in bases]
            return
        written = []
        for settings, base, effective in zip(groups, bases, wanted, strict=True):
            found = settings["lr"]
            if effective != base:
                _own(settings, groups, len(set(wanted)) > 1)
                effective = _write(settings, effective)
            written.append((base if isinstance(found, torch.Tensor) else found, base, effective))
        self._held[index].wrote(groups, [effective for _, _, effective in written])
        self._inside[index] = written

    def _take_back(self, index: int) -> None:
        written, self._inside[index] = self._inside[index], None
        if written is None or all(base == effective for _, base, effective in written):
            return
        groups = self.optimizers[index].param_groups
        now = self._held[index].read(groups)
        for group, ((found, base, effective), settings) in enumerate(zip(written, groups, strict=False)):
            # a rate that the optimizer itself changed is its own: leave it
            if effective != base and now[group] == effective:
                now[group] = _write(settings, found)
        self._held[index].wrote(groups, now)

    def _drop_gradients(self, index: int) -> None:
        if self._discarded[index]:
            # zeros would still move an optimizer that has momentum
            for group in self.optimizers[index].param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _has_gradients(self, index: int) -> bool:
        return any(p.grad is not None for group in self.optimizers[index].param_groups for p in group["params"])

    def _adopt(self, index: int) -> None:
        lines, groups = self._lines[index], self.optimizers[index].param_groups
        if len(lines) == len(groups):
            return
        del lines[len(groups) :]
        while len(lines) < len(groups):
            line = GroupRate(born=self._updates[index])
            for source, (factor, reason) in self._defaults[index].items():
                line.set(source, factor, reason)
            lines.append(line)
            trial = self._trial[index]
            if trial is not None:
                trial.append(self._held[index].one(groups, len(trial)))

    def _record(self, index: int, group: int, line: GroupRate, now: Used) -> None:
        before, line.used, told, line.told = line.used, now, line.told, True
        if before is None:
            first = [Part(source, factor, factor, line.reasons.get(source, "")) for source, factor in now.factors]
            self._listener.rate_used(index, group, None, now.effective, first)
            return
        parts = []
        if before.base != now.base:
            parts.append(Part(SCHEDULER, before.base, now.base, ""))
        old, new = dict(before.factors), dict(now.factors)
        for source in sorted(old.keys() | new.keys()):
            was, is_now = old.get(source, 1.0), new.get(source, 1.0)
            if was != is_now:
                parts.append(Part(source, was, is_now, line.reasons.get(source, "")))
        if not told or parts:
            self._listener.rate_used(index, group, before.effective, now.effective, parts)

    # state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Counts, births, factors with their reasons, and the last used rates: numbers, strings and lists."""
        return {
            "version": 1,
            "optimizers": [
                {
                    "updates": updates,
                    "defaults": {source: list(value) for source, value in defaults.items()},
                    "groups": [line.to_dict() for line in lines],
                }
                for updates, defaults, lines in zip(self._updates, self._defaults, self._lines, strict=True)
            ],
        }

    def load_state_dict(self, state: dict[str, Any], sources: Iterable[str]) -> None:
        """Takes up a saved state; a factor whose source is not among `sources` any more is left out."""
        known = set(sources)
        for index, saved in enumerate(state["optimizers"][: len(self.optimizers)]):
            self._updates[index] = saved["updates"]
            self._defaults[index] = {s: (v[0], v[1]) for s, v in saved["defaults"].items() if s in known}
            self._lines[index] = [GroupRate.from_dict(group, known) for group in saved["groups"]]
            self._adopt(index)


def _own(settings: dict[str, Any], groups: list[dict[str, Any]], differ: bool) -> None:
    """Gives a group its own tensor where torch let several share one and they now need different rates."""
    rate = settings["lr"]
    if differ and isinstance(rate, torch.Tensor) and sum(group["lr"] is rate for group in groups) > 1:
        settings["lr"] = rate.clone()


def _write(settings: dict[str, Any], rate: Any) -> float:
    """Writes the rate, and says what the group holds then."""
    held = settings["lr"]
    if isinstance(held, torch.Tensor):
        held.fill_(rate)
        return rounded(rate, held)
    settings["lr"] = rate
    return float(rate)
