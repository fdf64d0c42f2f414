"""The ledger of rates: multiplies base rates by named factors. No other code writes a rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_lr.rates.account import Account, Written
from lightning_lr.rates.held_rates import rounded
from lightning_lr.rates.listener import Listener
from lightning_lr.rates.step_hooks import StepHooks


class Ledger:
    """Multiplies the factors, writes the effective rate into the optimizer for the length of a step, and takes it back.

    Between steps, and in the user's code within a step's closure, the param groups hold exactly what the user's
    scheduler wrote: recursive schedulers, closed-form ones and checkpoints never see a factor. A tensor rate is filled
    in place, never replaced, and read only after somebody else has written it.

    Args:
        optimizers: the optimizers, in the trainer's order.
        listener: hears of every update; see `Listener`.
        active: asked at each step; while it answers False (somebody borrows the optimizer for steps of their own)
            the ledger neither writes nor counts.
        closure_gives_loss: whether a closure that returns None had no loss to give (automatic optimization). Its step,
            which has no gradients, is then not counted.

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
        self._accounts = [Account(optimizer) for optimizer in self.optimizers]
        self._hooks = [
            StepHooks(index, account, _put, _take_back, listener, active, closure_gives_loss=closure_gives_loss)
            for index, account in enumerate(self._accounts)
        ]

    def updates(self, optimizer: int) -> int:
        """The number of real updates that the optimizer has made, without skipped ones and those of a trial."""
        return self._accounts[optimizer].updates

    def groups(self, optimizer: int) -> int:
        """The number of the optimizer's param groups."""
        account = self._accounts[optimizer]
        if account.written is None:
            account.adopt()
        return len(account.groups)

    def age(self, optimizer: int, group: int) -> int:
        """The number of real updates that the optimizer has made since the param group was added."""
        return self._accounts[optimizer].age(group)

    def base(self, optimizer: int, group: int) -> float:
        """The rate that the user's scheduler (or the user) set for the group, absolute."""
        return self._accounts[optimizer].base(group)

    def factor(self, source: str, optimizer: int, group: int) -> float:
        """The source's present factor for the group, a ratio; 1 when it has set none."""
        return self._accounts[optimizer].groups[group].factors.get(source, 1.0)

    def effective(self, optimizer: int, group: int) -> float:
        """The rate that an update made now would use, absolute."""
        return self._accounts[optimizer].effective(group)

    def without(self, source: str, optimizer: int, group: int) -> float:
        """The rate of the next real update without the source's factor, absolute."""
        return self._accounts[optimizer].without(source, group)

    def in_trial(self, optimizer: int) -> bool:
        """Whether trial rates are set: updates made now are to be taken back."""
        return self._accounts[optimizer].trial is not None

    def used(self, optimizer: int, group: int) -> float | None:
        """The effective rate of the last real update, absolute; None before the first."""
        used = self._accounts[optimizer].groups[group].used
        return None if used is None else used.effective

    def used_factor(self, source: str, optimizer: int, group: int) -> float:
        """The source's factor at the group's last real update, a ratio; 1 when it had none."""
        used = self._accounts[optimizer].groups[group].used
        return 1.0 if used is None else dict(used.factors).get(source, 1.0)

    def set_factor(
        self, source: str, factor: float, reason: str, *, optimizer: int | None = None, group: int | None = None
    ) -> None:
        """Sets a source's factor from the next update on (or this one, before `before_update` returns).

        Args:
            source: the name under which the factor is kept.
            factor: a finite ratio >= 0.
            reason: why, in words; becomes the cause of the change.
            optimizer: its index; None: all of them, with param groups that are added later.
            group: the param group's index; None: all of the optimizer's, later ones included.

        Raises:
            ValueError: when the factor is negative or not finite.
        """
        if not 0.0 <= factor < float("inf"):
            raise ValueError(f"a rate's factor must be finite and >= 0, got {factor} from {source}")
        for account in self._accounts if optimizer is None else (self._accounts[optimizer],):
            if group is None:
                account.defaults[source] = (factor, reason)
            for rate in account.groups if group is None else (account.groups[group],):
                rate.set(source, factor, reason)
            _renew(account)

    def set_trial(self, rates: Sequence[float] | None, *, optimizer: int = 0) -> None:
        """Replaces base and factors by absolute rates, one for each param group, until it is called with None.

        Updates made with a trial rate are neither counted nor recorded: they are to be taken back.
        """
        if rates is not None and len(rates) != self.groups(optimizer):
            raise ValueError(
                f"one trial rate for each of the {self.groups(optimizer)} param groups is needed, got {len(rates)}"
            )
        account = self._accounts[optimizer]
        account.trial = None if rates is None else [float(r) for r in rates]
        _renew(account)

    def discard_update(self, optimizer: int) -> None:
        """Skips the step under way: it is not counted, and its gradients become None before they are used.

        Call it from within the step or its closure. Whatever runs before the update (clipping, the user's own hooks)
        still finds the gradients: torch's clipping by value raises an error where there are none.
        """
        self._hooks[optimizer].discarded = True

    def evaluations(self, optimizer: int) -> int:
        """How often the step under way has called its closure: LBFGS and SAM call it several times per update."""
        return self._hooks[optimizer].evaluations

    def attach(self) -> None:
        """Registers the hooks on the optimizers.

        Raises:
            ValueError: for an optimizer that is no `torch.optim.Optimizer`, and so has no hooks.
        """
        for hooks in self._hooks:
            hooks.attach()

    def detach(self) -> None:
        """Takes every rate back and removes the hooks; safe to call twice."""
        self.take_back()
        for hooks in self._hooks:
            hooks.detach()

    def take_back(self) -> None:
        """Gives every param group the scheduler's rate again, even after an exception inside a step."""
        for hooks in self._hooks:
            hooks.reset()

    def state_dict(self) -> dict[str, Any]:
        """Counts, ages, factors with their reasons, and the last used rates, as numbers, strings and lists."""
        return {"version": 1, "optimizers": [account.to_dict() for account in self._accounts]}

    def load_state_dict(self, state: dict[str, Any], sources: Iterable[str]) -> None:
        """Takes up a saved state, without the factors whose source is no longer among `sources`."""
        known = set(sources)
        for account, saved in zip(self._accounts, state["optimizers"], strict=False):
            account.load(saved, known)


