"""Pictures of profiles, selections, active learning and pruning. Their SVG names every text in a comment."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_documents as tiny
from PIL import Image

pytest.importorskip("matplotlib")

from subtune_deploy.errors import InputError
from subtune_deploy.spec import Pruning
from subtune_deploy.tuning.drawing import COLOURS, boundaries, stage_names, stages
from subtune_deploy.tuning.figures import draw_active, draw_curves, draw_profile, draw_pruning
from subtune_deploy.tuning.maps import draw_greedy, draw_order, draw_pairs, draw_sizes

Draw = Callable[[Path], None]

DRAWN: dict[str, Draw] = {
    "profile": lambda path: draw_profile(tiny.made_up(), path),
    "pairs": lambda path: draw_pairs(tiny.pairs("tiny"), path),
    "sizes": lambda path: draw_sizes(
        [replace(tiny.made_up("tiny", (1,), seed), examples=seed) for seed in (100, 500)], path
    ),
    "order": lambda path: draw_order({"fog": tiny.greedy(), "snow": tiny.greedy((1,))}, path),
    "greedy": lambda path: draw_greedy(tiny.greedy(), path),
    "active": lambda path: draw_active(tiny.active(), path),
    "curves": lambda path: draw_curves({"head alone": {100: [0.5, 0.6], 500: [1.0, 1.0]}}, path),
    "pruning": lambda path: draw_pruning(tiny.pruned(), path, {"OpenVINO": {"3-4": 0.3}}),
}


class Svg:
    """What a picture says and shows."""

    def __init__(self, draw: Draw, path: Path) -> None:
        draw(path)
        self.text = path.read_text()
        self.words = re.findall(r"<!-- (.*?) -->", self.text)

    def marks(self, colour: str) -> int:
        """Points of this colour; a legend's own are among them."""
        return len(re.findall(rf"<use [^>]*fill: {colour.lower()}", self.text))


@pytest.mark.parametrize("name", DRAWN)
def test_each_is_written_as_vectors_or_pixels(tmp_path: Path, name: str) -> None:
    DRAWN[name](tmp_path / "x.svg")
    DRAWN[name](tmp_path / "x.png")
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")
    with Image.open(tmp_path / "x.png") as picture:
        assert min(picture.size) > 150
    assert {path.name for path in tmp_path.iterdir()} == {"x.svg", "x.png"}


def test_vectors_hold_no_date(tmp_path: Path) -> None:
    """So that one drawn again differs only where its numbers do."""
    DRAWN["profile"](tmp_path / "x.svg")
    assert "dc:date" not in (tmp_path / "x.svg").read_text()


