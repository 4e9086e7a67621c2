"""Other weights for an engine that is built: a task replaced without compiling. Not yet run on hardware."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BundleError, CheckFailed, InputError, did_you_mean
from . import messages

BUILD_AGAIN = "compile the bundle again with all of its tasks"


def refit(api: Any, engine: Any, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """Put `weights`, by their names in the ONNX file, into an `ICudaEngine` of library `api`.

    The engine must not be running. Raises BundleError (it was not built to be refitted), InputError (a weight that
    it does not have, or that needs others with it), CheckFailed (the library refuses); the engine's weights are
    changed all together or not at all, as far as the library keeps its promise.
    """
    if not engine.refittable:
        raise BundleError("this engine was not built to be refitted", "compile it with refit = true")
    logger = messages.logger(api)
    logger.take()
    refitter = api.Refitter(engine, logger)
    check_names(weights, refitter.get_all_weights())
    kept = {name: np.ascontiguousarray(values) for name, values in weights.items()}  # until all is done
    for name, values in kept.items():
        if not refitter.set_named_weights(name, as_weights(api, values)):
            wanted = refitter.get_weights_prototype(name)
            takes = f"the engine takes {wanted.size} of {wanted.dtype.name}"
            raise InputError(
                f"weight {name} has {values.size} numbers of {values.dtype}, {takes}", BUILD_AGAIN
            )
    check_complete(refitter.get_missing_weights())
    if not refitter.refit_cuda_engine():
        raise CheckFailed(f"the engine was not refitted: {messages.words(logger.take())}", BUILD_AGAIN)


def as_weights(api: Any, values: npt.NDArray[Any]) -> Any:
    """`values`, contiguous and not copied, as the library takes them; numpy has no bfloat16 that it would know."""
    if values.dtype.name == "bfloat16":
        return api.Weights(api.DataType.BF16, values.ctypes.data, values.size)
    return api.Weights(values)


def check_names(given: Iterable[str], refittable: Iterable[str]) -> None:
    """Raises InputError for no weights at all, and for one that the engine cannot take."""
    names, known = list(given), set(refittable)
    if not names:
        raise InputError("no weights were given", "give those of a task's blocks and head")
    if unknown := [name for name in names if name not in known]:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InputError(
            f"the engine has no weight {unknown[0]}{more} to refit", did_you_mean(unknown[0], sorted(known))
        )


def check_complete(missing: Iterable[str]) -> None:
    """Raises InputError where weights were combined with others that were not given."""
    if names := sorted(missing):
        told = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise InputError(f"these weights need others with them: {told}", "give all weights of the task")
