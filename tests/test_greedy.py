"""Greedy-SubTuning: Algorithm 1 of the paper, its budgets, and the whole on real networks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_networks import backbone
from tiny_results import result
from tiny_studies import pictures, study

import subtune_deploy.tuning.greedy
from subtune_deploy.documents import from_document, to_document
from subtune_deploy.errors import CheckFailed, InputError
from subtune_deploy.executors import Here
from subtune_deploy.results import append_result
from subtune_deploy.spec import Pruning
from subtune_deploy.tuning.budget import Budget, added_latencies, as_timed
from subtune_deploy.tuning.documents import Greedy
from subtune_deploy.tuning.greedy import budget_for, greedy
from subtune_deploy.tuning.selection import Step, chosen, select
from subtune_deploy.tuning.settings import Fork as Tuned
from subtune_deploy.tuning.study import Study, run_trials
from subtune_deploy.tuning.trials import Trial, TrialResult, failed, read_trials

Fork = frozenset[int]


def looked_up(accuracies: dict[tuple[int, ...], float], seen: list[list[tuple[int, ...]]]) -> Callable:
    """An `evaluate` that notes what it is asked, round by round."""

    def evaluate(forks: Sequence[Fork]) -> list[float]:
        seen.append([tuple(sorted(fork)) for fork in forks])
        return [accuracies[each] for each in seen[-1]]

    return evaluate


# Algorithm 1

HALVES = 1 / 64
"""Accuracies in 64ths are exact, so that > can be told from >= by hand."""

WORKED = {
    (1,): 32, (2,): 45, (3,): 45,
    (1, 2): 46, (1, 3): 46, (2, 3): 47,
    (1, 2, 3): 48,
}  # fmt: skip


def test_a_case_worked_by_hand_line_by_line() -> None:
    """eps is 1/64.

    Round 1: A_best = 0. Blocks 2 and 3 tie at 45; line 9 asks for more, so 2 stays. 45 > 0 + 1: S = {2}.
    Round 2: {1, 2} 46, {2, 3} 47. 47 > 45 + 1: S = {2, 3}.
    Round 3: {1, 2, 3} 48. 48 > 47 + 1 does not hold (line 13): the end.
    """
    seen: list[list[tuple[int, ...]]] = []
    steps = select((1, 2, 3), looked_up({k: v * HALVES for k, v in WORKED.items()}, seen), eps=HALVES)
    assert seen == [[(1,), (2,), (3,)], [(1, 2), (2, 3)], [(1, 2, 3)]]
    assert [(step.chosen, step.best, step.accuracy * 64, step.taken) for step in steps] == [
        ((), 2, 45, True),
        ((2,), 3, 47, True),
        ((2, 3), 1, 48, False),
    ]
    assert chosen(steps) == (2, 3)
    assert steps[1].scores == ((1, 46 * HALVES), (3, 47 * HALVES))


def test_the_first_of_equals_wins_in_the_order_that_was_given() -> None:
    seen: list[list[tuple[int, ...]]] = []
    steps = select((3, 2, 1), looked_up({k: v * HALVES for k, v in WORKED.items()}, seen), eps=HALVES)
    assert chosen(steps) == (3, 2)


def test_the_first_block_only_has_to_beat_zero() -> None:
    """As printed (line 3); the head alone takes no part."""
    assert chosen(select((1, 2), lambda forks: [0.02] * len(forks), eps=0.01)) == (1,)
    assert chosen(select((1, 2), lambda forks: [0.01] * len(forks), eps=0.01)) == ()


def test_where_nothing_is_ever_right_nothing_is_chosen() -> None:
    (step,) = select((1, 2), lambda forks: [0.0] * len(forks), eps=0)
    assert step == Step((), ((1, 0.0), (2, 0.0)), (), None, 0.0, False)


def test_all_blocks_are_taken_where_each_helps_and_then_it_ends() -> None:
    steps = select((1, 2, 3), lambda forks: [len(fork) / 4 for fork in forks])
    assert chosen(steps) == (1, 2, 3)
    assert len(steps) == 3


def test_candidates_that_are_not_allowed_are_never_evaluated() -> None:
    seen: list[list[tuple[int, ...]]] = []
    evaluate = looked_up({k: v * HALVES for k, v in WORKED.items()}, seen)
    steps = select((1, 2, 3), evaluate, HALVES, allowed=lambda fork: 2 not in fork and len(fork) < 2)
    assert seen == [[(1,), (3,)]]
    assert [step.left_out for step in steps] == [(2,), (1, 2)]
    assert chosen(steps) == (3,)


def test_an_eps_below_zero_is_refused() -> None:
    with pytest.raises(InputError, match=r"eps is -0\.1"):
        select((1,), lambda forks: [0.5], eps=-0.1)


def literally(layers: Sequence[int], evaluate: Callable[[Fork], Fraction], eps: Fraction) -> Fork:
    """Algorithm 1, transcribed."""
    s: Fork = frozenset()
    n = len(layers)
    a_best = Fraction(0)
    for _ in range(n):
        a_iter, l_best = Fraction(0), None
        for layer in [each for each in layers if each not in s]:
            a_new = evaluate(s | {layer})
            if a_new > a_iter:
                l_best, a_iter = layer, a_new
        if l_best is not None and a_iter > a_best + eps:
            a_best, s = a_iter, s | {l_best}
        else:
            break
    return s


SUBSETS = [frozenset(each) for n in range(1, 5) for each in combinations(range(1, 5), n)]


def test_a_block_that_fails_in_a_round_is_not_taken_in_it_but_may_be_in_the_next() -> None:
    """Best were 2,3; where it cannot be trained, 1,2 is next, and then all three."""
    known = {**{k: v * HALVES for k, v in WORKED.items()}, (2, 3): None, (1, 2, 3): 60 * HALVES}
    steps = select((1, 2, 3), lambda forks: [known[tuple(sorted(fork))] for fork in forks], eps=0)
    assert chosen(steps) == (2, 1, 3)
    assert [step.failed for step in steps] == [(), (3,), ()]
    assert steps[1].scores == ((1, 46 * HALVES),)


def test_where_all_fail_in_a_round_it_ends_with_what_was_chosen() -> None:
    steps = select((1, 2, 3), lambda forks: [0.5 if len(fork) < 2 else None for fork in forks])
    assert chosen(steps) == (1,)
    assert steps[1] == Step((1,), (), (), None, 0.0, False, (2, 3))


@given(
    st.lists(st.integers(0, 20), min_size=len(SUBSETS), max_size=len(SUBSETS)),
    st.integers(0, 5),
    st.permutations([1, 2, 3, 4]),
)
def test_it_is_the_printed_algorithm(found: list[int], eps: int, layers: list[int]) -> None:
    table = {fork: Fraction(share, 20) for fork, share in zip(SUBSETS, found, strict=True)}
    steps = select(layers, lambda forks: [table[fork] for fork in forks], Fraction(eps, 20))  # type: ignore[arg-type]
    assert frozenset(chosen(steps)) == literally(layers, table.__getitem__, Fraction(eps, 20))


@given(st.lists(st.integers(-8, 8), min_size=1, max_size=6))
def test_where_blocks_help_independently_it_finds_what_exhaustive_search_finds(gains: list[int]) -> None:
    """Each block adds what it adds, whatever else is tuned. 128 is exact."""
    layers = range(1, len(gains) + 1)

    def accuracy(fork: Fork) -> float:
        return 0.5 + sum(gains[layer - 1] for layer in fork) / 128

    forks = [frozenset(each) for n in layers for each in combinations(layers, n)]
    steps = select(layers, lambda candidates: [accuracy(fork) for fork in candidates], eps=0)
    assert accuracy(frozenset(chosen(steps))) == max(map(accuracy, forks))


# Budgets

BLOCKS = {1: 100, 2: 200, 3: 400}
THREE = backbone(blocks=3)
LATENCIES = {frozenset({1}): 0.30, frozenset({2}): 0.20, frozenset({3}): 0.10, frozenset({1, 3}): 0.32}


def test_a_fork_costs_its_blocks_and_its_head() -> None:
    budget = Budget(BLOCKS, head=10, max_parameters=310)
    assert budget.cost({1, 2}).parameters == 310
    assert budget.allows({1, 2})
    assert not budget.allows({3})


def test_a_timed_fork_costs_what_was_measured_and_another_at_least_its_dearest_part() -> None:
    budget = Budget(BLOCKS, latency=as_timed(LATENCIES), max_added=0.31)
    assert [
        (budget.cost(fork).added, budget.cost(fork).estimated) for fork in ({1, 3}, {2, 3}, {1, 2, 3})
    ] == [
        (0.32, False),
        (0.20, True),
        (0.32, True),
    ]
    assert budget.allows({1})
    assert not budget.allows({1, 3})
    assert not budget.allows({1, 2, 3})


def test_without_latencies_none_is_claimed() -> None:
    assert Budget(BLOCKS).cost({1}).added is None


def test_a_budget_that_nothing_meets_names_the_nearest() -> None:
    with pytest.raises(
        InputError, match="within 90 parameters: the nearest, block 1, has 110 parameters"
    ) as caught:
        Budget(BLOCKS, head=10, max_parameters=90).check()
    assert caught.value.hint == "raise the limit"
    with pytest.raises(
        InputError, match=r"within 5\.0% of added latency: .* block 3, .* adds 10\.0% of latency"
    ):
        Budget(BLOCKS, latency=as_timed(LATENCIES), max_added=0.05).check()
    with pytest.raises(InputError, match="the nearest, block 2"):
        Budget(BLOCKS, latency=as_timed(LATENCIES), max_added=0.15, max_parameters=150).check()
    Budget(BLOCKS, max_parameters=100).check()


@pytest.mark.parametrize("limits", [{"max_parameters": 0}, {"max_added": -0.1}, {"max_added": float("nan")}])
def test_a_limit_is_above_zero(limits: dict[str, float]) -> None:
    with pytest.raises(InputError, match="allows nothing"):
        Budget(BLOCKS, **limits)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A sweep of a network with three blocks: single ones, the fork 1,3, two tasks, and a pruned one."""
    path = tmp_path / "results.jsonl"
    for layers, added in LATENCIES.items():
        append_result(path, timed(added, tuple(sorted(layers))))
    two = {"task1": (1,), "task2": (1,)}
    append_result(path, timed(0.9, (1,), forks=two))
    append_result(path, timed(0.01, (1,), prune=Pruning(0.5)))
    return path


