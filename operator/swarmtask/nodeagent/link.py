"""The node agent's line to the API: its Lease, its SwarmNode's status, the output of its attempts, a token of its own.

Called by `agent`, `log_sender` and `enrolment`. A client of its own beside `swarmtask.kube`, because the agent must stay below
40 MB on small laptops and the full client alone takes more than that (docs/adr/0006): urllib3 in threads. It never retries and
never waits longer than its time-out: the loops decide.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlencode

import orjson
import urllib3
import yaml

from swarmtask.errors import BY_REASON, BadRequest, ConfigurationError, NotFound, ServiceUnavailable, SwarmTaskError
from swarmtask.nodeagent.log_sender import Refused, Taken
from swarmtask.resources.enrolment import NODE_GROUP, NODE_USER_PREFIX
from swarmtask.resources.log_records import PARTS_TYPE, Part, pack

FIELD_MANAGER = "swarmtask-node-agent"
LEASE_NAMESPACE = "kube-node-lease"
"""Where the Leases of all nodes are, one per node, named as the node; as Kubernetes' own nodes do it."""

_NODES = "/apis/swarmtask.io/v1alpha1/swarmnodes"
_LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{LEASE_NAMESPACE}/leases"
_TOKENS = "/apis/access.swarmtask.io/v1alpha1/accesstokens"
NODES_AT_ONCE = 8
"""A SwarmNode with all its attempts is 100 kB, and some times that in Python: an agent has no room for a whole cluster's."""
_MERGE, _APPLY, _JSON = "application/merge-patch+json", "application/apply-patch+yaml", "application/json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_BY_CODE = {kind.code: kind for kind in BY_REASON.values()}

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where the API is and who we are there.

    Attributes:
        ca: certificates of its authority, PEM; empty means those that the machine trusts.
        tls_name: the name that its certificate must have, where that is another one than the server's.
    """

    server: str
    token: str
    ca: str = ""
    tls_name: str = ""


def read_kubeconfig(path: Path) -> Credentials:
    """The current context of a kubeconfig, as far as an agent needs it: server, authority, token.

    Raises:
        ConfigurationError: it cannot be used; says why and what to do.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        context = _named(document["contexts"], document["current-context"])["context"]
        cluster = _named(document["clusters"], context["cluster"])["cluster"]
        user = _named(document["users"], context["user"])["user"]
        server, token = str(cluster["server"]).rstrip("/"), user.get("token")
        if token is None and "tokenFile" in user:
            token = (path.parent / user["tokenFile"]).read_text(encoding="utf-8").strip()
        if "certificate-authority" in cluster:
            ca = (path.parent / cluster["certificate-authority"]).read_text(encoding="utf-8")
        else:
            ca = base64.b64decode(cluster.get("certificate-authority-data", ""), validate=True).decode()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, binascii.Error) as error:
        raise ConfigurationError(f"cannot read the kubeconfig {path}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ConfigurationError(f"{path} is no kubeconfig with a current context, a cluster and a user") from error
    if not server.startswith("https://"):
        raise ConfigurationError(f"{path}: the server is {server}, which is not https; a token would travel in the clear")
    if not token:
        raise ConfigurationError(f"{path}: the user has no token; make one with `swarmtask token create NODE --role node`")
    return Credentials(server, str(token), ca, str(cluster.get("tls-server-name") or ""))


def _named(entries: list[Object], name: str) -> Object:
    for entry in entries:
        if entry["name"] == name:
            return entry
    raise KeyError(name)


class Link:
    """See the module. One per agent; use as an async context manager.

    Args:
        timeout_s: longest wait for one answer.
    """

    def __init__(self, credentials: Credentials, *, timeout_s: float = 4.0) -> None:
        try:
            trust = ssl.create_default_context(cadata=credentials.ca or None)
        except ssl.SSLError as error:
            raise ConfigurationError(f"the certificates of the API's authority cannot be used: {error}") from error
        self._server = credentials.server
        self._headers = {"User-Agent": FIELD_MANAGER}
        self.refused = asyncio.Event()
        """Set when the API did not take the token; cleared by `use`."""
        self.use(credentials.token)
        names: dict[str, Any] = (
            {"server_hostname": credentials.tls_name, "assert_hostname": credentials.tls_name} if credentials.tls_name else {}
        )
        # Two loops and the output speak at the same time; a connection that broke is made anew at the next call.
        self._pool = urllib3.PoolManager(
            num_pools=1, maxsize=3, retries=False, timeout=urllib3.Timeout(total=timeout_s), ssl_context=trust, **names
        )

    def use(self, token: str) -> None:
        """From now on, come in with this token."""
        self._headers = self._headers | {"Authorization": f"Bearer {token}"}
        self.refused.clear()

    async def __aenter__(self) -> Link:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.clear()

    async def node(self, name: str) -> Object:
        """A SwarmNode. Raises NotFound and other SwarmTaskErrors."""
        return await self._call("GET", f"{_NODES}/{quote(name, safe='')}")

    async def node_uid(self, name: str) -> str:
        """The UID of a SwarmNode, without the rest of it. Raises NotFound and other SwarmTaskErrors."""
        found = await self._call("GET", f"{_NODES}/{quote(name, safe='')}", accept=_METADATA)
        return str((found.get("metadata") or {}).get("uid"))

    async def node_of_engine(self, engine: str, engine_node_id: str) -> Object | None:
        """The SwarmNode that an engine knows by this ID; None while the operator has not made it."""
        query = {"limit": str(NODES_AT_ONCE)}
        while True:
            listed = await self._call("GET", _NODES, query=query)
            for node in listed.get("items") or ():
                known = (node.get("status") or {}).get("engines") or ()
                if any(entry.get("name") == engine and entry.get("id") == engine_node_id for entry in known):
                    return dict(node)
            if not (rest := (listed.get("metadata") or {}).get("continue")):
                return None
            query["continue"] = str(rest)

    async def make_token(self, node: str, labels: Mapping[str, str], digest: str, expires: str) -> Object:
        """Make an AccessToken of this node with the credential that all nodes share. Raises Forbidden: the node may have none.

        Args:
            digest: SHA-256 of the token, which the API never sees before it is used. expires: RFC 3339.
        """
        spec = {
            "user": f"{NODE_USER_PREFIX}{node}", "groups": [NODE_GROUP], "digest": digest, "expirationTimestamp": expires,
            "description": f"the agent of node {node}",
        }  # fmt: skip
        metadata = {"generateName": f"node-{node[:40].rstrip('-.')}-", "labels": dict(labels)}
        return await self._call("POST", _TOKENS, {
            "apiVersion": "access.swarmtask.io/v1alpha1", "kind": "AccessToken", "metadata": metadata, "spec": spec,
        })  # fmt: skip

    async def tell(self, name: str, status: Mapping[str, Any]) -> Object:
        """Bring the agent's part of the status up to date by server-side apply; what it told before and leaves out now is removed.

        The operator's part is left alone, and so are conditions of other types.
        """
        body = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode", "metadata": {"name": name}, "status": dict(status)}
        path = f"{_NODES}/{quote(name, safe='')}/status"
        return await self._call("PATCH", path, body, _APPLY, {"fieldManager": FIELD_MANAGER, "force": "true"})

    async def renew(self, name: str, holder: str, duration_s: int, renew_time: str) -> float:
        """Renew the node's Lease, or make it.

        Args:
            holder: who holds it: the boot ID, so that a restart shows as another holder.
            renew_time: RFC 3339 with microseconds.

        Returns:
            Seconds that it took: the way there and back, and a durable write.
        """
        spec = {"holderIdentity": holder, "leaseDurationSeconds": duration_s, "renewTime": renew_time}
        began = time.monotonic()
        try:
            await self._call("PATCH", f"{_LEASES}/{quote(name, safe='')}", {"spec": spec}, _MERGE)
        except NotFound:
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": spec}
            await self._call("POST", _LEASES, body, _JSON)
        return time.monotonic() - began

    async def append_logs(self, node: str, parts: Sequence[Part]) -> list[Taken | SwarmTaskError]:
        """Add records to the output of attempts on a node (`swarmtask.resources.log_records`).

        Returns:
            For each part, in their order: what the API has now, or why it did not take it. Refused: it expects another position,
            or nothing more. NotFound: there is no such task or attempt.

        Raises:
            NotFound: this API keeps no output. Other SwarmTaskErrors: nobody knows what it took.
        """
        code, answer = await self._send("POST", f"{_NODES}/{quote(node, safe='')}/log", pack(parts), PARTS_TYPE, None)
        items = answer.get("items") if 200 <= code < 300 and isinstance(answer, dict) else None
        if not isinstance(items, list) or len(items) != len(parts):
            raise _error(answer, code, self._server)
        return [self._answer(item) for item in items]

    def _answer(self, item: Any) -> Taken | SwarmTaskError:
        """Of one part."""
        if (taken := _taken(item)) is not None:
            return taken
        status = item if isinstance(item, dict) else {}
        if status.get("code") == 409 and (taken := _taken(status.get("details"))) is not None:
            return Refused(str(status.get("message")), taken)
        return _error(status, int(status.get("code") or 0), self._server)

    async def _call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        content_type: str = _JSON,
        query: Mapping[str, str] | None = None,
        *,
        accept: str = _JSON,
    ) -> Object:
        content = None if body is None else orjson.dumps(body)
        code, answer = await self._send(method, path, content, content_type, query, accept=accept)
        if 200 <= code < 300 and isinstance(answer, dict):
            return answer
        raise _error(answer, code, self._server)

    async def _send(
        self,
        method: str,
        path: str,
        content: bytes | None,
        content_type: str,
        query: Mapping[str, str] | None,
        *,
        accept: str = _JSON,
    ) -> tuple[int, Any]:
        """(code, JSON or None). Raises ServiceUnavailable: no answer."""
        headers = self._headers | {"Accept": accept} | ({} if content is None else {"Content-Type": content_type})
        url = f"{self._server}{path}{f'?{urlencode(query)}' if query else ''}"
        try:
            response = await asyncio.to_thread(
                self._pool.request, method, url, body=content, headers=headers, redirect=False
            )  # fmt: skip
        except urllib3.exceptions.HTTPError as error:
            raise ServiceUnavailable(f"the API at {self._server} does not answer: {error}") from error
        try:
            answer = orjson.loads(response.data)
        except orjson.JSONDecodeError:
            answer = None
        if response.status == 401 and headers["Authorization"] == self._headers["Authorization"]:  # not one of before
            self.refused.set()
        return response.status, answer


def _taken(answer: Any) -> Taken | None:
    match answer:
        case {"position": int() as position, "lastNanoseconds": int() as last, "complete": bool() as complete}:
            return Taken(position, last, complete)
    return None


def _error(answer: Any, code: int, server: str) -> SwarmTaskError:
    status = answer if isinstance(answer, dict) else {}
    kind = BY_REASON.get(str(status.get("reason", ""))) or _BY_CODE.get(code) or (ServiceUnavailable if code >= 500 else BadRequest)
    return kind(str(status.get("message") or f"the API at {server} answered {code} and no Kubernetes object"))
