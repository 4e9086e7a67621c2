"""Weights are found in an engine's bytes where they are, and only there."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from tiny_parsed import parsed, rtx, write

from subtune_deploy.backends.tensorrt.builder import build
from subtune_deploy.backends.tensorrt.settings import Settings
from subtune_deploy.backends.tensorrt.weights import CONSTANTS, check, facts, find, versions
from subtune_deploy.errors import BundleError

RANDOM = np.random.default_rng(3)
KERNEL = RANDOM.standard_normal((16, 8, 3, 3)).astype(np.float32)
MATRIX = RANDOM.standard_normal((40, 30)).astype(np.float32)
FORKED = RANDOM.standard_normal((40, 30)).astype(np.float32)


def source(folder: Path, **replaced: np.ndarray) -> Path:
    """A graph whose weights belong to the base and to birds; only names and bytes matter here."""
    weights = {"block1.base.conv.weight": KERNEL, "head.base.weight": MATRIX, "head.birds.weight": FORKED}
    weights |= {name.replace("__", "."): values for name, values in replaced.items()}
    nodes = [
        helper.make_node("Conv", ["input", "block1.base.conv.weight"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Concat", ["c", "c", "c"], ["d"], axis=1),
        helper.make_node("Slice", ["d", "zero", "forty", "one"], ["e"]),
        helper.make_node("MatMul", ["e", "head.base.weight"], ["base"]),
        helper.make_node("MatMul", ["e", "head.birds.weight"], ["birds"]),
    ]
    places = {name: np.array([value]) for name, value in (("zero", 0), ("forty", 40), ("one", 1))}
    return write(folder / "graph.onnx", nodes, {**weights, **places}, (1, 8, 9, 9), outputs=("base", "birds"))


def noise(size: int) -> bytes:
    return RANDOM.bytes(size)


def summary(found: tuple) -> dict[str, dict[str, int]]:
    return {each.name: dict(each.layouts) for each in found}


def test_weights_are_found_at_any_alignment_and_in_any_of_the_layouts(tmp_path: Path) -> None:
    turned = np.ascontiguousarray(KERNEL.transpose(0, 2, 3, 1))
    engine = noise(1001) + turned.tobytes() + noise(7) + MATRIX.tobytes() + noise(3) + FORKED.T.tobytes()
    assert summary(find(source(tmp_path), engine)) == {
        "block1.base.conv.weight": {"0,2,3,1": 1},
        "head.base.weight": {"0,1": 1},
        "head.birds.weight": {"1,0": 1},
    }


def test_rows_that_are_filled_up_with_zeros_are_recognised(tmp_path: Path) -> None:
    rows = np.pad(FORKED.T, ((0, 0), (0, 24)))
    engine = noise(5) + rows.tobytes() + np.pad(MATRIX, ((0, 0), (0, 2))).tobytes() + KERNEL.tobytes()
    assert summary(find(source(tmp_path), engine)) == {
        "block1.base.conv.weight": {"0,1,2,3": 1},
        "head.base.weight": {"0,1 in rows of 32": 1},
        "head.birds.weight": {"1,0 in rows of 64": 1},
    }


def test_one_place_counts_once_whatever_layouts_fit(tmp_path: Path) -> None:
    row = RANDOM.standard_normal((1, 1100)).astype(np.float32)
    path = source(tmp_path, a__base__row=row)
    engine = KERNEL.tobytes() + MATRIX.tobytes() + FORKED.tobytes() + row.tobytes() + bytes(1000)
    found = find(path, engine)
    check(tmp_path / "e", found)
    assert [each.times for each in found] == [1, 1, 1, 1]


def test_each_weight_belongs_to_the_version_in_its_name(tmp_path: Path) -> None:
    weights = {"val_7": MATRIX[::-1].copy(), "x.birds_.weight": FORKED[::-1].copy()}
    found = find(source(tmp_path, **weights), b"")
    assert {each.name: each.version for each in found} == {
        "block1.base.conv.weight": "base",
        "head.base.weight": "base",
        "head.birds.weight": "birds",
        "val_7": CONSTANTS,
        "x.birds_.weight": "birds",
    }


def test_constants_are_reported_but_not_required(tmp_path: Path) -> None:
    path = source(tmp_path, val_7=MATRIX[::-1].copy())
    found = find(path, KERNEL.tobytes() + MATRIX.tobytes() + FORKED.tobytes())
    check(tmp_path / "e", found)
    assert facts(found)["missing"] == ["val_7"]
    assert facts(found)["by_version"][CONSTANTS] == 0


@pytest.mark.parametrize("wrong", ["cut", "changed", "absent"])
def test_a_weight_that_is_not_there_whole_is_missing(tmp_path: Path, wrong: str) -> None:
    forked = bytearray(FORKED.tobytes())
    forked = {"cut": forked[:-1], "changed": forked[:-9] + b"x" + forked[-8:], "absent": bytearray()}[wrong]
    engine = KERNEL.tobytes() + MATRIX.tobytes() + bytes(forked)
    found = find(source(tmp_path), engine)
    assert facts(found)["missing"] == ["head.birds.weight"]
    assert facts(found)["by_version"] == {"base": 1.0, "birds": 0.0}
    with pytest.raises(
        BundleError, match=r"holds 0% of the weights of birds.*head\.birds\.weight is not there"
    ):
        check(tmp_path / "e", found)
    check(tmp_path / "e", found, required=0.0)


def test_a_shared_weight_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    engine = MATRIX.tobytes() + KERNEL.tobytes() + FORKED.tobytes() + KERNEL.tobytes()
    with pytest.raises(BundleError, match=r"block1\.base\.conv\.weight 2 times, the graph 1 times"):
        check(tmp_path / "e", find(source(tmp_path), engine))


def test_equal_weights_of_two_units_may_be_there_twice_or_once(tmp_path: Path) -> None:
    path = source(tmp_path, extra__base__weight=MATRIX)
    for copies in (1, 2):
        found = find(path, KERNEL.tobytes() + FORKED.tobytes() + MATRIX.tobytes() * copies)
        check(tmp_path / "e", found)
        assert not facts(found)["missing"]


def test_small_weights_vectors_and_constants_are_not_looked_for(tmp_path: Path) -> None:
    others = {
        "places": np.arange(5000).reshape(50, 100),
        "bias": MATRIX[:2],
        "ones": np.ones((50, 100), np.float32),
        "scales": FORKED.reshape(-1),
    }
    path = source(tmp_path, **{f"a__base__{name}": values for name, values in others.items()})
    assert {each.name for each in find(path, b"")} == {
        "block1.base.conv.weight",
        "head.base.weight",
        "head.birds.weight",
    }


def test_weights_are_looked_for_behind_a_transpose_of_the_graph(tmp_path: Path) -> None:
    scale = np.float32(0.01)
    nodes = [
        helper.make_node("Transpose", ["x.base.weight"], ["turned"], perm=[1, 0]),
        helper.make_node("QuantizeLinear", ["turned", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"]),
        helper.make_node("MatMul", ["input", "w"], ["base"]),
    ]
    matrix = RANDOM.standard_normal((128, 96)).astype(np.float32)
    weights = {"x.base.weight": matrix, "scale": scale, "zero": np.array(0, np.int8)}
    path = write(tmp_path / "graph.onnx", nodes, weights, (2, 96), outputs=("base",))
    exact = np.clip(np.round(matrix.T / scale), -128, 127).astype(np.int8)
    for layout, engine in (("0,1", exact), ("1,0", exact.T)):
        (found,) = find(path, noise(3) + engine.tobytes())
        assert found.layouts == {layout: 1}


def test_weights_that_the_graph_quantises_are_looked_for_as_int8(tmp_path: Path) -> None:
    scales = RANDOM.uniform(0.005, 0.02, 128).astype(np.float32)
    kernel = RANDOM.standard_normal((128, 16, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x.base.weight", "scales", "zero"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "scales", "zero"], ["w"], axis=0),
        helper.make_node("Conv", ["input", "w"], ["base"]),
    ]
    weights = {"x.base.weight": kernel, "scales": scales, "zero": np.zeros(128, np.int8)}
    path = write(tmp_path / "graph.onnx", nodes, weights, (1, 16, 5, 5), outputs=("base",))
    exact = np.clip(np.round(kernel / scales[:, None, None, None]), -128, 127).astype(np.int8)
    engine = noise(64) + exact.transpose(0, 2, 3, 1).tobytes() + noise(64)
    (found,) = find(path, engine)
    assert (found.layouts, found.size) == ({"0,2,3,1": 1}, exact.nbytes)


def test_where_no_weight_is_large_enough_nothing_is_claimed(tmp_path: Path) -> None:
    kernel, base, birds = KERNEL[:, :, :1, :1], MATRIX[:, :2], FORKED[:, :2]
    path = source(
        tmp_path, block1__base__conv__weight=kernel, head__base__weight=base, head__birds__weight=birds
    )
    found = find(path, noise(100))
    check(tmp_path / "e", found)
    assert facts(found, versions(path)) == {
        "weights": 0,
        "note": "no weight is large enough to be looked for",
    }


def test_a_task_without_a_large_weight_is_named(tmp_path: Path) -> None:
    path = source(tmp_path, head__birds__weight=FORKED[:, :2])
    told = facts(find(path, KERNEL.tobytes() + MATRIX.tobytes()), versions(path))
    assert told["share"] == 1
    assert told["too small to be looked for"] == ["birds"]
    whole = facts(find(source(tmp_path), KERNEL.tobytes() + MATRIX.tobytes()), versions(path))
    assert "too small to be looked for" not in whole


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"nonsense")
    with pytest.raises(BundleError, match="cannot be read"):
        find(tmp_path / "graph.onnx", b"")


def test_a_real_engine_holds_every_weight_once(tmp_path: Path) -> None:
    path = source(tmp_path)
    engine = build(rtx, parsed(path), Settings(capabilities=("8.9",)))
    found = find(path, engine)
    check(path, found, required=1.0)
    assert [each.times for each in found] == [1, 1, 1]


def test_a_real_engine_of_another_fork_is_noticed(tmp_path: Path) -> None:
    path = source(tmp_path)
    engine = build(rtx, parsed(path), Settings(capabilities=("8.9",)))
    other = FORKED.copy()
    other[3, 4] += 0.001
    found = find(source(tmp_path, head__birds__weight=other), engine)
    with pytest.raises(BundleError, match="of birds"):
        check(path, found)


def test_layouts_that_would_be_many_times_as_large_take_no_memory(tmp_path: Path) -> None:
    kernel = RANDOM.standard_normal((1024, 1024, 1, 1)).astype(np.float32)  # 64 times as large in rows of 64
    depthwise = RANDOM.standard_normal((4096, 1, 3, 3)).astype(np.float32)
    path = source(tmp_path, a__base__weight=kernel, b__base__weight=depthwise)
    filled = np.pad(depthwise.transpose(0, 2, 3, 1), ((0, 0),) * 3 + ((0, 3),))
    engine = kernel.tobytes() + filled.tobytes()
    tracemalloc.start()
    found = summary(find(path, engine))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["a.base.weight"] == {"0,1,2,3": 1}
    assert found["b.base.weight"] == {"0,2,3,1 in rows of 4": 1}
    assert peak < 12 * (kernel.nbytes + depthwise.nbytes)


def test_a_large_file_takes_seconds(tmp_path: Path) -> None:
    path = source(tmp_path)
    engine = noise(40 << 20) + KERNEL.tobytes()
    start = time.process_time()
    assert find(path, engine)[0].times == 1
    assert time.process_time() - start < 5
