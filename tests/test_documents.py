"""Documents of profile, greedy and active: written whole, read strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_documents as tiny

from subtune_deploy.documents import read_document, to_document, write_document
from subtune_deploy.errors import InputError
from subtune_deploy.tuning.documents import About, Active, Greedy, Profile, mean_and_std, read_profile


@pytest.mark.parametrize("document", [tiny.made_up("tiny"), tiny.pruned(), tiny.greedy(), tiny.active()])
def test_a_document_is_read_back_as_it_was_written(tmp_path: Path, document: About) -> None:
    write_document(tmp_path / "x.json", document)
    assert read_document(type(document), tmp_path / "x.json") == document


def test_a_profile_has_a_row_for_each_fork() -> None:
    document = to_document(tiny.profile(tiny.row((1, 2), (0.5, 0.75), fork="1-2 siamese", siamese=True)))
    assert (document["schema"], document["kind"], document["model"]) == (1, "profile", "tiny")
    assert document["blocks"] == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    (row,) = document["rows"]
    assert row == {
        "fork": "1-2 siamese", "layers": [1, 2], "accuracy": 0.625, "std": pytest.approx(0.1767767), "parameters": 3000,
        "accuracies": [0.5, 0.75], "siamese": True, "init": "pretrained", "prune": None,
    }  # fmt: skip


def test_one_seed_has_no_deviation() -> None:
    assert mean_and_std([0.5]) == (0.5, None)


def written(folder: Path, **changes: Any) -> Path:
    document = {**to_document(tiny.profile(tiny.row((1,)))), **changes}
    (folder / "profile.json").write_text(json.dumps(document))
    return folder / "profile.json"


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"schema": 2}, "is of schema 2 and kind 'profile', expected 1 and 'profile'"),
        ({"kind": "greedy"}, "kind 'greedy', expected 1 and 'profile'"),
        ({"rows": 3}, "rows is 3"),
        ({"extra": 3}, "unknown key 'extra'"),
        ({"blocks": []}, r"fork 1 tunes blocks outside 1\.\.0"),
        (
            {"rows": [{**to_document(tiny.profile(tiny.row((1, 2))))["rows"][0], "layers": [2, 1]}]},
            r"fork 1-2 tunes blocks \[2, 1\], expected them in order",
        ),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_profile(written(tmp_path, **changes))


@pytest.mark.parametrize("share", [1.5, -0.1, float("nan")])
def test_accuracies_are_shares(tmp_path: Path, share: float) -> None:
    (row,) = to_document(tiny.profile(tiny.row((1,))))["rows"]
    with pytest.raises(InputError, match="expected shares between 0 and 1"):
        read_profile(written(tmp_path, rows=[{**row, "accuracies": [share]}]))


def test_files_that_are_no_documents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"):
        read_document(Greedy, tmp_path / "none.json")
    (tmp_path / "x.json").write_text("[" * 9)
    with pytest.raises(InputError, match="is not JSON") as caught:
        read_document(Active, tmp_path / "x.json")
    assert caught.value.hint == "give what subtune-deploy active wrote"
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(InputError, match="is of schema None"):
        read_document(Profile, tmp_path / "x.json")
