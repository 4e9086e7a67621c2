"""Files of weights: read without running their code, matched to a model's keys, written whole or not."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import pickletools
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import CheckpointError, did_you_mean

ENTRIES = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params",
    "backbone", "encoder", "state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema",
)  # fmt: skip
"""Where trainers keep the weights in a file, plain weights before averaged ones."""

WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put into names, anywhere in them."""

HINT = "give a .safetensors file, or one written by torch.save(model.state_dict(), FILE)"


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: tensors on the CPU under the names they have in the file, and its text metadata."""

    path: Path
    state: dict[str, Tensor]
    metadata: dict[str, str]


def read_state(path: str | Path, key: str | None = None) -> Checkpoint:
    """Read the weights in a torch or safetensors file; `key` names the entry where it holds several.

    No code from the file is run. Raises CheckpointError for anything that is not a readable checkpoint.
    """
    path = Path(path)
    try:
        head = _first_bytes(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    if not head:
        raise CheckpointError(f"{path} is empty", "write it again: the program that saved it was interrupted")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(path)
    return Checkpoint(path, _select(_unpickle(path, head), path, key), {})


def _first_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, not a checkpoint", HINT)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist", "check the path of the checkpoint")
    with path.open("rb") as file:
        return file.read(16)


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}", HINT) from error
    if not state:
        raise CheckpointError(f"{path} holds no tensors", HINT)
    return Checkpoint(path, state, metadata)


def _unpickle(path: Path, head: bytes) -> Any:
    whole = zipfile.is_zipfile(path)
    if head.startswith(b"PK") and not whole:
        raise CheckpointError(f"{path} is truncated", "copy or download the file again")
    # A Namespace is a plain record of options; timm keeps one beside the weights.
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except Exception as error:
        raise _refusal(path, str(error)) from error


def _refusal(path: Path, reason: str) -> CheckpointError:
    stated = re.search(r"GLOBAL (\S+)", reason)
    called = stated[1] if stated else _named_code(path)
    if called or "allowlisted" in reason or "reduce for unrecognized" in reason:
        return CheckpointError(
            f"{path} is refused: it would run code ({called or 'unnamed'}) while it is read",
            "save the weights alone: torch.save(model.state_dict(), FILE), or a .safetensors file",
        )
    return CheckpointError(f"{path} is not a checkpoint, or is damaged", HINT)


def _named_code(path: Path) -> str | None:
    """The first thing outside torch that a plain pickle would call; nothing is run. None for other files."""
    words: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(path.read_bytes()):
            if operation.name in ("STACK_GLOBAL", "GLOBAL", "INST"):
                named = ".".join(words[-2:] if operation.name == "STACK_GLOBAL" else str(argument).split())
                if not named.startswith(("torch.", "collections.")):
                    return named
            elif isinstance(argument, str):
                words.append(argument)
    except (ValueError, IndexError, OverflowError):
        return None
    return None


def _select(content: Any, path: Path, key: str | None) -> dict[str, Tensor]:
    if key is not None:
        entries = [str(name) for name in content] if isinstance(content, Mapping) else []
        if key not in entries:
            raise CheckpointError(f"{path} has no entry {key!r}", did_you_mean(key, entries))
        content = content[key]
    state = _weights(content)
    if not state:
        raise CheckpointError(f"{path} holds no named tensors, so it is not a checkpoint", HINT)
    return state


def _weights(content: Any) -> dict[str, Tensor]:
    """The state dict in what a file holds: in a usual entry, directly, or in the only entry that has one."""
    if not isinstance(content, Mapping):
        return {}
    for name in ENTRIES:
        if found := _weights(content.get(name)):
            return found
    if own := _tensors(content):
        return own
    nested = [found for value in content.values() if (found := _tensors(value))]
    return nested[0] if len(nested) == 1 else {}


def _tensors(content: Any) -> dict[str, Tensor]:
    items = content.items() if isinstance(content, Mapping) else ()
    return {
        name: value.detach() for name, value in items if isinstance(name, str) and isinstance(value, Tensor)
    }


def match_keys(checkpoint: Checkpoint, expected: Collection[str]) -> dict[str, Tensor]:
    """The state with the wrapper's prefix removed (`module.`, `backbone._orig_mod.`, any dotted one).

    The prefix under which most keys are `expected` ones wins, the shortest of equals. Keys without it keep
    their names, so that what does not belong stays visible.
    """
    state = {WRAPPERS.sub("", name): tensor for name, tensor in checkpoint.state.items()}
    wanted = set(expected)
    hits = Counter(prefix for name in state for prefix, rest in _splits(name) if rest in wanted)
    prefix = max(hits, key=lambda each: (hits[each], -len(each)), default="")
    matched = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    if len(matched) < len(checkpoint.state):
        raise CheckpointError(
            f"{checkpoint.path} holds some weights twice, with and without {prefix or 'a wrapper'!r}",
            "save only the model's own state_dict",
        )
    return matched


def _splits(name: str) -> Iterable[tuple[str, str]]:
    yield "", name
    for dot in re.finditer(r"\.", name):
        yield name[: dot.end()], name[dot.end() :]


def is_counter(name: str) -> bool:
    """Whether `name` is a batch-norm step counter, which no answer in eval mode depends on."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def check_keys(
    path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], optional: Collection[str] = ()
) -> None:
    """Raise CheckpointError unless `state` has the `expected` names; `optional` and counters may miss."""
    missing = [
        name for name in expected if name not in state and name not in optional and not is_counter(name)
    ]
    surplus = [name for name in state if name not in expected and not is_counter(name)]
    if not missing and not surplus:
        return
    fitting = sum(name in state and state[name].shape == tensor.shape for name, tensor in expected.items())
    faults = [_listed(missing, "missing"), _listed(surplus, "surplus")]
    told = " and ".join(fault for fault in faults if fault)
    if 2 * fitting < max(len(expected), len(state)):
        raise CheckpointError(
            f"{path} is of another architecture: {fitting} of {len(expected)} tensors fit, {told}",
            "give the --model that it was trained with",
        )
    raise CheckpointError(f"{path} does not fit the model: {told}", "give a checkpoint of exactly this model")


