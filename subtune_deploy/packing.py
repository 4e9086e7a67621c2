"""What a plan cuts out of packed values, and what it puts together: work that no block does.

A step that reads exactly what another one left packed reads it as it lies. Anything else is made of stretches: a
stretch that is not the whole of a value is cut out of it, several are concatenated; each is made once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .plan import Plan, Step, Streams
from .topology import Carry, Topology


@dataclass(frozen=True)
class Packing:
    """For the step at `reader`, `operators` of them move the values that `streams` streams have at `source`."""

    reader: str
    source: str
    streams: int
    operators: int


def stretches(layouts: Sequence[Streams], wanted: Streams) -> list[tuple[Streams, Streams]]:
    """(packed value, its stretch): `wanted` cut into what lies side by side in one value.

    `layouts[i]` is how the value is packed in which `wanted[i]` lies.
    """
    found: list[tuple[Streams, Streams]] = []
    for layout, stream in zip(layouts, wanted, strict=True):
        longer = (*found[-1][1], stream) if found and found[-1][0] == layout else (stream,)
        start = layout.index(longer[0])
        if layout[start : start + len(longer)] == longer and len(longer) > 1:
            found[-1] = (layout, longer)
        else:
            found.append((layout, (stream,)))
    return found


def packings(topology: Topology, plan: Plan) -> Iterator[Packing]:
    """In execution order. What a tuple holds counts apart; sizes, and what knows no batch, are free."""
    sources = {node.name: node.inputs for node in topology.nodes}
    carries = {node.name: node.carry for node in topology.nodes}
    layouts: dict[str, dict[str, Streams]] = {}
    made: set[tuple[str, Streams]] = set()
    for step in (*plan.steps, *_answers(topology, plan)):
        for source, streams in zip(sources[step.node], step.inputs, strict=True):
            if tensors := _tensors(carries[source]):
                moves = [_moves(source, layouts[source], wanted, made) for wanted in _wanted(step, streams)]
                if step.siamese:
                    moves.append([len(streams)])
                yield from (Packing(step.node, source, n, tensors) for each in moves for n in each)
        layouts.setdefault(step.node, {}).update(dict.fromkeys(step.streams, step.streams))


def _answers(topology: Topology, plan: Plan) -> Iterator[Step]:
    """The output, as steps that read each stream by itself."""
    for _, stream in plan.outputs:
        yield Step(topology.nodes[-1].name, (), (), ((stream,),))


def _tensors(carry: Carry) -> int:
    """How many tensors of a value are packed along the batch."""
    if isinstance(carry, (tuple, list)):
        return sum(map(_tensors, carry))
    return int(isinstance(carry, int))


def _wanted(step: Step, streams: Streams) -> list[Streams]:
    """What is read as one value: siamese heads read two, and a grouped step one stream for all versions."""
    if step.siamese:
        return [(stream,) for stream in streams]
    return [streams[:1] if one_for_all(step, streams) else streams]


def one_for_all(step: Step, streams: Streams) -> bool:
    """Whether all versions of a grouped step read one stream, and each that alone: it need not be packed."""
    return 1 < len(step.versions) == len(streams) and len(set(streams)) == 1


def _moves(
    source: str, layouts: Mapping[str, Streams], wanted: Streams, made: set[tuple[str, Streams]]
) -> list[int]:
    """Of each operator that makes `wanted`, how many streams it moves."""
    parts = stretches([layouts[stream] for stream in wanted], wanted)
    needed = [stretch for layout, stretch in parts if stretch != layout]
    if len(parts) > 1:
        needed.append(wanted)
    new = [streams for streams in dict.fromkeys(needed) if (source, streams) not in made]
    made.update((source, streams) for streams in new)
    return list(map(len, new))
