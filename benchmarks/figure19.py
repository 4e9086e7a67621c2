"""Figure 19 of arXiv 2302.06354, its latency axis: added latency of two-block forks of ResNet-50, here.

python benchmarks/figure19.py
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from figure7 import panel
from paper_sweep import TARGETS, measured, summary, write


def main() -> None:
    """Measure what is missing, draw, write."""
    found = measured(2)[2]
    figure, places = plt.subplots(
        1, len(TARGETS), figsize=(5.5 * len(TARGETS), 5), squeeze=False, layout="constrained"
    )
    for place, target in zip(places[0], TARGETS, strict=True):
        panel(place, found[target], target, 2)
    figure.legend(*places[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    best = [f"{TARGETS[name]}: {_rank(results)}" for name, results in found.items()]
    write("figure19", figure, found, "\n".join(f"- {line}" for line in [summary(found, 2), *best]))


def _rank(results: list) -> str:
    ordered = sorted(results, key=lambda result: result.added)
    place = next(i for i, result in enumerate(ordered, start=1) if result.fork == "13-14")
    return f"the paper's choice 13-14 is number {place} of {len(ordered)}, the cheapest is {ordered[0].fork}"


if __name__ == "__main__":
    main()
