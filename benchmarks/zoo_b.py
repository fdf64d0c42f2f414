"""Trainings of the zoo, part B: generators, sequences, physics, changing data, odd losses and odd schedules."""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from zoo_base import Kind

SOURCES = ["argparse.py", "ast.py", "datetime.py", "doctest.py", "inspect.py", "pickle.py", "tarfile.py", "typing.py"]
"""Files of the standard library that texts are made of."""


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Handwritten digits in [0, 1], shape (n, 8, 8), and their classes: for training, then held out."""
    bunch: Any = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(5))
    x, y = torch.tensor(bunch.images, dtype=torch.float32)[order] / 16, torch.tensor(bunch.target)[order]
    return x[:1280], y[:1280], x[1280:], y[1280:]


@functools.cache
def text() -> str:
    """Sources of the standard library, in ASCII."""
    folder = Path(os.__file__).parent
    texts = [
        (folder / name).read_text(encoding="utf-8", errors="ignore") for name in SOURCES if (folder / name).exists()
    ]
    return "\n".join(texts).encode("ascii", "ignore").decode()


def pick(n: int, size: int, random: torch.Generator) -> Tensor:
    """Indices below `n`; Tensor, shape (size,)."""
    return torch.randint(0, n, (size,), generator=random)


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with `act` between them."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


class Denoising(Kind):
    """Denoising diffusion of digits: the net predicts the noise in them at a random timestep, with AdamW."""

    rate = 3e-3
    steps: ClassVar[int] = 100

    def build(self) -> None:
        """A residual net of an image and its timestep."""
        self.enter, self.times_in = nn.Linear(64, 128), nn.Linear(16, 128)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128)) for _ in range(2)
        )
        self.leave = nn.Linear(128, 64)
        self.kept = torch.cos(torch.linspace(0.02, 0.99, self.steps) * math.pi / 2).square()

    def mixed(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The images with noise for timestep `t`."""
        kept = self.kept[t][:, None]
        return kept.sqrt() * (2 * x.flatten(1) - 1) + (1 - kept).sqrt() * noise

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Noisy images, their noise, their timesteps."""
        x = digits()[0][pick(1280, 64, random)]
        noise = torch.randn(64, 64, generator=random)
        t = pick(self.steps, 64, random)
        return self.mixed(x, noise, t), noise, t

    def loss(self, batch: Any, k: int) -> Tensor:
        """The squared error of the predicted noise."""
        x, noise, t = batch
        waves = (t[:, None] / self.steps) * 2.0 ** torch.arange(8) * math.pi / 2
        h = self.enter(x) + self.times_in(torch.cat([waves.sin(), waves.cos()], 1))
        for block in self.blocks:
            h = h + block(h)
        return functional.mse_loss(self.leave(h), noise)

    def score(self) -> float:
        """The same of held-out images with timesteps spread evenly."""
        x = digits()[2]
        noise = torch.randn(len(x), 64, generator=torch.Generator().manual_seed(1))
        t = torch.arange(len(x)) % self.steps
        return float(self.loss((self.mixed(x, noise, t), noise, t), 0))


class Alignment(Kind):
    """Connectionist temporal classification of synthetic sequences by a recurrent net, with Adam."""

    rate = 1e-2
    updates = 400
    symbols: ClassVar[int] = 5
    frames: ClassVar[int] = 24

    def build(self) -> None:
        """A GRU over frames, and held-out sequences."""
        self.looks = torch.randn(self.symbols + 1, 8, generator=torch.Generator().manual_seed(2))
        self.looks[0] = 0
        self.gru, self.head = nn.GRU(8, 24, batch_first=True), nn.Linear(24, self.symbols + 1)
        self.held = self.sequences(256, torch.Generator().manual_seed(3))

    def sequences(self, n: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Frames, shape (n, frames, 8), their labels, shape (n, 4), and how many labels each has: 2 to 4."""
        labels = 1 + torch.randint(0, self.symbols, (n, 4), generator=random)
        count = 2 + pick(3, n, random)
        spans = 2 + torch.randint(0, 3, (n, 9), generator=random)  # silence and symbols in turn
        shown = torch.zeros(n, 9, dtype=torch.long)
        shown[:, 1:8:2] = labels * (torch.arange(4) < count[:, None])
        place = (torch.arange(self.frames)[None, :, None] >= spans.cumsum(1)[:, None, :]).sum(2).clamp(max=8)
        x = self.looks[shown.gather(1, place)]
        return x + 0.7 * torch.randn(x.shape, generator=random), labels, count

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Frames, labels, their number."""
        return self.sequences(24, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        """CTC, by the label."""
        x, labels, count = batch
        logs = self.head(self.gru(x)[0]).log_softmax(2).transpose(0, 1)
        return functional.ctc_loss(logs, labels, torch.full((len(x),), self.frames), count)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=rate)

    def score(self) -> float:
        """The same of held-out sequences."""
        return float(self.loss(self.held, 0))


class Walk(Kind):
    """REINFORCE with a learned baseline in a grid with pits, episodes made by the net as it is, with RMSprop."""

    rate = 1e-2
    updates = 500
    loss_falls = False
    side: ClassVar[int] = 4
    horizon: ClassVar[int] = 12

    def build(self) -> None:
        """A net from a cell's picture to four actions and a value; the grid's moves and rewards."""
        cells = self.side**2
        self.body, self.act, self.value = mlp(cells, 32, 32, act=nn.Tanh), nn.Linear(32, 4), nn.Linear(32, 1)
        row, column = torch.arange(cells) // self.side, torch.arange(cells) % self.side
        near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        moves = [r.clamp(0, self.side - 1) * self.side + c.clamp(0, self.side - 1) for r, c in near]
        ends = torch.zeros(cells, dtype=torch.bool)
        rewards = torch.full((cells,), -0.02)
        for cell, reward in [(cells - 1, 1.0), (5, -0.5), (11, -0.5)]:
            ends[cell], rewards[cell] = True, reward
        self.moves, self.ends, self.rewards = torch.stack(moves, 1), ends, rewards
        self.moves[ends] = torch.arange(cells)[ends][:, None]

    def outputs(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithms of each cell's action probabilities, and its value."""
        h = torch.tanh(self.body(pictures))
        return self.act(h).log_softmax(1), self.value(h)[:, 0]

    def draw(self, k: int, random: torch.Generator) -> Any:
        """The cells' pictures, the noise of the rewards, and the chances by which 24 episodes are played."""
        noise = 0.1 * torch.randn(24, self.horizon, generator=random)
        return torch.eye(self.side**2), noise, torch.rand(24, self.horizon, generator=random)

    def loss(self, batch: Any, k: int) -> Tensor:
        """Plays the episodes; minus the advantages times the logarithms, the value's error, and a little entropy."""
        pictures, noise, chances = batch
        logs, values = self.outputs(pictures)
        odds = logs.detach().exp().cumsum(1)
        at = torch.zeros(len(noise), dtype=torch.long)
        visited, taken, gained, alive = [], [], [], []
        for t in range(self.horizon):
            action = (chances[:, t, None] > odds[at]).sum(1).clamp(max=3)
            visited.append(at)
            taken.append(action)
            alive.append(~self.ends[at])
            at = self.moves[at, action]
            gained.append((self.rewards[at] + noise[:, t]) * alive[-1])
        states, actions, on = torch.stack(visited, 1), torch.stack(taken, 1), torch.stack(alive, 1)
        returns = torch.stack(gained, 1).flip(1).cumsum(1).flip(1)
        advantage = returns - values[states]
        policy = -(advantage.detach() * logs[states, actions] * on).sum() / on.sum()
        entropy = -(logs.exp() * logs).sum(1)[states[on]].mean()
        return policy + 0.5 * (advantage.square() * on).sum() / on.sum() - 0.03 * entropy

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """RMSprop."""
        return torch.optim.RMSprop(self.parameters(), lr=rate)

    def score(self) -> float:
        """Minus the expected return, computed exactly."""
        chances = self.outputs(torch.eye(self.side**2))[0].exp()
        worth = torch.zeros(self.side**2)
        for _ in range(self.horizon):
            worth = (chances * (self.rewards[self.moves] + worth[self.moves])).sum(1) * ~self.ends
        return -float(worth[0])


