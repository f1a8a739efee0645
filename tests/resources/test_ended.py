"""The annotation that names attempts that a person has ended."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from swarmtask.resources.ended import ANNOTATION_END, ended, with_ended

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", {}),
        ("2", {2: None}),
        (" 2 , 3@2026-03-01T12:00:00Z", {2: None, 3: NOW}),
        ("2@2026-03-01T14:00:00+02:00", {2: NOW}),
        ("2@0001-01-01T00:00:00+09:00", {2: None}),
        ("2@2026-13-01T12:00:00Z", {2: None}),
        ("0,-1,x,2x,,99999999999999999999,1e3,all", {}),
        ("3@2026-03-01T12:00:00Z,3@2026-04-01T12:00:00Z", {3: NOW}),
    ],
)
def test_what_cannot_be_read_names_nothing(value: str, found: dict[int, datetime | None]) -> None:
    assert ended({ANNOTATION_END: value}) == found


def test_without_the_annotation_nothing_is_named() -> None:
    assert ended({"other": "2"}) == {}


def test_one_more_is_named_and_forgotten_attempts_are_left_out() -> None:
    value = with_ended({}, 2, NOW, [1, 2])
    assert value == "2@2026-03-01T12:00:00Z"
    later = NOW.replace(hour=13)
    value = with_ended({ANNOTATION_END: value}, 12, later, range(3, 13))
    assert value == "12@2026-03-01T13:00:00Z"
    assert with_ended({ANNOTATION_END: "4," + value}, 12, NOW, range(3, 13)) == "4,12@2026-03-01T13:00:00Z", "the first time stays"
