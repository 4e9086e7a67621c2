"""What happens to an exported program when it is loaded: what goes, what stays, and the answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_networks import SIZE, backbone
from torch import Tensor, nn

from subtune_deploy.backends import torch as engine
from subtune_deploy.backends.torch_passes import fold_batch_norms, lay_channels_last
from subtune_deploy.build import plan_as
from subtune_deploy.export import export
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import base_task, candidate_task, standalone
from subtune_deploy.tracing import example

NORM = torch.ops.aten._native_batch_norm_legit_no_training.default


class Pair(nn.Module):
    """A convolution and its batch-norm, run for two inputs; `twice`: the convolution's own values are read, too."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.convolution, self.norm, self.twice = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), twice
        self.norm.running_mean, self.norm.running_var = torch.randn(4), torch.rand(4) + 0.5

    def forward(self, first: Tensor) -> Tensor:
        made = [self.convolution(each) for each in (first, first.flip(0))]
        normed = [self.norm(each) for each in made]
        return torch.cat(normed + made if self.twice else normed)


def program(make: Callable[[], nn.Module]) -> tuple[torch.fx.GraphModule, Tensor]:
    """As the exporter leaves it, and two pictures."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, picture = make().eval(), torch.randn(2, 3, 8, 8)
    exported = torch.onnx.export(module, (picture,), dynamo=True, verbose=False)
    assert exported is not None
    assert exported.exported_program is not None
    return exported.exported_program.module(), picture


def norms(module: torch.fx.GraphModule) -> int:
    return len(module.graph.find_nodes(op="call_function", target=NORM))


def test_uses_of_one_convolution_share_what_is_folded() -> None:
    module, picture = program(lambda: Pair(twice=False))
    wanted, before = module(picture), norms(module)
    assert fold_batch_norms(module) == before == 2
    assert norms(module) == 0
    assert sum(each.numel() for each in module.state_dict().values()) == 4 * 3 * 9 + 4
    torch.testing.assert_close(module(picture), wanted)


def test_a_convolution_that_others_read_is_left_alone() -> None:
    module, picture = program(lambda: Pair(twice=True))
    wanted = module(picture)
    assert fold_batch_norms(module) == 0
    assert torch.equal(module(picture), wanted)


class Flattening(nn.Module):
    """Views of a convolution's values that are none when channels lie last."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, picture: Tensor) -> Tensor:
        return self.convolution(picture).view(-1, 4, 36).transpose(1, 2)


def test_channels_last_are_so_and_change_no_answer() -> None:
    module, picture = program(Flattening)
    wanted = module(picture)
    assert not module.convolution.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    lay_channels_last(module)
    assert module.convolution.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    torch.testing.assert_close(module(picture), wanted)


@pytest.mark.parametrize("merge", ["always", "never"])
def test_an_engine_of_several_tasks_answers_as_the_models_do(merge: str, tmp_path: Path) -> None:
    network = backbone("chain", blocks=4)
    tasks = [candidate_task(network, name, (2, 3), seed=seed) for seed, name in enumerate(("a", "b"), 1)]
    export(network, tasks, plan_as(network, tasks, merge, (), ()), batch=1).save(tmp_path)
    loaded = engine.load(tmp_path, "graph", load_target("torch-cpu"))
    assert norms(loaded.module) == 0  # type: ignore[attr-defined]
    picture = example(SIZE, 1)
    for task in (base_task(network), *tasks):
        with torch.no_grad():
            wanted = standalone(network, task)(picture).numpy()
        np.testing.assert_allclose(loaded.run(picture.numpy())[task.name], wanted, rtol=1e-4, atol=1e-5)
