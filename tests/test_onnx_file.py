"""The writer of ONNX files, against the libraries' own: the same message, in a fraction of the memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_factories import network

from subtune_deploy import onnx_file
from subtune_deploy.export import export
from subtune_deploy.onnx_file import save_onnx
from subtune_deploy.plan import make_plan
from subtune_deploy.tasks import candidate_task, owners

MIB = 1 << 20


def model(*sizes: int) -> ir.Model:
    """Adds constants of so many floats each to its input of one float."""
    value = given_value = ir.Value(name="input", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes, weights = [], []
    for number, size in enumerate(sizes):
        array = np.random.default_rng(number).standard_normal(size, dtype=np.float32)
        weight = ir.Value(name=f"w{number}", shape=ir.Shape([size]), type=ir.TensorType(ir.DataType.FLOAT))
        weight.const_value = ir.tensor(array, name=weight.name)
        weights.append(weight)
        nodes.append(ir.node("Add", [value, weight], name=f"add{number}"))
        value = nodes[-1].outputs[0]
        value.name, value.type = f"sum{number}", ir.TensorType(ir.DataType.FLOAT)
    value.shape = ir.Shape([max(sizes, default=1)])
    graph = ir.Graph(
        [given_value], [value], nodes=nodes, initializers=weights, opset_imports={"": 20}, name="g"
    )
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("batch", [1, None])
@pytest.mark.parametrize("topology", ["chain", "dense", "tokens"])
def test_the_file_is_the_message_that_onnx_ir_makes(topology: str, batch: int | None, tmp_path: Path) -> None:
    backbone = network(topology)
    tasks = [candidate_task(backbone, "birds", (2,), seed=1)]
    exported = export(backbone, tasks, make_plan(backbone.topology, owners(tasks)), batch=batch)
    for each in (exported.graph, exported.lone):
        before = ir.to_proto(each)
        save_onnx(each, tmp_path / "graph.onnx")
        assert onnx.load(tmp_path / "graph.onnx") == before
        assert ir.to_proto(each) == before, "the model itself is left as it was"
        onnx.checker.check_model(tmp_path / "graph.onnx", full_check=True)
        onnxruntime.InferenceSession(str(tmp_path / "graph.onnx"))


@settings(max_examples=50)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=5))
def test_whatever_the_lengths_are_they_are_written_right(sizes: list[int]) -> None:
    made = model(*sizes)
    with tempfile.TemporaryDirectory() as folder:
        save_onnx(made, Path(folder, "graph.onnx"))
        assert onnx.load(Path(folder, "graph.onnx")) == ir.to_proto(made)


def test_a_model_is_left_as_it_was_where_it_cannot_be_written(tmp_path: Path) -> None:
    made = model(3)
    before = ir.to_proto(made)
    with pytest.raises(FileNotFoundError):
        save_onnx(made, tmp_path / "no" / "graph.onnx")
    assert ir.to_proto(made) == before


@pytest.mark.parametrize("number", [0, 1, 127, 128, 16383, 16384, 2**31 - 1, 2**35])
def test_a_varint_is_read_back_by_protobuf(number: int) -> None:
    """As the version of a model, which is one."""
    field = onnx.ModelProto.DESCRIPTOR.fields_by_name["model_version"].number
    parsed = onnx.ModelProto.FromString(onnx_file._varint(field << 3) + onnx_file._varint(number))
    assert parsed.model_version == number


def test_a_graph_beyond_the_limit_keeps_its_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "PROTOBUF_LIMIT", 1000)
    save_onnx(model(10_000), tmp_path / "graph.onnx")
    assert (tmp_path / "graph.onnx.data").stat().st_size >= 40_000
    assert (tmp_path / "graph.onnx").stat().st_size < 1000
    session = onnxruntime.InferenceSession(str(tmp_path / "graph.onnx"))
    (answer,) = session.run(None, {"input": np.zeros(1, np.float32)})
    np.testing.assert_array_equal(answer, np.random.default_rng(0).standard_normal(10_000, dtype=np.float32))


MEASURED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_onnx_file import MIB, model
from subtune_deploy.environment import kilobytes
from subtune_deploy.onnx_file import save_onnx

made, status = model(*[MIB] * 64), Path("/proc/self/status")
save_onnx(model(4), Path(sys.argv[2]))
before = kilobytes(status, "VmHWM")
save_onnx(made, Path(sys.argv[2]))
print(kilobytes(status, "VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_it_takes_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    """256 MiB in 64 pieces: the libraries' writer takes twice that more."""
    command = [sys.executable, "-c", MEASURED, str(Path(__file__).parent), str(tmp_path / "graph.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "graph.onnx").stat().st_size > 256 * MIB
    assert int(done.stdout) < 64 * MIB
