"""From an ONNX file to the bytes of an engine, with the library as a parameter.

Networks are strongly typed: the precision is that of the graph, TensorRT chooses none. Enum members are
found by name, because their numbers differ between TensorRT 10, TensorRT 11 and TensorRT-RTX.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BundleError, SubtuneError, TargetError, Unavailable, did_you_mean
from ...spec import BASE, INPUT
from ..base import EXPORT_AGAIN, Progress, silent
from . import messages
from .graphs import Refused, initializers, not_parsed, refused
from .monitor import Tracker, monitor, stoppable
from .settings import DEFAULT_PROFILE, Settings


@dataclass(frozen=True)
class Parsed:
    """A network and what must live as long as it does. `weights`: names of the file's initializers."""

    network: Any
    parser: Any
    builder: Any
    logger: Any
    path: Path
    weights: tuple[str, ...]


def parse(api: Any, path: Path, settings: Settings) -> Parsed:
    """Read the ONNX file `path` with the library's parser. Raises BundleError, naming unsupported nodes."""
    weights = initializers(path)
    logger = messages.logger(api)
    logger.take()
    builder, network, parser = _parser(api, logger)
    if not parser.parse_from_file(str(path)):
        words = messages.words(logger.take())
        raise not_parsed(api.__name__, path, capability_report(api, path) or refused(parser), words)
    _check_input(path, network)
    parsed = Parsed(network, parser, builder, logger, path, weights)
    if settings.refit:
        _mark_refittable(parsed)
    return parsed


def capability_report(api: Any, path: Path) -> tuple[Refused, ...]:
    """Every node of the ONNX file `path` that the library cannot take; empty where it takes all of them."""
    initializers(path)
    logger = messages.logger(api)
    _builder, _network, parser = _parser(api, logger)
    parser.supports_model_v2(path.read_bytes(), str(path))
    logger.take()
    return refused(parser)


def build(api: Any, parsed: Parsed, settings: Settings, progress: Progress = silent) -> bytes:
    """The engine's bytes.

    Raises TargetError (options), BundleError (the graph), Unavailable (no GPU for what is asked), and whatever
    `progress` raised, KeyboardInterrupt included, once the library has stopped.
    """
    parsed.logger.take()
    config = parsed.builder.create_builder_config()
    _configure(api, config, settings)
    profile = add_profile(parsed, config, settings)  # noqa: F841 - the library does not keep it alive
    timings = _read_timings(config, settings)
    tracker = Tracker(f"compiling {parsed.path.name}", progress)
    watcher = monitor(api, tracker)
    config.progress_monitor = watcher
    with stoppable(tracker):
        plan = parsed.builder.build_serialized_network(parsed.network, config)
    if plan is None:
        raise _not_built(api, parsed, settings)
    if timings is not None and settings.timing_cache:
        _write_timings(Path(settings.timing_cache), config)
    return bytes(memoryview(plan))


def shape(parsed: Parsed) -> tuple[int, ...]:
    """Of the network's input, -1 where it is dynamic."""
    return tuple(int(length) for length in parsed.network.get_input(0).shape)


