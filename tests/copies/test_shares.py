"""Copies that ranks divide: each keeps a part, and all get the whole back, bit for bit."""

from __future__ import annotations

import os
import re
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import lightning_lr as llr
from lightning_lr.callbacks.divergence import DivergenceError, DivergenceGuard
from lightning_lr.copies import shares
from lightning_lr.copies.shares import Shares
from lightning_lr.copies.snapshot import Snapshot
from lightning_lr.copies.source import Source
from tests.fresh import Python
from tests.pool import Pool
from tests.small import Loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")

CPU = torch.device("cpu")


def join() -> None:
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")


class Mixed(nn.Module):
    """Weights of two dtypes, one in another order in memory, one small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(64, 70)
        self.short = nn.Parameter(torch.randn(3001).to(torch.bfloat16))
        self.conv = nn.Conv2d(8, 20, 5).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(70)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        images = y[:, :50].reshape(len(y), 2, 5, 5).repeat(1, 4, 1, 1)
        return self.conv(images).square().mean() + self.short.float().square().mean() + y.square().mean()


def update(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    net(torch.randn(8, 64, generator=torch.Generator().manual_seed(seed))).backward()
    optimizer.step()


def everything(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for p in net.parameters() for value in optimizer.state[p].values()]
    return [t.detach().clone() for t in [*net.parameters(), *net.buffers(), *moments]]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def back_and_forth(first: bool) -> dict[str, Any]:
    join()
    net = Mixed()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    update(net, optimizer, 0)
    snapshot = Snapshot(Source([net], [optimizer]), Shares(CPU, divides=True, first=first))
    snapshot.take()
    then = everything(net, optimizer)
    update(net, optimizer, 1)
    now = everything(net, optimizer)
    snapshot.show()
    weights = len(list(net.parameters())) + len(list(net.buffers()))
    shown = everything(net, optimizer)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(float("nan"))
    snapshot.restore()
    restored = equal(everything(net, optimizer), then)
    optimizer.state.clear()
    snapshot.restore()
    return {
        "shown": equal(shown[:weights], then[:weights]) and equal(shown[weights:], now[weights:]),
        "restored": restored,
        "state made anew": equal(everything(net, optimizer), then),
        "bytes": snapshot.bytes,
        "all": sum(t.numel() * t.element_size() for t in then),
        "saved": len(snapshot.state_dict()["tensors"]),
    }


@pytest.mark.parametrize("chunk", [2**22, 999])
def test_four_ranks_keep_a_quarter_each_and_get_all_back_bit_for_bit(chunk: int, four: Pool) -> None:
    answers = four.run(with_chunk, chunk, False)
    for answer in answers:
        assert answer["shown"]
        assert answer["restored"]
        assert answer["state made anew"]
        # small tensors and buffers are kept whole
        assert answer["bytes"] < 0.25 * answer["all"] + 8000
    assert sum(answer["bytes"] for answer in answers) < 1.5 * answers[0]["all"]


def with_chunk(chunk: int, first: bool) -> dict[str, Any]:
    before, shares.CHUNK, shares.WORTH = (shares.CHUNK, shares.WORTH), chunk, 1024
    try:
        return back_and_forth(first)
    finally:
        shares.CHUNK, shares.WORTH = before


def test_the_first_rank_can_keep_all_of_it_for_checkpoints(pool: Pool) -> None:
    first, second = pool.run(with_chunk, 2**22, True)
    for answer in (first, second):
        assert answer["restored"]
        assert answer["shown"]
        assert answer["state made anew"]
    assert first["bytes"] == first["all"]
    assert second["bytes"] < 0.1 * second["all"]
    assert first["saved"] > second["saved"]


# fingerprints ------------------------------------------------------------------------------------------------------


def number(tensor: Tensor) -> float:
    return float(Shares(CPU).fingerprint({"parameter/0/w": tensor})[0])


DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.complex128]


def placed(data: Tensor, dtype: torch.dtype, offset: int) -> Tensor:
    """Some bytes as a tensor that begins so many elements into its storage."""
    whole = torch.zeros(len(data) + 16 * offset, dtype=torch.uint8).view(dtype)[offset:]
    tensor = whole[: len(data) // dtype.itemsize]
    tensor.view(torch.uint8).copy_(data)
    return tensor


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fingerprint_takes_next_to_no_memory(
    dtype: torch.dtype, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "CHUNK", 2**12)
    tensor = placed(torch.randint(0, 256, (2**20 + 48,), dtype=torch.uint8), dtype, offset)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        number(tensor)
    assert max(event.cpu_memory_usage for event in seen.events()) <= 4 * 2**12 + 4096


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fingerprint_sees_every_bit_and_not_where_the_bytes_lie(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    data = torch.randint(0, 256, (2**14 + 48,), dtype=torch.uint8)
    assert len({number(placed(data, dtype, offset)) for offset in (0, 1, 2, 3)}) == 1
    # within a word of eight bytes, in the middle, and at the end, where there is no whole one
    for place in (*range(8), 9001, *range(len(data) - 8, len(data))):
        for bit in range(8):
            other = data.clone()
            other[place] ^= 1 << bit
            assert number(placed(other, dtype, 0)) != number(placed(data, dtype, 0))


@pytest.mark.parametrize(
    "odd", [torch.ones(2000)[::2].expand(2, -1), torch.ones(1).expand(2000), torch.ones(2, 2048).t()]
)
def test_any_order_in_memory_has_a_fingerprint(odd: Tensor) -> None:
    assert number(odd) == number(odd.clone(memory_format=torch.preserve_format))


def test_a_fingerprint_sees_rows_that_have_changed_places() -> None:
    table = torch.randn(64, 64)
    assert number(table) != number(table.roll(8, 0))


# in a run ----------------------------------------------------------------------------------------------------------


class Wide(pl.LightningModule):
    """Weights worth dividing, into which something breaks on the last rank."""

    def __init__(self, breaks: dict[int, str] | None = None, ignored: bool = False, uneven: int = 0) -> None:
        super().__init__()
        rank = int(os.environ.get("RANK", "0"))
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
        self.breaks = breaks or {}
        self.own = nn.Linear(64, 40 + uneven * rank) if ignored else None
        if ignored:
            # DDP leaves it alone: each rank trains its own
            self._ddp_params_and_buffers_to_ignore = ["own.weight", "own.bias"]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        what = self.breaks.get(self.trainer.fit_loop.epoch_loop.total_batch_idx)
        if what == "weights" and self.global_rank == self.trainer.world_size - 1:
            with torch.no_grad():
                self.net[0].weight.mul_(float("nan"))
        images = batch[0]
        loss = nn.functional.cross_entropy(self.net(images), batch[1])
        if self.own is not None:
            loss = loss + (self.global_rank + 1.0) * self.own(images).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class Share(Loader):
    """Of 32 examples each of `ranks` ranks has its part."""

    def __init__(self, batches: int, ranks: int, rank: int) -> None:
        super().__init__(batches, 8)
        self.ranks, self.rank = ranks, rank

    def __iter__(self) -> Iterator[list[Tensor]]:
        part = 8 // self.ranks
        for images, labels in super().__iter__():
            yield [t[self.rank * part : (self.rank + 1) * part] for t in (images, labels)]


class Most(pl.Callback):
    """The most that this rank's copies took, in units of the weights."""

    def __init__(self, guard: DivergenceGuard) -> None:
        self.guard, self.most = guard, 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        weights = sum(p.numel() * p.element_size() for p in pl_module.parameters())
        assert self.guard.copy_pair is not None
        self.most = max(self.most, self.guard.copy_pair.bytes / weights)


