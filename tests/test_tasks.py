"""What a checkpoint tuned, as a task: found by comparison with the base, kept small, run on its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.checkpoint import Checkpoint, read_state, write_state
from subtune_deploy.errors import CheckpointError, LayersError, TaskError
from subtune_deploy.models import Model
from subtune_deploy.spec import InputSpec
from subtune_deploy.tasks import (
    base_task,
    candidate_task,
    check_names,
    owners,
    standalone,
    task_from_checkpoint,
    task_state,
    tuned_blocks,
)

WIDTH = 6


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        self.conv2, self.norm2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Net(nn.Module):
    """A stem, four residual blocks, a bare parameter, a linear classifier, and a part that is never run."""

    def __init__(self, classes: int = 5, features: int = WIDTH) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, WIDTH, 3, stride=2), nn.BatchNorm2d(WIDTH)
        self.layers = nn.Sequential(*(Block() for _ in range(4)))
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.fc = nn.Linear(features, classes)
        self.aux = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.norm(self.stem(x)))
        return self.fc(x.mean((2, 3)) * self.scale)


class ConvNet(nn.Module):
    """Its classifier is a 1x1 convolution, as in SqueezeNet."""

    def __init__(self, classes: int = 5, features: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, stride=2)
        self.layers = nn.Sequential(Block(), Block())
        self.classifier = nn.Conv2d(features, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(self.stem(x))).mean((2, 3))


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, statistics and biases of which none is a constant."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + 0.1 * noise.abs() if "norm" in name or name == "scale" else 0.3 * noise)
    return network.eval().requires_grad_(False)


def traced(network: nn.Module) -> Backbone:
    return trace(Model("tiny", lively(network), InputSpec((3, 12, 12)), tuple("abcde"), "random"))


@pytest.fixture
def backbone() -> Backbone:
    return traced(Net())


def base_state(backbone: Backbone) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}


def fine_tuned(
    backbone: Backbone, *parts: str, head: tuple[int, int] | None = (3, WIDTH)
) -> dict[str, Tensor]:
    """The base's state with everything moved whose name starts with one of `parts`, and a new head."""
    state = base_state(backbone)
    for name, tensor in state.items():
        if name.startswith(parts) and tensor.is_floating_point():
            state[name] = tensor * 1.25
    if head:
        generator = torch.Generator().manual_seed(sum(head))
        state["fc.weight"], state["fc.bias"] = torch.randn(head, generator=generator), torch.ones(head[0])
    return state


def as_checkpoint(state: dict[str, Tensor], **metadata: str) -> Checkpoint:
    return Checkpoint(Path("birds.pt"), state, metadata)


def answers(module: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = module(torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)))
    return result


