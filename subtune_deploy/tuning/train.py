"""SubTuning (paper, section 2): a few blocks and a new head are trained, all else stays as it is.

    data = load_data("digits", train=500, test=1500)
    tuned = tune(backbone, "digits", data.train, data.test, Fork((9, 10, 11)))
    tuned.accuracy, tuned.task

Several forks train together on the same batches: pictures are read and augmented once, and what no fork can change
is computed once. Each comes out as it does by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..backbone import Backbone
from ..backends.base import Progress, silent
from ..data.dataset import Dataset, derived
from ..errors import CheckFailed, InputError, Unavailable
from ..memory import ran_out
from ..spec import check_task_name
from ..tasks import Task
from .cut import Suffix, suffix, wanted
from .frozen import frozen
from .keep import Kept, check_alone, facts, forget, open_kept
from .learner import Epoch, Learner
from .settings import Family, Fork, Resolved, TrainConfig, resolved
from .start import check_fork, own_random_state
from .values import Values, values

EVALUATED = 100
"""Pictures per batch when accuracy is counted."""

Say = Callable[[str], object]


def unheard(text: str) -> None:
    """What nobody needs to know."""


@dataclass(frozen=True)
class TunedTask:
    """`accuracy`: share of the test pictures that the task names rightly, 0..1. `parameters`: how many were trained.

    `failure`: why there is no task, if so; all else is empty then.
    """

    task: Task
    accuracy: float
    history: tuple[Epoch, ...]
    parameters: int
    failure: str = ""


def tune(
    backbone: Backbone,
    name: str,
    train: Dataset,
    test: Dataset,
    fork: Fork,
    config: TrainConfig | None = None,
    *,
    keep: Path | None = None,
    progress: Progress = silent,
    say: Say = unheard,
) -> TunedTask:
    """Train `fork` on `train`, count what is right on `test`.

    What else is given, and the errors, are those of `train_together`; besides TaskError (name), InputError (a file
    `keep` of another fork), and CheckFailed where the training diverged, could not be thinned after it, or memory ran
    out.
    """
    check_task_name(name)
    check_data(train, test)
    check_alone(keep, str(fork))
    (tuned,) = train_together(backbone, [fork], train, test, config, keep=keep, progress=progress, say=say)
    if tuned.failure:
        forget(keep)  # other settings are to be tried, which would be refused there
        raise CheckFailed(tuned.failure, "give a lower --lr, or a smaller --batch-size")
    return replace(tuned, task=replace(tuned.task, name=name))


def train_together(
    backbone: Backbone,
    forks: Sequence[Fork],
    train: Dataset,
    test: Dataset,
    config: TrainConfig | None = None,
    *,
    keep: Path | None = None,
    progress: Progress = silent,
    say: Say = unheard,
) -> tuple[TunedTask, ...]:
    """Each fork trained on `train` and counted on `test`, all in one pass; in their order.

    The backbone is left as it was, and so is the caller's random state. The same seed on the same machine gives the
    same tasks. What `config` leaves open is the paper's for so many pictures as `train` has. The file `keep` has the
    training after each epoch but the last: a call that was interrupted goes on there. It is the caller's to remove,
    once what came of it is on the disk. Where memory runs out, fewer train at a time, which `say` hears.

    Raises LayersError, InputError (data; a file `keep` of another training), Unavailable (no GPU), PictureError, and
    what `pruning.prune` does. A fork that diverges, or whose trained weights cannot be thinned, is told in its result;
    the others go on.
    """
    config = config or TrainConfig()
    _check_sizes(train, test)
    _check_labels(train, test)  # a few, as `active` draws them, may by chance be of one class
    for fork in forks:
        # One that is thinned before training is refused as it begins, which all do before any is trained.
        if not fork.prune or fork.prune.when == "after":
            check_fork(backbone, fork, len(train.classes))
    kept = open_kept(keep, facts(backbone, train, test, config) if keep else {}, map(str, forks))
    settings = resolved(config, family(backbone), len(train))
    network = frozen(backbone, _device(config.device))
    with own_random_state(), torch.enable_grad():
        session = _Session(backbone, network, train, test, settings, kept, progress, say)
        return tuple(session.trained(tuple(forks)))


def answers(backbone: Backbone, task: Task, data: Dataset, config: TrainConfig) -> npt.NDArray[np.float32]:
    """What the task says of the pictures: scores, float32 (N, classes)."""
    network = frozen(backbone, _device(config.device))
    versions = {
        unit: copy.deepcopy(version).to(next(network.parameters()).device)
        for unit, version in task.versions.items()
    }
    end = suffix(backbone, network, versions, task.siamese)
    found = [scores for _, (scores,) in _answered(backbone, network, data, [end], config)]
    return torch.cat(found).cpu().numpy()


def family(backbone: Backbone) -> Family:
    """Whether the paper's settings for transformers are meant: some block attends to positions."""
    modules = (
        each for block in backbone.blocks for each in backbone.model.get_submodule(block.name).modules()
    )
    attends = any("attention" in type(each).__name__.lower() and _projects(each) for each in modules)
    return "transformer" if attends else "convolutional"


def _projects(module: nn.Module) -> bool:
    """Attention over positions has linear layers; that over channels, as in squeeze and excitation, none of its own."""
    children = {type(each) for each in module.children()}
    return bool(children & {nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear})


def check_data(train: Dataset, test: Dataset) -> None:
    """Raise InputError for pictures that nothing can be learnt from, or counted on."""
    _check_sizes(train, test)
    _check_labels(train)


