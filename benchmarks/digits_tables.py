"""What digits_study.py found: tables, pictures, and the paper's findings held against them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from subtune_deploy.documents import read_document
from subtune_deploy.result_tables import markdown
from subtune_deploy.tuning.documents import About, Greedy, Profile, Row
from subtune_deploy.tuning.figures import draw_curves, draw_profile
from subtune_deploy.tuning.maps import draw_order, draw_sizes

RESULTS = Path(__file__).parent / "results" / "digits_study"
SUMMARY = RESULTS / "digits_study.md"
FALL = 0.1
"""Of a rank correlation: less is no difference."""


class Key(NamedTuple):
    """Which pictures, and how many."""

    source: str
    examples: int

    @property
    def damaged(self) -> bool:
        """Sources are `digits` or `digits fog:5`."""
        return " " in self.source

    def __str__(self) -> str:
        return f"{self.source}, {self.examples:,}"


@dataclass(frozen=True)
class Found:
    """Profiles and selections by what they were trained on."""

    profiles: Mapping[Key, Profile]
    selections: Mapping[Key, Greedy]

    @property
    def sources(self) -> dict[str, list[int]]:
        """Sizes by source."""
        sources: dict[str, list[int]] = {}
        for key in sorted({**self.profiles, **self.selections}, key=lambda key: key.examples):
            sources.setdefault(key.source, []).append(key.examples)
        return sources


def read_documents(names: Iterable[str]) -> Found:
    """Those that are there."""
    there = [path for name in names if (path := RESULTS / f"{name}.json").is_file()]
    selections = [read_document(Greedy, path) for path in there if path.stem.endswith("greedy")]
    profiles = [read_document(Profile, path) for path in there if not path.stem.endswith("greedy")]
    return Found({_key(each): each for each in profiles}, {_key(each): each for each in selections})


def _key(document: Greedy | Profile) -> Key:
    return Key(document.data["source"], document.examples or document.data["train"])


# Pictures


def draw(found: Found) -> None:
    """For each source: blocks by number of pictures, curves, the largest profile; all selections."""
    for source, sizes in found.sources.items():
        name = source.replace(" ", "_").replace(":", "-")
        profiles = [found.profiles[key] for size in sizes if (key := Key(source, size)) in found.profiles]
        if profiles:
            draw_sizes(profiles, RESULTS / f"{name}_sizes.svg")
            draw_profile(profiles[-1], RESULTS / f"{name}_profile.svg")
            draw_curves(
                _curves(found, source, sizes), RESULTS / f"{name}_curves.svg", title=f"Lite0 on {source}"
            )
    if found.selections:
        draw_order({str(key): each for key, each in found.selections.items()}, RESULTS / "order.svg")


def _curves(found: Found, source: str, sizes: Sequence[int]) -> dict[str, dict[int, Sequence[float]]]:
    curves: dict[str, dict[int, Sequence[float]]] = {}
    for size in sizes:
        profile, chosen = found.profiles.get(Key(source, size)), found.selections.get(Key(source, size))
        for name, row in _methods(profile).items() if profile else ():
            curves.setdefault(name, {})[size] = row.accuracies
        if chosen:
            curves.setdefault("greedy", {})[size] = chosen.final.accuracies
    return curves


# Tables


def write_tables(found: Found, seeds: Sequence[int]) -> str:
    """Write the summary, and give it back."""
    some: About = next(iter({**found.profiles, **found.selections}.values()))
    text = "\n\n".join(
        [
            "# SubTuning of digits",
            "`python benchmarks/digits_study.py`",
            f"{some.model} with {len(some.blocks)} blocks and its ImageNet weights, {'x'.join(map(str, some.input))}; "
            f"accuracy in % on pictures that were not trained on, mean over {len(seeds)} seeds ± one standard "
            "deviation. A seed decides which pictures, their order and the new head. Rates and decay are the "
            f"paper's, batches are of {some.settings['batch_size']}; pictures are not augmented; epochs: "
            f"{_epochs(found)}. The best single block is picked on the test pictures, so it flatters; greedy "
            "selection sees the training pictures alone.",
            *(part for source, sizes in found.sources.items() for part in _source(found, source, sizes)),
            *_selections(found),
            "## The paper's findings, here",
            *map(str, findings(found)),
        ]
    )
    SUMMARY.write_text(text + "\n", encoding="utf-8")
    return text


def _epochs(found: Found) -> str:
    epochs = {
        key.examples: each.settings["epochs"] for key, each in {**found.profiles, **found.selections}.items()
    }
    return ", ".join(f"{epochs[size]} for {size:,} pictures" for size in sorted(epochs))


def _source(found: Found, source: str, sizes: Sequence[int]) -> Iterator[str]:
    profiles = {size: found.profiles[key] for size in sizes if (key := Key(source, size)) in found.profiles}
    if not profiles:
        return
    yield f"## {source}"
    columns = [f"{size:,} pictures" for size in profiles]
    methods = {size: _methods(profile) for size, profile in profiles.items()}
    rows = [
        [name, *(_cell(methods[size][name], named=name == BEST) for size in profiles)]
        for name in next(iter(methods.values()))
    ]
    chosen = [found.selections.get(Key(source, size)) for size in profiles]
    rows.append(["greedy selection", *(_cell(each.final, named=True) if each else "-" for each in chosen)])
    yield markdown(("tuned", *columns), rows).rstrip()
    singles = [
        [row.fork, *(_cell(profile.rows[at]) for profile in profiles.values())]
        for at, row in enumerate(next(iter(profiles.values())).rows)
        if row.fork not in ("none", "all")
    ]
    yield markdown(("block", *columns), singles).rstrip()
    name = source.replace(" ", "_").replace(":", "-")
    yield " ".join(f"![{kind}]({name}_{kind}.svg)" for kind in ("curves", "sizes", "profile"))


BEST = "best single block"


def _methods(profile: Profile) -> dict[str, Row]:
    rows = {row.fork: row for row in profile.rows}
    return {
        "head alone": rows["none"],
        BEST: max(singles(profile), key=_accuracy),
        "full fine-tuning": rows["all"],
    }


def singles(profile: Profile) -> list[Row]:
    """Rows of one block without a Siamese head."""
    return [row for row in profile.rows if row.fork.isdecimal()]


def _selections(found: Found) -> Iterator[str]:
    if not found.selections:
        return
    yield "## Greedy selection"
    columns = (
        "pictures",
        "blocks, as chosen",
        "cross-validated",
        "head alone",
        "on test pictures",
        "parameters",
    )
    yield markdown(columns, [list(_selection(key, each)) for key, each in found.selections.items()]).rstrip()
    yield "![order](order.svg)"


def _selection(key: Key, found: Greedy) -> Iterator[str]:
    taken = [each.accuracy for each in found.rounds if each.taken]
    yield str(key)
    yield ", ".join(map(str, found.order))
    yield f"{100 * taken[-1]:.1f}" if taken else "-"
    yield f"{100 * found.head:.1f}"
    yield _cell(found.final)
    yield f"{found.final.parameters:,}"


def _cell(row: Row, named: bool = False) -> str:
    words = f"{100 * row.accuracy:.1f}" + ("" if row.std is None else f" ± {100 * row.std:.1f}")
    return f"{words} ({row.fork})" if named else words


def _accuracy(row: Row) -> float:
    return row.accuracy


# What the paper says, held against it


@dataclass(frozen=True)
class Finding:
    """A claim; each piece of `evidence` is (what was seen, whether it agrees); `lacking`: what there is none of yet."""

    claim: str
    evidence: tuple[tuple[str, bool], ...]
    lacking: str = "case"

    def __str__(self) -> str:
        if not self.evidence:
            return f"**{self.claim}** No {self.lacking} yet."
        held = sum(agrees for _, agrees in self.evidence)
        lines = [f"- {'holds' if agrees else 'does not hold'}: {what}" for what, agrees in self.evidence]
        return "\n".join([f"**{self.claim}** Held in {held} of {len(self.evidence)} cases.", "", *lines])


def findings(found: Found) -> Iterator[Finding]:
    """Each claim with its evidence."""
    for claim, look in {
        "Single blocks beat linear probing (figure 4, section 3.1).": _beat_head,
        "With few pictures the later blocks do better, with more the earlier ones (figure 4).": _move_forward,
        "Accuracy does not rise with depth up to the last block (section 2).": _not_the_last,
        "Greedy SubTuning beats full fine-tuning where data are scarce or damaged (section 3).": _beat_full,
        "A Siamese head helps most blocks (section B.4.2).": _siamese,
    }.items():
        yield Finding(claim, tuple(look(found)))
    yield Finding(
        "On damaged pictures the first block selected is the last or the last but one (section 3.2).",
        tuple(_first(found)),
        "selection on damaged pictures",
    )


def _beat_head(found: Found) -> Iterator[tuple[str, bool]]:
    for key, profile in found.profiles.items():
        head, rows = _methods(profile)["head alone"], singles(profile)
        better = sum(row.accuracy > head.accuracy for row in rows)
        yield f"{key}: {better} of {len(rows)} blocks", better > len(rows) / 2


def _move_forward(found: Found) -> Iterator[tuple[str, bool]]:
    for source, sizes in found.sources.items():
        known = [size for size in sizes if Key(source, size) in found.profiles]
        if len(known) > 1:
            slopes = {size: _slope(singles(found.profiles[Key(source, size)])) for size in known}
            told = ", ".join(f"{slope:+.2f} with {size:,}" for size, slope in slopes.items())
            yield (
                f"{source}: rank correlation of place and accuracy {told}",
                slopes[known[0]] - slopes[known[-1]] > FALL,
            )


def _slope(rows: Sequence[Row]) -> float:
    """Spearman's, from -1 to 1."""
    places, accuracies = (
        [*np.argsort(np.argsort(values))]
        for values in zip(*((int(r.fork), r.accuracy) for r in rows), strict=True)
    )
    return float(np.corrcoef(places, accuracies)[0, 1])


