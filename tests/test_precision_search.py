"""The precision search: what int8 costs which unit, what is chosen, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tiny_cli import Ran, cli, write_network
from tiny_forms import BITS, INTEGER
from tiny_networks import SIZE, backbone
from tiny_pictures import write_picture
from tiny_racing import time_by

from subtune_deploy import precision_search
from subtune_deploy.backends import KNOWN
from subtune_deploy.backends.base import Availability, Engine, Target
from subtune_deploy.build import BuildOptions, build
from subtune_deploy.bundle import Bundle, engine_target, open_bundle
from subtune_deploy.compiling import compile_bundle
from subtune_deploy.errors import CheckFailed, InputError, Unavailable
from subtune_deploy.measure import Measurement, Protocol
from subtune_deploy.parity import References
from subtune_deploy.precision_search import Cost, Found, Option, between, cost, fastest_precision, on_front
from subtune_deploy.runtime import load_engine
from subtune_deploy.sensitivity import fewest, sensitivities
from subtune_deploy.stats import Ratio
from subtune_deploy.targets import Rate, load_target
from subtune_deploy.tasks import candidate_task

QUICK = Protocol(seconds=0.2)
LOOSE, TIGHT = 0.3, 0.05
DELICATE = "block3.birds"
Favour = Callable[[Mapping[str, float]], list[tuple[str, ...]]]


def inputs(count: int, seed: int) -> np.ndarray:
    """Noise, each of colours of its own, so that not all are of one class."""
    random = np.random.default_rng(seed)
    colours = 2 * random.standard_normal((count, SIZE[0], 1, 1))
    return (colours + 0.5 * random.standard_normal((count, *SIZE))).astype(np.float32)


CALIBRATION, HELD_OUT = inputs(48, 1), inputs(200, 2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return delicate(tmp_path_factory.mktemp("precisions") / "bundle")


def delicate(folder: Path, batch: int | None = 1) -> Bundle:
    """Birds and signs on block 3. That of birds has one channel a thousand times as wide as others, which float32
    does not mind: what comes after it takes it back."""
    network = backbone("chain", blocks=4, width=8)
    tasks = [
        candidate_task(network, name, (3,), seed=seed) for seed, name in enumerate(("birds", "signs"), 1)
    ]
    block = tasks[0].versions["block3"]
    with torch.no_grad():
        block.bn1.weight[0] *= 1000
        block.bn1.bias[0] *= 1000
        block.conv2.weight[:, 0] /= 1000
    return build(network, tasks, folder, BuildOptions(batch=batch), sources=False)


@pytest.fixture
def favour(monkeypatch: pytest.MonkeyPatch) -> Favour:
    """Sets how long precisions seem to take, by name, 1 where not given, and tells which were run by turns."""
    ran = list[tuple[str, ...]]()

    def choose(spans: Mapping[str, float]) -> list[tuple[str, ...]]:
        def measure(engines: Mapping[str, Engine], batches: Any, protocol: Protocol) -> Measurement:
            for engine in engines.values():
                assert engine.run(batches[0])
            ran.append(tuple(engines))
            return Measurement(protocol, {name: (spans.get(name, 1.0),) * 24 for name in engines}, True)

        time_by(monkeypatch, measure)
        return ran

    return choose


def search(bundle: Bundle, target: str = "cpu", max_changed: float = TIGHT, **how: Any) -> Found:
    return fastest_precision(
        bundle, load_target(target), CALIBRATION, HELD_OUT, max_changed=max_changed, protocol=QUICK, **how
    )


def by_name(found: Found) -> dict[str, Option]:
    return {option.name: option for option in found.options}


MIXED = f"int8, {DELICATE} in fp32"


# what is found


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("rtx", ["tf32", "fp16", "bf16"]),
        ("a100-sxm4-80gb", ["fp16", "bf16"]),
        ("openvino-cpu", ["bf16", "fp16"]),
    ],
)
def test_tf32_is_tried_where_it_is_still_a_choice(name: str, found: list[str]) -> None:
    assert between(load_target(name)) == found


def test_tf32_is_asked_for_by_its_option(
    bundle: Bundle, favour: Favour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an engine that has no such option, so that what was asked for shows; no GPU is here to take it."""
    favour({})
    monkeypatch.setitem(KNOWN, "onnxruntime", replace(KNOWN["onnxruntime"], tf32=True))
    found = search(bundle, max_changed=1.0)
    assert "unknown option 'tf32'" in by_name(found)["tf32"].failed
    assert {"fp32", "int8"} <= {name for name, each in by_name(found).items() if not each.failed}