def timed(added: float, layers: tuple[int, ...], **other: object):
    found = result(added, layers=layers, model=THREE.name, input_shape=THREE.input.shape)
    return replace(found, **other)  # type: ignore[arg-type]


def test_latencies_are_those_of_one_task_that_is_not_pruned(run: Path) -> None:
    assert added_latencies(run, THREE) == pytest.approx(LATENCIES)


def test_latencies_of_another_model_or_without_all_blocks_are_refused(run: Path) -> None:
    with pytest.raises(InputError, match="is of tiny-chain, not of tiny-dense"):
        added_latencies(run, backbone("dense", blocks=3))
    with pytest.raises(InputError, match="no latency of block 4-5 by itself") as caught:
        added_latencies(run, backbone(blocks=5))
    assert "--span 1" in caught.value.hint


def test_latencies_of_another_input_or_of_other_blocks_are_refused(run: Path) -> None:
    (run.parent / "run.json").write_text(
        json.dumps({"schema": 1, "host": {}, "targets": {}, "blocks": ["a", "b"]})
    )
    with pytest.raises(InputError, match="has 2 blocks, a to b; tiny-chain has 3 blocks"):
        added_latencies(run.parent, THREE)
    append_result(run, timed(0.5, (2,), input_shape=(3, 24, 24)))
    with pytest.raises(InputError, match="was measured on input 3x24x24, where 3x12x12 is trained on"):
        added_latencies(run, THREE)


