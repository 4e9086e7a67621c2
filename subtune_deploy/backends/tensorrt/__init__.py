"""TensorRT and TensorRT-RTX: one backend, the library is a parameter of everything in this package.

Both build engines for GPUs; TensorRT-RTX builds them without one, standard TensorRT only on the GPU that the
engine is for. What can be known of an engine where no GPU is: `interpret` runs the network that the parser
handed to the compiler, `examine` looks into the engine's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BundleError, TargetError
from .. import probe_library
from ..base import (
    COMPILE_AGAIN,
    Availability,
    Engine,
    Progress,
    Target,
    engine_file,
    silent,
    source_file,
)
from .settings import RTX as RTX_NAME
from .settings import STANDARD as STANDARD_NAME
from .settings import Settings, read


@dataclass(frozen=True)
class TensorRT:
    """The backend for the library `name`; see `Backend` and `Inspectable`."""

    name: str

    def probe(self) -> Availability:
        """Whether the library can be imported, and whether a GPU is here to run what it builds; never raises."""
        available = probe_library(self.name)
        if not available.ok:
            return available
        from .cuda import probe_cuda

        missing = probe_cuda()
        if not missing:
            return available
        remedy = "compile here, run on a machine with an NVIDIA GPU"
        if self.name == STANDARD_NAME:
            remedy = "compile and run on a machine with the GPU that the engine is for"
        return Availability(True, available.version, f"{self.name}: {missing}", remedy, runs=False)

    def compile(
        self, source: Path, folder: Path, role: str, target: Target, progress: Progress = silent
    ) -> None:
        """Write `<role>.engine` from `<role>.onnx`. Raises BundleError, TargetError, Unavailable."""
        settings = self._settings(role, target)
        if self.name == STANDARD_NAME and settings.capabilities:
            _check_device(target, settings.capabilities)
        plan = self._build(source_file(source, f"{role}.onnx"), settings, progress)
        (folder / f"{role}.engine").write_bytes(plan)

    def load(self, folder: Path, role: str, target: Target) -> Engine:
        """Open `<role>.engine` on the GPU that is here. Raises BundleError, TargetError, Unavailable."""
        from .engine import open_engine
        from .header import check

        settings, path = read(target, self.name), engine_file(folder, f"{role}.engine")
        check(path, self._api(), None)
        return open_engine(self._api(), path, target, settings)

    def interpret(self, source: Path, role: str, target: Target) -> Engine:
        """The network that the compiler would be given, executed on the CPU. Raises BundleError, TargetError."""
        from .builder import parse
        from .interpreter import open_interpreter
        from .network import read as read_network

        path = source_file(source, f"{role}.onnx")
        parsed = parse(self._api(), path, self._settings(role, target))
        return open_interpreter(read_network(self._api(), parsed.network))

    def examine(self, source: Path, folder: Path, role: str, target: Target) -> dict[str, Any]:
        """Facts about `<role>.engine`, JSON-able. Raises BundleError where one is wrong, TargetError."""
        from . import header, weights

        settings, path = read(target, self.name), engine_file(folder, f"{role}.engine")
        facts = header.check(path, self._api(), wanted=settings.capabilities)
        wanted = list(settings.capabilities)
        if wanted and sorted(facts["capabilities"]) != sorted(wanted):
            raise BundleError(
                f"{path} is for capabilities {facts['capabilities']}, the recipe says {wanted}", COMPILE_AGAIN
            )
        graph, plan = source_file(source, f"{role}.onnx"), path.read_bytes()
        found = weights.find(graph, plan)
        if self.name == RTX_NAME and not settings.refit:  # how others lay weights out, nobody has seen yet
            weights.check(path, found)
        told = weights.facts(found, weights.versions(graph))
        return {**facts, **self._repeated(graph, plan, role, target), "weights": told}

    def _repeated(self, graph: Path, plan: bytes, role: str, target: Target) -> dict[str, Any]:
        """Whether building `graph` again gives the engine `plan`, else in how many bytes it differs. Not an error.

        Nothing where it would be no answer: standard TensorRT times kernels, and so chooses others each time; an
        engine that can be refitted may have been. TensorRT-RTX 1.7 itself puts several outputs in any order.
        """
        settings = self._settings(role, target)
        if self.name != RTX_NAME or settings.refit:
            return {}
        again = self._build(graph, settings, silent)
        return (
            {"deterministic": True} if again == plan else {"deterministic": False, **_differing(again, plan)}
        )

    def refit_file(self, path: Path, out: Path, changed: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write the engine file `path` to `out` with `changed` weights, by their names in the ONNX file.

        Raises Unavailable (no GPU), BundleError, InputError, CheckFailed.
        """
        from .engine import refit_file

        refit_file(self._api(), path, out, changed)

    def _settings(self, role: str, target: Target) -> Settings:
        """Of the target; the base alone has no weights of forks, so nothing of it can be refitted."""
        settings = read(target, self.name)
        return replace(settings, refit=False) if role == "base" else settings

    def _build(self, path: Path, settings: Settings, progress: Progress) -> bytes:
        from .builder import build, parse

        api = self._api()
        return build(api, parse(api, path, settings), settings, progress)

    def _api(self) -> Any:
        return import_module(self.name)


def _check_device(target: Target, capabilities: tuple[str, ...]) -> None:
    """Standard TensorRT builds for the GPU that is here: it has to be one that the recipe is for.

    Raises TargetError, or Unavailable where there is none.
    """
    from .cuda import open_cuda

    device = open_cuda().device()
    if device.capability not in capabilities:
        raise TargetError(
            f"target {target.name} is for GPUs of capability {', '.join(capabilities)}, "
            f"this one, {device.name}, has {device.capability}",
            "compile it on a GPU that it is for, or take the recipe of this one",
        )


def _differing(one: bytes, other: bytes) -> dict[str, int]:
    length = min(len(one), len(other))
    first, second = (np.frombuffer(each, np.uint8, length) for each in (one, other))
    surplus = max(len(one), len(other)) - length
    return {"differing_bytes": int(np.count_nonzero(first != second)) + surplus}


STANDARD = TensorRT(STANDARD_NAME)
RTX = TensorRT(RTX_NAME)
