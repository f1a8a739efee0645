"""Bytes from the API that are no object: a backup.

Called by `wiring`. Nothing is repeated: whoever asked decides.
"""

from __future__ import annotations

from collections.abc import Callable

import httpx2

from swarmtask.kube.answers import error_from_response
from swarmtask.kube.connection import Connection
from swarmtask.kube.transport import CONNECT_S, http_client, network_error

SILENCE_S = 600.0
"""The server copies a whole database before it sends the first byte."""


async def download(connection: Connection, path: str, sink: Callable[[bytes], object]) -> None:
    """POST to `path` and hand the answer to `sink`, piece by piece.

    Raises:
        SwarmTaskError: refused, not reachable, or cut off; `sink` may have got a part.
    """
    async with http_client(connection, None) as http:
        try:
            timeout = httpx2.Timeout(SILENCE_S, connect=CONNECT_S)
            async with http.stream("POST", path, timeout=timeout) as response:
                if response.status_code >= 300:
                    await response.aread()
                    raise error_from_response(response, connection)
                async for chunk in response.aiter_raw():
                    sink(chunk)
        except httpx2.HTTPError as error:
            raise network_error(error, connection) from error
