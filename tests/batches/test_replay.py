"""Kept batches in the place of the loop's own: what the training step gets, and what the run notices of it: nothing."""

from __future__ import annotations

import copy
import gc
import io
import threading
import weakref
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, IterableDataset

from lightning_lr.batches import replay as module
from lightning_lr.batches.batch import HOST, KeptBatch, UnkeepableError, contents
from lightning_lr.batches.plain import from_plain, to_plain
from lightning_lr.batches.replay import Replay
from lightning_lr.copies import host_memory as host
from tests.pool import Pool
from tests.small import Sharded, pl, sgd, trainer

OWN, KEEP = "own", "keep"
SCRIPT: tuple[Any, ...] = (OWN, KEEP, KEEP, 0, 1, 0, OWN)
SEEN = [0, 1, 2, 1, 2, 1, 6]
"""The numbers of the batches that the training step gets under that script, when the loader counts from 0."""

Named = namedtuple("Named", "x label")


@dataclass
class Data:
    x: Tensor
    label: str


@dataclass(frozen=True)
class Frozen:
    x: Tensor


class Encoding(UserDict[str, Any]):
    """As the batches of transformers."""

    def __init__(self, data: Any = None, extra: Any = None) -> None:
        super().__init__(data)
        self.extra = extra

    def to(self, device: Any, **_: Any) -> Encoding:
        self.data = {key: value.to(device) for key, value in self.data.items()}
        return self


class Graph:
    """As the batches of torch_geometric."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.index = x, {"edges": torch.arange(4)}

    def to(self, device: Any, **_: Any) -> Graph:
        self.x = self.x.to(device)
        return self


class Slots:
    __slots__ = ("x",)

    def __init__(self, x: Tensor) -> None:
        self.x = x


def rows(number: int, size: int = 2) -> Tensor:
    return torch.full((size, 3), float(number)) + torch.arange(3) / 10.0


KINDS: dict[str, Callable[[int], Any]] = {
    "tensor": rows,
    "list": lambda n: [rows(n), torch.tensor(n)],
    "tuple": lambda n: (rows(n), n, None, "name"),
    "dict": lambda n: {"x": rows(n), "id": [f"{n}"]},
    "ordered": lambda n: OrderedDict(x=rows(n)),
    "default": lambda n: defaultdict(list, x=rows(n)),
    "named": lambda n: Named(rows(n), "a"),
    "dataclass": lambda n: Data(rows(n), "a"),
    "nested": lambda n: {"views": [(rows(n), {"x": rows(n)}), Named([rows(n)], 1)], "more": Data(rows(n), "b")},
    "mapping": lambda n: Encoding({"x": rows(n)}, extra=[1]),
    "graph": lambda n: Graph(rows(n)),
    "slots": lambda n: Slots(rows(n)),
    "array": lambda n: [rows(n), np.arange(3) + n, np.array([{"a": n}, None])],
    "packed": lambda n: pack_sequence([rows(n)[0], rows(n)[0, :2]]),
    "expanded": lambda n: torch.tensor([float(n)]).expand(2, 3),
    "strided": lambda n: torch.arange(24.0).reshape(4, 6)[::2, ::2] + n,
    "twice": lambda n: [t := rows(n), t],
    "function": lambda n: [rows(n), rows],
    "sparse": lambda n: [rows(n), torch.eye(3).to_sparse() * n],
    "half": lambda n: [rows(n), rows(n).to(torch.bfloat16), rows(n) > 1.0, rows(n).to(torch.complex64)],
}


def tensors(value: Any) -> list[Tensor]:
    """All that one finds in a batch of these kinds, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, np.ndarray):
        return [] if value.dtype.hasobject else [torch.from_numpy(value)]
    if isinstance(value, (dict, UserDict)):
        return [t for item in value.values() for t in tensors(item)]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in tensors(item)]
    if isinstance(value, (Data, Frozen, Graph)):
        return [t for item in vars(value).values() for t in tensors(item)]
    return tensors(value.x) if isinstance(value, Slots) else []


