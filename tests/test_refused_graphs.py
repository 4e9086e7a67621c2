"""A graph that a target cannot take: every node is named, with reasons in words and paths that exist."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import onnx
import pytest
from onnx import helper
from tiny_bundle import make_bundle
from tiny_cli import Ran, cli

from subtune_deploy.bundle import Bundle, open_bundle, seal
from subtune_deploy.errors import BundleError
from subtune_deploy.staging import PREFIX, staged

pytest.importorskip("tensorrt_rtx")

UNTAKEN = 5


def strange(folder: Path) -> Bundle:
    """A bundle whose graph begins with operators that TensorRT lacks, one of them with an odd name."""
    bundle = make_bundle(folder, batch=2)
    model = onnx.load(folder / "graph.onnx")
    values = ["input", *(f"strange{number}" for number in range(UNTAKEN))]
    for node in model.graph.node:
        node.input[:] = [values[-1] if name == "input" else name for name in node.input]
    for number, (before, after) in enumerate(pairwise(values)):
        name = f"block{number}/Bernoulli" + ("\x1b[31m" if number == 0 else "")
        model.graph.node.insert(number, helper.make_node("Bernoulli", [before], [after], name=name))
    onnx.save(model, folder / "graph.onnx")
    seal(folder, replace(bundle.manifest, files={}))
    return open_bundle(folder)


def recipe(folder: Path, precision: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(
        f'name = "mine"\nbackend = "tensorrt_rtx"\nprecision = "{precision}"\ndescription = ""\n'
        '[options]\ncapabilities = "8.6 8.9"\n'
    )
    return path


@pytest.fixture(params=["fp32", "fp16"])
def refused(request: pytest.FixtureRequest, tmp_path: Path) -> Ran:
    """fp16: the compiler is given a converted graph, in a folder that is gone when the error is read."""
    strange(tmp_path / "b")
    return cli("compile", tmp_path / "b", "--target", recipe(tmp_path, request.param))


def test_every_node_that_the_target_cannot_take_is_named(refused: Ran) -> None:
    assert refused.status == 2
    lines = refused.err.splitlines()
    assert f"mine cannot take {UNTAKEN} nodes of the graph:" in lines
    for number in range(UNTAKEN):
        (line,) = [each for each in lines if each.startswith(f"  node block{number}/Bernoulli")]
        assert line.endswith("(Bernoulli): the compiler gives no reason")
    assert "\x1b" not in refused.err


def test_the_error_names_the_bundle_s_graph(refused: Ran, tmp_path: Path) -> None:
    assert f"{tmp_path / 'b' / 'graph.onnx'} cannot be compiled by tensorrt_rtx" in refused.err
    assert PREFIX not in refused.err
    assert "false" not in refused.err


def test_a_temporary_folder_is_told_by_its_final_name(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught, staged(tmp_path / "b") as folder:
        raise BundleError(f"{folder / 'graph.onnx'} is wrong", f"look at {folder}")
    assert caught.value.message == str(caught.value) == f"{tmp_path / 'b' / 'graph.onnx'} is wrong"
    assert caught.value.hint == f"look at {tmp_path / 'b'}"
