"""Every task of an engine against its own stand-alone model, on random and on real inputs.

The answers of the stand-alone models are computed once, at export (`references`), and travel with the bundle:
whoever compiles or receives an engine can check it without PyTorch.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from .backends.base import Batch, Bounded, Engine
from .errors import BundleError, ParityError
from .spec import BASE
from .tensorfile import DAMAGED_ARRAYS

FILE = "references.npz"

Answers: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""By output: (n, classes)."""
By: TypeAlias = Literal["engine", "parsed network"]

TOLERANCES = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2, "fp16 sums": 1e-1, "bf16": 1e-1, "int8": 0.35}
"""Largest relative error, see `relative_errors`; by how numbers are multiplied and added, see `arithmetic`. TF32 keeps
ten bits of a fraction, as fp16 does."""


@dataclass(frozen=True)
class References:
    """`inputs` (n, C, H, W); `kinds`: "random" or "picture", n of them; `answers`: task -> (n, classes)."""

    inputs: Batch
    kinds: tuple[str, ...]
    answers: Mapping[str, npt.NDArray[np.float32]]

    def save(self, folder: Path) -> None:
        """Write references.npz."""
        answers = {f"answers/{task}": array for task, array in self.answers.items()}
        np.savez(folder / FILE, inputs=self.inputs, kinds=np.array(self.kinds), **answers)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> References:
        """Read references.npz; raises BundleError."""
        try:
            arrays = _arrays(folder / FILE)
            answers = {n.removeprefix("answers/"): a for n, a in arrays.items() if n.startswith("answers/")}
            found = cls(arrays["inputs"], tuple(map(str, arrays["kinds"])), answers)
        except DAMAGED_ARRAYS as error:
            raise BundleError(
                f"{folder / FILE} cannot be read: {error}", "export the bundle again"
            ) from error
        lengths = {len(found.kinds), *map(len, answers.values())}
        if (
            found.inputs.ndim != 4
            or found.inputs.dtype != np.float32
            or lengths != {len(found.inputs)}
            or 0 in lengths
        ):
            raise BundleError(
                f"{folder / FILE} holds no inputs with their answers", "export the bundle again"
            )
        return found


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    with zipfile.ZipFile(path) as archive:  # numpy stores; what unpacks to more than itself is not numpy's
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("it unpacks to more than its size")
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if odd := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"{odd[0]} is no array")
    return arrays


@dataclass(frozen=True)
class Figure:
    """One task on one kind of inputs. `agreeing`: share of inputs with the same likeliest class.

    `identical`: bit for bit. `against`: "stand-alone model", or "base engine" for the untouched backbone
    compiled by itself.
    """

    task: str
    inputs: str
    against: str
    error: float
    agreeing: float
    identical: bool


def check(
    graph: Engine,
    lone: Engine,
    references: References,
    *,
    batch: int | None,
    precision: str,
    by: By = "engine",
) -> list[dict[str, Any]]:
    """As `judge`, of two engines that are open: `graph` answers every task, `lone` is the backbone's own."""
    answers, alone = (ask(engine, references, batch) for engine in (graph, lone))
    return judge(answers, alone, references, precision=precision, by=by)


def ask(engine: Engine, references: References, batch: int | None) -> Answers:
    """What an engine answers to the inputs of `references`, by output."""
    return run_all(engine, references.inputs, batch)


def judge(
    answers: Answers, alone: Answers, references: References, *, precision: str, by: By = "engine"
) -> list[dict[str, Any]]:
    """Figures of every task, as JSON records. `alone`: what the backbone's own engine answered.

    `by` goes into the records: whether the engine itself answered, or the network that its compiler was given.
    Raises BundleError for other outputs than the tasks', ParityError, naming task, input and class, where a relative
    error exceeds the precision's tolerance, and where a task answers like another.
    """
    tolerance = TOLERANCES[precision]
    for found, expected in ((answers, set(references.answers)), (alone, {BASE})):
        if set(found) != expected:
            raise BundleError(
                f"an engine answers {', '.join(found)}; expected {', '.join(sorted(expected))}",
                "export and compile the bundle again",
            )
    figures = [
        figure
        for task, right in references.answers.items()
        for figure in compare(task, "stand-alone model", answers[task], right, references, tolerance)
    ]
    figures += compare(BASE, "base engine", answers[BASE], alone[BASE], references, tolerance)
    for pair in combinations(references.answers, 2):
        _check_apart(*pair, answers, references.answers)
    return [{**asdict(figure), "tolerance": tolerance, "by": by} for figure in figures]