def fit(
    root: str, breaks: dict[int, str], *, whole: bool = False, ignored: bool = False, resume: str = "", **settings: Any
) -> dict[str, Any]:
    before, shares.WORTH = shares.WORTH, 10**9 if whole else 1
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    guard = DivergenceGuard(snapshot_every=4, **settings)
    most, model, monitor = Most(guard), Wide(breaks, ignored), llr.LRMonitor()
    keep = ModelCheckpoint(root, "{step}", every_n_train_steps=20, save_top_k=-1)
    strategy = "ddp_find_unused_parameters_true" if ranks > 1 else "auto"
    made = trainer(
        root,
        callbacks=[guard, most, monitor, keep],
        max_epochs=1,
        devices=ranks,
        strategy=strategy,
        enable_checkpointing=True,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            made.fit(model, Share(32, ranks, made.global_rank), ckpt_path=resume or None)
        finally:
            shares.WORTH = before
    return {
        "weights": [p.detach().clone() for p in model.parameters()],
        "moments": [v for p in model.parameters() for v in made.optimizers[0].state[p].values()],
        "summary": guard.summary(),
        "most": most.most,
        "story": [re.sub("; copies took .*", "", line) for line in monitor.story],
        "told": [str(w.message) for w in caught if "DivergenceGuard" in str(w.message)],
        "freed": guard.copy_pair is not None and guard.copy_pair.bytes == 0,
    }


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_run_that_rewinds_from_divided_copies_is_the_one_with_whole_copies(
    ranks: int, pool: Pool, four: Pool, tmp_path: Path
) -> None:
    processes = pool if ranks == 2 else four
    divided = processes.run(fit_divided, str(tmp_path / "divided"), {26: "weights"}, False)
    whole = processes.run(fit_divided, str(tmp_path / "whole"), {26: "weights"}, True)
    for one, other in zip(divided, whole, strict=True):
        assert equal(one["weights"], other["weights"])
        assert equal(one["moments"], other["moments"])
        assert one["summary"] == other["summary"]
        assert one["story"] == other["story"]
        assert one["freed"]
        assert one["summary"]["rewinds"] == 1
        assert all(bool(w.isfinite().all()) for w in one["weights"])
        # buffers are whole
        assert one["most"] < other["most"] / ranks + 0.2


def fit_divided(root: str, breaks: dict[int, str], whole: bool) -> dict[str, Any]:
    return fit(root, breaks, whole=whole)


def fit_ignored(root: str) -> dict[str, Any]:
    return fit(root, {26: "weights"}, ignored=True)


def test_where_ranks_hold_different_weights_each_keeps_its_own_and_says_so(pool: Pool, tmp_path: Path) -> None:
    answers = pool.run(fit_ignored, str(tmp_path))
    for answer in answers:
        assert answer["summary"]["rewinds"] == 1
        assert all(bool(w.isfinite().all()) for w in answer["weights"])
        assert answer["most"] > 3.4
    assert len([line for line in answers[0]["told"] if "ranks don't hold the same" in line]) == 1
    own = [answer["weights"][-2] for answer in answers]
    assert not torch.equal(*own)


def fit_little(root: str, weights: float, uneven: int) -> Any:
    before, shares.WORTH, ranks = shares.WORTH, 1, int(os.environ["WORLD_SIZE"])
    model = Wide({26: "weights"}, ignored=True, uneven=uneven)
    own, size = model.own, sum(p.numel() * p.element_size() for p in model.parameters())
    assert own is not None
    with torch.no_grad():
        own.bias.add_(float(os.environ["RANK"]))
    guard = DivergenceGuard(memory_limit=int(weights * size) if not uneven else int(weights))
    ddp = "ddp_find_unused_parameters_true"
    made = trainer(
        Path(root), callbacks=[guard], max_epochs=1, devices=ranks, strategy=ddp, use_distributed_sampler=False
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            made.fit(model, Share(32, ranks, made.global_rank))
        except (DivergenceError, ValueError) as error:
            said = [str(w.message) for w in caught if "makes no copies" in str(w.message)]
            return type(error).__name__, str(error), said
        finally:
            shares.WORTH = before
    return guard.summary()


def test_whole_copies_that_have_no_room_are_done_without_in_words(four: Pool, tmp_path: Path) -> None:
    # a quarter of one fits twice
    answers = four.run(fit_little, str(tmp_path), 0.7, 0)
    for (kind, words, told), lines in zip(answers, (1, 0, 0, 0), strict=True):
        assert kind == "DivergenceError"
        assert "there is no copy" in words
        assert len(told) == lines


def test_ranks_with_unequal_copies_find_the_same_too_little(pool: Pool, tmp_path: Path) -> None:
    # two copies of the first rank's, and not of the second's
    first, second = pool.run(fit_little, str(tmp_path), 40_000.0, 400)
    assert first == second
    assert first[0] == "ValueError"
    assert "must hold two copies" in first[1]


def fit_saved(root: str, breaks: dict[int, str], resume: str) -> dict[str, Any]:
    return fit(root, breaks, resume=resume, save_snapshots=True)


@pytest.mark.parametrize(("ranks", "then"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_another_number_of_ranks_goes_on_from_the_checkpoints_copies(
    ranks: int, then: int, pool: Pool, four: Pool, tmp_path: Path
) -> None:
    def run(ranks: int, *args: Any) -> list[dict[str, Any]]:
        return [fit_saved(*args)] if ranks == 1 else {2: pool, 4: four}[ranks].run(fit_saved, *args)

    run(ranks, str(tmp_path / "first"), {}, "")
    saved = str(tmp_path / "first" / "step=20.ckpt")
    (kept,) = [v for k, v in torch.load(saved, weights_only=True)["callbacks"].items() if "DivergenceGuard" in k]
    assert len(kept["own"]["generations"]["kept"]) == 2
    # broken before another copy is taken: what comes back is the checkpoint's
    answers = run(then, str(tmp_path / "then"), {21: "weights"}, saved)
    for answer in answers:
        assert answer["summary"]["rewinds"] == 1
        assert all(bool(w.isfinite().all()) for w in answer["weights"])
        assert equal(answer["weights"], answers[0]["weights"])


# a rank that is lost -------------------------------------------------------------------------------------------------


def fit_lost(root: str) -> None:
    """The second rank is lost in the middle of a rewind from divided copies."""
    real = torch.distributed.broadcast

    def broadcast(tensor: Tensor, src: int) -> Any:
        if torch.distributed.get_rank() == 1 and src == 1:
            os._exit(7)
        return real(tensor, src)

    torch.distributed.broadcast = broadcast
    fit(root, {26: "weights"})


def test_a_rank_lost_in_the_middle_of_a_rewind_ends_the_run_and_nobody_waits_for_it(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [
        Python(
            *("-c", f"from tests.copies.test_shares import fit_lost; fit_lost({str(tmp_path)!r})"),
            environment={
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_RANK": "0"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": "2"},
                **{"TORCHELASTIC_RUN_ID": "tests"},
            },
        )
        for rank in range(2)
    ]
    first, second = (process.ended() for process in processes)
    assert second.returncode == 7, second.stderr
    assert first.returncode == 1, first.stderr
    assert "RuntimeError" in first.stderr
