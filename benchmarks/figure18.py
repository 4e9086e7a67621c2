"""Figure 18 of arXiv 2302.06354: absolute latency of 2- and 3-block forks of ResNet-50, here.

python benchmarks/figure18.py
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from paper_sweep import COLOURS, TARGETS, measured, stage, summary, write

from subtune_deploy.stats import median

BLOCKS = (2, 3)


def main() -> None:
    """Measure what is missing, draw, write."""
    found = measured(*BLOCKS)
    figure, places = plt.subplots(
        len(TARGETS), len(BLOCKS), figsize=(12, 4 * len(TARGETS)), squeeze=False, sharey="row"
    )
    for row, target in enumerate(TARGETS):
        for column, blocks in enumerate(BLOCKS):
            _panel(places[row][column], found[blocks][target], target, blocks)
    figure.tight_layout()
    together = {name: [*found[2][name], *found[3][name]] for name in TARGETS}
    text = [f"- {summary(found[b], b)}" for b in BLOCKS]
    text.append("- published in milliseconds: two blocks 3.4 to 3.8, three 3.4 to 4.0, base about 3.4")
    text.append(
        "- bars are medians of runs at different moments: between forks compare the added latency, not these"
    )
    write("figure18", figure, together, "\n".join(text))


def _panel(place: plt.Axes, results: list, target: str, blocks: int) -> None:
    for result in results:
        place.bar(result.fork, 1e3 * result.graph.seconds, color=COLOURS[stage(result.layers)])
    base = 1e3 * median([result.base.seconds for result in results])
    place.axhline(base, color="black", linestyle="--", label=f"the backbone alone, {base:.1f} ms")
    place.set(title=f"{blocks} blocks, {TARGETS[target]}", ylabel="median latency, ms")
    place.tick_params(axis="x", rotation=60)
    place.legend(loc="lower right")


if __name__ == "__main__":
    main()
