"""How a task is trained. No torch: the command line reads its options from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError


def _setting(default: Any, told: str) -> Any:
    return field(default=default, metadata={"help": told})


@dataclass(frozen=True)
class TrainConfig:
    """AdamW, its learning rate annealed to 0 along a cosine (paper, table 3, whose batch is 256).

    Raises InputError for values that cannot train.
    """

    epochs: int = _setting(10, "Times that every picture is seen.")
    batch_size: int = _setting(64, "Pictures per step.")
    lr: float = _setting(1e-3, "Learning rate of tuned blocks and their head.")
    probe_lr: float = _setting(1e-2, "Learning rate where the head alone is trained.")
    weight_decay: float = _setting(0.01, "Weight decay.")
    label_smoothing: float = _setting(0.0, "Label smoothing, 0 to below 1.")
    seed: int = _setting(0, "Decides the split, the new head and the order of pictures.")
    cache_bytes: int = _setting(
        1 << 30, "How much of what the frozen prefix computes is kept; beyond it, it runs again each time."
    )

    def __post_init__(self) -> None:
        lr = min(self.lr, self.probe_lr)
        _require(self.epochs >= 1, f"epochs is {self.epochs}", "give 1 or more")
        _require(
            self.batch_size >= 2, f"batch size is {self.batch_size}", "batch-norm needs 2 or more pictures"
        )
        _require(lr > 0, f"learning rate is {lr}", "give 1e-3, say")
        _require(self.weight_decay >= 0, f"weight decay is {self.weight_decay}", "give 0 or more")
        _require(
            0 <= self.label_smoothing < 1, f"label smoothing is {self.label_smoothing}", "give 0 to below 1"
        )


def _require(holds: bool, message: str, hint: str) -> None:
    if not holds:
        raise InputError(message, hint)
