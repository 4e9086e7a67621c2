"""A bundle from a backbone and its tasks, and what is refused on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_networks import SIZE, Net, backbone, lively

from subtune_deploy.backbone import trace
from subtune_deploy.build import BuildOptions, build
from subtune_deploy.bundle import open_bundle
from subtune_deploy.compiling import check_graph, compile_bundle
from subtune_deploy.errors import InputError, ModelError, ParityError, TaskError
from subtune_deploy.models import Model
from subtune_deploy.spec import InputSpec
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import candidate_task


@pytest.mark.parametrize("target", ["cpu", "openvino-cpu", "torch-cpu"])
def test_a_bundle_is_built_compiled_and_found_again(tmp_path: Path, target: str) -> None:
    network = backbone("chain")
    tasks = [
        candidate_task(network, "near", (3, 4), seed=1, classes=3),
        candidate_task(network, "far", (1,), seed=2),
    ]
    bundle = compile_bundle(build(network, tasks, tmp_path / "b"), load_target(target))
    found = open_bundle(tmp_path / "b")
    found.verify_hashes()
    assert found.manifest == bundle.manifest
    assert [(task.name, task.layers, task.classes) for task in found.manifest.tasks] == [
        ("base", (), 5),
        ("near", (3, 4), 3),
        ("far", (1,), 5),
    ]
    checked = {(f["engine"], f["task"], f["against"]) for f in found.manifest.parity}
    assert {(target, "far", "stand-alone model"), ("graph.onnx", "near", "stand-alone model")} <= checked


def test_equal_tasks_are_refused(tmp_path: Path) -> None:
    network = backbone("chain")
    task = candidate_task(network, "one", (2,), seed=1)
    with pytest.raises(TaskError, match="two equals one"):
        build(network, [task, replace(task, name="two")], tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_answers_that_hardly_depend_on_the_picture_prove_nothing(tmp_path: Path) -> None:
    class Flat(Net):
        def forward(self, x):
            return super().forward(x) * 1e-3 + 100

    torch.manual_seed(0)
    net = lively(Flat("chain", 3, 4)).eval().requires_grad_(False)
    network = trace(Model("flat", net, InputSpec(SIZE), (), "random"))
    with pytest.raises(ModelError, match="nearly the same"):
        build(network, [candidate_task(network, "one", (2,), seed=1)], tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_pictures_of_a_batch_that_are_mixed_are_caught_and_have_a_way_out(tmp_path: Path) -> None:
    class Flips(Net):
        def chain(self, x):
            x = self.blocks[1](self.blocks[0](x)).flip(0)
            return self.blocks[2](x).mean((2, 3))

    torch.manual_seed(0)
    net = lively(Flips("chain", 3, 4)).eval().requires_grad_(False)
    network = trace(Model("flips", net, InputSpec(SIZE), (), "random"))
    tasks = [candidate_task(network, "one", (1,), seed=1)]
    with pytest.raises(ParityError, match="differs") as caught:
        build(network, tasks, tmp_path / "b")
    assert "--merge never" in caught.value.hint
    assert not list(tmp_path.iterdir())
    assert build(network, tasks, tmp_path / "b", BuildOptions(merge="never")).manifest.parity


def test_the_graph_of_another_bundle_is_caught(tmp_path: Path) -> None:
    network = backbone("chain")
    for seed in (1, 2):
        build(network, [candidate_task(network, "one", (2,), seed=seed)], tmp_path / str(seed))
    (tmp_path / "1" / "graph.onnx").write_bytes((tmp_path / "2" / "graph.onnx").read_bytes())
    with pytest.raises(ParityError, match="task one"):
        check_graph(tmp_path / "1", batch=1)


def test_half_precision_weights_are_refused() -> None:
    net = Net("chain", 3, 4).half().eval().requires_grad_(False)
    with pytest.raises(InputError, match="float16"):
        trace(Model("half", net, InputSpec(SIZE), (), "random"))