def test_latencies_of_several_batches_are_refused(run: Path) -> None:
    append_result(run, timed(0.5, (2,), batch=8))
    with pytest.raises(InputError, match="several batches: 1, 8"):
        added_latencies(run, THREE)


def test_of_several_targets_one_is_to_be_named(run: Path) -> None:
    for layer in (1, 2, 3):
        append_result(run, timed(0.5, (layer,), target="openvino-cpu"))
    with pytest.raises(InputError, match="several targets: cpu, openvino-cpu"):
        added_latencies(run, THREE)
    assert set(added_latencies(run, THREE, "openvino-cpu").values()) == {0.5}
    with pytest.raises(InputError, match="no result on gpu"):
        added_latencies(run, THREE, "gpu")


# On real networks

EXHAUSTED = replace(study(folds=3, train=30), backbone=backbone(blocks=3))
"""Three blocks: seven forks."""


def every_fork() -> list[Fork]:
    return [frozenset(each) for n in (1, 2, 3) for each in combinations((1, 2, 3), n)]


def validated(forks: Sequence[Fork], of: Study = EXHAUSTED) -> list[float]:
    """Mean accuracy of each over the folds, trained here one by one."""
    found = []
    for fork in forks:
        trials = [Trial(Tuned(tuple(fork)), 0, fold=fold) for fold in range(of.folds)]
        found.append(
            fmean(result.accuracy for trial in trials for result in run_trials(of, [trial], None, Here()))
        )
    return found