def check_shapes(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where a tensor of `state` has another shape than the `expected` one."""
    differing = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if not differing:
        return
    other = "of another architecture" if 2 * len(differing) > len(expected) else "not of this model"
    raise CheckpointError(
        f"{path} is {other}: {_listed(differing, 'differing in shape')}",
        "give the --model, and the --input-size, that it was trained with",
    )


def check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where a weight is NaN or infinite."""
    broken = [
        name for name, each in state.items() if each.is_floating_point() and not bool(each.isfinite().all())
    ]
    if broken:
        raise CheckpointError(
            f"{path} has NaN or infinite weights: {_listed(broken, 'such tensors')}",
            "the training diverged; give an earlier checkpoint",
        )


def _listed(names: list[str], what: str) -> str:
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def load_into(module: nn.Module, checkpoint: Checkpoint, optional: Collection[str] = ()) -> None:
    """Load exactly the module's weights in place; `optional` names may miss or differ in shape.

    Raises CheckpointError before anything is changed.
    """
    expected = module.state_dict()
    state = match_keys(checkpoint, expected)
    check_keys(checkpoint.path, state, expected, optional)
    required = {name: tensor for name, tensor in expected.items() if name not in optional}
    check_shapes(checkpoint.path, state, required)
    fitting = {
        name: each for name, each in state.items() if name in expected and each.shape == expected[name].shape
    }
    check_finite(checkpoint.path, fitting)
    module.load_state_dict(fitting, strict=False)


def write_state(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that is either whole under `path` or not there (CheckpointError)."""
    path = check_writable(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Tensors that share memory are refused by the format, so each gets its own.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    try:
        save_file(tensors, partial, metadata=dict(metadata))
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be written: {error}", "give a file in an existing folder with enough free space"
        ) from error
    finally:  # an interruption leaves nothing either
        with contextlib.suppress(OSError):
            partial.unlink()


def check_writable(path: str | Path) -> Path:
    """`path`, unless no file can be written there (CheckpointError): to be asked before a long training."""
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        what = "it is a folder" if path.is_dir() else "its folder does not exist"
        raise CheckpointError(f"{path} cannot be written: {what}", "give a file in an existing folder")
    return path


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over sorted names, dtypes, shapes and bytes of a state, step counters excepted."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if not is_counter(name)):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
