"""Routes of stored objects: get, list, watch, create, replace, patch, delete.

Called by the application with a resolved target, and by the handlers of projections, which read through a view. Turns HTTP into
calls of the object service and the store, and their results into answers; the rules of objects are not here.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import orjson

from swarmtask.apiserver import faults, tenures, versions
from swarmtask.apiserver.object_parts import Propagation
from swarmtask.apiserver.objects import DefinitionChanged, ObjectService
from swarmtask.apiserver.pages import Page, fill, fill_through
from swarmtask.apiserver.patch import JSON_PATCH, MERGE_PATCH, apply_patch, patch_types
from swarmtask.apiserver.projections.events import EVENTS, event_view
from swarmtask.apiserver.projections.views import View
from swarmtask.apiserver.records import Key, Record
from swarmtask.apiserver.routing import Target
from swarmtask.apiserver.scale import scale_of
from swarmtask.apiserver.selectors import FieldSelector, LabelSelector, Selection
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.tables import Include, table
from swarmtask.apiserver.types import ResourceType
from swarmtask.apiserver.watch import WatchHub, WatchRequest
from swarmtask.apiserver.wire import (
    APPLY_PATCH,
    JSON,
    YAML_TYPES,
    Accepted,
    Request,
    Response,
    decode_body,
    decode_json,
    duplicate_fields,
    encode,
    negotiate,
    respond,
    unsupported,
    warning_headers,
)
from swarmtask.apiserver.writes import DeleteOptions, WriteOptions, Written
from swarmtask.clock import Clock
from swarmtask.errors import BadRequest, Cause, Expired, Invalid, NotFound, Timeout

LIST_LIMIT = 100_000
"""More objects than this are never put into one answer, whatever `limit` says."""
CREATE_TRIES = 10
"""How often a create begins while its kind's definition is being changed; then the client may, later."""
SCALE_PATCH_TYPES = (JSON_PATCH, MERGE_PATCH)


