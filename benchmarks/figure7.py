"""Figure 7 of arXiv 2302.06354, its latency axis: added latency of 1- and 3-block forks of ResNet-50 here.

    python benchmarks/figure7.py

The paper's other axis, accuracy on CIFAR-10, needs training; here the fork's place takes its room.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from paper_sweep import COLOURS, PUBLISHED, TARGETS, measured, stage, stage_name, summary, write

BLOCKS = (1, 3)


def main() -> None:
    """Measure what is missing, draw, write."""
    found = measured(*BLOCKS)
    figure, places = plt.subplots(
        len(TARGETS), len(BLOCKS), figsize=(11, 1 + 4 * len(TARGETS)), squeeze=False
    )
    for row, target in enumerate(TARGETS):
        for column, blocks in enumerate(BLOCKS):
            panel(places[row][column], found[blocks][target], target, blocks)
    figure.legend(*places[0][1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    together = {name: [*found[1][name], *found[3][name]] for name in TARGETS}
    write("figure7", figure, together, "\n".join(f"- {summary(found[b], b)}" for b in BLOCKS))


def panel(place: plt.Axes, results: list, target: str, blocks: int) -> None:
    """One target: a point with its interval for each fork, the published range behind."""
    low, high = PUBLISHED[blocks]
    place.axvspan(100 * low, 100 * high, color="0.9", label="published, A100")
    for index, colour in enumerate(COLOURS):
        mine = [result for result in results if stage(result.layers) == index]
        if mine:
            x = [100 * result.added for result in mine]
            error = [100 * (result.ratio.high - result.ratio.low) / 2 for result in mine]
            place.errorbar(
                x, [r.fork for r in mine], xerr=error, fmt="o", color=colour, label=stage_name(index)
            )
    place.set(
        title=f"{blocks} block{'s' if blocks > 1 else ''}, {TARGETS[target]}", xlabel="added latency, %"
    )
    place.set_xlim(left=0)
    place.invert_yaxis()


if __name__ == "__main__":
    main()