def _check_apart(one: str, other: str, got: Answers, right: Answers) -> None:
    """Two tasks differ in the way in which their stand-alone models do, at least by half: a wide tolerance would hide
    that they are swapped, or that both answer as one of them. An error that they have in common is no difference."""
    if right[one].shape != right[other].shape:
        return
    found, expected = got[one] - got[other], right[one] - right[other]
    if np.vdot(found, expected) < np.vdot(expected, expected) / 2:
        raise ParityError(
            f"tasks {one} and {other} do not differ as their stand-alone models do: one answers like the other",
            "export and compile the bundle again; report it, with the model's name, if it happens again",
        )


def run_all(engine: Engine, inputs: Batch, batch: int | None) -> dict[str, npt.NDArray[Any]]:
    """Answers (n, classes) by output for inputs (n, C, H, W), in batches of the engine's size."""
    low, high = engine.batches if isinstance(engine, Bounded) else (1, len(inputs))
    size = batch or max(low, min(len(inputs), high))
    padded = np.concatenate([inputs, inputs[: -len(inputs) % size]]) if len(inputs) >= size else np.resize(
        inputs, (size, *inputs.shape[1:])
    )  # fmt: skip
    parts = [engine.run(padded[start : start + size]) for start in range(0, len(padded), size)]
    return {name: np.concatenate([part[name] for part in parts])[: len(inputs)] for name in parts[0]}


def relative_errors(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """(n,) from two (n, classes): max |got - expected| / max |expected| over the classes; NaN for what is not finite.

    Of one class the largest |expected| of all n is taken: where its answer changes sign, it is near zero.
    """
    difference = np.abs(got.astype(np.float64) - expected).reshape(len(expected), -1).max(axis=1)
    sizes = np.abs(expected.astype(np.float64)).reshape(len(expected), -1)
    return np.asarray(difference / (sizes.max(axis=1) if sizes.shape[1] > 1 else sizes.max()))


def compare(
    task: str,
    against: str,
    got: npt.NDArray[Any],
    expected: npt.NDArray[Any],
    references: References,
    limit: float,
) -> Iterator[Figure]:
    """Figures of one task: `got` beside what was `expected`, both (n, classes). Raises ParityError beyond `limit`."""
    if got.shape != expected.shape:
        raise ParityError(
            f"task {task} answers {got.shape[1:]}, its {against} {expected.shape[1:]}",
            "export the bundle again",
        )
    errors = relative_errors(got, expected)
    wrong = np.flatnonzero(~(errors <= limit))  # NaN is wrong too
    if len(wrong):
        _refuse(task, against, int(wrong[0]), got, expected, references.kinds, limit)
    kinds = np.array(references.kinds)
    for kind in dict.fromkeys(references.kinds):
        chosen = kinds == kind
        same = got[chosen].argmax(axis=1) == expected[chosen].argmax(axis=1)
        identical = bool(np.array_equal(got[chosen], expected[chosen]))
        yield Figure(task, kind, against, float(errors[chosen].max()), float(same.mean()), identical)


def _refuse(
    task: str,
    against: str,
    index: int,
    got: npt.NDArray[Any],
    expected: npt.NDArray[Any],
    kinds: Sequence[str],
    limit: float,
) -> None:
    where = int(np.nanargmax(np.abs(got[index] - expected[index]))) if np.isfinite(got[index]).any() else 0
    error = relative_errors(got[index : index + 1], expected[index : index + 1])[0]
    raise ParityError(
        f"task {task} differs from its {against}: relative error {error:.2g} on {kinds[index]} input {index}, "
        f"class {where}: {got[index].flat[where]:.6g} instead of {expected[index].flat[where]:.6g}",
        f"the tolerance is {limit:g}; a network that mixes the pictures of a batch needs export --merge never, and an "
        "engine a precision that the network bears",
    )
