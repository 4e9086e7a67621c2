"""What every task must answer: its own stand-alone model, run by PyTorch, on random and on real inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .backbone import Backbone
from .errors import ModelError
from .parity import TOLERANCES, References
from .pictures import load_picture
from .tasks import Task, base_task, standalone
from .tracing import example

RANDOM_INPUTS = 3
ASSETS = Path(__file__).parent / "assets"


def sample_pictures() -> tuple[Path, ...]:
    """Two photographs that come with the package (public domain), for parity on real inputs."""
    return tuple(sorted(ASSETS.glob("*.jpg")))


def compute_references(
    backbone: Backbone,
    tasks: Sequence[Task],
    pictures: Sequence[Path] = (),
    random_inputs: int = RANDOM_INPUTS,
    *,
    like: References | None = None,
) -> References:
    """Answers of the untouched base and of every task alone. `pictures` default to `sample_pictures()`;
    `like` gives its inputs instead.

    Raises PictureError, and ModelError for a network whose answers cannot be compared (not finite, all equal).
    """
    inputs, kinds = (like.inputs, like.kinds) if like else _inputs(backbone, pictures, random_inputs)
    answers = {task.name: _answers(backbone, task, inputs) for task in (base_task(backbone), *tasks)}
    return References(inputs, kinds, answers)


def _inputs(
    backbone: Backbone, pictures: Sequence[Path], random_inputs: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    real = [load_picture(path, backbone.input) for path in (pictures or sample_pictures())]
    random = example(backbone.input.shape, random_inputs).numpy()
    inputs = np.concatenate([random, np.stack(real)]).astype(np.float32)
    return inputs, ("random",) * len(random) + ("picture",) * len(real)


def _answers(backbone: Backbone, task: Task, inputs: np.ndarray) -> np.ndarray:
    """One picture at a time: that is what a single-task model is asked."""
    model = standalone(backbone, task)
    with torch.no_grad():
        rows = [model(torch.from_numpy(row[None])) for row in inputs]
    answers = torch.cat(rows).numpy().astype(np.float32)
    if not np.isfinite(answers).all():
        raise ModelError(f"task {task.name} of {backbone.name} answers infinity or NaN", "check the weights")
    if np.abs(answers).max() == 0:
        raise ModelError(
            f"task {task.name} of {backbone.name} answers zero to everything, so nothing could be compared",
            "give trained weights: this architecture starts with a zero head",
        )
    if len(answers) > 1 and np.ptp(answers, axis=0).max() < 10 * TOLERANCES["fp32"] * np.abs(answers).max():
        raise ModelError(
            f"task {task.name} of {backbone.name} answers nearly the same to everything, so nothing could be compared",
            "give trained weights, or take the constant offset out of the answer",
        )
    return answers
