"""Plans that are searched: what is run by turns, what is chosen, what is told of the others."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from tiny_factories import network as tiny
from tiny_prunable import drawn
from tiny_racing import Favour, favouring, time_by
from torch.export import ExportedProgram
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from subtune_deploy import compiling, plan_search
from subtune_deploy.backbone import Backbone
from subtune_deploy.backends import onnxruntime
from subtune_deploy.backends.base import Engine, Target
from subtune_deploy.build import BuildOptions, build
from subtune_deploy.bundle import Bundle, Checked
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.errors import InputError, ModelError
from subtune_deploy.export import export_graph
from subtune_deploy.measure import Measurement, Protocol
from subtune_deploy.plan import Plan
from subtune_deploy.plan_search import Fastest, fastest_plan
from subtune_deploy.racing import Tried
from subtune_deploy.spec import Pruning
from subtune_deploy.stats import Ratio
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import Task, candidate_task

QUICK = Protocol(seconds=0.2)
Made = tuple[Bundle, Backbone, list[Task]]


@pytest.fixture(scope="module")
def resnet() -> Backbone:
    return drawn("resnet", lambda: ResNet(BasicBlock, [1, 2, 1, 2], num_classes=5))


@pytest.fixture(scope="module")
def middle(resnet: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two tasks on blocks 1 and 2 of a ResNet whose blocks 2, 4 and 5 halve the picture."""
    return bundled(resnet, tmp_path_factory.mktemp("middle") / "b", (1, 2), (1, 2))


def bundled(network: Backbone, out: Path, *forks: tuple[int, ...], **options: Any) -> Made:
    tasks = [candidate_task(network, f"task{n}", fork, seed=n) for n, fork in enumerate(forks, start=1)]
    return build(network, tasks, out, BuildOptions(**options)), network, tasks


@pytest.fixture(scope="module")
def export_once(middle: Made) -> Callable[..., ir.Model]:
    """Most tests ask for the same plans of `middle`, and PyTorch's exporter takes seconds for each."""
    known = dict[str, ir.Model]()

    def once(backbone: Backbone, tasks: Sequence[Task], plan: Plan, **how: Any) -> ir.Model:
        if backbone is not middle[1] or tasks is not middle[2]:
            return export_graph(backbone, tasks, plan, **how)
        name = json.dumps([plan.to_json(), how], sort_keys=True)
        if name not in known:
            known[name] = export_graph(backbone, tasks, plan, **how)
        return known[name]

    return once


@pytest.fixture(autouse=True)
def spared(export_once: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_search, "export_graph", export_once)


@pytest.fixture
def favour(monkeypatch: pytest.MonkeyPatch) -> Favour:
    return favouring(monkeypatch)


def found(made: Made, **asked: Any) -> Fastest:
    with fastest_plan(*made, load_target("cpu"), protocol=QUICK, **asked) as best:
        return best


def test_packing_may_start_with_every_later_stage_or_nowhere(middle: Made, favour: Favour) -> None:
    ran = favour()
    best = found(middle)
    late = [name for name in ran[0] if name.startswith("merged from")]
    assert ran[0] == ("as exported", "not merged", *late)  # merged is as exported
    assert [name.split()[2].split("_")[0] for name in late] == ["layer3", "layer4"]
    assert ran[1] == ("as exported", "grouped block1, block2", "grouped block1", "grouped block2")
    assert best.name == "as exported"
    assert best.graphs is None
    assert {each.ratio for each in best.tried} == {Ratio(1.0, 1.0, 1.0)}
    assert "plan" not in best.facts


def test_many_streams_may_be_packed_by_fewer(resnet: Backbone, favour: Favour, tmp_path: Path) -> None:
    ran = favour({"merged by 4": 0.5})
    best = found(bundled(resnet, tmp_path / "b", *[(1,)] * 4), lowering=False)
    assert "merged by 4" in ran[0]
    assert "merged by 8" not in ran[0]
    assert best.facts["plan"]["most"] == 4
    assert max(len(step.streams) for step in best.plan.steps) == 4