def _put(account: Account) -> None:
    """Writes the effective rates into the param groups, and notes what they held."""
    groups = account.optimizer.param_groups
    bases = account.held.read(groups)
    wanted = account.wanted(bases)
    if wanted == bases:
        account.written = [Written(base, base, base) for base in bases]
        return
    written = []
    for settings, base, effective in zip(groups, bases, wanted, strict=True):
        found = settings["lr"]
        if effective != base:
            _own(settings, groups, len(set(wanted)) > 1)
            effective = _write(settings, effective)
        written.append(Written(base if isinstance(found, torch.Tensor) else found, base, effective))
    account.held.wrote(groups, [effective for _, _, effective in written])
    account.written = written


def _take_back(account: Account) -> None:
    """Gives the param groups what they held before `_put`; safe to call twice."""
    written, account.written = account.written, None
    if written is None or all(base == effective for _, base, effective in written):
        return
    groups = account.optimizer.param_groups
    now = account.held.read(groups)
    for group, ((found, base, effective), settings) in enumerate(zip(written, groups, strict=False)):
        # a rate that the optimizer itself changed is its own: leave it
        if effective != base and now[group] == effective:
            now[group] = _write(settings, found)
    account.held.wrote(groups, now)


def _renew(account: Account) -> None:
    """Within a step: writes the rates anew, for a factor or a trial that has just been set."""
    if account.written is not None:
        _take_back(account)
        _put(account)


def _own(settings: dict[str, Any], groups: list[dict[str, Any]], differ: bool) -> None:
    """Gives a param group its own tensor where several share one and now need different rates."""
    rate = settings["lr"]
    if differ and isinstance(rate, torch.Tensor) and sum(group["lr"] is rate for group in groups) > 1:
        settings["lr"] = rate.clone()


def _write(settings: dict[str, Any], rate: Any) -> float:
    """Writes the rate; returns what the param group holds then."""
    held = settings["lr"]
    if isinstance(held, torch.Tensor):
        held.fill_(rate)
        return rounded(rate, held)
    settings["lr"] = rate
    return float(rate)
