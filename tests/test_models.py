"""Models by name, with what they expect of a picture, and with weights from three places."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from subtune_deploy.errors import CheckpointError, ModelError, Unavailable
from subtune_deploy.models import Model, load_model

NETS = """
import torch
from torch import nn

import neighbour

class Net(nn.Sequential):
    def __init__(self):
        stem = nn.Conv2d(neighbour.CHANNELS, 4, 3)
        super().__init__(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def plain():
    return Net()

def declared():
    net = Net()
    net.input_size, net.input_mean, net.input_std = (1, 28, 20), (0.1,), (0.3,)
    return net

def contradictory():
    net = Net()
    net.input_size, net.input_mean = (1, 28, 28), (0.1, 0.2)
    return net

def failing():
    raise KeyError("no such variant")

def leaving():
    raise SystemExit(3)

def number():
    return 42

constant = 7
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("CHANNELS = 1\n")
    (tmp_path / "nets.py").write_text(NETS)
    yield tmp_path / "nets.py"
    sys.modules.pop("neighbour", None)
    sys.modules.pop("nets", None)


def answers(model: Model, batch: int = 2) -> Tensor:
    pictures = torch.randn(batch, *model.input.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        result: Tensor = model.module(pictures)
    return result


# Libraries


def test_a_torchvision_model_knows_its_input_and_labels() -> None:
    model = load_model("resnet18")
    assert model.name == "resnet18"
    assert model.input.shape == (3, 224, 224)
    assert model.input.mean == (0.485, 0.456, 0.406)
    assert model.input.std == (0.229, 0.224, 0.225)
    assert (model.input.interpolation, model.input.crop) == ("bilinear", 224 / 256)
    assert model.labels[285] == "Egyptian cat"
    assert len(model.labels) == 1000
    assert model.weights == "random (seed 0)"
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


def test_a_timm_model_knows_its_input_and_labels() -> None:
    pytest.importorskip("timm")
    model = load_model("timm:tf_efficientnet_lite0")
    assert model.name == "timm:tf_efficientnet_lite0"
    assert model.input.mean == model.input.std == (0.5, 0.5, 0.5)
    assert (model.input.interpolation, model.input.crop) == ("bicubic", 0.875)
    assert model.labels[504] == "coffee mug"


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_models_with_auxiliary_heads_answer_once_and_without_warnings(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = load_model(name, input_size=(3, 96, 96))
    assert answers(model).shape == (2, 1000)


@pytest.mark.parametrize("name", ["vit_b_32", "googlenet", "mobilenet_v3_small", "timm:vit_tiny_patch16_224"])
def test_answers_of_random_weights_depend_on_the_picture(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    one, other = answers(load_model(name))
    assert float(one.abs().max()) < 1e3
    assert float((one - other).abs().max()) > 1e-3


def test_random_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(7)
    first = load_model("shufflenet_v2_x0_5", seed=1).module.state_dict()
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), after), "the caller's random state was used"
    second = load_model("shufflenet_v2_x0_5", seed=1).module.state_dict()
    other = load_model("shufflenet_v2_x0_5", seed=2).module.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])