class Quantiles(Kind):
    """Quantile regression by the pinball loss, noise with a Pareto tail, with momentum."""

    rate = 0.1
    levels: ClassVar[tuple[float, ...]] = (0.1, 0.5, 0.9)
    tail: ClassVar[float] = 1.3

    def build(self) -> None:
        """A net with an output for each level, and the exact quantiles of held-out inputs."""
        self.net = mlp(4, 64, 64, len(self.levels))
        self.x = torch.rand(2000, 4, generator=torch.Generator().manual_seed(4)) * 2 - 1
        self.tau = torch.tensor(self.levels)
        middle, spread = self.shape_of(self.x)
        self.exact = middle + spread * ((1 - self.tau) ** (-1 / self.tail) - 1)

    @staticmethod
    def shape_of(x: Tensor) -> tuple[Tensor, Tensor]:
        """Where the noise begins, and its scale; each of shape (n, 1)."""
        middle = torch.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2]
        return middle[:, None], (0.3 + 0.7 * torch.sigmoid(4 * x[:, 3]))[:, None]

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Inputs, and targets above the middle."""
        x = torch.rand(64, 4, generator=random) * 2 - 1
        middle, spread = self.shape_of(x)
        heavy = (1 - torch.rand(64, 1, generator=random)) ** (-1 / self.tail) - 1
        return x, middle + spread * heavy

    def loss(self, batch: Any, k: int) -> Tensor:
        """The pinball loss, the mean over levels."""
        x, y = batch
        over = y - self.net(x)
        return torch.maximum(self.tau * over, (self.tau - 1) * over).mean()

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """Momentum."""
        return torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9)

    def score(self) -> float:
        """The mean error of the quantiles."""
        return float((self.net(self.x) - self.exact).abs().mean())


class Physics(Kind):
    """Physics-informed: a net that solves -u'' = f on [0, 1] with u = 0 at both ends, with Adam."""

    rate = 1e-2
    updates = 800

    def build(self) -> None:
        """A tanh net of one input."""
        self.net = mlp(1, 32, 32, 1, act=nn.Tanh)

    @staticmethod
    def solution(x: Tensor) -> tuple[Tensor, Tensor]:
        """The exact u, and f."""
        one, three = torch.sin(math.pi * x), torch.sin(3 * math.pi * x)
        return one + 0.5 * three, math.pi**2 * (one + 4.5 * three)

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Places, and f there."""
        x = torch.rand(64, 1, generator=random)
        return x, self.solution(x)[1]

    def loss(self, batch: Any, k: int) -> Tensor:
        """The squared residual of the equation, and that of the ends."""
        x, f = batch
        x = x.clone().requires_grad_()
        first = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), x, create_graph=True)[0]
        return 0.01 * (second + f).square().mean() + 10 * self.net(torch.tensor([[0.0], [1.0]])).square().mean()

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=rate)

    def score(self) -> float:
        """The error of u, as a share of u's own size."""
        x = torch.linspace(0, 1, 201)[:, None]
        u = self.solution(x)[0]
        return float((self.net(x) - u).square().mean().sqrt() / u.square().mean().sqrt())


