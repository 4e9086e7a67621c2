"""A mean over all positions becomes the operator for it, which runtimes know in more layouts and precisions.

PyTorch's exporter writes adaptive pooling to one position as a mean over axes. ONNX Runtime has no such mean of 8 bits,
and none in the layout in which it computes convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

POSITIONS = {4: [2, 3], 5: [2, 3, 4]}
"""By rank, all axes but those of pictures and channels. Three axes are those of tokens, whose means are of channels."""


def pool_means(graph: ir.Graph) -> int:
    """Change the graph in place. Returns how many nodes did."""
    means = list(_means(graph))
    for mean in means:
        pool = ir.node("GlobalAveragePool", [mean.inputs[0]], name=mean.name)
        pool.metadata_props.update(mean.metadata_props)
        ir.convenience.replace_nodes_and_values(graph, mean, [mean], [pool], mean.outputs, pool.outputs)
    return len(means)


def _means(graph: ir.Graph) -> Iterator[ir.Node]:
    """Those that keep the axes they reduce, which are those of all positions."""
    for node in graph:
        given, axes = (*node.inputs, None, None)[:2]
        if node.op_type != "ReduceMean" or given is None or given.shape is None:
            continue
        if axes is None or axes.const_value is None or not node.attributes.get_int("keepdims", 1):
            continue
        rank = given.shape.rank()
        if sorted(int(axis) % rank for axis in axes.const_value.numpy()) == POSITIONS.get(rank):
            yield node
