"""What is trained and how. No torch: the command line reads its options from here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from ..errors import InputError
from ..spec import AUGMENTATIONS, Pruning, format_layers

Family: TypeAlias = Literal["convolutional", "transformer"]

FEW = 1000
"""Up to so many pictures the paper trains longer, and transformers with other rates."""


def _setting(default: Any, told: str, /, **more: Any) -> Any:
    return field(default=default, metadata={"help": told, **more})


@dataclass(frozen=True)
class Fork:
    """What of the backbone a task has for itself, and what it starts from.

    `layers`: blocks, from 1, none for the head alone (linear probing); or "all": every weight of the backbone
    (full fine-tuning). A `siamese` head also reads the base's features. `init`: tuned blocks start as they were
    pretrained, or anew. Raises InputError.
    """

    layers: tuple[int, ...] | Literal["all"] = ()
    siamese: bool = False
    init: Literal["pretrained", "random"] = "pretrained"
    prune: Pruning | None = None

    def __post_init__(self) -> None:
        if self.layers != "all":
            object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
        if self.init not in ("pretrained", "random"):
            raise InputError(f"blocks cannot start as {self.init!r}", "give pretrained, or random")
        if not self.layers and (self.prune or self.init == "random"):
            what = "pruned" if self.prune else "started anew"
            raise InputError(f"no block is tuned that could be {what}", "give blocks, as in --layers 13-14")

    def __str__(self) -> str:
        """`13-14 siamese`, `all from scratch`, `14-16 pruned 0.5 local l1`."""
        words = (
            "all" if self.layers == "all" else format_layers(self.layers),
            "siamese" if self.siamese else "",
            "from scratch" if self.init == "random" else "",
            str(self.prune or ""),
        )
        return " ".join(filter(None, words))


@dataclass(frozen=True)
class TrainConfig:
    """AdamW, its learning rate annealed to 0 along a cosine. None: as in the paper, see `resolved`.

    Raises InputError for values that cannot train.
    """

    epochs: int | None = _setting(
        None, "Times that every picture is seen.", default=f"10; 50 for up to {FEW} pictures"
    )
    batch_size: int | None = _setting(None, "Pictures per step.", default="256")
    lr: float | None = _setting(
        None, "Learning rate of tuned blocks and their head.", default="1e-3; for transformers 1e-4"
    )
    probe_lr: float | None = _setting(
        None, "Learning rate where the head alone is trained.", default="1e-2; for transformers 1e-4"
    )
    weight_decay: float | None = _setting(None, "Weight decay.", default="0.01; for transformers 5e-5")
    label_smoothing: float = _setting(0.0, "Label smoothing, 0 to below 1.")
    augment: str = _setting(
        "none", "How training pictures are varied; the paper's is crop-flip.", choices=AUGMENTATIONS
    )
    seed: int = _setting(0, "Decides which pictures, their order and augmentation, the new head, dropout.")
    device: str = _setting(
        "cpu", "Where to train; auto: on a GPU if there is one.", choices=("cpu", "cuda", "auto")
    )
    precision: str = _setting("fp32", "bf16: mixed, for what is trained.", choices=("fp32", "bf16"))
    cache_bytes: int = _setting(
        1 << 30, "How much of what the frozen prefix computes is kept; beyond it, it runs again each time."
    )
    memory_bytes: int | None = _setting(
        None,
        "What forks that train together, in one worker, may take; beyond it, they train in turns.",
        default="half of a worker's part of what is free",
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value, choices = getattr(self, each.name), each.metadata.get("choices")
            holds, hint = _SOUND.get(each.name, (None, ""))
            if choices and value not in choices:
                raise InputError(f"{_words(each.name)} {value!r} is unknown", f"known: {', '.join(choices)}")
            if holds and value is not None and not holds(value):
                raise InputError(f"{_words(each.name)} is {value}", hint)


_SOUND: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "epochs": (lambda n: n >= 1, "give 1 or more"),
    "batch_size": (lambda n: n >= 2, "batch-norm needs 2 or more pictures"),
    "lr": (lambda rate: 0 < rate < math.inf, "give 1e-3, say"),
    "probe_lr": (lambda rate: 0 < rate < math.inf, "give 1e-2, say"),
    "weight_decay": (lambda decay: 0 <= decay < math.inf, "give 0 or more"),
    "label_smoothing": (lambda share: 0 <= share < 1, "give 0 to below 1"),
    "cache_bytes": (lambda n: n >= 0, "give 0 or more"),
    "memory_bytes": (lambda n: n >= 1, "give 1 or more"),
}


def _words(name: str) -> str:
    return name.replace("_", " ").replace("lr", "learning rate")


@dataclass(frozen=True)
class Resolved(TrainConfig):
    """Settings of which none is left open."""

    epochs: int
    batch_size: int
    lr: float
    probe_lr: float
    weight_decay: float

    def batches(self, pictures: int) -> int:
        """How many make an epoch: of nearly equal size, and none of one picture, which would break batch-norm."""
        return min(math.ceil(pictures / self.batch_size), pictures // 2)

    def largest(self, pictures: int) -> int:
        """How many pictures the largest of these batches has."""
        return math.ceil(pictures / self.batches(pictures))


def resolved(config: TrainConfig, family: Family, examples: int) -> Resolved:
    """`config` for so many pictures to train on, with the paper's values where it leaves them open."""
    given = {key: value for key, value in vars(config).items() if value is not None or key == "memory_bytes"}
    return Resolved(**{**paper_settings(family, examples), **given})


def paper_settings(family: Family, examples: int) -> dict[str, Any]:
    """The paper's table 3, and 50 epochs instead of 10 where examples are few (its section 3)."""
    few = examples <= FEW
    common = {"epochs": 50 if few else 10, "batch_size": 256}
    if family == "convolutional" or few:
        rates = {"lr": 1e-3, "weight_decay": 0.01}
    else:
        rates = {"lr": 1e-4, "weight_decay": 5e-5}
    return {**common, **rates, "probe_lr": 1e-2 if family == "convolutional" else rates["lr"]}