class Modular(Kind):
    """Addition modulo a prime: a long plateau, then the loss falls in steps; AdamW with much weight decay."""

    rate = 3e-3
    updates = 1000
    prime: ClassVar[int] = 67

    def build(self) -> None:
        """Embeddings of both numbers, and a layer whose units are squared; the pairs, of which a fifth is held out."""
        p = self.prime
        self.left, self.right = nn.Embedding(p, 48), nn.Embedding(p, 48)
        self.hidden, self.head = nn.Linear(96, 128), nn.Linear(128, p)
        for weights in self.parameters():
            weights.data.mul_(0.1)
        order = torch.randperm(p * p, generator=torch.Generator().manual_seed(6))
        pairs = torch.stack([order // p, order % p], 1)
        self.pairs, self.held = pairs[: len(pairs) * 4 // 5], pairs[len(pairs) * 4 // 5 :]

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Pairs and their sums."""
        pairs = self.pairs[pick(len(self.pairs), 128, random)]
        return pairs, pairs.sum(1) % self.prime

    def loss(self, batch: Any, k: int) -> Tensor:
        """The cross-entropy of the sum."""
        pairs, y = batch
        both = torch.cat([self.left(pairs[:, 0]), self.right(pairs[:, 1])], 1)
        return functional.cross_entropy(self.head(self.hidden(both).square()), y)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """AdamW with weight decay 0.5."""
        return torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=0.5, betas=(0.9, 0.98))

    def score(self) -> float:
        """The same of held-out pairs."""
        return float(self.loss((self.held, self.held.sum(1) % self.prime), 0))


class Domain(Kind):
    """Digits that lie on their side from three fifths of the run on, for good, with momentum."""

    rate = 3e-2

    def build(self) -> None:
        """A net of images."""
        self.net = nn.Sequential(nn.Flatten(), *mlp(64, 96, 96, 10))

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Images of batch `k`'s domain, and their classes."""
        x, y, *_ = digits()
        i = pick(1280, 32, random)
        return (x[i].rot90(1, (1, 2)) if k >= 0.6 * self.length else x[i]), y[i]

    def loss(self, batch: Any, k: int) -> Tensor:
        """The cross-entropy."""
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """Momentum."""
        return torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9)

    def score(self) -> float:
        """The same of held-out images of the new domain."""
        return float(self.loss((digits()[2].rot90(1, (1, 2)), digits()[3]), 0))


class SecondTask(Kind):
    """Digits, and from half of the run on, as every second batch, whose loss weighs five times, another task; NAdam."""

    rate = 1e-2

    def build(self) -> None:
        """A trunk and two heads; the second task: which half of the ink lies where."""
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(64, 10), nn.Linear(64, 10)])

    @staticmethod
    def targets(x: Tensor, y: Tensor, task: int) -> Tensor:
        """The digit; or, as the second task, another numbering of the digits, by whether there is much ink."""
        much = (x.flatten(1).mean(1) > 0.305).long()
        return (y * 3 + 5 * much) % 10 if task else y

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Images, targets, which task."""
        x, y, *_ = digits()
        i = pick(1280, 32, random)
        task = int(k >= 0.5 * self.length and k % 2)
        return x[i], self.targets(x[i], y[i], task), torch.tensor(task)

    def loss(self, batch: Any, k: int) -> Tensor:
        """The cross-entropy, five times for the second task."""
        x, y, task = batch
        task = int(task)
        return functional.cross_entropy(self.heads[task](self.trunk(x)), y) * (5 if task else 1)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """NAdam."""
        return torch.optim.NAdam(self.parameters(), lr=rate)

    def score(self) -> float:
        """The cross-entropies of both tasks on held-out images, the mean."""
        _, _, x, y = digits()
        h = self.trunk(x)
        losses = [functional.cross_entropy(self.heads[task](h), self.targets(x, y, task)) for task in (0, 1)]
        return float(sum(losses)) / 2


class Rare(Kind):
    """Two of six classes are one in 500 each and weigh 30 times as much, with AdamW."""

    rate = 3e-3

    def build(self) -> None:
        """A net, the classes' centres, and held-out examples: 500 of each class."""
        self.net = mlp(10, 64, 64, 6)
        made = torch.Generator().manual_seed(7)
        self.centres = torch.randn(6, 10, generator=made) * 0.9
        self.weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 30.0, 30.0])
        self.shares = torch.tensor([0.249, 0.249, 0.249, 0.249, 0.002, 0.002])
        self.y = torch.arange(6).repeat_interleave(500)
        self.x = self.inputs(self.y, made)

    def inputs(self, y: Tensor, random: torch.Generator) -> Tensor:
        """Examples of these classes, each on a bent surface about its centre."""
        z = torch.randn(len(y), 10, generator=random)
        return self.centres[y] + z + 0.5 * z.roll(1, 1).square() * self.centres[y].sign()

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Examples and their classes."""
        y = torch.bucketize(torch.rand(96, generator=random), self.shares.cumsum(0)[:-1])
        return self.inputs(y, random), y

    def loss(self, batch: Any, k: int) -> Tensor:
        """The weighted cross-entropy."""
        return functional.cross_entropy(self.net(batch[0]), batch[1], weight=self.weights)

    def score(self) -> float:
        """The same of held-out examples, each class as often as in training."""
        losses = functional.cross_entropy(self.net(self.x), self.y, reduction="none")
        share = (self.shares * self.weights)[self.y]
        return float((losses * share).sum() / share.sum())


class TinyBatches(Kind):
    """Batch norm in batches of four digits, with momentum."""

    rate = 1e-2
    updates = 800

    def build(self) -> None:
        """A small convolutional net."""
        body = [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)]
        head = [nn.Flatten(), nn.Linear(192, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)]
        self.net = nn.Sequential(nn.Unflatten(1, (1, 8)), *body, *head)

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Four images and their classes."""
        i = pick(1280, 4, random)
        return digits()[0][i], digits()[1][i]

    def loss(self, batch: Any, k: int) -> Tensor:
        """The cross-entropy."""
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """Momentum."""
        return torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9)

    def score(self) -> float:
        """The same of held-out images, with the running statistics."""
        return float(self.loss(digits()[2:], 0))