def test_it_finds_what_exhaustive_search_finds() -> None:
    found = greedy(EXHAUSTED, eps=0, seeds=(0,))
    exhaustive = dict(zip(every_fork(), validated(every_fork()), strict=True))
    assert exhaustive[frozenset(found.order)] == pytest.approx(max(exhaustive.values()))
    for each in found.rounds:
        for score in each.scores:
            assert score.accuracy == pytest.approx(exhaustive[frozenset({*each.chosen, score.layer})])


def test_the_document_tells_every_round_and_what_the_fork_is_worth() -> None:
    found = greedy(EXHAUSTED, eps=0, seeds=(4, 5), source="noise")
    assert from_document(Greedy, to_document(found)) == found
    assert [each.chosen for each in found.rounds] == [found.order[:n] for n in range(len(found.rounds))]
    for each in found.rounds:
        assert {score.layer for score in each.scores} == {1, 2, 3} - set(each.chosen)
        assert all(len(score.accuracies) == 3 for score in each.scores)
    assert found.final.layers == tuple(sorted(found.order))
    (head,) = validated([frozenset()])
    assert found.head == pytest.approx(head)
    fork = Tuned(found.final.layers)
    apart = [run_trials(EXHAUSTED, [Trial(fork, seed)], None, Here())[0].accuracy for seed in (4, 5)]
    assert found.final.accuracies == pytest.approx(apart)


def test_selection_never_sees_the_test_pictures() -> None:
    noise = replace(EXHAUSTED, data=EXHAUSTED.data._replace(test=pictures(12, 99)))
    first, second = (greedy(each, eps=0, seeds=(0,)) for each in (EXHAUSTED, noise))
    assert (first.rounds, first.head) == (second.rounds, second.head)


def test_examples_are_drawn_once_for_selection_and_final_training() -> None:
    found = greedy(EXHAUSTED, examples=15, seeds=(0, 1), run=None)
    assert (found.examples, found.data["train"]) == (15, 15)


def test_a_budget_leaves_blocks_out_and_names_them() -> None:
    single = EXHAUSTED.backbone.blocks[0].parameters
    budget = budget_for(EXHAUSTED, max_parameters=2 * single)
    found = greedy(EXHAUSTED, eps=0, budget=budget, seeds=(0,))
    assert len(found.order) == 1
    assert found.final.parameters <= 2 * single
    assert found.final.parameters == budget.cost(found.order).parameters
    if len(found.rounds) > 1:
        assert {left.layer for left in found.rounds[1].left_out} == {1, 2, 3} - set(found.order)
    with pytest.raises(InputError, match="no fork is within 10 parameters: the nearest, block 1"):
        greedy(EXHAUSTED, budget=budget_for(EXHAUSTED, max_parameters=10), seeds=(0,))


def test_a_latency_budget_is_kept_and_told() -> None:
    latencies = as_timed({frozenset({1}): 0.3, frozenset({2}): 0.1, frozenset({3}): 0.05})
    found = greedy(EXHAUSTED, eps=0, budget=budget_for(EXHAUSTED, None, 0.2, latencies), seeds=(0,))
    assert 1 not in found.order
    assert found.max_added == 0.2
    assert [left.layer for left in found.rounds[0].left_out] == [1]
    assert all(not score.cost.estimated for score in found.rounds[0].scores)


