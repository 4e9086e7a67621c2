"""The peers of benchmarks/peers.py answer what the stand-alone models answer; its table and its results file."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torchvision.models import VisionTransformer

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.errors import ParityError
from subtune_deploy.measure import ADAPTIVE
from subtune_deploy.models import Model, load_model
from subtune_deploy.spec import InputSpec, parse_layers
from subtune_deploy.tasks import base_task, candidate_task, standalone
from subtune_deploy.tracing import example

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
cells, peers, engines, networks = map(
    importlib.import_module, ("cells", "peers", "peer_engines", "peer_networks")
)

SIZE = (3, 64, 64)
FORK = "3,6"


def tiny_transformer() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = VisionTransformer(32, 16, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10)
        nn.init.normal_(net.heads.head.weight)
    return trace(Model("tiny-vit", net.eval().requires_grad_(False), InputSpec((3, 32, 32)), (), "random"))


@pytest.fixture(scope="module")
def backbones() -> dict[str, Backbone]:
    return {
        "resnet18": trace(load_model("resnet18", input_size=SIZE)),
        "efficientnet_b0": trace(load_model("efficientnet_b0", input_size=SIZE)),
        "transformer": tiny_transformer(),
    }


@pytest.fixture(scope="module")
def cell(backbones: dict[str, Backbone], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield engines.open_cell(backbones["resnet18"], FORK, 2, tmp_path_factory.mktemp("cell"))
    cells.release()


@pytest.mark.parametrize("target", engines.TARGETS)
def test_every_peer_answers_like_the_stand_alone_models(cell: Any, target: str) -> None:
    makers = engines.makers(cell, target, compiled="takes too long here")
    assert set(makers) == {"base", *engines.COLUMNS[target]}
    for name, make in makers.items():
        if name == engines.COMPILED:
            continue
        engine = make()
        assert engines.check(name, engine, cell.references) < 1e-4


@pytest.mark.parametrize("layers", [(2,), (3, 4), (2, 4)], ids=str)
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "transformer"])
def test_each_split_by_hand_is_right_for_each_way_to_fork(
    backbones: dict[str, Backbone], name: str, layers: tuple[int, ...]
) -> None:
    backbone = backbones[name]
    tasks = [base_task(backbone), *(candidate_task(backbone, f"task{i}", layers, seed=i) for i in (1, 2))]
    models = [standalone(backbone, task) for task in tasks]
    ways = [networks.Branches, networks.Stacked]
    ways += [networks.GroupedBranches] if networks.has_convolutions(backbone.model) else []
    picture = example(backbone.input.shape, 2)
    with torch.no_grad():
        expected = torch.stack([model(picture) for model in models])
        for way in ways:
            found = torch.stack(networks.shared_prefix(models, layers, way)(picture))
            assert (found - expected).abs().max() < 1e-4 * expected.abs().max(), way


def test_the_hand_written_network_is_captured_whole_by_the_compiler(cell: Any) -> None:
    network = networks.shared_prefix(cell.models(), cell.layers)
    captured = engines.compile_network(network, backend="eager")  # the generated code is the library's affair
    engines.check(engines.COMPILED, engines.TorchPeer(captured, cell.names), cell.references)


def test_a_fork_across_a_stage_is_grouped_once(cell: Any) -> None:
    network = networks.shared_prefix(cell.models(), (4, 5), networks.GroupedBranches)  # layer2.1 and layer3.0
    (grouped,) = [part for part in network.trunk if isinstance(part, networks.GroupedBranches)]
    assert {layer.groups for layer in grouped.modules() if isinstance(layer, nn.Conv2d)} == {3}


def test_networks_side_by_side_keep_weights_of_their_own(cell: Any) -> None:
    def weights(name: str, file: str) -> int:
        graph = onnx.load(cell.folder / name / file).graph
        return sum(onnx.numpy_helper.to_array(each).nbytes for each in graph.initializer)

    assert weights(engines.ONE_GRAPH, "graph.onnx") == 3 * weights("base", "base.onnx")
    assert weights(engines.OURS, "graph.onnx") < 2 * weights("base", "base.onnx")


def test_a_wrong_weight_is_an_error_that_names_its_task(cell: Any) -> None:
    network = networks.shared_prefix(cell.models(), cell.layers)
    forked = [part for part in network.trunk if isinstance(part, networks.Branches)]
    forked[1].versions[2][0].conv1.weight.mul_(1.5)  # block 6 of task2
    with pytest.raises(ParityError, match=r"models: task2 by [0-9.e-]+$"):
        engines.check("eager", engines.TorchPeer(network, cell.names), cell.references)


def test_an_engine_that_leaves_a_task_out_is_an_error(cell: Any) -> None:
    lone = engines.TorchPeer(cell.backbone.model, ("base",))
    assert engines.check("base", lone, cell.references) == 0
    with pytest.raises(ParityError, match="eager answers base"):
        engines.check("eager", lone, cell.references)


@pytest.mark.parametrize(("model", "blocks"), zip(cells.MODELS, (16, 16, 12), strict=True))
def test_every_model_has_the_blocks_of_its_forks(model: str, blocks: int) -> None:
    layers = [cells.Key(model, fork, 1, "cpu").layers for fork in cells.FORKS]
    assert len({parse_layers(each, blocks) for each in layers}) == len(cells.FORKS)


def line(tasks: int, loads: Sequence[int] = (), **seconds: float) -> dict[str, Any]:
    """A finished line of four rounds of each load, with constant samples by engine."""
    rounds = sum(loads) or 4
    samples = {name.replace("_", " "): [each] * rounds for name, each in seconds.items()}
    key = cells.Key("vit_b_16", "13-14", tasks, "torch-cpu").named
    host = {"cores": 2, "cpu": "Some", "stepping": "1/2/3"}
    return {**key, "samples": samples, "absent": {"TorchScript grouped": "no convolutions"}, "host": host} | (
        {"loads": list(loads)} if loads else {}
    )


def test_the_table_shows_ratios_to_the_base_and_ours_against_the_peers() -> None:
    one = line(1, base=0.1, ours=0.12, shared_prefix_eager=0.15)
    four = line(4, [4] * 6, base=0.1, ours=0.4, shared_prefix_eager=0.2)
    text = "\n".join(peers.table([four, one]))
    assert "1 are of six loads, on 2 cores of Some 1/2/3; 1 are of a single load, marked *, on 2" in text
    assert "| vit_b_16, 10-11 * | 100.0 ms | **1.20** | 1.50 | – | – | – |" in text
    assert "| vit_b_16, 10-11 | 100.0 ms | 4.00 | **2.00** | – | – | – |" in text
    assert text.index("## torch-cpu, 1 task") < text.index("## torch-cpu, 4 tasks")
    assert "- TorchScript grouped does not apply to vit_b_16: no convolutions" in text
    alone, four_tasks = "1.25 (1 faster, 0 slower of 1)", "0.50 (0 faster, 1 slower of 1)"
    both = "0.79 (1 faster, 1 slower of 2)"
    assert f"| torch-cpu | the best of a cell | {alone} | {four_tasks} | – | {both} |" in text


def test_a_cell_is_measured_again_over_several_loads_once(
    cell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "peers.jsonl"
    monkeypatch.setattr(peers, "RESULTS", path)
    old = {**line(1, base=0.1, ours=0.2), "target": "cpu"}
    path.write_text(f"{json.dumps(old)}\n{json.dumps(old)[:40]}")
    measured: list[Any] = []

    def measure(cell: Any, target: str, protocol: Any, compiled: str) -> dict[str, Any]:
        measured.append((target, protocol.loads))
        new = line(1, [4] * 6, base=0.1, ours=0.3)
        return {name: new[name] for name in ("samples", "loads", "absent", "host")} | {"warnings": []}

    monkeypatch.setattr(peers, "measured", measure)
    monkeypatch.setattr(peers, "open_cell", lambda *of: cell)
    monkeypatch.setattr(peers, "backbone_of", lambda model: cell.backbone)
    asked = ["--model", "vit_b_16", "--fork", "13-14", "--tasks", "1", "--target", "cpu", "--seconds", "1"]
    for _ in range(2):
        assert not CliRunner().invoke(peers.main, asked, catch_exceptions=False).exit_code
    assert measured == [("cpu", 6)]
    assert [each.get("loads") for each in map(json.loads, path.read_text().splitlines())] == [None, [4] * 6]
    assert "**3.00**" in path.with_suffix(".md").read_text()


def test_a_line_is_of_engines_that_were_checked_and_loaded_anew(cell: Any) -> None:
    found = peers.measured(cell, "cpu", replace(ADAPTIVE, seconds=15, warmup=2))
    assert set(found["samples"]) == set(found["errors"]) == {"base", *engines.COLUMNS["cpu"]}
    assert len(found["loads"]) >= 6
    assert max(found["errors"].values()) < 1e-4