def test_calibration_leaves_no_trace_in_the_settings_of_batch_norm() -> None:
    norms = [m for m in load_model("resnet18").module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(norm.momentum == 0.1 and not norm.training for norm in norms)


# Sizes


@pytest.mark.parametrize(
    "name",
    [
        "vit_b_32",
        "resnet18",
        "timm:vit_tiny_patch16_224",
        "timm:resnet18",
        "timm:swin_tiny_patch4_window7_224",
    ],
)
def test_another_input_size_is_built_in_where_weights_depend_on_it(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    model = load_model(name, input_size=(3, 64, 64))
    assert model.input.shape == (3, 64, 64)
    assert answers(model).shape == (2, 1000)


BAD_SIZES = {
    "channels": ("resnet18", (1, 224, 224), "takes 3 channels, not input size 1x224x224"),
    "nothing": ("resnet18", (3, 0, 224), "3x0x224"),
    "not square": ("vit_b_32", (3, 64, 96), "square"),
    "not a multiple of the patch": ("vit_b_32", (3, 100, 100), "image_size 100"),
    "not a multiple of the window": ("maxvit_t", (3, 100, 100), "input_size"),
    "too small": ("inception_v3", (3, 20, 20), "does not run on input 3x20x20"),
}


@pytest.mark.parametrize("case", BAD_SIZES)
def test_a_wrong_size_is_told(case: str) -> None:
    name, size, message = BAD_SIZES[case]
    with pytest.raises(ModelError, match=message) as caught:
        load_model(name, input_size=size)
    assert "\n" not in caught.value.message
    assert "size" in caught.value.hint or "equal" in caught.value.hint


# Weights from a file


def test_weights_from_a_file_are_loaded_and_named_by_their_digest(tmp_path: Path) -> None:
    source = load_model("shufflenet_v2_x0_5", seed=5)
    path = tmp_path / "base.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.module.state_dict().items()}}, path)
    model = load_model("shufflenet_v2_x0_5", weights=str(path))
    assert torch.equal(answers(model), answers(source))
    assert model.weights == f"base.pt sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert len(model.labels) == 1000


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "squeezenet1_1", "timm:resnet18"])
def test_a_base_with_its_own_number_of_classes_is_recognised(tmp_path: Path, name: str) -> None:
    if name.startswith("timm:"):
        timm = pytest.importorskip("timm")
        source = timm.create_model("resnet18", num_classes=7)
    else:
        source = torchvision.models.get_model(name, num_classes=7)
    torch.save(source.state_dict(), tmp_path / "base.pt")
    model = load_model(name, weights=str(tmp_path / "base.pt"), input_size=(3, 64, 64))
    assert answers(model).shape == (2, 7)
    assert torch.equal(answers(model), answers(Model("", source.eval(), model.input, (), "")))
    assert model.labels == ()


def test_auxiliary_heads_may_miss_in_a_file(tmp_path: Path) -> None:
    source = torchvision.models.googlenet(aux_logits=False, init_weights=False, num_classes=3)
    torch.save(source.state_dict(), tmp_path / "base.pt")
    model = load_model("googlenet", weights=str(tmp_path / "base.pt"), input_size=(3, 64, 64))
    assert torch.equal(model.module.fc.weight, source.fc.weight)


def test_weights_of_another_model_and_a_misspelt_source_are_told(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "base.pt")
    with pytest.raises(CheckpointError, match="another architecture"):
        load_model("shufflenet_v2_x0_5", weights=str(tmp_path / "base.pt"))
    with pytest.raises(CheckpointError, match="defualt does not exist"):
        load_model("shufflenet_v2_x0_5", weights="defualt")


# Weights from the library


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and proxies that refuse every connection."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.mark.usefixtures("no_network")
def test_default_weights_without_a_network_are_told_with_the_ways_out() -> None:
    with pytest.raises(ModelError, match="default weights of squeezenet1_1 cannot be had") as caught:
        load_model("squeezenet1_1", weights="default")
    assert "network" in caught.value.hint
    assert "--weights FILE" in caught.value.hint


@pytest.mark.usefixtures("no_network")
def test_default_timm_weights_without_a_network_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # no half minute of attempts
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="default weights of timm:resnet18 cannot be had") as caught:
        load_model("timm:resnet18", weights="default")
    assert "--weights FILE" in caught.value.hint


def test_default_weights_that_do_not_suit_the_size_are_told_before_a_download() -> None:
    with pytest.raises(ModelError, match="do not suit image_size 64"):
        load_model("vit_b_32", weights="default", input_size=(3, 64, 64))


# Names


