"""Calibrations of a real small network: measured, resumed, predicted from, confirmed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_cli import cli, write_network

from subtune_deploy import calibrating
from subtune_deploy.backbone import Backbone, trace
from subtune_deploy.calibrated import SPREAD, uncalibrated
from subtune_deploy.calibrating import Growing, calibrate, read_calibration
from subtune_deploy.documents import read_document, write_document
from subtune_deploy.errors import CheckFailed, InputError
from subtune_deploy.latency_model import Anchor, LatencyModel
from subtune_deploy.measure import LOADS, Protocol
from subtune_deploy.models import load_model
from subtune_deploy.predictor import Costing, Predictor
from subtune_deploy.report_points import predictions
from subtune_deploy.results import read_results
from subtune_deploy.spec import Pruning, format_layers
from subtune_deploy.stats import NORMAL, Ratio
from subtune_deploy.sweep import Candidate, Step, SweepOptions, candidates
from subtune_deploy.targets import load_target
from subtune_deploy.tuning.documents import Profile, Row, read_profile

QUICK = SweepOptions(protocol=Protocol(seconds=0.2))
CHOSEN = candidates(4, (1, 2))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrating")
    write_network(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(place: Path) -> Backbone:
    return trace(load_model(f"{place}/net.py:Net", str(place / "base.pt")))


@pytest.fixture(scope="module")
def file(place: Path) -> Path:
    """What the command leaves."""
    network = ("--model", f"{place}/net.py:Net", "--weights", place / "base.pt")
    asked = (
        "--span",
        "1-2",
        "--tasks",
        "1,2",
        "--measurements",
        3,
        "--seconds",
        0.2,
        "-o",
        place / "found.json",
    )
    ran = cli("calibrate", *network, *asked)
    assert ran.status == 0, ran.err
    assert "3 of 14 candidates on cpu" in ran.err
    assert "fitted 20" in ran.out
    return place / "found.json"


def test_the_file_holds_what_was_measured(file: Path, backbone: Backbone) -> None:
    found = read_document(LatencyModel, file)
    lines = {(each.layers, each.tasks): each.ratio for each in read_results(file.with_suffix(".run"))}
    assert len(found.anchors) == len(lines) == 3
    assert [each.ratio for each in found.anchors] == list(lines.values())
    assert found.target == load_target("cpu")
    assert found.protocol == Protocol(seconds=0.2, loads=LOADS)


def test_predictions_are_those_of_the_model_fitted_by_hand(file: Path, backbone: Backbone) -> None:
    found = read_document(LatencyModel, file)
    costing = Costing(backbone)
    predictor = Predictor.of(backbone, found)
    model = replace(uncalibrated(costing.base), spread=predictor.model.spread)
    for each in found.anchors:
        works = costing.works(each.forks)
        model = model.learn(works, each.ratio.value, (each.ratio.high - each.ratio.low) / (2 * NORMAL))
    expected = model.predict(costing.works([(2, 3)] * 2))
    assert predictor.predict([(2, 3)] * 2) == expected
    interval = predictor.of_tasks(2)((2, 3), None)
    assert interval.value == pytest.approx(expected.ratio - 1)
    assert interval.high - interval.low == pytest.approx(2 * NORMAL * expected.deviation)


def test_what_is_learnt_moves_predictions_and_what_nothing_explains_leaves_doubt(backbone: Backbone) -> None:
    costing = Costing(backbone)
    plausible = uncalibrated(costing.base)
    forks = [((2,),), ((3,),), ((2,), (2,)), ((4,),)]
    ratios = [plausible.predict(costing.works(each)).ratio for each in forks]
    known = Predictor(
        costing, tuple(Anchor(each, Ratio(r, r, r)) for each, r in zip(forks, ratios, strict=True))
    )
    before, pair = known.predict([(2, 3)] * 2), ((2, 3), (2, 3))
    assert known.model.spread == SPREAD
    seen = before.ratio + 2 * before.deviation
    moved = known.learn(Anchor(pair, Ratio(seen, seen, seen))).predict(pair)
    assert before.ratio + before.deviation / 4 < moved.ratio < seen
    wild = known.learn(Anchor(pair, Ratio(9.0, 9.0, 9.0)))
    assert wild.model.spread > SPREAD
    assert wild.predict(pair).deviation > 2 * before.deviation


def test_how_a_graph_was_lowered_counts(backbone: Backbone) -> None:
    costing, ratio = Costing(backbone), Ratio(1.5, 1.4, 1.6)
    merged, apart = (costing.anchored(Anchor(((1,),), ratio, merge=merge)) for merge in ("always", "never"))
    assert sum(work.weights for work in merged) < sum(work.weights for work in apart)


def test_what_was_measured_is_not_measured_again(backbone: Backbone, tmp_path: Path) -> None:
    steps = list[Step]()
    first = calibrate(
        backbone, CHOSEN, load_target("cpu"), tmp_path / "run", QUICK, count=2, told=steps.append
    )
    assert [(step.done, step.total) for step in steps] == [(0, 2), (1, 2), (1, 2), (2, 2)]
    steps.clear()
    more = calibrate(
        backbone, CHOSEN, load_target("cpu"), tmp_path / "run", QUICK, count=3, told=steps.append
    )
    assert [step.done for step in steps] == [2, 3]
    assert more.anchors[:2] == first.anchors


def test_a_candidate_that_fails_is_replaced(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = calibrating.sweep, list[Candidate]()

    def sweep(backbone: Backbone, chosen: list[Candidate], *others: object, **more: object) -> object:
        asked.extend(chosen)
        if len(asked) == 1:
            raise CheckFailed("1 of 1 failed", "the others are kept")
        return real(backbone, chosen, *others, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(calibrating, "sweep", sweep)
    found = calibrate(backbone, CHOSEN, load_target("cpu"), tmp_path / "run", QUICK, count=1)
    assert [str(each) for each in found.anchors] == [str(asked[1]).removesuffix(" x1")]


def test_where_all_candidates_fail_it_is_said(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sweep(*arguments: object, **more: object) -> object:
        raise CheckFailed("1 of 1 failed", "the others are kept")

    monkeypatch.setattr(calibrating, "sweep", sweep)
    with pytest.raises(CheckFailed, match="all 7 candidates failed on cpu"):
        calibrate(backbone, CHOSEN, load_target("cpu"), tmp_path / "run", QUICK, count=1)


@pytest.mark.parametrize("count", [0, 8])
def test_more_measurements_than_forks_are_refused(backbone: Backbone, tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match=f"7 candidates to measure {count} of"):
        calibrate(backbone, CHOSEN, load_target("cpu"), tmp_path / "run", QUICK, count=count)
    assert not (tmp_path / "run").exists()


def profile_of(backbone: Backbone, folder: Path, better: bool = False) -> Path:
    """Later blocks are better, pairs best; the early ones of a `better` task too."""
    rows = [
        Row(str(each).removesuffix(" x1"), each.layers, share, None, (share,), 100)
        for each in CHOSEN
        for share in [0.5 + 0.05 * max(each.layers) + 0.1 * (len(each.layers) - 1) + 0.1 * better]
    ]
    shapes = tuple(tuple(each.output_shape) for each in backbone.blocks)
    names = tuple(each.name for each in backbone.blocks)
    network = (backbone.name, backbone.weights, tuple(backbone.input.shape))
    about = (*network, names, shapes, {"test": 100}, {})
    out = folder / ("better.json" if better else "profile.json")
    write_document(out, Profile(*about, examples=20, seeds=(0,), rows=tuple(rows)))
    return out


def test_pareto_predicts_and_measures_what_decides(file: Path, backbone: Backbone, tmp_path: Path) -> None:
    calibration = tmp_path / "copy.json"
    calibration.write_bytes(file.read_bytes())
    found = read_document(LatencyModel, file)
    place = Path(backbone.name.rpartition(":")[0]).parent
    network = ("--model", backbone.name, "--weights", place / "base.pt")
    asked = ("pareto", "--accuracy", profile_of(backbone, tmp_path), "--calibration", calibration, *network)
    document = cli(*asked, "--json").document
    known = {str(each) for each in found.anchors if len(each.forks) == 1}
    assert {each["fork"]: each["predicted"] for each in document["points"]} == {
        str(each).removesuffix(" x1"): str(each).removesuffix(" x1") not in known for each in CHOSEN
    }
    assert cli(*asked).status == 0
    picture = cli(*asked, "--picture", tmp_path / "x.svg")
    assert picture.status == 0, picture.err
    confirmed = cli(*asked, "--min-accuracy", "70%", "--confirm", "--json").document
    assert not confirmed["chosen"]["predicted"]
    assert confirmed["chosen"]["accuracy"]["value"] >= 0.7
    grown = read_document(LatencyModel, calibration)
    assert [str(each) for each in grown.anchors[3:]] == confirmed["confirmed"]
    again = cli(*asked, "--min-accuracy", "70%", "--confirm", "--json").document
    assert again["confirmed"] == []
    assert again["chosen"] == confirmed["chosen"]


def test_choose_measures_the_graph_that_it_chooses(file: Path, backbone: Backbone, tmp_path: Path) -> None:
    """Two tasks with different forks, in one graph; asked again, nothing is measured twice."""
    calibration = tmp_path / "copy.json"
    calibration.write_bytes(file.read_bytes())
    place = Path(backbone.name.rpartition(":")[0]).parent
    network = ("--model", backbone.name, "--weights", place / "base.pt")
    tasks = (
        word for n in "ab" for word in ("--task", f"{n}={profile_of(backbone, tmp_path, better=n == 'a')}")
    )
    asked = ("choose", *tasks, "--calibration", calibration, *network, "--max-added", "150%")
    predicted = cli(*asked, "--json").document
    assert "measured" not in predicted["best"]
    found = cli(*asked, "--confirm", "--json").document
    best = found["best"]
    assert best["measured"]["low"] <= best["added"] <= best["measured"]["high"]
    assert best["added"] <= 1.5
    grown = read_document(LatencyModel, calibration)
    assert [str(each) for each in grown.anchors[3:]] == found["confirmed"]
    forks = sorted(task["fork"] for task in best["tasks"].values())
    assert forks in [sorted(map(format_layers, each.forks)) for each in grown.anchors]
    again = cli(*asked, "--confirm", "--json").document
    assert again["best"] == best
    assert read_document(LatencyModel, calibration) == grown
    shown = cli(*asked, "--confirm")
    assert "measured" in shown.out


def test_a_fork_that_another_target_measured_is_predicted_all_the_same(
    file: Path, backbone: Backbone, tmp_path: Path
) -> None:
    predictor, found = read_calibration(file, backbone)
    profile, results = (
        read_profile(profile_of(backbone, tmp_path)),
        list(read_results(file.with_suffix(".run"))),
    )
    alone = predictions(profile, results, predictor, found)
    wanted = alone.anchors[0].forks
    forks = {f"task{n}": layers for n, layers in enumerate(wanted, start=1)}
    elsewhere = replace(results[0], target="openvino-cpu", layers=wanted[0], forks=forks)
    assert predictions(profile, [*results, elsewhere], predictor, found) == alone
    here = predictions(profile, [*results, replace(elsewhere, target="cpu")], predictor, found)
    assert wanted not in [each.forks for each in here.anchors]


def test_what_is_predicted_is_of_as_many_classes_as_asked_for(file: Path, backbone: Backbone) -> None:
    """By the model's own rates; what was measured with another head counts as a measurement no more."""
    default, found = read_calibration(file, backbone)
    large, _ = read_calibration(file, backbone, classes=4000)
    assert large.added([(2, 3)]).value > default.added([(2, 3)]).value
    assert large.predict([(2, 3)]) == default.model.predict(default.costing.works([(2, 3)], None, 4000))
    tasks = len(found.anchors[0].forks)
    assert found.anchors[0] in Growing(file, found, default, tasks).known
    assert Growing(file, found, large, tasks).known == []
    same, _ = read_calibration(file, backbone, classes=5)
    assert Growing(file, found, same, tasks).known == Growing(file, found, default, tasks).known