def test_a_killed_selection_goes_on_without_repeating_a_trial(tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
from pathlib import Path
from test_greedy import EXHAUSTED
from subtune_deploy.tuning.greedy import greedy
ended = []
def told(step):
    ended.extend(step.results)
    if len(ended) > 8:
        os.kill(os.getpid(), 9)
greedy(EXHAUSTED, eps=0, seeds=(0,), run=Path({str(tmp_path / "run")!r}), told=told)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -9
    before = read_trials(tmp_path / "run")
    found = greedy(EXHAUSTED, eps=0, seeds=(0,), run=tmp_path / "run")
    after = read_trials(tmp_path / "run")
    assert after[: len(before)] == before
    assert len({result.trial for result in after}) == len(after)
    assert found == greedy(EXHAUSTED, eps=0, seeds=(0,))


class Interrupted(Exception):  # noqa: N818 - not an error
    """Stands for whatever ends a process."""


def test_a_round_that_was_interrupted_goes_on_after_its_last_epoch(tmp_path: Path) -> None:
    """Though the rounds before it, and their trials, are all done: of two epochs the second is left."""
    epochs: list[float] = []

    def progress(what: str, done: float, total: float) -> None:
        if what == "epochs":
            epochs.append(done)
            if epochs == [1, 2] * 3 + [1]:
                raise Interrupted

    with pytest.raises(Interrupted):
        greedy(EXHAUSTED, eps=0, seeds=(0,), run=tmp_path / "run", progress=progress)
    assert len(read_trials(tmp_path / "run")) == 9
    epochs.clear()
    epochs.append(2)  # so that it is not interrupted again
    found = greedy(EXHAUSTED, eps=0, seeds=(0,), run=tmp_path / "run", progress=progress)
    assert epochs[:4] == [2, 2, 1, 2]
    assert found == greedy(EXHAUSTED, eps=0, seeds=(0,))


def fails_with(monkeypatch: pytest.MonkeyPatch, hopeless: Callable[[Trial], bool]) -> None:
    """Such trials diverge, the others are trained."""

    def run(of: Study, trials: Sequence[Trial], *others: object, **more: object) -> tuple[TrialResult, ...]:
        sound = run_trials(of, [each for each in trials if not hopeless(each)], None, Here())
        known = {each.trial: each for each in sound}
        return tuple(known.get(each, failed(each, "diverged")) for each in trials)

    monkeypatch.setattr(subtune_deploy.tuning.greedy, "run_trials", run)


def test_a_block_that_cannot_be_trained_is_told_and_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one of its folds."""
    (best, *_) = greedy(EXHAUSTED, eps=0, seeds=(0,)).order
    fails_with(monkeypatch, lambda trial: trial.fork.layers == (best,) and trial.fold == 1)
    said: list[str] = []
    found = greedy(EXHAUSTED, eps=0, seeds=(0,), say=said.append)
    assert said == [f"left out in this round: {best}: diverged"]
    assert found.order
    assert found.order[0] != best
    assert [each.failed for each in found.rounds] == [(best,), *[()] * (len(found.rounds) - 1)]
    assert best not in {score.layer for score in found.rounds[0].scores}
    assert from_document(Greedy, to_document(found)) == found


def test_equals_are_equal_and_a_gain_of_just_eps_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means of floats would take block 2, and then block 1 beside it."""
    right = {(1,): (4, 10, 10), (2,): (8, 8, 8), (3,): (1, 1, 1), (1, 2): (9, 9, 9)}
    means = {layers: fmean(each / 10 for each in some) for layers, some in right.items()}
    assert means[1,] < means[2,]
    assert means[1, 2] > means[1,] + 0.1

    def run(study: Study, trials: Sequence[Trial], *_: object, **__: object) -> tuple[TrialResult, ...]:
        counts = [right.get(trial.fork.layers, (0, 0, 0))[trial.fold or 0] for trial in trials]
        return tuple(
            TrialResult(trial, count / 10, 1.0, 10, 20, 1, 0.1, "none")
            for trial, count in zip(trials, counts, strict=True)
        )

    monkeypatch.setattr(subtune_deploy.tuning.greedy, "run_trials", run)
    found = greedy(EXHAUSTED, eps=0.1, seeds=(0,))
    assert [each.best for each in found.rounds] == [1, 2]
    assert found.order == (1,)


@pytest.mark.parametrize("hopeless", ["the head", "single blocks", "the chosen fork"])
def test_without_anything_to_choose_there_is_no_selection(
    hopeless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with(
        monkeypatch,
        lambda trial: {
            "the head": not trial.fork.layers,
            "single blocks": len(trial.fork.layers) == 1,
            "the chosen fork": trial.fold is None,
        }[hopeless],
    )
    with pytest.raises(CheckFailed, match=r"\d of \d trials failed: .*diverged"):
        greedy(EXHAUSTED, eps=0, seeds=(0,))


def test_an_eps_below_zero_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="eps is -1"):
        greedy(EXHAUSTED, eps=-1, seeds=(0,), run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_fold_or_more_than_a_class_has_is_refused() -> None:
    with pytest.raises(InputError, match="1 folds and 1 seeds"):
        greedy(replace(EXHAUSTED, folds=1), seeds=(0,))
    with pytest.raises(InputError, match="11 folds of data whose smallest class"):
        greedy(replace(EXHAUSTED, folds=11), seeds=(0,))
