"""Sources of data are named as given, or after what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from landscape.data.sources import parse_named_source
from landscape.errors import InputError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("old=builtin:docs", ("old", "builtin:docs")),
        ("new=runs/lr=1/tasks.jsonl", ("new", "runs/lr=1/tasks.jsonl")),
        ("tasks.jsonl", ("tasks", "tasks.jsonl")),
        ("runs/lr=1/tasks.jsonl", ("tasks", "runs/lr=1/tasks.jsonl")),
        ("builtin:docs", ("docs", "builtin:docs")),
        ("builtin:docs@train", ("docs@train", "builtin:docs@train")),
        ("someone/corpus:en@test", ("corpus:en@test", "someone/corpus:en@test")),
        ("corpus/", ("corpus", "corpus/")),
    ],
)
def test_a_source_is_named_as_given_or_after_its_file(value: str, expected: tuple[str, str]) -> None:
    assert parse_named_source(value) == expected


def test_an_existing_path_stays_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_named_source("lr=1.jsonl") == ("lr", "1.jsonl")
    (tmp_path / "lr=1.jsonl").touch()
    assert parse_named_source("lr=1.jsonl") == ("lr=1", "lr=1.jsonl")


@pytest.mark.parametrize("value", ["=tasks.jsonl", "old="])
def test_half_a_name_is_refused(value: str) -> None:
    with pytest.raises(InputError, match="name=source"):
        parse_named_source(value)