def test_a_calibration_measures_the_heads_that_it_is_to_predict(
    place: Path, backbone: Backbone, tmp_path: Path
) -> None:
    network = ("--model", backbone.name, "--weights", place / "base.pt", "--classes", 40)
    asked = ("--span", 1, "--measurements", 2, "--seconds", 0.2, "-o", tmp_path / "found.json")
    assert cli("calibrate", *network, *asked).status == 0
    predictor, found = read_calibration(tmp_path / "found.json", backbone)
    assert [each.classes for each in found.anchors] == [(40,), (40,)]
    assert predictor.classes == 40
    learnt = found.anchors[0]
    assert Growing(tmp_path / "found.json", found, predictor, 1).known == list(found.anchors)
    again = replace(found, anchors=(replace(learnt, classes=()),))
    one, other = (
        Predictor.of(backbone, replace(each, anchors=each.anchors[:1]), 40) for each in (found, again)
    )
    assert one.predict([(1, 2)]) != other.predict([(1, 2)])  # the head's part is told from the blocks'


def test_cost_takes_a_calibration_too(file: Path, backbone: Backbone) -> None:
    place = Path(backbone.name.rpartition(":")[0]).parent
    network = ("--model", backbone.name, "--weights", place / "base.pt", "--layers", "2-3")
    document = cli("cost", *network, "--calibration", file, "--json").document
    assert set(document["predicted"]) == {"multiply-adds", "calibrated, cpu"}
    assert len(document["fitted"]) == 3
    assert document["base_seconds"] > 0