def _parser(api: Any, logger: Any) -> tuple[Any, Any, Any]:
    try:
        builder = api.Builder(logger)
    except TypeError as error:  # what the bindings make of a null pointer
        words = messages.words(logger.take())
        raise Unavailable(f"{api.__name__} cannot start: {words}", "see subtune-deploy doctor") from error
    network = builder.create_network(1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    return builder, network, api.OnnxParser(network, logger)


def _check_input(path: Path, network: Any) -> None:
    names = [network.get_input(i).name for i in range(network.num_inputs)]
    if names != [INPUT]:
        raise BundleError(f"{path} takes {names}, not the one input {INPUT!r}", EXPORT_AGAIN)
    lengths = tuple(network.get_input(0).shape)
    if any(length < 1 for length in lengths[1:]) or not lengths:
        raise BundleError(f"{path} takes {lengths}, of which only the batch may be dynamic", EXPORT_AGAIN)


def _not_built(api: Any, parsed: Parsed, settings: Settings) -> SubtuneError:
    words = messages.words(parsed.logger.take())
    if settings.refit:
        return Unavailable(
            f"{api.__name__} cannot build an engine that can be refitted here: {words}",
            "such an engine needs a GPU and its driver when it is built: build it there, or set refit = false",
        )
    return BundleError(
        f"{parsed.path} cannot be compiled by {api.__name__}: {words}",
        "the network does not suit this target: see the options of its recipe, or use another target",
    )


def _mark_refittable(parsed: Parsed) -> None:
    """Mark the weights of forks and heads: `<unit>.<version>.<parameter>` with a version other than base."""
    own = [name for name in parsed.weights if is_forked(name)]
    marked = [name for name in own if parsed.network.mark_weights_refittable(name)]
    if not marked:
        raise BundleError(
            f"{parsed.path} has no weights of forks or heads to refit", "set refit = false for this graph"
        )


def is_forked(name: str) -> bool:
    """Whether an initializer belongs to a task's own version of a unit."""
    parts = name.split(".")
    return len(parts) > 2 and parts[1] != BASE


def _configure(api: Any, config: Any, settings: Settings) -> None:
    flag = config.set_flag if settings.tf32 else config.clear_flag
    flag(api.BuilderFlag.TF32)
    if settings.refit:
        config.set_flag(api.BuilderFlag.REFIT_INDIVIDUAL)
    config.profiling_verbosity = _member(
        _lower(api.ProfilingVerbosity), settings.profiling_verbosity, "profiling_verbosity"
    )
    if settings.hardware_compatibility != "none":
        config.hardware_compatibility_level = _member(
            _lower(api.HardwareCompatibilityLevel), settings.hardware_compatibility, "hardware_compatibility"
        )
    if settings.auxiliary_streams is not None:
        config.max_aux_streams = settings.auxiliary_streams
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if hasattr(api, "ComputeCapability"):  # standard TensorRT builds for the GPU that is here, checked before
        _set_capabilities(api, config, settings.capabilities)


def _set_capabilities(api: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    """Which GPUs the engine is for. The library answers False, not an exception, to what it does not take."""
    if not capabilities:
        return
    known = known_capabilities(api)
    config.num_compute_capabilities = len(capabilities)
    for index, text in enumerate(capabilities):
        member = _member(known, text, "capabilities")
        if not config.set_compute_capability(member, index):
            raise TargetError(
                f"{api.__name__} does not take capability {text} with {', '.join(capabilities)}",
                "build one engine for each",
            )


def known_capabilities(api: Any) -> dict[str, Any]:
    """GPUs that TensorRT-RTX builds engines for, as in "8.9", and its own name of each."""
    return {capability_text(each): value for each, value in api.ComputeCapability.__members__.items()}


def capability_text(member: str) -> str:
    """ "SM89" -> "8.9", "SM120" -> "12.0"; other members as they are."""
    digits = member.removeprefix("SM")
    return f"{digits[:-1]}.{digits[-1]}" if digits.isdecimal() else member.lower()


def _lower(kind: Any) -> dict[str, Any]:
    """The members of an enum of the library by their names in lower case."""
    return {each.lower(): value for each, value in kind.__members__.items()}


def _member(members: Mapping[str, Any], name: str, option: str) -> Any:
    if name not in members:
        raise TargetError(
            f"option {option} is {name!r}, which this version of the library does not know",
            did_you_mean(name, members),
        )
    return members[name]


def add_profile(parsed: Parsed, config: Any, settings: Settings) -> Any:
    """The optimisation profile of a graph of dynamic batch, now part of `config`; None for a fixed batch.

    Raises TargetError, with the library's words.
    """
    lengths = shape(parsed)
    if lengths[0] != -1:
        return None
    batches = settings.profile or DEFAULT_PROFILE
    profile = parsed.builder.create_optimization_profile()
    with contextlib.suppress(RuntimeError):  # adding it says the same, and why
        profile.set_shape(INPUT, *((batch, *lengths[1:]) for batch in batches))
    if config.add_optimization_profile(profile) < 0:
        words = messages.words(parsed.logger.take())
        raise TargetError(
            f"the batches {batches} are no optimisation profile: {words}",
            'give the smallest, the optimised and the largest batch in rising order, as in profile = "1 4 16"',
        )
    return profile


def _read_timings(config: Any, settings: Settings) -> Any:
    """Earlier timings of kernels, so that the next build is quicker and chooses the same."""
    if settings.timing_cache is None:
        return None
    path = Path(settings.timing_cache)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise TargetError(
            f"timing cache {path} is of another GPU, driver or version", "delete it, or name another file"
        )
    return cache


def _write_timings(path: Path, config: Any) -> None:
    from ...staging import replaced_file

    with replaced_file(path) as temporary:
        temporary.write_bytes(memoryview(config.get_timing_cache().serialize()))