@pytest.mark.parametrize("name", ["x", "x.gif"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no name of a picture"):
        draw_active(tiny.active(), tmp_path / name)


# Stages


def test_a_stage_begins_where_the_resolution_changes() -> None:
    resnet = [(64, 8, 8), (64, 8, 8), (128, 4, 4), (256, 2, 2)]
    assert stages(resnet) == (0, 0, 1, 2)
    assert stage_names(resnet) == ("stage 1, 8×8", "stage 2, 4×4", "stage 3, 2×2")
    assert boundaries(resnet) == (2.5, 3.5)


def test_channels_may_stand_last_and_change_within_a_stage() -> None:
    assert stage_names([(56, 56, 96), (28, 28, 192)]) == ("stage 1, 56×56", "stage 2, 28×28")
    assert stages([(80, 14, 14), (112, 14, 14)]) == (0, 0)


def test_a_transformer_has_one_stage_which_needs_no_name() -> None:
    assert stage_names([(197, 768)] * 12) == ()
    assert boundaries([(197, 768)] * 12) == ()


# Profiles


def test_a_profile_shows_every_fork_in_the_colour_of_its_stage(tmp_path: Path) -> None:
    svg = Svg(lambda path: draw_profile(tiny.made_up(lengths=(1,)), path), tmp_path / "x.svg")
    assert [svg.marks(colour) - 1 for colour in COLOURS[:4]] == [3, 4, 6, 3]
    assert {"tuned block", "accuracy", "stage 4, 7×7", "head alone", "full fine-tuning"} <= set(svg.words)
    assert "resnet50 on digits, 1,000 examples, 3 seeds" in svg.words


def test_each_number_of_blocks_has_its_panel_and_a_fork_across_stages_two_colours(tmp_path: Path) -> None:
    profile = tiny.profile(tiny.row((2,)), tiny.row((2, 3)), tiny.row((1, 3)), tiny.row((1, 4)))
    svg = Svg(lambda path: draw_profile(profile, path), tmp_path / "x.svg")
    assert [word for word in svg.words if "block" in word or "forks" in word] == [
        "tuned block", "1 block", "tuned blocks", "2 consecutive blocks", "tuned blocks", "other forks",
    ]  # fmt: skip
    assert {"2", "2-3", "1,3", "1,4"} <= set(svg.words)
    assert (svg.marks(COLOURS[0]), svg.marks(COLOURS[1])) == (1 + 4, 1 + 3)


def test_ways_of_training_are_told_apart(tmp_path: Path) -> None:
    profile = tiny.profile(
        tiny.row((1,)),
        tiny.row((1,), fork="1 siamese", siamese=True),
        tiny.row((1,), fork="1 from scratch", init="random"),
    )
    svg = Svg(lambda path: draw_profile(profile, path), tmp_path / "x.svg")
    assert {"SubTuning", "Siamese SubTuning", "from scratch"} <= set(svg.words)
    assert not any("stage" in word for word in svg.words)


# Grids


def test_of_pairs_the_best_is_named(tmp_path: Path) -> None:
    profile = tiny.profile(tiny.row((1,)), tiny.row((2, 4), (0.97,)), tiny.row((1, 2)), seeds=(0,))
    svg = Svg(lambda path: draw_pairs(profile, path), tmp_path / "x.svg")
    assert {"best: 2,4", "97.0%"} <= set(svg.words)


def test_sizes_are_sorted_and_their_accuracies_written(tmp_path: Path) -> None:
    profiles = [
        replace(tiny.profile(tiny.row((1,), (share,)), tiny.row((3,), (0.5,)), seeds=(0,)), examples=examples)
        for examples, share in ((500, 0.875), (100, 0.25))
    ]
    words = Svg(lambda path: draw_sizes(profiles, path), tmp_path / "x.svg").words
    assert [word for word in words if word in ("25.0", "87.5", "100", "500")] == [
        "100",
        "500",
        "25.0",
        "87.5",
    ]


def test_blocks_are_numbered_in_the_order_of_their_selection(tmp_path: Path) -> None:
    selections = {"fog": tiny.greedy((3, 1), "tiny"), "snow": tiny.greedy((4,), "tiny")}
    words = Svg(lambda path: draw_order(selections, path), tmp_path / "x.svg").words
    assert words[words.index("snow") + 1 :][-4:] == ["1", "2", "1", "tiny"]
    assert "fog" in words


def test_rounds_of_a_selection_and_the_blocks_they_took(tmp_path: Path) -> None:
    words = Svg(lambda path: draw_greedy(tiny.greedy((3, 1), "tiny"), path), tmp_path / "x.svg").words
    assert {"round 1", "round 2", "round 3", "head alone", "accuracy, 5-fold cross-validation"} <= set(words)


# Curves


def test_active_learning_is_shown_on_log_odds_with_its_schedule(tmp_path: Path) -> None:
    words = Svg(lambda path: draw_active(tiny.active(("7", "8-9")), path), tmp_path / "x.svg").words
    assert {"block 7, by margin", "block 7, at random", "blocks 8-9, by margin"} <= set(words)
    assert {"100", "500", "1,000", "2,500", "5,000", "10,000", "90%"} <= set(words)


def test_pruned_forks_are_drawn_by_scope_and_norm_against_the_full_one(tmp_path: Path) -> None:
    added = {"OpenVINO": {row.fork: 0.1 for row in tiny.pruned().rows}}
    svg = Svg(lambda path: draw_pruning(tiny.pruned(), path, added), tmp_path / "x.svg")
    assert {"local, L1", "local, L2", "global, L1", "global, L2", "not pruned"} <= set(svg.words)
    assert {"parameters of the full fork", "added latency, OpenVINO"} <= set(svg.words)
    assert svg.marks(COLOURS[0]) == 2 * 9 + 1


def test_there_may_be_more_pruned_forks_than_markers(tmp_path: Path) -> None:
    """As in a profile of all single blocks, each also pruned."""
    half = Pruning(0.5)
    rows = [
        tiny.row((n,), **more) for n in range(1, 17) for more in ({}, {"prune": half, "fork": f"{n} {half}"})
    ]
    svg = Svg(lambda path: draw_pruning(tiny.profile(*rows, model="resnet50"), path), tmp_path / "x.svg")
    assert {f"{n}: local, L1" for n in range(1, 17)} <= set(svg.words)


# Nothing to draw


@pytest.mark.parametrize(
    "draw, told",
    [
        (lambda path: draw_profile(tiny.profile(tiny.row(())), path), "no fork to draw"),
        (lambda path: draw_pairs(tiny.profile(tiny.row((1, 2, 3))), path), "no pair"),
        (lambda path: draw_sizes([tiny.profile(tiny.row((1, 2)))], path), "no single block"),
        (lambda path: draw_order({}, path), "no selection"),
        (lambda path: draw_curves({}, path), "no curve"),
        (lambda path: draw_pruning(tiny.profile(tiny.row((1,))), path), "lacks pruned forks"),
    ],
)
def test_a_document_without_what_is_to_be_drawn_is_refused(tmp_path: Path, draw: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        draw(tmp_path / "x.svg")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_remedy_is_told(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
sys.modules["matplotlib"] = None
sys.path.insert(0, "tests")
import tiny_documents as tiny
from subtune_deploy.errors import Unavailable
from subtune_deploy.tuning.figures import draw_active
assert "torch" not in sys.modules
try:
    draw_active(tiny.active(), Path(sys.argv[1]))
except Unavailable as error:
    print(error.message, "|", error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.svg")], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert (
        done.stdout
        == "pictures need matplotlib, which is not installed | pip install 'subtune-deploy[figures]'\n"
    )
