"""A recipe's documents as people read them: tables of Markdown, pictures, and what the paper printed beside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from making import BESIDE, Documents
from recipes import Recipe

from subtune_deploy.result_tables import markdown
from subtune_deploy.tuning.documents import About, Active, Greedy, Profile, Row, mean_and_std
from subtune_deploy.tuning.figures import draw_active, draw_curves, draw_profile, draw_pruning
from subtune_deploy.tuning.maps import draw_order, draw_pairs, draw_sizes
from subtune_deploy.tuning.tables import active_table

WIDE = 8
"""Forks that are columns; of more, each has a row."""
LONG = 40
"""Forks that are all listed; of more, the best TOP."""
TOP = 10


REDUCED = (
    "**Reduced:** not the paper's network, nor its data, and few pictures and epochs. It shows that the recipe works, "
    "not whether the paper is right."
)


def page(
    recipe: Recipe, command: str, documents: Documents, pictures: Sequence[Path], reduced: bool = False
) -> str:
    """Markdown: what was run, what came of it, what the paper says."""
    parts = [
        f"# {recipe.title}",
        f"`{command}`",
        *([REDUCED] if reduced else []),
        "\n".join(f"- {line}" for line in about(documents)),
        *(f"![{path.stem}]({path.name})" for path in pictures),
        *tables(documents),
        *published(recipe),
    ]
    if recipe.differs:
        parts += ["Not as in the paper:", "\n".join(f"- {line}" for line in recipe.differs)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def about(documents: Documents) -> Iterator[str]:
    """A line for each network, data set and way of training."""
    lines: dict[str, list[str]] = {}
    for name, each in documents.items():
        data, told = each.data, {key: _told(value) for key, value in each.settings.items()}
        line = (
            f"{each.model}, weights {Path(each.weights).name}, {'x'.join(map(str, each.input))}, {data['source']}, "
            f"{_examples(each)} pictures to train on, {data['test']:,} to test on, {_seeds(each)}, "
            f"{told['epochs']} epochs, batch {told['batch_size']}, rate {told['lr']} (for the head alone "
            f"{told['probe_lr']}), augmentation {told['augment']}"
        )
        lines.setdefault(line, []).append(name)
    for line, names in lines.items():
        yield line if len(lines) == 1 else f"{', '.join(filter(None, names)) or 'the others'}: {line}"


def _examples(document: About) -> str:
    """Of active learning, step by step."""
    pool = f"{document.data['train']:,}"
    if isinstance(document, Active):
        return f"{_told([f'{size:,}' for size in document.schedule])} of {pool}"
    examples = getattr(document, "examples", None)
    return f"{examples:,}" if examples else pool


def _seeds(document: About) -> str:
    return f"{len(document.seeds)} seed{'s' * (len(document.seeds) > 1)}"


def _told(value: object) -> str:
    """`50/50/10` where it differs from step to step."""
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)


def tables(documents: Documents) -> Iterator[str]:
    """Profiles side by side, selections below each other, active learning."""
    profiles = {name: each for name, each in documents.items() if isinstance(each, Profile)}
    groups: dict[tuple[str, ...], dict[str, Profile]] = {}
    for name, each in profiles.items():
        groups.setdefault(tuple(row.fork for row in each.rows), {})[name] = each
    for forks, some in groups.items():
        yield _matrix(forks, some)
    selections = {name: each for name, each in documents.items() if isinstance(each, Greedy)}
    if selections:
        yield _selections(selections)
    for name, each in documents.items():
        if isinstance(each, Active):
            yield f"{name}\n\n{markdown(*active_table(each))}".lstrip()


def _matrix(forks: Sequence[str], profiles: Mapping[str, Profile]) -> str:
    """Accuracy of each fork in each profile; means over seeds ± one standard deviation, in percent."""
    cells = {
        fork: [_cell(profile.rows[at]) for profile in profiles.values()] for at, fork in enumerate(forks)
    }
    names = [name or "all" for name in profiles]
    if len(forks) <= WIDE:
        return markdown(
            ("accuracy, %", *forks), [[name, *(cells[f][at] for f in forks)] for at, name in enumerate(names)]
        )
    shown, more = list(forks), ""
    if len(forks) > LONG:
        first = next(iter(profiles.values()))
        best = sorted(first.rows, key=lambda row: -row.accuracy)[:TOP]
        shown, more = (
            [row.fork for row in best],
            f"\nThe best {TOP} of {len(forks)} forks; all are in the JSON files.\n",
        )
    columns = (
        "fork",
        "parameters",
        *(f"accuracy, %: {name}" if name != "all" else "accuracy, %" for name in names),
    )
    parameters = {row.fork: f"{row.parameters:,}" for row in next(iter(profiles.values())).rows}
    return markdown(columns, [[fork, parameters[fork], *cells[fork]] for fork in shown]) + more


def _selections(found: Mapping[str, Greedy]) -> str:
    columns = (
        "greedy selection",
        "blocks, as chosen",
        "cross-validated, %",
        "head alone, %",
        "on the test set, %",
    )
    return markdown(columns, [list(_selection(name, each)) for name, each in found.items()])


def _selection(name: str, found: Greedy) -> Iterator[str]:
    taken = [each.accuracy for each in found.rounds if each.taken]
    yield name or "all"
    yield ", ".join(map(str, found.order)) or "none"
    yield f"{100 * (taken or [found.head])[-1]:.1f}"
    yield f"{100 * found.head:.1f}"
    yield _cell(found.final)


def _cell(row: Row) -> str:
    return f"{100 * row.accuracy:.1f}" + ("" if row.std is None else f" ± {100 * row.std:.1f}")


def published(recipe: Recipe) -> Iterator[str]:
    """What the paper prints of it."""
    said = recipe.published
    yield f"Published ({said.source}):" if said.says or said.rows else f"Published: {said.source}."
    if said.says:
        yield "\n".join(f"- {line}" for line in said.says)
    if said.rows:
        yield markdown(said.columns, said.rows)


# Pictures


def draw(name: str, recipe: Recipe, documents: Documents, folder: Path) -> list[Path]:
    """The recipe's pictures, as SVG files in `folder`."""
    if recipe.picture in TOGETHER:
        path = folder / f"{name}.svg"
        TOGETHER[recipe.picture](documents, path, recipe.title)
        return [path]
    found = []
    for run, each in documents.items():
        if (
            recipe.picture in APART
            and isinstance(each, APART[recipe.picture][0])
            and not run.endswith(BESIDE)
        ):
            path = folder / f"{file_name(name, run)}.svg"
            APART[recipe.picture][1](each, path)
            found.append(path)
    return found


