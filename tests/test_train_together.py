"""Forks that train together come out as each does alone, whatever interrupts them, in however little memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny_networks import SIZE, Residual, backbone, lively
from tiny_studies import pictures
from torch import Tensor, nn

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.data.augment import prepare_batch
from subtune_deploy.data.dataset import Dataset, subset
from subtune_deploy.errors import CheckFailed, InputError, LayersError, Unavailable
from subtune_deploy.models import Model
from subtune_deploy.spec import InputSpec, Pruning
from subtune_deploy.tasks import standalone
from subtune_deploy.tuning.learner import Learner
from subtune_deploy.tuning.settings import Fork, TrainConfig, resolved
from subtune_deploy.tuning.train import TunedTask, answers, train_together, tune
from subtune_deploy.tuning.values import values

TRAIN, TEST = pictures(24, 1), pictures(12, 2)
QUICK = TrainConfig(epochs=2, batch_size=8, lr=1e-2, probe_lr=1e-1)
BEFORE = Fork((2, 3), prune=Pruning(0.5, round_to=1))
AFTER = Fork((3,), prune=Pruning(0.5, round_to=1, when="after"))
FORKS = (
    Fork(),
    Fork((4,)),
    Fork((2, 3)),
    Fork((3,), siamese=True),
    Fork("all"),
    Fork((4,), init="random"),
    BEFORE,
    AFTER,
)


class Dropping(nn.Module):
    """A block that draws random numbers while it trains. `most`: how many of its kind may train at a time."""

    most: ClassVar[int] = 1 << 30
    steps: ClassVar[int] = 1 << 30
    """How many more batches may pass before memory runs out."""
    training_ones: ClassVar[weakref.WeakSet[nn.Module]] = weakref.WeakSet()

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = Residual(width, width)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            Dropping.training_ones.add(self)
            Dropping.steps -= 1
            if len(Dropping.training_ones) > Dropping.most and Dropping.steps < 0:
                torch.empty(1 << 60)
        return self.dropout(self.body(x))


class DroppingNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Dropping() for _ in range(4))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> Backbone:
    return backbone()


@pytest.fixture(scope="module")
def dropping() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = lively(DroppingNet()).eval().requires_grad_(False)
    return trace(Model("dropping", module, InputSpec(SIZE), (), "random"), r"blocks\.\d")


@pytest.fixture
def little_memory() -> Iterator[type[Dropping]]:
    """For a test to say how little."""
    Dropping.training_ones = weakref.WeakSet()
    Dropping.steps = 0
    yield Dropping
    Dropping.most = Dropping.steps = 1 << 30


def together(
    network: Backbone, forks: Sequence[Fork], config: TrainConfig = QUICK, **more: object
) -> tuple[TunedTask, ...]:
    return train_together(network, forks, TRAIN, TEST, config, **more)  # type: ignore[arg-type]


def weights(tuned: TunedTask) -> dict[str, Tensor]:
    found = {}
    for unit, version in tuned.task.versions.items():
        state = version.state_dict() if isinstance(version, nn.Module) else {"": version}
        found |= {f"{unit}.{name}": tensor for name, tensor in state.items()}
    return found


def alike(one: TunedTask, other: TunedTask, tolerance: float = 1e-5) -> None:
    """Also in the names and shapes of weights; `tolerance` 0: bit for bit."""
    assert not one.failure
    assert (one.accuracy, one.parameters) == (other.accuracy, other.parameters)
    assert replace(one.task, versions={}) == replace(other.task, versions={})
    torch.testing.assert_close(weights(one), weights(other), rtol=tolerance, atol=tolerance)
    for mine, others in zip(one.history, other.history, strict=True):
        assert mine.loss == pytest.approx(others.loss, rel=tolerance)
        assert mine.accuracy == others.accuracy


# Together as alone


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_forks_that_train_together_come_out_as_each_does_alone(network: Backbone, augment: str) -> None:
    config = replace(QUICK, augment=augment)
    found = together(network, FORKS, config)
    for fork, tuned in zip(FORKS, found, strict=True):
        alone = tune(network, "task", TRAIN, TEST, fork, config)
        alike(tuned, alone)
        assert len(tuned.history) == (4 if fork is AFTER else 2)
        assert (tuned.task.siamese, tuned.task.prune) == (fork.siamese, fork.prune)
    assert len({tuple(tuned.history) for tuned in found}) == len(FORKS)


def test_dropout_is_drawn_as_if_a_fork_were_alone(dropping: Backbone) -> None:
    forks = (Fork((2,)), Fork((4,)), Fork((1, 3)), Fork("all"))
    for fork, tuned in zip(forks, together(dropping, forks), strict=True):
        alike(tuned, tune(dropping, "task", TRAIN, TEST, fork, QUICK))
    other = together(dropping, forks, replace(QUICK, seed=1))
    assert all(one.history != two.history for one, two in zip(together(dropping, forks), other, strict=True))


def test_the_order_of_forks_does_not_matter(network: Backbone) -> None:
    forwards, backwards = together(network, FORKS), together(network, tuple(reversed(FORKS)))
    for one, two in zip(forwards, reversed(backwards), strict=True):
        alike(one, two)


def test_a_fork_that_is_given_twice_is_trained_twice_alike(network: Backbone, tmp_path: Path) -> None:
    one, two = together(network, (AFTER, AFTER), keep=tmp_path / "a.partial")
    alike(one, two, 0)


def test_pruned_forks_are_thinner(network: Backbone) -> None:
    whole, before, after = together(network, (Fork((2, 3)), BEFORE, AFTER))
    assert before.parameters < whole.parameters
    assert weights(before)["block2.conv1.weight"].shape == (2, 4, 3, 3)
    assert weights(after)["block3.conv1.weight"].shape == (2, 4, 3, 3)


def test_the_callers_random_state_and_grad_mode_are_left_alone(network: Backbone) -> None:
    before = torch.get_rng_state()
    with torch.no_grad():
        together(network, FORKS[:2])
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_blocks_and_devices_are_refused_before_anything_is_trained(network: Backbone) -> None:
    told: list[object] = []
    with pytest.raises(LayersError, match=r"blocks 5 are outside 1\.\.4"):
        together(network, (Fork(), Fork((5,))), progress=lambda *event: told.append(event))
    if not torch.cuda.is_available():
        with pytest.raises(Unavailable, match="there is no GPU"):
            together(network, (Fork(),), replace(QUICK, device="cuda"))
    assert told == []


def test_pictures_of_one_class_are_refused_however_many_are_named(network: Backbone) -> None:
    with pytest.raises(InputError, match="all pictures to train on are of one class, 'b'"):
        train_together(network, (Fork(),), of_class(TRAIN, 1), of_class(TEST, 1), QUICK)


def test_a_few_pictures_may_by_chance_be_of_one_class(network: Backbone) -> None:
    (tuned,) = train_together(network, (Fork(),), of_class(TRAIN, 1), TEST, QUICK)
    assert (tuned.failure, tuned.accuracy) == ("", pytest.approx(1 / 3))


def of_class(data: Dataset, label: int) -> Dataset:
    return subset(data, np.flatnonzero(data.labels == label))


def test_what_cannot_be_pruned_afterwards_is_refused_before_anything_is_trained(network: Backbone) -> None:
    nothing = Fork((3,), prune=Pruning(0.01, when="after"))
    told: list[object] = []
    with pytest.raises(InputError, match="removes nothing"):
        together(network, (Fork(), nothing), progress=lambda *event: told.append(event))
    assert told == []


def test_a_siamese_stream_that_cannot_be_narrowed_afterwards_is_refused_before_anything_is_trained(
    network: Backbone,
) -> None:
    """Its head, which reads the base as well, is there before training only in what a training begins with."""
    fork = Fork((3, 4), siamese=True, prune=Pruning(0.5, round_to=1, when="after", outer=True))
    told: list[object] = []
    with pytest.raises(InputError, match="a Siamese task hands on cannot be thinned after training"):
        together(network, (Fork(), fork), progress=lambda *event: told.append(event))
    assert told == []


# Failures


def test_a_fork_that_diverges_fails_alone(network: Backbone) -> None:
    """Linear probing has a learning rate of its own."""
    config = replace(QUICK, probe_lr=1e30)
    probe, tuned = together(network, (Fork(), Fork((4,))), config)
    assert probe.failure.startswith("training diverged in epoch ")
    assert (probe.accuracy, probe.history, probe.parameters, probe.task.versions) == (0.0, (), 0, {})
    alike(tuned, together(network, (Fork((4,)),), config)[0])
    with pytest.raises(CheckFailed, match="training diverged in epoch ") as caught:
        tune(network, "task", TRAIN, TEST, Fork(), config)
    assert "--lr" in caught.value.hint


EMPTIED = Fork((1, 2, 3, 4), prune=Pruning(0.7, "global", round_to=1, when="after"))
"""At a high rate some layer's channels all come to be among the lightest, for some seeds."""