def test_a_fork_of_the_last_block_leaves_nothing_to_merge(
    resnet: Backbone, favour: Favour, tmp_path: Path
) -> None:
    ran = favour()
    found(bundled(resnet, tmp_path / "b", (6,)), lowering=False)
    assert ran == []


def test_the_fastest_of_each_axis_goes_on_when_it_was_shown_twice(middle: Made, favour: Favour) -> None:
    ran = favour({"not merged": 0.9, "grouped block1": 0.8, "grouped block2": 0.85})
    best = found(middle)
    assert (best.plan.merge, best.plan.grouped) == ("never", ("block1",))
    assert [each[0] for each in ran] == ["as exported", "as exported", "not merged", "not merged"]
    assert ran[1::2] == [("as exported", "not merged"), ("not merged", "grouped block1")]
    assert [each.against for each in best.tried[-2:]] == ["not merged"] * 2
    assert best.facts["plan"]["grouped"] == ["block1"]


def test_what_is_not_shown_again_is_not_taken(middle: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest of several by turns may have been lucky."""
    spans = iter([0.5, 1.0])

    def measure(engines: Mapping[str, Engine], batches: object, protocol: Protocol) -> Measurement:
        mine = next(spans)
        times = {name: mine if name == "not merged" else 1.0 for name in engines}
        return Measurement(protocol, {name: (each,) * 24 for name, each in times.items()}, True)

    time_by(monkeypatch, measure)
    best = found(middle, lowering=False)
    assert best.name == "as exported"
    assert [each.ratio.value for each in best.tried if each.name == "not merged" and each.ratio] == [0.5, 1.0]


def test_of_those_shown_to_be_faster_the_fastest_is_taken(
    middle: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is faster in the middle but not for sure does not hide another that is."""

    def measure(engines: Mapping[str, Engine], batches: object, protocol: Protocol) -> Measurement:
        return Measurement(protocol, dict.fromkeys(engines, (1.0,) * 24), True)

    ratios = {"not merged": Ratio(0.8, 0.6, 1.1)}
    time_by(monkeypatch, measure)
    monkeypatch.setattr(Measurement, "ratio", lambda self, name: ratios.get(name, Ratio(0.9, 0.85, 0.95)))
    assert found(middle, lowering=False).name.startswith("merged from layer3")


def test_packing_that_is_predicted_to_be_slower_is_told_and_not_compiled(
    middle: Made, favour: Favour
) -> None:
    """What may be as fast stays."""
    ran, asked = favour(), list[Plan]()

    def predicted(plan: Plan, than: Plan) -> Ratio:
        asked.append(than)
        return Ratio(1.3, 1.01, 1.6) if plan.merge == "never" else Ratio(1.2, 1.0, 1.4)

    best = found(middle, lowering=False, predicted=predicted)
    (names,) = ran
    assert [name.split("_")[0] for name in names] == [
        "as exported",
        "merged from layer3",
        "merged from layer4",
    ]
    assert best.tried[0] == Tried(
        "not merged", "as exported", failed="not compiled: predicted to take 1.30 (1.01 to 1.60)"
    )
    assert asked == [Plan.from_json(middle[0].manifest.plan)] * 3


def test_where_all_ways_to_pack_are_predicted_to_be_slower_grouping_alone_is_run(
    middle: Made, favour: Favour
) -> None:
    ran = favour({"not merged": 0.5})
    best = found(middle, predicted=lambda plan, than: Ratio(1.3, 1.1, 1.5))
    assert ran == [("as exported", "grouped block1, block2", "grouped block1", "grouped block2")]
    assert [bool(each.failed) for each in best.tried] == [True] * 3 + [False] * 3


def test_what_is_not_asked_for_is_not_tried(middle: Made, favour: Favour) -> None:
    ran = favour()
    found(middle, merge=False)
    assert [each[1].split()[0] for each in ran] == ["grouped"]
    ran.clear()
    found(middle, lowering=False)
    assert [each[1] for each in ran] == ["not merged"]


def test_a_dynamic_batch_cannot_be_grouped(resnet: Backbone, favour: Favour, tmp_path: Path) -> None:
    ran = favour()
    found(bundled(resnet, tmp_path / "b", (1,), batch=None), merge=False)
    assert ran == []


def test_a_plan_that_cannot_be_made_is_told_and_left_out(
    middle: Made, favour: Favour, monkeypatch: pytest.MonkeyPatch
) -> None:
    favour()

    def failing(backbone: Backbone, tasks: Any, plan: Plan, **how: Any) -> Any:
        if plan.grouped == ("block1",):
            raise ModelError("no", "hint")
        return export_graph(backbone, tasks, plan, **how)

    monkeypatch.setattr(plan_search, "export_graph", failing)
    best = found(middle, merge=False)
    assert best.tried[0] == Tried("grouped block1", "as exported", failed="no")
    assert len(best.tried) == 3


def test_an_engine_that_fails_while_it_is_checked_is_told_and_left_out(
    middle: Made, favour: Favour, monkeypatch: pytest.MonkeyPatch
) -> None:
    favour()
    real = compiling.ask

    def ask(engine: Engine, *of: Any) -> Any:
        if not left.pop(0):
            raise RuntimeError("no kernel")  # as libraries do, with classes of their own
        return real(engine, *of)

    left = [True, True, False, True, True, True, True]
    monkeypatch.setattr(compiling, "ask", ask)
    best = found(middle, merge=False)
    assert [each.failed for each in best.tried] == ["engine cpu failed while it ran: no kernel", "", ""]
    assert best.name == "as exported"


def test_engines_that_cannot_be_run_beside_each_other_are_told_and_the_best_stays(
    middle: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(engines: Mapping[str, Engine], batches: Any, protocol: Protocol) -> Measurement:
        raise MemoryError("out of memory")

    time_by(monkeypatch, measure)
    best = found(middle, merge=False)
    assert best.name == "as exported"
    assert len(best.tried) == 3
    assert all(each.failed.endswith("failed while it ran: out of memory") for each in best.tried)


def test_where_memory_is_short_fewer_engines_run_by_turns(
    middle: Made, favour: Favour, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = favour({"grouped block2": 0.9})
    monkeypatch.setattr(plan_search, "available", lambda: 0)
    best = found(middle, merge=False)
    assert best.name == "grouped block2"
    assert ran == [
        ("as exported", "grouped block1, block2"),
        ("as exported", "grouped block1"),
        ("as exported", "grouped block2"),
        ("as exported", "grouped block2"),  # once more
    ]


def test_the_backbone_alone_is_compiled_once_for_all_plans(
    middle: Made, favour: Favour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No plan changes it. What is tried is checked against it all the same, and what is kept has it."""
    favour({"grouped block1": 0.5})
    real, roles = onnxruntime.compile, list[str]()

    def record(source: Path, folder: Path, role: str, *others: Any) -> None:
        roles.append(role)
        real(source, folder, role, *others)

    monkeypatch.setattr(onnxruntime, "compile", record)
    with fastest_plan(*middle, load_target("cpu"), protocol=QUICK, merge=False) as best:
        assert roles == ["graph", "base", "graph", "graph", "graph"]
        graphs, bundle = best.graphs, middle[0].path
        assert graphs
        assert (graphs / "base.onnx").read_bytes() == (bundle / "base.onnx").read_bytes()
        own = compile_bundle(middle[0], best.target, **best.own)
    assert len(roles) == 5  # what was compiled already is taken
    assert (own.path / "cpu" / "base.onnx").is_file()


def test_no_graph_stays_in_memory_while_its_engine_is_made(
    middle: Made, favour: Favour, monkeypatch: pytest.MonkeyPatch
) -> None:
    favour()
    monkeypatch.setattr(plan_search, "export_graph", export_graph)
    real, held = plan_search.make_engine, list[int]()

    def make(*of: Any) -> None:
        held.append(sum(isinstance(each, ExportedProgram) for each in gc.get_objects()))
        real(*of)

    before = sum(isinstance(each, ExportedProgram) for each in gc.get_objects())
    monkeypatch.setattr(plan_search, "make_engine", make)
    found(middle, merge=False)
    assert len(held) == 4
    assert max(held) <= before


def test_a_narrow_task_runs_apart_and_the_others_may_be_grouped(
    resnet: Backbone, favour: Favour, tmp_path: Path
) -> None:
    ran = favour()
    prune = Pruning(0.5, outer=True)
    tasks = [candidate_task(resnet, f"task{n}", (5, 6), seed=n) for n in (1, 2)]
    tasks.append(candidate_task(resnet, "narrow", (5, 6), seed=3, prune=prune))
    made = build(resnet, tasks, tmp_path / "b"), resnet, tasks
    found(made, merge=False)
    assert ran == [("as exported", "grouped block5, block6", "grouped block5", "grouped block6")]


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_search, "usable_cores", lambda: 2)


def test_settings_are_chosen_one_axis_after_the_other(middle: Made, favour: Favour, two_cores: None) -> None:
    ran = favour({"2 threads": 0.5, "blocks by cost": 0.4})
    best = found(middle, merge=False, lowering=False, settings=True)
    assert (best.target.threads, best.name, best.graphs) == (2, "as exported", None)
    assert best.target.options == {**load_target("cpu").options, "session.dynamic_block_base": "4"}
    assert ran == [
        ("as in the recipe", "2 threads", "1 thread"),
        ("as in the recipe", "2 threads"),
        *[("2 threads", "blocks by cost")] * 2,
    ]
    assert [each.against for each in best.tried[-2:]] == ["2 threads"] * 2


def test_one_thread_shares_nothing(middle: Made, favour: Favour, two_cores: None) -> None:
    ran = favour({"1 thread": 0.5})
    best = found(middle, merge=False, lowering=False, settings=True)
    assert best.target == replace(load_target("cpu"), threads=1)
    assert len(ran) == 2


def test_settings_that_answer_otherwise_are_told_and_left_out(
    middle: Made, favour: Favour, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran, real = favour({"1 thread": 0.5}), plan_search.check_engine

    def check(bundle: Bundle, target: Target, folder: Path) -> Checked:
        if target.threads == 1:
            raise ModelError("no", "hint")
        return real(bundle, target, folder)

    monkeypatch.setattr(plan_search, "check_engine", check)
    best = found(middle, merge=False, lowering=False, settings=True)
    assert best.target == load_target("cpu")
    assert Tried("1 thread", "as in the recipe", failed="no") in best.tried
    assert all("1 thread" not in names for names in ran)


def test_where_no_setting_is_faster_the_recipe_stays(middle: Made, favour: Favour, two_cores: None) -> None:
    ran = favour()
    assert found(middle, merge=False, lowering=False, settings=True).target == load_target("cpu")
    assert len(ran) == 2  # threads, and how they share the work


def test_a_plan_is_searched_for_the_batch_that_it_is_for(
    middle: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merging is faster for one picture, not for eight."""
    sizes = list[int]()

    def measure(engines: Mapping[str, Engine], batches: Any, protocol: Protocol) -> Measurement:
        sizes.append(len(batches[0]))
        spans = {name: 0.5 if name == "not merged" and sizes[-1] == 8 else 1.0 for name in engines}
        return Measurement(protocol, {name: (each,) * 24 for name, each in spans.items()}, True)

    time_by(monkeypatch, measure)
    made = bundled(tiny(), tmp_path / "b", (1,), (1,), batch=None)
    one, eight = (found(made, lowering=False, pictures=size) for size in (None, 8))
    assert (one.name, eight.name) == ("as exported", "not merged")
    assert (one.facts["pictures"], eight.facts["pictures"]) == (1, 8)
    assert set(sizes) == {1, 8}
    with pytest.raises(InputError, match="takes batches of 1, not 8"):
        found(middle, pictures=8)
