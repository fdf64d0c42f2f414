"""The names under which rates are shown: those of Lightning's `LearningRateMonitor`."""

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
        optimizer: the optimizer's, such as `AdamW`, `Adam-1`, or its scheduler's `name`.
        group: the group's `name` (numbered where it is not the only one of that name), or `pg1`, `pg2`, ...; empty for
            an optimizer's only one if it has no `name`.
        tag: the scalar's, such as `lr-AdamW`, `lr-AdamW/pg1`.
    """

    optimizer: str
    group: str
    tag: str

    @property
    def where(self) -> str:
        """Both names, as lines have them."""
        return f"{self.optimizer}/{self.group}" if self.group else self.optimizer

    @property
    def facts(self) -> dict[str, str]:
        """All of them, as records have them."""
        return {"tag": self.tag, "optimizer": self.optimizer, "group": self.group}


def group_names(optimizers: Sequence[Optimizer], scheduler_configs: Sequence[Any]) -> list[list[GroupName]]:
    """Names every param group, by the rules of `LearningRateMonitor`.

    Optimizers that have a scheduler are named first, in the schedulers' order, then the others; a second optimizer of
    a type gets `-1`, a third `-2`. A scheduler's `name` replaces the optimizer's. Groups are told apart by their
    `name`, or else as `pg1`, `pg2`, when there are several; of those with one `name` the second gets `-1`, and so on.

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
    # in their order, so that a group that comes later renames none
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
