"""From a profile and a sweep to a choice: joined, drawn, and as the command `pareto`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_cli import cli
from tiny_documents import profile, row
from tiny_results import result

from subtune_deploy.documents import write_document
from subtune_deploy.errors import InputError
from subtune_deploy.latency_model import anchor
from subtune_deploy.pareto import choose
from subtune_deploy.results import Result, append_result
from subtune_deploy.spec import Pruning
from subtune_deploy.stats import Interval, mean_interval, share_interval
from subtune_deploy.tradeoff import draw_tradeoff, join, latencies, told

THIN = Pruning(0.5)
PROFILE = profile(
    row((), fork="none"),
    row((1,), (0.80, 0.82, 0.81)),
    row((2,), (0.90, 0.91, 0.92)),
    row((3,), (0.95, 0.96, 0.94)),
    row((4,), (0.93, 0.92, 0.94)),
    row((3,), (0.99, 0.99, 0.99), fork="3 siamese", siamese=True),
    row((4,), (0.91, 0.91, 0.90), fork=f"4 {THIN}", prune=THIN),
    row((3, 4), (0.96, 0.97, 0.95)),
)


def timed(added: float, **other: object) -> Result:
    return result(added, input_shape=PROFILE.input, **other)


RESULTS = [
    timed(0.50, layers=(1,)),
    timed(0.40, layers=(2,)),
    timed(0.20, layers=(3,)),
    timed(0.10, layers=(4,)),
    timed(0.06, layers=(4,), prune=THIN),
]
ANCHORS = [anchor(each) for each in RESULTS]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write_document(tmp_path / "profile.json", PROFILE)
    for each in RESULTS:
        append_result(tmp_path / "results.jsonl", each)
    return tmp_path


def pareto(files: Path, *arguments: object):
    return cli(
        "pareto", "--accuracy", files / "profile.json", "--latency", files / "results.jsonl", *arguments
    )


def test_forks_with_both_are_joined_and_the_others_named() -> None:
    points, lacking = join(PROFILE, ANCHORS)
    assert [point.fork for point in points] == ["1", "2", "3", "4", f"4 {THIN}"]
    assert lacking == ("none", "3-4")
    three = points[2]
    assert three.accuracy.value == pytest.approx(0.95)
    assert three.accuracy.low == pytest.approx(mean_interval((0.95, 0.96, 0.94)).low)
    assert (three.added.low, three.added.value, three.added.high) == pytest.approx((0.19, 0.20, 0.21))
    assert told(three) == ("3", "95.0 ± 2.5 %", "+20.0 ± 1.0 %")


def test_of_one_seed_the_interval_is_that_of_a_share_of_the_test_pictures() -> None:
    one = profile(row((4,), (0.9,)), seeds=(0,))
    ((point,), _) = join(one, ANCHORS)
    assert point.accuracy == share_interval(0.9, 500)


def test_what_was_always_right_or_wrong_or_equal_is_not_certain() -> None:
    of = {"1": (1.0,), "2": (0.0, 0.0), "3": (0.97, 0.97, 0.97), "4": (0.0, 0.1, 0.2)}
    found, _ = join(profile(*(row((int(name),), each) for name, each in of.items())), ANCHORS)
    accuracy = {point.fork: point.accuracy for point in found if point.fork in of}
    assert all(each.high > each.low for each in accuracy.values())
    for name, value in {"1": 1.0, "2": 0.0, "3": 0.97}.items():
        assert accuracy[name].high - accuracy[name].low == pytest.approx(
            share_interval(value, 500).high - share_interval(value, 500).low
        )
    assert accuracy["4"].value == pytest.approx(0.1)


def test_a_fork_has_one_latency_and_so_one_batch(files: Path) -> None:
    append_result(files / "results.jsonl", replace(RESULTS[0], batch=8))
    ran = pareto(files)
    assert (ran.status, ran.out) == (2, "")
    assert "was measured with several batches: 1, 8" in ran.err


def test_the_command_tells_front_knee_and_choice(files: Path) -> None:
    ran = pareto(files, "--max-added", "15%")
    assert ran.status == 0, ran.err
    assert ran.out.splitlines()[-1] == "chosen: 4, accuracy 93.0%, added latency 10.0%"
    assert ran.row("3")[1:] == ["95.0", "±", "2.5", "%", "+20.0", "±", "1.0", "%"]
    assert "not timed, and left out: the head alone, 3-4" in ran.err
    assert "1 is beaten" not in ran.err
    cheap = pareto(files, "--min-accuracy", "90%", "--json").document
    assert cheap["chosen"]["fork"] == f"4 {THIN}"
    assert [each["fork"] for each in cheap["front"]] == [f"4 {THIN}", "4", "3"]
    assert pareto(files, "--json").document["chosen"]["fork"] == choose(join(PROFILE, ANCHORS)[0]).fork


@pytest.mark.parametrize("name", ["tradeoff.svg", "tradeoff.png"])
def test_the_picture_shows_front_stages_and_choice(files: Path, name: str) -> None:
    points, _ = join(PROFILE, ANCHORS)
    draw_tradeoff(PROFILE, points, files / name, choose(points, max_added=0.15))
    assert (files / name).stat().st_size > 5000
    if name.endswith("svg"):
        text = (files / name).read_text()
        assert "<!-- chosen: 4 -->" in text
        assert "<!-- stage 1, 56×56 -->" in text
        assert text.count("<!-- 3 -->") == 1
    ran = pareto(files, "--picture", files / "again.svg")
    assert ran.status == 0
    assert (files / "again.svg").exists()


def test_a_run_is_of_the_profiles_network_on_one_target(tmp_path: Path) -> None:
    def read(*results: object, **how: object) -> None:
        path = tmp_path / "results.jsonl"
        path.unlink(missing_ok=True)
        for each in results:
            append_result(path, each)  # type: ignore[arg-type]
        latencies(path, PROFILE, **how)  # type: ignore[arg-type]

    with pytest.raises(InputError, match="is of resnet50, the profile of tiny"):
        read(replace(RESULTS[0], model="resnet50"))
    with pytest.raises(InputError, match="several targets: cpu, openvino-cpu"):
        read(RESULTS[0], replace(RESULTS[1], target="openvino-cpu"))
    with pytest.raises(InputError, match="no result with 8 tasks on cpu"):
        read(*RESULTS, tasks=8, target="cpu")
    with pytest.raises(InputError, match="the profile 4 blocks"):
        read(timed(0.1, layers=(9,)))
    with pytest.raises(InputError, match="was measured on input 3x8x8, the profile is of 3x112x112"):
        read(result(0.1, layers=(3,)))
    with pytest.raises(InputError, match="do not belong together"):
        read(RESULTS[0], replace(RESULTS[1], host={"cpu": "another"}))
    with pytest.raises(InputError, match="no fork was both trained and timed"):
        join(PROFILE, [anchor(timed(0.1, layers=(1, 2)))])


def test_latencies_are_of_the_heads_that_come_nearest_to_the_profiles(files: Path, tmp_path: Path) -> None:
    """The profile is of 10 classes."""
    ran = pareto(files, "--max-added", "15%")
    assert (
        "heads of as many classes as the base has, the profile has 10" in ran.err
    )  # an older version's results
    path = tmp_path / "two.jsonl"
    for added, classes in ((0.3, 1000), (0.2, 100)):
        each = timed(added, layers=(4,), classes={"task1": classes})
        append_result(path, each)
    assert [each.added.value for each in latencies(path, PROFILE)] == [pytest.approx(0.2)]
    ran = cli("pareto", "--accuracy", files / "profile.json", "--latency", path)
    assert ran.status == 0
    assert "timed with heads of 100 classes, the profile has 10: measure with --classes 10" in ran.err
    append_result(path, timed(0.1, layers=(4,), classes={"task1": 10}))
    ran = cli("pareto", "--accuracy", files / "profile.json", "--latency", path)
    assert "added latency 10.0%" in ran.out
    assert "timed with heads" not in ran.err


def test_bad_input_is_one_line(files: Path) -> None:
    line = json.loads((files / "results.jsonl").read_text().splitlines()[0])
    (files / "nan.jsonl").write_text(
        json.dumps(line | {"ratio": dict.fromkeys(line["ratio"], float("nan"))}) + "\n"
    )
    negative = {"value": -0.5, "low": -0.6, "high": -0.4}
    (files / "negative.jsonl").write_text(json.dumps(line | {"ratio": negative}) + "\n")
    (files / "text.json").write_text(json.dumps({"schema": 1}))
    for arguments, says in {
        ("--max-added", "1%"): "no fork adds at most 1.0%",
        ("--min-accuracy", "99%"): "no fork has an accuracy of 99.0%",
        ("--max-added", "0.1"): "is no percentage",
        ("--accuracy", str(files / "none.json")): "none.json",
        ("--accuracy", str(files / "text.json")): "text.json",
        ("--latency", str(files / "none")): "holds no results",
        ("--latency", str(files / "nan.jsonl")): "nan",
        ("--latency", str(files / "negative.jsonl")): "fork 1 adds -150% of the base's latency",
        ("--picture", "x.txt"): "x.txt",
        ("--tasks", "0"): "0",
    }.items():
        ran = pareto(files, *arguments)
        assert ran.status == 2, arguments
        assert says in ran.err, ran.err
        assert len(ran.err.splitlines()) <= 3
        assert "hint: " in ran.err


def test_the_head_alone_is_a_fork_like_any_other(files: Path) -> None:
    """It is the cheapest, and of this profile good enough."""
    head = timed(0.01, layers=())
    points, lacking = join(PROFILE, [*ANCHORS, anchor(head)])
    assert (points[0].fork, lacking) == ("none", ("3-4",))
    assert choose(points, min_accuracy=0.9).fork == "none"
    append_result(files / "results.jsonl", head)
    ran = pareto(files, "--min-accuracy", "90%", "--picture", files / "head.svg")
    assert ran.out.splitlines()[-1] == "chosen: none, accuracy 91.0%, added latency 1.0%"
    assert "<!-- the head alone -->" in (files / "head.svg").read_text()
    found, _ = join(PROFILE, [], lambda layers, prune: Interval(len(layers) / 10, 0.0, 0.5))
    assert {point.fork: point.added.value for point in found}["none"] == 0


def test_full_fine_tuning_is_not_timed_by_a_fork_of_all_blocks() -> None:
    everything, blocks = row((1, 2, 3, 4), (0.99, 0.99, 0.98), fork="all"), row((1, 2, 3, 4))
    timed_all = [anchor(timed(0.9, layers=(1, 2, 3, 4)))]
    for rows in ((everything, blocks), (blocks, everything)):
        points, lacking = join(profile(*rows), timed_all)
        assert ([point.fork for point in points], lacking) == (["1-4"], ("all",))
        assert points[0].accuracy.value == pytest.approx(0.91)


def test_a_run_of_other_blocks_is_refused(tmp_path: Path) -> None:
    """Block 1 of one division is not block 1 of another."""
    for name, blocks in (("same", list(PROFILE.blocks)), ("other", ["blocks.0", "blocks.2"])):
        (tmp_path / name).mkdir()
        described = {"schema": 1, "host": {}, "targets": {}, "blocks": blocks}
        (tmp_path / name / "run.json").write_text(json.dumps(described))
        append_result(tmp_path / name / "results.jsonl", RESULTS[0])
    assert len(latencies(tmp_path / "same", PROFILE)) == 1
    told = "other has 2 blocks, blocks.0 to blocks.2; the profile has 4 blocks, blocks.0 to blocks.3"
    with pytest.raises(InputError, match=told):
        latencies(tmp_path / "other", PROFILE)