def _not_the_last(found: Found) -> Iterator[tuple[str, bool]]:
    for key, profile in found.profiles.items():
        rows = singles(profile)
        best = max(rows, key=_accuracy)
        yield f"{key}: block {best.fork} {_cell(best)}, the last {_cell(rows[-1])}", best is not rows[-1]


def _beat_full(found: Found) -> Iterator[tuple[str, bool]]:
    for key, chosen in found.selections.items():
        if profile := found.profiles.get(key):
            full = _methods(profile)["full fine-tuning"]
            yield f"{key}: {_versus(chosen.final, full)}", chosen.final.accuracy > full.accuracy


def _siamese(found: Found) -> Iterator[tuple[str, bool]]:
    for key, profile in found.profiles.items():
        rows = {row.fork: row for row in profile.rows}
        pairs = [(row, rows[row.fork.partition(" ")[0]]) for row in profile.rows if row.siamese]
        told = ", ".join(f"block {plain.fork} {_versus(siamese, plain)}" for siamese, plain in pairs)
        better = sum(siamese.accuracy > plain.accuracy for siamese, plain in pairs)
        yield f"{key}: {told}", better > len(pairs) / 2


def _first(found: Found) -> Iterator[tuple[str, bool]]:
    for key, chosen in found.selections.items():
        if key.damaged and chosen.order:
            yield (
                f"{key}: block {chosen.order[0]} of {len(chosen.blocks)}",
                chosen.order[0] >= len(chosen.blocks) - 1,
            )


def _versus(one: Row, other: Row) -> str:
    """`+1.2 points, in 3 of 3 seeds`"""
    better = sum(a > b for a, b in zip(one.accuracies, other.accuracies, strict=True))
    return f"{100 * (one.accuracy - other.accuracy):+.1f} points, better in {better} of {len(one.accuracies)} seeds"