def file_name(name: str, run: str) -> str:
    """`figure4`, `500 examples` -> `figure4_500_examples`"""
    return "_".join([name, *re.findall(r"[\w.-]+", run.replace(",", ""))])


def _draw_sizes(documents: Documents, path: Path, title: str) -> None:
    draw_sizes([each for each in documents.values() if isinstance(each, Profile)], path)


def _draw_order(documents: Documents, path: Path, title: str) -> None:
    draw_order({name: each for name, each in documents.items() if isinstance(each, Greedy)}, path)


def _draw_curves(documents: Documents, path: Path, title: str) -> None:
    """Selected forks, the head alone and full fine-tuning by number of training pictures."""
    curves: dict[str, dict[int, Sequence[float]]] = {"SubTuning": {}, "linear probing": {}, "fine-tuning": {}}
    names = {"none": "linear probing", "all": "fine-tuning"}
    for each in documents.values():
        size = getattr(each, "examples", None) or each.data["train"]
        if isinstance(each, Greedy):
            curves["SubTuning"][size] = each.final.accuracies
        for row in each.rows if isinstance(each, Profile) else ():
            if row.fork in names:
                curves[names[row.fork]][size] = row.accuracies
    draw_curves(curves, path, title=title)


def _draw_blocks(documents: Documents, path: Path, title: str) -> None:
    """Accuracy by number of selected blocks, a curve for each data set and one for their mean."""
    curves = {
        name.removesuffix(BESIDE): {
            len(row.layers): row.accuracies for row in each.rows if row.fork not in ("all", "none")
        }
        for name, each in documents.items()
        if isinstance(each, Profile) and name.endswith(BESIDE)
    }
    fewest = min(max(points) for points in curves.values())
    curves["mean"] = {
        count: [mean_and_std(points[count])[0] for points in curves.values()]
        for count in range(1, fewest + 1)
    }
    draw_curves(curves, path, title=title, label="tuned blocks, as chosen")


TOGETHER: dict[str, Any] = {
    "sizes": _draw_sizes,
    "order": _draw_order,
    "curves": _draw_curves,
    "blocks": _draw_blocks,
}
APART: dict[str, tuple[type, Any]] = {
    "profile": (Profile, draw_profile),
    "pairs": (Profile, draw_pairs),
    "pruning": (Profile, draw_pruning),
    "active": (Active, draw_active),
}
"""What is drawn of all documents at once, and of each by itself."""
