"""A backbone on its way to another process: its network is pickled, and traced anew where it arrives.

Code that a new process finds by itself (torchvision, timm, what is installed) is named; that of a user's file or
of a running session travels along.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from ..backbone import Backbone, trace
from ..errors import ModelError, Unavailable
from ..models import Model


def packed(backbone: Backbone, *others: Any) -> bytes:
    """`backbone` and what goes with it. Raises Unavailable (no cloudpickle), ModelError for what cannot travel."""
    try:
        import cloudpickle
    except ImportError as error:
        raise Unavailable(
            "other processes need cloudpickle, which is not installed", "pip install 'subtune-deploy[export]'"
        ) from error
    network = Model(backbone.name, backbone.model, backbone.input, backbone.labels, backbone.weights)
    blocks = "|".join(re.escape(block.name) for block in backbone.blocks)
    try:
        with _foreign_by_value():
            contents = cloudpickle.dumps((network, blocks, others))
    except Exception as error:  # pickling runs the code of what is pickled
        raise ModelError(
            f"{backbone.name} cannot be sent to another process: {error}", "use the executor here"
        ) from error
    return bytes(cloudpickle.dumps((torch.__version__, contents)))


def unpacked(payload: bytes) -> tuple[Any, ...]:
    """The inverse: (backbone, *others). Raises Unavailable if this process has another version of PyTorch."""
    import pickle

    version, contents = pickle.loads(payload)
    if version != torch.__version__:
        raise Unavailable(
            f"this worker has PyTorch {torch.__version__}, its work comes from {version}",
            "install the same version on every node",
        )
    network, blocks, others = pickle.loads(contents)
    return trace(network, blocks), *others


@contextmanager
def _foreign_by_value() -> Iterator[None]:
    """cloudpickle takes the code of modules along that a new process would not find."""
    import cloudpickle

    foreign = [module for module in list(sys.modules.values()) if _foreign(module)]
    for module in foreign:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in foreign:
            cloudpickle.unregister_pickle_by_value(module)


def _foreign(module: object) -> bool:
    if not isinstance(module, ModuleType) or not getattr(module, "__file__", None):
        return False
    name = module.__name__
    known = sys.modules.get(name) is module and name not in (
        "__main__",
        "__mp_main__",
    )  # it takes these anyway
    return known and not _findable(name.partition(".")[0])


def _findable(name: str) -> bool:
    """Whether an import in a new process would find `name`. What was imported here does not count."""
    return any(finder.find_spec(name, None) is not None for finder in sys.meta_path)
