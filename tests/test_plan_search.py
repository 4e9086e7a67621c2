"""Plans that are searched: what there is to choose from, what is chosen, and that nothing but time changes."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from tiny_cli import Ran, cli, write_calibration, write_network
from tiny_factories import network as tiny
from tiny_prunable import drawn
from tiny_racing import time_by
from torch.export import ExportedProgram
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from subtune_deploy import compiling, plan_search
from subtune_deploy.backbone import Backbone
from subtune_deploy.backends.base import Engine, Target
from subtune_deploy.build import BuildOptions, build
from subtune_deploy.bundle import Bundle, Checked, engine_target, open_bundle
from subtune_deploy.errors import InputError, ModelError
from subtune_deploy.export import export
from subtune_deploy.measure import Measurement, Protocol
from subtune_deploy.plan import Plan
from subtune_deploy.plan_search import Fastest, fastest_plan, ways_to_pack
from subtune_deploy.racing import Tried
from subtune_deploy.runtime import load_engine
from subtune_deploy.spec import Pruning
from subtune_deploy.stats import Ratio
from subtune_deploy.targets import load_target
from subtune_deploy.tasks import Task, candidate_task
from subtune_deploy.timing import time_bundle

QUICK = Protocol(seconds=0.2)
Made = tuple[Bundle, Backbone, list[Task]]
Favour = Callable[..., list[tuple[str, ...]]]


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


class Saved(NamedTuple):
    """In the place of an export: its files."""

    files: Path

    def save(self, folder: Path, *, program: bool) -> None:
        assert not program
        shutil.copytree(self.files, folder, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def export_once(middle: Made, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Most tests ask for the same plans of `middle`, and PyTorch's exporter takes seconds for each."""
    known = dict[str, Saved]()

    def once(backbone: Backbone, tasks: Sequence[Task], plan: Plan, **how: Any) -> Any:
        if backbone is not middle[1] or tasks is not middle[2]:
            return export(backbone, tasks, plan, **how)
        name = json.dumps([plan.to_json(), how], sort_keys=True)
        if name not in known:
            known[name] = Saved(tmp_path_factory.mktemp("exported"))
            export(backbone, tasks, plan, **how).save(known[name].files, program=False)
        return known[name]

    return once


@pytest.fixture(autouse=True)
def spared(export_once: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_search, "export", export_once)


@pytest.fixture
def favour(monkeypatch: pytest.MonkeyPatch) -> Favour:
    """Sets how long plans seem to take, by name, 1 where not given, and tells which were run by turns."""
    ran = list[tuple[str, ...]]()

    def choose(spans: Mapping[str, float] | None = None) -> list[tuple[str, ...]]:
        def measure(engines: Mapping[str, Engine], batches: Any, protocol: Protocol) -> Measurement:
            for engine in engines.values():
                assert engine.run(batches[0])
            ran.append(tuple(engines))
            return Measurement(
                protocol, {name: ((spans or {}).get(name, 1.0),) * 24 for name in engines}, True
            )

        time_by(monkeypatch, measure)
        return ran

    return choose


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


def test_packing_that_starts_late_starts_where_there_is_something_to_multiply(middle: Made) -> None:
    _, backbone, tasks = middle
    macs = {node.name: node.macs for node in backbone.topology.nodes}
    plans = ways_to_pack(backbone, tasks, Plan.from_json(middle[0].manifest.plan))
    assert all(macs[name] for plan in plans.values() for name in plan.rejoins)
    firsts = [plan.rejoins[:1] for plan in plans.values()]
    assert len(set(firsts)) == len(firsts)  # each begins elsewhere, one nowhere


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
        return export(backbone, tasks, plan, **how)

    monkeypatch.setattr(plan_search, "export", failing)
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


def test_no_graph_stays_in_memory_while_its_engine_is_made(
    middle: Made, favour: Favour, monkeypatch: pytest.MonkeyPatch
) -> None:
    favour()
    monkeypatch.setattr(plan_search, "export", export)
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


def test_a_backend_without_settings_has_none_to_choose(place: Path, favour: Favour) -> None:
    ran = favour()
    asked = compiled(place, "--settings", "auto", target="torch-cpu")
    assert (asked.status, ran) == (0, []), asked.err


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


# Through compile, into the bundle


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan_search")
    write_network(folder)
    network = ("--model", f"{folder}/net.py:Net", "--weights", folder / "base.pt")
    ran = cli("export", *network, "--layers", "2-3", "--tasks", 2, "-o", folder / "bundle")
    assert ran.status == 0, ran.err
    return folder


def compiled(place: Path, *asked: object, target: str = "cpu") -> Ran:
    return cli("compile", place / "bundle", "--target", target, "--model", f"{place}/net.py:Net", *asked)


def test_the_engine_keeps_its_own_graph_and_what_it_was_held_against(
    place: Path, favour: Favour, tmp_path: Path
) -> None:
    favour({"grouped block2, block3": 0.5})
    ran = compiled(place, "--merge", "auto", "--lowering", "auto")
    assert ran.status == 0, ran.err
    assert "plan: grouped block2, block3" in ran.out
    bundle = open_bundle(place / "bundle")
    facts = bundle.manifest.engines["cpu"].facts
    assert facts["plan"]["grouped"] == ["block2", "block3"]
    assert {each["name"] for each in facts["searched"]} >= {"not merged", "grouped block2"}
    own = onnx.load(place / "bundle" / "cpu" / "source" / "graph.onnx")
    assert any(each.name == "group" and each.i > 1 for node in own.graph.node for each in node.attribute)
    result = time_bundle(bundle, "cpu", QUICK)
    assert (result.merge, result.grouped) == ("always", ("block2", "block3"))
    assert cli("verify", place / "bundle", "--deep").status == 0
    batch = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    searched = load_engine(bundle, "cpu").run(batch)
    shipped = tmp_path / "shipped.tar"
    assert cli("ship", place / "bundle", "--as", "tar", "-o", shipped).status == 0
    assert compiled(place).status == 0  # as exported again
    bundle = open_bundle(place / "bundle")
    assert not bundle.manifest.engines["cpu"].facts.keys() & {"plan", "searched"}
    assert not (place / "bundle" / "cpu" / "source").exists()
    for name, answer in load_engine(bundle, "cpu").run(batch).items():
        np.testing.assert_allclose(searched[name], answer, rtol=1e-4, atol=1e-5)


