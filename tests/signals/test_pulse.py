"""The pulse: a sample of the weights says what all of them would, costs one kernel, and stays with its tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lr.signals.pulse import MOST, Pulse, Shift, spread
from lightning_lr.signals.track import Track
from lightning_lr.trials.second_state import SecondState

CPU = torch.device("cpu")


class Transformer(nn.Module):
    """Of bytes: an embedding, two layers, a head; 470,000 parameters in 27 tensors."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.embedding, self.head = nn.Embedding(256, width), nn.Linear(width, 256)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def loss(self, text: Tensor) -> Tensor:
        logits = self.head(self.layers(self.embedding(text[:, :-1])))
        return nn.functional.cross_entropy(logits.transpose(1, 2), text[:, 1:])


def exact(before: list[Tensor], after: list[Tensor]) -> float:
    change = sum(float((a - b).double().square().sum()) for b, a in zip(before, after, strict=True))
    return math.sqrt(change / sum(float(b.double().square().sum()) for b in before))


LICENSE = Path(__file__).parents[2] / "LICENSE"
"""A text that stays as it is."""


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


# an embedding of normal weights has nearly all of the norm here. Adam moves all weights by much the same; what SGD does
# lies in the few rows of head and embedding that belong to the batch's bytes
@pytest.mark.parametrize(
    ("make", "most", "within"),
    [
        (lambda p: torch.optim.AdamW(p, 1e-3), 64, 0.2),
        (lambda p: torch.optim.AdamW(p, 1e-3), MOST, 0.1),
        (lambda p: torch.optim.AdamW(p, 1e-3), 4096, 0.03),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), MOST, 0.25),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), 4096, 0.05),
    ],
)
def test_the_sample_knows_how_far_all_weights_moved(make: Any, most: int, within: float) -> None:
    text = torch.tensor(list(LICENSE.read_bytes()))
    errors = []
    for seed in range(3):
        torch.manual_seed(seed)
        net = Transformer()
        optimizer, pulse = make(net.parameters()), Pulse({"net": net.parameters()}, most)
        for update in range(8):
            starts = torch.randint(0, len(text) - 33, (8,))
            optimizer.zero_grad()
            net.loss(torch.stack([text[start : start + 33] for start in starts])).backward()
            before, sample = weights(net), pulse.take()
            optimizer.step()
            if update in (0, 3, 7):
                found = Shift(pulse, sample, pulse.take()).ratios(CPU)["net"]
                errors.append(abs(found / exact(before, weights(net)) - 1.0))
    assert sorted(errors)[-2] < within, errors


