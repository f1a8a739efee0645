"""Judges a value by the structural schema of a generated CRD, as an API server would: the part of OpenAPI v3 that our CRDs use.

Used by the tests of the lifecycle, so that no status is ever written that a real cluster would refuse. Raises on a keyword that it
does not know rather than passing it by.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

CRD = Path(__file__).parents[2] / "manifests" / "crds" / "swarmtasks.swarmtask.io.yaml"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "array": list,
}  # fmt: skip
_ANNOTATIONS = {
    "description", "default", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-int-or-string", "required",
    "properties", "additionalProperties", "items", "anyOf",
}  # fmt: skip


def task_schema() -> dict[str, Any]:
    """The schema of SwarmTask from the committed manifest."""
    manifest = yaml.safe_load(CRD.read_text(encoding="utf-8"))
    schema: dict[str, Any] = manifest["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def problems(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """Everything about the value that the schema does not allow, each with its path."""
    found: list[str] = []
    for keyword, wanted in schema.items():
        if keyword not in _ANNOTATIONS and not _allowed(keyword, wanted, value):
            found.append(f"{path or '.'}: {value!r} breaks {keyword}: {wanted!r}")
    if schema.get("x-kubernetes-int-or-string") and not isinstance(value, int | str):
        found.append(f"{path}: {value!r} is neither an integer nor a string")
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties")
        found += [f"{path}.{name}: missing" for name in schema.get("required", []) if name not in value]
        for name, child in value.items():
            if name in properties:
                found += problems(child, properties[name], f"{path}.{name}")
            elif others is not None:
                found += problems(child, others, f"{path}.{name}")
            elif properties:
                found.append(f"{path}.{name}: unknown field")
    if isinstance(value, list):
        for index, child in enumerate(value):
            found += problems(child, schema["items"], f"{path}[{index}]")
        keys = schema.get("x-kubernetes-list-map-keys")
        if keys and len({tuple(child.get(key) for key in keys) for child in value}) != len(value):
            found.append(f"{path}: two entries with the same {keys}")
    return found


def _allowed(keyword: str, wanted: Any, value: Any) -> bool:
    match keyword:
        case "type":
            return isinstance(value, _TYPES[wanted]) and not (isinstance(value, bool) and wanted != "boolean")
        case "enum":
            return value in wanted
        case "pattern":
            return not isinstance(value, str) or re.search(wanted, value) is not None
        case "format":
            return wanted != "date-time" or datetime.fromisoformat(value).tzinfo is not None
        case "minimum":
            return bool(value >= wanted)
        case "maximum":
            return bool(value <= wanted)
        case "minLength":
            return len(value) >= wanted
        case "maxLength":
            return not isinstance(value, str) or len(value) <= wanted
        case "minItems" | "minProperties":
            return len(value) >= wanted
        case "maxItems" | "maxProperties":
            return len(value) <= wanted
    raise NotImplementedError(f"the validator does not know the keyword {keyword}")
