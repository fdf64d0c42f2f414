"""Nineteen small training tasks of different kinds, in plain torch, for judging rates.

All data come with scikit-learn or Python itself. Four tasks took no part in the design of any rule: `HELD_OUT`.
scikit-learn's breast cancer set was tried and left out: 300 updates are 24 epochs of its 400 rows, and its validation
loss measures over-fitting, with grid optima from 6e-4 to 1.
"""

from __future__ import annotations

import copy
import functools
import glob
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn import functional

UPDATES, BATCH, CONTEXT = 300, 32, 32
OPTIMIZERS = ("sgd", "adamw")
GRID = {
    "sgd": [10 ** (e / 4) for e in range(-18, 7)],
    "adamw": [10 ** (e / 4) for e in range(-20, 1)],
}
"""Four rates a decade: 3e-5 to 32, and 1e-5 to 1."""

HELD_OUT = ("raw_digits", "gru_text", "multilabel", "coordinates")


class Data(NamedTuple):
    inputs: Tensor
    targets: Tensor
    held_inputs: Tensor
    held_targets: Tensor


def split(inputs: Any, targets: Any, held: int) -> Data:
    order = np.random.RandomState(0).permutation(len(inputs))
    return Data(inputs[order[held:]], targets[order[held:]], inputs[order[:held]], targets[order[:held]])


def table(inputs: Any, targets: Any, *, regression: bool, held: int = 400) -> Data:
    inputs = (inputs - inputs.mean(0)) / (inputs.std(0) + 1e-8)
    if regression:
        targets = ((targets - targets.mean()) / targets.std())[:, None].astype("float32")
    return split(torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets), held)


@functools.cache
def digits() -> Data:
    bunch: Any = datasets.load_digits()
    return split(torch.tensor(bunch.images / 16.0, dtype=torch.float32)[:, None], torch.tensor(bunch.target), 500)


@functools.cache
def noisy_digits() -> Data:
    """A fifth of the training labels drawn at random."""
    data, generator = digits(), torch.Generator().manual_seed(5)
    labels = data.targets.clone()
    wrong = torch.rand(len(labels), generator=generator) < 0.2
    labels[wrong] = torch.randint(10, (int(wrong.sum()),), generator=generator)
    return data._replace(targets=labels)


def raw_digits() -> Data:
    data = digits()
    return data._replace(inputs=data.inputs * 16, held_inputs=data.held_inputs * 16)


def same_digits() -> Data:
    data = digits()
    return data._replace(targets=data.inputs.flatten(1), held_targets=data.held_inputs.flatten(1))


@functools.cache
def text() -> Data:
    """Bytes of the standard library's sources; every start of a window is an input."""
    names = sorted(glob.glob(os.path.dirname(os.__file__) + "/*.py"))[:60]
    raw = b"".join(Path(name).read_bytes() for name in names)[:600000]
    values = torch.tensor(np.frombuffer(raw, dtype=np.uint8).copy()).long().clamp(max=127)
    windows = values[520000 : 520000 + 120 * (CONTEXT + 1)].view(120, CONTEXT + 1)
    return Data(values[:520000], values[:520000], windows[:, :-1], windows[:, 1:].reshape(-1))


@functools.cache
def friedman() -> Data:
    inputs, targets = datasets.make_friedman1(2000, noise=1.0, random_state=1)
    return table(inputs, targets, regression=True)


@functools.cache
def raw_friedman() -> Data:
    """Targets as they come: mean 14, variance 25."""
    inputs, targets = datasets.make_friedman1(2000, noise=1.0, random_state=3)
    return split(torch.tensor(inputs).float(), torch.tensor(targets).float()[:, None], 400)


@functools.cache
def diabetes() -> Data:
    inputs, targets = datasets.load_diabetes(return_X_y=True)
    return table(inputs, targets, regression=True, held=120)


@functools.cache
def classes() -> Data:
    inputs, targets = datasets.make_classification(
        2400, 24, n_informative=10, n_classes=4, n_clusters_per_class=2, flip_y=0.1, random_state=2
    )
    return table(inputs, targets, regression=False)


@functools.cache
def multilabel() -> Data:
    inputs, targets = datasets.make_multilabel_classification(2400, 30, n_classes=8, random_state=4)
    return table(inputs, targets.astype("float32"), regression=False)


@functools.cache
def coordinates() -> Data:
    """A picture as a function of the place: brightness in [0, 1] at (x, y) in [-1, 1]."""
    picture = datasets.load_sample_image("china.jpg").mean(2)[::8, ::8] / 255.0
    height, width = picture.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    places = torch.tensor(np.stack([x.ravel(), y.ravel()], 1)).float()
    return split(places, torch.tensor(picture.ravel()).float()[:, None], 800)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norms[0](self.first(x)))
        return functional.relu(x + self.norms[1](self.second(y)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norms[1](x))


class Transformer(nn.Module):
    def __init__(self, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(128, width), nn.Parameter(torch.randn(CONTEXT, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.tokens(x) + self.places)).flatten(0, 1)


class Recurrent(nn.Module):
    """A GRU over bytes, or an LSTM over the rows of an image."""

    def __init__(self, *, over_text: bool) -> None:
        super().__init__()
        self.over_text = over_text
        self.tokens = nn.Embedding(128, 48) if over_text else None
        self.cell = nn.GRU(48, 48, batch_first=True) if over_text else nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(48, 128) if over_text else nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        if self.tokens is not None:
            return self.head(self.cell(self.tokens(x))[0]).flatten(0, 1)
        return self.head(self.cell(x.squeeze(1))[0][:, -1])


def cnn(*, norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((1, 8), (8, 16)):
        layers += [nn.Conv2d(before, after, 3, padding=1), *([nn.BatchNorm2d(after)] if norm else [])]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


def mlp(inputs: int, outputs: int, width: int = 64, *, norm: Any = None, act: Any = nn.ReLU, drop: float = 0.0) -> Any:
    layers: list[nn.Module] = [nn.Flatten()]
    for before in (inputs, width):
        layers += [nn.Linear(before, width), *([norm(width)] if norm else []), act()]
        layers += [nn.Dropout(drop)] if drop else []
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def autoencoder() -> nn.Module:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 12)),
        *(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 64), nn.Sigmoid()),
    )


def resnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), Residual(8), nn.MaxPool2d(2), Residual(8)),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)),
    )


@functools.cache
def trained_on_half() -> dict[str, Tensor]:
    """A convolutional net after 200 updates on the digits 0 to 4."""
    data = digits()
    few = data.targets < 5
    inputs, targets = data.inputs[few], data.targets[few]
    torch.manual_seed(99)
    net = cnn(norm=True)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(200):
        chosen = torch.randint(len(inputs), (BATCH,))
        optimizer.zero_grad()
        functional.cross_entropy(net(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()
    return {name: value.clone() for name, value in net.state_dict().items()}


def finetuned() -> nn.Module:
    net: Any = cnn(norm=True)
    net.load_state_dict(trained_on_half())
    net[-1] = nn.Linear(64, 10)
    return net


class Task(NamedTuple):
    data: Callable[[], Data]
    model: Callable[[], nn.Module]
    loss: Callable[..., Tensor] = functional.cross_entropy


TASKS = {
    "digits_cnn": Task(digits, lambda: cnn(norm=False)),
    "digits_cnn_bn": Task(digits, lambda: cnn(norm=True)),
    "digits_mlp": Task(digits, lambda: mlp(64, 10)),
    "digits_mlp_bn": Task(digits, lambda: mlp(64, 10, norm=nn.BatchNorm1d, drop=0.1)),
    "noisy_labels": Task(noisy_digits, lambda: mlp(64, 10, act=nn.Tanh)),
    "wide_mlp": Task(digits, lambda: mlp(64, 10, 384)),
    "transformer": Task(text, Transformer),
    "friedman": Task(friedman, lambda: mlp(10, 1, 48), functional.mse_loss),
    "raw_friedman": Task(raw_friedman, lambda: mlp(10, 1, 48), functional.mse_loss),
    "diabetes": Task(diabetes, lambda: nn.Linear(10, 1), functional.mse_loss),
    "tabular": Task(classes, lambda: mlp(24, 4, 48, norm=nn.LayerNorm, act=nn.GELU)),
    "lstm_rows": Task(digits, lambda: Recurrent(over_text=False)),
    "resnet": Task(digits, resnet),
    "finetune": Task(digits, finetuned),
    "autoencoder": Task(same_digits, autoencoder, functional.mse_loss),
    "raw_digits": Task(raw_digits, lambda: cnn(norm=False)),
    "gru_text": Task(text, lambda: Recurrent(over_text=True)),
    "multilabel": Task(multilabel, lambda: mlp(30, 8, 48), functional.binary_cross_entropy_with_logits),
    "coordinates": Task(coordinates, lambda: mlp(2, 1, 64, act=nn.Tanh), functional.mse_loss),
}


class PlainRun:
    """One training run of a task: a net, an optimizer, and its own stream of batches, all from one seed."""

    def __init__(self, task: str, optimizer: str, seed: int) -> None:
        self.task = TASKS[task]
        self.data = self.task.data()
        if self.task.model is finetuned:
            trained_on_half()
        torch.manual_seed(1000 + seed)
        self.net = self.task.model()
        self.parameters = list(self.net.parameters())
        self.optimizer: Any = (
            torch.optim.SGD(self.parameters, 1e-3, momentum=0.9, fused=True)
            if optimizer == "sgd"
            else torch.optim.AdamW(self.parameters, 1e-3, fused=True)
        )
        self.generator = torch.Generator().manual_seed(7000 + seed)
        self._order, self._at = torch.empty(0), 0

    def batch(self) -> tuple[Tensor, Tensor]:
        data = self.data
        if self.task.data is text:
            starts = torch.randint(len(data.inputs) - CONTEXT - 1, (8,), generator=self.generator)
            windows = torch.stack([data.inputs[k : k + CONTEXT + 1] for k in starts.tolist()])
            return windows[:, :-1], windows[:, 1:].reshape(-1)
        if self._at + BATCH > len(self._order):
            self._order, self._at = torch.randperm(len(data.inputs), generator=self.generator), 0
        chosen = self._order[self._at : self._at + BATCH]
        self._at += BATCH
        return data.inputs[chosen], data.targets[chosen]

    def update(self, rate: float | None = None, batch: tuple[Tensor, Tensor] | None = None) -> float:
        """One update; gives the loss before it. None: the optimizer's own rate, the next batch."""
        inputs, targets = self.batch() if batch is None else batch
        loss = self.task.loss(self.net(inputs), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if rate is not None:
            self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        self.net.eval()
        loss = self.task.loss(self.net(self.data.held_inputs), self.data.held_targets).item()
        self.net.train()
        return loss

    def keep(self) -> Any:
        return copy.deepcopy((self.net.state_dict(), self.optimizer.state_dict()))

    def restore(self, kept: Any) -> None:
        self.net.load_state_dict(kept[0])
        if kept[1]["state"]:
            self.optimizer.load_state_dict(copy.deepcopy(kept[1]))
        else:
            self.optimizer.state.clear()