def test_a_fork_that_cannot_be_thinned_after_training_fails_alone(network: Backbone, tmp_path: Path) -> None:
    configs = [replace(QUICK, lr=0.3, seed=seed) for seed in range(9)]
    config = next(each for each in configs if together(network, (EMPTIED,), each)[0].failure)
    forks, keep = (Fork((2,)), EMPTIED, AFTER), tmp_path / "forks.partial"
    found = together(network, forks, config)
    assert found[1].failure.startswith("pruning after training failed: pruning would empty blocks.")
    assert "; give a smaller ratio" in found[1].failure
    assert (found[1].history, found[1].task.versions) == ((), {})
    for place in (0, 2):
        alike(found[place], together(network, (forks[place],), config)[0])
    interrupted_after(3, network, forks, keep, config)
    again = together(network, forks, config, keep=keep)
    assert [each.failure for each in again] == [each.failure for each in found]
    with pytest.raises(CheckFailed, match="pruning after training failed"):
        tune(network, "task", TRAIN, TEST, EMPTIED, config)


def test_after_a_divergence_other_settings_can_be_tried_in_the_same_place(
    network: Backbone, tmp_path: Path
) -> None:
    keep = tmp_path / "task.partial"
    with pytest.raises(CheckFailed, match="diverged"):
        tune(network, "task", TRAIN, TEST, Fork(), replace(QUICK, probe_lr=1e30), keep=keep)
    tune(network, "task", TRAIN, TEST, Fork(), QUICK, keep=keep)


