"""Routes of what is served and not stored: nodes, pods with their logs and evictions, metrics, and kinds that are always empty.

Called by the application for projected types. Reads go through views to the object handlers; the few writes there are become writes
of the SwarmNode or the SwarmTask behind the projection, decided by the object service like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from swarmtask.apiserver import admission, faults
from swarmtask.apiserver import metadata as meta
from swarmtask.apiserver.handlers_objects import ObjectHandlers, delete_options
from swarmtask.apiserver.log_text import LogTexts
from swarmtask.apiserver.objects import ObjectService, check_preconditions
from swarmtask.apiserver.pages import Page
from swarmtask.apiserver.patch import apply_patch, patch_types
from swarmtask.apiserver.projections import metrics, nodes, pods
from swarmtask.apiserver.projections.exec import PodCommands
from swarmtask.apiserver.projections.kinds import EMPTY, INSTEAD, NODE_METRICS, POD_METRICS
from swarmtask.apiserver.projections.logs import PodLogs
from swarmtask.apiserver.projections.views import projected
from swarmtask.apiserver.records import Key, Record
from swarmtask.apiserver.routing import Target
from swarmtask.apiserver.selectors import FieldSelector, LabelSelector, Selection
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.types import ResourceType
from swarmtask.apiserver.wire import APPLY_PATCH, Request, Response, decode_body, decode_json, negotiate, respond, unsupported
from swarmtask.apiserver.writes import DeleteOptions, WriteOptions, Written
from swarmtask.clock import Clock
from swarmtask.errors import BadRequest, Invalid, MethodNotAllowed, NotFound
from swarmtask.resources.ended import ANNOTATION_END, with_ended
from swarmtask.resources.kinds import SWARM_NODE, SWARM_TASK, Kind

_MAKE_NODES = "Nodes cannot be created: a machine appears when its engine lists it (`swarmtask join` says how to add one)"
_MAKE_PODS = "Pods cannot be created or changed: they are the attempts of SwarmTasks. Create or edit a SwarmTask instead"


class ProjectionHandlers:
    """All routes of projections.

    Args:
        logs: shows the output of attempts.
    """

    def __init__(
        self,
        store: Store,
        service: ObjectService,
        objects: ObjectHandlers,
        clock: Clock,
        commands: PodCommands,
        *,
        logs: LogTexts,
    ) -> None:
        self._store, self._service, self._objects, self._clock = store, service, objects, clock
        self._pod_view, self._node_view = pods.PodView(), nodes.NodeView()
        self._commands = commands
        self._logs = PodLogs(logs, clock)

    def serves(self, rt: ResourceType) -> bool:
        """Whether a type is one of these."""
        return not rt.custom and rt.storage_key in _SERVED

    async def handle(self, request: Request, target: Target) -> Response:
        """Dispatch. Raises MethodNotAllowed, with what to do instead, and whatever the operation raises."""
        where = target.rt.storage_key
        if where == nodes.NODES:
            return await self._node(request, target)
        if where == pods.PODS:
            return await self._pod(request, target)
        if request.method != "GET":
            raise _read_only(target.rt)
        if where in (NODE_METRICS, POD_METRICS):
            return await self._metrics(request, target)
        return await self._objects.read(request, target)

    # --- nodes -----------------------------------------------------------------------------------------------------------

    async def _node(self, request: Request, target: Target) -> Response:
        if request.method == "GET":
            return await self._objects.read(request, target, self._node_view)
        if target.name is None:
            raise MethodNotAllowed(_MAKE_NODES if request.method == "POST" else "Nodes are deleted one by one, by name")
        accepted = negotiate(request)
        if request.method == "DELETE":
            written = await self._service.delete(self._type(SWARM_NODE), "", target.name, delete_options(request))
            return self._objects.deleted(request, target, _as_node(written), accepted)
        options = self._objects.write_options(request)
        if request.method == "PUT":
            written = await self._write_node(target, options, decode_body(request))
        elif request.method == "PATCH":
            written = await self._patch_node(request, target, options)
        else:
            raise faults.method_not_allowed()
        return self._objects.answer(request, target, _as_node(written), options, accepted)

    async def _patch_node(self, request: Request, target: Target, options: WriteOptions) -> Written:
        kind, rt = request.content_type, target.rt
        if kind == APPLY_PATCH:
            return await self._apply_node(request, target, options)
        if kind not in patch_types(rt):
            raise unsupported(patch_types(rt))
        shown = self._shown_node(target)
        return await self._write_node(target, options, apply_patch(rt, shown, kind, request.body))

    async def _write_node(self, target: Target, options: WriteOptions, body: Any) -> Written:
        """Let the SwarmNode say what is written to its Node. Decides without awaiting, as every write does."""
        rt, name = target.rt, target.name or ""
        new = admission.check_header(rt, body)
        self._check_name(target, meta.check_types(rt, new))
        record, shown = self._head_node(target), self._shown_node(target)
        causes = nodes.causes_against(shown, new)
        if causes:
            raise faults.invalid(rt, name, causes)
        wanted = new["metadata"].get("resourceVersion")
        if wanted and wanted != str(record.rv):
            raise faults.conflict(rt, name)
        swarm_node = nodes.written(record.decode(), new)
        return await self._service.replace(self._type(SWARM_NODE), "", name, swarm_node, options)

    async def _apply_node(self, request: Request, target: Target, options: WriteOptions) -> Written:
        if not request.query.get("fieldManager"):
            causes = [faults.required("fieldManager", "is required for apply patch")]
            raise Invalid(
                'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch', causes=causes
            )
        rt, name = target.rt, target.name or ""
        body = admission.check_header(rt, decode_json(request.body))
        self._check_name(target, meta.check_types(rt, body))
        self._head_node(target)  # what does not exist is not created
        causes = nodes.causes_against({}, body)
        if causes:
            raise faults.invalid(rt, name, causes)
        return await self._service.apply(
            self._type(SWARM_NODE), "", name, nodes.applied(body), options, force=request.flag("force")
        )

    @staticmethod
    def _check_name(target: Target, metadata: dict[str, Any]) -> None:
        given = metadata.setdefault("name", target.name)
        if given != target.name:
            raise BadRequest(f"the name of the object ({given}) does not match the name on the URL ({target.name})")

    def _head_node(self, target: Target) -> Record:
        record = self._store.head(Key(nodes.SWARM_NODES, "", target.name or ""))
        if record is None:
            raise faults.not_found(target.rt, target.name or "")
        return record

    def _shown_node(self, target: Target) -> dict[str, Any]:
        """The Node as the next write finds it."""
        return self._node_view.project(self._head_node(target))[0].decode()

    def _type(self, kind: Kind) -> ResourceType:
        found = self._service.registry.find(kind.group, kind.version, kind.plural)
        if found is None:
            raise NotFound(
                f"{kind.crd_name} is not served: its definition was deleted. Restart the API server, which makes it again"
            )
        return found

    # --- pods ------------------------------------------------------------------------------------------------------------

    async def _pod(self, request: Request, target: Target) -> Response:
        if target.subresource is not None:
            return await self._pod_subresource(request, target)
        if request.method == "GET":
            return await self._objects.read(request, target, self._pod_view)
        if request.method != "DELETE" or (target.name is None and target.namespace is None):
            raise MethodNotAllowed(_MAKE_PODS if request.method != "DELETE" else "Pods are deleted in one namespace: name it")
        accepted, options = negotiate(request), delete_options(request)
        write = self._objects.write_options(request)
        if target.name is not None:
            written = await self._end(target, target.name, options, write)
            return self._objects.deleted(request, target, written, accepted)
        page = await self._objects.page(request, target, self._pod_view)
        deleted = []
        for record in page.records:
            try:
                written = await self._end(target, record.key.name, options, write)
            except NotFound:
                continue  # somebody else was faster
            deleted.append(orjson.loads(written.body))
        return self._objects.deleted_list(target.rt, deleted, accepted)

    async def _pod_subresource(self, request: Request, target: Target) -> Response:
        if target.subresource == "log":
            if request.method != "GET":
                raise faults.method_not_allowed()
            return self._logs.answer(request, self.pod(target))
        if target.subresource == "eviction":
            return await self._evict(request, target)
        if request.method not in ("GET", "POST"):
            raise faults.method_not_allowed()
        await self._commands.container_of(self.pod(target))  # why it could not be run at all goes first
        raise BadRequest(
            "commands are run over WebSockets here, which this client has not asked for: use kubectl 1.31 or newer "
            "(SPDY, which older ones speak, is not supported)"
        )

    def pod(self, target: Target) -> dict[str, Any]:
        """The pod that a path names. Raises NotFound."""
        return self._objects.seen(target, self._pod_view).decode()

    async def _evict(self, request: Request, target: Target) -> Response:
        """POST of an Eviction: what `kubectl drain` sends for every pod. There are no disruption budgets here."""
        if request.method != "POST":
            raise faults.method_not_allowed()
        accepted = negotiate(request)
        body = decode_body(request) if request.body.strip() else {}
        if not isinstance(body, dict) or body.get("kind", "Eviction") != "Eviction":
            raise BadRequest("the body must be an Eviction of policy/v1")
        metadata = body.get("metadata") or {}
        if not isinstance(metadata, dict) or metadata.get("name", target.name) not in ("", target.name):
            raise BadRequest(f"the Eviction must name the pod of the URL: {target.name}")
        request.body = orjson.dumps(body.get("deleteOptions") or {})
        request.headers = {**request.headers, "content-type": "application/json"}
        await self._end(target, target.name or "", delete_options(request), self._objects.write_options(request))
        return respond(
            {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}, accepted, status=201
        )

    async def _end(self, target: Target, name: str, options: DeleteOptions, write: WriteOptions) -> Written:
        """Ask for the end of an attempt: its task names it (`swarmtask.io/end-attempts`), and the operator does the rest.

        Raises:
            NotFound, Conflict (preconditions), InsufficientStorage.
        """
        key = Key(pods.PODS, target.namespace or "", name)
        origin = self._pod_view.origin(key)
        record = self._store.head(origin) if origin is not None else None
        shown = _pod_in(self._pod_view, record, key)
        if record is None or shown is None:
            raise faults.not_found(target.rt, name)
        check_preconditions(target.rt, shown, options)
        if shown.deleting:
            await self._store.durable(record.key)
            return Written(shown.body)
        task = record.decode()
        number = int(shown.labels[pods.LABEL_ATTEMPT])
        known = [attempt["number"] for attempt in task["status"]["attempts"]]
        annotations = task["metadata"].setdefault("annotations", {})
        annotations[ANNOTATION_END] = with_ended(annotations, number, self._clock.now(), known)
        writing = WriteOptions(write.manager, options.dry_run, client=write.client)
        written = await self._service.replace(self._type(SWARM_TASK), key.namespace, task["metadata"]["name"], task, writing)
        after = _pod_in(self._pod_view, _record(self._pod_view.source, written), key)
        return Written(after.body) if after is not None else Written(shown.body, removed=True)

    # --- metrics ---------------------------------------------------------------------------------------------------------

    async def _metrics(self, request: Request, target: Target) -> Response:
        rt = target.rt
        if request.flag("watch"):
            raise MethodNotAllowed("metrics cannot be watched: list them again")
        found = self._node_metrics() if rt.storage_key == NODE_METRICS else self._pod_metrics(target)
        if target.name is not None:
            one = next((record for record in found if record.key.name == target.name), None)
            if one is None:
                raise NotFound(
                    f'{rt.qualified_plural} "{target.name}" not found: nothing is measured there. Figures come from the node '
                    "agent, while it is heard",
                    details=faults.details(rt, target.name),
                )
            return respond(one.decode(), negotiate(request))
        selection = Selection(
            LabelSelector(request.query.get("labelSelector", "")), FieldSelector(request.query.get("fieldSelector", ""), rt)
        )
        page = Page(
            [record for record in found if selection.matches(record)], {"resourceVersion": str(self._store.resource_version)}
        )
        return await self._objects.listed(request, target, page)

    def _swarm_nodes(self) -> list[tuple[Record, dict[str, Any]]]:
        return [(record, record.decode()) for record in self._store.index.records(nodes.SWARM_NODES)]

    def _node_metrics(self) -> list[Record]:
        found = ((record, metrics.node_metrics(node)) for record, node in self._swarm_nodes())
        return [projected(Key(NODE_METRICS, "", record.key.name), record.rv, one) for record, one in found if one is not None]

    def _pod_metrics(self, target: Target) -> list[Record]:
        figures = metrics.figures_of(node for _, node in self._swarm_nodes())
        found = []
        for record in self._store.index.records(pods.TASKS, target.namespace) if figures else ():
            shown = (pod.decode() for pod in self._pod_view.project(record))
            for one in metrics.pod_metrics(shown, figures):
                found.append(projected(Key(POD_METRICS, record.key.namespace, one["metadata"]["name"]), record.rv, one))
        return found


_SERVED = frozenset({nodes.NODES, pods.PODS, NODE_METRICS, POD_METRICS}) | EMPTY


def _as_node(written: Written) -> Written:
    """The outcome of a write of a SwarmNode, as its Node shows it."""
    swarm_node = orjson.loads(written.body)
    node = nodes.node_of(swarm_node)
    node["metadata"]["resourceVersion"] = swarm_node["metadata"].get("resourceVersion", "")
    return Written(orjson.dumps(node), created=written.created, removed=written.removed)


def _record(collection: tuple[str, str], written: Written) -> Record:
    obj: Mapping[str, Any] = orjson.loads(written.body)
    metadata = obj["metadata"]
    key = Key(collection, metadata.get("namespace", ""), metadata["name"])
    return Record.of(key, int(metadata.get("resourceVersion") or 0), obj, written.body)


def _pod_in(view: pods.PodView, record: Record | None, key: Key) -> Record | None:
    return next((one for one in view.project(record) if one.key == key), None) if record is not None else None


def _read_only(rt: ResourceType) -> MethodNotAllowed:
    if rt.storage_key in (NODE_METRICS, POD_METRICS):
        return MethodNotAllowed("metrics can only be read: node agents tell them")
    kinds = rt.kind + rt.plural[len(rt.kind) :]
    instead = INSTEAD.get(rt.kind, "What is to run once is a SwarmTask (kubectl explain swarmtask.spec)")
    return MethodNotAllowed(
        f"SwarmTask runs no {kinds}: the list is there, and always empty, for programs that expect it. {instead}"
    )