@pytest.mark.parametrize(
    "spec, hint",
    [
        ("resnet5O", "did you mean resnet50"),
        ("nets.py", "nets.py:make"),
        ("", "torchvision"),
    ],
)
def test_an_unknown_name_is_told_with_close_ones(spec: str, hint: str) -> None:
    with pytest.raises(ModelError, match="unknown model") as caught:
        load_model(spec)
    assert hint in caught.value.hint


def test_names_of_timm_are_suggested() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ModelError) as caught:
        load_model("tf_efficientnet_lite0")
    assert caught.value.hint == "did you mean timm:tf_efficientnet_lite0?"
    with pytest.raises(ModelError, match="unknown model timm:resnet5O") as caught:
        load_model("timm:resnet5O")
    assert "resnet50" in caught.value.hint
    with pytest.raises(ModelError, match=r"timm:resnet18\.nonsense cannot be made"):
        load_model("timm:resnet18.nonsense")


def test_timm_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])  # nothing can be found
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(Unavailable, match="timm") as caught:
        load_model("timm:resnet18")
    assert caught.value.hint == "pip install 'subtune-deploy[timm]'"


# Factories


def test_a_file_gives_a_model_and_may_import_its_neighbours(nets: Path) -> None:
    model = load_model(f"{nets}:plain")
    assert model.input.shape == (1, 224, 224)
    assert len(model.input.mean) == len(model.input.std) == 1
    assert answers(model).shape == (2, 2)
    assert model.weights == "as the factory returned them (seed 0)"
    assert torch.equal(answers(model), answers(load_model(f"{nets}:plain")))
    assert not torch.equal(answers(model), answers(load_model(f"{nets}:plain", seed=1)))
    assert str(nets.parent) not in sys.path


def test_a_relative_path_and_a_module_of_the_current_folder_will_do(
    nets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nets.parent.parent)
    relative = os.path.relpath(nets)
    expected = answers(load_model(f"{relative}:plain"))
    monkeypatch.chdir(nets.parent)
    assert torch.equal(answers(load_model("nets:plain")), expected)


def test_a_module_may_declare_its_input(nets: Path) -> None:
    spec = load_model(f"{nets}:declared").input
    assert (spec.shape, spec.mean, spec.std) == ((1, 28, 20), (0.1,), (0.3,))
    assert load_model(f"{nets}:declared", input_size=(1, 10, 10)).input.shape == (1, 10, 10)


def test_a_factory_of_an_installed_package_will_do() -> None:
    model = load_model("torchvision.models:squeezenet1_1", weights="default")
    assert model.input.shape == (3, 224, 224)
    assert model.weights == "as the factory returned them"


def test_a_factorys_model_takes_weights_from_a_file(nets: Path, tmp_path: Path) -> None:
    source = load_model(f"{nets}:plain", seed=9)
    torch.save(source.module.state_dict(), tmp_path / "base.pt")
    assert torch.equal(
        answers(load_model(f"{nets}:plain", weights=str(tmp_path / "base.pt"))), answers(source)
    )


@pytest.mark.parametrize(
    "factory, message",
    [
        ("plane", "has no factory 'plane'"),
        ("constant", "has no factory 'constant'"),
        ("", "has no factory ''"),
        ("failing", "KeyError: 'no such variant'"),
        ("leaving", "SystemExit: 3"),
        ("number", "returned int"),
        ("contradictory", r"declares input_size \(1, 28, 28\), input_mean \(0.1, 0.2\)"),
    ],
)
def test_a_factory_that_gives_no_model_is_told(nets: Path, factory: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(f"{nets}:{factory}")
    assert caught.value.hint
    assert factory != "plane" or "plain" in caught.value.hint


@pytest.mark.parametrize("spec", ["nowhere/nets.py:make", "no_such_package.nets:make", "a b:make", ":make"])
def test_a_place_that_does_not_exist_is_told(spec: str) -> None:
    with pytest.raises(ModelError):
        load_model(spec)


def test_a_file_that_cannot_be_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def make(:\n")
    with pytest.raises(ModelError, match="cannot be run: SyntaxError"):
        load_model(f"{tmp_path / 'broken.py'}:make")
