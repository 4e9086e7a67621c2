"""The plan: for every node of the backbone, which streams run it, with whose weights, packed or apart.

Two tasks are in the same stream at a node while the weights and the inputs that led there are the same. A
node runs once per version of its weights; the streams of one version are packed on the batch axis, in the order in
which they rejoined. A stream is named after the first task in it, a version after the first task that owns it, `base`
coming first.

Pure data from pure data: no torch, no weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from .spec import BASE
from .topology import Node, Topology, depends_on_batch, packable

Merge: TypeAlias = 'Literal["always", "never"] | tuple[str, ...]'
"""Where packing may start: at every node with multiply-adds, nowhere, or at the nodes named."""

Owners: TypeAlias = Mapping[str, Mapping[str, str]]
"""task -> unit -> the task whose weights it uses there (itself, or one with equal weights)."""

Streams: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One execution of one node.

    `versions`: whose weights; several only where they run as one grouped operator. `streams`: who comes
    out, in the order in which they are packed. `inputs`: for each input of the node, the streams that
    `streams` read there. `siamese`: the head reads the base's features followed by the task's own.
    """

    node: str
    versions: tuple[str, ...]
    streams: Streams
    inputs: tuple[Streams, ...]
    siamese: bool = False


@dataclass(frozen=True)
class Plan:
    """Steps in execution order.

    `grouped`: units whose versions run as one operator. `rejoins`: nodes at which streams that ran apart
    are packed. `outputs`: (task, its stream at the output node), `base` first. `apart`: tasks whose own streams
    are packed with no others. `most`: so many streams are packed at most, 0 for any number.
    """

    tasks: tuple[str, ...]
    merge: Merge
    grouped: tuple[str, ...]
    rejoins: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[tuple[str, str], ...]
    apart: Streams = ()
    most: int = 0

    def to_json(self) -> dict[str, Any]:
        """A JSON document; `Plan.from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`, also after a way through JSON text."""
        given = {key: _tuples(value) for key, value in document.items() if key != "steps"}
        steps = [Step(**{key: _tuples(value) for key, value in step.items()}) for step in document["steps"]]
        return cls(**given, steps=tuple(steps))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def candidate_owners(topology: Topology, forks: Iterable[Iterable[int]]) -> dict[str, dict[str, str]]:
    """For `make_plan`: tasks task1, task2, ..., each with weights of its own in its fork's blocks and in the heads."""
    units = [([f"block{layer}" for layer in fork], f"task{n}") for n, fork in enumerate(forks, start=1)]
    return {name: dict.fromkeys((*blocks, *topology.heads), name) for blocks, name in units}


def make_plan(
    topology: Topology,
    owners: Owners,
    *,
    siamese: Iterable[str] = (),
    merge: Merge = "always",
    grouped: Iterable[str] = (),
    apart: Iterable[str] = (),
    most: int = 0,
) -> Plan:
    """The plan for `base` and the tasks in `owners` (in that order, which the outputs keep).

    A task that is `apart` leaves the steps of all others as they are without it. Of more than `most` streams, several
    batches are made.
    """
    lone = tuple(apart)
    planner = _Planner(
        topology, {BASE: {}, **owners}, frozenset(siamese), merge, frozenset(grouped), frozenset(lone), most
    )
    steps = tuple(step for node in topology.nodes[:-1] for step in planner.steps(node))
    (source,) = topology.nodes[-1].inputs
    outputs = tuple(planner.stream[source].items())
    rejoins = tuple(planner.rejoins)
    return Plan(tuple(planner.owners), merge, tuple(grouped), rejoins, steps, outputs, lone, most)