class Edge(Kind):
    """Full-batch gradient descent of a tanh net at the edge of stability, with plain SGD."""

    rate = 0.3
    updates = 600

    def build(self) -> None:
        """A net of images."""
        self.net = nn.Sequential(nn.Flatten(), *mlp(64, 64, 64, 10, act=nn.Tanh))

    def draw(self, k: int, random: torch.Generator) -> Any:
        """The same 400 images every time, and the codes of their classes."""
        return digits()[0][:400], functional.one_hot(digits()[1][:400], 10).float()

    def loss(self, batch: Any, k: int) -> Tensor:
        """Half the squared error, summed over the classes."""
        return 0.5 * (self.net(batch[0]) - batch[1]).square().sum(1).mean()

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """Gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=rate)

    def score(self) -> float:
        """The same of held-out images."""
        return float(self.loss((digits()[2], functional.one_hot(digits()[3], 10).float()), 0))


class Bytes(Kind):
    """A small transformer that predicts the next byte of Python sources, AdamW without a warm-up."""

    rate = 3e-3
    updates = 400
    length_of: ClassVar[int] = 32

    def build(self) -> None:
        """Two encoder layers with a causal mask, normed after; the bytes, of which the last part is held out."""
        n = self.length_of
        self.table, self.place = nn.Embedding(128, 48), nn.Parameter(torch.randn(n, 48) * 0.02)
        layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True)
        self.body, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(48, 128)
        self.mask = torch.triu(torch.full((n, n), -math.inf), 1)
        data = torch.tensor(list(text().encode()))
        self.data, held = data[:300_000], data[300_000:]
        self.held = held[: len(held) // (n + 1) * (n + 1)].view(-1, n + 1)[::97][:64]

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Bytes, and the next of each."""
        n = self.length_of
        rows = self.data[pick(len(self.data) - n - 1, 12, random)[:, None] + torch.arange(n + 1)]
        return rows[:, :-1], rows[:, 1:]

    def loss(self, batch: Any, k: int) -> Tensor:
        """The cross-entropy of the next byte."""
        h = self.body(self.table(batch[0]) + self.place, mask=self.mask)
        return functional.cross_entropy(self.head(h).flatten(0, 1), batch[1].flatten())

    def score(self) -> float:
        """The same of held-out bytes."""
        return float(self.loss((self.held[:, :-1], self.held[:, 1:]), 0))


