"""Networks that write into their values: the lowered graph means what the network means, or is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import SIZE, Net, Residual, lively
from torch import nn
from torch.nn import functional

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.errors import ModelError
from subtune_deploy.grouped import groupable
from subtune_deploy.models import Model
from subtune_deploy.multitask import lower
from subtune_deploy.plan import make_plan
from subtune_deploy.spec import InputSpec
from subtune_deploy.tasks import base_task, candidate_task, owners, standalone
from subtune_deploy.tracing import example


class AddsToItsInput(Residual):
    def forward(self, x):
        x += self.conv2(self.relu(self.conv1(x)))
        return x


class ActivatesItsShortcut(Residual):
    def forward(self, x):
        return self.conv2(self.bn1(self.conv1(self.relu(x)))) + x  # the shortcut is relu(x): it was written


class Chain(Net):
    block: type[Residual] = Residual

    def __init__(self) -> None:
        super().__init__("chain", 0, 4)
        self.blocks = nn.ModuleList(self.block(4, 4) for _ in range(4))


class InputAdders(Chain):
    block = AddsToItsInput


class Shortcuts(Chain):
    block = ActivatesItsShortcut


class DiscardsTheResult(Chain):
    def chain(self, x):
        x = self.blocks[0](x) - 1
        functional.relu(x, inplace=True)
        x = self.blocks[1](x) - 1
        self.relu(x)
        x = self.blocks[2](x)
        x.add_(0.5)
        return self.blocks[3](x).mean((2, 3))


def traced(kind: type[Net]) -> Backbone:
    torch.manual_seed(0)
    return trace(Model("net", lively(kind()).eval().requires_grad_(False), InputSpec(SIZE), (), "random"))


@pytest.mark.parametrize("kind", [InputAdders, Shortcuts, DiscardsTheResult])
@pytest.mark.parametrize("merge", ["always", "never"])
@pytest.mark.parametrize("group", [False, True])
def test_writes_keep_their_meaning(kind: type[Net], merge: str, group: bool) -> None:
    network = traced(kind)
    tasks = [candidate_task(network, "one", (2, 3), seed=1), candidate_task(network, "two", (2, 4), seed=2)]
    grouped = groupable(network, tasks) if group else ()
    plan = make_plan(network.topology, owners(tasks), merge=merge, grouped=grouped)  # type: ignore[arg-type]
    picture = example(SIZE, 2)
    with torch.no_grad():
        answers = lower(network, tasks, plan)(picture.clone())
        for answer, task in zip(answers, (base_task(network), *tasks), strict=True):
            torch.testing.assert_close(
                answer, standalone(network, task)(picture.clone()), rtol=1e-4, atol=1e-5
            )


def test_a_write_that_is_read_through_a_view_is_refused() -> None:
    class ThroughAView(Chain):
        def chain(self, x):
            x[:, :2].mul_(2)
            return super().chain(x)

    with pytest.raises(ModelError, match="in place"):
        traced(ThroughAView)
