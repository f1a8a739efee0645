"""Sets of indices as Kubernetes' Jobs write them: "0-57,60".

Called by the lifecycle of arrays and by whoever reads an array's status. Immutable. Knows nothing of tasks: a set of numbers costs
as much as it has gaps, however many numbers it holds.

Source of the format: Kubernetes API reference, JobStatus.completedIndexes.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator
from functools import lru_cache

_PART = re.compile(r"(0|[1-9][0-9]{0,9})(?:-(0|[1-9][0-9]{0,9}))?")


class Intervals:
    """See the module. `spans`: (first, last) pairs that neither touch nor overlap, in order."""

    __slots__ = ("_firsts", "spans")

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        self.spans = _merged(sorted(spans))
        self._firsts = [first for first, _ in self.spans]

    @classmethod
    def of(cls, indices: Iterable[int]) -> Intervals:
        return cls((index, index) for index in indices)

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.spans)

    def __repr__(self) -> str:
        return f"Intervals({self!s})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Intervals) and self.spans == other.spans

    def __hash__(self) -> int:
        return hash(self.spans)

    def __contains__(self, index: object) -> bool:
        if not isinstance(index, int):
            return False
        place = bisect_right(self._firsts, index) - 1
        return place >= 0 and index <= self.spans[place][1]

    def __len__(self) -> int:
        """How many indices, not how many spans."""
        return sum(last - first + 1 for first, last in self.spans)

    def __iter__(self) -> Iterator[int]:
        for first, last in self.spans:
            yield from range(first, last + 1)

    def __or__(self, other: Intervals) -> Intervals:
        return Intervals((*self.spans, *other.spans))

    def below(self, limit: int) -> int:
        """How many of them are less than `limit`."""
        return sum(min(last, limit - 1) - first + 1 for first, last in self.spans if first < limit)

    def within(self, limit: int) -> Intervals:
        """Those of them that are less than `limit`."""
        return Intervals((first, min(last, limit - 1)) for first, last in self.spans if first < limit)

    def missing(self, limit: int, also: Container[int] = ()) -> Iterator[int]:
        """Indices from 0 to `limit` - 1 that are neither in it nor in `also`, lowest first; jumps over its spans."""
        begin = 0
        for first, last in (*self.spans, (limit, limit)):
            for index in range(begin, min(first, limit)):
                if index not in also:
                    yield index
            begin = last + 1


@lru_cache(maxsize=256)
def parse(text: str) -> Intervals:
    """Read what `str` writes; also out of order or overlapping.

    Raises:
        ValueError: it is something else; quotes the part that cannot be read.
    """
    if not text:
        return Intervals()
    spans = []
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{part[:40]!r} is neither an index nor a range of them: write for example 0-57,60")
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        if last < first:
            raise ValueError(f"{part!r} ends before it begins")
        spans.append((first, last))
    return Intervals(spans)


def _merged(ordered: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for first, last in ordered:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)
