"""How forks and rejoins run fastest on a target: plans are compiled, checked and run by turns; the fastest is kept.

    with fastest_plan(bundle, backbone, tasks, target) as found:
        compile_bundle(bundle, found.target, **found.own)

The plan that the bundle was exported with is the one to beat, see `racing`. First it is asked where streams should be
packed, but not of ways that a fitted model of latency, where there is one, predicts to be slower; then, of the best of
these, which forked blocks should run as one grouped operator, then with which settings of the backend. What is measured
is a batch of the bundle's size or, where that is open, of as many pictures as asked for.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .backbone import Backbone
from .backends import get_backend
from .backends.base import Batch, Engine, Progress, Target, Tunable, silent
from .bases import BOTH, Bases
from .build import Say
from .bundle import Bundle, Compile
from .compiling import check_engine, make_engine
from .environment import usable_cores
from .errors import CheckFailed, SubtuneError, Unavailable
from .export import export, export_graph
from .measure import Protocol
from .memory import available
from .onnx_file import save_onnx
from .plan import Plan
from .plan_ways import Plans, distinct, ways_to_group, ways_to_pack
from .predictor import Compare
from .racing import COMPARISON, Course, Tried, batch_size, race
from .records import to_plain
from .runtime import open_engine
from .spec import GRAPH, LONE_GRAPH
from .staging import told_as
from .stats import Ratio
from .tasks import Task

HELD, ROOM = 2, 0.5
"""Bytes that an engine holds for each of its files', and the share of the free memory that engines may take."""
PREDICTED = "not compiled: predicted to take"
"""Times as long."""


@dataclass(frozen=True)
class Fastest:
    """`graphs`: its ONNX files in float32, None where they are the bundle's; `make`: takes what was compiled already.

    Both last as long as the context does. `target`: the recipe, with the fastest settings if these were searched.
    `pictures`: in each batch that was measured.
    """

    name: str
    plan: Plan
    target: Target
    graphs: Path | None
    make: Compile
    tried: tuple[Tried, ...]
    pictures: int

    @property
    def own(self) -> dict[str, Any]:
        """For `compile_bundle`."""
        return {"graphs": self.graphs, "make": self.make, "facts": self.facts}

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest keeps of what it was held against, and of graphs that are not the bundle's."""
        told = {"searched": to_plain(self.tried), "pictures": self.pictures}
        plan = {name: getattr(self.plan, name) for name in ("merge", "grouped", "rejoins", "most")}
        return told if self.graphs is None else {**told, "plan": to_plain(plan)}


@contextmanager
def fastest_plan(
    bundle: Bundle,
    backbone: Backbone | None,
    tasks: Sequence[Task],
    target: Target,
    *,
    merge: bool = True,
    lowering: bool = True,
    settings: bool = False,
    pictures: int | None = None,
    calibration: Batch | None = None,
    predicted: Compare | None = None,
    protocol: Protocol = COMPARISON,
    say: Say = lambda line: None,
) -> Iterator[Fastest]:
    """The plan whose engine for `target` answers soonest, of those that `merge` and `lowering` leave open; with
    `settings` also threads and options of the recipe, where its backend has any to choose from.

    `backbone`, `tasks`: what `bundle` was made from; settings alone need none. `pictures`: the batch that it is
    to be fastest for, by default 1; a bundle of a fixed batch takes its own alone. `calibration`: inputs (n, C, H, W)
    that an int8 target needs. `predicted`: by a model fitted to this target, in batches of as many pictures; ways to
    pack whose interval lies above the exported plan are told and not compiled. Of grouping such a model knows nothing:
    it counts launches saved, not how slow a grouped operator is.
    Plans that cannot be exported or compiled, or whose engines answer wrongly, are told and left out, but for the
    bundle's own. Raises Unavailable, also where the target's device is not here, ParityError, BundleError, InputError.
    """
    size = batch_size(bundle, pictures)
    if not get_backend(target.backend).probe().runs:
        raise Unavailable(
            f"plans for {target.name} cannot be run: its device is not here", "search on the device"
        )
    with tempfile.TemporaryDirectory(prefix="subtune-plans-") as folder:
        search = _Search(bundle, backbone, tasks, target, size, calibration, protocol, say, Path(folder))
        best = search.exported()
        if merge:
            assert backbone is not None
            best = search.raced(best, ways_to_pack(backbone, tasks, best.plan), predicted)
        if lowering:
            assert backbone is not None
            ways = ways_to_group(backbone, tasks, best.plan) if bundle.manifest.batch else {}
            best = search.raced(best, ways)
        found = search.tuned(best) if settings else target
        graphs = None if best.graphs == bundle.path else best.graphs
        yield Fastest(best.name, best.plan, found, graphs, _taking(best.folder), tuple(search.tried), size)


def spared(predicted: Ratio) -> bool:
    """Whether a way to pack is not worth compiling, by the latency predicted of it relative to the plan to beat."""
    return predicted.low > 1


