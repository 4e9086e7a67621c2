"""Results: what is written is read back, what does not belong together is not mixed."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from tiny_results import HOST, result

from subtune_deploy.errors import InputError
from subtune_deploy.lines import drop_torn_line
from subtune_deploy.measure import Protocol
from subtune_deploy.result_tables import COLUMNS, compare, markdown, rows, to_csv
from subtune_deploy.results import (
    Result,
    append_result,
    check_comparable,
    nearest_heads,
    read_results,
    schema,
    to_document,
)
from subtune_deploy.stats import Ratio

SCHEMA_FILE = Path(__file__).parents[1] / "docs" / "results.schema.json"


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    several = result(), result(layers=(2, 14), device_ratio=Ratio(1.2, 1.1, 1.3), device={"base": (0.001,)})
    for each in several:
        append_result(path, each)
    first, second = read_results(path)
    assert first == replace(several[0], samples={"base": (0.01, 0.01), "graph": (0.0125, 0.0125)})
    assert second.device_ratio == Ratio(1.2, 1.1, 1.3)
    assert read_results(tmp_path) == (first, second)
    assert len(path.read_text().splitlines()) == 2


def test_a_line_fits_the_published_schema_and_the_schema_can_refuse() -> None:
    published = json.loads(SCHEMA_FILE.read_text())
    assert published == schema(), "write json.dumps(schema(), indent=1) to docs/results.schema.json"
    jsonschema.Draft202012Validator.check_schema(published)
    document = to_document(result())
    jsonschema.validate(document, published)
    assert document["layers"] == [3, 4]
    assert document["added"] == pytest.approx(0.25)
    for spoilt in (
        {**document, "schema": 2},
        {**document, "layers": "3-4"},
        {**document, "colour": "red"},
        {key: value for key, value in document.items() if key != "ratio"},
        {**document, "samples": {"base": ["fast"]}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoilt, published)


def test_the_torn_line_of_a_killed_process_is_no_result_and_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_result(path, result())
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert len(read_results(path)) == 1
    drop_torn_line(path)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:40])
    drop_torn_line(path)
    assert path.read_bytes() == b""
    drop_torn_line(tmp_path / "never written")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "has schema version None, expected 1"),
        ('{"schema": 7}', "has schema version 7, expected 1"),
        ('{"schema": 1, "model": 5}', "key 'weights' is missing"),
        (json.dumps({**to_document(result()), "samples": {"base": [0.1]}}), "not as many samples"),
        (json.dumps({**to_document(result()), "samples": {"base": [], "graph": []}}), "not as many samples"),
    ],
)
def test_a_line_that_is_no_result_is_named(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "x.jsonl"
    append_result(path, result())
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InputError, match=r"x\.jsonl:2") as caught:
        read_results(path)
    assert told in caught.value.message


def test_a_place_without_results_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="holds no results"):
            read_results(path)


def test_results_of_different_hosts_versions_or_ways_are_not_mixed() -> None:
    check_comparable([result(), result(0.5, layers=(1,))])
    other_version = {**HOST, "libraries": {"onnxruntime": "1.21.0"}}
    for other, told in (
        (result(host={**HOST, "cpu": "another"}), "cpu tiny CPU / another"),
        (result(host=other_version), "onnxruntime 1.20.0 / 1.21.0"),
        (result(protocol=Protocol("paper", 300, 300, 10)), "protocol adaptive 1.00% in 20 s / paper 10 x"),
        (result(protocol=Protocol(precision=0.5)), "protocol adaptive 1.00% in 20 s / adaptive 50.00%"),
        (result(host={**HOST, "instructions": "avx2"}), "instructions none / avx2"),
        (result(inputs="hot"), "inputs fresh / hot"),
        (result(precision="int8"), "precision fp32 / int8"),
        (result(options={"pin": True}, keep=()), "options {} / {'pin': True}"),
        (result(options={}, keep=("block2",)), "units in float32 () / ('block2',)"),
    ):
        known = result(options={}, keep=())
        with pytest.raises(InputError, match="do not belong together") as caught:
            check_comparable([known, other])
        assert told in caught.value.message
        with pytest.raises(InputError, match="not measured alike"):
            compare([known], [other])
        assert len(compare([known], [other], across=True)) == 1
    check_comparable([result(), result(options={"pin": True}, keep=())])  # an older version does not tell


def test_a_change_is_shown_only_where_the_intervals_allow_it() -> None:
    first = [
        result(0.25, layers=(1,)),
        result(0.25, layers=(2,)),
        result(0.25, layers=(3,)),
        result(layers=(9,)),
    ]
    second = [
        result(0.24, layers=(1,)),
        result(0.31, layers=(3,)),
        result(0.20, layers=(2,)),
        result(layers=(8,)),
    ]
    changes = compare(first, second)
    assert [change.first.layers for change in changes] == [(1,), (2,), (3,)]
    assert [change.verdict for change in changes] == ["no difference shown", "faster", "slower"]
    assert changes[1].ratio.value == pytest.approx(1.20 / 1.25)
    with pytest.raises(InputError, match="no result in common"):
        compare(first[3:], second[3:])
    with pytest.raises(InputError, match="no result in common"):
        compare([result()], [result(input_shape=(3, 16, 16))])


def test_every_pair_is_looked_at_before_two_runs_are_compared() -> None:
    elsewhere = result(layers=(2,), host={**HOST, "cpu": "another"})
    with pytest.raises(InputError, match="cpu tiny CPU / another"):
        compare([result(), result(layers=(2,))], [result(), elsewhere])


def test_csv_has_raw_numbers() -> None:
    (row,) = csv.DictReader(io.StringIO(to_csv([result()])))
    assert float(row["base_seconds"]) == 0.01
    assert float(row["added"]) == pytest.approx(0.25)
    assert (row["layers"], row["tasks"], row["graph_engine_bytes"]) == ("3-4", "1", "1000")


def test_markdown_sets_numbers_to_the_right() -> None:
    lines = markdown(COLUMNS, rows([result()])).splitlines()
    assert lines[0].startswith("| model | fork | tasks |")
    assert lines[1].split("|")[3].strip() == "---:"
    assert lines[1].split("|")[1].strip() == "---"
    assert "+25.0%" in lines[2]
    assert len({line.count("|") for line in lines}) == 1


def test_tasks_with_different_forks_are_told_apart() -> None:
    both = result(layers=(1, 3, 4), forks={"birds": (3, 4), "signs": (1,)})
    assert (both.fork, both.tasks) == ("3-4 + 1", 2)
    assert result(forks={"a": (3, 4), "b": (3, 4)}).fork == "3-4"


def headed(classes: int | None, added: float = 0.25, **other: object) -> Result:
    return result(added, classes={"task1": classes} if classes else {}, **other)


def test_a_fork_is_compared_with_the_one_that_has_the_same_head() -> None:
    """An older version did not tell its heads: then the only fork that fits, if it is the only one."""
    ten, thousand, untold = headed(10, 0.1), headed(1000, 0.3), headed(None, 0.2)
    assert [each.second for each in compare([ten], [thousand, ten])] == [ten]
    assert [each.second for each in compare([untold], [thousand])] == [thousand]
    assert [each.second for each in compare([ten], [untold])] == [untold]
    for one, others in (([untold], [thousand, ten]), ([ten], [thousand])):
        with pytest.raises(InputError, match="no result in common"):
            compare(one, others)


def test_of_several_heads_each_fork_has_the_nearest() -> None:
    """What is not told is the base's, and the farthest; of equals the latest stays."""
    runs = [
        headed(1000),
        headed(12),
        headed(None),
        headed(12, 0.5),
        headed(1000, layers=(1,)),
        headed(None, layers=(2,)),
    ]
    assert nearest_heads(runs, 10) == [runs[3], runs[4], runs[5]]
    assert nearest_heads(runs, None) == runs
    both = result(forks={"a": (3,), "b": (3,)}, classes={"a": 5, "b": 7})
    assert (both.head, headed(10).head, headed(None).head) == (None, 10, None)