def test_the_engine_keeps_for_which_batch_it_was_searched(place: Path, favour: Favour) -> None:
    favour({"not merged": 0.5})
    network = ("--model", f"{place}/net.py:Net", "--weights", place / "base.pt")
    bundle = place / "dynamic"
    assert cli("export", *network, "--layers", "2", "--batch", "dynamic", "-o", bundle).status == 0
    ran = cli("compile", bundle, "--model", f"{place}/net.py:Net", "--merge", "auto", "--for-batch", 4)
    assert ran.status == 0, ran.err
    facts = open_bundle(bundle).manifest.engines["cpu"].facts
    assert (facts["pictures"], facts["plan"]["merge"]) == (4, "never")


@pytest.mark.parametrize("target", ["cpu", "openvino-cpu"])
def test_the_engine_keeps_the_settings_that_were_fastest(
    place: Path, favour: Favour, two_cores: None, target: str
) -> None:
    favour({"1 thread": 0.5})
    ran = cli("compile", place / "bundle", "--target", target, "--settings", "auto")  # no network is needed
    assert ran.status == 0, ran.err
    assert "settings: threads 1" in ran.out
    bundle = open_bundle(place / "bundle")
    assert engine_target(bundle, target).threads == 1
    assert load_engine(bundle, target).threads == 1
    assert time_bundle(bundle, target, QUICK).options == engine_target(bundle, target).options
    assert {each["name"] for each in bundle.manifest.engines[target].facts["searched"]} >= {"1 thread"}
    assert cli("verify", place / "bundle").status == 0
    assert compiled(place, target=target).status == 0
    assert engine_target(open_bundle(place / "bundle"), target).threads == 0


def test_a_calibration_spares_what_it_predicts_to_be_slow(
    place: Path, favour: Favour, tmp_path: Path
) -> None:
    """Of a device that pays for weights what it pays for blocks, and nothing for streams; then of the reverse."""
    dear, cheap = (write_calibration(place, tmp_path / f"{fixed}.json", fixed) for fixed in (0.2, 0.0))
    ran = favour()
    assert compiled(place, "--merge", "auto", "--calibration", dear).status == 0
    assert ran == []
    (spared,) = open_bundle(place / "bundle").manifest.engines["cpu"].facts["searched"]
    assert (spared["name"], spared["failed"].split(" to take ")[0]) == (
        "not merged",
        "not compiled: predicted",
    )
    told = compiled(place, "--merge", "auto", "--calibration", cheap)
    assert (told.status, ran) == (0, [("as exported", "not merged")]), told.err


def test_the_torch_backend_keeps_the_program_too(place: Path, favour: Favour) -> None:
    favour({"not merged": 0.5})
    ran = compiled(place, "--merge", "auto", target="torch-cpu")
    assert ran.status == 0, ran.err
    assert "plan: not merged" in ran.out
    assert cli("verify", place / "bundle").status == 0


def test_measured_for_real_it_is_never_taken_unless_shown_to_be_faster(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_search.fastest_plan.__wrapped__, "__kwdefaults__", {
        **plan_search.fastest_plan.__wrapped__.__kwdefaults__, "protocol": QUICK,
    })  # fmt: skip
    ran = compiled(place, "--merge", "auto")
    assert ran.status == 0, ran.err
    facts = open_bundle(place / "bundle").manifest.engines["cpu"].facts
    shown = [each for each in facts["searched"] if each["ratio"] and each["ratio"]["high"] < 1]
    assert ("plan" in facts) <= bool(shown)
    assert facts["searched"][0]["against"] == "as exported"


def test_bad_input_is_one_line(place: Path, tmp_path: Path) -> None:
    found = write_calibration(place, tmp_path / "found.json", 0.1)
    searched = ("--model", f"{place}/net.py:Net", "--merge", "auto", "--calibration", found)
    for arguments, says in {
        ("--target", "cpu", "--merge", "auto"): "which is not run unasked",
        ("--target", "cpu", "--merge", "fast"): "'fast' is not one of",
        ("--target", "cpu", "--for-batch", 8): "--for-batch goes with a search",
        ("--target", "cpu", "--settings", "auto", "--for-batch", 8): "takes batches of 1, not 8",
        ("--target", "cpu", "--calibration", found): "--calibration goes with --merge auto",
        ("--target", "openvino-cpu", *searched): "was measured on cpu, with another recipe than openvino-cpu",
        ("--target", "cpu", "--target", "torch-cpu", *searched): "with another recipe than torch-cpu",
        ("--target", "cpu", *searched, "--for-batch", 8): "takes batches of 1, not 8",
    }.items():
        ran = cli("compile", place / "bundle", *arguments)
        assert (ran.status, ran.out) == (2, ""), ran.err
        assert says in ran.err
