"""Fifteen kinds of training for the zoo: the half on which thresholds may be tuned."""

from __future__ import annotations

import functools
import itertools
import math
import sysconfig
from pathlib import Path
from typing import Any

import torch
from divergence import digits
from sklearn.datasets import make_friedman1, make_moons
from torch import Tensor, nn
from torch.nn import functional
from zoo_base import Kind

Random = torch.Generator


def mlp(*widths: int, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths with an activation between them."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


def pick(n: int, size: int, random: Random) -> Tensor:
    return torch.randint(n, (size,), generator=random)


def normal(random: Random, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random)


@functools.cache
def flat_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y, held_x, held_y = digits()
    return x.flatten(1), y, held_x.flatten(1), held_y


@functools.cache
def centred_digits() -> tuple[Tensor, Tensor]:
    x, _, held, _ = flat_digits()
    return x - x.mean(0), held - x.mean(0)


class Vae(Kind):
    """A variational autoencoder of digits; the weight of the divergence rises over the first half."""

    rate = 0.003

    def build(self) -> None:
        self.encoder, self.decoder = mlp(64, 64, 16, act=nn.Tanh), mlp(8, 64, 64, act=nn.Tanh)

    def draw(self, k: int, random: Random) -> Any:
        x = centred_digits()[0]
        return x[pick(len(x), 32, random)], normal(random, 32, 8)

    def parts(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_var = self.encoder(x).chunk(2, 1)
        log_var = log_var.clamp(-20, 20)
        divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean()
        made = self.decoder(mean + noise * (log_var / 2).exp())
        return 16 * (made - x).square().sum(1).mean(), divergence

    def loss(self, batch: Any, k: int) -> Tensor:
        distortion, divergence = self.parts(*batch)
        return distortion + min(1.0, k / (self.length / 2)) * divergence

    def score(self) -> float:
        x = centred_digits()[1]
        return float(sum(self.parts(x, normal(Random().manual_seed(1), len(x), 8))))


@functools.cache
def moons() -> tuple[Tensor, Tensor]:
    made = torch.tensor(make_moons(3000, noise=0.04, random_state=1)[0], dtype=torch.float32) * 0.5
    return made[:2000], made[2000:]


class Flow(Kind):
    """A normalizing flow of affine couplings; the loss (negative log likelihood) falls below zero."""

    rate = 0.003

    def build(self) -> None:
        self.nets = nn.ModuleList(mlp(1, 32, 2, act=nn.Tanh) for _ in range(6))

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=rate)

    def draw(self, k: int, random: Random) -> Any:
        x = moons()[0]
        return (x[pick(len(x), 64, random)],)

    def loss(self, batch: Any, k: int) -> Tensor:
        a, b = batch[0].chunk(2, 1)
        log_det = torch.zeros(())
        for net in self.nets:
            scale, shift = net(a).chunk(2, 1)
            scale = 2 * torch.tanh(scale / 2)
            a, b, log_det = b * scale.exp() + shift, a, log_det + scale.mean()
        return (a.square() + b.square()).mean() / 2 + math.log(2 * math.pi) - log_det

    def score(self) -> float:
        return float(self.loss((moons()[1],), 0))


class Contrastive(Kind):
    """InfoNCE: each noisy view of a digit shall find the other one among the batch."""

    rate = 0.03

    def build(self) -> None:
        self.net = mlp(64, 96, 16)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9)

    @staticmethod
    def view(x: Tensor, random: Random) -> Tensor:
        return x * (torch.rand(x.shape, generator=random) > 0.3) + 0.3 * normal(random, *x.shape)

    def draw(self, k: int, random: Random) -> Any:
        x = flat_digits()[0]
        x = x[pick(len(x), 48, random)]
        return self.view(x, random), self.view(x, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        a, b = (functional.normalize(self.net(x), dim=1) for x in batch)
        return functional.cross_entropy(a @ b.T / 0.2, torch.arange(len(a)))

    def score(self) -> float:
        x, random = flat_digits()[2][:384], Random().manual_seed(1)
        pairs = [(self.view(part, random), self.view(part, random)) for part in x.split(48)]
        return sum(float(self.loss(pair, 0)) for pair in pairs) / len(pairs)


class Triplet(Kind):
    """Triplets of digits: once learned, most batches lose exactly nothing."""

    rate = 0.001

    def build(self) -> None:
        self.net = mlp(64, 64, 16)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), lr=rate)

    @staticmethod
    def triplets(x: Tensor, y: Tensor, size: int, random: Random) -> tuple[Tensor, Tensor, Tensor]:
        anchor = pick(len(x), size, random)
        same = y[anchor][:, None] == y
        other = [torch.multinomial(mask.float(), 1, generator=random)[:, 0] for mask in (same, ~same)]
        return x[anchor], x[other[0]], x[other[1]]

    def draw(self, k: int, random: Random) -> Any:
        x, y, *_ = flat_digits()
        return self.triplets(x, y, 12, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        a, b, c = (functional.normalize(self.net(x), dim=1) for x in batch)
        return functional.relu(0.3 + (a - b).square().sum(1) - (a - c).square().sum(1)).mean()

    def score(self) -> float:
        return float(self.loss(self.triplets(*flat_digits()[2:], 3000, Random().manual_seed(1)), 0))


@functools.cache
def source() -> tuple[Tensor, Tensor]:
    """Bytes of Python's own library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    names = ["argparse.py", "ast.py", "calendar.py", "configparser.py", "csv.py", "difflib.py", "inspect.py"]
    text = b"".join((folder / name).read_bytes() for name in names)
    made = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().clamp(max=127)
    held = (folder / "textwrap.py").read_bytes() + (folder / "shlex.py").read_bytes()
    return made, torch.frombuffer(bytearray(held), dtype=torch.uint8).long().clamp(max=127)


class Language(Kind):
    """An LSTM that guesses the next byte of source text."""

    rate = 0.01
    updates = 500

    def build(self) -> None:
        self.embedding, self.lstm, self.head = nn.Embedding(128, 24), nn.LSTM(24, 64, batch_first=True), mlp(64, 128)

    @staticmethod
    def cut(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        chosen = text[starts[:, None] + torch.arange(25)]
        return chosen[:, :-1], chosen[:, 1:]

    def draw(self, k: int, random: Random) -> Any:
        text = source()[0]
        return self.cut(text, pick(len(text) - 25, 16, random))

    def loss(self, batch: Any, k: int) -> Tensor:
        out = self.head(self.lstm(self.embedding(batch[0]))[0])
        return functional.cross_entropy(out.flatten(0, 1), batch[1].flatten())

    def score(self) -> float:
        text = source()[1]
        return float(self.loss(self.cut(text, torch.arange(0, len(text) - 25, 60)), 0))


class Growing(Kind):
    """Sequences that grow from 2 to 32 steps, with the loss summed over the steps."""

    rate = 0.01
    updates = 500

    def build(self) -> None:
        self.gru, self.head = nn.GRU(3, 24, batch_first=True), nn.Linear(24, 1)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(self.parameters(), lr=rate)

    @staticmethod
    def sequences(size: int, length: int, random: Random) -> tuple[Tensor, Tensor]:
        x = normal(random, size, length, 3)
        padded = functional.pad(x, (0, 0, 2, 0))
        y = padded[:, 2:, :1] + padded[:, 1:-1, 1:2] - padded[:, :-2, 2:] * padded[:, 2:, 1:2].sign()
        return x, y + 0.2 * normal(random, size, length, 1)

    def draw(self, k: int, random: Random) -> Any:
        return self.sequences(16, min(32, 2 + 40 * k // self.length), random)

    def loss(self, batch: Any, k: int) -> Tensor:
        return (self.head(self.gru(batch[0])[0]) - batch[1]).square().sum(1).mean()

    def score(self) -> float:
        return float(self.loss(self.sequences(256, 32, Random().manual_seed(1)), 0)) / 32


@functools.cache
def grid() -> tuple[Tensor, Tensor, Tensor]:
    """Next states, rewards and the true values of a grid of 5 x 5 with one reward, in a corner."""
    side, moves = 5, [(0, 1), (1, 0), (0, -1), (-1, 0)]
    to = torch.zeros(side * side, 4, dtype=torch.long)
    for r in range(side):
        for c in range(side):
            for a, (dr, dc) in enumerate(moves):
                to[r * side + c, a] = min(max(r + dr, 0), side - 1) * side + min(max(c + dc, 0), side - 1)
    goal = side * side - 1
    reward = (to == goal).float() * 10
    q = torch.zeros(side * side, 4)
    for _ in range(100):
        q = reward + 0.9 * q.max(1).values[to] * (to != goal)
    return to, reward, q


class QLearning(Kind):
    """Q-learning with a target network; one move in fifty is rewarded."""

    rate = 0.001
    updates = 1000
    loss_falls = False

    def build(self) -> None:
        self.net, self.target = mlp(25, 64, 4), mlp(25, 64, 4)
        self.target.load_state_dict(self.net.state_dict())
        self.target.requires_grad_(False)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), lr=rate)

    def draw(self, k: int, random: Random) -> Any:
        to, reward, _ = grid()
        s, a = pick(24, 16, random), pick(4, 16, random)
        hot = torch.eye(25)
        return hot[s], reward[s, a], a, hot[to[s, a]]

    def loss(self, batch: Any, k: int) -> Tensor:
        s, reward, a, after = batch
        goes_on = 1 - after[:, -1]
        with torch.no_grad():
            goal = reward + 0.9 * self.target(after).max(1).values * goes_on
        return (self.net(s).gather(1, a[:, None])[:, 0] - goal).square().mean()

    def after(self, k: int) -> None:
        if (k + 1) % 25 == 0:
            self.target.load_state_dict(self.net.state_dict())

    def score(self) -> float:
        return float((self.net(torch.eye(25)[:24]) - grid()[2][:24]).square().mean())


@functools.cache
def counts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = Random().manual_seed(7)
    x = normal(random, 6000, 8)
    log_mean = 1 + x @ (normal(random, 8) * 0.35) + 0.5 * torch.tanh(2 * x[:, 0] * x[:, 1])
    y = torch.poisson((log_mean + 0.7 * normal(random, 6000)).exp(), generator=random)
    return x[:5000], y[:5000], x[5000:], y[5000:]


class Poisson(Kind):
    """Poisson regression on counts with a heavy tail."""

    rate = 0.003
    updates = 800

    def build(self) -> None:
        self.net = mlp(8, 32, 1, act=nn.Tanh)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9)

    def draw(self, k: int, random: Random) -> Any:
        x, y, *_ = counts()
        chosen = pick(len(x), 32, random)
        return x[chosen], y[chosen]

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.poisson_nll_loss(self.net(batch[0])[:, 0], batch[1])

    def score(self) -> float:
        *_, x, y = counts()
        return float(functional.poisson_nll_loss(self.net(x)[:, 0].clamp(max=30), y))


@functools.cache
def three_targets() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = Random().manual_seed(5)
    x = normal(random, 5000, 12)
    hidden = torch.tanh(x @ normal(random, 12, 16) / 12**0.5)
    y = hidden @ normal(random, 16, 3) / 4
    y = y / y[:4000].std(0)
    noisy = (y + normal(random, 5000, 3) * torch.tensor([0.05, 0.2, 0.5])) * torch.tensor([0.3, 1.0, 3.0])
    return x[:4000], noisy[:4000], x[4000:], y[4000:] * torch.tensor([0.3, 1.0, 3.0])


class Weighted(Kind):
    """Three losses with learned log variances; their sum crosses zero."""

    rate = 0.01
    updates = 800

    def build(self) -> None:
        self.net, self.log_var = mlp(12, 64, 3, act=nn.Tanh), nn.Parameter(torch.zeros(3))

    def draw(self, k: int, random: Random) -> Any:
        x, y, *_ = three_targets()
        chosen = pick(len(x), 32, random)
        return x[chosen], y[chosen]

    def loss(self, batch: Any, k: int) -> Tensor:
        errors = (self.net(batch[0]) - batch[1]).square().mean(0)
        return ((-self.log_var).exp() * errors + self.log_var).sum()

    def score(self) -> float:
        *_, x, y = three_targets()
        return float(((self.net(x) - y).square().mean(0) / y.var(0)).mean())


@functools.cache
def ratings() -> tuple[Tensor, Tensor, Tensor]:
    random = Random().manual_seed(9)
    full = normal(random, 60, 4) @ normal(random, 4, 50) / 2
    order = torch.randperm(3000, generator=random)
    value = full.flatten()[order]
    value[:2400] += 0.3 * normal(random, 2400)
    return torch.stack([order // 50, order % 50], 1), value, torch.tensor(2400)


class Factors(Kind):
    """Matrix factorisation from small weights with Adagrad: a plateau first."""

    rate = 0.3
    updates = 1000

    def build(self) -> None:
        self.rows, self.columns = nn.Embedding(60, 6), nn.Embedding(50, 6)
        for p in self.parameters():
            nn.init.normal_(p, std=0.003)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(self.parameters(), lr=rate, initial_accumulator_value=0.1)

    def draw(self, k: int, random: Random) -> Any:
        place, value, number = ratings()
        chosen = pick(int(number), 64, random)
        return place[chosen], value[chosen]

    def loss(self, batch: Any, k: int) -> Tensor:
        place, value = batch
        return ((self.rows(place[:, 0]) * self.columns(place[:, 1])).sum(1) - value).square().mean()

    def score(self) -> float:
        place, value, number = ratings()
        return float(self.loss((place[int(number) :], value[int(number) :]), 0))


class Parity(Kind):
    """Parity of five of twenty bits: a long plateau, then a fall."""

    rate = 0.01
    updates = 1000

    def build(self) -> None:
        self.net = mlp(20, 128, 1)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=rate, weight_decay=0.01)

    @staticmethod
    def bits(size: int, random: Random) -> tuple[Tensor, Tensor]:
        x = torch.randint(2, (size, 20), generator=random).float() * 2 - 1
        return x, (1 + x[:, 2] * x[:, 7] * x[:, 11] * x[:, 13] * x[:, 17]) / 2

    def draw(self, k: int, random: Random) -> Any:
        return self.bits(64, random)

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self.net(batch[0])[:, 0], batch[1])

    def score(self) -> float:
        return float(self.loss(self.bits(2000, Random().manual_seed(1)), 0))


class ClassOrder(Kind):
    """Digits come class by class; half of each batch rehearses what was seen so far."""

    rate = 0.03

    def build(self) -> None:
        self.net = mlp(64, 64, 10)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9)

    def draw(self, k: int, random: Random) -> Any:
        x, y, *_ = flat_digits()
        now = min(9, 10 * k // self.length)
        new, seen = (y == now).nonzero()[:, 0], (y <= now).nonzero()[:, 0]
        chosen = torch.cat([new[pick(len(new), 16, random)], seen[pick(len(seen), 16, random)]])
        return x[chosen], y[chosen]

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def score(self) -> float:
        return float(self.loss(flat_digits()[2:], 0))


class BatchOne(Kind):
    """Digits one at a time, with plain SGD."""

    rate = 0.03
    updates = 1000

    def build(self) -> None:
        self.net = mlp(64, 64, 10)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=rate)

    def draw(self, k: int, random: Random) -> Any:
        x, y, *_ = flat_digits()
        chosen = pick(len(x), 1, random)
        return x[chosen], y[chosen]

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def score(self) -> float:
        return float(self.loss(flat_digits()[2:], 0))


@functools.cache
def friedman() -> tuple[Tensor, Tensor]:
    x, y = make_friedman1(4000, noise=1.0, random_state=2)
    y = (y - 14.4) / 5
    return torch.tensor(x, dtype=torch.float32) * 2 - 1, torch.tensor(y, dtype=torch.float32)


class HeavyMomentum(Kind):
    """A regression with SGD of momentum 0.99."""

    rate = 0.003

    def build(self) -> None:
        self.net = mlp(10, 64, 64, 1)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=rate, momentum=0.99)

    def draw(self, k: int, random: Random) -> Any:
        x, y = friedman()
        chosen = pick(3000, 32, random)
        return x[chosen], y[chosen]

    def loss(self, batch: Any, k: int) -> Tensor:
        return (self.net(batch[0])[:, 0] - batch[1]).square().mean()

    def score(self) -> float:
        x, y = friedman()
        return float(self.loss((x[3000:], y[3000:]), 0))


@functools.cache
def pretrained() -> dict[str, Tensor]:
    """A body that has learned the digits 0 to 4."""
    random, (x, y, *_) = Random().manual_seed(4), flat_digits()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        body, head = mlp(64, 64, 32), nn.Linear(32, 5)
    optimizer, easy = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=3e-3), (y < 5).nonzero()[:, 0]
    with torch.enable_grad():
        for _ in range(200):
            chosen = easy[pick(len(easy), 32, random)]
            optimizer.zero_grad()
            functional.cross_entropy(head(body(x[chosen]).relu()), y[chosen]).backward()
            optimizer.step()
    return body.state_dict()


class Unfreezing(Kind):
    """A body that knows five digits learns all ten: its head first, from half of the run on the body too."""

    rate = 0.01

    def build(self) -> None:
        self.body, self.head = mlp(64, 64, 32), nn.Linear(32, 10)
        self.body.load_state_dict(pretrained())
        self.body.requires_grad_(False)

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.head.parameters(), lr=rate)

    def before(self, k: int, optimizer: torch.optim.Optimizer) -> None:
        if k == self.length // 2:
            self.body.requires_grad_(True)
            rate = optimizer.param_groups[0]["lr"]
            optimizer.add_param_group({"params": list(self.body.parameters()), "lr": 0.3 * rate, "share": 0.3})

    def draw(self, k: int, random: Random) -> Any:
        x, y, *_ = flat_digits()
        chosen = pick(len(x), 32, random)
        return x[chosen], y[chosen]

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.cross_entropy(self.head(self.body(batch[0]).relu()), batch[1])

    def score(self) -> float:
        return float(self.loss(flat_digits()[2:], 0))


KINDS: dict[str, type[Kind]] = {
    "vae": Vae,
    "flow": Flow,
    "infonce": Contrastive,
    "triplet": Triplet,
    "lstm": Language,
    "growing": Growing,
    "q-learning": QLearning,
    "poisson": Poisson,
    "weighted": Weighted,
    "factors": Factors,
    "parity": Parity,
    "class order": ClassOrder,
    "batch 1": BatchOne,
    "momentum 0.99": HeavyMomentum,
    "unfreezing": Unfreezing,
}
