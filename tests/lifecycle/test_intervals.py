"""Sets of indices: what they print, what they read, and that they are sets."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.lifecycle.intervals import Intervals, parse

indices = st.sets(st.integers(0, 60))


@pytest.mark.parametrize(
    ("members", "text"),
    [((), ""), ((0,), "0"), ((0, 1), "0-1"), (range(58), "0-57"), ((*range(58), 60), "0-57,60"), ((3, 1, 5), "1,3,5")],
)
def test_they_are_written_as_kubernetes_does(members: tuple[int, ...], text: str) -> None:
    assert str(Intervals.of(members)) == text
    assert parse(text) == Intervals.of(members)


@given(indices)
def test_what_is_written_is_read_back(members: set[int]) -> None:
    written = Intervals.of(members)
    assert parse(str(written)) == written
    assert list(written) == sorted(members)
    assert len(written) == len(members)
    assert all((index in written) == (index in members) for index in range(-1, 62))


@given(indices, indices)
def test_they_join_as_sets_do_and_stay_as_short_as_can_be(one: set[int], other: set[int]) -> None:
    joined = Intervals.of(one) | Intervals.of(other)
    assert joined == Intervals.of(one | other)
    assert hash(joined) == hash(Intervals.of(one | other))
    assert all(later[0] > earlier[1] + 1 for earlier, later in zip(joined.spans, joined.spans[1:], strict=False))


@given(indices, indices, st.integers(0, 70), st.integers(0, 10))
def test_what_is_missing(members: set[int], also: set[int], limit: int, most: int) -> None:
    wanted = [index for index in range(limit) if index not in members | also]
    assert list(Intervals.of(members).missing(limit, also)) == wanted
    assert list(islice(Intervals.of(members).missing(limit, also), most)) == wanted[:most]
    assert Intervals.of(members).below(limit) == len([index for index in members if index < limit])


def test_a_hundred_thousand_without_gaps_are_one_span() -> None:
    whole = Intervals.of(range(100_000))
    assert len(whole.spans) == 1 and str(whole) == "0-99999"


def test_what_is_out_of_order_or_overlaps_is_put_right() -> None:
    assert str(parse("7,3-5,4-6,1")) == "1,3-7"


@pytest.mark.parametrize("text", [",", "1,", "a", "-1", "1-", "3-1", "1--2", "01", " 1", "1;2", "1-2-3", "٣", "99999999999"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"neither an index|ends before"):
        parse(text)


def test_what_is_no_index_is_not_in_them() -> None:
    assert "1" not in Intervals.of([1])
