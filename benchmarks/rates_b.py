"""Twelve small trainings for judging the rates that the finder finds: part B.

They took no part in the design of any rule. A class with a `clip` is trained with the gradient's norm clipped to it.
"""

from __future__ import annotations

import functools
import math
import re
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional
from zoo_a import mlp, normal, pick
from zoo_base import Kind

Random = torch.Generator

SOURCES = ["argparse", "ast", "calendar", "datetime", "difflib", "doctest", "inspect", "locale", "mailbox", "optparse"]
SOURCES += ["pdb", "pickle", "platform", "smtplib", "statistics", "subprocess", "tarfile", "threading", "typing"]
SOURCES += ["turtle", "zipfile/__init__", "zipfile"]
HELD_SOURCES = ["configparser", "ftplib", "heapq", "shutil", "textwrap"]


def uniform(random: Random, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=random)


def source(name: str) -> bytes:
    """A module of Python's own library; nothing where this Python hasn't got it."""
    path = Path(sysconfig.get_paths()["stdlib"]) / f"{name}.py"
    return path.read_bytes() if path.exists() else b""


@functools.cache
def source_bytes(names: tuple[str, ...]) -> Tensor:
    text = b"".join(map(source, names))
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long().clamp(max=127)


class Gratings(Kind):
    """Orientation of noisy gratings by a deep net without norms, in torch's own initialisation: a plateau first."""

    rate = 1e-3

    def build(self) -> None:
        self.net = mlp(64, *[64] * 5, 6)

    @staticmethod
    def gratings(size: int, random: Random) -> tuple[Tensor, Tensor]:
        y, place = pick(6, size, random), torch.arange(8) - 3.5
        angle, (phase, pace) = y * (math.pi / 6), uniform(random, 2, size)
        along = place[:, None] * angle.cos()[:, None, None] + place * angle.sin()[:, None, None]
        waves = torch.sin((0.7 + 0.5 * pace)[:, None, None] * along + (2 * math.pi * phase)[:, None, None])
        return waves.flatten(1) + 0.4 * normal(random, size, 64), y

    def draw(self, k: int, random: Random) -> Any:
        return self.gratings(32, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def score(self) -> float:
        return float(self.loss(self.gratings(600, Random().manual_seed(1)), 0))


@functools.cache
def picture() -> tuple[Tensor, Tensor]:
    """All patches of 8 x 8 of a photograph's left, and some of its right."""
    grey = torch.tensor(load_sample_image("china.jpg").mean(2)[::2, ::2] / 255, dtype=torch.float32)
    left, right = (
        part.unfold(0, 8, 1).unfold(1, 8, 1).flatten(0, 1).flatten(1) for part in (grey[:, :230], grey[:, 240:])
    )
    return left, right[:: len(right) // 500]


class Inpainting(Kind):
    """The middle of a photograph's patch from what is around it, through a sigmoid, by squared error."""

    rate = 3e-3

    def build(self) -> None:
        self.net = nn.Sequential(mlp(48, 96, 96, 16), nn.Sigmoid())
        middle = torch.zeros(8, 8, dtype=torch.bool)
        middle[2:6, 2:6] = True
        self.middle = middle.flatten()

    def draw(self, k: int, random: Random) -> Any:
        x = picture()[0]
        x = x[pick(len(x), 32, random)]
        return x[:, ~self.middle], x[:, self.middle]

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.mse_loss(self.net(batch[0]), batch[1])

    def score(self) -> float:
        x = picture()[1]
        return float(self.loss((x[:, ~self.middle], x[:, self.middle]), 0))


@functools.cache
def tokens() -> tuple[Tensor, Tensor]:
    """Words and signs of sources by number, the rare ones 0; the second part is of other files."""
    parts = [
        re.findall(r"\w+|[^\w\s]", b"".join(map(source, names)).decode("ascii", "ignore"))
        for names in (SOURCES, HELD_SOURCES)
    ]
    number = {word: i for i, (word, _) in enumerate(Counter(parts[0]).most_common(Vocabulary.size - 1), 1)}
    train, held = (torch.tensor([number.get(word, 0) for word in part]) for part in parts)
    return train, held


class Vocabulary(Kind):
    """The next of 1500 words from the three before it: how often each comes is learned first, and fast."""

    rate = 3e-3
    size: ClassVar[int] = 1500

    def build(self) -> None:
        self.table, self.net = nn.Embedding(self.size, 24), mlp(72, 48, self.size, act=nn.Tanh)

    def draw(self, k: int, random: Random) -> Any:
        words = tokens()[0]
        rows = words[pick(len(words) - 3, 48, random)[:, None] + torch.arange(4)]
        return rows[:, :3], rows[:, 3]

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.cross_entropy(self.net(self.table(batch[0]).flatten(1)), batch[1])

    def score(self) -> float:
        words = tokens()[1]
        rows = words[: len(words) // 4 * 4].view(-1, 4)
        rows = rows[:: len(rows) // 800]
        return float(self.loss((rows[:, :3], rows[:, 3]), 0))


class Kelvin(Kind):
    """Temperatures in kelvin from place and time, as they come: nearly all of the first loss is their mean."""

    rate = 3e-2

    def build(self) -> None:
        self.net = mlp(7, 64, 64, 1, act=nn.SiLU)

    @staticmethod
    def weather(size: int, random: Random) -> tuple[Tensor, Tensor]:
        day, hour, latitude, height, cloud = uniform(random, 5, size)
        day, hour, latitude = 2 * math.pi * day, 2 * math.pi * hour, 2 * latitude - 1
        season = -torch.cos(day - 0.5) * latitude * 18
        daily = -torch.cos(hour - 0.6) * 9 * (1 - cloud) * (1 - 0.5 * latitude.abs())
        kelvin = 301 - 42 * latitude.square() + season + daily - 6.5 * 3 * height.square() - 4 * cloud
        x = [day.sin(), day.cos(), hour.sin(), hour.cos(), latitude, height, cloud]
        return torch.stack(x, 1), kelvin + 1.5 * normal(random, size)

    def draw(self, k: int, random: Random) -> Any:
        return self.weather(32, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.mse_loss(self.net(batch[0])[:, 0], batch[1])

    def score(self) -> float:
        return float(self.loss(self.weather(800, Random().manual_seed(1)), 0))


class Front(Kind):
    """Physics-informed: Fisher's equation u_t = u_xx + u (1 - u), whose solution is a wave front that travels."""

    rate = 1e-2

    def build(self) -> None:
        self.net = mlp(2, 32, 32, 1, act=nn.Tanh)

    @staticmethod
    def solution(x: Tensor, t: Tensor) -> Tensor:
        return torch.sigmoid((5 / math.sqrt(6) * t - x) / math.sqrt(6)).square()

    @classmethod
    def places(cls, size: int, random: Random) -> tuple[Tensor, Tensor]:
        """Places (x, t): two thirds inside, a sixth at the start, a sixth at the ends; u at the last third."""
        xt = uniform(random, size, 2) * torch.tensor([12.0, 2.0]) - torch.tensor([5.0, 0.0])
        start, ends = xt[size * 2 // 3 :].chunk(2)
        start[:, 1], ends[:, 0] = 0, torch.where(ends[:, 0] < 1, -5.0, 7.0)
        return xt, cls.solution(*xt[size * 2 // 3 :].unbind(1))

    def draw(self, k: int, random: Random) -> Any:
        return self.places(72, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        (x, t), n = batch[0].T.clone().requires_grad_().unbind(0), len(batch[0]) - len(batch[1])
        u = self.net(torch.stack([(x - 1) / 3, t - 1], 1))[:, 0]
        u_x, u_t = torch.autograd.grad(u.sum(), (x, t), create_graph=True)
        u_xx = torch.autograd.grad(u_x.sum(), x, create_graph=True)[0]
        residual = (u_t - u_xx - u * (1 - u))[:n]
        return residual.square().mean() + (u[n:] - batch[1]).square().mean()

    def score(self) -> float:
        with torch.enable_grad():
            return float(self.loss(self.places(600, Random().manual_seed(1)), 0).detach())


class Snippets(nn.Module):
    """Features of 24 bytes of source text."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(128, 16), nn.Conv1d(16, 48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.mix(self.table(x).transpose(1, 2))).amax(2)


def snippets(names: tuple[str, ...], size: int, random: Random, *, held: bool = False) -> tuple[Tensor, Tensor]:
    """Pieces of these modules (every fourth stretch of 240 bytes is held out), and of which each is."""
    texts, y = [source_bytes((name,)) for name in names], pick(len(names), size, random)
    at, inside = uniform(random, size), pick(240 - 24, size, random)
    stretch = (at * (torch.tensor([len(text) for text in texts]) // 960)[y]).long() * 4
    stretch = stretch + (3 if held else pick(3, size, random))
    begins = torch.tensor([0, *(len(text) for text in texts)]).cumsum(0)[:-1]
    return source_bytes(names)[(begins[y] + stretch * 240 + inside)[:, None] + torch.arange(24)], y


@functools.cache
def pretrained() -> dict[str, Tensor]:
    """A body that can tell eight modules apart."""
    names = ("ast", "calendar", "difflib", "locale", "mailbox", "pickle", "smtplib", "tarfile")
    random = Random().manual_seed(4)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        body, head = Snippets(), nn.Linear(48, 8)
    optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=3e-3)
    with torch.enable_grad():
        for _ in range(1000):
            x, y = snippets(names, 32, random)
            optimizer.zero_grad()
            functional.cross_entropy(head(body(x)), y).backward()
            optimizer.step()
    return body.state_dict()


class FineTuning(Kind):
    """A body that tells modules apart by their text learns other modules, at a tenth of its new head's rate."""

    rate = 3e-2
    names: ClassVar[tuple[str, ...]] = ("argparse", "datetime", "inspect", "statistics", "turtle", "typing")

    def build(self) -> None:
        self.body, self.head = Snippets(), nn.Linear(48, len(self.names))
        self.body.load_state_dict(pretrained())

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        shares = [(self.body, 0.1), (self.head, 1.0)]
        groups = [{"params": list(part.parameters()), "lr": share * rate, "share": share} for part, share in shares]
        return torch.optim.AdamW(groups, lr=rate)

    def draw(self, k: int, random: Random) -> Any:
        return snippets(self.names, 32, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.cross_entropy(self.head(self.body(batch[0])), batch[1])

    def score(self) -> float:
        return float(self.loss(snippets(self.names, 800, Random().manual_seed(1), held=True), 0))


@functools.cache
def lorenz() -> Tensor:
    """The first coordinate of 256 paths of Lorenz's system, about in [-1, 1]; Tensor, shape (256, 200)."""

    def change(s: Tensor) -> Tensor:
        x, y, z = s
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

    s, path, h = normal(Random().manual_seed(3), 3, 256) * 8 + torch.tensor([[0.0], [0.0], [25.0]]), [], 0.02
    for step in range(1100):
        a = change(s)
        b = change(s + h / 2 * a)
        c = change(s + h / 2 * b)
        s = s + h / 6 * (a + 2 * b + 2 * c + change(s + h * c))
        if step >= 100 and step % 5 == 0:
            path.append(s[0] / 15)
    return torch.stack(path, 1)


class Lorenz(Kind):
    """The next value of a chaotic series, of which one coordinate is seen, by a recurrent net; the norm is clipped."""

    rate = 1e-2
    clip: ClassVar[float | None] = 1.0

    def build(self) -> None:
        self.rnn, self.head = nn.RNN(1, 32, batch_first=True), nn.Linear(32, 1)

    def draw(self, k: int, random: Random) -> Any:
        series, row, start = lorenz()[:200], pick(200, 16, random), pick(200 - 17, 16, random)
        cut = series[row[:, None], start[:, None] + torch.arange(17)]
        return cut[:, :-1, None], cut[:, 1:, None]

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.mse_loss(self.head(self.rnn(batch[0])[0]), batch[1])

    def score(self) -> float:
        cut = lorenz()[200:, :187].reshape(-1, 17, 1)[::2]
        return float(self.loss((cut[:, :-1], cut[:, 1:]), 0))


class Waveforms(Kind):
    """Five kinds of noisy wave by a convolutional net with batch norm."""

    rate = 3e-3

    def build(self) -> None:
        layers: list[nn.Module] = []
        for a, b in [(1, 12), (12, 24)]:
            layers += [nn.Conv1d(a, b, 5, stride=2, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24 * 9, 5))

    @staticmethod
    def waves(size: int, random: Random) -> tuple[Tensor, Tensor]:
        y, (pace, phase) = pick(5, size, random), uniform(random, 2, size, 1)
        p = ((0.04 + 0.08 * pace) * torch.arange(48) + phase) % 1
        shapes = [(2 * math.pi * p).sin(), (p - 0.5).sign(), 2 * p - 1, 4 * (p - 0.5).abs() - 1, 2.0 * (p < 0.2) - 0.4]
        made = torch.stack(shapes, 1)[torch.arange(size), y]
        return (made + 0.4 * normal(random, size, 48))[:, None], y

    def draw(self, k: int, random: Random) -> Any:
        return self.waves(32, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def score(self) -> float:
        return float(self.loss(self.waves(600, Random().manual_seed(1)), 0))


class PostNorm(nn.Module):
    """A layer of a transformer, normed after each sum."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out, self.wide, self.back = (
            nn.Linear(a * width, b * width, bias=False) for a, b in [(1, 3), (1, 1), (1, 2), (2, 1)]
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norms[0](x + self.out(mixed))
        return self.norms[1](x + self.back(functional.relu(self.wide(x))))


class Masked(Kind):
    """A transformer, normed after, that fills in hidden bytes of Python sources."""

    rate = 3e-3
    context: ClassVar[int] = 20

    def build(self) -> None:
        self.table, self.place = nn.Embedding(129, 32), nn.Parameter(torch.randn(self.context, 32) * 0.02)
        self.body, self.head = nn.Sequential(PostNorm(32, 2), PostNorm(32, 2)), nn.Linear(32, 128)

    def hide(self, rows: Tensor, random: Random) -> tuple[Tensor, Tensor, Tensor]:
        """The rows with a byte of every four hidden; those bytes; where they were."""
        n = len(rows)
        place = torch.arange(0, self.context, 4) + torch.randint(4, (n, self.context // 4), generator=random)
        return rows.scatter(1, place, 128), rows.gather(1, place), place

    def draw(self, k: int, random: Random) -> Any:
        text = source_bytes(tuple(SOURCES))
        starts = pick(len(text) - self.context, 6, random)
        return self.hide(text[starts[:, None] + torch.arange(self.context)], random)

    def loss(self, batch: Any, k: int) -> Tensor:
        x, y, place = batch
        h = self.body(self.table(x) + self.place)
        h = h.gather(1, place[:, :, None].expand(-1, -1, 32))
        return functional.cross_entropy(self.head(h).flatten(0, 1), y.flatten())

    def score(self) -> float:
        text = source_bytes(tuple(HELD_SOURCES))
        rows = text[: len(text) // self.context * self.context].view(-1, self.context)
        return float(self.loss(self.hide(rows[:: len(rows) // 300], Random().manual_seed(1)), 0))


@functools.cache
def tastes() -> tuple[Tensor, Tensor]:
    """Of each of three fields' 3000 values: how much it is liked, and what it goes with."""
    random = Random().manual_seed(6)
    return normal(random, 3, 3000), normal(random, 3, 3000, 4) * 0.6


class Clicks(Kind):
    """Clicks from three fields of 3000 values each, most of them seen rarely: one table, summed, and a small net."""

    rate = 3e-3

    def build(self) -> None:
        self.table, self.net = nn.EmbeddingBag(9000, 12, mode="sum"), mlp(12, 32, 1)
        nn.init.normal_(self.table.weight, std=0.1)

    @staticmethod
    def visits(size: int, random: Random) -> tuple[Tensor, Tensor]:
        liked, goes = tastes()
        chosen = (uniform(random, 3, size) ** 4 * 3000).long()
        logit = sum(liked[f, chosen[f]] for f in range(3)) - 1.5
        logit = logit + (goes[0, chosen[0]] * goes[1, chosen[1]]).sum(1)
        return (chosen + torch.tensor([[0], [3000], [6000]])).T, (uniform(random, size) < logit.sigmoid()).float()

    def draw(self, k: int, random: Random) -> Any:
        return self.visits(128, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self.net(self.table(batch[0]))[:, 0], batch[1])

    def score(self) -> float:
        return float(self.loss(self.visits(2000, Random().manual_seed(1)), 0))


class Claims(Kind):
    """Log-normal claims by squared error in small batches: a few of them make most of the gradient."""

    rate = 1e-3

    def build(self) -> None:
        self.net = mlp(8, 48, 48, 1)

    @staticmethod
    def expected(x: Tensor) -> Tensor:
        risk = 0.6 * x[:, 0] + 0.4 * x[:, 1] - 0.3 * x[:, 2] + 0.5 * torch.tanh(2 * x[:, 3] * x[:, 4])
        return risk.clamp(-2, 2).exp()

    def draw(self, k: int, random: Random) -> Any:
        x = normal(random, 16, 8)
        return x, self.expected(x) * (normal(random, 16) * 1.2 - 0.72).exp()

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.mse_loss(self.net(batch[0])[:, 0], batch[1])

    def score(self) -> float:
        x = normal(Random().manual_seed(1), 800, 8)
        return float(self.loss((x, self.expected(x)), 0))


class Graphs(Kind):
    """Energies of random graphs, four kinds of nodes, by a net that passes messages as sums."""

    rate = 3e-3
    nodes: ClassVar[int] = 12

    def build(self) -> None:
        self.enter, self.leave = nn.Linear(4, 32), mlp(32, 32, 1)
        self.rounds = nn.ModuleList(mlp(32, 32, 32) for _ in range(2))

    @classmethod
    def graphs(cls, size: int, random: Random) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes' kinds as ones and zeros, their energies, and the edges."""
        n, kinds = cls.nodes, torch.eye(4)[torch.randint(4, (size, cls.nodes), generator=random)]
        edges = (uniform(random, size, n, n) < 0.1 + 0.25 * uniform(random, size, 1, 1)).float().triu(1)
        edges = edges + edges.transpose(1, 2)
        bonds = torch.tensor(
            [[-1.0, 0.5, 0.2, 0.8], [0.5, 0.6, -0.9, 0.1], [0.2, -0.9, 0.4, -0.5], [0.8, 0.1, -0.5, 1.0]]
        )
        likes = kinds @ torch.tensor([1.0, 2.0, 3.0, 4.0])
        energy = ((kinds @ bonds) * (edges @ kinds)).sum((1, 2)) + 0.2 * (edges.sum(2) - likes).square().sum(1)
        return kinds, (energy - 9.5) / 6, edges

    def draw(self, k: int, random: Random) -> Any:
        return self.graphs(24, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        kinds, energy, edges = batch
        h = self.enter(kinds)
        for layer in self.rounds:
            h = functional.relu(layer(h + edges @ h))
        return functional.mse_loss(self.leave(h.sum(1))[:, 0], energy)

    def score(self) -> float:
        return float(self.loss(self.graphs(500, Random().manual_seed(1)), 0))


KINDS: dict[str, type[Kind]] = {
    "gratings": Gratings,
    "inpainting": Inpainting,
    "vocabulary": Vocabulary,
    "kelvin": Kelvin,
    "front": Front,
    "fine-tuning": FineTuning,
    "lorenz": Lorenz,
    "waveforms": Waveforms,
    "masked bytes": Masked,
    "clicks": Clicks,
    "claims": Claims,
    "graphs": Graphs,
}
