"""Reading weights safely, matching them to a model's names, writing them whole or not at all."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from subtune_deploy.checkpoint import (
    Checkpoint,
    check_finite,
    fingerprint,
    load_into,
    match_keys,
    read_state,
    write_state,
)
from subtune_deploy.errors import CheckpointError


def network(seed: int = 0, width: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [("conv", nn.Conv2d(3, width, 3)), ("norm", nn.BatchNorm2d(width)), ("fc", nn.Linear(width, 2))]
    return nn.Sequential(OrderedDict(layers))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def saved(folder: Path, content: Any, name: str = "weights.pt", **options: Any) -> Path:
    torch.save(content, folder / name, **options)
    return folder / name


def as_checkpoint(state: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(Path("weights.pt"), state, {})


def one_line_each(error: CheckpointError) -> bool:
    return all(text and "\n" not in text for text in (error.message, error.hint))


# Reading


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "pytorch_model.bin", "model_best.pth.tar"])
def test_a_torch_file_is_read_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    state = network().state_dict()
    assert same(read_state(saved(tmp_path, state, name)).state, state)


def test_the_format_before_zip_archives_is_read(tmp_path: Path) -> None:
    state = network().state_dict()
    path = saved(tmp_path, state, _use_new_zipfile_serialization=False)
    assert same(read_state(path).state, state)


def test_safetensors_are_read_with_their_metadata_under_any_name(tmp_path: Path) -> None:
    state = network().state_dict()
    write_state(tmp_path / "a.safetensors", state, {"labels": '["cat", "dog"]'})
    (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    checkpoint = read_state(tmp_path / "a.bin")
    assert same(checkpoint.state, state)
    assert checkpoint.metadata == {"labels": '["cat", "dog"]'}


@pytest.mark.parametrize(
    "entry",
    ["state_dict", "model", "model_state", "model_state_dict", "ema", "state_dict_ema", "net", "weights"],
)
def test_weights_are_found_in_the_entry_where_trainers_keep_them(tmp_path: Path, entry: str) -> None:
    state = network().state_dict()
    content = {"epoch": 3, "best": 0.91, "optimizer": {"state": {0: {"step": torch.ones(1)}}}, entry: state}
    assert same(read_state(saved(tmp_path, content)).state, state)


def test_weights_are_found_two_entries_deep_and_in_an_entry_of_another_name(tmp_path: Path) -> None:
    state = network().state_dict()
    assert same(read_state(saved(tmp_path, {"model": {"state_dict": state}})).state, state)
    assert same(read_state(saved(tmp_path, {"resnet": state, "lr": 0.1})).state, state)


def test_plain_weights_go_before_averaged_ones_unless_a_key_is_given(tmp_path: Path) -> None:
    plain, averaged = network(1).state_dict(), network(2).state_dict()
    path = saved(tmp_path, {"model_ema": averaged, "model": plain})
    assert same(read_state(path).state, plain)
    assert same(read_state(path, key="model_ema").state, averaged)
    with pytest.raises(CheckpointError) as caught:
        read_state(path, key="model_emma")
    assert "model_ema" in caught.value.hint


def test_options_of_a_command_line_beside_the_weights_do_no_harm(tmp_path: Path) -> None:
    state = network().state_dict()
    path = saved(tmp_path, {"state_dict": state, "args": argparse.Namespace(lr=0.1, name="a")})
    assert same(read_state(path).state, state)


# Files that are refused


class Bomb:
    """A pickle that would create the file `mark` when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.mark}",))


