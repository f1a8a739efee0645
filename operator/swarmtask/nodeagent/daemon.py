"""The Docker daemon of this machine, over its unix socket: list, look into, signal, listen. Nothing else.

Called by `attempts`, `stopping` and `watch`, from threads: every call blocks for at most its time-out. The standard library's HTTP
client, one connection per call: the docker package would add a fifth to the agent's memory (docs/adr/0006). It never creates,
starts or removes anything, and asks only for containers that carry our label.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode

import orjson

from swarmtask.clock import NANOS_PER_S
from swarmtask.errors import EngineUnavailable

LABEL_MANAGED = "swarmtask.io/managed"
LABEL_CLUSTER = "swarmtask.io/cluster"
"""These two as in `swarmtask.engines.base`, which loads more than this process may; a test compares them."""

EVENTS = ("start", "kill", "die", "oom", "destroy")
MOST_BYTES = 64 * 2**20
"""A longer answer is none: ten thousand containers list in less."""

Object = dict[str, Any]


class NoDaemon(EngineUnavailable):
    """There is no socket: no Docker runs here, so nothing of it does."""


class Daemon:
    """See the module.

    Args:
        socket_path: where it listens.
        cluster: only containers of this control plane; empty means of every one.
        timeout_s: longest wait for the daemon's next bytes.
    """

    def __init__(self, socket_path: Path, *, cluster: str = "", timeout_s: float = 5.0) -> None:
        self._path, self._timeout_s = socket_path, timeout_s
        self._labels = [f"{LABEL_MANAGED}=true", *([f"{LABEL_CLUSTER}={cluster}"] if cluster else [])]

    def containers(self) -> list[Object]:
        """All of ours, whether they run or not, as Docker lists them.

        Raises:
            NoDaemon, EngineUnavailable
        """
        _, answer = self._call("GET", "/containers/json", {"all": "1", "filters": _filters({"label": self._labels})})
        if not isinstance(answer, list):
            raise EngineUnavailable(f"the Docker at {self._path} answered no list of containers")
        return [item for item in answer if isinstance(item, dict)]

    def inspect(self, container_id: str) -> Object | None:
        """Everything about one container; None when it is gone. Raises NoDaemon, EngineUnavailable."""
        code, answer = self._call("GET", f"/containers/{quote(container_id, safe='')}/json")
        return answer if code == http.HTTPStatus.OK and isinstance(answer, dict) else None

    def kill(self, container_id: str, signal: str) -> bool:
        """Send a signal to its main process. False: it does not run. Raises NoDaemon, EngineUnavailable."""
        code, _ = self._call("POST", f"/containers/{quote(container_id, safe='')}/kill", {"signal": signal})
        return code < http.HTTPStatus.BAD_REQUEST

    def events(self, *, since_nanos: int | None = None, silence_s: float = 60.0) -> Events:
        """What happens to our containers from now on.

        Args:
            since_nanos: and what has happened since then, that moment included, as far as Docker remembers (its last 256 events of
                all kinds); nanoseconds since the epoch, as `timeNano` of events.
            silence_s: after so long without an event the stream ends: it may be dead, and nobody could tell.

        Raises:
            NoDaemon, EngineUnavailable: it could not be opened.
        """
        filters = {"type": ["container"], "label": self._labels, "event": EVENTS}
        query = {"filters": _filters(filters)}
        if since_nanos is not None:
            query["since"] = f"{since_nanos // NANOS_PER_S}.{since_nanos % NANOS_PER_S:09d}"
        connection = _Connection(self._path, silence_s)
        try:
            connection.request("GET", "/events?" + urlencode(query))
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unavailable(error) from error
        if response.status != http.HTTPStatus.OK:
            connection.close()
            raise EngineUnavailable(f"the Docker at {self._path} gives no events: it answered {response.status}")
        return Events(connection, response)

    def _call(self, method: str, path: str, query: Mapping[str, str] | None = None) -> tuple[int, Any]:
        """(code, JSON). 404, 409 and 304 are answers; every other refusal is an error."""
        connection = _Connection(self._path, self._timeout_s)
        try:
            connection.request(method, path + (f"?{urlencode(query)}" if query else ""), headers={"Content-Length": "0"})
            response = connection.getresponse()
            content = response.read(MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise self._unavailable(error) from error
        finally:
            connection.close()
        if response.status >= http.HTTPStatus.BAD_REQUEST and response.status not in _ANSWERS:
            raise EngineUnavailable(f"the Docker at {self._path} answered {response.status}: {_said(content)}")
        try:
            return response.status, orjson.loads(content) if content else None
        except orjson.JSONDecodeError as error:
            raise EngineUnavailable(f"the Docker at {self._path} answered no JSON") from error

    def _unavailable(self, error: Exception) -> EngineUnavailable:
        if isinstance(error, FileNotFoundError):
            return NoDaemon(f"there is no Docker at {self._path}")
        return EngineUnavailable(f"the Docker at {self._path} does not answer: {error or type(error).__name__}")


_ANSWERS = (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.CONFLICT)


class Events:
    """A stream of events; iterate, and close it from any thread. Ends when it was silent for long; EngineUnavailable: it broke."""

    def __init__(self, connection: _Connection, response: http.client.HTTPResponse) -> None:
        self._connection, self._response = connection, response
        self._socket = connection.sock

    def __enter__(self) -> Events:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._response.close()
        self._connection.close()

    def __iter__(self) -> Iterator[Object]:
        while True:
            try:
                line = self._response.readline(MOST_BYTES)
                event = orjson.loads(line) if line else None
            except TimeoutError:
                return
            except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: closed meanwhile, or no JSON
                raise EngineUnavailable(f"Docker's events broke off: {error or type(error).__name__}") from error
            if event is None:
                raise EngineUnavailable("Docker's events ended")
            if isinstance(event, dict):
                yield event

    def close(self) -> None:
        """End a read that waits in another thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # it has ended already
            return


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.sock.close()
            raise


def _filters(filters: Mapping[str, Sequence[str]]) -> str:
    return orjson.dumps({name: list(values) for name, values in filters.items()}).decode()


def _said(content: bytes) -> str:
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        return "nothing that can be read"
    return str(answer.get("message", "no reason"))[:300] if isinstance(answer, dict) else "no reason"
