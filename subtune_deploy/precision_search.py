"""The fastest precision whose answers stay near those of float32; in int8, with the units that it costs most left out.

    found = fastest_precision(bundle, load_target("openvino-cpu"), calibration, held_out, max_changed=0.01)
    compile_bundle(bundle, found.target, calibration=calibration, facts=found.facts)

Each precision that the backend has becomes an engine, and is asked about inputs that nothing was calibrated on. Where
int8 changes too many answers, units are ranked by what int8 costs them (`sensitivity`), and the fewest of them stay in
float32 that bring it within the tolerance. What can be run is then run by turns, see `racing`.

The tolerance is the share of inputs whose likeliest class is another than in float32, of the task where that is
greatest. A task's accuracy differs from float32's by no more than this share, whatever the labels are. It is of the
inputs that are held out: of few of them it says little, and of several precisions that are judged by the same inputs
the one that just passes owes something to chance.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends import KNOWN, get_backend
from .backends.base import Batch, Bounded, Engine, Target, arithmetic
from .bundle import Bundle
from .calibration import check_calibration
from .compiling import check_engine, make_engine
from .errors import CheckFailed, InputError, ParityError, SubtuneError, Unavailable
from .measure import Protocol
from .pareto import Point, front
from .parity import relative_errors, run_all
from .precision import int8_form
from .racing import COMPARISON, Course, Tried, batch_size, race
from .records import to_plain
from .runtime import engine_errors, open_engine
from .sensitivity import fewest, sensitivities
from .stats import Interval, Ratio

PLAIN, ROUNDED = "fp32", "tf32"
NAMED = 3
"""Units that a name tells; of more, the number."""


@dataclass(frozen=True)
class Cost:
    """What a task pays: the share of inputs whose likeliest class `changed`, and relative errors, their `median` and
    the `largest` (see `parity.relative_errors`)."""

    changed: float
    median: float
    largest: float


@dataclass(frozen=True)
class Option:
    """A precision, and the units `keep` that stay in float32. `costs` by task, against the engine in float32.

    `within` the tolerance; `ratio` of its latency to float32's; `front`: none is faster that changes no more. What
    could not be made, or answers wrongly, has a reason in `failed`, and no ratio.
    """

    name: str
    precision: str
    keep: tuple[str, ...]
    costs: Mapping[str, Cost] = field(default_factory=dict)
    within: bool = False
    ratio: Ratio | None = None
    front: bool = False
    failed: str = ""

    @property
    def changed(self) -> float:
        """Of the task that pays most."""
        return max(cost.changed for cost in self.costs.values())


@dataclass(frozen=True)
class Found:
    """`name` is the option whose recipe is `target`. `sensitivity`: by unit, what int8 costs the tasks that are beyond
    the tolerance, where any are; `tried`: as it was raced; `inputs`: how many were held out, and calibrated on."""

    name: str
    target: Target
    options: tuple[Option, ...]
    sensitivity: Mapping[str, float]
    tried: tuple[Tried, ...]
    max_changed: float
    inputs: tuple[int, int]

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest keeps of it."""
        return {"precisions": {key: each for key, each in to_plain(self).items() if key != "target"}}


def fastest_precision(
    bundle: Bundle,
    target: Target,
    calibration: Batch,
    held_out: Batch,
    *,
    max_changed: float = 0.01,
    graphs: Path | None = None,
    pictures: int | None = None,
    protocol: Protocol = COMPARISON,
    say: Callable[[str], None] = lambda line: None,
) -> Found:
    """The recipe like `target`, which is one in fp32, in the precision that answers soonest within the tolerance.

    `calibration`, `held_out`: different inputs float32 (n, C, H, W); `max_changed`: the tolerance, 0..1; `graphs`: a
    folder with other graphs of the bundle's tasks; `pictures`: see `racing.batch_size`. One that is not shown to be
    faster, twice, is not taken. Raises InputError, Unavailable where the target's device is not here, and what the
    engine in fp32 raises; other precisions that fail are told and left out.
    """
    check_search(bundle, target, max_changed)
    size = batch_size(bundle, pictures)
    calibration, held_out = _checked(bundle, calibration, held_out)
    if 0 < max_changed < 1 / len(held_out):
        enough = math.ceil(1 / max_changed)
        say(f"warning: {len(held_out)} held-out inputs cannot show {max_changed:.2%}: give {enough} or more")
    with tempfile.TemporaryDirectory(prefix="subtune-precisions-") as folder:
        search = _Search(
            bundle, target, graphs or bundle.path, calibration, held_out, max_changed, say, Path(folder)
        )
        search.attempt(PLAIN)
        for precision in between(target):
            search.attempt(precision)
        if "int8" in KNOWN[target.backend].precisions:
            search.eight_bits()
        name, tried = search.raced(protocol, size)
        timed = [replace(each, ratio=_first(each.name, tried)) for each in search.options.values()]
    counts = (len(held_out), len(calibration))
    chosen = search.recipe(search.options[name])
    return Found(name, chosen, tuple(on_front(timed)), search.sensitivity, tuple(tried), max_changed, counts)


