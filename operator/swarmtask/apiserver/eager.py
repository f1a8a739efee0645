"""A coroutine that mostly need not wait: run at once, with a time limit made only where it has to wait.

Called by the application for the body of each request, which has nearly always come together with its head. `asyncio.timeout`
around every one of them would cost more than reading it.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

Result = TypeVar("Result")


async def within(limit_s: float, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`. Raises TimeoutError when it is not there after `limit_s` seconds, and whatever `work` raises."""
    try:
        awaited = work.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    try:
        async with asyncio.timeout(limit_s):
            return await _rest(work, awaited)
    finally:
        work.close()  # what was cut off while it waited for the first time does not know of it yet


@types.coroutine
def _rest(work: Coroutine[Any, Any, Result], awaited: Any) -> Generator[Any, Any, Result]:
    """`work` from where it waits for `awaited`."""
    yield awaited
    result: Result = yield from work
    return result