@dataclass(slots=True)
class ObjectHandlers:
    """All routes of stored objects."""

    store: Store
    service: ObjectService
    hub: WatchHub
    clock: Clock

    def handle(self, request: Request, target: Target) -> Awaitable[Response]:
        """Answer; with a warning where the version is deprecated. Raises MethodNotAllowed and whatever the operation raises."""
        answer = self._dispatch(request, target)
        return _with_warning(answer, target.rt.deprecation) if target.rt.deprecation else answer

    def _dispatch(self, request: Request, target: Target) -> Awaitable[Response]:
        if request.method == "GET":
            return self.read(request, target)
        tenures.check(self.store, request, target)
        if target.name is None:
            return self._collection(request, target)
        if request.method == "PUT":
            return self._put(request, target)
        if request.method == "PATCH":
            return self._patch(request, target)
        if request.method == "DELETE" and target.subresource is None:
            return self._delete(request, target)
        raise faults.method_not_allowed()

    async def read(self, request: Request, target: Target, view: View | None = None) -> Response:
        """A GET: an object, a list or a watch, of what is stored or of what a view shows of it."""
        if target.name is not None:  # whether it is to be watched is not asked, as in Kubernetes
            return self._get(request, target, view)
        if request.flag("watch"):
            return self._watch(request, target, view)
        return await self._list(request, target, view)

    def _collection(self, request: Request, target: Target) -> Awaitable[Response]:
        everywhere = target.rt.namespaced and target.namespace is None
        if request.method == "POST" and not everywhere:
            return self._post(request, target)
        if request.method == "DELETE" and not everywhere and "deletecollection" in target.rt.verbs:
            return self._delete_collection(request, target)
        raise faults.method_not_allowed()

    # --- reading ---------------------------------------------------------------------------------------------------------

    def seen(self, target: Target, view: View | None) -> Record:
        """The committed object that a path names. Raises NotFound."""
        key = _key(target)
        record: Record | None
        if view is None:
            record = self.store.get(key)
        else:
            origin = view.origin(key)
            stored = self.store.get(origin) if origin is not None else None
            record = next((one for one in view.project(stored) if one.key == key), None) if stored is not None else None
        if record is None:
            raise faults.not_found(target.rt, target.name or "")
        return record

    def _get(self, request: Request, target: Target, view: View | None) -> Response:
        accepted = negotiate(request)
        if "resourceVersion" in request.query:
            self._not_from_the_future(_version(request))
        record = self.seen(target, view)
        if not accepted.shape and accepted.media == JSON and target.subresource != "scale":
            return Response(200, versions.encoded(target.rt, record) + b"\n")
        obj = versions.decode(target.rt, record)
        return respond(self._shaped(request, target.rt, _seen_through(target, obj), accepted), accepted)

    def _shaped(self, request: Request, rt: ResourceType, obj: dict[str, Any], accepted: Accepted) -> Any:
        if accepted.shape == "Table":
            version = obj["metadata"].get("resourceVersion", "")
            return self._table(request, rt, [obj], accepted, {"resourceVersion": version})
        if accepted.shape:
            return _partial(obj, accepted)
        return obj

    def _table(
        self,
        request: Request,
        rt: ResourceType,
        objects: Sequence[Mapping[str, Any]],
        accepted: Accepted,
        metadata: dict[str, Any],
        *,
        with_columns: bool = True,
    ) -> dict[str, Any]:
        result = table(
            rt, objects, include=_include(request), now=self.clock.now(), list_metadata=metadata, with_columns=with_columns
        )
        result["apiVersion"] = f"meta.k8s.io/{accepted.version}"
        return result

    async def _list(self, request: Request, target: Target, view: View | None) -> Response:
        return await self.listed(request, target, await self.page(request, target, view))

    async def listed(self, request: Request, target: Target, page: Page) -> Response:
        """A page as it was asked for."""
        accepted = negotiate(request)
        rt = target.rt
        if accepted.shape == "Table":
            objects = [versions.decode(rt, record) for record in page.records]
            return respond(self._table(request, rt, objects, accepted, page.metadata), accepted)
        if accepted.shape:
            items = [_partial(versions.decode(rt, record), accepted) for record in page.records]
            kind, api_version = "PartialObjectMetadataList", f"meta.k8s.io/{accepted.version}"
            return respond({"kind": kind, "apiVersion": api_version, "metadata": page.metadata, "items": items}, accepted)
        head = {"kind": rt.list_kind or f"{rt.kind}List", "apiVersion": rt.api_version, "metadata": page.metadata}
        if accepted.media != JSON:
            whole = {**head, "items": [versions.decode(rt, record) for record in page.records]}
            return await asyncio.to_thread(respond, whole, accepted)  # YAML takes 0.1 ms a value
        bodies = b",".join([versions.encoded(rt, record) for record in page.records])
        return Response(200, orjson.dumps(head)[:-1] + b',"items":[' + bodies + b"]}\n")

    async def page(self, request: Request, target: Target, view: View | None = None) -> Page:
        """The objects that a list asks for. Raises BadRequest, Expired, Timeout, Invalid."""
        selection = _selection(request, target.rt)
        view = view or _asked_view(target, selection)
        limit = min(request.number("limit") or LIST_LIMIT, LIST_LIMIT)
        token = request.query.get("continue", "")
        after: Key | None = None
        if token:
            if request.query.get("resourceVersionMatch"):
                raise _bad_list_option(
                    "resourceVersionMatch", "Forbidden: resourceVersionMatch is forbidden when continue is provided"
                )
            if request.query.get("resourceVersion", "") not in ("", "0"):
                raise BadRequest("specifying resource version is not allowed when using continue")
            version, after = _read_token(token, target, self.store.resource_version)
        else:
            version = self._list_version(request)
        collection = view.source if view is not None else versions.collection_of(target.rt)
        if version == self.store.resource_version:
            stored = self.store.index.records(collection, target.namespace)
        else:
            stored = await self.store.records_at(version, collection, target.namespace)
        page = Page(metadata={"resourceVersion": str(version)})
        if view is not None:
            await fill_through(page, view, stored, selection, limit, after)
        else:
            fill(page, stored, selection, limit, after)
        if "continue" in page.metadata:
            page.metadata["continue"] = _make_token(version, page.records[-1].key)
        return page

    def _list_version(self, request: Request) -> int:
        """The version that a list without a token is to be read at."""
        if "sendInitialEvents" in request.query:
            raise _bad_list_option("sendInitialEvents", "Forbidden: sendInitialEvents is forbidden for list")
        match = request.query.get("resourceVersionMatch", "")
        if match not in ("", "Exact", "NotOlderThan"):
            raise _bad_list_option(
                "resourceVersionMatch", f'Unsupported value: "{match}": supported values: "Exact", "NotOlderThan"'
            )
        version = _version(request)
        if version is None:
            if match:
                raise _bad_list_option(
                    "resourceVersionMatch", "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
                )
            return self.store.resource_version
        if match == "Exact" and version == 0:
            raise _bad_list_option(
                "resourceVersionMatch", 'Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
            )
        self._not_from_the_future(version)
        if match == "Exact":
            self.store.check_retained(version)
            return version
        return self.store.resource_version

    def _not_from_the_future(self, version: int | None) -> None:
        """What is read is the newest there is; who has seen a newer version must wait. Raises Timeout."""
        if version is not None and version > self.store.resource_version:
            raise Timeout(
                f"Too large resource version: {version}, current: {self.store.resource_version}",
                causes=[Cause("", "ResourceVersionTooLarge", "Too large resource version")], retry_after_s=1,
            )  # fmt: skip

    def _watch(self, request: Request, target: Target, view: View | None) -> Response:
        accepted = negotiate(request)
        if accepted.media != JSON:
            accepted = Accepted(JSON, accepted.shape, accepted.version)
        initial = request.flag("sendInitialEvents")
        match = request.query.get("resourceVersionMatch", "")
        if "sendInitialEvents" in request.query and match != "NotOlderThan":
            raise _bad_list_option(
                "resourceVersionMatch", "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            )
        if match and "sendInitialEvents" not in request.query:
            raise _bad_list_option(
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )
        bookmarks = request.flag("allowWatchBookmarks")
        if initial and not bookmarks:
            raise _bad_list_option("allowWatchBookmarks", "Forbidden: sendInitialEvents requires allowWatchBookmarks")
        version = _version(request)
        timeout = request.number("timeoutSeconds")
        selection = _selection(request, target.rt)
        watch = WatchRequest(
            rt=target.rt, namespace=target.namespace, selection=selection, view=view or _asked_view(target, selection),
            since=version or None, bookmarks=bookmarks, initial_events=initial,
            timeout_s=float(timeout) if timeout else None, shape=accepted.shape.removesuffix("List"),
            render=self._renderer(request, target.rt, accepted), client="" if request.exempt else request.client,
        )  # fmt: skip
        watcher = self.hub.open(watch)
        return Response(200, stream=self.hub.stream(watcher), on_close=lambda: self.hub.close(watcher))

    def _renderer(
        self, request: Request, rt: ResourceType, accepted: Accepted
    ) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
        if not accepted.shape:
            return None
        if accepted.shape != "Table":
            return lambda obj: _partial(obj, accepted)
        _include(request)
        first = True

        def render(obj: dict[str, Any]) -> dict[str, Any]:
            nonlocal first
            with_columns, first = first, False
            metadata = {"resourceVersion": obj["metadata"].get("resourceVersion", "")}
            return self._table(request, rt, [obj], accepted, metadata, with_columns=with_columns)

        return render

    # --- writing ---------------------------------------------------------------------------------------------------------

    def write_options(self, request: Request, body: Any = None) -> WriteOptions:
        """What a write asks for. `body`: as decoded, where it has been already."""
        validation = request.field_validation
        duplicates: list[str] = []
        kind = request.content_type
        if validation != "Ignore" and (kind in ("", JSON, APPLY_PATCH, "application/merge-patch+json") or kind in YAML_TYPES):
            duplicates = duplicate_fields(request, body)
        return WriteOptions(
            request.manager, request.dry_run, validation, duplicates, client=request.client, guard=request.guard,
            operator=request.exempt and request.guard is not None,  # masters, the other exempt ones, have no guard
        )  # fmt: skip

    def answer(self, request: Request, target: Target, written: Written, options: WriteOptions, accepted: Accepted) -> Response:
        status = 201 if written.created else 200
        if not accepted.shape and accepted.media == JSON and target.subresource != "scale":
            return Response(status, written.body + b"\n", headers=warning_headers(options.warnings))
        obj = self._shaped(request, target.rt, _seen_through(target, orjson.loads(written.body)), accepted)
        return respond(obj, accepted, status=status, warnings=options.warnings)

    async def _post(self, request: Request, target: Target) -> Response:
        for again in reversed(range(CREATE_TRIES)):
            accepted = negotiate(request)
            body = decode_body(request, protobuf_allowed=not target.rt.custom)
            options = self.write_options(request, body)
            request.named = _name_in(body)
            try:
                written = await self.service.create(target.rt, target.namespace or "", body, options)
            except DefinitionChanged:  # begin again, with the body as it came
                if not again:
                    raise
                target = self._found_again(target)
            else:
                break
        if not request.named:
            request.named = _name_in(orjson.loads(written.body))
        return self.answer(request, target, written, options, accepted)

    def _found_again(self, target: Target) -> Target:
        """The same, as it is served now."""
        rt = self.service.registry.find(target.rt.group, target.rt.version, target.rt.plural)
        if rt is None:
            raise faults.no_such_path() from None
        return target._replace(rt=rt)

    async def _put(self, request: Request, target: Target) -> Response:
        accepted = negotiate(request)
        body = decode_body(request, protobuf_allowed=not target.rt.custom)
        options = self.write_options(request, body)
        if target.subresource == "scale":
            written = await self.service.scale(target.rt, target.namespace or "", target.name or "", options, lambda _: body)
            return self.answer(request, target, written, options, accepted)
        written = await self.service.replace(
            target.rt, target.namespace or "", target.name or "", body, options, subresource=target.subresource
        )
        return self.answer(request, target, written, options, accepted)

    async def _patch(self, request: Request, target: Target) -> Response:
        accepted = negotiate(request)
        kind = request.content_type
        options = self.write_options(request)
        rt, namespace, name = target.rt, target.namespace or "", target.name or ""
        if target.subresource == "scale":
            if kind not in SCALE_PATCH_TYPES:
                raise unsupported(SCALE_PATCH_TYPES)
            written = await self.service.scale(
                rt, namespace, name, options, lambda scale: apply_patch(rt, scale, kind, request.body)
            )
        elif kind == APPLY_PATCH:
            if not request.query.get("fieldManager"):
                raise Invalid(
                    'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch',
                    causes=[faults.required("fieldManager", "is required for apply patch")],
                )
            written = await self.service.apply(
                rt, namespace, name, decode_json(request.body), options,
                force=request.flag("force"), subresource=target.subresource,
            )  # fmt: skip
        elif kind in patch_types(rt):
            written = await self.service.patch(
                rt, namespace, name, request.body, options, content_type=kind, subresource=target.subresource
            )
        else:
            raise unsupported(patch_types(rt))
        return self.answer(request, target, written, options, accepted)

    async def _delete(self, request: Request, target: Target) -> Response:
        accepted = negotiate(request)
        options = delete_options(request)
        written = await self.service.delete(target.rt, target.namespace or "", target.name or "", options)
        return self.deleted(request, target, written, accepted)

    def deleted(self, request: Request, target: Target, written: Written, accepted: Accepted) -> Response:
        """What a DELETE is answered: the object that waits for its end, or that it is gone."""
        if not written.removed:
            return self.answer(request, target, written, WriteOptions(), accepted)
        metadata = orjson.loads(written.body)["metadata"]
        return respond(
            {
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {
                    "name": metadata["name"], **({"group": target.rt.group} if target.rt.group else {}),
                    "kind": target.rt.plural, "uid": metadata.get("uid", ""),
                },
            },
            accepted,
        )  # fmt: skip

    async def _delete_collection(self, request: Request, target: Target) -> Response:
        accepted = negotiate(request)
        options = delete_options(request)
        if options.uid or options.resource_version:
            raise BadRequest("preconditions name one object: they make no sense for a collection")
        page = await self.page(request, target)
        deleted: list[Any] = []
        for record in page.records:
            try:
                written = await self.service.delete(target.rt, record.key.namespace, record.key.name, options)
            except NotFound:
                continue  # somebody else was faster
            deleted.append(orjson.loads(written.body))
        return self.deleted_list(target.rt, deleted, accepted)

    def deleted_list(self, rt: ResourceType, deleted: Sequence[Any], accepted: Accepted) -> Response:
        """What a DELETE of a collection is answered."""
        body, media = encode(
            {"kind": rt.list_kind or f"{rt.kind}List", "apiVersion": rt.api_version,
             "metadata": {"resourceVersion": str(self.store.resource_version)}, "items": deleted},
            accepted,
        )  # fmt: skip
        return Response(200, body, media)


async def _with_warning(answer: Awaitable[Response], text: str) -> Response:
    response = await answer
    response.headers += warning_headers([text])
    return response


def _asked_view(target: Target, selection: Selection) -> View | None:
    """Events are seen through one when those of Pods or Nodes are asked for."""
    return event_view(selection.fields) if versions.collection_of(target.rt) == EVENTS else None


def _seen_through(target: Target, obj: dict[str, Any]) -> dict[str, Any]:
    """What a subresource shows of an object."""
    return scale_of(target.rt, obj) if target.subresource == "scale" else obj


def _key(target: Target) -> Key:
    return Key(versions.collection_of(target.rt), target.namespace or "", target.name or "")


def _name_in(body: Any) -> str:
    """What an object calls itself; empty where it does not, or is none."""
    metadata = body.get("metadata") if isinstance(body, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else ""


def _selection(request: Request, rt: ResourceType) -> Selection:
    labels, fields = request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
    return Selection(LabelSelector(labels), FieldSelector(fields, rt))


def _version(request: Request) -> int | None:
    text = request.query.get("resourceVersion", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BadRequest(f"Invalid value: {text!r}: resourceVersion must be a number that a list or a watch has given")
    return int(text)


def _include(request: Request) -> Include:
    include = request.query.get("includeObject", "") or "Metadata"
    if include not in ("Metadata", "Object", "None"):
        raise BadRequest(f"includeObject: {include!r} is not one of Metadata, Object, None")
    return cast(Include, include)


def _partial(obj: dict[str, Any], accepted: Accepted) -> dict[str, Any]:
    return {
        "kind": "PartialObjectMetadata", "apiVersion": f"meta.k8s.io/{accepted.version}", "metadata": obj["metadata"],
    }  # fmt: skip


def _make_token(version: int, last: Key) -> str:
    content = orjson.dumps([version, *last.collection, last.namespace, last.name])
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _read_token(token: str, target: Target, newest: int) -> tuple[int, Key]:
    """The snapshot's version and the last key given. A token can only move within what the path allows to see."""
    try:
        content = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        version, group, plural, namespace, name = content
        key = Key((group, plural), namespace, name)
        valid = type(version) is int and all(isinstance(part, str) for part in (group, plural, namespace, name))
    except (binascii.Error, ValueError, TypeError):
        valid = False
    if not valid or key.collection != versions.collection_of(target.rt) or not 1 <= version <= newest:
        raise Expired("The provided continue parameter is not known here: start the list again without it")
    return version, key


def _bad_list_option(name: str, message: str) -> Invalid:
    reason = "FieldValueForbidden" if message.startswith("Forbidden") else "FieldValueNotSupported"
    return Invalid(
        f'ListOptions.meta.k8s.io "" is invalid: {name}: {message}',
        details={"group": "meta.k8s.io", "kind": "ListOptions"}, causes=[Cause(name, reason, message)],
    )  # fmt: skip


def delete_options(request: Request) -> DeleteOptions:
    """From the body and the query; the body wins, as in Kubernetes."""
    body: Any = decode_body(request) if request.body.strip() else {}
    if not isinstance(body, dict):
        raise BadRequest("the body of a DELETE must be a DeleteOptions object")
    if body.get("kind", "DeleteOptions") != "DeleteOptions":
        raise BadRequest(f"the body of a DELETE must be a DeleteOptions object, not {body['kind']!r}")
    preconditions = body.get("preconditions") or {}
    if not isinstance(preconditions, dict):
        raise BadRequest("preconditions must be an object with uid or resourceVersion")
    uid, version = preconditions.get("uid") or "", preconditions.get("resourceVersion") or ""
    if not isinstance(uid, str) or not isinstance(version, str):
        raise BadRequest("preconditions.uid and preconditions.resourceVersion must be strings")
    dry = body.get("dryRun") or []
    if dry not in ([], ["All"]):
        causes = [Cause("dryRun", "FieldValueNotSupported", f'Unsupported value: {dry}: supported values: "All"')]
        raise Invalid(f"DeleteOptions is invalid: dryRun: {causes[0].message}", causes=causes)
    return DeleteOptions(uid, version, _propagation(request, body), dry_run=bool(dry) or request.dry_run)


def _propagation(request: Request, body: Mapping[str, Any]) -> Propagation | None:
    policy = body.get("propagationPolicy") or request.query.get("propagationPolicy") or None
    orphan = body.get("orphanDependents")
    if orphan is None and "orphanDependents" in request.query:
        orphan = request.flag("orphanDependents")
    if policy is not None and orphan is not None:
        causes = [faults.bad_value("propagationPolicy", policy, "orphanDependents and deletionPropagation cannot be both set")]
        raise Invalid(f"DeleteOptions is invalid: propagationPolicy: {causes[0].message}", causes=causes)
    if orphan is not None:
        return "Orphan" if orphan else "Background"
    if policy not in (None, "Background", "Foreground", "Orphan"):
        message = f'Unsupported value: "{policy}": supported values: "Background", "Foreground", "Orphan"'
        causes = [Cause("propagationPolicy", "FieldValueNotSupported", message)]
        raise Invalid(f"DeleteOptions is invalid: propagationPolicy: {message}", causes=causes)
    return cast("Propagation | None", policy)
