"""One page to look at: runs and a profile become a document, the document one HTML file that needs nothing else.

    results = gather([Path("runs/resnet18")])          # of one network; each target on one host
    document = make_document(results, read_profile(Path("profile.json")), counted)
    write_page(Path("report.html"), document)

The document is plain values; its points have a `status`, one of `report_points.STATUSES`. What the page does with it
lies in `report_page`: a template, a style and a few scripts, which are put into the file as they are.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cost_model import BYTES
from .errors import InputError
from .latency_model import anchor
from .report_points import Predicted, bounds, measured_point, predicted_points
from .report_words import label, notes, target_facts, title
from .results import Result, check_comparable, nearest_heads, read_results
from .staging import replaced_file
from .stats import Interval
from .tradeoff import accuracies, check_same, head_alone
from .tuning.documents import Profile
from .tuning.drawing import colour, stage_names, stages

if TYPE_CHECKING:
    from .breakdown import Breakdown

SCHEMA = 1
PARTS = Path(__file__).parent / "report_page"
SCRIPTS = (  # noqa: SIM905
    "words choose marks frame scatter walk histogram breakdown table details limits page"
).split()
"""In this order, in one scope of functions."""


def gather(
    runs: Sequence[Path], *, target: str | None = None, tasks: int | None = None, classes: int | None = None
) -> list[Result]:
    """Results of all `runs`, on `target`, with so many `tasks`, with heads nearest to `classes`, if these are given.

    A run may be given twice. Raises InputError where nothing is left, where the networks differ, where one target was
    measured on two hosts or in two ways, or one fork with several heads and it is not said which.
    """
    found = [each for run in runs for each in read_results(run)]
    _check_one_network(found)
    targets = list(dict.fromkeys(each.target for each in found))
    if target is not None and target not in targets:
        raise InputError(f"no result is on {target}", f"give one of {', '.join(targets)}")
    kept = [each for each in found if target in (None, each.target) and tasks in (None, each.tasks)]
    if not kept:
        counts = sorted({each.tasks for each in found if target in (None, each.target)})
        what = f"with {tasks} tasks" if tasks else "at all"
        raise InputError(
            f"no result {what}",
            f"there are some with {', '.join(map(str, counts))}" if counts else "sweep first",
        )
    for name in targets:
        _check_one_host(name, [each for each in kept if each.target == name])
    latest = {(each.subject, each.head): each for each in sorted(kept, key=lambda each: each.started)}
    _check_one_head(list(latest.values()), classes)
    return nearest_heads(latest.values(), classes)


def _check_one_network(results: Sequence[Result]) -> None:
    known = dict.fromkeys((each.model, "x".join(map(str, each.input_shape))) for each in results)
    if len(known) > 1:
        told = " and ".join(f"{model} at {size}" for model, size in list(known)[:3])
        raise InputError(f"these runs are of {told}", "give runs of one model and one input size")


def _check_one_head(results: Sequence[Result], classes: int | None) -> None:
    """A fork with another head is another graph, which the page could not tell apart."""
    if classes is None and len(nearest_heads(results, 1)) < len(results):
        heads = sorted({each.head for each in results if each.head})
        raise InputError(
            f"forks were timed with heads of {' and '.join(map(str, heads))} classes",
            f"give --classes {heads[0]}, or --accuracy with a profile, whose number is taken",
        )


def _check_one_host(target: str, results: Sequence[Result]) -> None:
    if not results:
        return
    try:
        check_comparable(results)
    except InputError as error:
        raise InputError(
            f"on {target} {error.message}",
            "give only runs that were measured on one host in one way, or another --target",
        ) from error


def make_document(
    results: Sequence[Result],
    profile: Profile | None = None,
    counted: Breakdown | str = "it was not asked for",
    predicted: Sequence[Predicted] = (),
) -> dict[str, Any]:
    """What the page shows, as JSON has it. `counted`: what graphs ask of a machine, or why that is not known: of
    the results, then of what is `predicted`, on these targets or on others.

    Raises InputError as `matched` does, and for numbers outside their intervals.
    """
    found = matched(results, profile)
    places = list(dict.fromkeys((each.target, each.batch) for each in results))
    of_predicted = [_place(each.target, places) for each in predicted]
    places += [place for place in dict.fromkeys(of_predicted) if place not in places]
    lines = list(dict.fromkeys(line for each in results for line in each.warnings))
    points = [
        measured_point(each, accuracy) | {
            "target": places.index((each.target, each.batch)),
            "warnings": [lines.index(line) for line in each.warnings],
        }
        for each, accuracy in zip(results, found, strict=True)
    ]  # fmt: skip
    for each, place in zip(predicted, of_predicted, strict=True):
        points += predicted_points(each, profile, places.index(place))
    for index, point in enumerate(points):
        point["cost"] = None if isinstance(counted, str) else counted.which[index]
    return {
        "schema": SCHEMA,
        "model": results[0].model,
        "input": list(results[0].input_shape),
        "title": title(results),
        "targets": [_target(place, results, predicted) for place in places],
        "stages": _stages(profile, counted, results),
        "accuracy": _reference(profile) if profile else None,
        "warnings": lines,
        "costs": {"missing": counted} if isinstance(counted, str) else _costs(counted),
        "notes": notes(results, profile, found, counted if isinstance(counted, str) else None)
        + ([{"title": "Predicted", "lines": [each.model for each in predicted]}] if predicted else []),
        "points": points,
    }


def matched(results: Sequence[Result], profile: Profile | None) -> list[Interval | None]:
    """The accuracy of each result's fork. Raises InputError for a profile of another network, or of other forks."""
    if profile is None:
        return [None] * len(results)
    for each in results:
        check_same(each, profile, Path("the run"))
    found = accuracies(profile, [anchor(each) for each in results])
    if not any(found):
        raise InputError(
            "no fork was both trained and timed", "profile and sweep the same forks, or leave --accuracy away"
        )
    return found


