"""Active learning: what is least sure is labelled next, against random choice from the same beginning."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_chunks import alone
from tiny_studies import QUICK, study

import subtune_deploy.tuning.active
from subtune_deploy.backbone import Backbone
from subtune_deploy.data.dataset import subset
from subtune_deploy.documents import from_document, to_document
from subtune_deploy.errors import CheckFailed, InputError, WorkerDied
from subtune_deploy.executors import Here
from subtune_deploy.lines import read_lines
from subtune_deploy.tuning.active import (
    LINES,
    SCHEDULE,
    Learnt,
    _settings,
    active,
    at_random,
    digest,
    margins,
)
from subtune_deploy.tuning.documents import Active
from subtune_deploy.tuning.settings import Fork, TrainConfig
from subtune_deploy.tuning.train import _Session, answers, train_together

STUDY = study(train=40)
FORKS = (Fork((3,)), Fork("all"))
STEPS = (8, 16, 30)


def test_the_schedule_is_the_papers() -> None:
    assert SCHEDULE == (100, 500, 1000, 2500, 5000, 10_000)


def test_the_margin_is_between_the_two_likeliest_classes() -> None:
    shares = np.array([[0.6, 0.3, 0.1], [0.2, 0.4, 0.4], [0.0, 1.0, 0.0]])
    with np.errstate(divide="ignore"):
        found = margins(np.log(shares).astype(np.float32))
    assert found == pytest.approx([0.3, 0.0, 1.0], abs=1e-6)


def test_random_pictures_are_nested_and_differ_by_seed() -> None:
    assert set(at_random(40, 8, 0)) < set(at_random(40, 16, 0))
    assert at_random(40, 8, 0) != at_random(40, 8, 1)
    assert len(set(at_random(40, 40, 0))) == 40


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Active, Path]:
    """Two forks, two seeds, three steps; and the folder that kept it."""
    run = tmp_path_factory.mktemp("active") / "run"
    return active(STUDY, FORKS, schedule=STEPS, seeds=(0, 1), source="noise", run=run), run


def kept(run: Path) -> list[Learnt]:
    return [
        Learnt(**{**document, "chosen": tuple(document["chosen"])}) for _, document in read_lines(run / LINES)
    ]  # type: ignore[dict-item,arg-type]


def test_every_fork_way_seed_and_step_has_its_row(found: tuple[Active, Path]) -> None:
    document, _ = found
    rows = [(row.fork, row.strategy, row.seed, row.examples) for row in document.rows]
    assert rows == [
        (fork, way, seed, size)
        for fork in ("3", "all")
        for way in ("margin", "random")
        for seed in (0, 1)
        for size in STEPS
    ]
    assert from_document(Active, to_document(document)) == document


def test_the_document_tells_settings_which_may_differ_from_step_to_step(found: tuple[Active, Path]) -> None:
    settings = dict(found[0].settings)
    assert (settings["epochs"], settings["batch_size"], settings["lr"]) == (QUICK.epochs, 8, 1e-2)
    assert not {"seed", "memory_bytes"} & set(settings)
    told = _settings(study(TrainConfig()), (100, 1000, 1001))
    assert (told["epochs"], told["batch_size"], told["probe_lr"]) == ([50, 50, 10], 256, 1e-2)


def test_both_ways_begin_with_the_same_training_which_is_done_once(found: tuple[Active, Path]) -> None:
    document, run = found
    accuracy = {(r.fork, r.strategy, r.seed, r.examples): r.accuracy for r in document.rows}
    for fork in ("3", "all"):
        assert accuracy[fork, "margin", 0, 8] == accuracy[fork, "random", 0, 8]
    lines = kept(run)
    assert len(lines) == 2 * 2 * (1 + 2 + 2)
    assert len({(line.fork, line.seed, line.digest) for line in lines}) == len(lines)


def test_accuracies_are_those_of_training_on_the_labelled_pictures_from_the_pretrained_start(
    found: tuple[Active, Path],
) -> None:
    document, _ = found
    chosen = subset(STUDY.data.train, np.array(at_random(40, 30, 1)))
    (tuned,) = train_together(STUDY.backbone, [Fork((3,))], chosen, STUDY.data.test, replace(QUICK, seed=1))
    (row,) = [r for r in document.rows if (r.fork, r.strategy, r.seed, r.examples) == ("3", "random", 1, 30)]
    assert row.accuracy == pytest.approx(tuned.accuracy)


def test_the_least_sure_of_the_others_are_labelled_next(found: tuple[Active, Path]) -> None:
    _, run = found
    first = at_random(40, 8, 0)
    (line,) = [each for each in kept(run) if (each.fork, each.seed, each.examples) == ("3", 0, 8)]
    assert line.digest == digest(first)
    (tuned,) = train_together(
        STUDY.backbone, [Fork((3,))], subset(STUDY.data.train, np.array(first)), STUDY.data.test, replace(QUICK, seed=0)
    )  # fmt: skip
    sure = margins(np.asarray(answers(STUDY.backbone, tuned.task, STUDY.data.train, QUICK)))
    rest = [index for index in range(40) if index not in first]
    assert len(line.chosen) == 8
    assert not set(line.chosen) & set(first)
    limit = max(sure[list(line.chosen)])
    assert all(sure[index] >= limit - 1e-6 for index in rest if index not in line.chosen)
    second = digest(tuple(sorted((*first, *line.chosen))))
    assert second in {each.digest for each in kept(run) if each.examples == 16}


def test_the_schedule_goes_as_far_as_the_pool() -> None:
    document = active(STUDY, FORKS[:1], schedule=(10, 40, 100), seeds=(0,))
    assert document.schedule == (10, 40)
    last = [row.accuracy for row in document.rows if row.examples == 40]
    assert last[0] == last[1]  # all pictures, either way


def test_a_killed_run_goes_on_without_repeating_a_training(
    found: tuple[Active, Path], tmp_path: Path
) -> None:
    document, _ = found
    code = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from pathlib import Path
from test_active import FORKS, STEPS, STUDY
from subtune_deploy.tuning.active import active
def told(done, total, learnt):
    if learnt is not None and done == 7:
        os.kill(os.getpid(), 9)
active(STUDY, FORKS, schedule=STEPS, seeds=(0, 1), source="noise", run=Path({str(tmp_path / "run")!r}), told=told)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    before = kept(tmp_path / "run")
    assert 0 < len(before) <= 8
    steps: list[tuple[int, int]] = []
    again = active(
        STUDY, FORKS, schedule=STEPS, seeds=(0, 1), source="noise", run=tmp_path / "run",
        told=lambda done, total, learnt: steps.append((done, total)),
    )  # fmt: skip
    assert again == document
    after = kept(tmp_path / "run")
    assert after[: len(before)] == before
    assert len({(line.fork, line.seed, line.digest) for line in after}) == len(after) == 20
    assert steps[-1] == (20, 20)


def test_a_run_of_another_schedule_is_refused(found: tuple[Active, Path]) -> None:
    _, run = found
    with pytest.raises(InputError, match="schedule was"):
        active(STUDY, FORKS, schedule=(8, 20), seeds=(0, 1), run=run)


@pytest.mark.parametrize(
    "schedule, told",
    [((), "does not grow"), ((5, 5), "does not grow"), ((9, 5), "does not grow"), ((1, 5), "does not grow"),
     ((41,), "the pool has 40 pictures where the schedule begins with 41")],
)  # fmt: skip
def test_a_schedule_grows_and_begins_within_the_pool(schedule: tuple[int, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        active(STUDY, FORKS, schedule=schedule)


def test_a_pool_of_one_class_is_refused() -> None:
    labels = STUDY.data.train.labels
    one = subset(STUDY.data.train, np.flatnonzero(labels == labels[0]))
    with pytest.raises(InputError, match="of one class"):
        active(replace(STUDY, data=STUDY.data._replace(train=one)), FORKS, schedule=(2,))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(InputError, match="0 forks and 3 seeds"):
        active(STUDY, (), schedule=(10,))


def test_a_training_that_diverges_ends_it_after_those_beside_it_are_kept(tmp_path: Path) -> None:
    """The head alone has a rate of its own."""
    wild = replace(STUDY, config=replace(QUICK, lr=1e30, epochs=4))
    with pytest.raises(
        CheckFailed, match=r"^3 seed 0 on 8 pictures: training diverged[^;]*; 3 seed 1 "
    ) as caught:
        active(wild, (FORKS[0], Fork()), schedule=STEPS, seeds=(0, 1), run=tmp_path)
    assert "leave these out" in caught.value.hint
    before = kept(tmp_path)
    assert [(each.fork, each.seed, each.examples) for each in before] == [("none", 0, 8), ("none", 1, 8)]
    document = active(wild, [Fork()], schedule=STEPS, seeds=(0, 1), run=tmp_path)
    assert {row.fork for row in document.rows} == {"none"}
    assert kept(tmp_path)[:2] == before


def test_forks_that_do_not_fit_into_memory_together_train_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[Fork, ...]] = []

    def noted(backbone: Backbone, forks: Sequence[Fork], *others: Any, **more: Any) -> Any:
        trained.append(tuple(forks))
        return train_together(backbone, forks, *others, **more)

    monkeypatch.setattr(subtune_deploy.tuning.active, "train_together", noted)
    expected = active(STUDY, FORKS, schedule=STEPS[:1], seeds=(0,))
    least = max(alone(STUDY.backbone, fork) for fork in FORKS)
    small = replace(STUDY, config=replace(QUICK, memory_bytes=least))
    assert active(small, FORKS, schedule=STEPS[:1], seeds=(0,)) == expected
    assert trained == [FORKS, FORKS[:1], FORKS[1:]]
    less = replace(STUDY, config=replace(QUICK, memory_bytes=least - 1))
    with pytest.raises(InputError, match=r"training fork all takes about .* in batches of 8"):
        active(less, FORKS, schedule=STEPS[:1], seeds=(0,))


class Deadly(Here):
    """Whoever gets the first job dies with it."""

    def run(
        self, function: Callable[..., Any], shared: Any, jobs: Sequence[Any]
    ) -> Generator[Any, None, None]:
        for index, found in super().run(function, shared, jobs):
            yield index, found if index else WorkerDied("its worker died 4 times, at last killed", "less")


def test_a_dead_worker_is_told_when_its_step_is_done_and_the_others_are_kept(tmp_path: Path) -> None:
    """One seed's forks are a job; those of the other seed go on."""
    with pytest.raises(CheckFailed, match="its worker died 4 times"):
        active(STUDY, FORKS, schedule=STEPS[:1], seeds=(0, 1), run=tmp_path, executor=Deadly())
    assert {(each.fork, each.seed) for each in kept(tmp_path)} == {(str(fork), 1) for fork in FORKS}


def test_that_memory_ran_out_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = _Session._at_once

    def short(session: _Session, forks: Sequence[Fork]) -> Any:
        if len(forks) > 1:
            raise MemoryError
        return at_once(session, forks)

    monkeypatch.setattr(_Session, "_at_once", short)
    said: list[str] = []
    active(STUDY, FORKS, schedule=STEPS[:1], seeds=(0,), say=said.append)
    assert said == ["memory ran out while 2 forks trained together: 1 at a time from here on"]
