"""Small real networks, and tasks on them, for tests of the compiler."""

from __future__ import annotations

import random

import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.models import Model
from subtune_deploy.spec import InputSpec
from subtune_deploy.tasks import Task, candidate_task

SIZE = (3, 12, 12)
CLASSES = 5


class Residual(nn.Module):
    """conv-bn-relu-conv-bn with a shortcut; in-place activations, as torchvision's."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.short = nn.Conv2d(width, out, 1) if out != width else nn.Identity()

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.short(x))


class Gated(nn.Module):
    """A convolution, SiLU and squeeze-and-excitation with a shortcut, as in EfficientNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = Conv2dNormActivation(width, width, activation_layer=nn.SiLU)
        self.gate = SqueezeExcitation(width, 2, activation=nn.SiLU)
        self.project = Conv2dNormActivation(width, width, 1, activation_layer=None)

    def forward(self, x):
        return x + self.project(self.gate(self.conv(x)))


class Carrying(nn.Module):
    """A block that takes and returns a list of tensors, and insists on a list."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = Residual(width, width)

    def forward(self, x):
        x, kept = x if isinstance(x, list) else [x, x]
        return [self.body(x), kept + x]


class Beside(nn.Module):
    """A block that reads a second tensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = Residual(width, width)
        self.scale = nn.Conv2d(width, width, 1)

    def forward(self, x, beside):
        return self.body(x) + self.scale(beside)


class Attention(nn.Module):
    """A transformer layer on (N, tokens, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm(x))


class Normed(nn.Module):
    """Products over tokens, each with a batch-norm that sees tokens and pictures as one axis, as in LeViT."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.norm1 = nn.Linear(width, 2 * width, bias=False), nn.BatchNorm1d(2 * width)
        self.down, self.norm2 = nn.Linear(2 * width, width, bias=False), nn.BatchNorm1d(width)

    def forward(self, x):
        n, tokens, width = x.shape
        y = self.norm1(self.up(x).flatten(0, 1)).view(n, tokens, 2, width)  # as heads
        y = self.down(y.relu().flatten(2))
        return x + self.norm2(y.flatten(0, 1)).reshape_as(x)


class Net(nn.Module):
    """Blocks in a list, joined as `topology` says: chain, dense (each reads all before), branching,
    listing (blocks pass lists), beside (each reads the stem too), gated, tokens, normed."""

    def __init__(self, topology: str, blocks: int, width: int) -> None:
        super().__init__()
        self.topology = topology
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        widths = [width * (i + 1) if topology == "dense" else width for i in range(blocks)]
        make = {
            "tokens": Attention,
            "gated": Gated,
            "listing": Carrying,
            "beside": Beside,
            "normed": Normed,
        }.get(topology, lambda w: Residual(w, width))
        self.blocks = nn.ModuleList(make(w) for w in widths)
        self.position = nn.Parameter(torch.randn(1, 36, width) * 0.3)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.3)
        self.head = nn.Linear(width * (blocks + 1) if topology == "dense" else width, CLASSES)

    def forward(self, x):
        x = self.relu(self.stem(x))
        return self.head(getattr(self, self.topology)(x))

    def chain(self, x):
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))

    gated = chain

    def dense(self, x):
        kept = [x]
        for block in self.blocks:
            kept.append(block(torch.cat(kept, 1)))
        return torch.cat(kept, 1).mean((2, 3))

    def branching(self, x):
        left, right = x, x.flip(3)
        for index, block in enumerate(self.blocks):
            if index % 2:
                right = block(right) + left
            else:
                left = block(left)
        return (left + 2 * right).mean((2, 3))

    def listing(self, x):
        for block in self.blocks:
            x = block(x)
        return (x[0] - 0.5 * x[1]).mean((2, 3))

    def beside(self, x):
        stem = x
        for block in self.blocks:
            x = block(x, stem)
        return x.mean((2, 3))

    def tokens(self, x):
        n, c, h, w = x.shape
        x = x.view(n, c, h * w).transpose(1, 2) + self.position
        x = torch.cat([self.token.expand(n, -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]

    def normed(self, x):
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return x.mean(1)


def lively(module: nn.Module) -> nn.Module:
    """Batch-norm with statistics and scales unlike those of a new layer."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            if layer.track_running_stats:
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)
    return module


def backbone(topology: str = "chain", blocks: int = 4, width: int = 4, seed: int = 0) -> Backbone:
    """A traced tiny network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = lively(Net(topology, blocks, width)).eval().requires_grad_(False)
    return trace(Model(f"tiny-{topology}", net, InputSpec(SIZE), (), f"random (seed {seed})"))


def random_tasks(network: Backbone, seed: int) -> list[Task]:
    """One to four tasks with random forks, scattered, head-only and Siamese ones among them; some share blocks."""
    chance = random.Random(seed)
    count = len(network.blocks)
    tasks = []
    for number in range(chance.randint(1, 4)):
        fork = tuple(sorted(chance.sample(range(1, count + 1), chance.randint(0, count))))
        siamese = chance.random() < 0.25
        task = candidate_task(
            network,
            f"task{number}",
            fork,
            seed=seed * 10 + number,
            classes=chance.randint(2, 7),
            siamese=siamese,
        )
        if tasks and chance.random() < 0.5:
            shared = {unit: v for unit, v in tasks[0].versions.items() if unit.startswith("block")}
            own = {unit: v for unit, v in task.versions.items() if unit not in shared}
            task = Task(task.name, {**shared, **own}, task.classes, siamese=siamese)
        tasks.append(task)
    return tasks
