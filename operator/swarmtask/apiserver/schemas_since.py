"""Since which version the schemas of a definition are what they are, kept with the definition itself, in an annotation.

Called by `objects.py` for writes, by `definitions.py` for what is stored, and by `restore.py`. Without it every start
would take the last write of a definition, were it a label, for a change of its schemas, and look at each older object again.

The annotation names a version and the generation in which it was true: who changes the schemas and not the annotation, as an older
server would, changes the generation. Where it is missing or not of this generation, the version of the definition itself stands,
which is never too early. Only the server writes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

ANNOTATION: Final = "swarmtask.io/schemas-since"
_NOTE: Final = re.compile(r"(\d{1,18})@(\d{1,18})", re.ASCII)


def since(crd: Mapping[str, Any]) -> int:
    """The resourceVersion with which a stored definition got its schemas, or a later one."""
    metadata = crd["metadata"]
    own = int(metadata["resourceVersion"])
    match = _NOTE.fullmatch(_annotations(metadata).get(ANNOTATION, ""))
    if match is None or int(match[2]) != metadata.get("generation"):
        return own
    return min(int(match[1]), own)


def carry(crd: dict[str, Any], old: Mapping[str, Any] | None) -> None:
    """Give a definition that is written the annotation that is stored, in place: what the writer says of it does not count."""
    _set(crd["metadata"], _annotations(old["metadata"]).get(ANNOTATION) if old is not None else None)


def note(crd: dict[str, Any], old: Mapping[str, Any]) -> None:
    """Say in a definition that takes the place of the stored `old`, in place, since when its schemas are what they are."""
    same = _schemas(crd) == _schemas(old)
    _set(crd["metadata"], f"{since(old)}@{crd['metadata'].get('generation')}" if same else None)


def forget(obj: dict[str, Any]) -> None:
    """Of an object that gets another resourceVersion, in place: what a definition says of versions is not true any more."""
    if obj.get("kind") == "CustomResourceDefinition" and str(obj.get("apiVersion")).startswith("apiextensions.k8s.io/"):
        _set(obj["metadata"], None)


def _annotations(metadata: Mapping[str, Any]) -> Mapping[str, str]:
    return metadata.get("annotations") or {}


def _set(metadata: dict[str, Any], text: str | None) -> None:
    annotations = _annotations(metadata)
    if annotations.get(ANNOTATION) == text:
        return
    rest = {name: value for name, value in annotations.items() if name != ANNOTATION}
    if text is not None:
        rest[ANNOTATION] = text
    if rest:
        metadata["annotations"] = rest
    else:
        del metadata["annotations"]


def _schemas(crd: Mapping[str, Any]) -> bytes:
    """Those of every version; 1, 1.0 and true are three values."""
    return orjson.dumps(
        {version["name"]: version.get("schema") for version in crd["spec"]["versions"]}, option=orjson.OPT_SORT_KEYS
    )
