"""HTTP in and out: requests with decoded parameters and bodies, content negotiation, Status objects.

Called by the application and its handlers. Bodies come in as JSON, YAML or Kubernetes' protobuf envelope and leave here as plain
dicts that are not too deep and hold nothing that JSON cannot say. Decides nothing about objects.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import orjson
import yaml

from swarmtask.apiserver import protobuf
from swarmtask.errors import BadRequest, Cause, Invalid, NotAcceptable, SwarmTaskError, UnsupportedMediaType

JSON = "application/json"
YAML = "application/yaml"
APPLY_PATCH = "application/apply-patch+yaml"
YAML_TYPES = frozenset({YAML, "application/x-yaml", "text/yaml"})
PROTOBUF = "application/vnd.kubernetes.protobuf"
DEPTH_LIMIT = 128
"""Levels of nesting in a body. Every walk over an object is recursive; real objects stay below 30."""
NODE_LIMIT = 500_000
"""Values in one body, aliases expanded: what keeps a small text from becoming a huge object."""
YAML_NODE_LIMIT = 20_000
"""Keys and values written in one YAML body. Each costs about 0.1 ms, a hundred times what it costs in JSON; real manifests stay
below 2,000, and clients that send more (kubectl, every client library) send JSON."""
YAML_INLINE_BYTES = 4096
"""A longer YAML body is read in a thread, so that the others' requests go on meanwhile."""


@dataclass(slots=True)
class Request:
    """One HTTP request, its body already read.

    Attributes:
        body: as it came, but JSON where it came as YAML.
        duplicates: paths of the keys that a YAML body gave more than once; None where the body was no YAML.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""
    duplicates: list[str] | None = None

    def flag(self, name: str) -> bool:
        """As Kubernetes reads booleans: present and not `false` or `0`."""
        value = self.query.get(name)
        return value is not None and value.lower() not in ("false", "0")

    def number(self, name: str) -> int | None:
        """A whole number that is not negative, or None when absent or empty."""
        text = self.query.get(name, "")
        if not text:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 19):
            raise BadRequest(f"{name}: {text!r} is not a whole number that is not negative")
        return int(text)

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def manager(self) -> str:
        """Who writes, for managedFields: `fieldManager`, or the first part of the User-Agent."""
        given = self.query.get("fieldManager", "")
        if given:
            if len(given) > 128:
                raise _bad_option("fieldManager", "FieldValueTooLong", "Too long: may not be more than 128 bytes")
            if not given.isprintable():
                raise _bad_option(
                    "fieldManager", "FieldValueInvalid", f"Invalid value: {given!r}: should only contain printable characters"
                )
            return given
        agent = self.headers.get("user-agent", "").split("/", 1)[0]
        return "".join(character for character in agent if character.isprintable())[:128] or "unknown"

    @property
    def dry_run(self) -> bool:
        value = self.query.get("dryRun", "")
        if value not in ("", "All"):
            raise _bad_option("dryRun", "FieldValueNotSupported", f'Unsupported value: "{value}": supported values: "All"')
        return value == "All"

    @property
    def field_validation(self) -> str:
        """Strict, Warn or Ignore."""
        value = self.query.get("fieldValidation", "") or "Warn"
        if value not in ("Strict", "Warn", "Ignore"):
            raise _bad_option(
                "fieldValidation", "FieldValueNotSupported",
                f'Unsupported value: "{value}": supported values: "Ignore", "Strict", "Warn"',
            )  # fmt: skip
        return value


def _bad_option(name: str, reason: str, message: str) -> Invalid:
    return Invalid(f"options are invalid: {name}: {message}", causes=[Cause(name, reason, message)])


def parse_query(raw: bytes) -> dict[str, str]:
    """The first value of each parameter. Raises BadRequest for absurdly many."""
    try:
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=200)
    except ValueError as error:
        raise BadRequest(f"the query cannot be read: {error}") from error
    result: dict[str, str] = {}
    for name, value in pairs:
        result.setdefault(name, value)
    return result


@dataclass(slots=True)
class Response:
    """One HTTP answer: a whole body, or a stream of chunks.

    Attributes:
        on_close: called when a stream is over or its client has gone; may be called more than once.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: list[tuple[str, str]] = field(default_factory=list)
    stream: AsyncGenerator[bytes, None] | None = None
    on_close: Callable[[], None] | None = None


# --- bodies --------------------------------------------------------------------------------------------------------------


