"""The command `report`: what goes into the document, what is refused, and that no text breaks out of the page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tiny_report
from tiny_cli import cli, write_network
from tiny_documents import profile, row
from tiny_results import HOST, result

from subtune_deploy.backbone import trace
from subtune_deploy.breakdown import backbone_of, breakdown
from subtune_deploy.documents import write_document
from subtune_deploy.errors import InputError
from subtune_deploy.latency_model import Anchor, anchor
from subtune_deploy.models import load_model
from subtune_deploy.predictor import Costing
from subtune_deploy.report import PARTS, SCRIPTS, gather, make_document, page, write_page
from subtune_deploy.report_points import Predicted, histogram
from subtune_deploy.results import Result, append_result
from subtune_deploy.spec import Pruning
from subtune_deploy.stats import Ratio
from subtune_deploy.tradeoff import accuracies, head_alone, join

ROOT = Path(__file__).parents[1]
PRUNED = ROOT / "benchmarks" / "results" / "pruning_sweep"


def written(path: Path, *results: Result) -> Path:
    path.unlink(missing_ok=True)
    for each in results:
        append_result(path, each)
    return path


def data_of(text: str) -> Any:
    return json.loads(
        re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[0]
    )


def test_a_point_holds_what_was_measured() -> None:
    first, *_ = (document := make_document(tiny_report.run(), tiny_report.trained()))["points"]
    assert (first["fork"], first["layers"], first["tasks"], first["status"]) == ("1", [1], 1, "measured")
    assert first["added"] == pytest.approx([0.51, 0.50, 0.52])
    assert first["base"] == pytest.approx([10.0, 9.9, 10.1, 12.0])
    assert first["accuracy"][0] == pytest.approx(0.928)
    assert sum(first["samples"]["base"]) + first["samples"]["beyond"][0] == first["rounds"] == 80
    assert document["accuracy"] == {"of": "digits", "head": pytest.approx([0.86, 0.855, 0.865], abs=1e-3)}
    assert document["stages"]["of"] == [0, 0, 1, 1]
    assert document["stages"]["names"] == ["stage 1, 56×56", "stage 2, 28×28"]
    assert document["costs"] == {"missing": "it was not asked for"}
    assert "Host: tiny CPU, 2 cores." in document["targets"][0]["facts"]


def test_accuracies_are_those_that_pareto_joins() -> None:
    results, known = tiny_report.run(), tiny_report.trained()
    anchors = [anchor(each) for each in results]
    points, _ = join(known, anchors)
    by_fork = {point.fork: point.accuracy for point in points}
    assert accuracies(known, anchors) == [by_fork[each.fork] for each in results]
    mixed = result(layers=(3, 4), forks={"one": (3,), "two": (4,)})
    assert accuracies(known, [anchor(mixed)]) == [None], "two tasks with a block each are no task with both"
    assert head_alone(profile(row((1,)))) is None


def test_targets_carry_their_host_where_hosts_differ() -> None:
    other = {**HOST, "cpu": "another CPU", "gpus": [{"name": "a GPU"}]}
    one = make_document([*tiny_report.run(), *tiny_report.run("openvino-cpu")])
    assert [each["label"] for each in one["targets"]] == ["cpu", "openvino-cpu"]
    two = make_document([*tiny_report.run(), *tiny_report.run("rtx", host=other)])
    assert [each["label"] for each in two["targets"]] == ["cpu on tiny CPU", "rtx on another CPU, a GPU"]
    batches = make_document([*tiny_report.run(), *tiny_report.run(batch=8)])
    assert [each["label"] for each in batches["targets"]] == ["cpu, batch 1", "cpu, batch 8"]
    assert [each["batch"] for each in batches["targets"]] == [1, 8]


def test_a_fork_with_two_heads_is_shown_with_the_one_that_is_asked_for(tmp_path: Path) -> None:
    ten, thousand = (result(layers=(1,), classes={"task1": classes}) for classes in (10, 1000))
    both = written(tmp_path / "both.jsonl", ten, thousand, result(layers=(2,), classes={"task1": 1000}))
    assert [(each.layers, each.head) for each in gather([both], classes=12)] == [((1,), 10), ((2,), 1000)]
    with pytest.raises(InputError, match="heads of 10 and 1000 classes"):
        gather([both])


def test_runs_are_gathered(tmp_path: Path) -> None:
    one = written(tmp_path / "one.jsonl", *tiny_report.run())
    two = written(tmp_path / "two.jsonl", *tiny_report.run("openvino-cpu"))
    assert len(gather([one, two, one])) == 2 * len(tiny_report.FORKS), "a run that is given twice counts once"
    assert {each.target for each in gather([one, two], target="cpu")} == {"cpu"}
    again = [replace(each, started="2027-01-01T00:00:00+00:00", settled=False) for each in tiny_report.run()]
    assert not any(each.settled for each in gather([written(tmp_path / "again.jsonl", *again), one]))
    eight = replace(tiny_report.run()[0], forks={f"task{n}": (1,) for n in range(8)})
    assert [each.tasks for each in gather([written(tmp_path / "eight.jsonl", eight), one], tasks=8)] == [8]


def test_what_does_not_belong_together_is_refused_in_one_line(tmp_path: Path) -> None:
    plain = written(tmp_path / "plain.jsonl", *tiny_report.run())
    elsewhere = written(tmp_path / "host.jsonl", *tiny_report.run(host={**HOST, "cpu": "another"}))
    other = written(tmp_path / "other.jsonl", *tiny_report.run(model="resnet50"))
    small = written(tmp_path / "small.jsonl", result())
    broken, line = tmp_path / "broken.jsonl", json.loads(small.read_text())
    broken.write_text(json.dumps(line | {"ratio": line["ratio"] | {"value": float("nan")}}) + "\n")
    empty = written(tmp_path / "empty.jsonl")
    empty.write_text("")
    write_document(tmp_path / "profile.json", tiny_report.trained())
    write_document(tmp_path / "lone.json", profile(row((1, 2, 3, 4))))
    (tmp_path / "text.json").write_text("{}")
    for arguments, says in {
        (plain, other): "these runs are of tiny at 3x112x112 and resnet50 at 3x112x112",
        (plain, small): "tiny at 3x112x112 and tiny at 3x8x8",
        (plain, elsewhere): "on cpu these results do not belong together: cpu tiny CPU / another",
        (plain, "--target", "abacus"): "no result is on abacus",
        (plain, "--tasks", "8"): "no result with 8 tasks",
        (plain, "--accuracy", tmp_path / "none.json"): "none.json",
        (plain, "--accuracy", tmp_path / "text.json"): "text.json",
        (plain, "--accuracy", tmp_path / "lone.json"): "no fork was both trained and timed",
        (small, "--accuracy", tmp_path / "profile.json"): "was measured on input 3x8x8",
        (tmp_path / "nothing",): "holds no results",
        (empty,): "no result",
        (broken,): "added latency of fork 3-4 is nan",
        (): "RUN",
    }.items():
        ran = cli("report", *arguments, "-o", tmp_path / "report.html")
        assert ran.status == 2, (arguments, ran.err)
        assert says in ran.err, ran.err
        assert "hint: " in ran.err
        assert len(ran.err.splitlines()) <= 3
        assert not (tmp_path / "report.html").exists()
    ran = cli("report", plain, "-o", tmp_path / "no folder" / "report.html")
    assert (ran.status, "lies in no existing folder" in ran.err) == (2, True)


HOSTILE = "</script><script>alert(1)</script><!-- \u2028 \ud800 & '\" {{style}}"


class Tags(HTMLParser):
    """How many of each element there are, and what executable scripts and styles hold."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside, self.text = "", {"script": "", "style": ""}

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.inside = "" if ("type", "application/json") in attributes else tag

    def handle_data(self, data: str) -> None:
        if self.inside in self.text:
            self.text[self.inside] += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def read_tags(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    return tags


def test_no_text_breaks_out_of_the_page(tmp_path: Path) -> None:
    host = {**HOST, "cpu": HOSTILE, "platform": HOSTILE, "libraries": {"numpy": HOSTILE}}
    hostile = tiny_report.run(
        HOSTILE, model=HOSTILE, weights=HOSTILE, warnings=(HOSTILE,), host=host, backend=HOSTILE
    )
    document = make_document(hostile)
    write_page(tmp_path / "report.html", document)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert data_of(text) == document
    assert read_tags(text).found == read_tags(page(make_document(tiny_report.run()))).found
    assert "alert(1)</" not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text


def test_the_policy_names_the_script_and_the_style_and_nothing_else() -> None:
    text = page(make_document(tiny_report.run()))
    tags = read_tags(text)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src 'none'; ")
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(tags.text[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.findall(r"(?:https?:)?//[a-z]", text.replace("http://www.w3.org/2000/svg", ""))
    assert not re.findall(r"innerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_every_part_of_the_page_is_used() -> None:
    assert {each.name for each in PARTS.iterdir()} == {
        "page.html",
        "page.css",
        *(f"{name}.js" for name in SCRIPTS),
    }
    for each in PARTS.iterdir():
        assert len(each.read_text().splitlines()) <= 400


@pytest.mark.parametrize("samples", [(0.01,), (0.01, 0.01, 0.01), (0.0, 0.0), (1e-9, 5.0)])
def test_any_samples_have_a_histogram(samples: tuple[float, ...]) -> None:
    found = histogram({"base": samples, "graph": samples})
    assert found is not None
    assert found["high"] > found["low"]
    assert [sum(found[name]) + found["beyond"][n] for n, name in enumerate(("base", "graph"))] == [
        len(samples)
    ] * 2
    assert histogram({"base": (float("nan"),), "graph": (1.0,)}) is None


def test_bounds_that_are_none_are_null() -> None:
    endless = result(ratio=Ratio(1.2, 1.1, float("inf")))
    (point,) = make_document([endless])["points"]
    assert point["added"] == [pytest.approx(0.2), pytest.approx(0.1), None]
    assert data_of(page(make_document([endless])))["points"] == [point]


def test_the_breakdown_is_what_cost_counts() -> None:
    results = [result(layers=each, model="resnet18", input_shape=(3, 64, 64)) for each in ((7, 8), (2,))]
    results.append(replace(results[0], target="openvino-cpu"))
    counted = breakdown(backbone_of(results[0]), [anchor(each) for each in results])
    costing = Costing(trace(load_model("resnet18", input_size=(3, 64, 64))))
    alone, works = costing.base, costing.works([(7, 8)])
    assert counted.which == (0, 1, 0)
    for place, name in enumerate(("macs", "activations", "weights", "launches")):
        base, graph = (sum(getattr(work, name) for work in each) for each in (alone, works))
        assert sum(column[place] for column in counted.base) == base
        assert sum(costs[place] for costs in counted.added[0].values()) == graph - base
    names = [name for name, _ in counted.columns]
    assert (names[0], names[1], names[-1]) == ("stem", "block 1", "head")
    assert {counted.columns[index][0] for index in counted.added[0]} == {"block 7", "block 8", "head"}
    document = make_document(results, counted=counted)
    assert [point["cost"] for point in document["points"]] == [0, 1, 0]
    assert document["stages"]["of"] == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(InputError, match="outside"):
        breakdown(costing.backbone, [anchor(result(layers=(12,), model="resnet18"))])


def test_a_missing_breakdown_says_why(tmp_path: Path) -> None:
    run = written(tmp_path / "run.jsonl", *tiny_report.run())
    ran = cli("report", run, "-o", tmp_path / "report.html")
    assert ran.status == 0, ran.err
    assert "no breakdown by block: unknown model 'tiny'" in ran.err
    document = data_of((tmp_path / "report.html").read_text())
    assert document["costs"]["missing"].startswith("unknown model 'tiny'")
    assert any(
        "is missing: unknown model 'tiny'" in line for note in document["notes"] for line in note["lines"]
    )


def test_results_do_not_choose_which_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_network(tmp_path)
    monkeypatch.chdir(tmp_path)
    own = tiny_report.run(model="net.py:Net")
    run = written(tmp_path / "run.jsonl", *(replace(each, input_shape=(3, 32, 32)) for each in own))
    (tmp_path / "net.py").write_text((tmp_path / "net.py").read_text() + "\nopen('ran', 'w').close()\n")
    ran = cli("report", run, "-o", "report.html")
    assert ran.status == 0, ran.err
    assert "which results may not choose to run (give --model net.py:Net)" in ran.err
    assert not (tmp_path / "ran").exists()
    ran = cli("report", run, "--model", "net.py:Net", "-o", "report.html")
    assert ran.status == 0, ran.err
    assert "no breakdown" not in ran.err
    assert len(data_of(Path("report.html").read_text())["costs"]["added"]) == len(tiny_report.FORKS)
    ran = cli("report", run, "--model", "gone.py:Net", "-o", "report.html")
    assert ran.status == 0
    assert "gone.py" in data_of(Path("report.html").read_text())["costs"]["missing"]


def test_kept_results_of_two_targets_make_a_page() -> None:
    results = gather([PRUNED])
    document = make_document(results)
    assert [each["label"] for each in document["targets"]] == ["cpu", "openvino-cpu"]
    thin = next(each for each in document["points"] if each["pruned"])
    assert thin["fork"] == f"14-16 {Pruning(0.1)}"
    assert thin["name"] == "14-16, pruned 0.1"
    assert any("did not reach the precision" in line for line in document["targets"][0]["facts"])
    assert len(page(document)) < 400_000


def test_thousands_of_points_stay_small() -> None:
    slow = replace(
        tiny_report.run()[0],
        samples={name: tuple(0.01 + n * 1e-6 for n in range(2000)) for name in ("base", "graph")},
    )
    results = [replace(slow, forks={"task1": (1, n)}) for n in range(2, 1002)]
    assert len(page(make_document(results))) < 1000 * 1200


def test_the_page_does_without_pytorch(tmp_path: Path) -> None:
    run = written(tmp_path / "run.jsonl", *tiny_report.run())
    code = "import sys; sys.modules['torch'] = None\nfrom subtune_deploy.cli import main\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}main(['report', {str(run)!r}, '-o', {str(tmp_path / 'report.html')!r}])"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "it needs torch, which is not installed" in done.stderr
    assert (tmp_path / "report.html").exists()


def test_predicted_graphs_stand_beside_the_measured_ones() -> None:
    results = tiny_report.run()[1:]
    first = Anchor(((1,),), Ratio(1.5, 1.4, 1.6))
    predicted = Predicted("cpu", 0.02, (first,), "By cpu (onnxruntime, fp32), fitted to 8 measurements.")
    document = make_document(results, tiny_report.trained(), predicted=[predicted])
    point = document["points"][-1]
    assert (point["fork"], point["status"], point["samples"]) == ("1", "predicted", None)
    assert point["added"] == pytest.approx([0.5, 0.4, 0.6])
    assert point["base"] == [20.0, None, None, None]
    assert point["graph"] == [pytest.approx(30), pytest.approx(28), pytest.approx(32), None]
    assert point["accuracy"] is not None
    assert document["notes"][-1]["lines"] == ["By cpu (onnxruntime, fp32), fitted to 8 measurements."]
    elsewhere = make_document(results, tiny_report.trained(), predicted=[replace(predicted, target="rtx")])
    assert elsewhere["points"][-1]["target"] == 1
    assert [each["label"] for each in elsewhere["targets"]] == ["cpu", "rtx"]
    assert elsewhere["targets"][1]["facts"] == ["Nothing on it was measured for this page."]
    batches = [replace(each, batch=8) for each in results]
    mixed = make_document([*batches, *results], tiny_report.trained(), predicted=[predicted])
    assert mixed["points"][-1]["target"] == 1  # one picture at a time, as it was predicted