def check_search(bundle: Bundle, target: Target, max_changed: float) -> None:
    """Raise InputError or Unavailable where there is nothing to search. Quick: nothing is compiled."""
    if not 0 <= max_changed <= 1:
        raise InputError(f"a tolerance of {max_changed:.0%} is none", "give a share from 0 % to 100 %")
    if target.precision != PLAIN:
        raise InputError(
            f"target {target.name} is already in {target.precision}",
            f"search from one in {PLAIN}: its answers are what others are held against",
        )
    if len(KNOWN[target.backend].precisions) == 1:
        raise InputError(f"{target.backend} has {PLAIN} alone", "search on another backend")
    for task in bundle.manifest.tasks:
        if task.classes < 2:
            raise InputError(f"task {task.name} has one answer, and so no likeliest class", "choose by hand")
    if not get_backend(target.backend).probe().runs:
        raise Unavailable(
            f"precisions for {target.name} cannot be run: its device is not here", "search on the device"
        )


def between(target: Target) -> list[str]:
    """What is tried besides fp32 and int8: TF32 too, where it is a choice that the recipe has not made."""
    known = KNOWN[target.backend]
    rounded = [ROUNDED] if known.tf32 and arithmetic(target) == PLAIN else []
    return [*rounded, *(each for each in known.precisions if each not in (PLAIN, "int8"))]


def _checked(bundle: Bundle, calibration: Batch, held_out: Batch) -> tuple[Batch, Batch]:
    """Both, in contiguous memory."""
    shape = bundle.manifest.input.shape
    calibration = check_calibration(calibration, shape)
    held_out = check_calibration(held_out, shape, "held-out data")
    known, asked = ([hashlib.sha256(each).digest() for each in inputs] for inputs in (calibration, held_out))
    if both := sum(each in set(known) for each in asked):
        raise InputError(
            f"{both} of {len(asked)} held-out inputs are calibrated on",
            "hold out others: int8 has seen these",
        )
    return calibration, held_out


def on_front(options: Sequence[Option]) -> list[Option]:
    """The same, with those marked that no other beats in both latency and answers."""
    points = [_point(each) for each in options if each.ratio]
    best = {point.fork for point in front(points)} if points else set()
    return [replace(each, front=each.name in best) for each in options]


def _point(option: Option) -> Point:
    agreeing, ratio = 1 - option.changed, option.ratio
    assert ratio is not None
    added = Interval(ratio.value - 1, ratio.low - 1, ratio.high - 1)
    return Point(option.name, Interval(agreeing, agreeing, agreeing), added)


def _first(name: str, tried: Sequence[Tried]) -> Ratio | None:
    """With all by turns; fp32's is 1 to itself."""
    return Ratio(1.0, 1.0, 1.0) if name == PLAIN else next((e.ratio for e in tried if e.name == name), None)