@pytest.mark.parametrize("target", ["cpu", "openvino-cpu"])
def test_the_one_delicate_fork_stays_in_float32_and_nothing_else(
    bundle: Bundle, favour: Favour, target: str
) -> None:
    ran = favour({"int8": 0.4, MIXED: 0.5})
    found = search(bundle, target)
    options = by_name(found)
    assert (found.name, found.target.keep, found.target.precision) == (MIXED, (DELICATE,), "int8")
    assert found.target.name == target
    assert next(iter(found.sensitivity)) == DELICATE
    assert options["int8"].costs["birds"].changed > TIGHT >= options["int8"].costs["signs"].changed
    assert options[MIXED].changed <= TIGHT
    assert options[MIXED].costs["birds"].median < options["int8"].costs["birds"].median / 4
    narrow = {name: options[name].failed for name in ("bf16", "fp16") if name in options}
    assert all(f"no {name}" in failed for name, failed in narrow.items() if failed)  # of CPUs that lack it
    within = {name for name, each in options.items() if each.within and not each.failed}
    assert within == {"fp32", MIXED, *(name for name, failed in narrow.items() if not failed)}
    assert (options["int8"].ratio, options[MIXED].ratio) == (Ratio(0.4, 0.4, 0.4), Ratio(0.5, 0.5, 0.5))
    assert {"int8", MIXED} <= {name for name, each in options.items() if each.front}
    assert ran[0][0] == "fp32"
    assert set(ran[0]) >= {"fp32", MIXED, "int8"}
    assert ran[1] == ("fp32", MIXED)  # once more, alone


def test_what_is_found_ships_and_answers_as_it_was_judged(bundle: Bundle, favour: Favour) -> None:
    favour({MIXED: 0.5})
    found = search(bundle)
    made = compile_bundle(bundle, found.target, calibration=CALIBRATION, facts=found.facts)
    assert made.manifest.engines["cpu"].precision == "int8"
    assert engine_target(open_bundle(bundle.path), "cpu") == replace(found.target, weight_bits=BITS)
    engine = load_engine(made, "cpu")
    mixed = [engine.run(each[None])["birds"] for each in HELD_OUT]
    plain = load_engine(compile_bundle(bundle, load_target("cpu")), "cpu")
    wanted = [plain.run(each[None])["birds"] for each in HELD_OUT]
    assert cost(np.concatenate(mixed), np.concatenate(wanted)) == by_name(found)[MIXED].costs["birds"]


def test_where_int8_is_within_the_tolerance_no_unit_is_looked_for(bundle: Bundle, favour: Favour) -> None:
    favour({"int8": 0.5})
    found = search(bundle, max_changed=LOOSE)
    assert (found.name, found.target.keep, found.sensitivity) == ("int8", (), {})
    assert list(by_name(found)) == ["fp32", "fp16", "int8"]


def test_a_dynamic_batch_is_asked_one_by_one(favour: Favour, tmp_path: Path) -> None:
    favour({})
    found = search(delicate(tmp_path / "b", batch=None))
    assert found.sensitivity
    assert [len(each.keep) for each in found.options if each.precision == "int8"][:2] == [0, 1]


def test_what_is_beyond_the_tolerance_is_timed_and_not_taken(bundle: Bundle, favour: Favour) -> None:
    favour({"int8": 0.3})
    found = search(bundle)
    assert (found.name, found.target) == ("fp32", load_target("cpu"))
    assert by_name(found)["int8"].ratio == Ratio(0.3, 0.3, 0.3)
    assert not by_name(found)["int8"].within


