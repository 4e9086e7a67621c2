"""Backbones arrive in other processes as they were, wherever their code comes from."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest
import tiny_jobs
import torch
from tiny_networks import Net, lively

from subtune_deploy.backbone import Backbone, identity, trace
from subtune_deploy.errors import ModelError, Unavailable
from subtune_deploy.executors import travel
from subtune_deploy.executors.processes import Processes
from subtune_deploy.models import Model, load_model
from subtune_deploy.spec import InputSpec

NET = """
import torch
from parts import Part, twice

class Net(torch.nn.Module):
    input_size = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(Part(3), Part(3))
        self.head = torch.nn.Linear(3, 4)

    def forward(self, x):
        return self.head(twice(self.blocks(x)).mean((2, 3)))
"""
PARTS = """
import torch

def twice(x):
    return x * 2

class Part(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = torch.nn.Conv2d(width, width, 3, padding=1)
        self.second = torch.nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))
"""


def from_file(folder: Path) -> Backbone:
    """A user's file that imports another one beside it."""
    (folder / "net.py").write_text(NET)
    (folder / "parts.py").write_text(PARTS)
    return trace(load_model(f"{folder}/net.py:Net"))


def from_memory(folder: Path) -> Backbone:
    """A class of a running session, blocks named by a pattern."""

    class Local(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    torch.manual_seed(0)
    module = lively(Local("chain", 3, 4)).eval().requires_grad_(False)
    model = Model("local", module, InputSpec((3, 8, 8)), ("a",), "mine")
    return trace(model, r"blocks\.[12]")


def from_torchvision(folder: Path) -> Backbone:
    return trace(load_model("resnet18", input_size=(3, 32, 32)))


def from_timm(folder: Path) -> Backbone:
    pytest.importorskip("timm")
    return trace(load_model("timm:tf_efficientnet_lite0", input_size=(3, 32, 32)))


@pytest.mark.parametrize("make", [from_file, from_memory, from_torchvision, from_timm])
def test_a_backbone_arrives_in_another_process_as_it_was(
    make: Callable[[Path], Backbone], tmp_path: Path
) -> None:
    backbone = make(tmp_path)
    sent = travel.packed(backbone, "and this", 2)
    ((_, arrived),) = Processes(1).run(tiny_jobs.arrival, sent, [3])
    assert not isinstance(arrived, Exception), arrived
    facts, labels, answers, others = arrived
    assert facts == identity(backbone)
    assert labels == (backbone.labels, backbone.weights)
    assert others == ("and this", 2)
    with torch.no_grad():
        expected = backbone.model(tiny_jobs.pictures(backbone, 3))
    torch.testing.assert_close(torch.tensor(answers), expected, rtol=1e-5, atol=1e-5)


def test_another_version_of_pytorch_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sent = travel.packed(from_file(tmp_path))
    monkeypatch.setattr(torch, "__version__", "1.0.0")
    with pytest.raises(Unavailable, match=r"this worker has PyTorch 1\.0\.0"):
        travel.unpacked(sent)


def test_a_network_that_cannot_be_sent_is_told(tmp_path: Path) -> None:
    backbone = from_file(tmp_path)
    backbone.model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ModelError, match="cannot be sent to another process"):
        travel.packed(backbone)


def test_packing_changes_nothing_for_others_who_use_cloudpickle(tmp_path: Path) -> None:
    before = cloudpickle.list_registry_pickle_by_value()
    travel.packed(from_file(tmp_path))
    assert cloudpickle.list_registry_pickle_by_value() == before
