"""A recipe's runs, carried out: each leaves a document. A folder keeps what is done, so that a killed call goes on.

with open_executor("processes:2") as executor:
    documents = make(read_recipe("figure4").runs(), Path("runs/figure4"), executor)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from recipes import PACKAGED, Run

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.data.dataset import Data, Dataset, split, subset, vtab
from subtune_deploy.data.sources import load_data
from subtune_deploy.demo import base_checkpoint
from subtune_deploy.errors import Unavailable
from subtune_deploy.executors import Executor
from subtune_deploy.models import load_model
from subtune_deploy.tuning.active import SCHEDULE, active
from subtune_deploy.tuning.documents import About, Greedy
from subtune_deploy.tuning.greedy import greedy
from subtune_deploy.tuning.profile import complete, profile
from subtune_deploy.tuning.settings import Fork
from subtune_deploy.tuning.study import Study

CIFAR10_C = "CIFAR-10-C"
"""Data of this name are the published files, in the folder of this name in $SUBTUNE_DATA."""
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
EACH = 10_000
"""Pictures of one severity in those files, the worst one last."""

Say = Callable[[str], object]
Documents = Mapping[str, About]
"""By the name of the run; what was trained beside a selection has `BESIDE` behind it."""
BESIDE = " beside"


def make(runs: Sequence[Run], folder: Path, executor: Executor, say: Say = print) -> dict[str, About]:
    """Train what `folder` has no outcome of. Raises as `load_model`, `load_data`, `run_trials` and `complete` do."""
    found: dict[str, About] = {}
    for number, run in enumerate(runs, start=1):
        say(f"run {number} of {len(runs)}: {run.kind} {run.name}".rstrip())
        backbone = _backbone(run.model, run.weights, run.size, folder)
        study = Study(backbone, read_data(run), run.settings, run.folds if run.kind == "greedy" else 0)
        how = {
            "seeds": run.seed_list,
            "run": folder / _place(run),
            "executor": executor,
            "source": source(run),
        }
        found[run.name] = document = MAKERS[run.kind](run, study, how)
        if isinstance(document, Greedy) and (run.forks or run.prefixes):
            found[f"{run.name}{BESIDE}"] = _beside(document, run, study, how)
    return found


def _profile(run: Run, study: Study, how: Mapping[str, Any]) -> About:
    forks = run.chosen(len(study.backbone.blocks))
    return complete(profile(study, forks, examples=run.examples, **how), forks)


def _greedy(run: Run, study: Study, how: Mapping[str, Any]) -> About:
    return greedy(study, eps=run.eps, examples=run.examples, **how)


def _active(run: Run, study: Study, how: Mapping[str, Any]) -> About:
    forks = run.chosen(len(study.backbone.blocks))
    return active(study, forks, schedule=run.schedule or SCHEDULE, **how)


MAKERS = {"profile": _profile, "greedy": _greedy, "active": _active}


def _beside(chosen: Greedy, run: Run, study: Study, how: Mapping[str, Any]) -> About:
    """The forks that the run names, and those that grow along the selection."""
    forks = [*run.chosen(len(study.backbone.blocks))]
    if run.prefixes:
        forks += [Fork(chosen.order[:count]) for count in range(1, len(chosen.order) + 1)]
    folder = how["run"].with_name(f"{how['run'].name}_beside")
    found = profile(replace(study, folds=0), forks, examples=run.examples, **{**how, "run": folder})
    return complete(found, forks)


@lru_cache(maxsize=1)
def _backbone(model: str, weights: str, size: int | None, folder: Path) -> Backbone:
    if weights == PACKAGED:
        folder.mkdir(parents=True, exist_ok=True)
        weights = str(base_checkpoint(folder / "lite0.safetensors"))
    return trace(load_model(model, weights, (3, size, size) if size else None))


@lru_cache(maxsize=1)
def _data(source: str, train: int | str | None, test: int | None, corruption: str | None) -> Data:
    if source == CIFAR10_C:
        return cifar10_c(str(corruption).partition(":")[0], train, test)
    listed = Path(train) if isinstance(train, str) else train
    return load_data(source, train=listed, test=test, corruption=corruption)


def read_data(run: Run) -> Data:
    """The pictures of a run."""
    data = _data(run.data, run.train, run.test, run.corruption)
    return vtab(data, seed=0) if run.vtab else data


def source(run: Run) -> str:
    """How its pictures are called."""
    return " ".join(filter(None, (run.data, run.corruption)))


def cifar10_c(name: str, train: int | None, test: int | None) -> Data:
    """The published pictures of one corruption at severity 5. Raises Unavailable."""
    folder = Path(os.environ.get("SUBTUNE_DATA", "."), CIFAR10_C)
    try:
        pictures = np.load(folder / f"{name}.npy", mmap_mode="r")[-EACH:]
        labels = np.load(folder / "labels.npy")[-EACH:].astype(np.int64)
    except OSError as error:
        raise Unavailable(
            f"CIFAR-10-C cannot be read: {error}",
            f"unpack it from zenodo.org/records/2535967 to {folder}, or set SUBTUNE_DATA",
        ) from error
    every = Dataset(tuple(np.asarray(pictures)), labels, CLASSES)
    chosen = split(CIFAR10_C, every, train, test, seed=0)
    return Data(*(subset(every, indices) for indices in chosen))


def _place(run: Run) -> str:
    """A folder for each kind of pictures and settings: other ones would be refused in it."""
    shared = {**asdict(run), "forks": None, "span": None, "seeds": None, "name": None}
    digest = hashlib.sha256(repr(sorted(shared.items())).encode()).hexdigest()
    return f"{run.kind}_{digest[:8]}"
