"""Models by name: torchvision, timm, or a factory of the user's own, with what they expect of a picture.

    load_model("resnet50")                      torchvision
    load_model("timm:efficientnet_lite0")       timm
    load_model("my_package.nets:make")          a function that returns a module
    load_model("nets/mine.py:make")             the same, from a file

Where the weights come from is a second argument: `random`, `default` (what the library ships), or a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from .checkpoint import Checkpoint, load_into, match_keys, read_state
from .errors import ModelError, Unavailable, did_you_mean
from .factory import call_factory, declared_input
from .spec import InputSpec

Size = tuple[int, int, int]

AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Classifiers of GoogLeNet and Inception that serve training alone."""


@dataclass(frozen=True)
class Model:
    """A network in eval mode whose parameters take no gradient. `weights` says where they come from."""

    name: str
    module: nn.Module
    input: InputSpec
    labels: tuple[str, ...]
    weights: str


@dataclass(frozen=True)
class _Source:
    """Where a model is made: `make(pretrained, options)`, `describe(module)` -> (input, labels).

    `size_options` are the options that a size other than the model's own needs. `foreign`: made by the
    user's own code, so nothing is known of its options and its weights are left alone.
    """

    name: str
    default_weights: str
    make: Callable[[bool, dict[str, Any]], nn.Module]
    describe: Callable[[nn.Module], tuple[InputSpec, tuple[str, ...]]]
    size_options: Callable[[Size], dict[str, Any]]
    foreign: bool = False


def load_model(spec: str, weights: str = "random", input_size: Size | None = None, seed: int = 0) -> Model:
    """The model that `spec` names, ready for inference.

    `weights`: `random` (reproducible by `seed`; the caller's random state is left alone), `default` or a
    file. `input_size`: (channels, height, width) instead of the model's own. Random weights of a library's
    model are made lively: none is zero, and batch-norm statistics are those of its own activations, so that
    answers depend on the picture. A factory's module is kept as it was returned.

    Raises ModelError (unknown model, wrong size, failed download), CheckpointError, Unavailable (no timm).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source = _source(spec)
        options = source.size_options(input_size) if input_size else {}
        if weights == "random":
            return _random(source, options, input_size, seed)
        if weights == "default":
            return _model(source, _downloaded(source, options), input_size, source.default_weights)
        return _from_file(source, options, input_size, Path(weights))


def _source(spec: str) -> _Source:
    origin, colon, factory = spec.rpartition(":")
    if spec.startswith("timm:"):
        return _timm(spec.removeprefix("timm:"))
    return _factory(spec, origin, factory) if colon else _torchvision(spec)


def _model(source: _Source, module: nn.Module, size: Size | None, weights: str) -> Model:
    spec, labels = source.describe(module)
    if size is not None:
        if min(size) < 1 or size[0] != spec.shape[0]:
            raise ModelError(
                f"{source.name} takes {spec.shape[0]} channels, not input size {_times(size)}",
                f"give channels x height x width, as in --input-size {_times(spec.shape)}",
            )
        spec = replace(spec, shape=size)
    return Model(source.name, _frozen(source.name, module), spec, labels, weights)


def _frozen(name: str, module: nn.Module) -> nn.Module:
    try:
        return module.eval().requires_grad_(False)
    except (RuntimeError, ValueError) as error:  # torch.jit.script, lazy modules
        raise ModelError(
            f"{name} cannot be frozen: {error}", "give a plain torch.nn.Module, its lazy layers initialised"
        ) from error


def _times(size: Size) -> str:
    return "x".join(map(str, size))


def _random(source: _Source, options: dict[str, Any], size: Size | None, seed: int) -> Model:
    module = _made(source, options)
    if source.foreign:
        return _model(source, module, size, f"{source.default_weights} (seed {seed})")
    model = _model(source, module, size, f"random (seed {seed})")
    _enliven(model)
    return model


def _made(source: _Source, options: dict[str, Any]) -> nn.Module:
    try:
        return source.make(False, options)
    except (ValueError, AssertionError, RuntimeError, TypeError) as error:
        wanted = f" with {_told(options)}" if options else ""
        raise ModelError(
            f"{source.name} cannot be made{wanted}: {error}",
            "give an --input-size that the model was designed for" if options else "check the model's name",
        ) from error


def _told(options: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())


def _downloaded(source: _Source, options: dict[str, Any]) -> nn.Module:
    try:
        return source.make(True, options)
    except ModelError:
        raise
    except Exception as error:  # each library, and each way to fail on a network, has its own
        if options and isinstance(error, ValueError):
            raise ModelError(
                f"the default weights of {source.name} do not suit {_told(options)}: {error}",
                "leave --input-size away, or give --weights FILE",
            ) from error
        raise ModelError(
            f"the default weights of {source.name} cannot be had: {error}",
            "the first use needs a network; without one give --weights FILE or --weights random",
        ) from error


def _from_file(source: _Source, options: dict[str, Any], size: Size | None, path: Path) -> Model:
    checkpoint = read_state(path)
    module = _made(source, options)
    classes = _classes(checkpoint, module)
    if classes is not None and not source.foreign:
        module = _made(source, {**options, "num_classes": classes})
    load_into(module, checkpoint, [name for name in module.state_dict() if name.startswith(AUXILIARY)])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    model = _model(source, module, size, f"{path.name} sha256:{digest}")
    return model if classes is None else replace(model, labels=())


def _classes(checkpoint: Checkpoint, module: nn.Module) -> int | None:
    """Number of classes of a checkpoint whose classifier alone differs from the module's; else None."""
    expected = module.state_dict()
    state = match_keys(checkpoint, expected)
    differing = [
        (state[name].shape, tensor.shape)
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape and not name.startswith(AUXILIARY)
    ]
    rows = {(given[:1], own[:1]) for given, own in differing}
    if len(rows) != 1 or any(given[1:] != own[1:] for given, own in differing):
        return None
    ((given, _),) = rows
    return given[0] if given else None


