"""The ONNX files: structure by the plan, numbers by ONNX Runtime."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnxscript.optimizer import optimize_ir
from tiny_networks import SIZE, backbone
from tiny_prunable import prunable

from subtune_deploy.backbone import Backbone
from subtune_deploy.export import Exported, export, export_graph
from subtune_deploy.grouped import groupable
from subtune_deploy.onnx_file import save_onnx
from subtune_deploy.plan import Plan, make_plan
from subtune_deploy.tasks import Task, base_task, candidate_task, owners, standalone
from subtune_deploy.tracing import example


@pytest.fixture(scope="module")
def network() -> Backbone:
    return backbone("chain", blocks=5, width=6)


@pytest.fixture(scope="module")
def tasks(network: Backbone) -> list[Task]:
    return [candidate_task(network, "birds", (3,), seed=1), candidate_task(network, "signs", (3, 4), seed=2)]


def exported(network: Backbone, tasks: list[Task], batch: int | None = None, **choices: object) -> Exported:
    siamese = [task.name for task in tasks if task.siamese]
    plan = make_plan(network.topology, owners(tasks), siamese=siamese, **choices)  # type: ignore[arg-type]
    return export(network, tasks, plan, batch=batch)


@pytest.fixture(scope="module")
def folder(network: Backbone, tasks: list[Task], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    exported(network, tasks).save(folder)
    return folder


def run(path: Path, picture: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": picture.numpy()}), strict=True))


def assert_answers(network: Backbone, tasks: list[Task], path: Path, batch: int) -> None:
    picture = example(SIZE, batch)
    got = run(path, picture)
    assert list(got) == ["base", *(task.name for task in tasks)]
    for task in (base_task(network), *tasks):
        with torch.no_grad():
            wanted = standalone(network, task)(picture).numpy()
        np.testing.assert_allclose(got[task.name], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_one_dynamic_file_answers_every_task_at_any_batch(
    network: Backbone, tasks: list[Task], folder: Path, batch: int
) -> None:
    assert_answers(network, tasks, folder / "graph.onnx", batch)


def test_the_batch_stays_symbolic_and_has_one_name(folder: Path) -> None:
    graph = onnx.load(folder / "graph.onnx").graph
    assert {v.type.tensor_type.shape.dim[0].dim_param for v in (*graph.input, *graph.output)} == {"batch"}


def test_each_shared_weight_is_stored_once(folder: Path) -> None:
    graph = onnx.load(folder / "graph.onnx").graph
    large = [i for i in graph.initializer if np.prod(i.dims) > 16]
    copies = Counter((tuple(i.dims), i.raw_data) for i in large)
    assert set(copies.values()) == {1}
    assert {i.name.split(".")[0] for i in large} >= {"block1", "block3", "block5", "head"}


def test_names_say_whose_weights_they_are(folder: Path) -> None:
    names = {i.name for i in onnx.load(folder / "graph.onnx").graph.initializer}
    for name in (
        "block1.base.conv1.weight",
        "block3.birds.conv1.weight",
        "block4.signs.conv1.bias",
        "head.birds.weight",
    ):
        assert name in names
    assert not any(name.startswith(("block1.birds", "block4.birds", "block5.signs")) for name in names)


def test_nodes_are_as_many_as_the_plan_says(folder: Path, network: Backbone) -> None:
    nodes = onnx.load(folder / "graph.onnx").graph.node
    convolutions = Counter(
        ".".join(n.name.split("/")[0].split(".")[:2]) for n in nodes if n.op_type == "Conv"
    )
    per_block = 2  # conv1, conv2; the width is constant, so there is no shortcut convolution
    prefix = {"block1.base": per_block, "block2.base": per_block}
    forks = dict.fromkeys(
        ("block3.base", "block3.birds", "block3.signs", "block4.base", "block4.signs"), per_block
    )
    suffix = {"block5.base": per_block}
    assert {k: v for k, v in convolutions.items() if k.startswith("block")} == {**prefix, **forks, **suffix}
    assert not [node for node in nodes if node.op_type == "BatchNormalization"]


def test_the_base_alone_is_the_backbone_and_nothing_else(network: Backbone, folder: Path) -> None:
    graph = onnx.load(folder / "base.onnx").graph
    assert [output.name for output in graph.output] == ["base"]
    assert not [i.name for i in graph.initializer if "birds" in i.name or "signs" in i.name]
    assert not [node for node in graph.node if node.op_type == "Concat"]
    assert_answers(network, [], folder / "base.onnx", 2)


def test_the_base_alone_is_the_same_file_whatever_was_exported_beside_it(
    network: Backbone, tasks: list[Task], tmp_path: Path
) -> None:
    """Also where its own streams are packed with others, and where no weight of it is shared."""
    everything = candidate_task(network, "all", range(1, 6), seed=9)
    ways = {"both": (tasks, "always"), "one": (tasks[:1], "never"), "all": ([everything], "always")}
    for name, (some, merge) in ways.items():
        (tmp_path / name).mkdir()
        exported(network, some, batch=1, merge=merge).save(tmp_path / name)
    assert len({(tmp_path / name / "base.onnx").read_bytes() for name in ways}) == 1
    assert len({(tmp_path / name / "graph.onnx").read_bytes() for name in ways}) == 3


def test_unmerged_the_base_answers_bit_for_bit_as_alone(
    network: Backbone, tasks: list[Task], tmp_path: Path
) -> None:
    exported(network, tasks, batch=1, merge="never").save(tmp_path)
    picture = example(SIZE, 1)
    graph, alone = (run(tmp_path / name, picture)["base"] for name in ("graph.onnx", "base.onnx"))
    assert np.array_equal(graph, alone)


def test_a_perturbed_forked_weight_moves_its_output_alone(folder: Path, tmp_path: Path) -> None:
    model = onnx.load(folder / "graph.onnx")
    (weight,) = [i for i in model.graph.initializer if i.name == "block3.birds.conv1.weight"]
    weight.raw_data = (onnx.numpy_helper.to_array(weight) + np.float32(0.1)).tobytes()
    onnx.save(model, tmp_path / "changed.onnx")
    before, after = (
        run(path, example(SIZE, 1)) for path in (folder / "graph.onnx", tmp_path / "changed.onnx")
    )
    assert {name: np.array_equal(before[name], after[name]) for name in before} == {
        "base": True,
        "birds": False,
        "signs": True,
    }


def test_outputs_may_be_called_like_what_computes_them(network: Backbone, tmp_path: Path) -> None:
    tasks = [
        candidate_task(network, name, (3,), seed=seed) for seed, name in enumerate(("relu", "cat", "mean"))
    ]
    exported(network, tasks).save(tmp_path)
    assert_answers(network, tasks, tmp_path / "graph.onnx", 2)


def test_the_file_carries_its_plan(folder: Path, network: Backbone, tasks: list[Task]) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(folder / "graph.onnx").metadata_props}
    plan = Plan.from_json(json.loads(metadata["subtune.plan"]))
    assert plan == make_plan(network.topology, owners(tasks))
    assert json.loads(metadata["subtune.layers"]) == {"birds": [3], "signs": [3, 4]}


@pytest.mark.parametrize("topology", ["tokens", "dense", "branching", "listing", "normed"])
@pytest.mark.parametrize("batch, grouped", [(None, False), (1, True), (2, False)])
def test_other_topologies_lowerings_and_batches(
    topology: str, batch: int | None, grouped: bool, tmp_path: Path
) -> None:
    network = backbone(topology, blocks=3)
    tasks = [
        candidate_task(network, "near", (2, 3), seed=1, classes=3),
        candidate_task(network, "far", (1,), seed=2, siamese=True),
        candidate_task(network, "probe", (), seed=3),
    ]
    exported(network, tasks, batch, grouped=groupable(network, tasks) if grouped else ()).save(tmp_path)
    assert_answers(network, tasks, tmp_path / "graph.onnx", batch or 3)


@pytest.mark.parametrize(
    "topology, batch, grouped, merge",
    [("chain", None, False, "never"), ("tokens", 1, True, "always"), ("normed", 2, False, "always")],
)
def test_the_graph_by_itself_is_the_same_file(
    topology: str, batch: int | None, grouped: bool, merge: str, tmp_path: Path
) -> None:
    network = backbone(topology, blocks=3)
    tasks = [candidate_task(network, name, (2,), seed=seed) for seed, name in enumerate(("birds", "signs"))]
    units = groupable(network, tasks) if grouped else ()
    plan = make_plan(network.topology, owners(tasks), merge=merge, grouped=units)
    export(network, tasks, plan, batch=batch).save(tmp_path, program=False)
    save_onnx(export_graph(network, tasks, plan, batch=batch), tmp_path / "alone.onnx")
    assert (tmp_path / "alone.onnx").read_bytes() == (tmp_path / "graph.onnx").read_bytes()


@pytest.mark.parametrize("model", ["swin", "convnext"])
def test_nothing_is_left_that_could_be_taken_away(model: str, tmp_path: Path) -> None:
    network = prunable(model)
    exported(network, [candidate_task(network, "birds", (2,), seed=1)], batch=1).save(tmp_path)
    for name in ("graph.onnx", "base.onnx"):
        graph = ir.load(tmp_path / name)
        before = Counter(node.op_type for node in graph.graph.all_nodes())
        optimize_ir(graph)
        assert Counter(node.op_type for node in graph.graph.all_nodes()) == before


@pytest.mark.parametrize("model", ["vit", "swin", "convnext"])
def test_the_base_of_a_transformer_is_the_same_file_too(model: str, tmp_path: Path) -> None:
    network, files = prunable(model), []
    for layers in ((2,), (1, 2), ()):
        task = candidate_task(network, "birds", layers, seed=1)
        exported(network, [task], batch=1).save(tmp_path, program=False)
        files.append((tmp_path / "base.onnx").read_bytes())
    assert files[0] == files[1] == files[2]
