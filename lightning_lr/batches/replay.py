"""Replay: the training loop gets batches again that were kept, in place of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lightning_lr.batches.batch import HOST, KeptBatch, UnkeepableError, add, contents
from lightning_lr.batches.plain import NotPlainError, from_plain, to_plain
from lightning_lr.copies import footprint
from lightning_lr.copies import host_memory as host
from lightning_lr.internals import loop_wants_batch, step_fetches_itself
from lightning_lr.signals.measure import measure

ROOM = 2**30
"""Kept batches take no more bytes than this on any one device, the host among them."""

SHARE = 8
"""Nor do they take more than this part (one eighth) of what is free there; ranks of one host share it."""

PATCHED = "convert_input"
"""The method of the precision plugin to which Lightning's loops give every batch, before anything else."""


class Replay:
    """Keeps batches of the run, and gives them to Lightning's loop again in place of its own.

    The loop takes its own batch from the data loader as always, so that samplers, counts and progress are what they
    are without this. In the very first thing that it does with the batch (the precision plugin's `convert_input`) a
    kept one takes its place, as the loader gave it. All that follows is done to it as to any other batch: precision,
    hooks, augmentation, the way to the device, the training step.

    A request holds for one batch; make it at the end of a batch, or before the first one. A batch of None, which
    Lightning skips, is not kept, and the next one is. Batches of validation are left alone.

    All ranks keep batches or none does: one small collective for each batch that is to be kept, none for one that is
    played. Every rank must ask for the same.

    Args:
        trainer: whose loop.
        room: bytes that kept batches may take, on the host and on each other device; less where less is free.
        saved: what `state_dict` gave.
        told: called with the number of a batch that has just been kept, or is about to be played, before anything is
            done to it.
    """

    def __init__(
        self,
        trainer: Any,
        *,
        room: int | None = None,
        saved: dict[str, Any] | None = None,
        told: Callable[[int], None] | None = None,
    ) -> None:
        self._trainer, self._told = trainer, told
        self._room = ROOM if room is None else room
        self._limits: dict[torch.device, float] = {}
        self._kept: list[KeptBatch] = []
        self._taken: dict[torch.device, int] = {}
        self._largest: dict[torch.device, int] = {}
        self._keeping = False
        self._playing: int | None = None
        self._give_back: Callable[[], None] | None = None
        self.full = False
        self.failed: str | None = None
        self.lost: str | None = None
        """Why a kept batch could not be played, on this rank alone."""
        self.placed: int | None = None
        if saved is not None:
            self._load(saved)

    @property
    def count(self) -> int:
        """How many batches are kept; they are numbered from 0."""
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """What the kept batches take, on all devices."""
        return sum(self._taken.values())

    def begin(self) -> None:
        """Patches the method through which batches are exchanged."""
        if self._give_back is not None:
            return
        plugin = self._trainer.precision_plugin
        own, theirs = vars(plugin), getattr(plugin, PATCHED)
        before = {PATCHED: own[PATCHED]} if PATCHED in own else {}

        def convert(data: Any) -> Any:
            return theirs(self._exchanged(data))

        def give_back() -> None:
            # whoever has patched it since calls this one, which then exchanges nothing
            if own.get(PATCHED) is convert:
                del own[PATCHED]
                own.update(before)

        setattr(plugin, PATCHED, convert)
        self._give_back = give_back
        self._see_fetcher()

    def close(self) -> None:
        """Takes the patch back, and lets go of all batches; safe to call twice, and wherever something raised."""
        self.pass_next()
        self._kept, self._taken, self._largest = [], {}, {}
        if self._give_back is not None:
            self._give_back()
            self._give_back = None

    def keep_next(self) -> None:
        """The loop's next batch is its own, and is kept as number `count` if it can be: then it is `placed` there."""
        self.pass_next()
        self._see_fetcher()
        self._keeping = self.failed is None

    def play_next(self, index: int) -> None:
        """The loop's next batch is a fresh copy of the kept one of this number, from 0.

        Raises:
            IndexError: when there is none of this number.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"index must be in [0, {self.count}), the batches kept so far, got {index}")
        self.pass_next()
        self._playing = index

    def pass_next(self) -> None:
        """The loop's next batch is its own, and is not kept, as if nothing had been asked for."""
        self._keeping, self._playing, self.placed = False, None, None

    def state_dict(self) -> dict[str, Any] | None:
        """The kept batches in host memory, without the request for the next one; those on the host are not copied.

        None where a checkpoint can't have them: of several ranks it holds what rank zero says, and only plain ones
        (dicts, lists and tuples of tensors, arrays, strings and numbers) are read with `weights_only=True`.
        """
        if self._trainer.world_size > 1:
            return None
        try:
            batches = [to_plain(kept.batch) for kept in self._kept]
        except NotPlainError:
            return None
        return {"batches": batches, "full": self.full, "failed": self.failed}

    def _load(self, saved: dict[str, Any]) -> None:
        for said in saved["batches"]:
            batch = from_plain(said, self._trainer.strategy.root_device)
            found = contents(batch)
            self._add(KeptBatch(batch, found.tensors), found.bytes)
        self.full, self.failed = saved["full"], saved["failed"]

    def _see_fetcher(self) -> None:
        if self.failed is None and step_fetches_itself(self._trainer):
            self.failed = "training_step takes a dataloader_iter, and fetches its batches itself"

    def _exchanged(self, own: Any) -> Any:
        if self._give_back is None or not loop_wants_batch(self._trainer):
            return own
        self.placed = None
        index, self._playing = self._playing, None
        if index is not None:
            return self._played(index, own)
        if self._keeping:
            self._keep(own)
        return own

    def _played(self, index: int, own: Any) -> Any:
        try:
            batch = self._kept[index].fresh()
        except Exception as error:
            # the others learn of it when the caller next compares notes: until then this one keeps batches as they do
            self.lost = f"a kept batch could not be copied: {_words(error)}"
            if self._trainer.world_size == 1:
                self.failed = self.lost
            return own
        self._place(index)
        return batch

    def _place(self, index: int) -> None:
        self.placed = index
        if self._told is not None:
            self._told(index)

    def _keep(self, own: Any) -> None:
        kept, size, why = None, {}, None
        try:
            if own is not None:
                found = contents(own)
                size = found.bytes
                kept = KeptBatch(own, found.tensors) if self._fits(size) else None
        except Exception as error:
            why = _words(error)
        over = own is not None and kept is None and why is None
        full = over or (kept is not None and not self._fits(size, self._largest, size))
        absent, failing, overs, fulls = self._together(own is None, why is not None, over, full)
        if failing:
            self.failed, self._keeping = self._reason(why), False
            return
        self.full = self.full or fulls
        self._keeping = absent and not overs
        if kept is not None and not absent and not overs:
            self._add(kept, size)
            self._place(self.count - 1)

    def _add(self, kept: KeptBatch, size: dict[torch.device, int]) -> None:
        self._kept.append(kept)
        for device, more in size.items():
            add(self._taken, device, more)
            self._largest[device] = max(self._largest.get(device, 0), more)

    def _fits(self, size: dict[torch.device, int], *others: dict[torch.device, int]) -> bool:
        """Whether a batch fits beside the kept ones, and the largest of `others` beside both."""
        for device in {*size, *(device for other in others for device in other)}:
            more = size.get(device, 0) + max((other.get(device, 0) for other in others), default=0)
            if self._taken.get(device, 0) + more > self._limit(device):
                return False
        return True

    def _limit(self, device: torch.device) -> float:
        """The bytes that kept batches may take on a device, set by what is free when the first one is seen there."""
        if device not in self._limits:
            on_host = device == HOST
            free = host.free_memory() / self._trainer.num_devices if on_host else footprint.free_on_device(device)
            self._limits[device] = min(self._room, max(free, 0.0) / SHARE)
        return self._limits[device]

    def _together(self, *flags: bool) -> list[bool]:
        """Whether a flag is set on any rank."""
        if self._trainer.world_size == 1:
            return list(flags)
        numbers = [torch.tensor(float(flag)) for flag in flags]
        found = measure(None, [], None, numbers, device=self._trainer.strategy.root_device)
        return [number > 0.0 for number in found.more]

    def _reason(self, why: str | None) -> str:
        """The first rank's words; every rank comes here, once."""
        if self._trainer.world_size == 1:
            return why or ""
        reasons: list[Any] = [None] * self._trainer.world_size
        torch.distributed.all_gather_object(reasons, why)
        rank, first = next((rank, reason) for rank, reason in enumerate(reasons) if reason is not None)
        return f"{first} (rank {rank})"


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, UnkeepableError) else f"{type(error).__name__}: {error}"
