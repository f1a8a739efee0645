"""What Secrets of the types that Kubernetes knows must hold.

Called by admission. Pure; what is wrong is told without the values. Other types hold what they like.
Source: Kubernetes documentation, "Secrets", "Types of Secret".
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from swarmtask.apiserver.faults import bad_value, required
from swarmtask.errors import Cause

Object = Mapping[str, Any]
ACCOUNT = "kubernetes.io/service-account.name"
_HIDDEN = "<secret contents redacted>"


def typed_causes(obj: Object) -> list[Cause]:
    """What a Secret lacks for its type; its `data` is base64 already."""
    rule = _RULES.get(obj.get("type", ""))
    return rule(obj) if rule is not None else []


def _present(*keys: str) -> Callable[[Object], list[Cause]]:
    def rule(obj: Object) -> list[Cause]:
        return [required(f"data[{key}]") for key in keys if key not in (obj.get("data") or {})]

    return rule


def _json(key: str) -> Callable[[Object], list[Cause]]:
    def rule(obj: Object) -> list[Cause]:
        value = (obj.get("data") or {}).get(key)
        if value is None:
            return [required(f"data[{key}]")]
        try:
            orjson.loads(base64.b64decode(value))
        except (binascii.Error, ValueError):
            return [bad_value(f"data[{key}]", _HIDDEN, "is no JSON")]
        return []

    return rule


def _private_key(obj: Object) -> list[Cause]:
    return [] if (obj.get("data") or {}).get("ssh-privatekey") else [required("data[ssh-privatekey]")]


def _user_or_password(obj: Object) -> list[Cause]:
    data = obj.get("data") or {}
    return [] if "username" in data or "password" in data else [required("data[username]"), required("data[password]")]


def _of_an_account(obj: Object) -> list[Cause]:
    named = (obj["metadata"].get("annotations") or {}).get(ACCOUNT)
    return [] if named else [required(f"metadata.annotations[{ACCOUNT}]")]


_RULES: Mapping[str, Callable[[Object], list[Cause]]] = {
    "kubernetes.io/service-account-token": _of_an_account,
    "kubernetes.io/dockercfg": _json(".dockercfg"),
    "kubernetes.io/dockerconfigjson": _json(".dockerconfigjson"),
    "kubernetes.io/basic-auth": _user_or_password,
    "kubernetes.io/ssh-auth": _private_key,
    "kubernetes.io/tls": _present("tls.crt", "tls.key"),
}