def test_bad_input_is_one_line(file: Path, backbone: Backbone, tmp_path: Path) -> None:
    document = json.loads(file.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document | {"host": document["host"] | {"cpu": "another CPU"}}))
    profile = profile_of(backbone, tmp_path)
    network = ("--model", backbone.name)
    for arguments, says in {
        ("--calibration", other, *network): "another host or versions: cpu another CPU",
        ("--calibration", file, "--model", "resnet18"): "the network is resnet18",
        ("--calibration", profile, *network): "kind 'profile', expected 1 and 'calibrate'",
        ("--calibration", file, "--latency", file.with_suffix(".run")): "both of --latency and --calibration",
        (): "neither of --latency and --calibration",
        ("--latency", file.with_suffix(".run"), "--confirm"): "--confirm goes with --calibration",
        ("--calibration", file, "--confirm", "--across"): "--confirm measures on this host",
        ("--calibration", file, *network, "--min-accuracy", "99%"): "no fork has an accuracy of 99.0%",
    }.items():
        ran = cli("pareto", "--accuracy", profile, *arguments)
        assert (ran.status, ran.out) == (2, "")
        assert says in ran.err.splitlines()[-2]
    assert cli("pareto", "--accuracy", profile, "--calibration", other, *network, "--across").status == 0
    for arguments, says in {
        ("--run", file.with_suffix(".run"), "--confirm"): "--confirm goes with --calibration",
        ("--calibration", file, "--confirm", "--across"): "--confirm measures on this host",
    }.items():
        ran = cli("choose", "--task", f"a={profile}", "--max-added", "30%", *arguments)
        assert (ran.status, says in ran.err) == (2, True)
    ran = cli("cost", "--model", "resnet18", "--layers", "7", "--calibration", file)
    assert (ran.status, ran.out) == (2, "")
    assert "the calibration is of" in ran.err
    found = json.loads(profile.read_text())
    renamed = found | {"blocks": [f"layers.{n}" for n in range(4)]}
    (tmp_path / "renamed.json").write_text(json.dumps(renamed))
    ran = cli("pareto", "--accuracy", tmp_path / "renamed.json", "--calibration", file, *network)
    assert (ran.status, "the profile has 4 blocks, layers.0 the first; the network" in ran.err) == (2, True)
    ran = cli("calibrate", *network, "-o", tmp_path / "no.run")
    assert (ran.status, "cannot be" in ran.err, list(tmp_path.glob("no*"))) == (2, True, [])
    ran = cli("calibrate", *network, "--span", "1", "--measurements", 9, "-o", tmp_path / "no.json")
    assert (ran.status, "4 candidates to measure 9 of" in ran.err) == (2, True)
    assert not (tmp_path / "no.json").exists()


