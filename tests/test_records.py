"""Strict records: what fits is built, what does not is named by its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from subtune_deploy.errors import InputError
from subtune_deploy.records import json_schema, to_plain, to_record


@dataclass(frozen=True)
class Leaf:
    number: int
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tree:
    name: str
    size: float
    pair: tuple[int, float]
    leaves: tuple[Leaf, ...]
    options: Mapping[str, str | int | bool]
    labels: tuple[str, ...] | None = None
    anything: Any = None


PLAIN = {
    "name": "oak",
    "size": 2.5,
    "pair": [1, 2.0],
    "leaves": [{"number": 3, "words": ["a"]}],
    "options": {"x": True, "y": 2, "z": "w"},
    "labels": ["l"],
    "anything": {"k": [1, None]},
}
TREE = Tree("oak", 2.5, (1, 2.0), (Leaf(3, ("a",)),), {"x": True, "y": 2, "z": "w"}, ("l",), {"k": [1, None]})


def test_a_record_and_its_plain_form_are_inverses() -> None:
    assert to_record(Tree, PLAIN) == TREE
    assert to_plain(TREE) == PLAIN


def test_whole_numbers_serve_as_decimals_and_defaults_are_filled_in() -> None:
    tree = to_record(
        Tree, {"name": "a", "size": 2, "pair": [1, 2], "leaves": [], "options": {}, "labels": None}
    )
    assert tree == Tree("a", 2.0, (1, 2.0), (), {})
    assert type(tree.size) is float


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        ({"nam": "x"}, "unknown key 'nam'", "name"),
        ({"name": 3}, "name is 3", "text"),
        ({"size": "big"}, "size is 'big'", "number"),
        ({"size": True}, "size is True", "number"),
        ({"pair": [1]}, "pair is [1]", "a list of 2"),
        ({"pair": [1.5, 2.0]}, "pair[0] is 1.5", "a whole number"),
        ({"leaves": {}}, "leaves is {}", "a list"),
        ({"leaves": [{"number": 1}, {"number": None}]}, "leaves[1].number is None", "a whole number"),
        ({"leaves": [{}]}, "key 'leaves[0].number' is missing", "number, words"),
        ({"leaves": [{"number": 1, "words": [2]}]}, "leaves[0].words[0] is 2", "text"),
        ({"options": {"x": 1.5}}, "options.x is 1.5", "str or int or bool"),
        ({"options": []}, "options is []", "a table"),
        ({"labels": "l"}, "labels is 'l'", "a list"),
    ],
)
def test_what_does_not_fit_is_named_by_its_place(change: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        to_record(Tree, {**PLAIN, **change})
    assert caught.value.message == message
    assert hint in caught.value.hint


def test_a_document_that_is_no_table_and_a_missing_key_are_refused() -> None:
    with pytest.raises(InputError, match=r"the document is \[\]"):
        to_record(Tree, [])
    with pytest.raises(InputError, match="key 'name' is missing"):
        to_record(Tree, {key: value for key, value in PLAIN.items() if key != "name"})


@dataclass(frozen=True)
class Choice:
    which: tuple[int, ...] | Literal["all", "none"]
    how: Literal["fast", "slow"] = "fast"


def test_words_out_of_a_few_stand_alone_or_beside_a_list() -> None:
    for choice in (Choice((1, 2)), Choice(()), Choice("all", "slow")):
        assert to_record(Choice, to_plain(choice)) == choice
    assert json_schema(Choice)["properties"]["how"] == {"enum": ["fast", "slow"]}


@pytest.mark.parametrize(
    ("document", "message", "hint"),
    [
        ({"which": "some"}, "which is 'some'", "give a list or 'all' or 'none'"),
        ({"which": 3}, "which is 3", "give a list or 'all' or 'none'"),
        ({"which": ["1"]}, "which[0] is '1'", "give a whole number"),
        ({"which": [], "how": "idle"}, "how is 'idle'", "give 'fast' or 'slow'"),
    ],
)
def test_other_words_are_refused(document: object, message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        to_record(Choice, document)
    assert (caught.value.message, caught.value.hint) == (message, hint)
