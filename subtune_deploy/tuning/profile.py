"""The finetuning profile (paper, section 2): accuracy of each fork of a list, over seeds.

found = profile(Study(backbone, load_data("digits"), TrainConfig()), [Fork((n,)) for n in range(1, 17)])
write_document(Path("profile.json"), found)
draw_profile(found, Path("profile.svg"))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from ..backbone import Backbone
from ..backends.base import Progress, silent
from ..errors import CheckFailed, InputError
from ..executors import Executor, Here
from ..records import to_plain
from ..spec import Pruning
from ..sweep import candidates
from .documents import Profile, Row, mean_and_std
from .settings import Fork, TrainConfig
from .start import check_fork
from .study import FREE, REMEDY, Step, Study, check_trained, run_trials, settings_of
from .trials import Trial, TrialResult, lost


def profile(
    study: Study,
    forks: Iterable[Fork],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    examples: int | None = None,
    source: str = "",
    run: Path | None = None,
    executor: Executor | None = None,
    told: Callable[[Step], object] = lambda step: None,
    say: Callable[[str], object] = lambda text: None,
    progress: Progress = silent,
) -> Profile:
    """Train each fork once for each seed, on `examples` pictures drawn by it (None: all); forks in their order.

    Those that fail with some seed are left out, which `say` hears, see `complete`. `source` names the data in the
    document. The others, and the errors, are those of `run_trials`; CheckFailed where all fail.
    """
    chosen = tuple(dict.fromkeys(forks))
    if not (chosen and seeds):
        raise InputError(
            f"{len(chosen)} forks and {len(seeds)} seeds were given", "give at least one of each"
        )
    trials = [Trial(fork, seed, examples) for seed in seeds for fork in chosen]
    results = run_trials(study, trials, run, executor or Here(), told=told, say=say, progress=progress)
    failed = lost(results)
    if len(failed) == len(chosen):
        check_trained(results)
    for fork, reason in failed.items():
        say(f"left out: {fork}: {reason}")
    rows = tuple(row(study.backbone, fork, results) for fork in chosen if fork not in failed)
    settings = settings_of(study, examples)
    return Profile(**about(study, source, settings), examples=examples, seeds=tuple(seeds), rows=rows)


def complete(found: Profile, forks: Iterable[Fork]) -> Profile:
    """`found`, if it has all of `forks`. Raises CheckFailed, naming those that were left out."""
    rows = {row.fork for row in found.rows}
    if missing := [str(fork) for fork in forks if str(fork) not in rows]:
        raise CheckFailed(f"{len(missing)} forks could not be trained: {'; '.join(missing)}", REMEDY)
    return found


def row(backbone: Backbone, fork: Fork, results: Iterable[TrialResult]) -> Row:
    """What came of the trials of `fork` that are among `results`."""
    mine = [result for result in results if result.trial.fork == fork]
    accuracies = tuple(result.accuracy for result in mine)
    mean, std = mean_and_std(accuracies)
    layers = tuple(block.index for block in backbone.blocks) if fork.layers == "all" else fork.layers
    return Row(
        str(fork), layers, mean, std, accuracies, mine[0].parameters, fork.siamese, fork.init, fork.prune
    )


def about(study: Study, source: str, settings: TrainConfig) -> dict[str, Any]:
    """The fields of `About`."""
    backbone, data = study.backbone, study.data
    return {
        "model": backbone.name,
        "weights": backbone.weights,
        "input": backbone.input.shape,
        "blocks": tuple(block.name for block in backbone.blocks),
        "shapes": tuple(block.output_shape for block in backbone.blocks),
        "data": {
            "source": source,
            "train": len(data.train),
            "test": len(data.test),
            "classes": len(data.train.classes),
            "skipped": len(data.skipped),
            "train_fingerprint": data.train.fingerprint(),
            "test_fingerprint": data.test.fingerprint(),
        },
        "settings": {key: value for key, value in to_plain(settings).items() if key not in FREE},
    }


def refusals(study: Study, forks: Iterable[Fork]) -> dict[Fork, InputError]:
    """Why those of `forks` cannot be trained that cannot be: their blocks have nothing to prune, or not so much.

    Raises Unavailable (no torch-pruning).
    """
    found: dict[Fork, InputError] = {}
    for fork in forks:
        try:
            check_fork(study.backbone, fork, len(study.data.train.classes))
        except InputError as error:
            found[fork] = error
    return found


def forks_of(
    blocks: int,
    span: tuple[int, int] | None = None,
    *,
    pairs: bool = False,
    others: Iterable[Fork] = (),
    siamese: bool = False,
    scratch: bool = False,
    prune: Iterable[Pruning] = (),
) -> tuple[Fork, ...]:
    """All runs of span[0]..span[1] consecutive blocks out of `blocks`, all `pairs`, and `others`, none twice.

    Each that tunes blocks comes as it is, then also Siamese, from scratch, and pruned, as asked for.
    """
    runs = [each.layers for each in candidates(blocks, span)] if span else []
    twos = [*combinations(range(1, blocks + 1), 2)] if pairs else []
    plain = dict.fromkeys([*others, *map(Fork, runs), *map(Fork, twos)])
    tuning = [fork for fork in plain if fork.layers and fork.layers != "all"]
    ways: list[dict[str, Any]] = [{"prune": each} for each in prune]
    ways = [*([{"siamese": True}] if siamese else []), *([{"init": "random"}] if scratch else []), *ways]
    return tuple(dict.fromkeys([*plain, *(replace(fork, **way) for way in ways for fork in tuning)]))