@dataclass
class _Search:
    """Precisions become engines, each in a folder of its own below `place`; `wanted` are the answers of fp32."""

    bundle: Bundle
    target: Target
    graphs: Path
    calibration: Batch
    held_out: Batch
    max_changed: float
    say: Callable[[str], None]
    place: Path
    options: dict[str, Option] = field(default_factory=dict)
    wanted: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    sensitivity: Mapping[str, float] = field(default_factory=dict)

    def recipe(self, option: Option) -> Target:
        """Peak rates of a datasheet are of one precision: another one has none."""
        if option.name == PLAIN:
            return self.target
        told = f"{self.target.description}; searched: {option.name}"
        plain = replace(self.target, description=told, datasheet={})
        if option.precision == ROUNDED:
            return replace(plain, options={**plain.options, ROUNDED: True})
        return replace(plain, precision=option.precision, keep=option.keep)

    def attempt(self, precision: str, keep: tuple[str, ...] = ()) -> SubtuneError | None:
        """An engine, what it costs, and why it is out if it is. What fails is told and returned, but for fp32."""
        option = Option(_name(precision, keep), precision, keep)
        self.say(f"compiling {option.name}")
        try:
            with engine_errors(option.name):
                option = replace(option, costs=self.asked(option))
                check_engine(self.bundle, self.recipe(option), self.folder(option))
            option = replace(option, within=option.changed <= self.max_changed)
        except SubtuneError as error:
            if precision == PLAIN:
                raise
            option = replace(option, failed=error.message)
            return error
        finally:
            self.options[option.name] = option
        return None

    def asked(self, option: Option) -> dict[str, Cost]:
        """By task, on the held-out inputs, of an engine that is compiled for it. The first, fp32's, costs nothing."""
        folder, target = self.folder(option), self.recipe(option)
        folder.mkdir()
        make_engine(self.graphs, folder, target, self.calibration)
        engine = self.open(option)
        fewest = engine.batches[0] if isinstance(engine, Bounded) else 1
        answers = run_all(engine, self.held_out, self.bundle.manifest.batch or fewest)
        self.wanted = self.wanted or answers
        return {task: cost(answers[task], right) for task, right in self.wanted.items()}

    def eight_bits(self) -> None:
        """Everything in int8; where that changes too much, without the fewest units that make up for it."""
        error = self.attempt("int8")
        plain = self.options["int8"]
        if plain.within or (error and not isinstance(error, ParityError)):
            return
        self.say("looking for the units that int8 costs most")
        worst = [task for task, paid in plain.costs.items() if paid.changed > self.max_changed]
        try:
            with engine_errors("int8"):
                self.sensitivity = sensitivities(
                    self.graphs, self.calibration, form=int8_form(self.target), tasks=worst or [*self.wanted],
                    batch=self.bundle.manifest.batch,
                )  # fmt: skip
        except SubtuneError as failed:
            self.say(f"no unit is left out of int8: {failed.message}")
        ranked = tuple(self.sensitivity)
        fewest(len(ranked), lambda count: self.holds(ranked[:count]))

    def holds(self, keep: tuple[str, ...]) -> bool:
        """Whether int8 without these units is within the tolerance."""
        self.attempt("int8", keep)
        return self.options[_name("int8", keep)].within

    def raced(self, protocol: Protocol, pictures: int) -> tuple[str, list[Tried]]:
        """The name of the fastest within the tolerance; all that could be made are timed."""
        others = [each for each in self.options.values() if each.name != PLAIN and not each.failed]
        if not others:
            return PLAIN, []
        self.say(f"running by turns: {PLAIN}, {', '.join(each.name for each in others)}")

        def load(names: Sequence[str]) -> dict[str, Engine]:
            return {name: self.open(self.options[name]) for name in names}

        within, beyond = ([e.name for e in others if e.within is wanted] for wanted in (True, False))
        return race(Course(self.bundle, load, protocol, pictures), PLAIN, within, beyond)

    def open(self, option: Option) -> Engine:
        return open_engine(self.bundle, self.recipe(option), self.folder(option), "graph")

    def folder(self, option: Option) -> Path:
        return self.place / f"{option.precision}-{len(option.keep)}"


def _name(precision: str, keep: tuple[str, ...]) -> str:
    if not keep:
        return precision
    units = ", ".join(keep) if len(keep) <= NAMED else f"{len(keep)} units"
    return f"{precision}, {units} in {PLAIN}"


def cost(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> Cost:
    """Of one task, from two (n, classes). Raises CheckFailed where an answer is no number."""
    errors = relative_errors(got, wanted)
    if not np.isfinite(errors).all():
        raise CheckFailed("held-out inputs are answered with what is no number", "leave such inputs out")
    changed = got.argmax(axis=1) != wanted.argmax(axis=1)
    return Cost(float(changed.mean()), float(np.median(errors)), float(errors.max()))
