"""Two foreign client libraries behind one face, so that the same demands are made of the server through both.

`Official` is Kubernetes' own Python client (generated code over urllib3), `Lightkube` is lightkube's typed client over httpx. Each
call is the library's own way to do the thing; nothing of this repository is between it and the server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import kubernetes
import lightkube
import lightkube.generic_resource
from kubernetes.client.exceptions import ApiException
from lightkube.types import CascadeType, PatchType

MERGE, APPLY, JSON_PATCH = "application/merge-patch+json", "application/apply-patch+yaml", "application/json-patch+json"
WATCH_S = 30


@dataclass(frozen=True)
class Kind:
    """A kind as clients name it."""

    group: str
    version: str
    plural: str
    kind: str


@dataclass(frozen=True)
class Refusal:
    """How a library tells of an error."""

    code: int
    reason: str
    message: str


class Client(Protocol):
    """What is asked of every library. Objects are plain dicts."""

    def create(self, obj: dict[str, Any]) -> dict[str, Any]: ...
    def get(self, name: str) -> dict[str, Any]: ...
    def pages(self, limit: int) -> list[str]: ...
    def version(self) -> str: ...
    def merge(self, name: str, patch: dict[str, Any], *, status: bool = False) -> dict[str, Any]: ...
    def replace(self, obj: dict[str, Any]) -> dict[str, Any]: ...
    def apply(self, obj: dict[str, Any], manager: str, *, force: bool = False) -> dict[str, Any]: ...
    def delete(self, name: str) -> None: ...
    def watch(self, since: str | None) -> Iterator[tuple[str, dict[str, Any]]]: ...
    def wait(self, name: str, condition: str) -> dict[str, Any]: ...
    def refused(self, call: Callable[[], Any]) -> Refusal: ...
    def close(self) -> None: ...


class Official:
    """`kubernetes`, by its API of custom objects."""

    def __init__(self, kubeconfig: Path, namespace: str, kind: Kind) -> None:
        self.api_client = kubernetes.config.new_client_from_config(str(kubeconfig))
        self._api = kubernetes.client.CustomObjectsApi(self.api_client)
        self._place = {"group": kind.group, "version": kind.version, "namespace": namespace, "plural": kind.plural}

    def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        return self._api.create_namespaced_custom_object(**self._place, body=obj, field_manager="official")

    def get(self, name: str) -> dict[str, Any]:
        return self._api.get_namespaced_custom_object(**self._place, name=name)

    def pages(self, limit: int) -> list[str]:
        found, token = [], ""
        while True:
            page = self._api.list_namespaced_custom_object(**self._place, limit=limit, _continue=token)
            assert len(page["items"]) <= limit
            found += [item["metadata"]["name"] for item in page["items"]]
            token = page["metadata"].get("continue", "")
            if not token:
                return found

    def version(self) -> str:
        return str(self._api.list_namespaced_custom_object(**self._place, limit=1)["metadata"]["resourceVersion"])

    def merge(self, name: str, patch: dict[str, Any], *, status: bool = False) -> dict[str, Any]:
        call = self._api.patch_namespaced_custom_object_status if status else self._api.patch_namespaced_custom_object
        return call(**self._place, name=name, body=patch, _content_type=MERGE)

    def replace(self, obj: dict[str, Any]) -> dict[str, Any]:
        return self._api.replace_namespaced_custom_object(**self._place, name=obj["metadata"]["name"], body=obj)

    def apply(self, obj: dict[str, Any], manager: str, *, force: bool = False) -> dict[str, Any]:
        return self._api.patch_namespaced_custom_object(
            **self._place, name=obj["metadata"]["name"], body=obj, field_manager=manager, force=force, _content_type=APPLY
        )

    def delete(self, name: str) -> None:
        options = kubernetes.client.V1DeleteOptions(propagation_policy="Background")
        self._api.delete_namespaced_custom_object(**self._place, name=name, body=options)

    def watch(self, since: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        more = {"resource_version": since} if since is not None else {}
        stream = kubernetes.watch.Watch(return_type="object").stream(
            self._api.list_namespaced_custom_object, **self._place, timeout_seconds=WATCH_S, **more
        )
        for event in stream:
            yield event["type"], event["raw_object"]

    def wait(self, name: str, condition: str) -> dict[str, Any]:
        """It has no wait of its own: everybody writes this loop."""
        stream = kubernetes.watch.Watch(return_type="object").stream(
            self._api.list_namespaced_custom_object, **self._place, timeout_seconds=WATCH_S, field_selector=f"metadata.name={name}"
        )
        for event in stream:
            found: dict[str, Any] = event["raw_object"]
            if {"type": condition, "status": "True"}.items() <= _condition(found, condition).items():
                return found
        raise AssertionError(f"{condition} did not come")

    def refused(self, call: Callable[[], Any]) -> Refusal:
        try:
            call()
        except ApiException as error:
            status = json.loads(error.body)
            return Refusal(error.status, status["reason"], status["message"])
        raise AssertionError("it was not refused")

    def close(self) -> None:
        self.api_client.close()


class Lightkube:
    """`lightkube`, with a generic resource."""

    def __init__(self, kubeconfig: Path, namespace: str, kind: Kind) -> None:
        config = lightkube.KubeConfig.from_file(kubeconfig).get()
        self._client = lightkube.Client(config=config, namespace=namespace, field_manager="lightkube")
        self._type = lightkube.generic_resource.create_namespaced_resource(kind.group, kind.version, kind.kind, kind.plural)

    def _made(self, obj: dict[str, Any]) -> Any:
        return self._type.from_dict(obj)

    def create(self, obj: dict[str, Any]) -> dict[str, Any]:
        return self._client.create(self._made(obj)).to_dict()

    def get(self, name: str) -> dict[str, Any]:
        return self._client.get(self._type, name).to_dict()

    def pages(self, limit: int) -> list[str]:
        return [item.metadata.name for item in self._client.list(self._type, chunk_size=limit)]

    def version(self) -> str:
        listed = self._client.list(self._type)
        list(listed)
        return str(listed.resourceVersion)

    def merge(self, name: str, patch: dict[str, Any], *, status: bool = False) -> dict[str, Any]:
        kind = self._type.Status if status else self._type
        return self._client.patch(kind, name, patch, patch_type=PatchType.MERGE).to_dict()

    def replace(self, obj: dict[str, Any]) -> dict[str, Any]:
        return self._client.replace(self._made(obj)).to_dict()

    def apply(self, obj: dict[str, Any], manager: str, *, force: bool = False) -> dict[str, Any]:
        return self._client.apply(self._made(obj), field_manager=manager, force=force).to_dict()

    def delete(self, name: str) -> None:
        self._client.delete(self._type, name, cascade=CascadeType.BACKGROUND)

    def watch(self, since: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        for event, obj in self._client.watch(self._type, resource_version=since, server_timeout=WATCH_S):
            yield event, obj.to_dict()

    def wait(self, name: str, condition: str) -> dict[str, Any]:
        return self._client.wait(self._type, name, for_conditions=[condition]).to_dict()

    def refused(self, call: Callable[[], Any]) -> Refusal:
        try:
            call()
        except lightkube.ApiError as error:
            return Refusal(error.status.code, error.status.reason, error.status.message)
        raise AssertionError("it was not refused")

    def close(self) -> None:
        self._client.close()


def _condition(obj: dict[str, Any], kind: str) -> dict[str, Any]:
    found = [item for item in (obj.get("status") or {}).get("conditions", []) if item["type"] == kind]
    return found[0] if found else {}
