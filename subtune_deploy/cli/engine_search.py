"""What `compile` searches for before it compiles: plan, settings, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from .calibrating import calibration_options
from .common import Command, messages, options, parse_percent, print_table

if TYPE_CHECKING:
    from ..backbone import Backbone
    from ..backends.base import Batch, Target
    from ..bundle import Bundle
    from ..plan_search import Fastest
    from ..precision_search import Found, Option
    from ..predictor import Predictor
    from ..stats import Ratio
    from ..tasks import Task

HELD_OUT = 1024
"""Pictures to be asked about at most; of more, every so-manieth."""
MAX_CHANGED = "1%"


def _axis(flag: str, told: str, otherwise: str = "exported") -> Callable[[Command], Command]:
    """What is left as it is, or searched for."""
    kind = click.Choice([otherwise, "auto"])
    return click.option(flag, type=kind, default=otherwise, show_default=True, help=f"auto: {told}")


search_options = options(
    _axis("--merge", "pack streams where that is measured to be fastest."),
    _axis("--lowering", "group forked blocks where that is measured to be fastest."),
    _axis(
        "--settings",
        "threads and options of the backend that are measured to be fastest on this machine.",
        "recipe",
    ),
    click.option(
        "--for-batch",
        "pictures",
        type=click.IntRange(1),
        metavar="N",
        help="For auto, with a dynamic batch: the pictures per call that it is to be fastest for; default: 1.",
    ),
    click.option(
        "--model", metavar="MODEL", help="For auto: the network, where its name is a function of your own."
    ),
    calibration_options,
    _axis("--precision", "the fastest whose answers stay near those of fp32.", "recipe"),
    click.option(
        "--held-out",
        metavar="FOLDER|FILE",
        type=click.Path(path_type=Path),
        help="For --precision auto: pictures to ask about, none of which is calibrated on.",
    ),
    click.option(
        "--max-changed",
        metavar="SHARE",
        show_default=MAX_CHANGED,
        help="For --precision auto: held-out pictures that a task may take for another class than in fp32.",
    ),
    click.option(
        "--picture",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="For --precision auto: draw what each precision takes and changes (.svg, .png, .pdf).",
    ),
)


@dataclass(frozen=True)
class Precisions:
    """What --precision auto goes by."""

    calibration: Batch
    held_out: Batch
    max_changed: float
    picture: Path | None


@dataclass(frozen=True)
class Chosen:
    """The recipe to compile for, and what was found on the way to it."""

    target: Target
    plan: Fastest | None
    precision: Found | None

    @property
    def own(self) -> dict[str, Any]:
        """For `compile_bundle`. What the plan search compiled is in fp32."""
        found = self.plan.own if self.plan else {}
        if self.precision is None:
            return found
        facts = {**found.get("facts", {}), **self.precision.facts}
        return {"graphs": found.get("graphs"), "facts": facts}

    def show(self) -> None:
        """Tables of what was tried, and what was kept."""
        if self.plan:
            _print_plans(self.plan)
        if self.precision:
            _print_precisions(self.precision)


@dataclass(frozen=True)
class Search:
    """What is asked of the plan, the settings and the precision.

    `made`: network and tasks that plans need; `predictor`: of their latency, if there is one.
    """

    merge: bool
    lowering: bool
    settings: bool
    made: tuple[Backbone | None, list[Task]]
    predictor: Predictor | None
    pictures: int | None
    calibration: Batch | None
    precisions: Precisions | None

    @contextmanager
    def chosen(self, bundle: Bundle, target: Target) -> Iterator[Chosen]:
        """First the plan and settings of the recipe as it is, then the precision of that plan's graphs."""
        with ExitStack() as last:
            plan = last.enter_context(self._plan(bundle, target)) if self._of_plan else None
            found = plan.target if plan else target
            precision = self._precision(bundle, found, plan) if self.precisions else None
            yield Chosen(precision.target if precision else found, plan, precision)

    @property
    def _of_plan(self) -> bool:
        return self.merge or self.lowering or self.settings

    def _plan(self, bundle: Bundle, target: Target) -> Any:
        from ..plan_search import fastest_plan

        return fastest_plan(
            bundle, *self.made, target, merge=self.merge, lowering=self.lowering, settings=self.settings,
            pictures=self.pictures, calibration=self.calibration, say=_teller(target),
            predicted=self.predictor.of_plans(self.made[1]) if self.predictor else None,
        )  # fmt: skip

    def _precision(self, bundle: Bundle, target: Target, plan: Fastest | None) -> Found:
        from ..precision_search import fastest_precision

        asked = self.precisions
        assert asked is not None
        found = fastest_precision(
            bundle, target, asked.calibration, asked.held_out, max_changed=asked.max_changed,
            graphs=plan.graphs if plan else None, pictures=self.pictures, say=_teller(target),
        )  # fmt: skip
        if asked.picture:
            from ..tradeoff import draw_precisions

            draw_precisions(found, asked.picture)
        return found


