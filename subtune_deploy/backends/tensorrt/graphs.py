"""ONNX files as TensorRT's parser gets them: what it would misread in silence, and which nodes it cannot take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BundleError, Unavailable
from ..base import EXPORT_AGAIN, GraphError
from . import messages

NAMED = 3
"""Nodes that an error's message names; its report names all."""

NO_REASON = "the compiler gives no reason"


@dataclass(frozen=True)
class Refused:
    """A node that the library cannot take: its name in the file, its operator, and the library's reason."""

    node: str
    operator: str
    reason: str

    def __str__(self) -> str:
        return f"node {self.node} ({self.operator}): {self.reason}"


def initializers(path: Path) -> tuple[str, ...]:
    """Names of the file's weights. Raises BundleError for an empty file, one that is no graph, and unknown operators.

    An empty file parses, and fails only when the engine is built; an operator set of the future parses too.
    """
    model = _read(path)
    if not model.graph.node or not model.graph.output:
        raise BundleError(f"{path} holds no graph ({path.stat().st_size} bytes)", EXPORT_AGAIN)
    _check_operator_set(path, model)
    _check_beside(path, model)
    return tuple(each.name for each in model.graph.initializer)


def _read(path: Path) -> Any:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise Unavailable(
            "compiling for TensorRT needs onnx, which is not installed", "pip install onnx"
        ) from error
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's, whose module depends on its version
        raise BundleError(f"{path} is not an ONNX graph: {error}", EXPORT_AGAIN) from error


def _check_operator_set(path: Path, model: Any) -> None:
    import onnx

    newest = onnx.defs.onnx_opset_version()
    versions = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    if len(versions) != 1 or not 1 <= versions[0] <= newest:
        given = ", ".join(map(str, versions)) or "none"
        raise BundleError(f"{path} names operator set {given}, of 1 to {newest}", EXPORT_AGAIN)


def _check_beside(path: Path, model: Any) -> None:
    """Weights that lie outside the file have to lie beside it: a path could lead anywhere."""
    for name in {
        each.value
        for held in model.graph.initializer
        for each in held.external_data
        if each.key == "location"
    }:
        if Path(name).name != name or not (path.parent / name).is_file():
            raise BundleError(f"{path} has its weights in {name!r}, which is no file beside it", EXPORT_AGAIN)


def refused(parser: Any) -> tuple[Refused, ...]:
    """What the parser holds against the file that it read, node by node."""
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = error.node_name() or (f"number {error.node()}" if error.node() >= 0 else "")
        found.append(Refused(node, error.node_operator(), _reason(error.desc())))
    return tuple(dict.fromkeys(found))


def _reason(description: str) -> str:
    """The parser's words; its checks of an operator give the condition that failed, which may be a bare "false"."""
    words = messages.tidy(description)
    return NO_REASON if words.rstrip(".").lower() in ("", "false", "assertion failed: false") else words


def not_parsed(library: str, path: Path, nodes: Sequence[Refused], words: str) -> BundleError:
    """The error for a file that the parser of `library` refused; `words` are what it says where no node is to blame."""
    named = [each for each in nodes if each.node or each.operator]
    if not named:
        reason = nodes[0].reason if nodes else words
        return BundleError(f"{path} cannot be read by {library}: {reason}", EXPORT_AGAIN)
    first = "; ".join(map(str, named[:NAMED]))
    more = f"; and {len(named) - NAMED} more" if len(named) > NAMED else ""
    operators = ", ".join(dict.fromkeys(each.operator for each in named))
    return GraphError(
        f"{path} cannot be compiled by {library}: {first}{more}",
        f"the network uses what this target lacks ({operators}): use another target or network",
        [str(each) for each in named],
    )
