"""The names under which rates are shown, as Lightning's `LearningRateMonitor` makes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer


@dataclass(frozen=True)
class GroupName:
    """The names of one param group.

    Args:
        optimizer: the optimizer's name, such as `AdamW` or `Adam-1`, or its scheduler's `name`.
        group: the param group's `name` (numbered if others have the same), or `pg1`, `pg2`, ...; empty for an
            optimizer's only param group if it has no `name`.
        tag: the scalar's tag, such as `lr-AdamW` or `lr-AdamW/pg1`.
    """

    optimizer: str
    group: str
    tag: str

    @property
    def where(self) -> str:
        """Optimizer and param group, as lines of text name them."""
        return f"{self.optimizer}/{self.group}" if self.group else self.optimizer

    @property
    def facts(self) -> dict[str, str]:
        """All names, as records hold them."""
        return {"tag": self.tag, "optimizer": self.optimizer, "group": self.group}


def group_names(optimizers: Sequence[Optimizer], scheduler_configs: Sequence[Any]) -> list[list[GroupName]]:
    """Names every param group, by the rules of `LearningRateMonitor`.

    Optimizers that have a scheduler are named first, in the schedulers' order, then the others. A second optimizer of
    one type gets `-1`, a third `-2`. A scheduler's `name` replaces the optimizer's. Several param groups are told apart
    by their `name`, or else as `pg1`, `pg2`; where a `name` repeats, the second one gets `-1`, and so on.

    Args:
        optimizers: in the trainer's order.
        scheduler_configs: the trainer's `lr_scheduler_configs`.

    Returns:
        One list for each optimizer, one entry for each param group.
    """
    tags: dict[int, str] = {}
    seen: defaultdict[type, int] = defaultdict(int)
    named = [(config.scheduler.optimizer, config.name) for config in scheduler_configs]
    scheduled = {id(optimizer) for optimizer, _ in named}
    for optimizer, name in [*named, *((o, None) for o in optimizers if id(o) not in scheduled)]:
        kind = type(optimizer)
        tag = name if name is not None else f"lr-{kind.__name__}"
        if name is None:
            seen[kind] += 1
        if seen.get(kind, 0) > 1:
            tag += f"-{seen[kind] - 1}"
        tags.setdefault(id(optimizer), tag)
    return [_names(optimizer, tags[id(optimizer)]) for optimizer in optimizers]


def _names(optimizer: Optimizer, tag: str) -> list[GroupName]:
    groups = optimizer.param_groups
    # in their order, so that a param group that is added later renames no other
    labels: list[str] = []
    for i, group in enumerate(groups, start=1):
        label = name = str(group.get("name", f"pg{i}"))
        number = 0
        while label in labels:
            number += 1
            label = f"{name}-{number}"
        labels.append(label)
    several = len(groups) > 1
    return [
        GroupName(tag.removeprefix("lr-"), label, f"{tag}/{label}")
        if several or "name" in group
        else GroupName(tag.removeprefix("lr-"), "", tag)
        for group, label in zip(groups, labels, strict=True)
    ]