def decode_json(body: bytes) -> Any:
    """Raises BadRequest: not JSON, not UTF-8, or nested too deep."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    if body.count(b"{") + body.count(b"[") > DEPTH_LIMIT:
        check_size(value)
    return value


async def read_yaml(request: Request) -> None:
    """Turn a YAML body into the JSON that the handlers read. Other bodies stay as they are.

    Raises:
        BadRequest: as `yaml_to_json`.
    """
    if request.content_type not in YAML_TYPES | {APPLY_PATCH} or _is_json(request.body):
        return
    if len(request.body) <= YAML_INLINE_BYTES:
        request.body, request.duplicates = yaml_to_json(request.body)
    else:
        request.body, request.duplicates = await asyncio.to_thread(yaml_to_json, request.body)


def _is_json(body: bytes) -> bool:
    if body.lstrip()[:1] != b"{":
        return False
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False  # flow style that is not JSON
    return True


def yaml_to_json(body: bytes) -> tuple[bytes, list[str]]:
    """The same value as JSON, and the paths of keys that were given more than once.

    Raises:
        BadRequest: not YAML, more than one document, nested too deep, too long, or too much by aliases.
    """
    try:
        text = body.decode("utf-8")
        duplicates = _scan_yaml(text)
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 - derived from the safe loader
        check_size(value)
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS), duplicates
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, RecursionError) as error:
        raise BadRequest(f"the body is not valid YAML: {error}") from error


class _Loader(yaml.CSafeLoader):
    """The safe loader without dates (Kubernetes' times are strings) and without numbers that JSON cannot say."""

    def construct_finite(self, node: yaml.ScalarNode) -> float:
        value = self.construct_yaml_float(node)
        if not math.isfinite(value):
            raise ValueError(f"{node.value[:40]!r} is no finite number")
        return float(value)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_finite)


class _Level:
    """An open collection while a YAML text is scanned."""

    def __init__(self, path: str, *, mapping: bool) -> None:
        self.path = path
        self.mapping = mapping
        self.keys: set[str] = set()
        self.key: str | None = None
        self.at_key = mapping
        self.position = -1

    def enter(self, event: yaml.NodeEvent, duplicates: list[str]) -> str:
        """Take the next node of this collection; its path."""
        if not self.mapping:
            self.position += 1
            return f"{self.path}[{self.position}]"
        if self.at_key:
            self.at_key = False
            self.key = event.value if isinstance(event, yaml.ScalarEvent) else ""
            where = f"{self.path}.{self.key}" if self.path else self.key
            if self.key in self.keys and where not in duplicates:
                duplicates.append(where)
            if self.key:
                self.keys.add(self.key)
            return where
        self.at_key = True
        return f"{self.path}.{self.key}" if self.path else self.key or ""


def _scan_yaml(text: str) -> list[str]:
    """Paths of duplicate keys. Refuses deep and long texts before the composer, which recurses in C, and the slow constructor
    see them."""
    levels: list[_Level] = []
    duplicates: list[str] = []
    nodes = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionEndEvent):
            levels.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        nodes += 1
        if nodes > YAML_NODE_LIMIT:
            raise BadRequest(f"the YAML body holds more than {YAML_NODE_LIMIT} keys and values: send it as JSON")
        path = levels[-1].enter(event, duplicates) if levels else ""
        if isinstance(event, yaml.CollectionStartEvent):
            if len(levels) == DEPTH_LIMIT:
                raise BadRequest(f"the body is nested more than {DEPTH_LIMIT} levels deep")
            levels.append(_Level(path, mapping=isinstance(event, yaml.MappingStartEvent)))
    return duplicates


