"""The parity check: it must pass what is right and name what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from subtune_deploy.errors import BundleError, ParityError
from subtune_deploy.models import load_model
from subtune_deploy.parity import FILE, TOLERANCES, References, check, relative_errors

RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(5, 3, 4, 4)).astype(np.float32)


@dataclass(frozen=True)
class Linear:
    """A real engine of the protocol: answers = mean pixel per channel times a matrix, per task."""

    weights: Mapping[str, np.ndarray]
    threads: int = 1

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(self.weights)

    def run(self, batch: np.ndarray) -> dict[str, np.ndarray]:
        return {name: batch.mean((2, 3)) @ weight for name, weight in self.weights.items()}


WEIGHTS = {
    "base": RANDOM.normal(size=(3, 6)).astype(np.float32),
    "birds": RANDOM.normal(size=(3, 2)).astype(np.float32),
}
KINDS = ("random", "random", "random", "picture", "picture")


def references() -> References:
    return References(INPUTS, KINDS, Linear(WEIGHTS).run(INPUTS))


def checked(engine: Linear, batch: int | None = None, precision: str = "fp32") -> list[dict[str, object]]:
    return check(engine, Linear({"base": WEIGHTS["base"]}), references(), batch=batch, precision=precision)


@pytest.mark.parametrize("batch", [None, 1, 2, 4, 8])
def test_an_engine_that_is_right_passes_at_any_batch(batch: int | None) -> None:
    figures = checked(Linear(WEIGHTS), batch)
    told = {(f["task"], f["inputs"], f["against"]) for f in figures}
    assert told == {
        (task, kind, against)
        for task, against in (
            ("base", "stand-alone model"),
            ("birds", "stand-alone model"),
            ("base", "base engine"),
        )
        for kind in ("random", "picture")
    }
    assert all(f["error"] < 1e-6 and f["agreeing"] == 1 for f in figures)


def test_a_wrong_task_is_named_with_its_input_and_class() -> None:
    weights = {name: weight.copy() for name, weight in WEIGHTS.items()}
    weights["birds"][:, 1] += 0.5
    with pytest.raises(ParityError, match=r"task birds .* on random input 0, class 1"):
        checked(Linear(weights))


def test_swapped_outputs_are_caught() -> None:
    with pytest.raises(ParityError, match="answers"):
        checked(Linear({"base": WEIGHTS["birds"], "birds": WEIGHTS["base"]}))


def test_a_swap_that_a_wide_tolerance_would_hide_is_caught() -> None:
    noise = RANDOM.normal(size=(3, 2)).astype(np.float32) * 0.02
    weights = {**WEIGHTS, "bees": WEIGHTS["birds"] + noise}
    swapped = {**weights, "bees": weights["birds"], "birds": weights["bees"]}
    right = References(INPUTS, KINDS, Linear(weights).run(INPUTS))
    lone = Linear({"base": WEIGHTS["base"]})
    assert check(Linear(weights), lone, right, batch=None, precision="int8")
    both = {**weights, "bees": weights["birds"]}
    for wrong in (swapped, both):
        with pytest.raises(ParityError, match="tasks birds and bees do not differ as"):
            check(Linear(wrong), lone, right, batch=None, precision="int8")


def test_an_error_that_tasks_have_in_common_is_not_taken_for_a_swap() -> None:
    """It may be larger than what they differ by, as int8's in a shared prefix is."""
    noise = RANDOM.normal(size=(3, 2)).astype(np.float32) * 0.02
    weights = {**WEIGHTS, "bees": WEIGHTS["birds"] + noise}
    right = References(INPUTS, KINDS, Linear(weights).run(INPUTS))
    common = {"base": WEIGHTS["base"], **{name: weights[name] + 3 * noise for name in ("birds", "bees")}}
    answers = Linear(common).run(INPUTS)
    assert np.linalg.norm(answers["birds"] - right.answers["bees"]) < np.linalg.norm(
        answers["birds"] - right.answers["birds"]
    )
    assert check(Linear(common), Linear({"base": WEIGHTS["base"]}), right, batch=None, precision="int8")


def test_nan_is_never_within_tolerance() -> None:
    weights = {**WEIGHTS, "birds": WEIGHTS["birds"] * np.nan}
    with pytest.raises(ParityError, match="birds"):
        checked(Linear(weights))