def _check_sizes(train: Dataset, test: Dataset) -> None:
    if len(train) < 2 or len(test) < 1 or train.classes != test.classes:
        raise InputError(
            f"{len(train)} pictures to train on and {len(test)} to test on, of {len(train.classes)} and "
            f"{len(test.classes)} classes",
            "give at least two and one, of the same classes",
        )


def _check_labels(*sets: Dataset) -> None:
    """Those that occur, whatever the classes are called."""
    found = np.unique(np.concatenate([each.labels for each in sets]))
    if len(found) < 2:
        name = sets[0].classes[found[0]]
        raise InputError(
            f"all pictures to train on are of one class, {name!r}", "give pictures of two or more"
        )


def _device(name: str) -> torch.device:
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise Unavailable("there is no GPU that PyTorch can use", "give --device cpu")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


@dataclass(frozen=True)
class _Session:
    """What all forks of one training share."""

    backbone: Backbone
    network: nn.Module
    train: Dataset
    test: Dataset
    settings: Resolved
    kept: Kept
    progress: Progress
    say: Say

    def trained(self, forks: Sequence[Fork]) -> list[TunedTask]:
        """All at once, or by halves where memory runs out."""
        try:
            return self._at_once(forks)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
        # Out of the handler, which would hold what the failed attempt took.
        if len(forks) == 1:
            return [self._failed(f"memory ran out in batches of {self.settings.batch_size}")]
        half, found = -(-len(forks) // 2), list[TunedTask]()
        self.say(f"memory ran out while {len(forks)} forks trained together: {half} at a time from here on")
        for some in (forks[:half], forks[half:]):
            self.kept.reread()  # also what the first half has trained on since
            found += self.trained(some)
        return found

    def _at_once(self, forks: Sequence[Fork]) -> list[TunedTask]:
        learners = [self._learner(fork) for fork in forks]
        for stage in range(1, 3):
            last = stage * self.settings.epochs
            behind = [each for each in learners if each.epoch < min(last, each.epochs) and not each.failure]
            if behind:
                self._learn(behind, last, max(each.epochs for each in learners))
        whole = [each for each in learners if not each.failure]
        accuracies = iter(self._accuracies(whole) if whole else ())
        return [
            self._failed(each.failure) if each.failure else self._tuned(each, next(accuracies))
            for each in learners
        ]

    def _learner(self, fork: Fork) -> Learner:
        learner = Learner(self.backbone, self.network, fork, len(self.train.classes), self.settings)
        if state := self.kept.states.get(str(fork)):
            learner.restore(state)
        return learner

    def _learn(self, learners: Sequence[Learner], last: int, until: int) -> None:
        """Up to epoch `last`, those that are ahead wait; kept after each but epoch `until`, the last of all."""
        names = wanted(self.backbone, [each.suffix.needs for each in learners])
        fetch = values(self.backbone, self.network, self.train, names, self.settings, self.progress)
        for epoch in range(min(each.epoch for each in learners), last):
            if not (going := [each for each in learners if each.epoch == epoch and not each.failure]):
                continue
            self._epoch(going, fetch, epoch)
            if epoch + 1 < until:  # the very last one is trained again, should it be lost
                self.kept.write({str(each.fork): each.state() for each in going})
            self.progress("epochs", epoch + 1, max(each.epochs for each in learners))

    def _epoch(self, learners: Sequence[Learner], fetch: Values, epoch: int) -> None:
        for each in learners:
            each.train_mode(True)
        batches = self._batches(epoch)
        for step, indices in enumerate(batches):
            found = fetch(indices, derived(self.settings.seed, "augment", epoch))
            labels = self.labels[indices]
            for each in learners:
                each.learn(found, labels.to(each.device), step, len(batches))
        for each in learners:
            each.train_mode(False)
            each.end_epoch(len(self.train))

    def _batches(self, epoch: int) -> Sequence[Tensor]:
        order = torch.Generator().manual_seed(derived(self.settings.seed, "order", epoch))
        count = self.settings.batches(len(self.train))
        return torch.randperm(len(self.train), generator=order).tensor_split(count)

    @cached_property
    def labels(self) -> Tensor:
        """Of the training pictures."""
        return torch.from_numpy(self.train.labels)

    def _accuracies(self, learners: Sequence[Learner]) -> list[float]:
        right = torch.zeros(len(learners), dtype=torch.long)
        ends = [each.suffix for each in learners]
        labels = torch.from_numpy(self.test.labels)
        for indices, scores in _answered(self.backbone, self.network, self.test, ends, self.settings):
            right += torch.stack([(each.argmax(1).cpu() == labels[indices]).sum() for each in scores])
            self.progress("testing", int(indices[-1]) + 1, len(self.test))
        return [int(count) / len(labels) for count in right]

    def _tuned(self, learner: Learner, accuracy: float) -> TunedTask:
        classes, fork = self.train.classes, learner.fork
        task = Task("task", learner.finished(), len(classes), classes, fork.siamese, prune=fork.prune)
        size = sum(each.numel() for each in learner.parameters())
        return TunedTask(task, accuracy, tuple(learner.history), size)

    def _failed(self, reason: str) -> TunedTask:
        return TunedTask(Task("task", {}, len(self.train.classes), self.train.classes), 0.0, (), 0, reason)


def _answered(
    backbone: Backbone, network: nn.Module, data: Dataset, ends: Sequence[Suffix], config: TrainConfig
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """(indices of some pictures, scores of each end); each picture is seen once, so nothing is kept."""
    names = wanted(backbone, [end.needs for end in ends])
    once = replace(config, augment="none", cache_bytes=0)
    fetch = values(backbone, network, data, names, once)
    for indices in torch.split(torch.arange(len(data)), EVALUATED):
        with torch.no_grad():
            found = fetch(indices)
            scores = [end(found) for end in ends]
        yield indices, scores
