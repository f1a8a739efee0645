"""A long list as it came over the wire, decoded a page at a time while somebody goes through it.

Made by the client where it is told to be sparing. Ten thousand decoded tasks take a hundred megabytes, which a process does not
give back once it has had them; as text they take twenty, and those it does. `lean` leaves out what a program never looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

import orjson

from swarmtask.kube.api import Object


def lean(obj: Object) -> Object:
    """Without `metadata.managedFields`: who wrote which field is for the server, and is half of many an object."""
    metadata = obj.get("metadata")
    if isinstance(metadata, dict):
        metadata.pop("managedFields", None)
    return obj


class Pages(Sequence[Object]):
    """The items of a list.

    Args:
        pages: the answers to the requests, as JSON that was looked at already.
        count: how many items they hold together.
        finish: completes an item that was decoded.
    """

    def __init__(self, pages: Sequence[bytes], count: int, finish: Callable[[Object], Object]) -> None:
        self._pages, self._count, self._finish = pages, count, finish

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Object]:
        for page in self._pages:
            items = orjson.loads(page).get("items") or []
            items.reverse()
            while items:
                yield self._finish(items.pop())  # what was looked at is let go before the page is

    @overload
    def __getitem__(self, place: int) -> Object: ...

    @overload
    def __getitem__(self, place: slice) -> list[Object]: ...

    def __getitem__(self, place: int | slice) -> Object | list[Object]:
        """Decodes everything: for lists that are short."""
        return list(self)[place]