def _enliven(model: Model) -> None:
    """Make random weights matter, in place: no zero heads, no vanishing or exploding activations."""
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.is_floating_point() and float(parameter.abs().max()) < 1e-3:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        norms = [
            layer for layer in model.module.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))
        ]
        if norms:
            _calibrate(model, norms)


def _calibrate(model: Model, norms: list[nn.BatchNorm1d | nn.BatchNorm2d]) -> None:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
        if norm.weight is not None:
            norm.weight.mul_(
                0.5
            )  # deep random networks are chaotic: let shortcuts outweigh what is added to them
    try:
        model.module(_pictures(model.input.shape))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise ModelError(
            f"{model.name} does not run on input {_times(model.input.shape)}: {error}",
            "give an --input-size that the model was designed for",
        ) from error
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        if norm.running_var is not None:  # a quiet channel must not be blown up
            norm.running_var.clamp_(min=max(1e-5, float(norm.running_var.mean())))


def _pictures(shape: Size) -> torch.Tensor:
    """White noise, and blots as smooth as a photograph: statistics of either alone do not suit the other."""
    noise = torch.randn(2, *shape)
    blots = torch.randn(2, shape[0], 6, 6)
    smooth = nn.functional.interpolate(blots, shape[1:], mode="bicubic", align_corners=False)
    return torch.cat([noise, smooth])


def _torchvision(name: str) -> _Source:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise ModelError(f"unknown model {name!r}", _suggestion(name, known))
    best = torchvision.models.get_model_weights(name).DEFAULT

    def make(pretrained: bool, options: dict[str, Any]) -> nn.Module:
        with warnings.catch_warnings():  # that auxiliary heads are not pretrained does not matter in eval
            warnings.filterwarnings("ignore", message="auxiliary heads")
            extra = {"weights": best if pretrained else None, "progress": sys.stderr.isatty()}
            module: nn.Module = torchvision.models.get_model(name, **_fixed(name), **extra, **options)
        return module

    def describe(module: nn.Module) -> tuple[InputSpec, tuple[str, ...]]:
        recipe = best.transforms()
        (crop,), (resize,) = recipe.crop_size, recipe.resize_size
        mean, std = tuple(recipe.mean), tuple(recipe.std)
        side = getattr(
            module, "image_size", crop
        )  # ViT-H/14's best weights are for a larger one than its builder's
        spec = InputSpec((3, side, side), mean, std, recipe.interpolation.value, crop / resize)
        return spec, tuple(best.meta["categories"])

    return _Source(name, f"default ({best})", make, describe, lambda size: _torchvision_size(name, size))


def _fixed(name: str) -> dict[str, Any]:
    """GoogLeNet and Inception depend on how they are made; these are the settings of their own weights."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": True, "transform_input": True, "init_weights": False}
    return {}


def _torchvision_size(name: str, size: Size) -> dict[str, Any]:
    """Options of the two families whose weights depend on the input size."""
    if name == "maxvit_t":
        return {"input_size": size[1:]}
    if not name.startswith("vit_"):
        return {}
    if size[1] != size[2]:
        raise ModelError(
            f"{name} takes square pictures, not {size[1]}x{size[2]}", "give equal height and width"
        )
    return {"image_size": size[1]}


def _suggestion(name: str, known: list[str]) -> str:
    if Path(name).suffix == ".py" or Path(name).is_file():
        return f"a file needs the name of a function in it, as in {name}:make"
    if importlib.util.find_spec("timm"):
        import timm

        if timm.is_model(name):
            return f"did you mean timm:{name}?"
    return f"{did_you_mean(name, known)} (torchvision; or timm:NAME, package.module:factory, file.py:factory)"


def _timm(name: str) -> _Source:
    if importlib.util.find_spec("timm") is None:
        raise Unavailable(
            f"timm:{name} needs timm, which is not installed", "pip install 'subtune-deploy[timm]'"
        )
    import timm

    if not timm.is_model(name):
        raise ModelError(f"unknown model timm:{name}", did_you_mean(name, timm.list_models()))

    def make(pretrained: bool, options: dict[str, Any]) -> nn.Module:
        with _quiet("huggingface_hub"):  # it reports each of twelve attempts
            try:
                return _timm_module(name, pretrained, options)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
            without = {key: value for key, value in options.items() if key != "img_size"}
            return _timm_module(name, pretrained, without)

    full = f"timm:{name}"
    return _Source(full, f"default ({full})", make, _describe_timm, lambda size: {"img_size": size[1:]})


def _timm_module(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    import timm

    module: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    return module


def _describe_timm(module: nn.Module) -> tuple[InputSpec, tuple[str, ...]]:
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=module)
    spec = InputSpec(
        tuple(config["input_size"]),
        tuple(config["mean"]),
        tuple(config["std"]),
        config["interpolation"],
        config["crop_pct"],
    )
    labels = torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]
    return spec, tuple(labels) if getattr(module, "num_classes", 0) == len(labels) else ()


@contextlib.contextmanager
def _quiet(logger: str) -> Iterator[None]:
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _factory(spec: str, origin: str, name: str) -> _Source:
    def make(pretrained: bool, options: dict[str, Any]) -> nn.Module:
        return call_factory(origin, name)

    return _Source(spec, "as the factory returned them", make, declared_input, lambda size: {}, foreign=True)
