"""HTTP in and out: requests with decoded parameters and bodies, content negotiation, Status objects.

Called by the application and its handlers. Bodies come in as JSON, YAML or Kubernetes' protobuf envelope and leave here as plain
dicts that are not too deep and hold nothing that JSON cannot say. Decides nothing about objects.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

import orjson
import yaml

from swarmtask.apiserver import protobuf
from swarmtask.apiserver.bodies import check_size, duplicate_paths, may_be_too_large, yaml_to_json
from swarmtask.apiserver.schema_checks import MAX_CAUSES, cut
from swarmtask.clock import parse_time
from swarmtask.errors import BadRequest, Cause, Invalid, NotAcceptable, SwarmTaskError, UnsupportedMediaType

JSON = "application/json"
YAML = "application/yaml"
APPLY_PATCH = "application/apply-patch+yaml"
YAML_TYPES = frozenset({YAML, "application/x-yaml", "text/yaml"})
PROTOBUF = "application/vnd.kubernetes.protobuf"
WRITTEN_IN_YAML = YAML_TYPES | {APPLY_PATCH}
"""Media types of bodies that may be YAML."""
YAML_INLINE_BYTES = 4096
"""A longer YAML body is read in a thread, so that the others' requests go on meanwhile."""


@dataclass(slots=True)
class Request:
    """One HTTP request, its body already read.

    Attributes:
        body: as it came, but JSON where it came as YAML.
        client: authenticated name of the sender.
        exempt: bounds per client do not hold for the sender.
        guard: looks at what the sender writes; None for masters. A `WriteGuard`, handed through.
        duplicates: paths of the keys that a YAML body gave more than once; None where the body was no YAML.
        content_type: the media type of the body, without parameters; empty where there is none.
        named: name of the object in the body of a create, for the audit log; its path has none.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""
    duplicates: list[str] | None = None
    client: str = ""
    guard: Any = None
    exempt: bool = False
    named: str = ""
    content_type: str = field(init=False)

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

    def __post_init__(self) -> None:
        self.content_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()

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
        if not agent.isprintable():
            agent = "".join(character for character in agent if character.isprintable())
        return agent[:128] or "unknown"

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
    if not raw:
        return {}
    try:
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=200)
    except ValueError as error:
        raise BadRequest(f"the query cannot be read: {error}") from error
    result: dict[str, str] = {}
    for name, value in pairs:
        result.setdefault(name, value)
    return result


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by their names in lower case; one that comes more than once is joined with commas."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


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
    if may_be_too_large(body):
        check_size(value)
    return value


async def read_yaml(request: Request) -> None:
    """Turn a YAML body into the JSON that the handlers read. Other bodies stay as they are.

    Raises:
        BadRequest: as `yaml_to_json`.
    """
    if request.content_type not in WRITTEN_IN_YAML or _is_json(request.body):
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


def duplicate_fields(request: Request, value: Any = None) -> list[str]:
    """Paths of object keys that a JSON or YAML body gives more than once; the values of the last one count.

    Args:
        value: the body as it was decoded, where the caller has it; nothing of it has been changed.
    """
    return request.duplicates if request.duplicates is not None else duplicate_paths(request.body, value)


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


_AS_JSON = Accepted()
_PLAIN = frozenset({"", "*/*", JSON})
"""Accept headers of most clients: the objects themselves, as JSON."""
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
    if accept in _PLAIN:
        return _AS_JSON
    if not accept.strip():
        return _AS_JSON
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


MESSAGE_LIMIT = 32_768
CAUSE_LIMIT = 4_096
"""Characters of the message of a Status, and of each of its causes. What is longer is cut: it quotes what was sent."""


def status_of(error: SwarmTaskError) -> dict[str, Any]:
    """The Kubernetes Status that says what the exception says, with `MAX_CAUSES` causes at most and one that counts the others: an
    answer is short, whatever was wrong with how much."""
    details = {name: value for name, value in error.details.items() if value not in ("", None)}
    if error.causes:
        causes = error.causes[:MAX_CAUSES]
        details["causes"] = [
            {"reason": cause.reason, "message": cut(cause.message, CAUSE_LIMIT)}
            | ({"field": cut(cause.field, CAUSE_LIMIT)} if cause.field else {})
            for cause in causes
        ]
        if len(error.causes) > len(causes):
            more = f"and {len(error.causes) - len(causes)} more"
            details["causes"].append({"reason": causes[0].reason, "message": more})
    if error.retry_after_s is not None:
        details["retryAfterSeconds"] = error.retry_after_s
    status: dict[str, Any] = {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": cut(error.message, MESSAGE_LIMIT), "reason": error.reason,
    }  # fmt: skip
    if details or error.code in (404, 405):  # there also when empty: kubectl looks into those of a path that is not served
        status["details"] = details
    status["code"] = error.code
    return status


def error_response(error: SwarmTaskError) -> Response:
    """A Status as a whole answer; always JSON, as clients read errors before they look at the type."""
    headers = [("retry-after", str(error.retry_after_s))] if error.retry_after_s is not None else []
    if error.code == 401:
        headers.append(("www-authenticate", 'Bearer realm="swarmtask"'))
    return Response(error.code, orjson.dumps(status_of(error)) + b"\n", JSON, headers)


def since_of(request: Request, now: datetime) -> datetime | None:
    """From when on output is asked for, by `sinceTime` or `sinceSeconds`. Raises BadRequest: both, or what is no time."""
    text, seconds = request.query.get("sinceTime", ""), request.number("sinceSeconds")
    if text and seconds is not None:
        raise BadRequest("at most one of sinceTime and sinceSeconds may be given")
    try:
        if text:
            return parse_time(text)
        return now - timedelta(seconds=seconds) if seconds is not None else None
    except (ValueError, OverflowError) as error:
        raise BadRequest(
            f"sinceTime or sinceSeconds is no time (RFC 3339, for example 2026-01-31T12:00:00Z, or seconds): {error}"
        ) from error
