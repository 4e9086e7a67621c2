"""SubTuning of one task (paper, section 2): a few blocks and a new head are trained, all else stays as it is.

    data = load_data("digits", train=500, test=1500)
    tuned = tune(backbone, "digits", data.train, data.test, layers=(9, 10, 11))
    tuned.accuracy, tuned.task

Without layers it is linear probing. Frozen modules stay in eval mode, so that their batch-norm statistics do
not move; tuned blocks train with their own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..backends.base import Progress, silent
from ..errors import CheckFailed, InputError, LayersError
from ..heads import MATRICES, conform, resized_state
from ..spec import check_task_name, format_layers
from ..tasks import Task
from .cut import Fetch, cut, features
from .data import Dataset
from .settings import TrainConfig

EVALUATED = 100
"""Pictures per batch when accuracy is counted."""


@dataclass(frozen=True)
class Epoch:
    """Means over the training pictures, while the weights were moving."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class TunedTask:
    """`accuracy`: share of the held-out pictures that the tuned task names rightly, 0..1."""

    task: Task
    accuracy: float
    history: tuple[Epoch, ...]


def tune(
    backbone: Backbone,
    name: str,
    train: Dataset,
    test: Dataset,
    layers: tuple[int, ...],
    config: TrainConfig | None = None,
    *,
    progress: Progress = silent,
) -> TunedTask:
    """Train blocks `layers` (from 1) and a new head on `train`, count what is right on `test`.

    The backbone is left as it was, and so is the caller's random state. The same seed on the same machine
    gives the same task. Raises TaskError (name), LayersError, InputError (data), CheckFailed (it diverged).
    """
    config = config or TrainConfig()
    check_task_name(name)
    _check(backbone, train, test, layers)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(config.seed)
        network = _network(backbone, len(train.classes))
        units = [unit for unit in backbone.units if unit in _tuned_units(backbone, layers)]
        parts = cut(backbone, network, units)
        modules = {unit: network.get_submodule(backbone.units[unit]) for unit in units}
        fetch = features(parts, train, backbone.input, config.cache_bytes, progress)
        lr = config.lr if layers else config.probe_lr
        trainer = _Trainer(parts.suffix, modules, fetch, torch.from_numpy(train.labels), config, lr)
        history = tuple(trainer.run(progress))
    fetch = features(parts, test, backbone.input, config.cache_bytes, progress)
    accuracy = _accuracy(parts.suffix, fetch, torch.from_numpy(test.labels))
    versions = {unit: _finished(module) for unit, module in modules.items()}
    return TunedTask(Task(name, versions, len(train.classes), train.classes), accuracy, history)


def _check(backbone: Backbone, train: Dataset, test: Dataset, layers: tuple[int, ...]) -> None:
    if unknown := sorted(set(layers) - {block.index for block in backbone.blocks}):
        raise LayersError(
            f"blocks {format_layers(unknown)} are outside 1..{len(backbone.blocks)}", "see the block table"
        )
    if len(train) < 2 or len(test) < 1 or train.classes != test.classes:
        raise InputError(
            f"{len(train)} pictures to train on and {len(test)} to test on, of {len(train.classes)} and "
            f"{len(test.classes)} classes",
            "give at least two and one, of the same classes",
        )


def _tuned_units(backbone: Backbone, layers: Collection[int]) -> set[str]:
    return {f"block{index}" for index in layers} | set(backbone.heads)


def _network(backbone: Backbone, classes: int) -> nn.Module:
    """A frozen copy of the model, with new heads for so many classes.

    Channels last is the layout in which CPUs (and GPUs) train convolutions fastest.
    """
    network = copy.deepcopy(backbone.model)
    for unit in backbone.heads:
        path = backbone.units[unit]
        old = network.get_submodule(path)
        head = conform(old, resized_state(old, classes, siamese=False))
        last = [layer for layer in head.modules() if isinstance(layer, MATRICES)][-1]
        last.reset_parameters()
        network.set_submodule(path, head)
    network.eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class _Trainer:
    suffix: nn.Module
    modules: dict[str, nn.Module]
    fetch: Fetch
    labels: Tensor
    config: TrainConfig
    lr: float

    def run(self, progress: Progress) -> Iterator[Epoch]:
        """Train; the tuned modules are in eval mode afterwards."""
        steps = math.ceil(len(self.labels) / self.config.batch_size)
        parameters = [
            each for module in self.modules.values() for each in module.requires_grad_().parameters()
        ]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.config.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * self.config.epochs)
        self._train_mode(True)
        for epoch in range(self.config.epochs):
            # Batches of nearly equal size: one left-over picture would break batch-norm.
            batches = torch.randperm(len(self.labels)).tensor_split(steps)
            yield self._mean([self._step(indices, optimizer, schedule) for indices in batches], epoch)
            progress("epochs", epoch + 1, self.config.epochs)
        self._train_mode(False)

    def _train_mode(self, on: bool) -> None:
        for module in self.modules.values():
            module.train(on)

    def _step(
        self,
        indices: Tensor,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> tuple[float, int]:
        """(summed loss, right answers) of one batch"""
        labels = self.labels[indices]
        answers = self.suffix(*self.fetch(indices))
        loss = nn.functional.cross_entropy(answers, labels, label_smoothing=self.config.label_smoothing)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        return float(loss.detach()) * len(labels), int((answers.argmax(1) == labels).sum())

    def _mean(self, sums: list[tuple[float, int]], epoch: int) -> Epoch:
        loss = sum(loss for loss, _ in sums) / len(self.labels)
        if not math.isfinite(loss):
            raise CheckFailed(
                f"training diverged: the loss is {loss} in epoch {epoch + 1}", f"give a rate below {self.lr}"
            )
        return Epoch(loss, sum(right for _, right in sums) / len(self.labels))


def _accuracy(suffix: nn.Module, fetch: Fetch, labels: Tensor) -> float:
    right = 0
    with torch.no_grad():
        for indices in torch.split(torch.arange(len(labels)), EVALUATED):
            right += int((suffix(*fetch(indices)).argmax(1) == labels[indices]).sum())
    return right / len(labels)


def _finished(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False).to(memory_format=torch.contiguous_format)
