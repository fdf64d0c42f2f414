"""Twelve kinds of training on which the rules of finder and autopilot may be tuned; see `rates.py`."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import torch
from sklearn.datasets import make_friedman1
from torch import Tensor, nn
from torch.nn import functional
from zoo_a import flat_digits, mlp, normal, pick, source
from zoo_base import Kind

Random = torch.Generator


class Digits(Kind):
    """What the kinds on digits have in common: pictures of 8 x 8, ten classes, batches of 32."""

    size: ClassVar[int] = 32

    def draw(self, k: int, random: Random) -> Any:
        x, y, *_ = flat_digits()
        chosen = pick(len(x), self.size, random)
        return x[chosen], y[chosen]

    def logits(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.cross_entropy(self.logits(batch[0]), batch[1])

    def score(self) -> float:
        return float(self.loss(flat_digits()[2:], 0))


def convolutions(*, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for before, after in ((1, 8), (8, 16)):
        layers += [nn.Conv2d(before, after, 3, padding=1), *([nn.BatchNorm2d(after)] if norm else [])]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


class PlainCnn(Digits):
    """Convolutions without normalisation: under SGD a plateau first."""

    def build(self) -> None:
        self.net = convolutions(norm=False)

    def logits(self, x: Tensor) -> Tensor:
        return self.net(x)


class NormCnn(Digits):
    """The same with batch norm."""

    rate = 0.01

    def build(self) -> None:
        self.net = convolutions(norm=True)

    def logits(self, x: Tensor) -> Tensor:
        return self.net(x)


class Deep(Digits):
    """Eight narrow layers without normalisation: a long plateau."""

    def build(self) -> None:
        self.net = mlp(64, 32, 32, 32, 32, 32, 32, 32, 10)

    def logits(self, x: Tensor) -> Tensor:
        return self.net(x)


class Fragile(Digits):
    """A narrow layer of ReLU in the middle: at too high a rate all of it dies, and the output is constant."""

    def build(self) -> None:
        self.net = mlp(64, 48, 8, 48, 10)

    def logits(self, x: Tensor) -> Tensor:
        return self.net(x * 4)


class TwoGroups(Digits):
    """A body that knows five digits, with a third of the head's rate."""

    rate = 0.003

    def build(self) -> None:
        from zoo_a import pretrained

        self.body, self.head = mlp(64, 64, 32), nn.Linear(32, 10)
        self.body.load_state_dict(pretrained())

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        groups = [
            {"params": list(self.head.parameters()), "lr": rate},
            {"params": list(self.body.parameters()), "lr": 0.3 * rate, "share": 0.3},
        ]
        return torch.optim.AdamW(groups)

    def logits(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


class Rare(Digits):
    """One picture in fifty is a nine, all others are no nines; a nine weighs twenty."""

    size = 64
    rate = 0.003

    def build(self) -> None:
        self.net = mlp(64, 32, 1)

    def draw(self, k: int, random: Random) -> Any:
        x, y, *_ = flat_digits()
        rare = torch.rand(self.size, generator=random) < 0.02
        nines, others = (y == 9).nonzero()[:, 0], (y != 9).nonzero()[:, 0]
        chosen = torch.where(rare, nines[pick(len(nines), 64, random)], others[pick(len(others), 64, random)])
        return x[chosen], rare.float()

    def loss(self, batch: Any, k: int) -> Tensor:
        weight = torch.where(batch[1] > 0, 20.0, 1.0)
        return functional.binary_cross_entropy_with_logits(self.net(batch[0])[:, 0], batch[1], weight)

    def score(self) -> float:
        x, y = flat_digits()[2:]
        weight = torch.where(y == 9, 20 * 0.02 / 0.1, 0.98 / 0.9)
        out = self.net(x)[:, 0]
        return float(functional.binary_cross_entropy_with_logits(out, (y == 9).float(), weight))


@functools.cache
def skewed() -> tuple[Tensor, Tensor]:
    """Pairs (word, next word) of 2,000 words whose frequencies fall as 1 / rank; half of the pairs obey a rule."""
    random = Random().manual_seed(3)
    frequencies = 1.0 / torch.arange(1, 2001).float()
    words = torch.multinomial(frequencies, 60000, replacement=True, generator=random)
    nexts = torch.multinomial(frequencies, 60000, replacement=True, generator=random)
    obeys = torch.rand(60000, generator=random) < 0.5
    return words, torch.where(obeys, (words * 7 + 3) % 2000, nexts)


class Sampled(Kind):
    """Embeddings learned from word pairs by a sampled softmax: what is frequent is learned first."""

    rate = 0.01

    def build(self) -> None:
        self.inner, self.outer, self.bias = nn.Embedding(2000, 16), nn.Embedding(2000, 16), nn.Embedding(2000, 1)
        nn.init.normal_(self.outer.weight, std=0.1)
        nn.init.zeros_(self.bias.weight)

    def draw(self, k: int, random: Random) -> Any:
        words, nexts = skewed()
        chosen = pick(50000, 128, random)
        return words[chosen], nexts[chosen], pick(2000, 64, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        word, after, others = batch
        state = self.inner(word)
        right = (state * self.outer(after)).sum(1, keepdim=True) + self.bias(after)
        wrong = state @ self.outer(others).T + self.bias(others).T
        return functional.cross_entropy(torch.cat([right, wrong], 1), torch.zeros(len(word), dtype=torch.long))

    def score(self) -> float:
        words, nexts = skewed()
        return float(self.loss((words[50000:], nexts[50000:], pick(2000, 64, Random().manual_seed(1))), 0))


@functools.cache
def far() -> tuple[Tensor, Tensor]:
    x, y = make_friedman1(4000, noise=1.0, random_state=11)
    return torch.tensor(x).float() * 2 - 1, torch.tensor(y).float() * 20 + 1000


class FarOff(Kind):
    """A regression whose targets have mean 1,300 and deviation 100: a huge first loss."""

    rate = 0.1

    def build(self) -> None:
        self.net = mlp(10, 64, 64, 1)

    def draw(self, k: int, random: Random) -> Any:
        x, y = far()
        chosen = pick(3000, 32, random)
        return x[chosen], y[chosen]

    def loss(self, batch: Any, k: int) -> Tensor:
        return (self.net(batch[0])[:, 0] - batch[1]).square().mean()

    def score(self) -> float:
        x, y = far()
        return float(self.loss((x[3000:], y[3000:]), 0))


class Oscillator(Kind):
    """A physics-informed net: a damped oscillator by its equation and its start, without data."""

    rate = 0.003

    def build(self) -> None:
        self.net = mlp(1, 32, 32, 1, act=nn.Tanh)

    def draw(self, k: int, random: Random) -> Any:
        return (torch.rand(48, 1, generator=random),)

    def loss(self, batch: Any, k: int) -> Tensor:
        with torch.enable_grad():
            t = torch.cat([torch.zeros(1, 1), batch[0]]).requires_grad_()
            u = self.net(t)
            (first,) = torch.autograd.grad(u.sum(), t, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), t, create_graph=True)
            residual = second + 2 * first + 60 * u
            start = (u[0, 0] - 1).square() + 0.1 * first[0, 0].square()
            return 1e-3 * residual[1:].square().mean() + start

    def score(self) -> float:
        t = torch.linspace(0, 1, 101)[:, None]
        w = math.sqrt(59)
        true = (-t).exp() * ((w * t).cos() + (w * t).sin() / w)
        return float((self.net(t) - true).square().mean())


class ClippedRnn(Kind):
    """A recurrent net adds two marked numbers of twenty; gradients are clipped."""

    rate = 0.01
    clip: ClassVar[float | None] = 1.0

    def build(self) -> None:
        self.rnn, self.head = nn.RNN(2, 32, batch_first=True), nn.Linear(32, 1)

    @staticmethod
    def sums(size: int, random: Random) -> tuple[Tensor, Tensor]:
        values = torch.rand(size, 20, generator=random)
        marks = torch.zeros(size, 20)
        rows = torch.arange(size)
        a, b = torch.randint(10, (size,), generator=random), 10 + torch.randint(10, (size,), generator=random)
        marks[rows, a] = marks[rows, b] = 1.0
        return torch.stack([values, marks], 2), values[rows, a] + values[rows, b]

    def draw(self, k: int, random: Random) -> Any:
        return self.sums(32, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        return (self.head(self.rnn(batch[0])[0][:, -1])[:, 0] - batch[1]).square().mean()

    def score(self) -> float:
        return float(self.loss(self.sums(500, Random().manual_seed(1)), 0))


class PostNorm(Kind):
    """A transformer with its norms after the residual sum, over bytes."""

    rate = 0.003

    def build(self) -> None:
        self.tokens, self.places = nn.Embedding(128, 32), nn.Parameter(torch.randn(24, 32) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(32, 128)

    @staticmethod
    def cut(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        chosen = text[starts[:, None] + torch.arange(25)]
        return chosen[:, :-1], chosen[:, 1:]

    def draw(self, k: int, random: Random) -> Any:
        text = source()[0]
        return self.cut(text, pick(len(text) - 25, 8, random))

    def loss(self, batch: Any, k: int) -> Tensor:
        x = self.tokens(batch[0]) + self.places
        mask = nn.Transformer.generate_square_subsequent_mask(24)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return functional.cross_entropy(self.head(x).flatten(0, 1), batch[1].flatten())

    def score(self) -> float:
        text = source()[1]
        return float(self.loss(self.cut(text, torch.arange(0, len(text) - 25, 120)), 0))


@functools.cache
def clicks() -> tuple[Tensor, Tensor]:
    """Users and items of big tables, and whether the one clicked on the other."""
    random = Random().manual_seed(21)
    users, items = normal(random, 500, 4), normal(random, 800, 4)
    pairs = torch.stack([pick(500, 40000, random), pick(800, 40000, random)], 1)
    score = (users[pairs[:, 0]] * items[pairs[:, 1]]).sum(1) - 1.5
    return pairs, (torch.rand(40000, generator=random) < torch.sigmoid(2 * score)).float()


class Tables(Kind):
    """Clicks by embeddings of which a batch touches few rows, and a small net on top."""

    rate = 0.01

    def build(self) -> None:
        self.users, self.items, self.net = nn.Embedding(500, 8), nn.Embedding(800, 8), mlp(24, 32, 1)

    def draw(self, k: int, random: Random) -> Any:
        pairs, clicked = clicks()
        chosen = pick(36000, 64, random)
        return pairs[chosen], clicked[chosen]

    def loss(self, batch: Any, k: int) -> Tensor:
        a, b = self.users(batch[0][:, 0]), self.items(batch[0][:, 1])
        out = self.net(torch.cat([a, b, a * b], 1))[:, 0]
        return functional.binary_cross_entropy_with_logits(out, batch[1])

    def score(self) -> float:
        pairs, clicked = clicks()
        return float(self.loss((pairs[36000:], clicked[36000:]), 0))


KINDS: dict[str, type[Kind]] = {
    "plain cnn": PlainCnn,
    "norm cnn": NormCnn,
    "deep mlp": Deep,
    "fragile": Fragile,
    "two groups": TwoGroups,
    "rare class": Rare,
    "sampled softmax": Sampled,
    "far regression": FarOff,
    "oscillator": Oscillator,
    "clipped rnn": ClippedRnn,
    "post-norm": PostNorm,
    "tables": Tables,
}
