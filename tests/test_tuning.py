"""Tuning trains the chosen blocks and a new head, nothing else; cached prefixes change only the time."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import nn

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.data.augment import prepare_batch
from subtune_deploy.data.dataset import Data, Dataset
from subtune_deploy.errors import CheckFailed, InputError, LayersError, TaskError
from subtune_deploy.models import Model
from subtune_deploy.spec import InputSpec
from subtune_deploy.tasks import base_task, standalone, tuned_blocks
from subtune_deploy.tuning.settings import Fork, TrainConfig
from subtune_deploy.tuning.train import TunedTask, tune

SPEC = InputSpec((3, 16, 16), (0.5,) * 3, (0.5,) * 3, crop=1.0)
QUICK = TrainConfig(epochs=3, batch_size=8, lr=1e-2, probe_lr=1e-1)
WIDTH = 6


class Norm(nn.BatchNorm2d):
    """Remembers, for the test, which instances ran last, which ran in training mode, and on how many pictures."""

    ran: ClassVar[dict[str, nn.BatchNorm2d]] = {}
    trained: ClassVar[set[str]] = set()
    sizes: ClassVar[list[int]] = []

    def __init__(self, name: str) -> None:
        super().__init__(WIDTH)
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Norm.ran[self.name] = self
        if self.training:
            Norm.trained.add(self.name)
            Norm.sizes.append(len(x))
        return super().forward(x)


class Block(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.norm = Norm(name)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.act(self.norm(self.conv1(x)))) + x


class Skipping(nn.Module):
    """Three blocks; the first one's output, and the batch's size, are used again behind the third."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(f"block{index}") for index in (1, 2, 3))
        self.norm = Norm("last")
        self.head = nn.Linear(WIDTH * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = x.shape[0]
        first = self.blocks[0](self.stem(x))
        last = self.norm(self.blocks[2](self.blocks[1](first)) + first)
        return self.head(nn.functional.adaptive_avg_pool2d(last, 2).reshape(count, -1))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    module = Skipping().eval().requires_grad_(False)
    return trace(Model("skipping", module, SPEC, (), "random"))


@pytest.fixture(scope="module")
def stripes() -> Data:
    """Upright or level stripes in noise, at a random phase: brightness tells nothing."""
    return Data(_stripes(40, seed=1), _stripes(31, seed=2))


def _stripes(count: int, seed: int) -> Dataset:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pictures = []
    for label in labels:
        wave = np.sin(np.arange(16) * np.pi / 2 + random.uniform(0, 6)) * 90 + 128
        picture = np.tile(wave, (16, 1)) + random.normal(0, 10, (16, 16))
        pictures.append((picture.T if label else picture).clip(0, 255).astype(np.uint8))
    return Dataset(tuple(pictures), labels.astype(np.int64), ("upright", "level"))


def _tuned(
    backbone: Backbone,
    data: Data,
    layers: tuple[int, ...] | Literal["all"],
    config: TrainConfig = QUICK,
) -> TunedTask:
    return tune(backbone, "stripes", data.train, data.test, Fork(layers), config)


def _weights(tuned: TunedTask) -> dict[str, torch.Tensor]:
    found = {}
    for unit, version in tuned.task.versions.items():
        assert isinstance(version, nn.Module)
        found |= {f"{unit}.{name}": tensor for name, tensor in version.state_dict().items()}
    return found


@pytest.mark.parametrize("layers", [(), (3,), (2, 3), (1, 3)])
def test_only_the_chosen_blocks_and_the_head_are_the_tasks_own(
    backbone: Backbone, stripes: Data, layers: tuple[int, ...]
) -> None:
    tuned = _tuned(backbone, stripes, layers)
    assert list(tuned.task.versions) == [*(f"block{index}" for index in layers), "head"]
    assert tuned_blocks(backbone, tuned.task) == layers
    assert tuned.task.name == "stripes"
    assert tuned.task.classes == 2
    assert tuned.task.labels == ("upright", "level")
    assert tuned.parameters == sum(
        parameter.numel() for version in tuned.task.versions.values() for parameter in version.parameters()
    )
    assert not tuned.failure


def test_what_is_frozen_stays_bit_for_bit(backbone: Backbone, stripes: Data) -> None:
    Norm.ran.clear()
    Norm.trained.clear()
    _tuned(backbone, stripes, (2,))
    assert Norm.trained == {"block2"}
    for name, own in Norm.ran.items():
        base = next(each for each in backbone.model.modules() if isinstance(each, Norm) and each.name == name)
        states = zip(own.state_dict().values(), base.state_dict().values(), strict=True)
        assert own is not base
        assert all(torch.equal(mine, bases) for mine, bases in states) == (name != "block2")
        assert (own.weight.grad is None) == (name != "block2")


def test_every_tuned_weight_and_statistic_moves(backbone: Backbone, stripes: Data) -> None:
    tuned = _tuned(backbone, stripes, (2,)).task.versions["block2"]
    assert isinstance(tuned, nn.Module)
    base = backbone.model.get_submodule("blocks.1").state_dict()
    assert [name for name, tensor in tuned.state_dict().items() if torch.equal(tensor, base[name])] == []


def test_the_backbone_is_left_as_it_was(backbone: Backbone, stripes: Data) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    _tuned(backbone, stripes, "all")
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.model.state_dict().items())
    assert not any(module.training for module in backbone.model.modules())
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert backbone.model.blocks[0].act.inplace