def test_a_file_of_another_network_is_refused(file: Path, backbone: Backbone) -> None:
    found = replace(read_document(LatencyModel, file), network="another")
    with pytest.raises(InputError, match="on input 3x32x32, not of this"):
        Predictor.of(backbone, found)


def test_a_fork_that_cannot_be_pruned_is_told_and_the_others_are_measured(
    backbone: Backbone, tmp_path: Path
) -> None:
    """Its widest layer has eight channels, which stay together."""
    steps, thin = list[Step](), candidates(4, (1, 1), prunings=(None, Pruning(0.5)))
    found = calibrate(backbone, thin, load_target("cpu"), tmp_path / "run", QUICK, count=2, told=steps.append)
    assert all(each.prune is None for each in found.anchors)
    refused = [step for step in steps if isinstance(step.outcome, InputError)]
    assert [str(step.candidate) for step in refused] == [str(each) for each in thin if each.prune]
    with pytest.raises(InputError, match="removes nothing"):
        calibrate(backbone, thin[1::2], load_target("cpu"), tmp_path / "none", QUICK, count=1)


def test_a_report_shows_other_targets_too_and_says_what_nobody_ran(
    file: Path, backbone: Backbone, tmp_path: Path
) -> None:
    place = Path(backbone.name.rpartition(":")[0]).parent
    run, profile, page = file.with_suffix(".run"), profile_of(backbone, tmp_path), tmp_path / "page.html"
    found = read_document(LatencyModel, file)
    elsewhere, moved = tmp_path / "elsewhere.json", tmp_path / "moved.json"
    other = replace(found, host={**found.host, "cpu": "a board"})
    write_document(elsewhere, replace(other, target=replace(found.target, name="board")))
    write_document(moved, other)
    asked = ("report", run, "--accuracy", profile, "--model", f"{place}/net.py:Net", "-o", page)
    ran = cli(*asked, "--calibration", file, "--calibration", elsewhere, "--datasheet", "a100-sxm4-80gb-fp16")
    assert ran.status == 0, ran.err
    data = json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])
    assert [each["label"] for each in data["targets"]] == ["cpu", "board", "a100-sxm4-80gb-fp16"]
    by_target = {(point["target"], point["status"]) for point in data["points"]}
    assert by_target == {(0, "measured"), (0, "predicted"), (1, "predicted"), (2, "not run on hardware")}
    unknown = next(point for point in data["points"] if point["target"] == 2)
    assert unknown["added"][1:] == [None, None]
    assert "nothing was run on such a device" in json.dumps(data["notes"])
    for arguments, says in {
        ("--calibration", moved): "are of two hosts or versions: cpu",
        ("--calibration", file, "--calibration", moved, "--across"): "target cpu is predicted twice",
        ("--datasheet", "cpu"): "no datasheet number",
    }.items():
        ran = cli(*asked, *arguments)
        assert (ran.status, says in ran.err) == (2, True), ran.err
    assert cli(*asked, "--calibration", moved, "--across").status == 0