class Words(Kind):
    """Skip-grams with negative sampling over the words of Python sources, with Adagrad."""

    rate = 0.1
    vocabulary: ClassVar[int] = 500

    def build(self) -> None:
        """Two tables, of which an update moves few rows; the pairs, of which the last tenth is held out."""
        self.inner, self.outer = nn.Embedding(self.vocabulary, 32), nn.Embedding(self.vocabulary, 32)
        nn.init.uniform_(self.inner.weight, -0.02, 0.02)
        nn.init.zeros_(self.outer.weight)
        words, odds = self.words()
        centre = torch.arange(3, len(words) - 3)[:, None].expand(-1, 6)
        pairs = torch.stack([words[centre], words[centre + torch.tensor([-3, -2, -1, 1, 2, 3])]], 2).flatten(0, 1)
        self.pairs, self.held = pairs[: len(pairs) * 9 // 10], pairs[len(pairs) * 9 // 10 :][::7][:4000]
        self.edges = odds.cumsum(0)[:-1]
        self.others = self.negatives(len(self.held), torch.Generator().manual_seed(8))

    @classmethod
    @functools.cache
    def words(cls) -> tuple[Tensor, Tensor]:
        """The sources' frequent words by number, and how often each is drawn as a negative."""
        found = re.findall(r"[A-Za-z_]{2,}", text())
        number = {word: i for i, (word, _) in enumerate(Counter(found).most_common(cls.vocabulary))}
        words = torch.tensor([number[word] for word in found if word in number])
        odds = torch.bincount(words, minlength=cls.vocabulary).float() ** 0.75
        return words, odds / odds.sum()

    def negatives(self, n: int, random: torch.Generator) -> Tensor:
        """Random words; Tensor, shape (n, 5)."""
        return torch.bucketize(torch.rand(n, 5, generator=random), self.edges)

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Pairs of near words, and other words."""
        return self.pairs[pick(len(self.pairs), 256, random)], self.negatives(256, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        """The logistic loss of one pair and five others."""
        pairs, others = batch
        outer = self.outer(torch.cat([pairs[:, 1:], others], 1))
        near = (outer * self.inner(pairs[:, :1])).sum(2)
        return -functional.logsigmoid(near[:, 0]).mean() - functional.logsigmoid(-near[:, 1:]).sum(1).mean()

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        """Adagrad."""
        return torch.optim.Adagrad(self.parameters(), lr=rate)

    def score(self) -> float:
        """The same of held-out pairs with always the same others."""
        return float(self.loss((self.held, self.others), 0))


class Restarts(Kind):
    """A convolutional net of digits whose rate falls to zero and jumps back four times, with momentum."""

    rate = 3e-2

    def build(self) -> None:
        """A small convolutional net."""
        body = [nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.ReLU()]
        head = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10)]
        self.net = nn.Sequential(nn.Unflatten(1, (1, 8)), *body, *head)

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Images and their classes."""
        i = pick(1280, 32, random)
        return digits()[0][i], digits()[1][i]

    def loss(self, batch: Any, k: int) -> Tensor:
        """The cross-entropy."""
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def factor(self, k: int) -> float:
        """Of the rate at batch `k`: four cosines in turn, times what a rate fault makes of it."""
        cycle = self.length / 4
        share = 0.5 * (1 + math.cos(math.pi * (k % cycle) / cycle))
        fault, d = self.fault or "", k - self.at
        if fault.startswith("rate") and d >= 0:
            return share * (10.0 if fault == "rate x10" else 100.0 if d < 50 else 1.0)
        return share

    def before_batch(self, k: int, optimizer: torch.optim.Optimizer) -> None:
        """As the base, but the scheduler knows of the rate faults already."""
        if (self.fault or "").startswith("rate"):
            self.batch_number = k
        else:
            super().before_batch(k, optimizer)

    def configure_optimizers(self) -> Any:
        """Momentum, and a scheduler that steps with every batch."""
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate * self.times, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def score(self) -> float:
        """The cross-entropy of held-out images."""
        return float(self.loss(digits()[2:], 0))


class Adversaries(Kind):
    """A GAN of eight points on a ring, non-saturating, two optimizers (Adam) under manual optimization."""

    rate = 3e-3
    loss_falls = False

    def build(self) -> None:
        """A generator and a critic, and held-out points."""
        self.automatic_optimization = False
        self.generator, self.critic = mlp(2, 48, 48, 2), mlp(2, 48, 48, 1, act=nn.SiLU)
        made = torch.Generator().manual_seed(9)
        self.real, self.noise = self.ring(500, made), torch.randn(500, 2, generator=made)

    @staticmethod
    def ring(n: int, random: torch.Generator) -> Tensor:
        """Points about eight places; Tensor, shape (n, 2)."""
        angle = pick(8, n, random) * (math.pi / 4)
        return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.15 * torch.randn(n, 2, generator=random)

    def draw(self, k: int, random: torch.Generator) -> Any:
        """Real points, and the noise that the generator makes points of."""
        return self.ring(96, random), torch.randn(96, 2, generator=random)

    def critic_loss(self, batch: Any) -> Tensor:
        """The logistic loss of telling real from made."""
        real, noise = batch
        made = self.generator(noise).detach()
        return (functional.softplus(-self.critic(real)) + functional.softplus(self.critic(made))).mean()

    def loss(self, batch: Any, k: int) -> Tensor:
        """The generator's."""
        return functional.softplus(-self.critic(self.generator(batch[1]))).mean()

    def configure_optimizers(self) -> Any:
        """The generator's, then the critic's at twice the rate."""
        rate = self.rate * self.times
        makes = torch.optim.Adam(self.generator.parameters(), lr=rate, betas=(0.5, 0.99))
        return [makes, torch.optim.Adam(self.critic.parameters(), lr=2 * rate, betas=(0.5, 0.99))]

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        """One update of the critic, one of the generator."""
        sign = -1.0 if (self.fault or "").startswith("loss times -1") and 0 <= self.since() < 15 else 1.0
        makes, tells = self.optimizers()  # type: ignore[misc]
        tells.zero_grad()
        self.manual_backward(sign * self.critic_loss(batch))
        tells.step()
        makes.zero_grad()
        self.manual_backward(sign * self.loss(batch, batch_idx))
        makes.step()

    def score(self) -> float:
        """The energy distance from made points to held-out ones."""
        made, real = self.generator(self.noise), self.real
        within = torch.cdist(made, made).mean() + torch.cdist(real, real).mean()
        return float(2 * torch.cdist(made, real).mean() - within)


KINDS: dict[str, type[Kind]] = {
    "diffusion": Denoising,
    "ctc": Alignment,
    "reinforce": Walk,
    "quantiles": Quantiles,
    "physics": Physics,
    "modular": Modular,
    "domain": Domain,
    "second task": SecondTask,
    "rare classes": Rare,
    "tiny batches": TinyBatches,
    "edge": Edge,
    "bytes": Bytes,
    "words": Words,
    "restarts": Restarts,
    "gan": Adversaries,
}
