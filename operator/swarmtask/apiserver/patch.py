"""The four ways of PATCH, apart from server-side apply: JSON patch, merge patch, strategic merge patch.

Called by the patch route with the stored object and the body; returns the patched object, nothing is stored or validated here.
Sources: RFC 6902, RFC 7396, and Kubernetes' documentation of strategic merge patch.
"""

from __future__ import annotations

import re
from typing import Any, Final

import jsonpatch
import jsonpointer
import orjson

from swarmtask.apiserver.bodies import check_size, may_be_too_large
from swarmtask.apiserver.fieldset import same
from swarmtask.apiserver.strategic import strategic_merge
from swarmtask.apiserver.types import ResourceType
from swarmtask.apiserver.wire import APPLY_PATCH
from swarmtask.errors import BadRequest, Cause, Invalid, RequestEntityTooLarge, UnsupportedMediaType

JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH: Final = "application/strategic-merge-patch+json"

MAX_OPERATIONS: Final = 10_000
MAX_COPIED_BYTES: Final = 3 * 1024 * 1024
MAX_DEPTH: Final = 200
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")


def patch_types(rt: ResourceType) -> tuple[str, ...]:
    """Content types of PATCH that a type takes, as errors and OpenAPI name them."""
    return (JSON_PATCH, MERGE_PATCH, APPLY_PATCH) if rt.custom else (JSON_PATCH, MERGE_PATCH, STRATEGIC_MERGE_PATCH, APPLY_PATCH)


def apply_patch(rt: ResourceType, current: dict[str, Any], content_type: str, body: bytes) -> dict[str, Any]:
    """The patched object; `current` stays as it is.

    Raises:
        UnsupportedMediaType: the type does not take this kind of patch.
        BadRequest: the body cannot be read.
        Invalid: the patch can be read but does not fit the object (a failed `test`, a path that does not exist).
        RequestEntityTooLarge: more operations, or more copying, than a patch may ask for.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == JSON_PATCH:
        return _json_patch(current, _decode(body))
    if media_type == MERGE_PATCH:
        return _object(merge(current, _decode_object(body)))
    if media_type == STRATEGIC_MERGE_PATCH and not rt.custom:
        return _object(strategic_merge(rt.schema or {}, current, _decode_object(body)))
    raise UnsupportedMediaType(
        "the body of the request was in an unknown format - accepted media types include: " + ", ".join(patch_types(rt))
    )


def merge(target: Any, patch: Any) -> Any:
    """RFC 7396. Parts that do not change are shared with `target`, never changed in place."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def check_depth(value: Any, limit: int = MAX_DEPTH) -> None:
    """Refuse what is nested so deeply that walking it could exhaust the stack. Raises BadRequest."""
    level = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, (dict, list))
        ] if level and isinstance(level[0], (dict, list)) else []  # fmt: skip
        if not level:
            return
    raise BadRequest(f"the body is nested deeper than {limit} levels")


def _decode(body: bytes) -> Any:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"error decoding patch: {error}") from None
    check_depth(value)
    if may_be_too_large(body):
        check_size(value)
    return value


def _decode_object(body: bytes) -> dict[str, Any]:
    value = _decode(body)
    if not isinstance(value, dict):
        raise BadRequest("error decoding patch: a merge patch is a JSON object")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Invalid("the server rejected our request due to an error in our request: the patch leaves no object")
    return value


def _json_patch(current: dict[str, Any], operations: Any) -> dict[str, Any]:
    if not isinstance(operations, list) or not all(isinstance(item, dict) for item in operations):
        raise BadRequest("error decoding patch: a JSON patch is a list of operations")
    if len(operations) > MAX_OPERATIONS:
        raise RequestEntityTooLarge(f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(operations)}")
    document: Any = orjson.loads(orjson.dumps(current))
    copied = 0
    for index, operation in enumerate(operations):
        try:
            if operation.get("op") == "test":
                _test(index, operation, document)
                continue
            if operation.get("op") == "copy":
                source = _at(document, operation["from"])
                copied += len(orjson.dumps(source))
                if copied > MAX_COPIED_BYTES:
                    raise RequestEntityTooLarge(f"the patch copies more than {MAX_COPIED_BYTES} bytes")
            document = jsonpatch.JsonPatch([operation]).apply(document, in_place=True)
        except jsonpatch.InvalidJsonPatch as error:
            raise BadRequest(f"error decoding patch: operation {index}: {error}") from None
        except jsonpointer.JsonPointerException:
            # The library's own words may quote the whole object, a Secret's values included.
            raise _rejected(index, operation, "a path does not exist in the object, or does not fit it") from None
        except jsonpatch.JsonPatchException as error:
            raise _rejected(index, operation, str(error)) from None
        except (TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
            raise _rejected(index, operation, f"the path does not fit the object ({error})") from None
        except RecursionError:
            raise _rejected(index, operation, "the object is nested too deeply") from None
    check_depth(document)
    return _object(document)


def _test(index: int, operation: dict[str, Any], document: Any) -> None:
    """RFC 6902, 4.6: of the same type and equal, numbers by their value. The library takes Python's word, for which 1 is true.

    Raises:
        Invalid: it is another value. BadRequest: the operation says no value.
    """
    if "value" not in operation or not isinstance(operation.get("path"), str):
        raise BadRequest(f"error decoding patch: operation {index}: a test has a path and a value")
    if not same(_at(document, operation["path"]), operation["value"]):
        raise _rejected(index, operation, "testing value failed: the object differs from what the patch expects")


def _at(document: Any, pointer: str) -> Any:
    """What a pointer (RFC 6901) names; the library's own would also find the characters of a text.

    Raises:
        JsonPointerException: there is nothing.
    """
    found = document
    for part in jsonpointer.JsonPointer(pointer).parts:
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif isinstance(found, list) and _INDEX.fullmatch(part) and int(part) < len(found):
            found = found[int(part)]
        else:
            raise jsonpointer.JsonPointerException(pointer)
    return found


def _rejected(index: int, operation: dict[str, Any], why: str) -> Invalid:
    path = str(operation.get("path", ""))
    text = f"operation {index} ({operation.get('op')} {path}): {why}"
    return Invalid(
        f"the server rejected our request due to an error in our request: {text}",
        causes=[Cause(path, "FieldValueInvalid", text)],
    )