Place = tuple[str, int | None]
"""A target and a batch."""


def _place(target: str, measured: Sequence[Place]) -> Place:
    """Predictions are of one picture at a time: beside what was measured so, or by themselves."""
    return next((each for each in measured if each in ((target, 1), (target, None))), (target, 1))


def _target(place: Place, results: Sequence[Result], predicted: Sequence[Predicted]) -> dict[str, Any]:
    mine = [each for each in results if (each.target, each.batch) == place]
    precision = mine[0].precision if mine else next(e.precision for e in predicted if e.target == place[0])
    return {
        "name": place[0],
        "label": label(mine[0], results) if mine else place[0],
        "batch": place[1] or 1,
        "width": BYTES.get(precision, 4),
        "facts": target_facts(mine) if mine else ["Nothing on it was measured for this page."],
    }


def _stages(profile: Profile | None, counted: Breakdown | str, results: Sequence[Result]) -> dict[str, Any]:
    """By block the stage, by stage its name and colour; one stage where shapes are not known."""
    shapes = profile.shapes if profile else () if isinstance(counted, str) else counted.shapes
    if not shapes:
        last = max((layer for each in results for layer in each.layers), default=0)
        return {"of": [0] * last, "names": [], "colours": [colour(0)]}
    of = stages(shapes)
    return {
        "of": list(of),
        "names": list(stage_names(shapes)),
        "colours": [colour(i) for i in range(max(of) + 1)],
    }


def _reference(profile: Profile) -> dict[str, Any]:
    head = head_alone(profile)
    return {"of": str(profile.data.get("source", "data")), "head": head and bounds(head)}


def _costs(counted: Breakdown) -> dict[str, Any]:
    plain = asdict(replace(counted, shapes=(), which=()))
    return {"columns": plain["columns"], "base": plain["base"], "added": plain["added"]}


def page(document: Mapping[str, Any]) -> str:
    """The whole file. Text from the document can neither end an element nor run: it is data, and set as text."""
    data = json.dumps(document, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        data = data.replace(letter, f"\\u{ord(letter):04x}")
    script = "\n".join(["'use strict';", *(_part(f"{name}.js") for name in SCRIPTS)])
    style = _part("page.css")
    parts = {
        "title": html.escape(str(document["title"]).encode("utf-8", "replace").decode()),
        "data": data,
        "style": style,
        "script": f"(() => {{\n{script}}})();\n",
    }
    parts |= {f"{name}_hash": _digest(parts[name]) for name in ("style", "script")}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("page.html"))


def write_page(path: Path, document: Mapping[str, Any]) -> None:
    """Whole, or not at all. Raises BundleError."""
    text = page(document)
    with replaced_file(path) as pending:
        pending.write_bytes(text.encode())


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """As a Content-Security-Policy names what may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