def bits(value: Any) -> list[Any]:
    return [(t.dtype, tuple(t.shape), t.to_dense().tolist()) for t in tensors(value)]


class Numbered:
    """Batches with their numbers on them, counted through all epochs."""

    def __init__(self, make: Callable[[int], Any] = rows, length: int = 7) -> None:
        self.make, self.length, self.given = make, length, 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.length):
            self.given += 1
            yield self.make(self.given - 1)


class Net(pl.LightningModule):
    """Keeps what its training step gets; `spoils` writes into each batch wherever somebody may."""

    def __init__(self, *, manual: bool = False, spoils: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.automatic_optimization, self.spoils = nn.Linear(3, 1), not manual, spoils
        self.seen: list[Any] = []
        self.indices: list[int] = []
        self.validated: list[Any] = []

    @property
    def numbers(self) -> list[int]:
        return [int(tensors(batch)[0].flatten()[0]) for batch in self.seen]

    def spoil(self, batch: Any) -> Any:
        if self.spoils and not self.trainer.validating:
            for tensor in tensors(batch):
                if not tensor.is_sparse and tensor.dtype != torch.bool and 0 not in tensor.stride():
                    tensor.mul_(2).add_(1)
        return batch

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.spoil(batch)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return self.spoil(batch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.spoil(batch)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(copy.deepcopy(batch))
        self.indices.append(batch_idx)
        first = next((t for t in tensors(batch) if t.shape[-1:] == (3,)), torch.ones(3))
        loss = self.net(first.to(self.net.weight.dtype, copy=True)).square().mean()
        self.spoil(batch)
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(batch.clone())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9)


class Player(pl.Callback):
    """Asks for what a script says, batch by batch, and for own batches after its end."""

    def __init__(self, script: tuple[Any, ...] = SCRIPT, **how: Any) -> None:
        self.script, self.how, self.at = script, how, 0
        self.placed: list[int | None] = []
        self.history: list[tuple[int, bool, bool]] = []
        self.replay: Any = None
        self.saved: Any = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.plugin, self.loop = trainer.precision_plugin, trainer.fit_loop
        self.replay = Replay(trainer, **self.how)
        self.replay.begin()
        self.ask()

    def ask(self) -> None:
        order = self.script[self.at] if self.at < len(self.script) else OWN
        if order == KEEP:
            self.replay.keep_next()
        elif order == OWN or order >= self.replay.count:
            self.replay.pass_next()
        else:
            self.replay.play_next(order)

    def on_train_batch_start(self, *_: Any) -> None:
        self.placed.append(self.replay.placed)

    def on_train_batch_end(self, *_: Any) -> None:
        self.at += 1
        self.history.append((self.replay.count, self.replay.full, self.replay.failed is not None))
        self.ask()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.saved = self.replay.state_dict()
        self.count = self.replay.count
        self.replay.close()

    def on_exception(self, *_: Any) -> None:
        self.replay.close()


def play(root: Path, loader: Any, model: Any = None, script: tuple[Any, ...] = SCRIPT, **kwargs: Any) -> Any:
    how = {name: kwargs.pop(name) for name in ("room", "saved") if name in kwargs}
    player, model = Player(script, **how), model or Net()
    validation = kwargs.pop("validation", None)
    run = trainer(root, callbacks=[player], **{"max_epochs": 1, **kwargs})
    run.fit(model, loader, validation)
    assert "convert_input" not in vars(run.precision_plugin)
    return run, model, player


# what the training step gets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_play_is_the_batch_bit_for_bit_whoever_writes_to_it(kind: str, tmp_path: Path) -> None:
    _, model, player = play(tmp_path, Numbered(KINDS[kind]), Net(spoils=kind != "expanded"))
    assert player.placed == [None, 0, 1, 0, 1, 0, None]
    assert player.replay.failed is None
    first, second = model.seen[1], model.seen[2]
    assert bits(first) != bits(second)
    assert [bits(batch) for batch in model.seen[3:6]] == [bits(first), bits(second), bits(first)]
    assert {type(batch) for batch in model.seen} == {type(first)}
    assert bits(model.seen[6]) != bits(first)


def test_what_a_batch_has_twice_a_play_has_twice(tmp_path: Path) -> None:
    shared = []

    class Watch(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            shared.append(batch[0] is batch[1])
            return super().training_step(batch, batch_idx)

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return batch

    play(tmp_path, Numbered(KINDS["twice"]), Watch())
    assert shared == [True] * 7


def test_a_loader_that_writes_its_next_batch_into_the_same_memory(tmp_path: Path) -> None:
    buffer = torch.empty(2, 3)
    _, model, _ = play(tmp_path, Numbered(lambda n: buffer.copy_(rows(n))))
    assert model.numbers == SEEN


WAYS: dict[str, dict[str, Any]] = {
    "automatic": {},
    "accumulation": {"accumulate_grad_batches": 4},
    "manual": {"manual": True},
    "64-true": {"precision": "64-true"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "clipped": {"gradient_clip_val": 0.1},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_weights_are_those_of_a_loader_that_gives_the_same_batches(way: str, tmp_path: Path) -> None:
    settings = dict(WAYS[way])
    manual = settings.pop("manual", False)
    script = (OWN, KEEP, KEEP, KEEP, 0, 1, 2, 0, 1, 2, 1, OWN)
    _, played, _ = play(tmp_path, Numbered(length=12), Net(manual=manual), script, **settings)
    numbers = [0, 1, 2, 3, 1, 2, 3, 1, 2, 3, 2, 11]
    loader = Numbered(lambda n: rows(numbers[n]), 12)
    _, plain, _ = play(tmp_path, loader, Net(manual=manual), (), **settings)
    assert [bits(batch) for batch in played.seen] == [bits(batch) for batch in plain.seen]
    assert all(torch.equal(a, b) for a, b in zip(played.parameters(), plain.parameters(), strict=True))


# what the run notices ----------------------------------------------------------------------------------------------


class Stream(IterableDataset[Any]):
    """Of no known length."""

    def __iter__(self) -> Iterator[Tensor]:
        return (rows(number, 1)[0] for number in range(11))


def loaders() -> dict[str, Callable[[], Any]]:
    items = [rows(number, 1)[0] for number in range(11)]
    return {
        "numbered": Numbered,
        "partial last batch": lambda: DataLoader(items, batch_size=3),  # pyright: ignore
        "shuffled": lambda: DataLoader(items, batch_size=3, shuffle=True),  # pyright: ignore
        "workers": lambda: DataLoader(items, batch_size=3, num_workers=1),  # pyright: ignore
        "stream": lambda: DataLoader(Stream(), batch_size=3),
        "combined": lambda: {"a": DataLoader(items, batch_size=3), "b": Numbered()},  # pyright: ignore
        "several": lambda: [DataLoader(items, batch_size=3), Numbered(length=2)],  # pyright: ignore
        "short epochs": lambda: Numbered(length=2),
        "one batch": lambda: Numbered(length=1),
    }


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("kind", loaders())
def test_counts_and_loaders_are_what_they_are_without(kind: str, parts: int, tmp_path: Path) -> None:
    def fit(script: tuple[Any, ...]) -> Any:
        torch.manual_seed(3)
        how = {"max_epochs": 8, "accumulate_grad_batches": parts, "max_steps": 8}
        run, model, player = play(tmp_path, loaders()[kind](), Net(), script, **how)
        progress = run.fit_loop.epoch_loop.batch_progress.state_dict()
        optimizer = run.fit_loop.epoch_loop.automatic_optimization.optim_progress.state_dict()
        ends = (run.global_step, run.current_epoch, progress, optimizer, model.indices, float(torch.rand(1)))
        return ends, model, player

    plain, without, _ = fit(())
    script = (OWN, KEEP, KEEP, KEEP, 0, 1, 2, 2, 1, 0, 0, 0, 1)
    kept, model, player = fit(script)
    assert kept == plain
    asked = [order if order not in (OWN, KEEP) else None for order in script]
    for at in range(len(model.seen)):
        order = asked[at] if at < len(script) else None
        source = without.seen[at] if order is None else model.seen[1 + order]
        assert bits(model.seen[at]) == bits(source)
    assert player.count == min(3, max(len(model.seen) - 1, 0))


def test_of_a_stream_the_last_batch_is_known_as_such(tmp_path: Path) -> None:
    last: list[bool] = []

    class Watch(Net):
        def on_train_batch_end(self, *_: Any) -> None:
            last.append(self.trainer.is_last_batch)

    play(tmp_path, DataLoader(Stream(), batch_size=3), Watch(), (KEEP, 0, 0, 0))
    assert last == [False, False, False, True]


def test_validation_in_the_midst_has_its_own_batches(tmp_path: Path) -> None:
    validation = Numbered(lambda n: rows(100 + n), 2)
    how = {"val_check_interval": 1, "num_sanity_val_steps": 2}
    _, model, player = play(tmp_path, Numbered(), validation=validation, **how)
    assert model.numbers == SEEN
    assert [int(batch[0, 0]) for batch in model.validated] == list(range(100, 116))
    assert player.placed == [None, 0, 1, 0, 1, 0, None]


def test_the_sanity_check_is_not_taken_for_the_training_loop(tmp_path: Path) -> None:
    class Early(Player):
        def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_start(trainer, pl_module)

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            pass

    player, model = Early((KEEP, 0)), Net()
    run = trainer(tmp_path, callbacks=[player], max_epochs=1, num_sanity_val_steps=2)
    run.fit(model, Numbered(length=3), Numbered(lambda n: rows(100 + n), 2))
    assert model.numbers == [0, 0, 2]


def test_a_training_step_that_converts_something_itself_gets_that(tmp_path: Path) -> None:
    found = []

    class Converts(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if player.replay.count:
                player.replay.play_next(0)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            found.append(int(self.trainer.precision_plugin.convert_input(torch.tensor(50))))
            return super().training_step(batch, batch_idx)

    player, model = Player((KEEP, 0, 0)), Converts()
    trainer(tmp_path, callbacks=[player], max_epochs=1).fit(model, Numbered(length=4))
    assert found == [50] * 4
    assert model.numbers == [0, 0, 0, 3]


def test_what_was_asked_for_goes_for_one_batch(tmp_path: Path) -> None:
    class Once(Player):
        def on_train_batch_end(self, *_: Any) -> None:
            self.at += 1
            if self.at == 1:
                self.replay.play_next(0)

    player, model = Once((KEEP,)), Net()
    trainer(tmp_path, callbacks=[player], max_epochs=1).fit(model, Numbered(length=4))
    assert model.numbers == [0, 0, 2, 3]
    assert player.placed == [0, 0, None, None]


def test_a_batch_that_cuts_its_epoch_has_taken_what_was_asked_for(tmp_path: Path) -> None:
    class Cuts(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
            return -1 if batch_idx == 2 else None

    _, model, player = play(tmp_path, Numbered(length=4), Cuts(), (KEEP, KEEP, 0, OWN, 1), max_epochs=2)
    # it has no end at which to ask again
    assert player.placed == [0, 1, 0, None, None, 1]
    assert model.numbers == [0, 1, 3, 4]


def test_a_batch_of_none_is_not_kept_and_the_next_one_is(tmp_path: Path) -> None:
    class Patient(Player):
        def ask(self) -> None:
            if self.at == 1:
                self.replay.play_next(0)

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            super().on_train_start(trainer, pl_module)
            self.replay.keep_next()

        def on_train_batch_end(self, *_: Any) -> None:
            self.at += bool(self.replay.count)
            self.ask()

    player, model = Patient(), Net()
    with pytest.warns(UserWarning, match="yielded None"):
        trainer(tmp_path, callbacks=[player], max_epochs=1).fit(
            model, Numbered(lambda n: None if n in (0, 2) else rows(n), 4)
        )
    # in the place of a None, too
    assert model.numbers == [1, 1, 3]
    assert player.replay.failed is None


# what can't be kept ------------------------------------------------------------------------------------------------


class Stubborn:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("no copies of me")


UNKEEPABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "generator": (lambda: (i for i in range(3)), "a generator gives can be read only once"),
    "iterator": (lambda: iter([1]), "a list_iterator gives can be read only once"),
    "file": (io.StringIO, "a StringIO gives can be read only once"),
    "stubborn": (Stubborn, "RuntimeError: no copies of me"),
    "graph": (lambda: torch.ones(2, requires_grad=True) * 2, "graph behind it"),
    "event": (threading.Event, "TypeError: cannot pickle"),
}


@pytest.mark.parametrize("kind", UNKEEPABLE)
def test_a_batch_of_which_there_is_no_copy_is_told_in_words(kind: str, tmp_path: Path) -> None:
    make, words = UNKEEPABLE[kind]
    _, model, player = play(tmp_path, Numbered(lambda n: [rows(n), {"deep": [make()]}]), Unseen())
    assert words in player.replay.failed
    assert player.history[-1] == (0, False, True)
    assert model.numbers == list(range(7))


class Unseen(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch[0], batch_idx)


@pytest.mark.filterwarnings("ignore:Found .dataloader_iter. argument")
def test_a_step_that_fetches_for_itself_is_told_in_words(tmp_path: Path) -> None:
    class Fetches(Net):
        def training_step(self, dataloader_iter: Any) -> Any:
            batch, index, _ = next(dataloader_iter)
            return super().training_step(batch, index)

    _, model, player = play(tmp_path, Numbered(), Fetches())
    assert "dataloader_iter" in player.replay.failed
    assert model.numbers == list(range(7))
    assert set(player.placed) == {None}


def test_where_a_play_fails_the_batch_is_the_loops_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(self: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(KeptBatch, "fresh", short)
    _, model, player = play(tmp_path, Numbered())
    assert "out of memory" in player.replay.failed
    assert model.numbers == list(range(7))
    assert set(player.placed[3:]) == {None}


def test_a_number_that_is_not_kept_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    with pytest.raises(IndexError, match=r"index must be in \[0, 0\)"):
        Replay(run).play_next(0)


# room --------------------------------------------------------------------------------------------------------------


def take(number: int, size: int = 2) -> int:
    return contents(rows(number, size)).bytes[HOST]


@pytest.mark.parametrize(("room", "counts"), [(0, 0), (1, 1), (2, 2), (5, 5)])
def test_no_more_is_kept_than_there_is_room_for(room: int, counts: int, tmp_path: Path) -> None:
    _, model, player = play(tmp_path, Numbered(), None, (KEEP,) * 5, room=room * take(0))
    assert player.count == counts
    assert player.placed[:counts] == list(range(counts))
    assert [full for _, full, _ in player.history][:5] == [kept + 1 >= room for kept in range(5)]
    assert model.numbers == list(range(7))


def test_batches_of_unequal_shape_take_what_they_take(tmp_path: Path) -> None:
    sizes = [100, 10, 300, 10]
    loader = Numbered(lambda n: rows(n, sizes[n]), 4)
    _, _, player = play(tmp_path, loader, None, (KEEP,) * 4, room=take(0, 100) + 3 * take(0, 10))
    # beside the first there is no room for another of its size, but for smaller ones
    assert player.placed == [0, 1, None, 2]
    assert [full for _, full, _ in player.history] == [True] * 4


def test_of_what_is_free_a_part_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "free_memory", lambda: 3 * module.SHARE * take(0))
    _, _, player = play(tmp_path, Numbered(), None, (KEEP,) * 5)
    assert player.count == 3


def test_a_slice_of_a_large_tensor_takes_the_slice(tmp_path: Path) -> None:
    whole = torch.arange(3_000_000.0).reshape(-1, 3)
    part = whole[:2]
    kept = contents(part)
    assert kept.bytes[HOST] < 100
    assert KeptBatch(part, kept.tensors).batch.untyped_storage().nbytes() == 24


SIZES: dict[str, tuple[Callable[[], Any], int]] = {
    "array": (lambda: np.zeros(1000), 8000),
    "string": (lambda: "a" * 1000, 1000),
    "bytes": (lambda: b"a" * 10**6, 10**6),
    "numbers": (lambda: list(range(1000, 2000)), 1000),
    "twice": (lambda: [t := torch.ones(1000), t], 4000),
    "csr": (lambda: torch.eye(100).to_sparse_csr(), 808 + 800 + 400),
    "csc": (lambda: torch.eye(100).to_sparse_csc(), 808 + 800 + 400),
    "parameter": (lambda: nn.Parameter(torch.ones(1000)), 4000),
    "objects": (lambda: np.array([{"a": torch.ones(1000)}, None]), 4000),
}


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.filterwarnings("ignore:Sparse CS")
def test_a_batch_is_weighed(kind: str) -> None:
    make, least = SIZES[kind]
    assert least <= contents({"a": [make()]}).bytes[HOST] <= least * 1.1 + 2500


def test_what_is_on_another_device_counts_there() -> None:
    found = contents([torch.ones(10), torch.ones(10, device="meta")])
    assert found.bytes[torch.device("meta")] == 40
    assert found.bytes[HOST] < 100


@pytest.mark.filterwarnings("ignore")
def test_tensors_of_all_sorts_are_copied() -> None:
    batch = {
        "jagged": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "csr": torch.eye(3).to_sparse_csr(),
        "parameter": nn.Parameter(torch.ones(2)),
        "learns": torch.ones(2, requires_grad=True),
        "conjugate": torch.tensor([1.0 + 2.0j]).conj(),
        "last": torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "none": torch.empty(0, 3),
        "frozen": Frozen(torch.ones(2)),
    }
    hung: Any = torch.ones(2)
    hung.note = "kept"
    batch["hung"] = hung
    fresh = KeptBatch(batch, contents(batch).tensors).fresh()
    for name, value in batch.items():
        copied = fresh[name]
        assert type(copied) is type(value)
        if name == "frozen":
            value, copied = value.x, copied.x
        if value.is_nested:
            assert [t.tolist() for t in copied.unbind()] == [t.tolist() for t in value.unbind()]
            continue
        dense = [t if t.layout is torch.strided else t.to_dense() for t in (value, copied)]
        assert torch.equal(*dense)
        assert copied.requires_grad == value.requires_grad
        if value.layout is torch.strided and value.numel():
            assert copied.data_ptr() != value.data_ptr()
    assert fresh["last"].stride() == batch["last"].stride()
    assert fresh["hung"].note == "kept"
    # two jagged ones still go together
    assert (fresh["jagged"] + fresh["jagged"]).shape == fresh["jagged"].shape


def test_looking_into_a_batch_holds_on_to_nothing() -> None:
    gc.disable()
    try:
        tensor: Any = torch.ones(3)
        gone = weakref.ref(tensor)
        found = contents({"a": tensor})
        kept = KeptBatch({"a": tensor}, found.tensors)
        del found, tensor
        assert gone() is None
        assert kept.batch["a"].tolist() == [1.0] * 3
    finally:
        gc.enable()


def test_an_endless_batch_is_told_in_words() -> None:
    endless: list[Any] = []
    for _ in range(100_000):
        endless = [endless]
    with pytest.raises(UnkeepableError, match="Recursion"):
        contents(endless)


# borrowed and given back -------------------------------------------------------------------------------------------


def test_after_an_exception_nothing_is_left(tmp_path: Path) -> None:
    class Breaks(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 3:
                raise ValueError("broken")
            return super().training_step(batch, batch_idx)

    player = Player()
    run = trainer(tmp_path, callbacks=[player], max_epochs=1)
    with pytest.raises(ValueError, match="broken"):
        run.fit(Breaks(), Numbered())
    assert "convert_input" not in vars(run.precision_plugin)
    player.replay.close()
    assert player.replay.count == 0


def test_what_the_user_has_put_there_is_called_and_comes_back(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    plugin, called = run.precision_plugin, []

    def users(data: Any) -> Any:
        called.append(data)
        return data

    plugin.convert_input = users
    replay = Replay(run)
    replay.begin()
    replay.begin()
    assert plugin.convert_input(1) == 1
    replay.close()
    assert plugin.convert_input is users
    assert called == [1]


def test_who_patches_above_keeps_his_patch(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    plugin = run.precision_plugin
    replay = Replay(run)
    replay.begin()
    inner = plugin.convert_input

    def above(data: Any) -> Any:
        return inner(data)

    plugin.convert_input = above
    replay.close()
    assert plugin.convert_input is above
    assert plugin.convert_input(1) == 1


# checkpoints -------------------------------------------------------------------------------------------------------


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("kind", ["tensor", "list", "tuple", "dict", "packed", "sparse", "half", "expanded", "strided"])
def test_a_resumed_run_plays_the_batches_bit_for_bit(kind: str, tmp_path: Path) -> None:
    _, whole, _ = play(tmp_path, Numbered(KINDS[kind]), Net())
    run, first, player = play(tmp_path, Numbered(KINDS[kind]), Net(), limit_train_batches=3)
    run.save_checkpoint(tmp_path / "half.ckpt")
    saved = through_a_file(player.saved)
    rest = Numbered(KINDS[kind])
    rest.given = 3
    _, second, _ = play(tmp_path, rest, Net(), SCRIPT[3:], saved=saved, limit_train_batches=4)
    assert [bits(batch) for batch in [*first.seen, *second.seen]] == [bits(batch) for batch in whole.seen]
    assert {type(batch) for batch in second.seen} == {type(batch) for batch in whole.seen}


def test_in_a_run_resumed_from_a_checkpoint_within_an_epoch_the_loops_own_next_batch_is_exchanged(
    tmp_path: Path,
) -> None:
    class Saves(Player):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            super().on_train_batch_end()
            if self.at == 3:
                self.kept = through_a_file(self.replay.state_dict())
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    saves = Saves()
    trainer(tmp_path, callbacks=[saves], max_epochs=1).fit(Net(), Numbered())
    player, model = Player((1, 0, OWN), saved=saves.kept), Net()
    run = trainer(tmp_path, callbacks=[player], max_epochs=1)
    loader = Numbered()
    loader.given = 3
    run.fit(model, loader, ckpt_path=tmp_path / "within.ckpt")
    assert player.placed[:3] == [1, 0, None]
    assert model.numbers[:3] == [2, 1, 5]
    assert model.indices[:3] == [3, 4, 5]


def test_the_state_says_whether_there_was_room(tmp_path: Path) -> None:
    run, _, player = play(tmp_path, Numbered(), None, (KEEP,) * 5, room=2 * take(0))
    again = Replay(run, saved=through_a_file(player.saved))
    assert (again.count, again.full, again.failed) == (2, True, None)


def test_plain_values_are_said_and_built_again() -> None:
    shared = torch.ones(2, requires_grad=True)
    value = {
        ("key", 1): [1.5, None, True, "a"],
        "arrays": (np.arange(6).reshape(2, 3)[:, ::-1], np.float32(2.5), np.array(True), np.zeros((0, 2))),
        "shared": [shared, shared],
    }
    built = from_plain(through_a_file(to_plain(value)), HOST)
    assert built[("key", 1)] == [1.5, None, True, "a"]
    for one, other in zip(value["arrays"], built["arrays"], strict=True):
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert built["shared"][0] is built["shared"][1]
    assert built["shared"][0].requires_grad
    assert built["shared"][0].data_ptr() != shared.data_ptr()


@pytest.mark.parametrize("kind", ["named", "dataclass", "mapping", "graph", "ordered", "array"])
def test_batches_that_only_their_class_can_build_are_in_no_checkpoint(kind: str, tmp_path: Path) -> None:
    _, _, player = play(tmp_path, Numbered(KINDS[kind]))
    assert player.count == 2
    assert player.saved is None


# several ranks -----------------------------------------------------------------------------------------------------


class Reduces:
    """Counts the calls of a collective."""

    def __init__(self, monkeypatch: Any) -> None:
        self.calls, real = 0, module.measure

        def measure(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, "measure", measure)


def fit_on_a_rank(root: str, kind: str) -> Any:
    import os

    rank = int(os.environ["RANK"])

    def make(number: int) -> Any:
        if kind == "unkeepable" and rank == 1 and number == 2:
            return [rows(10 * rank + number), (i for i in ())]
        return [rows(10 * rank + number, 200 if kind == "large" and rank == 1 and number == 2 else 2), 0]

    how: dict[str, Any] = {"room": 2000} if kind == "large" else {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        reduces = Reduces(monkeypatch)
        settings = {"devices": 2, "use_distributed_sampler": False, "strategy": "ddp"}
        run, model, player = play(Path(root), Numbered(make), Unseen(), **settings, **how)
    weights = [p.tolist() for p in model.parameters()]
    own = [number - 10 * rank for number in model.numbers]
    return (
        own,
        player.placed,
        player.history,
        reduces.calls,
        weights,
        player.saved,
        player.replay.failed,
        run.global_step,
    )


@pytest.mark.parametrize(
    ("kind", "numbers", "placed", "last"),
    [
        ("plain", SEEN, [None, 0, 1, 0, 1, 0, None], (2, False, False)),
        ("unkeepable", [0, 1, 2, 1, 4, 1, 6], [None, 0, None, 0, None, 0, None], (1, False, True)),
        ("large", [0, 1, 2, 1, 4, 1, 6], [None, 0, None, 0, None, 0, None], (1, True, False)),
    ],
)
def test_two_ranks_keep_the_same_batches_or_none(
    kind: str, numbers: list[int], placed: Any, last: Any, pool: Pool, tmp_path: Path
) -> None:
    first, second = pool.run(fit_on_a_rank, str(tmp_path), kind)
    assert first == second
    assert first[:2] == (numbers, placed)
    assert first[2][-1] == last
    # one for each batch that was to be kept, none for those that were played
    assert first[3] == 2
    assert first[5] is None
    if kind == "unkeepable":
        assert first[6] == "what a generator gives can be read only once (rank 1)"


class Shards(Sharded):
    def __init__(self) -> None:
        super().__init__(lambda net: sgd(net, 0.1))
        self.seen: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.seen.append(float(batch[0][0, 0]))
        return super().training_step(batch, batch_idx)


def fit_sharded(root: str) -> Any:
    import os

    rank = int(os.environ["RANK"])
    loader = Numbered(lambda n: [torch.full((2, 64), float(10 * rank + n)), torch.tensor([1, 2])])
    settings = {"devices": 2, "use_distributed_sampler": False, "strategy": pl.strategies.ModelParallelStrategy(2, 1)}
    _, model, player = play(Path(root), loader, Shards(), **settings)
    return [int(seen) - 10 * rank for seen in model.seen], player.placed


def test_with_sharded_weights_too(pool: Pool, tmp_path: Path) -> None:
    assert pool.run(fit_sharded, str(tmp_path)) == [(SEEN, [None, 0, 1, 0, 1, 0, None])] * 2
