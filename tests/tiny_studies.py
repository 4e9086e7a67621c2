"""A study that trains in a moment: four blocks, three classes of noise around three pictures."""

from __future__ import annotations

import numpy as np
from tiny_networks import backbone

from subtune_deploy.data.dataset import Data, Dataset
from subtune_deploy.tuning.settings import Fork, TrainConfig
from subtune_deploy.tuning.study import Study
from subtune_deploy.tuning.trials import Trial

QUICK = TrainConfig(epochs=2, batch_size=8, lr=1e-2, probe_lr=1e-1)
FORKS = (Fork(()), Fork((2,)), Fork((3, 4)), Fork("all"))
TRIALS = tuple(Trial(fork, seed) for seed in (0, 1) for fork in FORKS)


def pictures(count: int, seed: int) -> Dataset:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    means = np.random.default_rng(0).integers(60, 200, (3, 12, 12, 3))
    found = means[labels] + random.integers(-50, 50, (count, 12, 12, 3))
    return Dataset(tuple(found.astype(np.uint8)), labels.astype(np.int64), ("a", "b", "c"))


def study(config: TrainConfig = QUICK, folds: int = 0, train: int = 24, seed: int = 0) -> Study:
    return Study(backbone(seed=seed), Data(pictures(train, 1), pictures(12, 2)), config, folds)
