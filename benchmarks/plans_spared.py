"""Which ways to pack streams a calibration would have spared `compile --merge auto`, and what they took when measured.

    python benchmarks/plans_spared.py

Nothing is timed. The searches are those that `plans.py` kept, of one picture; the model learns the ten most telling
measurements of the same network and engine that `predictions.py` kept, as `calibrate` takes ten. It is asked of every
way to pack that was measured, and spares those whose 95 % interval lies above the exported plan, as
`compile --calibration` does. benchmarks/results/plans_spared.md has the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import click
from cells import backbone_of, tasks_of
from kept_lines import Line
from plans import RESULTS, cell, lines
from predictions import MEASURED, SWEEPS

from subtune_deploy.build import plan_as
from subtune_deploy.fitting import fit_results
from subtune_deploy.latency_model import anchor
from subtune_deploy.plan_search import spared
from subtune_deploy.plan_ways import ways_to_pack
from subtune_deploy.predictor import Costing, Predictor
from subtune_deploy.result_tables import markdown
from subtune_deploy.results import of_target, read_results
from subtune_deploy.stats import Ratio

SUMMARY = RESULTS.with_name("plans_spared.md")


@dataclass(frozen=True)
class Asked:
    """A way to pack, in words: how long it takes relative to the exported plan."""

    cell: str
    target: str
    name: str
    predicted: Ratio
    measured: Ratio

    @property
    def spared(self) -> bool:
        """Not compiled, given the calibration."""
        return spared(self.predicted)


@click.command()
def main() -> None:
    """Predict, write."""
    cells = [line for line in lines() if line["batch"] == 1]
    SUMMARY.write_text("".join(summary([each for line in cells for each in asked(line)])))
    click.echo(SUMMARY.read_text())


def asked(line: Line) -> Iterator[Asked]:
    """Of all ways to pack that a search measured."""
    key, _ = cell(line)
    predictor, tasks = fitted(key.model, key.target), tasks_of(key)
    backbone = predictor.costing.backbone
    exported, compare = plan_as(backbone, tasks, "always", (), ()), predictor.of_plans(tasks)
    measured = {each["name"]: each["ratio"] for each in line["tried"] if each["against"] == "as exported"}
    told = f"{line['model']} {line['fork']}, {line['tasks']} tasks"
    for name, plan in ways_to_pack(backbone, tasks, exported).items():
        if measured.get(name):
            yield Asked(told, line["target"], name, compare(plan, exported), Ratio(**measured[name]))


@cache
def fitted(model: str, target: str) -> Predictor:
    """To ten kept measurements."""
    costing = Costing(backbone_of(model))
    anchors = [anchor(each) for each in of_target(SWEEPS / model, list(read_results(SWEEPS / model)), target)]
    fit = fit_results(costing.base, [costing.anchored(each) for each in anchors], anchors, MEASURED)
    return Predictor(costing, tuple(anchors[index] for index in fit.learnt))


def summary(found: Sequence[Asked]) -> Iterator[str]:
    """Markdown."""
    spared = [each for each in found if each.spared]
    faster = sum(each.measured.high < 1 for each in spared)
    unsure = sum(each.measured.low <= 1 <= each.measured.high for each in spared)
    yield (
        f"`python benchmarks/plans_spared.py`: ways to pack streams that the searches of `plans.py` measured with one "
        f"picture, and what a model fitted to {MEASURED} measurements of `predictions.py` predicts, relative to "
        f"the plan as exported, each with its 95 % interval. Of {len(found)} it would have spared {len(spared)}: "
        f"{faster} of these were shown to be faster than the exported plan, {unsure} might be, the others are slower. "
        "Fitted and searched on different hosts, so `compile` would ask for `--across`.\n\n"
    )
    columns = ("cell", "engine", "plan", "predicted", "measured", "spared")
    yield markdown(columns, map(_row, found))


def _row(each: Asked) -> Sequence[str]:
    ratios = (f"{r.value:.2f} ({r.low:.2f} to {r.high:.2f})" for r in (each.predicted, each.measured))
    return each.cell, each.target, each.name, *ratios, "yes" if each.spared else "no"


if __name__ == "__main__":
    main()
