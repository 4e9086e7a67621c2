"""One fork while it is trained: its weights, its optimiser, and how far it is.

Everything random comes from the seed, the epoch and the step, so that a fork learns the same alone, beside others,
and after an interruption.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..data.dataset import derived
from ..errors import SubtuneError
from ..versions import Version
from ..widths import conform
from .cut import Suffix, suffix
from .keep import State
from .settings import Fork, Resolved
from .start import parameters, start, thinned


@dataclass(frozen=True)
class Epoch:
    """Means over the training pictures, while the weights were moving."""

    loss: float
    accuracy: float


class Learner:
    """`network`: what `frozen` gives, on the device where it trains; its weights are used, not copied.

    `epoch`: how many are done, of `epochs` in all. `failure`: why it cannot go on, if so.
    """

    def __init__(
        self, backbone: Backbone, network: nn.Module, fork: Fork, classes: int, settings: Resolved
    ) -> None:
        self.backbone, self.network, self.fork, self.settings = backbone, network, fork, settings
        self.device = next(network.parameters()).device
        self.history: list[Epoch] = []
        self.failure = ""
        self._begin(start(backbone, fork, classes, settings.seed))

    def _begin(self, versions: Mapping[str, Version]) -> None:
        """Take these weights, with an optimiser that has seen nothing."""
        self.versions = {unit: _trainable(version, self.device) for unit, version in versions.items()}
        self.suffix: Suffix = suffix(self.backbone, self.network, self.versions, self.fork.siamese)
        self.optimizer = torch.optim.AdamW(self.parameters(), weight_decay=self.settings.weight_decay)
        self._loss, self._right = (torch.zeros((), device=self.device) for _ in range(2))

    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        found = {id(each): each for version in self.versions.values() for each in parameters(version)}
        return list(found.values())

    @property
    def epoch(self) -> int:
        return len(self.history)

    @property
    def epochs(self) -> int:
        """A fork that is pruned after training is trained once more."""
        after = self.fork.prune is not None and self.fork.prune.when == "after"
        return self.settings.epochs * (2 if after else 1)

    def learn(self, values: Mapping[str, Any], labels: Tensor, step: int, steps: int) -> None:
        """One batch: `values` at the cut, labels int64 (n,); `step` of the epoch's `steps`, from 0."""
        torch.manual_seed(derived(self.settings.seed, "step", self.epoch, step))
        self._set_rate((self.epoch % self.settings.epochs * steps + step) / (self.settings.epochs * steps))
        mixed = self.settings.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=mixed):
            answers = self.suffix(values)
        smoothing = self.settings.label_smoothing
        loss = nn.functional.cross_entropy(answers.float(), labels, label_smoothing=smoothing)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self._loss += loss.detach() * len(labels)
        self._right += (answers.argmax(1) == labels).sum()

    def _set_rate(self, done: float) -> None:
        """Cosine annealing to 0; `done`: 0..1."""
        full = self.settings.lr if self.fork.layers else self.settings.probe_lr
        for group in self.optimizer.param_groups:
            group["lr"] = full * (1 + math.cos(math.pi * done)) / 2

    def end_epoch(self, pictures: int) -> None:
        """Enter the means over so many pictures; between two trainings, prune."""
        self.history.append(Epoch(float(self._loss) / pictures, float(self._right) / pictures))
        self._loss.zero_(), self._right.zero_()
        if not (math.isfinite(self.history[-1].loss) and self._is_finite()):
            self.failure = f"training diverged in epoch {self.epoch}: its loss is {self.history[-1].loss:g}"
        elif self.epoch == self.settings.epochs < self.epochs:
            self._thin()

    def _thin(self) -> None:
        """Go on with less. That the weights from before training could be thinned tells nothing of these."""
        try:
            self._begin(thinned(self.backbone, self.fork, self.finished()))
        except SubtuneError as error:
            self.failure = f"pruning after training failed: {error.message}; {error.hint}"

    def _is_finite(self) -> bool:
        states = (_state(version) for version in self.versions.values())
        floats = (each for state in states for each in state.values() if each.is_floating_point())
        return all(bool(each.isfinite().all()) for each in floats)

    def train_mode(self, on: bool) -> None:
        """Of what it tunes; all else stays in eval mode, so that frozen statistics do not move."""
        for version in self.versions.values():
            if isinstance(version, nn.Module):
                version.train(on)

    def finished(self) -> dict[str, Version]:
        """Copies of its weights as a task keeps them: on the CPU, without gradient, contiguous."""
        return {unit: _finished(version) for unit, version in self.versions.items()}

    def state(self) -> State:
        """All that another process needs to go on."""
        return {
            "history": [[each.loss, each.accuracy] for each in self.history],
            "failure": self.failure,
            "weights": {unit: dict(_state(version)) for unit, version in self.versions.items()},
            "optimizer": self.optimizer.state_dict() if self.epoch < self.epochs else None,
        }

    def restore(self, state: State) -> None:
        """The inverse."""
        weights = state["weights"]
        self._begin({unit: _with(version, weights[unit]) for unit, version in self.versions.items()})
        self.history = [Epoch(*each) for each in state["history"]]
        self.failure = state["failure"]
        if state["optimizer"]:
            self.optimizer.load_state_dict(state["optimizer"])


def _state(version: Version) -> Mapping[str, Tensor]:
    return version.state_dict() if isinstance(version, nn.Module) else {"": version.detach()}


def _with(version: Version, state: Mapping[str, Tensor]) -> Version:
    """`version` as wide as `state`, with its weights."""
    return conform(version, state) if isinstance(version, nn.Module) else state[""]


def _trainable(version: Version, device: torch.device) -> Version:
    """Channels last is the layout in which CPUs, and GPUs, train convolutions fastest."""
    if isinstance(version, nn.Module):
        return version.requires_grad_().to(device).to(memory_format=torch.channels_last)
    return nn.Parameter(version.detach().to(device))


def _finished(version: Version) -> Version:
    if not isinstance(version, nn.Module):
        return nn.Parameter(version.detach().cpu().clone(), requires_grad=False)
    copied = copy.deepcopy(version).requires_grad_(False).eval()
    copied.zero_grad()  # which sets gradients to None
    return copied.cpu().to(memory_format=torch.contiguous_format)
