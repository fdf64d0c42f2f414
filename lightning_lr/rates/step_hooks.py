"""The hooks around an optimizer's step: when the effective rates are in place, and when the update counts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from lightning_lr.internals import skipped_on_device
from lightning_lr.rates.account import Account
from lightning_lr.rates.listener import Listener
from lightning_lr.rates.steps import hooked_steps, untraced


class StepHooks:
    """One optimizer's step, seen from its hooks.

    Of steps within steps (an optimizer's step that calls its parent's) only the outermost is an update.

    Args:
        index: the optimizer's, for the listener.
        account: what the ledger keeps for it.
        put: writes the effective rates into the param groups.
        take_back: gives the param groups the scheduler's rates again; safe to call twice.
        listener: hears of every update; see `Listener`.
        active: asked at each step; while it answers False nothing is written or counted.
        closure_gives_loss: whether a closure that returns None had no loss to give.

    Attributes:
        discarded: whether the step under way is to be skipped.
        evaluations: how often the step under way has called its closure.
    """

    def __init__(
        self,
        index: int,
        account: Account,
        put: Callable[[Account], None],
        take_back: Callable[[Account], None],
        listener: Listener,
        active: Callable[[], bool],
        *,
        closure_gives_loss: bool,
    ) -> None:
        self.discarded = False
        self.evaluations = 0
        self._index, self._account, self._listener = index, account, listener
        self._put, self._take_back = put, take_back
        self._active, self._closure_gives_loss = active, closure_gives_loss
        self._depth = 0
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Registers the hooks.

        Raises:
            ValueError: for an optimizer that is no `torch.optim.Optimizer`, and so has no hooks.
        """
        optimizer: Any = self._account.optimizer
        if not isinstance(optimizer, Optimizer):
            raise ValueError(
                f"rates can be changed only in a torch.optim.Optimizer, whose step has hooks, but optimizer "
                f"{self._index} is a {type(optimizer).__name__}: derive it from torch.optim.Optimizer"
            )
        self._handles += [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

    def detach(self) -> None:
        """Removes the hooks; safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def reset(self) -> None:
        """Takes the rates back, after an exception inside a step too."""
        self._depth = 0
        self._take_back(self._account)

    @untraced
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        if not self._active() or self._enter(optimizer) > 1:
            return None
        self._take_back(self._account)
        self.discarded, self.evaluations = False, 0
        self._account.adopt()
        self._listener.before_update(self._index)
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._listener.gradients_ready(self._index)
        self._put(self._account)
        if self.discarded:
            self._drop_gradients()
        if closure is None:
            return None
        # some optimizers read the rate before they call the closure, most after it; the user's code within the closure
        # (all of training_step, under automatic optimization) is to see the scheduler's rate
        wrapped = functools.partial(self._within, closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    @untraced
    def _within(self, closure: Callable[[], Any]) -> Any:
        self._take_back(self._account)
        self.evaluations += 1
        loss = closure()
        if loss is None and self._closure_gives_loss and not self._has_gradients():
            self.discarded = True  # training_step returned None
        if self._account.adopt():
            self._listener.before_update(self._index)
        self._listener.gradients_ready(self._index)
        if self.discarded:
            self._drop_gradients()
        self._put(self._account)
        return loss

    @untraced
    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        account = self._account
        if self._leave(optimizer) > 0:
            return
        written = account.written
        if written is None:
            return
        self._take_back(account)
        # a gradient scaler calls a fused optimizer even for an update that is then skipped on the device
        if self.discarded or skipped_on_device(account.optimizer):
            return
        if account.trial is None:
            account.count(written, self._index, self._listener)
        self._listener.after_update(self._index)

    def _enter(self, optimizer: Optimizer) -> int:
        """Counts a step that begins: 1 is the outermost."""
        depth = self._depth + 1
        if depth > 1:
            # torch calls no hook after a step that raised: the call stack has the steps that are still under way
            depth = hooked_steps(self._account.optimizer, optimizer) or depth
        self._depth = depth
        return depth

    def _leave(self, optimizer: Optimizer) -> int:
        """Counts a step that ends: 0 was the outermost."""
        depth = self._depth
        if depth > 1:
            depth = hooked_steps(self._account.optimizer, optimizer) or depth
        self._depth = max(0, depth - 1)
        return self._depth

    def _has_gradients(self) -> bool:
        groups = self._account.optimizer.param_groups
        return any(p.grad is not None for group in groups for p in group["params"])

    def _drop_gradients(self) -> None:
        # zeros would still move an optimizer that has momentum
        for group in self._account.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