@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "bomb.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Bomb(mark)}))
    else:
        saved(tmp_path, {"fc.weight": Bomb(mark)}, "bomb.pt", _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(CheckpointError, match="refused: it would run code") as caught:
        read_state(path)
    assert "system" in caught.value.message
    assert "state_dict" in caught.value.hint
    assert one_line_each(caught.value)
    assert not mark.exists()


def test_a_whole_pickled_model_is_refused_as_code(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="refused: it would run code"):
        read_state(saved(tmp_path, network()))


def write_truncated(path: Path) -> None:
    whole = saved(path.parent, network(width=64).state_dict(), "whole.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def write_truncated_safetensors(path: Path) -> None:
    write_state(path, network(width=64).state_dict(), {})
    path.write_bytes(path.read_bytes()[:-100])


BAD_FILES = {
    "missing": (lambda path: None, "weights.pt", "does not exist"),
    "empty": (lambda path: path.write_bytes(b""), "weights.pt", "is empty"),
    "a folder": (lambda path: path.mkdir(), "weights.pt", "is a folder"),
    "truncated": (write_truncated, "weights.pt", "truncated"),
    "text": (lambda path: path.write_text("hello, world\n" * 50), "weights.pt", "not a checkpoint"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 9), "weights.pt", "not a checkpoint"),
    "a plain pickle": (lambda path: path.write_bytes(pickle.dumps([1, 2])), "weights.pt", "not a checkpoint"),
    "no tensors": (lambda path: torch.save({"lr": 0.1}, path), "weights.pt", "no named tensors"),
    "one tensor": (lambda path: torch.save(torch.ones(3), path), "weights.pt", "no named tensors"),
    "empty tensors": (
        lambda path: write_state(path, {}, {"for": "nothing"}),
        "a.safetensors",
        "holds no tensors",
    ),
    "truncated tensors": (write_truncated_safetensors, "a.safetensors", "not a whole safetensors"),
    "no safetensors": (lambda path: path.write_text("x" * 99), "a.safetensors", "not a whole safetensors"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_what_is_no_checkpoint_is_told_in_one_line_with_a_hint(tmp_path: Path, case: str) -> None:
    make, name, message = BAD_FILES[case]
    make(tmp_path / name)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state(tmp_path / name)
    assert one_line_each(caught.value)
    assert name in caught.value.message


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path, network().state_dict())
    path.chmod(0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_state(path)


# Names


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "backbone.",
        "model.",
        "_orig_mod.",
        "encoder.",
        "net.",
        "module._orig_mod.model.",
        "student.x.",
    ],
)
def test_a_wrappers_prefix_is_removed(prefix: str) -> None:
    state = network().state_dict()
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    assert same(match_keys(as_checkpoint(wrapped), state), state)


def test_a_compiled_part_in_the_middle_is_recognised() -> None:
    state = network().state_dict()
    wrapped = {name.replace("conv.", "conv._orig_mod."): tensor for name, tensor in state.items()}
    assert same(match_keys(as_checkpoint(wrapped), state), state)


def test_a_head_beside_the_wrapped_body_keeps_its_name() -> None:
    state = network().state_dict()
    wrapped = {name if name.startswith("fc") else f"backbone.{name}": state[name] for name in state}
    assert same(match_keys(as_checkpoint(wrapped), state), state)


def test_what_does_not_belong_stays_visible() -> None:
    state = network().state_dict()
    wrapped = {**{f"model.{name}": tensor for name, tensor in state.items()}, "loss.weight": torch.ones(2)}
    assert set(match_keys(as_checkpoint(wrapped), state)) == {*state, "loss.weight"}


def test_weights_held_twice_are_refused() -> None:
    state = network().state_dict()
    wrapped = {**{f"model.{name}": tensor for name, tensor in state.items()}, "fc.bias": torch.ones(2)}
    with pytest.raises(CheckpointError, match="twice"):
        match_keys(as_checkpoint(wrapped), state)


# Loading


def test_loading_makes_the_module_equal_to_the_checkpoint() -> None:
    module, state = network(0), network(1).state_dict()
    load_into(module, as_checkpoint({f"module.{name}": tensor for name, tensor in state.items()}))
    assert same(module.state_dict(), state)


def test_step_counters_may_miss() -> None:
    state = network(1).state_dict()
    del state["norm.num_batches_tracked"]
    module = network(0)
    load_into(module, as_checkpoint(state))
    assert torch.equal(module.state_dict()["fc.weight"], state["fc.weight"])


def altered(**changes: Tensor | None) -> dict[str, Tensor]:
    state = {**network(1).state_dict(), **{name.replace("__", "."): each for name, each in changes.items()}}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


BAD_STATES = {
    "missing": (altered(fc__bias=None, fc__weight=None), r"2 missing \(fc.weight, fc.bias\)"),
    "surplus": (altered(extra__weight=torch.ones(1)), r"1 surplus \(extra.weight\)"),
    "both": (altered(fc__bias=None, fc__scale=torch.ones(1)), r"1 missing \(fc.bias\) and 1 surplus"),
    "shape": (altered(fc__weight=torch.ones(7, 4)), r"fc.weight \(7, 4\) instead of \(2, 4\)"),
    "width": (network(width=6).state_dict(), "another architecture"),
    "names": ({f"layer{i}.weight": torch.ones(3) for i in range(9)}, "another architecture"),
    "nan": (altered(fc__bias=torch.tensor([0.0, float("nan")])), "NaN or infinite weights.*fc.bias"),
    "infinite": (altered(norm__running_var=torch.full((4,), float("inf"))), "NaN or infinite"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_a_state_that_does_not_fit_is_told_and_changes_nothing(case: str) -> None:
    state, message = BAD_STATES[case]
    module = network(0)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_into(module, as_checkpoint(state))
    assert one_line_each(caught.value)
    assert same(module.state_dict(), network(0).state_dict())


def test_long_lists_of_names_are_cut_after_three() -> None:
    state = altered(a=torch.ones(1), b=torch.ones(1), c=torch.ones(1), d=torch.ones(1))
    with pytest.raises(CheckpointError, match=r"4 surplus \(a, b, c, \.\.\.\)"):
        load_into(network(), as_checkpoint(state))


def test_optional_names_may_miss_or_have_another_shape() -> None:
    module = network(0)
    load_into(
        module, as_checkpoint(altered(fc__bias=None, fc__weight=torch.ones(9, 4))), ["fc.weight", "fc.bias"]
    )
    assert torch.equal(module.state_dict()["conv.weight"], network(1).state_dict()["conv.weight"])
    assert torch.equal(module.state_dict()["fc.weight"], network(0).state_dict()["fc.weight"])


def test_integers_are_finite() -> None:
    check_finite(Path("weights.pt"), {"steps": torch.tensor(3), "mask": torch.tensor([True])})


# Writing


def test_what_was_written_is_read_back_bit_by_bit(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    state = {"a": shared.T, "b": shared, "half": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(7)}
    write_state(tmp_path / "a.safetensors", state, {"format": "test"})
    checkpoint = read_state(tmp_path / "a.safetensors")
    assert same(checkpoint.state, state)
    assert checkpoint.metadata == {"format": "test"}
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_full_disk_leaves_nothing_behind_and_keeps_the_old_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # a limit on file sizes, where the system has one
    write_state(tmp_path / "a.safetensors", {"old": torch.ones(1)}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot be written") as caught:
            write_state(tmp_path / "a.safetensors", {"new": torch.ones(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert one_line_each(caught.value)
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert list(read_state(tmp_path / "a.safetensors").state) == ["old"]


def test_an_output_that_is_a_folder_or_in_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "nowhere" / "a.safetensors"):
        with pytest.raises(CheckpointError, match="cannot be written"):
            write_state(path, {"a": torch.ones(1)}, {})
    assert os.listdir(tmp_path) == ["folder"]


# Fingerprints


def test_equal_states_have_equal_fingerprints_in_any_order() -> None:
    state = network().state_dict()
    assert fingerprint(state) == fingerprint(dict(reversed(list(state.items()))))
    assert len(fingerprint(state)) == 64


@pytest.mark.parametrize(
    "change",
    [
        {"fc.bias": torch.tensor([0.0, -0.0])},
        {"fc.bias": torch.zeros(1, 2)},
        {"fc.bias": torch.zeros(2, dtype=torch.float64)},
        {"fc.other": torch.zeros(2)},
    ],
)
def test_name_shape_dtype_and_every_bit_count(change: dict[str, Tensor]) -> None:
    state = {**network().state_dict(), "fc.bias": torch.zeros(2)}
    assert fingerprint(state) != fingerprint({**state, **change})


def test_step_counters_do_not_count() -> None:
    state = network().state_dict()
    assert fingerprint(state) == fingerprint({**state, "norm.num_batches_tracked": torch.tensor(99)})