@dataclass(frozen=True)
class _Made:
    """A plan with its graphs, and its engines in a folder."""

    name: str
    plan: Plan
    graphs: Path
    folder: Path

    @property
    def size(self) -> int:
        """Bytes of the engines' files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


@dataclass
class _Search:
    """Plans become engines of the bundle's tasks, each in a place of its own below `place`."""

    bundle: Bundle
    backbone: Backbone | None
    tasks: Sequence[Task]
    target: Target
    pictures: int
    calibration: Batch | None
    protocol: Protocol
    say: Say
    place: Path
    tried: list[Tried] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        self.bases = Bases(self.place / "base")

    def exported(self) -> _Made:
        """The one to beat."""
        self.say("compiling as exported")
        return self._compiled("as exported", Plan.from_json(self.bundle.manifest.plan), self.bundle.path)

    def raced(self, best: _Made, plans: Plans, predicted: Compare | None = None) -> _Made:
        """The fastest of `plans` if it is shown to be faster than `best`, twice; else `best`."""
        fresh = distinct(plans, best.plan)
        likely = self._likely(fresh, best, predicted) if predicted else fresh
        made = {name: self._attempted(name, plan, best) for name, plan in likely.items()}
        others = {name: each for name, each in made.items() if each}
        if not others:
            return best
        runners = {best.name: best, **others}
        opens = {name: partial(self._open, self.target, each) for name, each in runners.items()}
        winner = runners[self._raced(best.name, opens, max(each.size for each in runners.values()))]
        for loser in runners.values():
            if loser is not winner:
                self._drop(loser)
        return winner

    def tuned(self, best: _Made) -> Target:
        """The recipe with the fastest settings for `best`, one axis after the other."""
        backend, found, name = get_backend(self.target.backend), self.target, "as in the recipe"
        for axis in backend.SETTINGS if isinstance(backend, Tunable) else ():
            recipes = {
                word: each
                for word, each in axis(found, usable_cores()).items()
                if each != found and self._answers(word, each, best, name)
            }
            if recipes:
                opens = {
                    word: partial(self._open, each, best) for word, each in {name: found, **recipes}.items()
                }
                name = self._raced(name, opens, best.size)
                found = recipes.get(name, found)
        return found

    def _answers(self, name: str, target: Target, made: _Made, best: str) -> bool:
        try:
            check_engine(self.bundle, target, made.folder)
        except SubtuneError as error:
            self.tried.append(Tried(name, best, failed=error.message))
            return False
        return True

    def _open(self, target: Target, made: _Made) -> Engine:
        return open_engine(self.bundle, target, made.folder, "graph")

    def _raced(self, best: str, opens: Mapping[str, Callable[[], Engine]], size: int) -> str:
        """Of as many at once as memory is there for; each engine has `size` bytes of files."""
        course = Course(
            self.bundle, lambda names: {name: opens[name]() for name in names}, self.protocol, self.pictures
        )
        others, fit = [name for name in opens if name != best], int(ROOM * available() / (HELD * size)) - 1
        for start in range(0, len(others), max(1, fit)):
            some = others[start : start + max(1, fit)]
            self.say(f"running by turns: {', '.join((best, *some))}")
            try:
                best, tried = race(course, best, some)
            except CheckFailed as error:  # one cannot be run, or not beside the others
                tried = [Tried(name, best, failed=error.message) for name in some]
            self.tried += tried
        return best

    def _likely(self, plans: Plans, best: _Made, predicted: Compare) -> Plans:
        """Without those that are predicted to be slower than `best`."""
        ratios = {name: predicted(plan, best.plan) for name, plan in plans.items()}
        slower = {name: each for name, each in ratios.items() if spared(each)}
        self.tried += [
            Tried(name, best.name, failed=f"{PREDICTED} {each.value:.2f} ({each.low:.2f} to {each.high:.2f})")
            for name, each in slower.items()
        ]
        return {name: plan for name, plan in plans.items() if name not in slower}

    def _attempted(self, name: str, plan: Plan, best: _Made) -> _Made | None:
        self.say(f"compiling {name}")
        graphs = self._folder() / "graphs"
        try:
            with told_as(graphs, self.bundle.path):
                self._export(plan, graphs)
                return self._compiled(name, plan, graphs)
        except SubtuneError as error:
            shutil.rmtree(graphs.parent)
            self.tried.append(Tried(name, best.name, failed=error.message))
            return None

    def _export(self, plan: Plan, graphs: Path) -> None:
        """Beside the backbone's own graph, which no plan changes. Nothing of it stays in memory."""
        assert self.backbone is not None
        graphs.mkdir()
        batch = self.bundle.manifest.batch
        if self.target.backend == BOTH:  # its program has the backbone in it
            export(self.backbone, self.tasks, plan, batch=batch).save(graphs)
        else:
            save_onnx(export_graph(self.backbone, self.tasks, plan, batch=batch), graphs / GRAPH)
            for file in self.bundle.path.glob(f"{LONE_GRAPH}*"):  # and its weights, if they lie beside it
                shutil.copy(file, graphs)
        gc.collect()  # graphs refer to themselves

    def _compiled(self, name: str, plan: Plan, graphs: Path) -> _Made:
        """Checked against the stand-alone models."""
        folder = self._folder() / "engine"
        folder.mkdir()
        try:
            make_engine(graphs, folder, self.target, self.calibration, self.bases.maker(self.bundle))
            check_engine(self.bundle, self.target, folder)
        except SubtuneError:
            shutil.rmtree(folder.parent)
            raise
        return _Made(name, plan, graphs, folder)

    def _drop(self, made: _Made) -> None:
        for folder in {made.folder.parent, made.graphs.parent} - {self.bundle.path.parent}:
            shutil.rmtree(folder)

    def _folder(self) -> Path:
        self.count += 1
        folder = self.place / str(self.count)
        folder.mkdir()
        return folder


def _taking(made: Path) -> Compile:
    """In the place of compiling: what lies in the folder `made`."""

    def take(source: Path, folder: Path, role: str, target: Target, progress: Progress = silent) -> None:
        shutil.copytree(made, folder, dirs_exist_ok=True)

    return take
