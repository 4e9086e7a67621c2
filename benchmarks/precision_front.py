"""What each precision takes and changes, and which one `compile --precision auto` takes within a tolerance.

    python benchmarks/precision_front.py [--size 128] [--max-changed 5] [--scratch FOLDER]

EfficientNet-Lite0 with its ImageNet weights and a digits task tuned on blocks 9-11 are one graph. int8 is calibrated on
photographs and training digits; the search is judged by windows of other photographs and by test digits. Besides, all
test digits that the search did not see are asked of the engine that it took. benchmarks/results/precision_front.json
holds all that was tried; precision_front.md and the pictures are made by the search, the former by --tables alone, too.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from precision_cpu import DIGITS, to_ask, to_calibrate, tuned

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.backends.base import Batch
from subtune_deploy.build import build
from subtune_deploy.bundle import Bundle, open_bundle
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.conditions import watch
from subtune_deploy.data.augment import prepare_batch
from subtune_deploy.data.dataset import Data
from subtune_deploy.data.sources import load_data
from subtune_deploy.demo import MODEL, TEST, TRAIN, base_checkpoint
from subtune_deploy.environment import describe
from subtune_deploy.models import load_model
from subtune_deploy.parity import run_all
from subtune_deploy.precision_search import fastest_precision
from subtune_deploy.records import to_plain
from subtune_deploy.result_tables import markdown
from subtune_deploy.runtime import load_engine
from subtune_deploy.targets import load_target
from subtune_deploy.tradeoff import draw_precisions

RESULTS = Path(__file__).parent / "results" / "precision_front.json"
TARGETS = ("openvino-cpu", "cpu")
HELD_OUT = 300
"""Test digits that judge the search; the others judge what it took."""

Line = dict[str, Any]


@click.command()
@click.option("--size", type=click.IntRange(32), default=128, help="Pixels a side.")
@click.option("--max-changed", type=click.FloatRange(0, 100), default=5.0, show_default=True, help="In %.")
@click.option("--scratch", type=click.Path(path_type=Path, file_okay=False), help="Keep the tuned task here.")
@click.option("--tables", is_flag=True, help="Measure nothing.")
def main(size: int, max_changed: float, scratch: Path | None, tables: bool) -> None:
    """Tune, search, ask, write."""
    if not tables:
        with tempfile.TemporaryDirectory() as temporary:
            folder = scratch or Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            for found in measured(folder, Path(temporary) / "bundle", size, max_changed / 100):
                RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text("".join(summary(json.loads(RESULTS.read_text()))))
    click.echo(RESULTS.with_suffix(".md").read_text())


def measured(folder: Path, place: Path, size: int, max_changed: float) -> Iterator[Line]:
    """What the search found, after each target."""
    base = base_checkpoint(folder / "base.safetensors")
    backbone = trace(load_model(MODEL, str(base), (3, size, size)))
    data = load_data(DIGITS, train=TRAIN, test=TEST)
    task = tuned(backbone, data, folder / f"{DIGITS}_{size}.safetensors")
    build(backbone, [task], place, sources=False)
    calibration, held_out = inputs(backbone, data)
    found: Line = {"size": size, "host": describe(), "targets": {}}
    for name in TARGETS:
        with watch() as seen:
            search = fastest_precision(
                open_bundle(place), load_target(name), calibration, held_out, max_changed=max_changed,
                say=lambda line: click.echo(line, err=True),
            )  # fmt: skip
        draw_precisions(search, RESULTS.with_name(f"precision_front_{name}.svg"))
        bundle = compile_bundle(
            open_bundle(place), search.target, calibration=calibration, facts=search.facts
        )
        found["targets"][name] = {
            **{key: each for key, each in to_plain(search).items() if key != "target"},
            "keep": search.target.keep,
            "right": right(bundle, name, backbone, data),
            "conditions": seen.conditions,
        }
        yield found


def inputs(backbone: Backbone, data: Data) -> tuple[Batch, Batch]:
    """To calibrate on, and held out: photographs and digits, none in both."""
    asked = to_ask(data, backbone.input, HELD_OUT)
    return to_calibrate(data, backbone.input), np.concatenate(list(asked.values()))


def right(bundle: Bundle, target: str, backbone: Backbone, data: Data) -> float:
    """Share of the test digits that the search did not see."""
    rest = range(HELD_OUT, len(data.test))
    answers = run_all(load_engine(bundle, target), prepare_batch(data.test, rest, backbone.input).numpy(), 1)
    return float(np.mean(answers[DIGITS].argmax(axis=1) == data.test.labels[HELD_OUT:]))


def summary(found: Line) -> Iterator[str]:
    """Markdown: a table for each target."""
    host, first = found["host"], next(iter(found["targets"].values()))
    held_out, calibrated = first["inputs"]
    yield (
        f"`python benchmarks/precision_front.py`: EfficientNet-Lite0 with ImageNet weights and a digits task tuned on "
        f"blocks 9-11, one graph, batch 1, 3x{found['size']}x{found['size']}, on {host['cores']} cores of "
        f"{host['cpu']}. int8 is calibrated on {calibrated} pictures; other class than in fp32: of {held_out} others, "
        "of the task where it is more. Latency relative to fp32, all by turns, with 95 % intervals. Taken: the fastest "
        f"that changes no more than {100 * first['max_changed']:g} %.\n"
    )
    for name, each in found["targets"].items():
        yield f"\n## {name}\n\n![What each precision takes and changes](precision_front_{name}.svg)\n\n"
        yield markdown(
            ("precision", "latency", "other class: base", DIGITS, "on the front"), _rows(name, each)
        )
        kept = f", {', '.join(each['keep'])} in fp32" if each["keep"] else ""
        yield (
            f"\nTaken: {each['name']}{kept}. Of {TEST - HELD_OUT} digits that the search did not see it reads "
            f"{each['right']:.1%}. The search took {each['conditions']['seconds'] / 60:.0f} min.\n"
        )


def _rows(name: str, found: Line) -> Iterator[tuple[str, ...]]:
    for option in found["options"]:
        ratio, costs = option["ratio"], option["costs"]
        told = f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "-"
        shares = [f"{costs[task]['changed']:.1%}" if costs else "-" for task in ("base", DIGITS)]
        why = option["failed"].removeprefix(f"target {name}: ").partition(" (")[0].partition(":")[0]
        yield option["name"], told, *shares, "yes" if option["front"] else why


if __name__ == "__main__":
    main()
