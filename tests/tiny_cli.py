"""What the tests of the command line share: a network in a file, checkpoints tuned on it, a call of the command."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from subtune_deploy.backbone import architecture, trace
from subtune_deploy.cli import main
from subtune_deploy.documents import write_document
from subtune_deploy.environment import describe
from subtune_deploy.latency_model import Anchor, LatencyModel
from subtune_deploy.measure import Protocol
from subtune_deploy.models import load_model
from subtune_deploy.stats import Ratio
from subtune_deploy.targets import load_target

PHOTOGRAPH = Path(__file__).parents[1] / "subtune_deploy" / "assets" / "chelsea.jpg"

NET = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 1)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x):
        return x + self.conv2(torch.relu(self.norm(self.conv1(x))))


class Net(nn.Module):
    input_size = (3, 32, 32)

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


class Undecided(Net):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Fixed(Net):
    def forward(self, x):
        return super().forward(x.reshape(-1, 3, 32, 32))


class Orthogonal(nn.Module):
    def forward(self, x):
        return torch.linalg.qr(x)[0]


def unexportable():
    net = Net()
    net.blocks[0].conv2 = nn.Sequential(Orthogonal(), net.blocks[0].conv2)
    return net


def scripted():
    return torch.jit.script(Net())


def lazy():
    net = Net()
    net.fc = nn.LazyLinear(5)
    return net


def talkative():
    print("loading ...")
    return Net()
"""


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout, which must be one JSON document."""
        assert self.status == 0, self.err
        return json.loads(self.out)

    def row(self, *start: str) -> list[str]:
        """The words of the one line on stdout that starts with these words."""
        rows = [line.split() for line in self.out.splitlines()]
        (found,) = [row for row in rows if row[: len(start)] == list(start)]
        return found


def cli(*arguments: object) -> Ran:
    """`subtune-deploy ARGUMENTS`, in this process."""
    out, err = io.StringIO(), io.StringIO()
    caught = pytest.raises(SystemExit)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), caught as leaving:
        main([str(each) for each in arguments])
    assert isinstance(leaving.value.code, int)
    return Ran(leaving.value.code, out.getvalue(), err.getvalue())


def write_network(folder: Path) -> dict[str, Tensor]:
    """net.py and base.pt; the base's weights."""
    (folder / "net.py").write_text(NET)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = runpy.run_path(str(folder / "net.py"))["Net"]().state_dict()
    torch.save(state, folder / "base.pt")
    return dict(state)


def tuned(base: dict[str, Tensor], blocks: list[int], classes: int, seed: int = 0) -> dict[str, Tensor]:
    """A whole fine-tuned state: the weights of `blocks`, numbered from 1, moved, and a new head."""
    generator = torch.Generator().manual_seed(seed)
    places = tuple(f"blocks.{number - 1}." for number in blocks)
    state = {
        name: tensor + 0.2 * torch.rand(tensor.shape, generator=generator)
        if name.startswith(places) and tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in base.items()
    }
    state["fc.weight"] = torch.randn(classes, 8, generator=generator)
    state["fc.bias"] = torch.randn(classes, generator=generator)
    return state


def write_calibration(place: Path, file: Path, fixed: float) -> Path:
    """Of a made-up device on which a block's weights take `fixed` and a block's stream as much less."""
    backbone = trace(load_model(f"{place}/net.py:Net", str(place / "base.pt")))
    moving = 0.2 - fixed

    def seen(*forks: tuple[int, ...]) -> Anchor:
        """Four blocks take 0.8, the head 0.2 once."""
        first = min(map(min, forks))
        own, behind = sum(map(len, forks)), sum(4 - max(fork) for fork in forks)
        streams = sum(max(fork) - first + 1 for fork in forks) + behind
        ratio = 1 + fixed * own + moving * streams
        return Anchor(forks, Ratio(ratio, ratio * 0.999, ratio * 1.001))

    anchors = [seen((block,)) for block in range(1, 5)] + [seen((block,), (block,)) for block in range(1, 5)]
    found = LatencyModel(
        backbone.name, backbone.input.shape, architecture(backbone), load_target("cpu"), Protocol(), "fresh",
        1e-3, "2026-01-01T00:00:00+00:00", describe(), tuple(anchors),
    )  # fmt: skip
    write_document(file, found)
    return file
