"""The options that make forks thinner, one for each field of `Pruning`, and what was given with them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError
from ..spec import Pruning
from .common import Command, options

if TYPE_CHECKING:
    from ..backends.base import Target


def _multiple(given: str) -> int:
    """A whole number, or what the recipe of a target says. Raises TargetError."""
    from ..targets import load_target

    return int(given) if re.fullmatch(r"-?\d+", given) else load_target(given).width_multiple


def _prune_way(field: dataclasses.Field[Any]) -> Callable[[Command], Command]:
    """The option for a field of Pruning, so that it is declared nowhere else."""
    flag, name = f"--prune-{field.name.replace('_', '-')}", f"prune_{field.name}"
    choices, told = field.metadata.get("choices"), field.metadata["help"]
    if field.type == "bool":
        return click.option(flag, name, is_flag=True, default=None, help=told)
    usual = str(field.metadata.get("default", field.default))
    kind, shown = (click.Choice(choices), None) if choices else (_multiple, "N|TARGET")
    return click.option(flag, name, type=kind, metavar=shown, show_default=usual, help=told)


def _ratio_option(*, multiple: bool) -> Callable[[Command], Command]:
    told = f"Make the fork thinner. {_RATIO.metadata['help']}{' Repeatable.' if multiple else ''}"
    return click.option("--prune", "prune_ratio", type=float, multiple=multiple, metavar="RATIO", help=told)


_RATIO, *_WAYS = dataclasses.fields(Pruning)
prune_how_options = options(*map(_prune_way, _WAYS))
"""How a fork is made thinner, where the ratio is asked for elsewhere."""

prune_options = options(_ratio_option(multiple=False), prune_how_options)
"""How the fork of a task to be trained is made thinner."""

prune_candidate_options, prune_candidates_options = (
    options(_ratio_option(multiple=many), *(_prune_way(each) for each in _WAYS if each.name != "when"))
    for many in (False, True)
)
"""The same for one latency candidate, or for several ratios; nothing is trained, so there is no before and after."""


def read_pruning_how(given: dict[str, Any]) -> dict[str, Any]:
    """Take out of a command's arguments what `prune_how_options` put there: fields of Pruning that were given."""
    values = {each.name: given.pop(f"prune_{each.name}", None) for each in _WAYS}
    return {name: value for name, value in values.items() if value is not None}


def read_prunings(given: dict[str, Any], target: Target | None = None) -> tuple[Pruning, ...]:
    """The same with the ratio: a record for each, widths as `target` likes them unless asked otherwise.

    Raises InputError for what is no pruning, or has no ratio.
    """
    ratios, how = given.pop("prune_ratio"), read_pruning_how(given)
    ratios = ratios if isinstance(ratios, tuple) else () if ratios is None else (ratios,)
    if how and not ratios:
        flag = f"--prune-{next(iter(how)).replace('_', '-')}"
        raise InputError(f"{flag} goes with --prune", "give a ratio too, as in --prune 0.5")
    usual = {"round_to": target.width_multiple} if target else {}
    return tuple(Pruning(ratio, **(usual | how)) for ratio in ratios)


def read_pruning(given: dict[str, Any]) -> Pruning | None:
    """The one pruning that was asked for, if any."""
    return next(iter(read_prunings(given)), None)