def loaded(network: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    network.load_state_dict(state)
    return network.eval()


# Finding what was tuned


@pytest.mark.parametrize(
    "parts, blocks",
    [(("layers.1",), (2,)), (("layers.0", "layers.3"), (1, 4)), (("layers",), (1, 2, 3, 4)), ((), ())],
)
def test_the_diff_finds_the_tuned_blocks_and_the_head(
    backbone: Backbone, parts: tuple[str, ...], blocks: tuple[int, ...]
) -> None:
    state = fine_tuned(backbone, *(parts or ("nothing",)))
    task = task_from_checkpoint(backbone, "birds", as_checkpoint(state), layers=blocks)
    assert tuned_blocks(backbone, task) == blocks
    assert list(task.versions) == [*(f"block{i}" for i in blocks), "fc"]
    assert (task.classes, task.siamese, task.notes) == (3, False, ())
    assert torch.equal(answers(standalone(backbone, task)), answers(loaded(Net(3), {**state, **aux(3)})))


def aux(classes: int) -> dict[str, Tensor]:
    return {"aux.weight": torch.zeros(classes, WIDTH), "aux.bias": torch.zeros(classes)}


def test_one_bit_in_one_weight_is_a_tuned_block(backbone: Backbone) -> None:
    state = base_state(backbone)
    weight = state["layers.2.conv1.weight"]
    weight.view(torch.int32)[0, 0, 0, 0] += 1
    assert tuned_blocks(backbone, task_from_checkpoint(backbone, "birds", as_checkpoint(state))) == (3,)


def test_units_outside_blocks_and_bare_parameters_can_be_tuned(backbone: Backbone) -> None:
    state = fine_tuned(backbone, "stem", "scale")
    task = task_from_checkpoint(backbone, "birds", as_checkpoint(state))
    assert list(task.versions) == ["stem", "scale", "fc"]
    assert tuned_blocks(backbone, task) == ()
    assert torch.equal(answers(standalone(backbone, task)), answers(loaded(Net(3), {**state, **aux(3)})))


def test_the_base_is_left_as_it_was(backbone: Backbone) -> None:
    before = base_state(backbone)
    task = task_from_checkpoint(backbone, "birds", as_checkpoint(fine_tuned(backbone, "layers.1")))
    own = standalone(backbone, task)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    assert bool(task.versions["fc"].weight.any()), "the stand-alone model shares weights with the task"


def test_prefixes_step_counters_and_unused_weights_do_not_matter(backbone: Backbone) -> None:
    state = fine_tuned(backbone, "layers.1")
    state = {f"module.{k}": v for k, v in state.items() if "num_batches" not in k and not k.startswith("aux")}
    assert tuned_blocks(backbone, task_from_checkpoint(backbone, "birds", as_checkpoint(state))) == (2,)
    state = fine_tuned(backbone, "layers.1", "aux")
    state["layers.0.norm1.num_batches_tracked"] += 10
    assert tuned_blocks(backbone, task_from_checkpoint(backbone, "birds", as_checkpoint(state))) == (2,)


def test_a_checkpoint_in_half_precision_is_compared_in_half_precision(backbone: Backbone) -> None:
    state = fine_tuned(backbone, "layers.1")
    halves = {name: each.half() if each.is_floating_point() else each for name, each in state.items()}
    task = task_from_checkpoint(backbone, "birds", as_checkpoint(halves))
    assert tuned_blocks(backbone, task) == (2,)
    assert task.versions["block2"].conv1.weight.dtype == torch.float32


def test_labels_come_from_the_caller_or_the_file(backbone: Backbone) -> None:
    state, names = fine_tuned(backbone, "layers.1"), ["owl", "tit", "jay"]
    assert task_from_checkpoint(backbone, "a", as_checkpoint(state), labels=names).labels == (
        "owl",
        "tit",
        "jay",
    )
    in_file = as_checkpoint(state, labels=json.dumps(names))
    assert task_from_checkpoint(backbone, "a", in_file).labels == ("owl", "tit", "jay")
    for labels, message in [('["owl"]', "3 classes, but there are 1 labels"), ("[owl", "malformed labels")]:
        with pytest.raises(CheckpointError, match=message):
            task_from_checkpoint(backbone, "a", as_checkpoint(state, labels=labels))


# Drifted statistics


def drifted(backbone: Backbone, *parts: str) -> dict[str, Tensor]:
    """Block 4 tuned, and statistics moved below `parts`, as batch-norm in training mode does."""
    state = fine_tuned(backbone, "layers.3")
    for name in state:
        if name.startswith(parts) and name.endswith(("running_mean", "running_var")):
            state[name] = state[name] * 1.5
    return state


def test_drift_is_refused_with_both_ways_out(backbone: Backbone) -> None:
    state = drifted(backbone, "norm", "layers.0", "layers.1")
    with pytest.raises(CheckpointError, match="statistics drifted in frozen blocks 1-2 and norm") as caught:
        task_from_checkpoint(backbone, "birds", as_checkpoint(state), layers=(4,))
    assert "--drift base" in caught.value.hint
    assert "--drift fork" in caught.value.hint


def test_drift_can_be_undone_with_the_bases_statistics(backbone: Backbone) -> None:
    state = drifted(backbone, "layers.1")
    task = task_from_checkpoint(backbone, "birds", as_checkpoint(state), drift="base")
    assert tuned_blocks(backbone, task) == (4,)
    assert "frozen block 2: the base's are used" in task.notes[0]
    expected = {**fine_tuned(backbone, "layers.3"), **aux(3)}
    assert torch.equal(answers(standalone(backbone, task)), answers(loaded(Net(3), expected)))


def test_drift_can_be_forked(backbone: Backbone) -> None:
    state = drifted(backbone, "norm", "layers.1")
    task = task_from_checkpoint(backbone, "birds", as_checkpoint(state), drift="fork", layers=(2, 4))
    assert list(task.versions) == ["norm", "block2", "block4", "fc"]
    assert "forked as well" in task.notes[0]
    assert torch.equal(answers(standalone(backbone, task)), answers(loaded(Net(3), {**state, **aux(3)})))


def test_drift_alone_is_no_task(backbone: Backbone) -> None:
    state = base_state(backbone)
    state["layers.1.norm1.running_mean"] += 1
    with pytest.raises(CheckpointError, match="nothing was tuned"):
        task_from_checkpoint(backbone, "birds", as_checkpoint(state), drift="base")


# Heads


def test_a_head_of_twice_the_width_is_siamese(backbone: Backbone) -> None:
    state = fine_tuned(backbone, "layers.1", head=(4, 2 * WIDTH))
    task = task_from_checkpoint(backbone, "birds", as_checkpoint(state))
    assert (task.siamese, task.classes) == (True, 4)
    features = nn.Identity()
    base, own = lively(Net()), loaded(Net(4, 2 * WIDTH), {**state, **aux(4)})
    head, base.fc, own.fc = own.fc, features, features
    expected = head(torch.cat([answers(base), answers(own)], dim=1))
    assert torch.equal(answers(standalone(backbone, task)), expected)


def test_a_convolution_is_a_head_too() -> None:
    backbone = traced(ConvNet())
    for classes, features in [(3, WIDTH), (4, 2 * WIDTH)]:
        state = base_state(backbone)
        state["classifier.weight"] = torch.randn(classes, features, 1, 1)
        state["classifier.bias"] = torch.randn(classes)
        task = task_from_checkpoint(backbone, "birds", as_checkpoint(state))
        assert (task.classes, task.siamese) == (classes, features > WIDTH)
        assert answers(standalone(backbone, task)).shape == (2, classes)


@pytest.mark.parametrize("head", [(3, WIDTH + 1), (3, 3 * WIDTH)])
def test_a_head_of_any_other_width_is_refused(backbone: Backbone, head: tuple[int, int]) -> None:
    state = fine_tuned(backbone, "layers.1", head=head)
    with pytest.raises(
        CheckpointError, match=f"birds.pt: wrong head shape: it reads {head[1]} features"
    ) as caught:
        task_from_checkpoint(backbone, "birds", as_checkpoint(state))
    assert f"reads {WIDTH} features, or {2 * WIDTH}" in caught.value.hint


def test_a_head_whose_bias_does_not_suit_its_weight_is_refused(backbone: Backbone) -> None:
    state = fine_tuned(backbone, "layers.1")
    state["fc.bias"] = torch.ones(8)
    with pytest.raises(CheckpointError, match="lengths that do not agree"):
        task_from_checkpoint(backbone, "birds", as_checkpoint(state))


# Checkpoints that do not fit


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


def test_a_checkpoint_that_does_not_fit_is_told(backbone: Backbone) -> None:
    good = fine_tuned(backbone, "layers.1")
    narrow = {name: tensor[:2] if tensor.dim() else tensor for name, tensor in good.items()}
    cases = {
        "1 missing .layers.0.conv1.weight": without(good, "layers.0.conv1.weight"),
        "1 surplus .layers.9.bias": {**good, "layers.9.bias": torch.ones(1)},
        "another architecture": narrow,
        "of another architecture: 0 of": {f"blocks.{i}.weight": torch.ones(2) for i in range(40)},
        "stem.weight .6, 1, 3, 3. instead": {**good, "stem.weight": torch.ones(6, 1, 3, 3)},
        "NaN or infinite weights.*fc.bias": {**good, "fc.bias": torch.full((3,), float("nan"))},
        "nothing was tuned": base_state(backbone),
    }
    for message, state in cases.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            task_from_checkpoint(backbone, "birds", as_checkpoint(state))
        assert caught.value.hint
        assert "birds.pt" in caught.value.message


def test_layers_that_disagree_with_the_diff_are_told_with_both(backbone: Backbone) -> None:
    state = as_checkpoint(fine_tuned(backbone, "layers.1", "layers.2"))
    with pytest.raises(LayersError, match="tuned blocks 2-3, not 1,4 as given"):
        task_from_checkpoint(backbone, "birds", state, layers=(1, 4))


# Small files


def test_a_small_file_holds_only_the_tasks_own_weights_and_gives_the_task_back(
    backbone: Backbone, tmp_path: Path
) -> None:
    state = as_checkpoint(fine_tuned(backbone, "layers.1", "scale"))
    task = task_from_checkpoint(backbone, "birds", state, labels=("owl", "tit", "jay"))
    own, metadata = task_state(backbone, task)
    assert set(own) == {
        name for name in backbone.model.state_dict() if name.startswith(("layers.1", "scale", "fc"))
    }
    write_state(tmp_path / "birds.safetensors", own, metadata)
    again = task_from_checkpoint(backbone, "birds", read_state(tmp_path / "birds.safetensors"))
    assert list(again.versions) == list(task.versions)
    assert again.labels == task.labels
    assert torch.equal(answers(standalone(backbone, again)), answers(standalone(backbone, task)))


def test_forked_drift_survives_a_small_file(backbone: Backbone) -> None:
    task = task_from_checkpoint(backbone, "birds", as_checkpoint(drifted(backbone, "layers.0")), drift="fork")
    state, metadata = task_state(backbone, task)
    again = task_from_checkpoint(backbone, "birds", as_checkpoint(state, **metadata))
    assert tuned_blocks(backbone, again) == (1, 4)
    assert torch.equal(answers(standalone(backbone, again)), answers(standalone(backbone, task)))


def test_a_small_file_of_another_base_is_refused(backbone: Backbone) -> None:
    state, metadata = task_state(backbone, candidate_task(backbone, "birds", (2,), seed=1))
    other = trace(Model("tiny", lively(Net(), seed=5), InputSpec((3, 12, 12)), (), "random"))
    with pytest.raises(CheckpointError, match="other base weights"):
        task_from_checkpoint(other, "birds", as_checkpoint(state, **metadata))
    with pytest.raises(CheckpointError, match="missing"):
        task_from_checkpoint(backbone, "birds", as_checkpoint(state))  # no metadata: it must be complete


# Candidates


def test_a_candidate_differs_from_the_base_and_from_every_other_seed(backbone: Backbone) -> None:
    tasks = [candidate_task(backbone, f"t{seed}", (2, 3), seed=seed) for seed in (1, 2)]
    for task in tasks:
        assert tuned_blocks(backbone, task) == (2, 3)
        assert task.classes == 5
    one, two = (answers(standalone(backbone, task)) for task in tasks)
    assert not torch.allclose(one, two, rtol=1e-3)
    assert not torch.allclose(one, answers(backbone.model), rtol=1e-3)
    for (name, mine), base in zip(
        tasks[0].versions["block2"].state_dict().items(), base_block(backbone), strict=True
    ):
        assert name.endswith("num_batches_tracked") or not bool((mine == base).any()), name


def base_block(backbone: Backbone) -> list[Tensor]:
    return list(backbone.model.get_submodule("layers.1").state_dict().values())


def test_a_candidate_follows_from_its_seed(backbone: Backbone) -> None:
    one, two = (candidate_task(backbone, "t", (1,), seed=4, classes=7) for _ in range(2))
    assert torch.equal(answers(standalone(backbone, one)), answers(standalone(backbone, two)))


@pytest.mark.parametrize(
    "classes, siamese", [(None, False), (2, False), (11, False), (None, True), (9, True)]
)
@pytest.mark.parametrize("kind", [Net, ConvNet])
def test_a_candidates_head_has_any_number_of_classes(kind: type, classes: int | None, siamese: bool) -> None:
    backbone = traced(kind())
    task = candidate_task(backbone, "t", (), seed=1, classes=classes, siamese=siamese)
    assert (task.classes, task.siamese) == (classes or 5, siamese)
    result = answers(standalone(backbone, task))
    assert result.shape == (2, classes or 5)
    assert bool(result.isfinite().all())


def test_zero_weights_come_alive_and_variances_stay_positive(backbone: Backbone) -> None:
    for module in (backbone.model.fc, backbone.model.layers[1].norm2):
        module.weight.zero_()
        module.bias.zero_()
    task = candidate_task(backbone, "t", (1, 2), seed=1)
    assert float(answers(standalone(backbone, task)).std(dim=0).min()) > 1e-4
    assert float(task.versions["block2"].norm2.weight.abs().min()) > 0
    assert float(task.versions["block2"].norm1.running_var.min()) > 0


def test_a_candidate_on_blocks_that_are_not_there_is_told(backbone: Backbone) -> None:
    with pytest.raises(LayersError, match=r"blocks 5,9 are outside 1\.\.4"):
        candidate_task(backbone, "t", (1, 5, 9), seed=1)


# Several tasks


def test_equal_versions_belong_to_the_first_task(backbone: Backbone) -> None:
    first = candidate_task(backbone, "first", (1, 2), seed=1)
    state = {**fine_tuned(backbone, "nothing")}
    for name, tensor in first.versions["block2"].state_dict().items():
        state[f"layers.1.{name}"] = tensor
    second = task_from_checkpoint(backbone, "second", as_checkpoint(state))
    assert owners([first, second]) == {
        "first": {"block1": "first", "block2": "first", "fc": "first"},
        "second": {"block2": "first", "fc": "second"},
    }
    assert owners([base_task(backbone)]) == {"base": {}}


def test_the_base_is_a_task_with_nothing_of_its_own(backbone: Backbone) -> None:
    task = base_task(backbone)
    assert (task.name, task.classes, task.labels) == ("base", 5, tuple("abcde"))
    assert torch.equal(answers(standalone(backbone, task)), answers(backbone.model))


def test_names_must_be_fit_and_different(backbone: Backbone) -> None:
    check_names(["birds", "signs"])
    with pytest.raises(TaskError, match="'birds' is given twice"):
        check_names(["birds", "signs", "birds"])
    for name in ("base", "input", "1st", "two words", ""):
        with pytest.raises(TaskError, match="unfit"):
            check_names([name])
        with pytest.raises(TaskError, match="unfit"):
            candidate_task(backbone, name, (1,), seed=1)


def test_a_module_under_two_names_is_replaced_under_both() -> None:
    network = Net()
    network.twin = network.fc
    backbone = traced(network)
    own = standalone(backbone, candidate_task(backbone, "t", (), seed=1))
    assert own.twin is own.fc