def read_search(
    bundle: Bundle, targets: Sequence[Target], calibration: Batch | None, asked: Mapping[str, Any]
) -> Search:
    """What was asked for by `search_options`. Raises InputError, and Unavailable where a device is not here."""
    merge, lowering, settings = (asked[name] == "auto" for name in ("merge", "lowering", "settings"))
    precisions = _read_precisions(bundle, targets, calibration, asked)
    if asked["pictures"] and not (merge or lowering or settings or precisions):
        raise InputError("--for-batch goes with a search", "give --merge auto too, or leave it away")
    if asked["calibration"]:
        _check_calibration(bundle, targets, asked)
    made = _made_from(bundle, asked["model"]) if merge or lowering else (None, [])
    predictor = _read_predictor(made[0], asked) if made[0] and asked["calibration"] else None
    return Search(merge, lowering, settings, made, predictor, asked["pictures"], calibration, precisions)


def _check_calibration(bundle: Bundle, targets: Sequence[Target], asked: Mapping[str, Any]) -> None:
    """Raise InputError unless it is of what will be run: one picture, on one target."""
    from ..documents import read_document
    from ..latency_model import LatencyModel
    from ..racing import batch_size

    if asked["merge"] != "auto":
        raise InputError("--calibration goes with --merge auto", "give both, or leave it away")
    path = asked["calibration"]
    known = read_document(LatencyModel, path).target
    if other := next((each for each in targets if each != known), None):
        raise InputError(
            f"{path} was measured on {known.name}, with another recipe than {other.name}",
            f"compile --target {known.name} with the recipe that was calibrated, or calibrate {other.name}",
        )
    if (pictures := batch_size(bundle, asked["pictures"])) != 1:
        raise InputError(
            f"{path} was measured with one picture, the search is for {pictures}", "leave --calibration away"
        )


def _read_predictor(backbone: Backbone, asked: Mapping[str, Any]) -> Predictor:
    from ..calibrating import read_calibration

    return read_calibration(asked["calibration"], backbone, across=asked["across"])[0]


def _read_precisions(
    bundle: Bundle, targets: Sequence[Target], calibration: Batch | None, asked: Mapping[str, Any]
) -> Precisions | None:
    of_it = ("held_out", "max_changed", "picture")
    if asked["precision"] != "auto":
        for name in of_it:
            if asked[name] is not None:
                raise InputError(f"--{name.replace('_', '-')} goes with --precision auto", "give both")
        return None
    from ..calibration import read_calibration
    from ..precision_search import check_search

    held_out, told, picture = (asked[name] for name in of_it)
    for flag, given in (("--calibrate", calibration), ("--held-out", held_out)):
        if given is None:
            raise InputError(f"--precision auto needs {flag}", "give pictures like those to be deployed on")
    max_changed = parse_percent("--max-changed", told or MAX_CHANGED)
    assert calibration is not None
    assert max_changed is not None
    for target in targets:
        check_search(bundle, target, max_changed)
    if picture:
        _check_picture(picture, targets)
    inputs = read_calibration(held_out, bundle.manifest.input, HELD_OUT, "held-out data")
    return Precisions(calibration, inputs, max_changed, picture)


def _check_picture(path: Path, targets: Sequence[Target]) -> None:
    from ..tuning.drawing import check_picture

    check_picture(path)
    if len(targets) > 1:
        raise InputError(f"--picture is of one target, not of {len(targets)}", "compile one after the other")


def _made_from(bundle: Bundle, model: str | None) -> tuple[Backbone, list[Task]]:
    from ..sources import read_sources

    messages.print("making the bundle's network and tasks again")
    return read_sources(bundle, model)


def _teller(target: Target) -> Callable[[str], None]:
    return lambda line: messages.print(f"{target.name}: {line}")


def _print_plans(found: Fastest) -> None:
    rows = [(each.name, each.against, each.failed or _range(each.ratio)) for each in found.tried]
    if rows:
        print_table(("tried", "against", "times as long"), rows)
    click.echo(f"plan: {found.name}")
    chosen = {"threads": found.target.threads or "as the backend chooses", **found.target.options}
    click.echo(f"settings: {', '.join(f'{key} {value}' for key, value in chosen.items())}")


def _print_precisions(found: Found) -> None:
    columns = ("precision", "times as long", "other class", "relative error", "within", "front")
    print_table(columns, map(_row, found.options))
    for each in found.options:
        if each.failed:
            messages.print(f"{each.name} is out: {each.failed}")
    asked, _ = found.inputs
    click.echo(
        f"other class: of {asked} held-out inputs, {100 * found.max_changed:.3g} % at most; the task with most is shown"
    )
    click.echo(f"precision: {found.name}")
    if found.target.keep:
        click.echo(f"in fp32: {', '.join(found.target.keep)}")


def _row(option: Option) -> tuple[str, ...]:
    """Cells; of answers, those of the task that pays most."""
    time = _range(option.ratio) or "not timed"
    if not option.costs:
        return (option.name, time, "", "", "no", "")
    task, worst = max(option.costs.items(), key=lambda each: each[1].changed)
    changed = f"{100 * worst.changed:.1f} % ({task})"
    errors = f"{worst.median:.1e}, at most {worst.largest:.1e}"
    return (option.name, time, changed, errors, _yes(option.within), _yes(option.front))


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"


def _range(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
