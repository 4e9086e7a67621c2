"""The finetuning profile: every fork, every seed, one row each."""

from __future__ import annotations

from dataclasses import replace
from math import comb
from pathlib import Path
from statistics import fmean, stdev

import pytest
from tiny_prunable import prunable
from tiny_studies import QUICK, study

from subtune_deploy.documents import from_document, to_document
from subtune_deploy.errors import CheckFailed, InputError, LayersError
from subtune_deploy.executors import Here
from subtune_deploy.spec import Pruning
from subtune_deploy.tuning.profile import complete, forks_of, profile, refusals
from subtune_deploy.tuning.settings import Fork
from subtune_deploy.tuning.study import run_trials
from subtune_deploy.tuning.trials import Trial, read_trials

FORKS = (Fork(), Fork((2,)), Fork((2, 4), siamese=True), Fork("all"))


def test_a_row_holds_what_training_the_fork_with_each_seed_gives() -> None:
    tiny = study()
    found = profile(tiny, FORKS, seeds=(3, 5), source="noise")
    assert [row.fork for row in found.rows] == ["none", "2", "2,4 siamese", "all"]
    assert [row.layers for row in found.rows] == [(), (2,), (2, 4), (1, 2, 3, 4)]
    assert [row.siamese for row in found.rows] == [False, False, True, False]
    for fork, row in zip(FORKS, found.rows, strict=True):
        alone = [run_trials(tiny, [Trial(fork, seed)], None, Here())[0] for seed in (3, 5)]
        assert row.accuracies == pytest.approx([result.accuracy for result in alone])
        assert row.accuracy == pytest.approx(fmean(row.accuracies))
        assert row.std == pytest.approx(stdev(row.accuracies))
        assert row.parameters == alone[0].parameters


def test_it_says_what_its_accuracies_are_of() -> None:
    tiny = study()
    found = profile(tiny, [Fork((1,))], seeds=(0,), examples=9, source="noise")
    assert (found.model, found.examples, found.seeds) == ("tiny-chain", 9, (0,))
    assert found.blocks == tuple(block.name for block in tiny.backbone.blocks)
    assert found.shapes == ((4, 6, 6),) * 4
    assert {key: found.data[key] for key in ("source", "train", "test", "classes", "skipped")} == {
        "source": "noise", "train": 24, "test": 12, "classes": 3, "skipped": 0
    }  # fmt: skip
    assert found.data["train_fingerprint"] != found.data["test_fingerprint"]
    assert found.settings["epochs"] == 2
    assert found.settings["weight_decay"] == 0.01  # the paper's, which was left open
    assert from_document(type(found), to_document(found)) == found


def test_a_second_call_trains_only_what_is_new(tmp_path: Path) -> None:
    run = tmp_path / "run"
    profile(study(), FORKS[:2], seeds=(0,), run=run)
    found = profile(study(), FORKS[:3], seeds=(0, 1), run=run)
    trained = [result.trial for result in read_trials(run)]
    assert len(trained) == len(set(trained)) == 6
    assert found == profile(study(), FORKS[:3], seeds=(0, 1))


WILD = study(replace(QUICK, lr=1e30))
"""Blocks learn too fast; the head alone has a rate of its own."""


def test_forks_that_cannot_be_trained_are_left_out_aloud(tmp_path: Path) -> None:
    said: list[str] = []
    found = profile(WILD, FORKS[:3], seeds=(0, 1), run=tmp_path, say=said.append)
    assert [row.fork for row in found.rows] == ["none"]
    assert found.rows == profile(WILD, FORKS[:1], seeds=(0, 1)).rows
    assert [line.rpartition(": training diverged")[0] for line in said] == [
        "left out: 2", "left out: 2,4 siamese"
    ]  # fmt: skip
    with pytest.raises(CheckFailed, match="2 forks could not be trained: 2; 2,4 siamese") as caught:
        complete(found, FORKS[:3])
    assert all(option in caught.value.hint for option in ("--lr", "--batch-size"))
    assert complete(found, FORKS[:1]) is found


def test_where_none_can_be_trained_there_is_no_profile() -> None:
    with pytest.raises(CheckFailed, match="2 of 2 trials failed: 2 seed 0"):
        profile(WILD, FORKS[1:2], seeds=(0, 1))


def test_nothing_to_train_and_blocks_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="0 forks and 3 seeds"):
        profile(study(), [])
    with pytest.raises(InputError, match="1 forks and 0 seeds"):
        profile(study(), [Fork((1,))], seeds=())
    with pytest.raises(LayersError, match=r"1\.\.4"):
        profile(study(), [Fork((5,))], seeds=(0,))


# Which forks


def names(forks: tuple[Fork, ...]) -> list[str]:
    return [str(fork) for fork in forks]


def test_spans_are_runs_of_consecutive_blocks() -> None:
    assert names(forks_of(4, (1, 1))) == ["1", "2", "3", "4"]
    assert names(forks_of(4, (2, 3))) == ["1-2", "2-3", "3-4", "1-3", "2-4"]


def test_pairs_are_all_of_them_and_nothing_comes_twice() -> None:
    assert names(forks_of(4, pairs=True)) == ["1-2", "1,3", "1,4", "2-3", "2,4", "3-4"]
    assert len(forks_of(16, (1, 2), pairs=True)) == 16 + comb(16, 2)
    assert names(forks_of(3, (1, 1), others=[Fork("all"), Fork((2,))])) == ["all", "2", "1", "3"]


def test_each_fork_comes_also_in_other_ways_but_the_two_ends() -> None:
    half = Pruning(0.5)
    found = forks_of(
        2, others=[Fork(), Fork((1,)), Fork("all")], siamese=True, scratch=True, prune=[half, replace(half, ratio=0.7)]
    )  # fmt: skip
    assert names(found) == [
        "none", "1", "all", "1 siamese", "1 from scratch", "1 pruned 0.5 local l1", "1 pruned 0.7 local l1",
    ]  # fmt: skip


def test_pruned_forks_have_fewer_parameters() -> None:
    pytest.importorskip("torch_pruning")
    thin = replace(Pruning(0.5), round_to=1)
    found = profile(study(QUICK), forks_of(4, others=[Fork((2, 3))], prune=[thin]), seeds=(0,))
    assert [row.prune for row in found.rows] == [None, thin]
    assert found.rows[1].parameters < found.rows[0].parameters


def test_forks_that_cannot_be_pruned_are_told_by_name_and_reason() -> None:
    """Block 1 of MobileNetV2 has no expansion: nothing lies inside it."""
    pytest.importorskip("torch_pruning")
    tiny = replace(study(), backbone=prunable("mobilenet"))
    half, little = Pruning(0.5), Pruning(0.1, round_to=64)
    forks = forks_of(3, (1, 2), prune=[half, little])
    found = refusals(tiny, forks)
    assert {fork for fork in found if fork.prune == half} == {Fork((1,), prune=half)}
    assert "block 1 (features.1) cannot be pruned" in found[Fork((1,), prune=half)].message
    assert "removes nothing from block 2" in found[Fork((2,), prune=little)].message
    assert not [fork for fork in found if not fork.prune]
