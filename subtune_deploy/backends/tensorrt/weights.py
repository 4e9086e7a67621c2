"""Which weights of the source graph lie in an engine's bytes, how often, and in which layout.

A compiler may turn weights round, so several layouts are looked for; what it transforms beyond that, or folds
into something else, is reported as missing. A weight that all tasks share has to be there once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BundleError
from ..base import COMPILE_AGAIN

LARGE = 4096
"""Bytes from which on a weight is looked for: smaller ones are packed or folded by compilers, as are vectors (biases,
scales of int8) of any size."""

REQUIRED = 0.75
"""Share of the bytes of each version's large weights that has to be found. In nearly all of some 60 graphs it was
all, but a compiler may scale the queries of attention, or take them out of queries, keys and values: a quarter of a
transformer's block."""

CONSTANTS = "constants"
"""Version of what has no unit in its name: numbers that the exporter worked out ahead. Compilers go on with that (scale
them, take them apart), so they are looked for but not required."""

_LAYOUTS: Mapping[int, tuple[tuple[int, ...], ...]] = {
    2: ((0, 1), (1, 0)),
    3: ((0, 1, 2), (0, 2, 1)),
    4: ((0, 1, 2, 3), (0, 2, 3, 1), (2, 3, 1, 0), (1, 2, 3, 0)),
}
"""By number of axes: as it is, channels last, and turned round."""

_FILLED = {(0, 1), (1, 0), (0, 2, 3, 1)}
_ROWS = (2, 4, 8, 16, 32, 64)
"""In these layouts rows, which is what lies along the last axis, may be filled up with zeros to multiples of these."""

_WORD = 8  # bytes by which a weight is recognised before it is compared as a whole
_SEARCHED = 512  # bytes at its beginning, among which a telling word is chosen, and which are compared first


@dataclass(frozen=True)
class Found:
    """A weight: the unit's version that owns it (base, a task, `CONSTANTS`), and how often it lies in the engine.

    `layouts`: axes of the ONNX weight in the order of the engine -> times. `alike`: how many weights of the
    graph have these very bytes, each of which may be there.
    """

    name: str
    version: str
    size: int
    layouts: Mapping[str, int]
    alike: int

    @property
    def times(self) -> int:
        return sum(self.layouts.values())


@dataclass(frozen=True)
class _Wanted:
    """A layout of a weight: `view`, its rows filled up to `row` numbers. `head`: its first bytes.

    Bytes are made of it only where the head was met: filled up, a weight can be many times as large.
    """

    name: str
    layout: str
    view: npt.NDArray[Any]
    row: int
    head: bytes
    offset: int

    @property
    def word(self) -> int:
        return int.from_bytes(self.head[self.offset : self.offset + _WORD], "little")

    def lies_at(self, data: npt.NDArray[np.uint8], start: int) -> bool:
        size = self.view.nbytes // self.view.shape[-1] * self.row
        if (
            start < 0
            or start + size > len(data)
            or data[start : start + len(self.head)].tobytes() != self.head
        ):
            return False
        return bool(np.array_equal(data[start : start + size], _bytes(self.view, self.row)))


def _bytes(view: npt.NDArray[Any], row: int) -> npt.NDArray[np.uint8]:
    filled = np.pad(view, [(0, 0)] * (view.ndim - 1) + [(0, row - view.shape[-1])])
    return np.ascontiguousarray(filled).reshape(-1).view(np.uint8)


def find(source: Path, engine: bytes, large: int = LARGE) -> tuple[Found, ...]:
    """Every weight of two axes or more and of at least `large` bytes of the ONNX file `source`, and where it is.

    A float weight that the graph quantises is looked for as its int8 values.
    """
    weights, versions = _read(source, large)
    wanted = [layout for name, values in weights.items() for layout in _layouts(name, values)]
    places = {
        (name, place): layout for name, place, layout in _matches(wanted, np.frombuffer(engine, np.uint8))
    }
    alike = Counter(values.tobytes() for values in weights.values())
    return tuple(
        Found(
            name,
            _version(name, versions),
            values.nbytes,
            dict(Counter(layout for (owner, _), layout in places.items() if owner == name)),
            alike[values.tobytes()],
        )
        for name, values in weights.items()
    )


