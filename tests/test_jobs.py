"""Jobs: what is trained together, and that an interrupted job is found again, whole or in parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from subtune_deploy.tuning.jobs import Chunks, Job, plan, planned
from subtune_deploy.tuning.settings import Fork
from subtune_deploy.tuning.trials import Trial

FORKS = [Fork((n,)) for n in range(1, 7)]


def by(count: int) -> Chunks:
    """As if so many forks fitted into memory together."""

    def chunks(trials: Sequence[Trial]) -> list[list[Trial]]:
        return [list(trials[start : start + count]) for start in range(0, len(trials), count)]

    return chunks


def layers(groups: Sequence[Sequence[Trial]]) -> list[list[int]]:
    return [[int(str(trial.fork)) for trial in group] for group in groups]


def test_trials_that_differ_in_more_than_their_fork_are_apart() -> None:
    trials = [
        Trial(fork, seed, examples, fold)
        for fork in FORKS[:2]
        for seed in (0, 1)
        for examples, fold in ((None, None), (100, None), (100, 0), (100, 1))
    ]
    groups = plan(trials, by(100), workers=1)
    assert len(groups) == 8
    for group in groups:
        assert [trial.fork for trial in group] == FORKS[:2]
        assert len({(trial.seed, trial.examples, trial.fold) for trial in group}) == 1
    assert {trial for group in groups for trial in group} == set(trials)


def test_a_job_is_no_larger_than_memory_takes() -> None:
    assert layers(plan(map(Trial, FORKS), by(4), workers=1)) == [[1, 2, 3, 4], [5, 6]]


def test_there_are_jobs_for_all_workers_where_there_are_trials_enough() -> None:
    groups = plan(map(Trial, FORKS), by(100), workers=4)
    assert len(groups) == 4
    assert sorted(layer for group in layers(groups) for layer in group) == [1, 2, 3, 4, 5, 6]
    assert max(map(len, groups)) == 2
    assert len(plan(map(Trial, FORKS), by(100), workers=64)) == 6
    assert plan([], by(100), workers=2) == []
    assert layers(plan(map(Trial, FORKS), by(100), workers=2)) == [[1, 3, 5], [2, 4, 6]]


def test_no_worker_idles_while_the_last_jobs_train() -> None:
    """Five folds for two workers: the fifth is divided, evenly over the depth, and no other."""
    trials = [Trial(fork, fold=fold) for fold in range(5) for fork in FORKS]
    groups = plan(trials, by(100), workers=2)
    assert layers(groups) == [[1, 2, 3, 4, 5, 6]] * 4 + [[1, 3, 5], [2, 4, 6]]
    assert [group[0].fold for group in groups] == [0, 1, 2, 3, 4, 4]
    assert layers(plan(trials, by(100), workers=5)) == [[1, 2, 3, 4, 5, 6]] * 5
    assert sorted(len(group) for group in plan(trials, by(100), workers=4)) == [1, 1, 2, 2, 6, 6, 6, 6]
    assert [len(group) for group in plan(trials, by(100), workers=2, begun=1)] == [6] * 5
    assert [len(group) for group in plan(trials[:6], by(100), workers=4, begun=1)] == [3, 2, 1]
    assert [len(group) for group in plan(trials[:6], by(100), workers=2, begun=3)] == [6]
    assert {*plan(trials, by(100), workers=4)[-1]} <= {*trials[-6:]}


def test_an_interrupted_job_is_found_again_as_it_was_where_more_fits_into_memory_now(tmp_path: Path) -> None:
    trials = [*map(Trial, FORKS)]
    first, second = planned(tmp_path, trials, by(3), workers=1)
    assert first.keep is not None
    first.keep.write_text("after epoch 2")
    again = planned(tmp_path, trials, by(100), workers=3)
    assert again[0] == first
    assert first.keep.exists()
    assert {trial for job in again[1:] for trial in job.trials} == set(second.trials)
    assert len(again) == 3


def begun(job: Job, text: str) -> Path:
    """As if it had been trained for some epochs."""
    assert job.keep is not None
    job.keep.write_text(text)
    return job.keep


def kept(jobs: Sequence[Job]) -> list[str | None]:
    return [job.keep.read_text() if job.keep and job.keep.exists() else None for job in jobs]


def test_a_begun_job_that_no_longer_fits_goes_on_in_parts_which_is_said(tmp_path: Path) -> None:
    trials, said = [*map(Trial, FORKS)], list[str]()
    one, _ = planned(tmp_path, trials, by(5), workers=1)
    origin = begun(one, "after epoch 2")
    again = planned(tmp_path, trials, by(2), workers=1, say=said.append)
    assert layers([job.trials for job in again]) == [[1, 2], [3, 4], [5], [6]]
    assert kept(again) == ["after epoch 2"] * 3 + [None]
    assert said == ["5 forks do not fit into memory together any more: they go on in 3 groups"]
    assert not origin.exists()
    assert planned(tmp_path, trials, by(2), workers=1, say=said.append) == again
    assert len(said) == 1


def test_what_another_call_can_go_on_with_stays(tmp_path: Path) -> None:
    """A call that finds all of its trials done, or wants others, or some of them."""
    trials = [*map(Trial, FORKS)]
    one, two = planned(tmp_path, trials, by(3), workers=1)
    begun(one, "one")
    begun(two, "two")
    assert planned(tmp_path, [], by(3), workers=1) == ()
    planned(tmp_path, [Trial(Fork((7,)))], by(3), workers=1)
    assert kept(planned(tmp_path, trials[3:], by(3), workers=1)) == ["two"]
    (part,) = planned(tmp_path, trials[:1], by(3), workers=1)
    begun(part, "one, an epoch later")
    again = planned(tmp_path, trials, by(3), workers=1)
    assert sorted(layers([job.trials for job in again])) == [[1], [2, 3], [4, 5, 6]]
    assert {job.trials[0]: text for job, text in zip(again, kept(again), strict=True)} == {
        trials[0]: "one, an epoch later", trials[1]: "one", trials[3]: "two"
    }  # fmt: skip


def test_what_is_done_is_kept_for_no_other_call(tmp_path: Path) -> None:
    """A process was killed after it had written the outcome, before it had removed the training."""
    trials = [*map(Trial, FORKS)]
    one, two = planned(tmp_path, trials, by(3), workers=1)
    begun(one, "one")
    begun(two, "two")
    assert kept(planned(tmp_path, [], by(3), workers=1, done={*one.trials})) == []
    assert kept([one, two]) == [None, "two"]


def test_a_job_goes_on_without_a_trial_that_is_not_wanted_now(tmp_path: Path) -> None:
    trials = [*map(Trial, FORKS)]
    (job,) = planned(tmp_path, trials, by(100), workers=1)
    origin = begun(job, "after epoch 2")
    (other,) = planned(tmp_path, trials[:-1], by(100), workers=1)
    assert other.keep != job.keep
    assert not origin.exists()
    assert other.trials == tuple(trials[:-1])
    assert kept([other]) == ["after epoch 2"]


def test_a_plan_that_cannot_be_read_costs_no_more_than_time(tmp_path: Path) -> None:
    trials = [*map(Trial, FORKS)]
    planned(tmp_path, trials, by(100), workers=1)
    for text in ("{", "[]\n", '{"trials": [{"fork": 3}]}\n'):
        (tmp_path / "jobs.jsonl").write_text(text)
        (job,) = planned(tmp_path, trials, by(100), workers=1)
        assert job.trials == tuple(trials)


def test_without_a_folder_nothing_is_kept() -> None:
    (job,) = planned(None, [Trial(FORKS[0])], by(100), workers=1)
    assert job.keep is None