def test_where_nothing_holds_int8_is_out(
    bundle: Bundle, favour: Favour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each int8 graph is taken to change every answer: the most that is tried leaves one unit in int8."""
    ran = favour({})

    def changing(got: np.ndarray, wanted: np.ndarray) -> Cost:
        return replace(cost(got, wanted), changed=float(not np.array_equal(got, wanted)))

    monkeypatch.setattr(precision_search, "cost", changing)
    units = dict.fromkeys(("stem", "block1", "block2", "block3"), 1.0)
    monkeypatch.setattr(precision_search, "sensitivities", lambda *given, **how: units)
    found = search(bundle)
    assert (found.name, found.target) == ("fp32", load_target("cpu"))
    assert [len(each.keep) for each in found.options if each.precision == "int8"] == [0, 1, 2, 3]
    assert not any(each.within for each in found.options if each.precision == "int8")
    assert len(ran) == 1


def test_a_datasheet_is_of_one_precision(bundle: Bundle, favour: Favour) -> None:
    favour({"int8": 0.5})
    target = replace(load_target("cpu"), datasheet={"launch": Rate(5.0, "us", "a page")})
    found = fastest_precision(bundle, target, CALIBRATION, HELD_OUT, max_changed=LOOSE, protocol=QUICK)
    assert (found.target.datasheet, found.target.options) == ({}, target.options)


def test_the_delicate_unit_is_that_of_the_task_that_has_it(bundle: Bundle) -> None:
    def of(task: str) -> dict[str, float]:
        return sensitivities(bundle.path, CALIBRATION, form=INTEGER, tasks=[task], batch=1)

    birds, signs = of("birds"), of("signs")
    assert next(iter(birds)) == DELICATE
    assert birds[DELICATE] > 10 * sorted(birds.values())[-2]
    assert signs[DELICATE] < birds[DELICATE] / 10  # what is rounded for birds on the way in
    assert birds["head.signs"] == 0  # after all that birds run through
    assert set(birds) >= {"stem.base", "block3.base", "block3.birds", "block3.signs", "head.birds"}


# rules, on made-up measurements


@pytest.mark.parametrize("count", range(12))
def test_the_fewest_that_hold_are_found_in_few_steps(count: int) -> None:
    for least in range(1, count + 2):
        asked = list[int]()

        def holds(number: int, least: int = least, asked: list[int] = asked) -> bool:
            asked.append(number)
            return number >= least

        assert fewest(count, holds) == (least if least < count else None)
        assert all(0 < number < count for number in asked)
        assert len(asked) == len(set(asked)) <= 8


def option(name: str, ratio: float | None, changed: float) -> Option:
    span = None if ratio is None else Ratio(ratio, ratio, ratio)
    return Option(name, name, (), {"base": Cost(0, 0, 0), "birds": Cost(changed, 0.1, 0.2)}, True, span)


def test_the_front_is_of_latency_and_changed_answers() -> None:
    options = [
        option("fp32", 1.0, 0.0),
        option("bf16", 0.7, 0.0),
        option("int8", 0.5, 0.04),
        option("mixed", 0.6, 0.05),
        option("fp16", None, 0.0),
    ]
    assert [each.name for each in on_front(options) if each.front] == ["bf16", "int8"]
    assert [replace(each, front=False) for each in on_front(options)] == options


def test_costs_are_shares_and_relative_errors() -> None:
    wanted = np.array([[1.0, 2.0], [4.0, 2.0], [0.0, 8.0], [1.0, 5.0]], np.float32)
    got = np.array([[1.0, 2.0], [2.0, 4.0], [0.0, 8.0], [1.0, 4.0]], np.float32)
    assert cost(got, wanted) == Cost(0.25, pytest.approx(0.1), pytest.approx(0.5))
    assert cost(wanted, wanted) == Cost(0, 0, 0)
    got[0, 0] = np.nan
    with pytest.raises(CheckFailed, match="no number"):
        cost(got, wanted)


# what is refused


def test_the_same_inputs_are_not_asked_about_and_calibrated_on(bundle: Bundle) -> None:
    both = np.concatenate([HELD_OUT[:9], CALIBRATION[3:5]])
    for held_out, told in ((CALIBRATION, "48 of 48"), (both, "2 of 11")):
        with pytest.raises(InputError, match=f"{told} held-out inputs are calibrated on"):
            fastest_precision(bundle, load_target("cpu"), CALIBRATION, held_out)


@pytest.mark.parametrize(
    "target, max_changed, told",
    [
        ("cpu", 1.01, "a tolerance of 101% is none"),
        ("cpu", -0.01, "a tolerance of -1% is none"),
        ("cpu", float("nan"), "a tolerance of nan% is none"),
        ("cpu-int8", 0.01, "target cpu-int8 is already in int8"),
        ("openvino-cpu-bf16", 0.01, "is already in bf16"),
        ("torch-cpu", 0.01, "torch has fp32 alone"),
    ],
)
def test_what_cannot_be_searched_is_refused(
    bundle: Bundle, target: str, max_changed: float, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        search(bundle, target, max_changed)


def test_inputs_of_another_form_are_refused(bundle: Bundle) -> None:
    for calibration, held_out, told in (
        (CALIBRATION, HELD_OUT[:, :, :5], "held-out data is float32 of shape"),
        (CALIBRATION.astype(np.float64), HELD_OUT, "calibration data is float64"),
        (CALIBRATION, HELD_OUT[:0], "held-out data is float32 of shape"),
        (CALIBRATION, np.full_like(HELD_OUT, np.nan), "held-out data holds NaN"),
    ):
        with pytest.raises(InputError, match=told):
            fastest_precision(bundle, load_target("cpu"), calibration, held_out)


def test_a_task_of_one_answer_has_no_class_that_could_change(bundle: Bundle) -> None:
    base, *others = bundle.manifest.tasks
    manifest = replace(bundle.manifest, tasks=(base, replace(others[0], classes=1)))
    with pytest.raises(InputError, match="task birds has one answer"):
        search(replace(bundle, manifest=manifest))


def test_a_device_that_is_not_here_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away:
        def probe(self) -> Availability:
            return Availability(True, "1", "", "", runs=False)

    monkeypatch.setattr(precision_search, "get_backend", lambda name: Away())
    with pytest.raises(Unavailable, match="precisions for rtx cannot be run: its device is not here"):
        search(bundle, "rtx")


@pytest.mark.parametrize("max_changed, warned", [(0.004, True), (0.005, False), (0.0, False)])
def test_too_few_inputs_for_the_tolerance_are_told(
    bundle: Bundle, favour: Favour, max_changed: float, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    favour({})
    said = list[str]()
    monkeypatch.setattr(precision_search._Search, "eight_bits", lambda self: None)
    search(bundle, max_changed=max_changed, say=said.append)
    assert [line for line in said if line.startswith("warning")] == (
        ["warning: 200 held-out inputs cannot show 0.40%: give 250 or more"] if warned else []
    )


def test_a_library_that_fails_leaves_its_precision_out(
    bundle: Bundle, favour: Favour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exceptions have no class in common with ours."""
    real = precision_search.check_engine

    def check(bundle: Bundle, target: Target, folder: Path) -> Any:
        if target.precision == "int8":
            raise RuntimeError("out of memory")
        return real(bundle, target, folder)

    favour({})
    monkeypatch.setattr(precision_search, "check_engine", check)
    found = search(bundle)
    assert found.name == "fp32"
    assert "out of memory" in by_name(found)["int8"].failed


def test_inputs_may_be_views(bundle: Bundle) -> None:
    turned = (CALIBRATION[..., ::-1], HELD_OUT[..., ::-1])
    for given, checked in zip(turned, precision_search._checked(bundle, *turned), strict=True):
        assert checked.flags.c_contiguous
        np.testing.assert_array_equal(checked, given)


# Through compile, into the bundle


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision_search")
    write_network(folder)
    network = ("--model", f"{folder}/net.py:Net", "--weights", folder / "base.pt")
    ran = cli("export", *network, "--layers", "2-3", "--tasks", 2, "-o", folder / "bundle")
    assert ran.status == 0, ran.err
    noise = np.random.default_rng(1).standard_normal((16, 3, 32, 32)).astype(np.float32)
    photographs = References.load(folder / "bundle").inputs
    np.save(folder / "calibration.npy", np.concatenate([noise, photographs]))
    for seed in range(20):
        write_picture(folder / "held_out" / f"{seed}.png", seed, (40, 32))
    return folder


def compiled(place: Path, *asked: object, target: str = "cpu", **given: object) -> Ran:
    data = {"calibrate": place / "calibration.npy", "held_out": place / "held_out", **given}
    flags = [each for name, value in data.items() if value for each in (f"--{name.replace('_', '-')}", value)]
    return cli("compile", place / "bundle", "--target", target, *flags, *asked)


AUTO = ("--precision", "auto", "--max-changed", "60%")


def test_the_engine_has_the_precision_that_was_taken_and_the_evidence(
    place: Path, favour: Favour, tmp_path: Path
) -> None:
    favour({"int8": 0.5})
    ran = compiled(place, *AUTO, "--picture", tmp_path / "front.svg")
    assert ran.status == 0, ran.err
    assert "precision: int8" in ran.out
    assert "0.500 (0.500 to 0.500)" in ran.out
    assert "cannot show" not in ran.err
    assert "fp16 is out" in ran.err
    assert "inputs with another class" in (tmp_path / "front.svg").read_text()
    bundle = open_bundle(place / "bundle")
    entry = bundle.manifest.engines["cpu"]
    assert (entry.precision, engine_target(bundle, "cpu").precision) == ("int8", "int8")
    told = entry.facts["precisions"]
    assert (told["name"], told["inputs"][0]) == ("int8", 20)
    assert [each["name"] for each in told["options"] if each["front"]][-1] == "int8"
    assert json.dumps(told)
    assert {f["tolerance"] for f in bundle.manifest.parity if f.get("engine") == "cpu"} == {0.35}
    assert cli("verify", place / "bundle", "--deep").status == 0
    assert cli("bench", place / "bundle", "--target", "cpu", "--seconds", "0.2").status == 0
    assert compiled(place, calibrate=None, held_out=None).status == 0
    bundle = open_bundle(place / "bundle")
    assert (bundle.manifest.engines["cpu"].precision, bundle.manifest.engines["cpu"].facts) == ("fp32", {})


def test_it_is_the_plan_that_won_whose_precision_is_searched(place: Path, favour: Favour) -> None:
    favour({"not merged": 0.5, "int8": 0.5})
    ran = compiled(place, *AUTO, "--merge", "auto", "--model", f"{place}/net.py:Net")
    assert ran.status == 0, ran.err
    assert "plan: not merged" in ran.out
    assert "precision: int8" in ran.out
    facts = open_bundle(place / "bundle").manifest.engines["cpu"].facts
    assert facts["plan"]["merge"] == "never"
    assert facts["precisions"]["name"] == "int8"
    graph = ir.load(place / "bundle" / "cpu" / "source" / "graph.onnx").graph
    assert {"QuantizeLinear"} < {node.op_type for node in graph}
    assert "Concat" not in {node.op_type for node in graph}
    assert cli("verify", place / "bundle", "--deep").status == 0


def test_measured_for_real_it_is_never_taken_unless_shown_to_be_faster(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(precision_search.fastest_precision.__kwdefaults__, "protocol", QUICK)
    ran = compiled(place, *AUTO, target="openvino-cpu")
    assert ran.status == 0, ran.err
    entry = open_bundle(place / "bundle").manifest.engines["openvino-cpu"]
    told = entry.facts["precisions"]
    taken = next(each for each in told["options"] if each["name"] == told["name"])
    assert entry.precision == taken["precision"]
    assert taken["name"] == "fp32" or (taken["within"] and taken["ratio"]["high"] < 1)


def test_bad_input_is_one_line(place: Path, tmp_path: Path) -> None:
    for asked, given, status, says in (
        (AUTO, {"calibrate": None}, 2, "--precision auto needs --calibrate"),
        (AUTO, {"held_out": None}, 2, "--precision auto needs --held-out"),
        (AUTO, {"held_out": place / "calibration.npy"}, 2, "held-out inputs are calibrated on"),
        (AUTO, {"held_out": tmp_path / "none"}, 2, f"held-out data {tmp_path}/none does not exist"),
        (("--precision", "auto", "--max-changed", "1"), {}, 2, "--max-changed '1' is no percentage"),
        (("--precision", "auto", "--max-changed", "150%"), {}, 2, "a tolerance of 150% is none"),
        (("--precision", "int8"), {}, 2, "'int8' is not one of"),
        ((), {}, 2, "--held-out goes with --precision auto"),
        (("--max-changed", "1%"), {"held_out": None}, 2, "--max-changed goes with --precision auto"),
        ((*AUTO, "--target", "cpu-int8"), {}, 2, "target cpu-int8 is already in int8"),
        ((*AUTO, "--target", "torch-cpu"), {}, 2, "torch has fp32 alone"),
        ((*AUTO, "--picture", tmp_path / "front.gif"), {}, 2, "front.gif is no name of a picture"),
        ((*AUTO, "--picture", tmp_path / "none" / "front.svg"), {}, 2, "lies in no existing folder"),
        (
            (*AUTO, "--target", "openvino-cpu", "--picture", tmp_path / "front.svg"),
            {},
            2,
            "--picture is of one target, not of 2",
        ),
    ):
        ran = compiled(place, *asked, **given)
        assert (ran.status, ran.out) == (status, ""), (asked, ran.err)
        assert says in ran.err, asked
        assert "hint:" in ran.err or "Usage" in ran.err or "not one of" in ran.err