def test_the_tolerance_goes_by_precision() -> None:
    weights = {**WEIGHTS, "birds": WEIGHTS["birds"] * np.float32(1.001)}
    with pytest.raises(ParityError):
        checked(Linear(weights))
    assert max(f["error"] for f in checked(Linear(weights), precision="fp16")) == pytest.approx(
        1e-3, rel=0.01
    )


def test_an_answer_that_is_wrong_in_the_last_bits_is_not_called_identical() -> None:
    weights = {**WEIGHTS, "birds": np.nextafter(WEIGHTS["birds"], np.float32(9))}
    identical = {(f["task"], f["against"]): f["identical"] for f in checked(Linear(weights))}
    assert identical == {
        ("base", "stand-alone model"): True,
        ("birds", "stand-alone model"): False,
        ("base", "base engine"): True,
    }


def test_errors_are_relative_to_the_largest_answer() -> None:
    assert relative_errors(np.array([[1.0, 11.0]]), np.array([[0.0, 10.0]]))[0] == pytest.approx(0.1)


def test_of_one_class_errors_are_relative_to_the_largest_answer_of_all_inputs() -> None:
    """Where its answer changes sign it is near zero, and rounding as large as ever."""
    got, right = np.array([[0.02], [-3.9], [1.0]]), np.array([[-0.01], [-4.0], [1.0]])
    assert relative_errors(got, right) == pytest.approx([0.03 / 4, 0.1 / 4, 0])
    two = relative_errors(np.repeat(got, 2, axis=1), np.repeat(right, 2, axis=1))
    assert two == pytest.approx([3, 0.1 / 4, 0])


def test_references_come_back_as_they_were_saved(tmp_path: Path) -> None:
    references().save(tmp_path)
    back = References.load(tmp_path)
    assert back.kinds == KINDS
    assert np.array_equal(back.inputs, INPUTS)
    assert all(np.array_equal(back.answers[task], answer) for task, answer in references().answers.items())


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_references_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(BundleError, match="cannot be read"):
        References.load(tmp_path)


def rounded(values: Tensor) -> Tensor:
    """To the ten bits of a fraction that TF32 has: what a GPU does to both factors, sums being of fp32."""
    return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def test_tf32_errs_more_than_fp32_may_and_less_than_its_own_tolerance() -> None:
    network = load_model("resnet18").module
    pictures = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 3, 64, 64), dtype=np.float32))
    with torch.inference_mode():
        exact = network(pictures)
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_(rounded(module.weight))
                module.register_forward_pre_hook(lambda _, given: (rounded(given[0]),))
        errors = relative_errors(network(pictures).numpy(), exact.numpy())
    assert TOLERANCES["fp32"] < errors.min()
    assert errors.max() < TOLERANCES["tf32"]


def half(values: Tensor) -> Tensor:
    return values.half().float()


def convolved(layer: nn.Conv2d, given: Tensor, at_once: int) -> Tensor:
    """In fp16: after every `at_once` products their sum is rounded, as in an accumulator of a GPU."""
    columns = nn.functional.unfold(
        half(given), layer.kernel_size, layer.dilation, layer.padding, layer.stride
    )
    weight = half(layer.weight).flatten(1)
    total = torch.zeros(len(given), len(weight), columns.shape[-1])
    for start in range(0, weight.shape[1], at_once):
        part = slice(start, start + at_once)
        total = half(total + weight[:, part] @ columns[:, part])
    side = (given.shape[-1] + 2 * int(layer.padding[0]) - layer.kernel_size[0]) // layer.stride[0] + 1
    return total.unflatten(2, (-1, side))


def test_sums_of_fp16_err_more_than_fp16_may_and_less_than_their_own_tolerance() -> None:
    pictures = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 64, 64), dtype=np.float32))

    def errors(at_once: int) -> npt.NDArray[Any]:
        network = load_model("resnet50").module
        exact = network(pictures)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.forward = partial(convolved, module, at_once=at_once)  # type: ignore[method-assign]
            elif not list(module.children()):
                module.register_forward_hook(lambda _, __, answer: half(answer))
        return relative_errors(network(pictures).numpy(), exact.numpy())

    with torch.inference_mode():
        assert errors(10**6).max() < TOLERANCES["fp16"] < errors(16).min()
        assert errors(16).max() < TOLERANCES["fp16 sums"]
