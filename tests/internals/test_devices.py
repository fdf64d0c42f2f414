"""All that goes over a rank's devices goes over the right one: a spy in place of accelerators and NCCL."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import lightning_lr as llr
from tests.faulty import Faulty, adamw
from tests.pool import Pool
from tests.small import Loader, held_out, pl, trainer
from tests.spy import OWN, Spy, spying
from tests.witness import Saves

BATCHES = 12
FAULTS = {40: "nan", **dict.fromkeys(range(60, 63), "nanloss"), 100: "weight"}
"""A dropped update, a trial, and weights that come back from a copy."""


class Shards(Faulty):
    """The same, its parameters DTensors."""

    def configure_model(self) -> None:
        if any(hasattr(p, "placements") for p in self.parameters()):
            return
        from torch.distributed.fsdp import fully_shard

        for part in (self.backbone, self.head, self.norm):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])  # pyright: ignore

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.fault == "weight":
            with torch.no_grad():
                self.head.weight.to_local().fill_(float("nan"))  # pyright: ignore
            loss = nn.functional.cross_entropy(self(self.norm(batch[0])), batch[1])
        else:
            loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss


class Whole(Faulty):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("train_loss", loss)
        return loss


class Listens(pl.Callback):
    """Lets the spy in before the first collective, and out at the end."""

    def __init__(self, spy: Spy) -> None:
        self.spy, self.inside = spy, contextlib.ExitStack()

    def on_fit_start(self, *_: Any) -> None:
        self.inside.enter_context(self.spy)

    def on_train_end(self, *_: Any) -> None:
        self.inside.close()

    def on_exception(self, *_: Any) -> None:
        self.inside.close()


def fit(root: str, sharded: bool, faults: dict[int, str], lag: int, resume: bool, **guarding: Any) -> dict[str, Any]:
    finder = llr.LRFinder(at=4, steps=20, min_lr=1e-4)
    plateaus = [llr.PlateauDecay("val_loss", patience=0), llr.PlateauDecay("train_loss", patience=9, name="Steps")]
    guard = llr.DivergenceGuard(snapshot_every=10, lag=lag, **guarding)  # pyright: ignore[reportArgumentType]
    model = (Shards if sharded else Whole)(adamw, faults, rank=1)
    strategy = pl.strategies.ModelParallelStrategy(2, 1) if sharded else "ddp"
    parallel = mock.patch.object(pl.accelerators.CPUAccelerator, "get_parallel_devices", return_value=[OWN] * 2)
    with parallel, spying() as spy:
        callbacks = [Listens(spy), finder, llr.Warmup(6), *plateaus, guard, Saves(Path(root) / "mid.ckpt", 64)]
        made = trainer(root, callbacks=callbacks, max_epochs=10, devices=2, strategy=strategy)
        assert made.strategy.root_device.index == 0
        data = Loader(BATCHES, 16, offset=16 * made.global_rank)
        with contextlib.suppress(llr.DivergenceError):
            made.fit(model, data, held_out(), ckpt_path=f"{root}/mid.ckpt" if resume else None)
    return {
        "wrong": sorted(set(spy.wrong)),
        "collectives": spy.collectives,
        "found": len(finder.findings),
        "decays": [plateau.state.decays for plateau in plateaus],
        "counts": guard.summary(),
    }


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("sharded", [False, True], ids=["DDP", "FSDP2"])
def test_every_collective_is_on_the_ranks_own_device(
    sharded: bool, lag: int, pool: Pool, long: bool, tmp_path: Path
) -> None:
    if sharded != bool(lag) and not long:
        pytest.skip("the long form: pytest --long")
    for faults, guarding in ((FAULTS, {}), (dict.fromkeys(range(30, 1000), "weight"), {"max_rewinds": 1})):
        for resume in (False, True) if not guarding else (False,):
            args = (str(tmp_path), sharded, faults, lag, resume)
            first, second = pool.run(_fit, args, guarding)
            assert first == second
            assert first["wrong"] == [], first["wrong"]
            assert first["collectives"] > 100 - 60 * resume - 60 * bool(guarding)
            counts = first["counts"]
            if not guarding:
                assert first["found"] == 1
                assert first["decays"][1] >= 1
                assert counts["rewinds"] >= 1
                assert counts["dropped"] >= 1 or counts["held"] >= 1
                assert counts["held"] >= 1 or resume


def _fit(args: tuple[Any, ...], guarding: dict[str, Any]) -> dict[str, Any]:
    return fit(*args, **guarding)
