"""Processes that are forked from one which has imported what each would import first, for seconds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PRELOADED = [
    *("subtune_deploy.cli", "subtune_deploy.sweep", "subtune_deploy.models", "torchvision"),
    *("torch.onnx.ops", "onnxscript.optimizer", "onnxruntime", "one_table"),
]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


def forked(what: Callable[..., object], *arguments: Any) -> Any:
    """A process that has begun to call it; what it calls must lie in a module, as for any new process."""
    process = CONTEXT.Process(target=what, args=arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for those that are preloaded
        process.start()
    return process