NONE_LARGE = "no weight is large enough to be looked for"


def facts(found: Sequence[Found], versions: Sequence[str] = ()) -> dict[str, Any]:
    """A summary for a manifest. `share`: of the bytes of large weights that were found.

    `versions`: all that there should be. Of those without a large weight of their own nothing is shown by the rest, and
    without any large weight nothing is shown at all: the summary says so.
    """
    if not found:
        return {"weights": 0, "note": NONE_LARGE}
    small = [version for version in versions if version not in _by_version(found)]
    return {
        "weights": len(found),
        "bytes": sum(each.size for each in found),
        "share": _share(found),
        "required": REQUIRED,
        "by_version": {version: _share(group) for version, group in _by_version(found).items()},
        "layouts": dict(Counter(layout for each in found for layout in each.layouts)),
        "missing": [each.name for each in found if not each.times],
        **({"too small to be looked for": small} if small else {}),
    }


def versions(source: Path) -> tuple[str, ...]:
    """Those that the ONNX file `source` has weights of, as far as its outputs tell. Raises BundleError."""
    return _outputs(_model(source, weights=False))


def check(engine: Path, found: Sequence[Found], required: float = REQUIRED) -> None:
    """Raise BundleError if a version's weights are missing, or lie in the engine more often than in the graph."""
    for each in found:
        if each.times > each.alike:
            raise BundleError(
                f"{engine} holds the weight {each.name} {each.times} times, the graph {each.alike} times",
                "report it, with the model's name: shared weights have to be stored once",
            )
    for version, group in _by_version(found).items():
        if version != CONSTANTS and _share(group) < required:
            missing = next(each.name for each in group if not each.times)
            raise BundleError(
                f"{engine} holds {_share(group):.0%} of the weights of {version}, at least {required:.0%} are "
                f"expected; {missing} is not there",
                COMPILE_AGAIN,
            )


def _share(found: Iterable[Found]) -> float:
    sizes = [(each.size, each.size if each.times else 0) for each in found]
    return sum(there for _, there in sizes) / sum(size for size, _ in sizes)


def _by_version(found: Iterable[Found]) -> dict[str, list[Found]]:
    groups: dict[str, list[Found]] = {}
    for each in found:
        groups.setdefault(each.version, []).append(each)
    return groups


def _version(name: str, versions: Sequence[str]) -> str:
    """Weights are called `unit.version...`; a version gets underscores where its name was taken."""
    second = [*name.split("."), ""][1]
    return next((each for each in (second, second.rstrip("_")) if each in versions), CONSTANTS)


# The source graph


def _model(source: Path, weights: bool = True) -> Any:
    import onnx

    try:
        return onnx.load(source, load_external_data=weights)
    except Exception as error:  # protobuf's, whose module depends on its version
        raise BundleError(f"{source} cannot be read: {error}", "export the bundle again") from error


def _outputs(model: Any) -> tuple[str, ...]:
    return tuple(output.name for output in model.graph.output)


def _read(source: Path, large: int) -> tuple[dict[str, npt.NDArray[Any]], tuple[str, ...]]:
    """Large weights as the engine has to hold them, and the names of the outputs: the versions."""
    from onnx import helper, numpy_helper

    model = _model(source)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
    owner = {name: name for name in weights}
    for node in model.graph.node:
        if node.op_type in _AHEAD and node.input[0] in owner:
            name = owner[node.output[0]] = owner[node.input[0]]
            attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
            others = [weights[each] for each in node.input[1:2] if each in weights]
            weights[name] = _AHEAD[node.op_type](weights[name], attributes, *others)
    return (
        {name: values for name, values in weights.items() if _sought(values, large)},
        _outputs(model),
    )