def test_when_all_have_diverged_no_more_batches_are_prepared(network: Backbone, tmp_path: Path) -> None:
    told: list[tuple[str, float, float]] = []
    config = replace(QUICK, epochs=50, probe_lr=1e30)
    together(network, (Fork(),), config, progress=lambda *event: told.append(event))
    assert len([event for event in told if event[0] == "epochs"]) < 50
    assert not [event for event in told if event[0] == "testing"]


# Interruptions


class Interrupted(Exception):  # noqa: N818 - not an error
    """Stands for whatever ends a process."""


def interrupted_after(
    epoch: int, network: Backbone, forks: Sequence[Fork], keep: Path, config: TrainConfig = QUICK
) -> None:
    def stop(what: str, done: float, total: float) -> None:
        if (what, done) == ("epochs", epoch):
            raise Interrupted

    with pytest.raises(Interrupted):
        together(network, forks, config, keep=keep, progress=stop)
    assert keep.is_file()


@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_training_goes_on_where_it_was_interrupted(network: Backbone, tmp_path: Path, epoch: int) -> None:
    """After epoch 2 all but the one that is pruned then are ready. The last epoch is not kept, but trained again."""
    keep = tmp_path / "forks.partial"
    interrupted_after(epoch, network, FORKS, keep)
    epochs: list[float] = []

    def progress(what: str, done: float, total: float) -> None:
        if what == "epochs":
            epochs.append(done)

    found = together(network, FORKS, keep=keep, progress=progress)
    assert epochs == list(range(min(epoch, 3) + 1, 5))
    for one, two in zip(found, together(network, FORKS), strict=True):
        alike(one, two, 0)
    assert list(tmp_path.iterdir()) == [keep], "what came of it is not on the disk yet"