@pytest.mark.parametrize("layers", [(), (3,), (2,), (1, 3)])
def test_a_cached_prefix_gives_the_weights_of_an_uncached_one(
    backbone: Backbone, stripes: Data, layers: tuple[int, ...]
) -> None:
    cached = _tuned(backbone, stripes, layers)
    uncached = _tuned(backbone, stripes, layers, replace(QUICK, cache_bytes=0))
    for name, weight in _weights(cached).items():
        torch.testing.assert_close(weight, _weights(uncached)[name], rtol=1e-3, atol=1e-4)
    assert cached.accuracy == uncached.accuracy


def test_accuracy_is_that_of_the_stand_alone_model(backbone: Backbone, stripes: Data) -> None:
    tuned = _tuned(backbone, stripes, (2, 3), TrainConfig(epochs=1, batch_size=8))
    pictures = prepare_batch(stripes.test, range(len(stripes.test)), SPEC)
    answers = standalone(backbone, tuned.task)(pictures).argmax(1).numpy()
    assert tuned.accuracy == (answers == stripes.test.labels).mean()


def test_a_separable_problem_is_learnt(backbone: Backbone, stripes: Data) -> None:
    tuned = _tuned(backbone, stripes, (2, 3), TrainConfig(epochs=15, batch_size=8, lr=1e-2))
    assert tuned.accuracy >= 0.95
    assert tuned.history[-1].loss < 0.5 * tuned.history[0].loss
    assert len(tuned.history) == 15


def test_a_task_is_ready_to_deploy(backbone: Backbone, stripes: Data) -> None:
    for version in _tuned(backbone, stripes, (3,)).task.versions.values():
        assert isinstance(version, nn.Module)
        assert not version.training
        assert not any(parameter.requires_grad for parameter in version.parameters())
        assert all(tensor.is_contiguous() for tensor in version.state_dict().values())


def test_one_seed_one_task(backbone: Backbone, stripes: Data) -> None:
    state = torch.get_rng_state()
    first, again = _tuned(backbone, stripes, (3,)), _tuned(backbone, stripes, (3,))
    other = _tuned(backbone, stripes, (3,), replace(QUICK, seed=1))
    assert all(torch.equal(weight, _weights(again)[name]) for name, weight in _weights(first).items())
    assert not torch.equal(_weights(first)["head.weight"], _weights(other)["head.weight"])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("count, batch_size", [(9, 4), (3, 2), (5, 2)])
def test_a_left_over_picture_breaks_no_batch_norm(backbone: Backbone, count: int, batch_size: int) -> None:
    """None comes alone."""
    Norm.sizes.clear()
    data = Data(_stripes(count, seed=1), _stripes(2, seed=2))
    assert 0 <= _tuned(backbone, data, (3,), TrainConfig(epochs=1, batch_size=batch_size)).accuracy <= 1
    assert sum(Norm.sizes) == count
    assert min(Norm.sizes) > 1


def test_progress_counts_pictures_and_epochs(backbone: Backbone, stripes: Data) -> None:
    told: list[tuple[str, int, int]] = []
    tune(
        backbone, "a", stripes.train, stripes.test, Fork(), QUICK, progress=lambda *event: told.append(event)
    )
    assert told == [
        ("features", 40, 40), ("epochs", 1, 3), ("epochs", 2, 3), ("epochs", 3, 3), ("testing", 31, 31)
    ]  # fmt: skip


def test_an_interrupted_test_leaves_no_trace_in_torch(backbone: Backbone, stripes: Data) -> None:
    def interrupt(what: str, done: float, total: float) -> None:
        if what == "testing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        tune(backbone, "a", stripes.train, stripes.test, Fork(), QUICK, progress=interrupt)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        del caught  # what the interrupted call left unfinished ends here
        gc.collect()
        assert not torch.is_grad_enabled()


def test_bad_requests_are_refused(backbone: Backbone, stripes: Data) -> None:
    with pytest.raises(LayersError, match=r"blocks 4 are outside 1\.\.3"):
        _tuned(backbone, stripes, (3, 4))
    with pytest.raises(TaskError, match="unfit"):
        tune(backbone, "base", stripes.train, stripes.test, Fork((3,)))
    other = Dataset(stripes.test.pictures, stripes.test.labels, ("a", "b", "c"))
    with pytest.raises(InputError, match="of 2 and 3 classes"):
        tune(backbone, "a", stripes.train, other, Fork((3,)))
    for names, test in ((("upright",), None), (("upright", "level"), stripes.test)):
        one = Dataset(stripes.train.pictures, np.zeros(40, np.int64), names)
        with pytest.raises(InputError, match="all pictures to train on are of one class, 'upright'"):
            tune(backbone, "a", one, test or one, Fork((3,)))
    few = Dataset(stripes.train.pictures[:1], stripes.train.labels[:1], stripes.train.classes)
    with pytest.raises(InputError, match="1 pictures to train on"):
        tune(backbone, "a", few, stripes.test, Fork((3,)))


@pytest.mark.parametrize(
    "setting",
    [{"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"weight_decay": -1.0}, {"label_smoothing": 1.0}],
)
def test_settings_that_cannot_train_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(InputError):
        TrainConfig(**setting)


def test_divergence_is_no_result(backbone: Backbone, stripes: Data) -> None:
    with pytest.raises(CheckFailed, match="diverged"):
        _tuned(backbone, stripes, (3,), TrainConfig(epochs=30, batch_size=8, lr=1e18))


def test_a_new_head_does_not_start_from_the_bases(backbone: Backbone, stripes: Data) -> None:
    barely = TrainConfig(epochs=1, batch_size=64, probe_lr=1e-12, weight_decay=0.0)
    new = _weights(_tuned(backbone, stripes, (), barely))["head.weight"]
    assert new.shape == (2, WIDTH * 4)
    assert not torch.allclose(new, backbone.model.head.weight[:2])
    assert base_task(backbone).classes == 5
