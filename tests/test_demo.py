"""The demo's ingredients: real weights that name real photographs, and tables that say what was found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from subtune_deploy.backbone import trace
from subtune_deploy.data.sources import load_data
from subtune_deploy.demo import (
    FORKS,
    MODEL,
    PROBE,
    SIZE,
    _label,
    _one_of_each,
    _photographs,
    base_checkpoint,
    run_demo,
)
from subtune_deploy.demo_tables import cost_table
from subtune_deploy.errors import InputError
from subtune_deploy.models import load_model
from subtune_deploy.pictures import load_picture, prepare


def test_the_base_names_the_photographs(tmp_path: Path) -> None:
    backbone = trace(load_model(MODEL, str(base_checkpoint(tmp_path / "base.safetensors")), SIZE))
    labels = {path.stem: _label(backbone, path) for path in _photographs(tmp_path)}
    assert labels == {"chelsea": "Egyptian cat", "coffee": "espresso", "camera": "tripod"}
    assert all(
        len(layers) <= 3 and max(layers, default=1) <= len(backbone.blocks) for layers in FORKS.values()
    )


def test_a_digit_is_the_same_from_its_file(tmp_path: Path) -> None:
    data = load_data("digits", train=10, test=10).test
    backbone_input = load_model(MODEL, input_size=SIZE).input
    for path, label in _one_of_each(data, tmp_path).items():
        picture = data.pictures[int(np.flatnonzero(data.labels == int(label))[0])]
        assert isinstance(picture, np.ndarray)
        np.testing.assert_array_equal(load_picture(path, backbone_input), prepare(picture, backbone_input))


def test_costs_are_ratios_to_the_base_of_the_same_target() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0.9e-3, 1.1e-3, 99)
    samples = {"base": base.tolist(), "digits_9_11": (1.25 * base).tolist()}
    table = cost_table(FORKS, {"digits_9_11": 0.973}, {"cpu": samples})
    rows = {cells[0]: cells[1:] for cells in zip(*(column.cells for column in table.columns), strict=True)}
    assert rows["digits_9_11"] == ("9-11", "97.3%", "+25.0% (+25.0% to +25.0%)")
    assert rows[PROBE] == ("none", "", "not built")
    assert rows["base"][2] == f"{np.median(base) * 1e3:.2f} ms alone"


def test_a_file_is_no_place_for_results(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out cannot be a folder"):
        run_demo(tmp_path / "out", console=Console(quiet=True), results=Console(quiet=True))