def test_augmentation_and_dropout_go_on_as_if_nothing_had_happened(
    dropping: Backbone, tmp_path: Path
) -> None:
    config = replace(QUICK, epochs=3, augment="crop-flip")
    forks, keep = (Fork((2,)), Fork("all")), tmp_path / "forks.partial"
    for epoch in (1, 2):
        interrupted_after(epoch, dropping, forks, keep, config)
    for one, two in zip(
        together(dropping, forks, config, keep=keep), together(dropping, forks, config), strict=True
    ):
        alike(one, two, 0)


def test_a_training_can_go_on_with_more_forks_and_in_other_memory(network: Backbone, tmp_path: Path) -> None:
    keep = tmp_path / "forks.partial"
    interrupted_after(1, network, FORKS[:3], keep)
    found = together(network, FORKS[1:5], replace(QUICK, memory_bytes=10**9), keep=keep)
    for one, two in zip(found, together(network, FORKS[1:5]), strict=True):
        alike(one, two)


def test_one_that_diverged_before_the_interruption_has_still_diverged(
    network: Backbone, tmp_path: Path
) -> None:
    keep, config = tmp_path / "forks.partial", replace(QUICK, probe_lr=1e30)
    interrupted_after(2, network, FORKS[:2], keep, config)
    found, expected = together(network, FORKS[:2], config, keep=keep), together(network, FORKS[:2], config)
    assert found[0].failure == expected[0].failure != ""
    alike(found[1], expected[1], 0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lr": 1e-3}, "lr was 0.01, is 0.001"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"augment": "crop"}, "augment was none, is crop"),
    ],
)
def test_a_file_of_another_training_is_refused_and_stays(
    network: Backbone, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    keep = tmp_path / "forks.partial"
    interrupted_after(1, network, FORKS[:2], keep)
    before = keep.read_bytes()
    with pytest.raises(InputError, match="keeps a training that was begun differently") as caught:
        together(network, FORKS[:2], replace(QUICK, **change), keep=keep)  # type: ignore[arg-type]
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert keep.read_bytes() == before
    with pytest.raises(InputError, match="training pictures was "):
        train_together(network, FORKS[:2], TEST, TRAIN, QUICK, keep=keep)
    with pytest.raises(InputError, match="weights was "):
        together(backbone(seed=1), FORKS[:2], keep=keep)
    assert keep.read_bytes() == before


@pytest.mark.parametrize(
    "fork", [Fork((4,)), Fork((3,), siamese=True), Fork((3,), prune=Pruning(0.5))], ids=str
)
def test_a_task_does_not_take_the_place_of_another_forks_training(
    network: Backbone, tmp_path: Path, fork: Fork
) -> None:
    keep = tmp_path / "task.partial"
    interrupted_after(1, network, (Fork((3,)),), keep)
    before = keep.read_bytes()
    with pytest.raises(
        InputError, match=f"keeps a training of fork 3, where {fork} is to be trained"
    ) as caught:
        tune(network, "task", TRAIN, TEST, fork, QUICK, keep=keep)
    assert caught.value.hint == "give another -o, or delete it to begin anew"
    assert keep.read_bytes() == before
    tune(network, "task", TRAIN, TEST, Fork((3,)), QUICK, keep=keep)


def test_a_damaged_file_is_refused_in_one_line_and_stays(network: Backbone, tmp_path: Path) -> None:
    keep = tmp_path / "forks.partial"
    interrupted_after(1, network, FORKS[:2], keep)
    whole = keep.read_bytes()
    torch.save({"about": 5, "forks": {}}, tmp_path / "odd")
    torch.save([1, 2], tmp_path / "list")
    others = [(tmp_path / name).read_bytes() for name in ("odd", "list")]
    for damaged in (b"", b"hello", whole[: len(whole) // 2], whole[:-30], *others):
        keep.write_bytes(damaged)
        with pytest.raises(InputError, match="keeps no training that can be read") as caught:
            together(network, FORKS[:2], keep=keep)
        assert "\n" not in caught.value.message
        assert caught.value.hint == "delete it to begin anew"
        assert keep.read_bytes() == damaged


# Memory


@pytest.mark.parametrize("most, halvings", [(3, 1), (2, 1), (1, 3)])
def test_where_memory_runs_out_fewer_train_at_a_time(
    dropping: Backbone, little_memory: type[Dropping], most: int, halvings: int
) -> None:
    """Those that train are counted while they live: a failed attempt must have let go of its own."""
    forks = (Fork((1,)), Fork((2,)), Fork((3,)), Fork((4,)))
    expected = together(dropping, forks)
    said: list[str] = []
    little_memory.most, little_memory.training_ones = most, weakref.WeakSet()
    found = together(dropping, forks, say=said.append)
    for one, two in zip(found, expected, strict=True):
        alike(one, two)
    assert said[0] == "memory ran out while 4 forks trained together: 2 at a time from here on"
    assert len(said) == halvings


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("steps", [0, 13, 18])
def test_memory_may_run_out_at_any_time(
    dropping: Backbone, little_memory: type[Dropping], tmp_path: Path, kept: bool, steps: int
) -> None:
    """Two forks take 6 steps an epoch: at once, and in the midst of the third or fourth. No step is taken twice."""
    forks, config = (Fork((2,)), Fork((4,))), replace(QUICK, epochs=4)
    expected = together(dropping, forks, config)
    little_memory.most, little_memory.steps = 1, steps
    little_memory.training_ones = weakref.WeakSet()
    said: list[str] = []
    keep = tmp_path / "forks.partial" if kept else None
    found = together(dropping, forks, config, keep=keep, say=said.append)
    assert len(said) == 1
    for one, two in zip(found, expected, strict=True):
        alike(one, two)
    assert list(tmp_path.iterdir()) == ([keep] if keep else [])


def test_memory_may_run_out_and_then_the_second_half_be_interrupted(
    dropping: Backbone, little_memory: type[Dropping], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of the first half stays what it was after the epoch that it is kept as."""
    forks, config, keep = (Fork((2,)), Fork((4,))), replace(QUICK, epochs=4), tmp_path / "forks.partial"
    expected, real = together(dropping, forks, config), Learner.learn
    little_memory.most, little_memory.steps = 1, 13
    little_memory.training_ones = weakref.WeakSet()

    def learn(self: Learner, *of: Any) -> None:
        if self.fork == forks[1] and self.epoch == 3:
            raise KeyboardInterrupt
        real(self, *of)

    monkeypatch.setattr(Learner, "learn", learn)
    with pytest.raises(KeyboardInterrupt):
        together(dropping, forks, config, keep=keep)
    monkeypatch.setattr(Learner, "learn", real)
    little_memory.most = 2
    for one, two in zip(together(dropping, forks, config, keep=keep), expected, strict=True):
        alike(one, two)


def test_a_fork_that_never_fits_fails_alone(dropping: Backbone, little_memory: type[Dropping]) -> None:
    said: list[str] = []
    little_memory.most = 0
    none, one, two = together(dropping, (Fork(), Fork((3,)), Fork((4,))), say=said.append)
    alike(none, together(dropping, (Fork(),))[0])
    for tuned in (one, two):
        assert tuned.failure == "memory ran out in batches of 8"
        assert tuned.history == ()
    assert [text.split(" trained")[0] for text in said] == [
        "memory ran out while 3 forks",
        "memory ran out while 2 forks",
    ]
    with pytest.raises(CheckFailed, match="memory ran out in batches of 8") as caught:
        tune(dropping, "task", TRAIN, TEST, Fork((3,)), QUICK)
    assert "--batch-size" in caught.value.hint


class Broken(Residual):
    """Its own fault, and not memory's."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("something else")
        return super().forward(x)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    module = DroppingNet()
    module.blocks[3] = Broken(4, 4)
    network = trace(
        Model("broken", module.eval().requires_grad_(False), InputSpec(SIZE), (), "random"), r"blocks\.\d"
    )
    with pytest.raises(RuntimeError, match="something else"):
        together(network, (Fork((3,)), Fork((4,))))


# Precision, answers


def test_bf16_trains_and_stays_near_fp32(network: Backbone) -> None:
    forks, config = (Fork((3, 4)), Fork("all")), replace(QUICK, epochs=6)
    mixed = together(network, forks, replace(config, precision="bf16"))
    for one, two in zip(mixed, together(network, forks, config), strict=True):
        assert one.history != two.history
        for mine, others in zip(one.history, two.history, strict=True):
            assert mine.loss == pytest.approx(others.loss, rel=0.1, abs=0.05)
        assert one.history[-1].loss < one.history[0].loss
        assert all(tensor.dtype != torch.bfloat16 for tensor in weights(one).values())


@pytest.mark.parametrize("fork", [Fork(), Fork((2, 3), siamese=True), Fork("all"), BEFORE], ids=str)
def test_answers_are_the_stand_alone_models(network: Backbone, fork: Fork) -> None:
    (tuned,) = together(network, (fork,))
    model = standalone(network, tuned.task)
    expected = model(prepare_batch(TEST, range(len(TEST)), network.input)).numpy()
    found = answers(network, tuned.task, TEST, replace(QUICK, augment="crop"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert tuned.accuracy == (found.argmax(1) == TEST.labels).mean()


def test_answers_leave_the_task_and_the_backbone_as_they_were(network: Backbone) -> None:
    (tuned,) = together(network, (Fork((2,)),))
    before = {name: tensor.clone() for name, tensor in weights(tuned).items()}
    answers(network, tuned.task, TEST, QUICK)
    torch.testing.assert_close(weights(tuned), before, rtol=0, atol=0)
    assert not any(module.training for module in network.model.modules())


# The optimiser


def learner(network: Backbone, fork: Fork, config: TrainConfig) -> Learner:
    with torch.random.fork_rng():
        return Learner(network, network.model, fork, 3, resolved(config, "convolutional", len(TRAIN)))


def test_weight_decay_reaches_the_optimiser(network: Backbone) -> None:
    config = replace(QUICK, weight_decay=0.25)
    made = learner(network, Fork((2,)), config)
    assert [group["weight_decay"] for group in made.optimizer.param_groups] == [0.25]
    assert isinstance(made.optimizer, torch.optim.AdamW)
    strong, none = (
        together(network, (Fork((2,)),), replace(QUICK, weight_decay=decay))[0] for decay in (20.0, 0.0)
    )
    assert _size(strong) < 0.8 * _size(none)


def _size(tuned: TunedTask) -> float:
    return float(weights(tuned)["block2.conv2.weight"].norm())


def test_label_smoothing_reaches_the_loss(network: Backbone) -> None:
    """A head that hardly moves: its mean loss is that of what it starts from."""
    config = replace(QUICK, epochs=1, probe_lr=1e-12, label_smoothing=0.9)
    (tuned,) = together(network, (Fork(),), config)
    shown, labels = prepare_batch(TRAIN, range(len(TRAIN)), network.input), torch.from_numpy(TRAIN.labels)
    scores = standalone(network, tuned.task)(shown)
    expected = nn.functional.cross_entropy(scores, labels, label_smoothing=0.9)
    assert tuned.history[0].loss == pytest.approx(float(expected), rel=1e-5)
    assert tuned.history[0].loss != pytest.approx(
        float(nn.functional.cross_entropy(scores, labels)), rel=1e-4
    )
    assert tuned.history[0].accuracy == pytest.approx(float((scores.argmax(1) == labels).float().mean()))


@pytest.mark.parametrize("fork", [Fork(), Fork((4,)), Fork("all"), AFTER], ids=str)
def test_the_rate_follows_a_cosine_to_0_in_each_training(network: Backbone, fork: Fork) -> None:
    made, steps = learner(network, fork, QUICK), 3
    fetch = values(network, network.model, TRAIN, made.suffix.needs, QUICK)
    rates = []
    with torch.random.fork_rng():
        for _ in range(made.epochs):
            for step in range(steps):
                indices = torch.arange(8 * step, 8 * step + 8)
                made.learn(fetch(indices), torch.from_numpy(TRAIN.labels)[indices], step, steps)
                rates += [group["lr"] for group in made.optimizer.param_groups]
            made.end_epoch(24)
    full = QUICK.lr if fork.layers else QUICK.probe_lr
    once = [full * (1 + math.cos(math.pi * done / 6)) / 2 for done in range(6)]
    assert rates == pytest.approx(once * (2 if fork is AFTER else 1))
    assert rates[0] == full
    made._set_rate(1.0)
    assert [group["lr"] for group in made.optimizer.param_groups] == [pytest.approx(0)]