def _sought(values: npt.NDArray[Any], large: int) -> bool:
    """A weight that is one number throughout may lie anywhere, and tells nothing."""
    integers = values.dtype in (np.int64, np.int32, np.bool_)  # lengths, places, masks
    return (
        values.ndim > 1 and values.nbytes >= large and not integers and bool((values != values.flat[0]).any())
    )


def _transposed(values: npt.NDArray[Any], attributes: Mapping[str, Any]) -> npt.NDArray[Any]:
    return np.transpose(values, attributes.get("perm"))


def _quantized(
    values: npt.NDArray[Any], attributes: Mapping[str, Any], scale: npt.NDArray[Any]
) -> npt.NDArray[np.int8]:
    axis = attributes.get("axis", 1) % values.ndim
    shape = [-1 if each == axis and scale.size > 1 else 1 for each in range(values.ndim)]
    return np.asarray(np.clip(np.rint(values / scale.reshape(shape)), -128, 127), np.int8)


_AHEAD: Mapping[str, Callable[..., npt.NDArray[Any]]] = {
    "Transpose": _transposed,
    "QuantizeLinear": _quantized,
}
"""Operators on a weight that compilers execute once and for all."""


def _layouts(name: str, values: npt.NDArray[Any]) -> Iterator[_Wanted]:
    """The layouts that differ in their bytes."""
    seen: set[tuple[int, ...]] = set()
    for axes in _LAYOUTS.get(values.ndim, (tuple(range(values.ndim)),)):
        view, label = values.transpose(axes), ",".join(map(str, axes))
        length = view.shape[-1]
        order = tuple(axis for axis in axes if values.shape[axis] > 1)
        if order not in seen:
            seen.add(order)
            yield _wanted(name, label, view, length)
        rows = {-(-length // multiple) * multiple for multiple in _ROWS} if axes in _FILLED else set()
        for row in sorted(rows - {length}):
            yield _wanted(name, f"{label} in rows of {row}", view, row)


def _wanted(name: str, layout: str, view: npt.NDArray[Any], row: int) -> _Wanted:
    """With the word of most different bytes near the beginning, for words of zeros are everywhere."""
    slab = view[0].nbytes // view.shape[-1] * row  # bytes per step of the first axis
    head = _bytes(view[: -(-_SEARCHED // slab)], row)[:_SEARCHED].tobytes()
    offset = max(range(0, len(head) - _WORD + 1, _WORD), key=lambda at: len(set(head[at : at + _WORD])))
    return _Wanted(name, layout, view, row, head, offset)


# The engine


def _matches(wanted: Sequence[_Wanted], data: npt.NDArray[np.uint8]) -> Iterator[tuple[str, int, str]]:
    """(name, place, layout) for each place in `data`, at any alignment, where that layout of that weight lies.

    One place can fit several layouts: a single row, and the row filled up with what are zeros anyway.
    """
    by_word: dict[int, list[_Wanted]] = {}
    for each in wanted:
        by_word.setdefault(each.word, []).append(each)
    words = np.array(sorted(by_word), dtype="<u8")
    for shift in range(_WORD):
        for place, word in _places(words, data[shift:]):
            for each in by_word[word]:
                start = place + shift - each.offset
                if each.lies_at(data, start):
                    yield each.name, start, each.layout


def _places(words: npt.NDArray[np.uint64], data: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Offsets in `data`, in steps of a word, at which one of the sorted `words` lies."""
    read = data[: len(data) // _WORD * _WORD].view("<u8")
    table = np.zeros(1 << 16, bool)
    table[words.astype(np.uint16)] = True  # of their lowest bits: most of the file is out at the first look
    near = np.flatnonzero(table[read.view("<u2")[::4]])
    found = np.minimum(np.searchsorted(words, read[near]), max(len(words) - 1, 0))
    for index in near[words[found] == read[near]] if len(words) else ():
        yield int(index) * _WORD, int(read[index])
