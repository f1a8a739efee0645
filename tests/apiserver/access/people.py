"""People for the tests of access: tokens made through the API, roles bound, clients that use them."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tests.apiserver.server import RunningServer, tls

RBAC = "/apis/rbac.authorization.k8s.io/v1"
TOKENS = "/apis/access.swarmtask.io/v1alpha1/accesstokens"
TASKS = "/apis/swarmtask.io/v1alpha1/namespaces/{}/swarmtasks"


def token_object(name: str, token: str, user: str, groups: tuple[str, ...] = (), expires: str | None = None) -> dict[str, Any]:
    spec: dict[str, Any] = {"user": user, "groups": list(groups), "digest": hashlib.sha256(token.encode()).hexdigest()}
    if expires is not None:
        spec["expirationTimestamp"] = expires
    return {"apiVersion": "access.swarmtask.io/v1alpha1", "kind": "AccessToken", "metadata": {"name": name}, "spec": spec}


async def new_token(api: httpx.AsyncClient, user: str, groups: tuple[str, ...] = (), **more: Any) -> str:
    """A token of a user; its object is named as the user, with dashes."""
    token = secrets.token_urlsafe(32)
    response = await api.post(TOKENS, json=token_object(user.replace(":", "-"), token, user, groups, **more))
    assert response.status_code == 201, response.text
    return token


async def bind(api: httpx.AsyncClient, user: str, role: str, namespace: str = "", *, kind: str = "ClusterRole") -> None:
    """Give a role to a user."""
    where = f"/namespaces/{namespace}/rolebindings" if namespace else "/clusterrolebindings"
    body = {
        "metadata": {"name": f"{user.replace(':', '-')}-{role}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
        "subjects": [{"kind": "User", "name": user}],
    }
    response = await api.post(RBAC + where, json=body)
    assert response.status_code == 201, response.text


@contextlib.asynccontextmanager
async def client(server: RunningServer, token: str, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with a token."""
    async with httpx.AsyncClient(
        base_url=server.url, verify=tls(server), headers={"authorization": f"Bearer {token}", **headers}, timeout=30
    ) as opened:
        yield opened


@contextlib.asynccontextmanager
async def person(
    server: RunningServer, api: httpx.AsyncClient, user: str, *roles: tuple[str, str], groups: tuple[str, ...] = ()
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of somebody new who has these (role, namespace); an empty namespace is the cluster."""
    for role, namespace in roles:
        await bind(api, user, role, namespace)
    async with client(server, await new_token(api, user, groups)) as opened:
        yield opened


def task(name: str, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "metadata": {"name": name, **metadata},
        "spec": {"container": {"image": "acme/lint:1"}},
    }  # fmt: skip


def said(response: httpx.Response) -> tuple[int, str]:
    """Status code and message."""
    return response.status_code, response.json().get("message", "")