def check_size(value: Any) -> None:
    """Refuse values nested too deep or, through shared parts, too large. Does not recurse."""
    level: list[Any] = [value]
    seen = 0
    for _ in range(DEPTH_LIMIT + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        seen += len(below)
        if seen > NODE_LIMIT:
            raise BadRequest(f"the body holds more than {NODE_LIMIT} values")
        if not below:
            return
        level = below
    raise BadRequest(f"the body is nested more than {DEPTH_LIMIT} levels deep")


def decode_body(request: Request, *, protobuf_allowed: bool = True) -> Any:
    """The body by its Content-Type; JSON where there is none. YAML has become JSON before (`read_yaml`).

    Raises:
        UnsupportedMediaType, BadRequest.
    """
    kind = request.content_type
    if kind in ("", JSON, "text/json") or kind in YAML_TYPES:
        return decode_json(request.body)
    if kind == PROTOBUF and protobuf_allowed:
        return protobuf.decode(request.body)
    raise unsupported([JSON, YAML, PROTOBUF] if protobuf_allowed else [JSON, YAML])


def unsupported(accepted: Sequence[str]) -> UnsupportedMediaType:
    """415 in Kubernetes' words."""
    return UnsupportedMediaType(
        f"the body of the request was in an unknown format - accepted media types include: {', '.join(accepted)}"
    )


def duplicate_fields(request: Request) -> list[str]:
    """Paths of object keys that a JSON or YAML body gives more than once; the values of the last one count.

    Reads the text a second time, with a hook that is called per object: cheap enough for every write that wants to know.
    """
    if request.duplicates is not None:
        return request.duplicates
    body = request.body
    if body.lstrip()[:1] != b"{":
        return []
    found = False

    def notice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal found
        result = dict(pairs)
        if len(result) != len(pairs):
            found = True
        return result

    paths: list[str] = []
    try:
        json.loads(body, object_pairs_hook=notice)
        if found:
            _collect_duplicates(json.loads(body, object_pairs_hook=_Pairs), "", paths)
    except (ValueError, RecursionError):
        return []  # not JSON, or too deep: whoever decodes the body says so
    return paths


class _Pairs(list[tuple[str, Any]]):
    """An object with its duplicate keys kept."""


def _collect_duplicates(node: Any, path: str, found: list[str]) -> None:
    if isinstance(node, _Pairs):
        seen: set[str] = set()
        for name, value in node:
            where = f"{path}.{name}" if path else name
            if name in seen and where not in found:
                found.append(where)
            seen.add(name)
            _collect_duplicates(value, where, found)
    elif isinstance(node, list):
        for position, value in enumerate(node):
            _collect_duplicates(value, f"{path}[{position}]", found)


# --- negotiation ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the client wants back.

    Attributes:
        media: application/json or application/yaml.
        shape: "" for the objects themselves, or Table, PartialObjectMetadata, PartialObjectMetadataList.
        version: of meta.k8s.io for the other shapes.
    """

    media: str = JSON
    shape: str = ""
    version: str = "v1"


_SHAPES = frozenset({"Table", "PartialObjectMetadata", "PartialObjectMetadataList"})


def clauses(accept: str) -> list[tuple[str, dict[str, str]]]:
    """Media types of an Accept header with their parameters, best first."""
    parsed: list[tuple[float, int, str, dict[str, str]]] = []
    for position, clause in enumerate(accept.split(",")[:50]):
        media, *rest = (part.strip() for part in clause.split(";"))
        parameters = {name.strip().lower(): value.strip().strip('"') for name, _, value in (part.partition("=") for part in rest)}
        try:
            weight = float(parameters.pop("q", "1"))
        except ValueError:
            weight = 1.0
        if media and weight > 0:
            parsed.append((-weight, position, media.lower(), parameters))
    return [(media, parameters) for _, _, media, parameters in sorted(parsed, key=lambda item: item[:2])]


def negotiate(request: Request, *, shapes: bool = True) -> Accepted:
    """Choose the form of the answer.

    Raises:
        NotAcceptable: nothing that the client wants can be made.
    """
    accept = request.headers.get("accept", "")
    if not accept.strip():
        return Accepted()
    for media, parameters in clauses(accept):
        if media in (JSON, "*/*", "application/*"):
            chosen = JSON
        elif media in (YAML, "application/x-yaml", "text/yaml"):
            chosen = YAML
        else:
            continue
        shape = parameters.get("as", "")
        if not shape:
            return Accepted(chosen)
        version = parameters.get("v", "v1")
        if shapes and shape in _SHAPES and parameters.get("g", "meta.k8s.io") == "meta.k8s.io" and version in ("v1", "v1beta1"):
            return Accepted(chosen, shape, version)
    raise NotAcceptable(f"only the following media types are accepted: {JSON}, {YAML}")


def encode(value: Any, accepted: Accepted | None = None) -> tuple[bytes, str]:
    """Body and content type of a decoded value."""
    if accepted is not None and accepted.media == YAML:
        text = yaml.dump(value, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
        return text.encode(), YAML
    return orjson.dumps(value) + b"\n", JSON


def respond(value: Any, accepted: Accepted | None = None, *, status: int = 200, warnings: Iterable[str] = ()) -> Response:
    """A whole JSON or YAML answer."""
    body, media = encode(value, accepted)
    return Response(status, body, media, warning_headers(warnings))


def warning_headers(warnings: Iterable[str]) -> list[tuple[str, str]]:
    """`Warning: 299 - "..."` (RFC 7234, 5.5), one header each."""
    headers = []
    for warning in list(dict.fromkeys(warnings))[:50]:
        text = warning.replace("\\", "\\\\").replace('"', '\\"').encode("ascii", "replace").decode()
        headers.append(("warning", f'299 - "{"".join(c if c.isprintable() else " " for c in text)[:1000]}"'))
    return headers


# --- Status --------------------------------------------------------------------------------------------------------------


def status_of(error: SwarmTaskError) -> dict[str, Any]:
    """The Kubernetes Status that says what the exception says."""
    details = {name: value for name, value in error.details.items() if value not in ("", None)}
    if error.causes:
        details["causes"] = [
            {"reason": cause.reason, "message": cause.message, **({"field": cause.field} if cause.field else {})}
            for cause in error.causes
        ]
    if error.retry_after_s is not None:
        details["retryAfterSeconds"] = error.retry_after_s
    status: dict[str, Any] = {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": error.message, "reason": error.reason,
    }  # fmt: skip
    if details:
        status["details"] = details
    status["code"] = error.code
    return status


def error_response(error: SwarmTaskError) -> Response:
    """A Status as a whole answer; always JSON, as clients read errors before they look at the type."""
    headers = [("retry-after", str(error.retry_after_s))] if error.retry_after_s is not None else []
    if error.code == 401:
        headers.append(("www-authenticate", 'Bearer realm="swarmtask"'))
    return Response(error.code, orjson.dumps(status_of(error)) + b"\n", JSON, headers)