@dataclass
class _Planner:
    """What has been decided so far, in the order of the nodes."""

    topology: Topology
    owners: Owners
    siamese: frozenset[str]
    merge: Merge
    grouped: frozenset[str]
    apart: frozenset[str]
    most: int
    stream: dict[str, dict[str, str]] = field(default_factory=dict)  # node -> task -> stream
    packed: dict[tuple[str, str], Streams] = field(default_factory=dict)  # node, stream -> how it came out
    rejoins: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.carries = {node.name: node.carry for node in self.topology.nodes}
        self.last = {task: self._last_own(task) for task in self.owners}

    def _last_own(self, task: str) -> int:
        """Index of the node behind which all weights are the base's again, but for the head's; -1 for none."""
        own = self.owners[task].keys() - set(self.topology.heads)
        return max((i for i, node in enumerate(self.topology.nodes) if node.unit in own), default=-1)

    def steps(self, node: Node) -> Iterator[Step]:
        self.stream[node.name] = self._streams(node)
        pieces = [piece for group in self._groups(node) for piece in self._pieces(node, group)]
        for versions, streams in self._executions(node, pieces):
            self.packed.update({(node.name, stream): streams for stream in streams})
            yield self._step(node, versions, streams)

    def _version(self, node: Node, task: str) -> str:
        return self.owners[task].get(node.unit, BASE) if node.unit else BASE

    def _is_siamese(self, node: Node, task: str) -> bool:
        return task in self.siamese and node.unit in self.topology.heads

    def _streams(self, node: Node) -> dict[str, str]:
        first: dict[tuple[Any, ...], str] = {}
        return {task: first.setdefault(self._history(node, task), task) for task in self.owners}

    def _history(self, node: Node, task: str) -> tuple[Any, ...]:
        """Tasks with the same history here are the same stream."""
        read = tuple(self.stream[source][task] for source in node.inputs)
        both = (
            tuple(self.stream[source][BASE] for source in node.inputs) if self._is_siamese(node, task) else ()
        )
        return self._version(node, task), read, both

    def _groups(self, node: Node) -> Iterator[list[str]]:
        """Streams that may run together: one version, and the same values where no batch tells them apart.

        Those that rejoin first come first: what later ones join is then packed as it will stay.
        """
        groups: dict[tuple[Any, ...], list[str]] = {}
        for stream in sorted(dict.fromkeys(self.stream[node.name].values()), key=self.last.__getitem__):
            fixed = tuple(
                self.stream[i][stream] for i in node.inputs if not depends_on_batch(self.carries[i])
            )
            alone = stream if self._is_siamese(node, stream) or stream in self.apart else None
            groups.setdefault((self._version(node, stream), fixed, alone), []).append(stream)
        for group in groups.values():
            size = self.most or len(group)
            yield from (group[start : start + size] for start in range(0, len(group), size))

    def _pieces(self, node: Node, group: list[str]) -> list[Streams]:
        """The group cut into what is packed."""
        whole = tuple(group)
        if len(group) == 1 or not self._can_pack(node):
            return [(stream,) for stream in group]
        layouts = [self.packed[i, self.stream[i][group[0]]] for i in self._batched(node)]
        wanted = [tuple(self.stream[i][stream] for stream in group) for i in self._batched(node)]
        if layouts == wanted:
            return [whole]
        if self._may_start(node) or (node.unit is None and any(map(_equal_and_packed, layouts, wanted))):
            self.rejoins[node.name] = None
            return [whole]
        return [(stream,) for stream in group]

    def _batched(self, node: Node) -> list[str]:
        return [source for source in node.inputs if depends_on_batch(self.carries[source])]

    def _can_pack(self, node: Node) -> bool:
        values = [node.carry, *(self.carries[source] for source in node.inputs)]
        return depends_on_batch(node.carry) and all(map(packable, values))

    def _may_start(self, node: Node) -> bool:
        if isinstance(self.merge, tuple):
            return node.name in self.merge
        return self.merge == "always" and node.macs > 0

    def _executions(self, node: Node, pieces: list[Streams]) -> Iterator[tuple[tuple[str, ...], Streams]]:
        """(versions, streams) of each step: a piece each, or all of them as one grouped operator."""
        lone = [piece for piece in pieces if self.apart.intersection(piece)]
        shared = [piece for piece in pieces if piece not in lone]
        versions = tuple(self._version(node, piece[0]) for piece in shared)
        if self._can_group(node, shared, versions):
            yield versions, tuple(stream for piece in shared for stream in piece)
        else:
            lone = shared + lone
        yield from (((self._version(node, piece[0]),), piece) for piece in lone)

    def _can_group(self, node: Node, pieces: Sequence[Streams], versions: Sequence[str]) -> bool:
        distinct = len(versions) > 1 and len(set(versions)) == len(versions)
        equal = len({len(piece) for piece in pieces}) == 1
        plain = all(
            isinstance(carry, int) for carry in [node.carry, *map(self.carries.__getitem__, node.inputs)]
        )
        return node.unit in self.grouped and node.op == "call_module" and distinct and equal and plain

    def _step(self, node: Node, versions: tuple[str, ...], streams: Streams) -> Step:
        inputs = tuple(tuple(self.stream[source][stream] for stream in streams) for source in node.inputs)
        if not self._is_siamese(node, streams[0]):
            return Step(node.name, versions, streams, inputs)
        both = tuple(
            (self.stream[source][BASE], *read) for source, read in zip(node.inputs, inputs, strict=True)
        )
        return Step(node.name, versions, streams, both, siamese=True)


def _equal_and_packed(layout: Streams, wanted: Streams) -> bool:
    return len(layout) > 1 and layout == wanted
