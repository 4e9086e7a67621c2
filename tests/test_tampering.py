"""A few of benchmarks/tampering.py's corruptions of each kind; what only a signature notices; and its table."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_cli import cli

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

from tampering import KINDS, RESULTS, SAME, Said, plan, say, trial  # noqa: E402
from tampering_forgeries import sensible_edit  # noqa: E402
from tampering_kinds import Workshop, forged, make_workshop  # noqa: E402

TIMES = 2
"""Of each kind; the benchmark has fifteen or so."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("tampering") / "shop")


@pytest.mark.parametrize("victim", [each for each in KINDS if each != "pack"])
def test_what_is_to_be_spoilt_is_good_before(shop: Workshop, victim: str, tmp_path: Path) -> None:
    said = say(*shop.arguments(victim, shop.victims[victim], tmp_path / "out"))
    assert said.verdict == "accepted", said.err


@pytest.mark.parametrize(
    ("victim", "kind"), [(victim, kind) for victim, each in KINDS.items() for kind in each]
)
def test_a_corruption_is_refused_with_one_line(
    shop: Workshop, tmp_path: Path, victim: str, kind: str
) -> None:
    for seed in range(TIMES):
        room = tmp_path / f"room {seed}"
        room.mkdir()
        outcome = trial(shop, room, victim, kind, seed)
        assert outcome.good, (seed, outcome)


def test_a_good_pack_is_refused_for_nothing_but_its_corruption(shop: Workshop, tmp_path: Path) -> None:
    from subtune_deploy.pack import read_pack

    assert read_pack(shop.victims["pack"]).about.task == "birds"


# what hashes cannot do


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "labels in another order": lambda document: document["tasks"][1]["labels"].reverse(),
    "other means": lambda document: document["input"].update(mean=[0.4, 0.5, 0.6]),
}


@pytest.mark.parametrize("name", EDITS)
def test_one_who_makes_the_hashes_anew_is_noticed_by_a_signature_alone(
    shop: Workshop, tmp_path: Path, name: str
) -> None:
    for victim, status in (("bundle", 0), ("signed bundle", 1)):
        copy = Path(shutil.copytree(shop.victims[victim], tmp_path / victim))
        forged(copy, EDITS[name])
        said = cli(*shop.arguments(victim, copy, tmp_path / "out"))
        assert said.status == status, said.err
    assert "does not hold: " in said.err


def test_an_engine_with_its_hash_made_anew_is_loaded_unless_a_signature_forbids_it(
    shop: Workshop, tmp_path: Path
) -> None:
    for victim, status in (("bundle", 0), ("signed bundle", 1)):
        copy = Path(shutil.copytree(shop.victims[victim], tmp_path / victim))
        path = copy / "cpu" / "graph.onnx"
        content = path.read_bytes()
        nudged = bytearray(content)
        nudged[_place_of_weights(content)] ^= 1  # the last bit of one weight: within every tolerance
        path.write_bytes(nudged)
        forged(copy, lambda _: None, "cpu/graph.onnx")
        said = cli(*shop.arguments(victim, copy, tmp_path / "out"))
        assert said.status == status, said.err


def _place_of_weights(graph: bytes) -> int:
    """Where the first weight of the birds' head begins in an ONNX file."""
    from tiny_bundle import WEIGHTS

    place = graph.find(WEIGHTS["birds"].tobytes())
    assert place > 0
    return place


# the harness itself


def test_the_harness_notices_what_it_is_there_for(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stray(chance: random.Random, copy: Path, _: Workshop) -> None:
        shutil.rmtree(copy)
        shutil.copytree(shop.victims["bundle"], copy)

    for number, way in enumerate((stray, sensible_edit)):
        monkeypatch.setitem(KINDS["forged bundle"], "test", way)  # type: ignore[arg-type]
        room = tmp_path / str(number)
        room.mkdir()
        assert trial(shop, room, "forged bundle", "test", 0).verdict == "accepted"
    assert Said(2, "", "Traceback\nKeyError\n").verdict == "refused untidily"
    assert Said(3, "", "error: x\nhint: y\n").verdict == "refused untidily"
    assert Said(2, "", "error: x\nhint: y\n").verdict == "refused (2)"
    assert Said(2, "", "error: x\nhint: see subtune-deploy verify --help\n").verdict == "usage error"
    assert Said(-1, "", "", "hung").verdict == "hung"


def test_something_left_outside_is_noticed(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tampering

    def refuse(_: list[str]) -> None:
        (tmp_path / "canary" / "left").write_text("half")
        print("error: no\nhint: none", file=sys.stderr)
        raise SystemExit(2)

    monkeypatch.setattr(tampering, "command", refuse)
    assert trial(shop, tmp_path, "tar", "no tar", 0).verdict == "left something"


def test_a_command_that_hangs_is_stopped() -> None:
    # In a process of its own: the libraries that other tests load do not all bear an alarm.
    code = f"""
import sys, time
sys.path[:0] = [{str(ROOT / "benchmarks")!r}]
import tampering
tampering.SECONDS, tampering.command = 0.05, lambda words: time.sleep(5)
print(tampering.say("anything").verdict)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "hung\n", done.stderr


def test_every_kind_has_its_turn() -> None:
    planned = plan(1000, 0)
    assert len({seed for _, _, seed in planned}) == 1000
    counts = [
        sum((v, k) == (victim, kind) for v, k, _ in planned) for victim in KINDS for kind in KINDS[victim]
    ]
    assert min(counts) >= 10
    assert SAME not in KINDS


def test_the_table_says_that_all_were_refused() -> None:
    first = RESULTS.read_text().splitlines()[0]
    found = re.search(r"(\d+) corruptions, (\d+) refused as they should be", first)
    assert found is not None
    assert int(found[1]) == int(found[2]) >= 1000
    rows = [line for line in RESULTS.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + sum(map(len, KINDS.values()))
