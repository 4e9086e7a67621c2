"""Recipes: which backend compiles an engine, and how. The schema is in engines/README.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from .backends import KNOWN
from .backends.base import Rate, Target
from .errors import InputError, TargetError, did_you_mean
from .records import to_record

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "UNITS",
    "Rate",
    "Target",
    "check_target",
    "in_base_units",
    "list_targets",
    "load_target",
    "recipes_folder",
]

UNITS = {
    "compute": {"GMAC/s": 1e9, "TMAC/s": 1e12},
    "bandwidth": {"GB/s": 1e9, "TB/s": 1e12},
    "launch": {"us": 1e-6, "ms": 1e-3},
}
"""The numbers a datasheet table may hold, and their units in MAC/s, byte/s and seconds."""


MOST_THREADS = 1024
WEIGHT_BITS = (7, 8)
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""Of a target, and so of the folder of its engine."""


def recipes_folder() -> Path:
    """Where the recipes lie: inside an installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[1] / "engines"


def list_targets() -> tuple[Target, ...]:
    """Every recipe that comes with the package, by name. Raises TargetError if one is malformed."""
    return tuple(_read(path) for path in sorted(recipes_folder().glob("*.toml")))


def load_target(name_or_path: str) -> Target:
    """A recipe of the package by its name, or any recipe by the path of its file. Raises TargetError."""
    if name_or_path.endswith(".toml") or "/" in name_or_path or "\\" in name_or_path:
        return _read(Path(name_or_path))
    names = [path.stem for path in sorted(recipes_folder().glob("*.toml"))]
    if name_or_path not in names:
        raise TargetError(
            f"target {name_or_path!r} is unknown", f"{did_you_mean(name_or_path, names)} (or give a file)"
        )
    return _read(recipes_folder() / f"{name_or_path}.toml")


def in_base_units(name: str, rate: Rate) -> float:
    """A datasheet number in MAC/s ("compute"), byte/s ("bandwidth") or seconds ("launch")."""
    return rate.value * UNITS[name][rate.unit]


def _read(path: Path) -> Target:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TargetError(
            f"there is no recipe {path}", "see subtune-deploy targets, or check the path"
        ) from error
    except OSError as error:
        raise TargetError(f"recipe {path} cannot be read: {error.strerror}", "give a TOML file") from error
    except ValueError as error:  # TOML and UTF-8 alike
        raise TargetError(
            f"recipe {path} is not TOML: {error}", "engines/README.md shows a recipe"
        ) from error
    try:
        target = to_record(Target, table)
        check_target(target)
    except InputError as error:
        raise TargetError(f"recipe {path}: {error.message}", error.hint) from error
    return target


def check_target(target: Target) -> None:
    """Raise InputError for a name, backend, precision, kept units, count or datasheet that cannot be."""
    if not re.fullmatch(NAME, target.name):
        raise InputError(f"name is {target.name!r}", "it names a folder: use letters, digits, - and _")
    if target.backend not in KNOWN:
        raise InputError(f"backend is {target.backend!r}", did_you_mean(target.backend, KNOWN))
    precisions = KNOWN[target.backend].precisions
    if target.precision not in precisions:
        raise InputError(
            f"precision is {target.precision!r}", f"{target.backend} has {', '.join(precisions)}"
        )
    _check_int8(target)
    if not 0 <= target.threads <= MOST_THREADS:
        raise InputError(f"threads is {target.threads}", "give a count, or 0 to leave it to the backend")
    if target.width_multiple < 1:
        raise InputError(
            f"width_multiple is {target.width_multiple}", "give 8, or 1 where any width is as good"
        )
    for name, rate in target.datasheet.items():
        _check_rate(name, rate)


def _check_int8(target: Target) -> None:
    other = f"the precision is {target.precision}" if target.precision != "int8" else ""
    if target.keep and other:
        raise InputError(
            f"keep leaves units of an int8 graph in float32, {other}",
            'take keep out, or give precision = "int8"',
        )
    if target.weight_bits and other:
        raise InputError(
            f"weight_bits is of an int8 graph, {other}", 'take weight_bits out, or give precision = "int8"'
        )
    if target.weight_bits not in (0, *WEIGHT_BITS):
        raise InputError(f"weight_bits is {target.weight_bits}", "give 8 or 7, or leave it out")


def _check_rate(name: str, rate: Rate) -> None:
    if name not in UNITS:
        raise InputError(f"unknown key 'datasheet.{name}'", did_you_mean(name, UNITS))
    if rate.unit not in UNITS[name]:
        flop = "; one multiply-add is two FLOP, so halve those" if "FLOP" in rate.unit.upper() else ""
        raise InputError(f"datasheet.{name}.unit is {rate.unit!r}", f"give {' or '.join(UNITS[name])}{flop}")
    if not 0 < rate.value < float("inf"):
        raise InputError(f"datasheet.{name}.value is {rate.value}", "give a positive number")
    if not rate.source.strip():
        raise InputError(f"datasheet.{name}.source is empty", "say where the number was read")