@pytest.mark.parametrize(
    "sizes",
    [(1024, 512), (64, 512), (512, 64), (768, 3072), (50257, 768), (8, 4096), (20, 30), (64, 64, 3, 3), (7, 5000)],
)
def test_the_sample_is_spread_over_rows_and_columns(sizes: tuple[int, ...]) -> None:
    number, row = math.prod(sizes), math.prod(sizes[1:])
    places = range(0, number, spread(sizes, MOST))
    assert min(number, MOST) / 3 <= len(places) <= MOST
    rows, columns = ({place // row for place in places}, sorted({place % row for place in places}))
    assert len(rows) == min(sizes[0], len(places))
    assert len(columns) == min(row, len(places))
    widest = max(b - a for a, b in zip([-1, *columns], [*columns, row], strict=True))
    assert widest <= max(2, 3 * row / len(places))


def test_the_sums_are_those_of_whole_tensors_where_a_tensor_is_small_or_of_one_value() -> None:
    small, even = torch.randn(5, 7), torch.full((300, 300), 3.0)
    pulse = Pulse({"small": [small], "even": [even]})
    squares = pulse.squares(pulse.take(), CPU).tolist()
    assert squares == pytest.approx([float(small.square().sum()), 9.0 * 90_000], rel=1e-6)


def test_the_sample_follows_a_tensor_to_another_storage() -> None:
    net = nn.Linear(40, 40)
    pulse = Pulse({"net": net.parameters()})
    first = pulse.take()
    trial = SecondState(net, [])
    trial.enter(fresh=True)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    assert torch.equal(pulse.take()[0], first[0] + 1.0)
    trial.leave()
    assert torch.equal(pulse.take()[0], first[0])
    net.weight.data = torch.zeros(40, 40)
    assert pulse.take()[0].count_nonzero() == net.bias.count_nonzero()


def odd() -> Iterator[tuple[str, Tensor, bool]]:
    yield "empty", torch.zeros(0, 3), False
    yield "integers", torch.arange(9), False
    yield "meta", torch.zeros(4, device="meta"), False
    yield "sparse", torch.eye(3).to_sparse(), False
    yield "not initialized", nn.LazyLinear(2).weight, False
    yield "of no dimension", torch.tensor(2.5), True
    yield "bfloat16", torch.full((90, 90), 2.5, dtype=torch.bfloat16), True
    yield "float64", torch.full((90, 90), 2.5, dtype=torch.float64), True
    yield "channels last", torch.full((30, 20, 3, 3), 2.5).to(memory_format=torch.channels_last), True
    yield "transposed", torch.full((90, 70), 2.5).T, True
    yield "with gaps", torch.full((90, 70), 2.5)[:, :60], True
    yield "one element in many places", torch.tensor([2.5]).expand(40, 50), True
    yield "part of a storage", torch.full((500,), 2.5)[100:], True


@pytest.mark.parametrize(("tensor", "sampled"), [pytest.param(t, s, id=name) for name, t, s in odd()])
def test_tensors_of_any_kind(tensor: Tensor, sampled: bool) -> None:
    pulse = Pulse({"odd": [tensor], "usual": [torch.ones(4)]})
    sample = pulse.take()
    assert all(values.dtype in (torch.float32, torch.float64) and values.numel() <= MOST + 4 for values in sample)
    squares = pulse.squares(sample, CPU).tolist()
    assert squares == pytest.approx([6.25 * tensor.numel() if sampled else 0.0, 4.0], rel=1e-5)


class Kernels(TorchDispatchMode):
    """Notes what is called on tensors, views excepted."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_sample_of_300_tensors_is_one_kernel_for_each_dtype() -> None:
    tensors = [torch.ones(64, 64, dtype=dtype) for _ in range(150) for dtype in (torch.float32, torch.bfloat16)]
    pulse = Pulse({"net": tensors})
    pulse.take()
    with Kernels() as kernels:
        pulse.take()
    assert kernels.names == ["cat.default", "cat.default", "_to_copy.default"]


def test_it_is_the_same_twice_and_under_deterministic_algorithms() -> None:
    tensors = [torch.randn(30, 40) for _ in range(20)]
    found = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            pulse = Pulse({"a": tensors[:7], "b": tensors[7:]})
            found.append(pulse.squares(pulse.take(), CPU).tolist())
        finally:
            torch.use_deterministic_algorithms(False)
    assert found[0] == found[1]


def test_a_part_of_zeros_has_no_ratio() -> None:
    zeros, ones = torch.zeros(3), torch.ones(4)
    pulse = Pulse({"zeros": [zeros], "ones": [ones]})
    before = pulse.take()
    zeros.add_(1.0)
    assert Shift(pulse, before, pulse.take()).ratios(CPU) == {"ones": 0.0, "all": pytest.approx(math.sqrt(0.75))}


# from update to update -----------------------------------------------------------------------------------------------


def ratio(shift: Shift | None) -> float | None:
    return None if shift is None else shift.ratios(CPU)["all"]


def test_a_track_knows_the_last_update_that_was_made() -> None:
    w, track = torch.full((8,), 4.0), Track()
    found = []
    for updates, factor in [(0, 1.5), (1, 1.0), (1, 1.0), (1, 0.5), (2, 1.0), (5, 2.0), (6, 1.0)]:
        found.append(ratio(track.see([w], updates)))
        w.mul_(factor)
    #                the first; 1; dropped; dropped; 2; several unseen; the next
    assert found == [None, 0.5, 0.5, 0.5, 0.5, None, 1.0]


def test_a_track_begins_again_with_other_tensors_and_after_a_rewind() -> None:
    w, more, track = torch.ones(8), torch.ones(2), Track()
    assert [ratio(track.see([w], updates)) for updates in (0, 1)] == [None, 0.0]
    assert [ratio(track.see([w, more], updates)) for updates in (2, 3)] == [None, 0.0]
    track.forget()
    assert track.shift is None
    assert [ratio(track.see([w, more], updates)) for updates in (4, 5)] == [None, 0.0]


def test_a_track_without_tensors_knows_nothing() -> None:
    track = Track()
    assert track.see([], 0) is None
    found = track.see([], 1)
    assert found is None or found.ratios(CPU) == {}
