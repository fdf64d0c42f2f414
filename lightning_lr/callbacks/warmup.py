"""`Warmup`: the learning rate of every param group rises over the group's first updates."""

from __future__ import annotations

from typing import Any, Literal

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_lr.arguments import one_length
from lightning_lr.callbacks.base import LRCallback
from lightning_lr.policies.warmup import WarmupPolicy, untuned_steps
from lightning_lr.run.length import updates_in_epochs, updates_in_run

Shape = Literal["linear", "cosine", "exponential", "constant"]


class Warmup(LRCallback):
    """Multiplies each param group's learning rate by a factor that rises to 1 over the group's first optimizer steps.

    It works with any scheduler, `ReduceLROnPlateau` included, and without one. It counts real updates: under gradient
    accumulation several batches are one update, and an update that a gradient scaler skipped does not count. A param
    group that is added later (when layers are unfrozen, say) warms up from its own first update.

    Give exactly one of `steps`, `epochs` and `fraction`.

    Args:
        steps: the length in updates, >= 1; or `"auto"`, for Adam-type optimizers: 2 / (1 - beta2) of each group.
        epochs: the length in epochs, > 0; may be fractional.
        fraction: the length as a share of the run, in (0, 1].
        shape: `linear`, `cosine`, `exponential` (five time constants) or `constant` (`start_factor` until the last
            update of the warm-up).
        start_factor: the factor from which it rises, in [0, 1); above 0 with `shape="constant"`.
        name: the name under which the factor is kept and shown; by default the class's own. A second `Warmup` in the
            same trainer needs another: `Warmup(50, name="Other")`.

    Raises:
        ValueError: at construction, for a value outside its bounds; at the start of `fit`, if the length can't be
            determined (a dataloader without a length, an optimizer without beta2).

    Source: Goyal et al. 2017, "Accurate, large minibatch SGD"; Ma & Yarats 2021 for `"auto"`.

    Example:
        >>> from lightning_lr import Warmup
        >>> Warmup(fraction=0.05, shape="cosine").name
        'Warmup'
        >>> Warmup(steps=100, epochs=1)
        Traceback (most recent call last):
        ValueError: give exactly one of steps, epochs and fraction, got steps=100, epochs=1
    """

    temporary = True

    def __init__(
        self,
        steps: int | Literal["auto"] | None = None,
        *,
        epochs: float | None = None,
        fraction: float | None = None,
        shape: Shape = "linear",
        start_factor: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.keep_arguments(locals())
        one_length(steps, epochs, fraction, "for no warm-up, leave Warmup out")
        if isinstance(steps, str) and steps != "auto":
            raise ValueError(f"steps must be a whole number >= 1 or 'auto', got {steps!r}")
        self.steps, self.epochs, self.fraction = steps, epochs, fraction
        self.shape, self.start_factor = shape, start_factor
        self._policy(1 if steps is None or steps == "auto" else steps)
        self.reset()

    @property
    def settling(self) -> bool:
        return any(
            self._warming(optimizer)
            for optimizer in range(len(self._policies))
            # an optimizer that has made no update yet is not warming up (a generator that joins late, say)
            if self.ledger.updates(optimizer) > 0
        )

    def restart(self) -> None:
        """Warms up again from the next update on, for example after a rewind."""
        self._restarted = [self.ledger.updates(optimizer) for optimizer in range(len(self._policies))]
        self._done = [0] * len(self._policies)

    def reset(self) -> None:
        self._policies: list[list[WarmupPolicy]] = []
        self._restarted: list[int] = []
        self._done: list[int] = []
        self._length: int | None = None

    def started(self, trainer: Any, pl_module: Any) -> None:
        optimizers = self.ledger.optimizers
        updates = [self.ledger.updates(optimizer) for optimizer in range(len(optimizers))]
        if len(self._policies) != len(optimizers):
            self._policies = [[] for _ in optimizers]
            # if the resumed run was saved without this callback, its updates were no warm-up
            self._restarted = updates
            self._length = self._given_length(trainer, 0)
        elif self.changed.keys() & {"steps", "epochs", "fraction"}:
            self._policies = [[] for _ in optimizers]
            self._length = self._given_length(trainer, max(updates, default=0))
        self._done = [0] * len(optimizers)
        for index in range(len(optimizers)):
            self._extend(index)
        left = max(
            (
                policy.steps - self._age(i, g)
                for i, policies in enumerate(self._policies)
                for g, policy in enumerate(policies[: self.ledger.groups(i)])
            ),
            default=0,
        )
        run = updates_in_run(trainer, None)
        if run is not None and left > run:
            rank_zero_warn(
                f"{self.name} has {left} updates to go and the run has {run:.0f}: the rate never reaches its full "
                f"height; {self.written(fraction=0.1)} warms up over a tenth of the run"
            )

    def before_update(self, optimizer: int) -> None:
        groups = self.ledger.groups(optimizer)
        if self._done[optimizer] == groups:
            return
        self._extend(optimizer)
        done = 0
        for group, policy in enumerate(self._policies[optimizer][:groups]):
            age = self._age(optimizer, group)
            factor = policy.factor(age)
            if factor != self.ledger.factor(self.name, optimizer, group):
                self.ledger.set_factor(
                    self.name,
                    factor,
                    f"{policy.shape}, update {age + 1} of {policy.steps}",
                    optimizer=optimizer,
                    group=group,
                )
            done += age >= policy.steps
        self._done[optimizer] = done

    def own_state(self) -> dict[str, Any]:
        """The lengths, which a resumed run of another length can't compute again."""
        return {
            "length": self._length,
            "steps": [[policy.steps for policy in policies] for policies in self._policies],
            "restarted": list(self._restarted),
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        self._policies = [[self._policy(steps) for steps in lengths] for lengths in state["steps"]]
        self._restarted, self._length = list(state["restarted"]), state["length"]

    def _policy(self, steps: int) -> WarmupPolicy:
        return WarmupPolicy(steps, self.shape, self.start_factor)

    def _warming(self, optimizer: int) -> bool:
        policies, groups = self._policies[optimizer], self.ledger.groups(optimizer)
        return len(policies) < groups or any(
            self._age(optimizer, group) < policy.steps for group, policy in enumerate(policies[:groups])
        )

    def _age(self, optimizer: int, group: int) -> int:
        return min(self.ledger.age(optimizer, group), self.ledger.updates(optimizer) - self._restarted[optimizer])

    def _extend(self, optimizer: int) -> None:
        """Gives every param group that has no length yet a length of its own."""
        policies, groups = self._policies[optimizer], self.ledger.optimizers[optimizer].param_groups
        for group in groups[len(policies) :]:
            policies.append(self._policy(self._length or self._auto_length(group)))

    def _given_length(self, trainer: Any, made: int) -> int | None:
        """The length in updates; None for `"auto"`, which each group has its own for.

        Args:
            trainer: within `fit`.
            made: the updates that the run has made already.
        """
        instead = f"count updates instead, as in {self.written(steps=100)}"
        if self.epochs is not None:
            length = updates_in_epochs(trainer, self.epochs, self.written(epochs=self.epochs), instead)
        elif self.fraction is not None:
            asking = self.written(fraction=self.fraction)
            length = self.fraction * (made + updates_in_run(trainer, asking, instead))
        else:
            return self.steps if isinstance(self.steps, int) else None
        return max(1, round(length))

    def _auto_length(self, group: dict[str, Any]) -> int:
        betas = group.get("betas")
        if not isinstance(betas, (tuple, list)) or len(betas) < 2:
            raise ValueError(
                f"{self.written(steps='auto')} needs an Adam-type optimizer, whose param groups have betas: "
                f"give a number of steps, epochs, or a share of the run, as in {self.written(fraction=0.05)}"
            )
        return untuned_steps(float(betas[1]))
