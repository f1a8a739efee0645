"""Kubeconfigs for others: the cluster of one that is there, with another user.

Called by `token create`. Everything is embedded, so that the file can be carried to another machine.
"""

from __future__ import annotations

import base64
import ipaddress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from swarmtask.cli import datadir, terminal
from swarmtask.errors import ConfigurationError


def with_token(kubeconfig: Path, context: str | None, user: str, token: str, namespace: str) -> dict[str, Any]:
    """A kubeconfig for `user`, reaching the cluster of that file's context.

    Raises:
        ConfigurationError: the file names no such cluster, or its authority cannot be read.
    """
    document = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
    try:
        wanted = context or document["current-context"]
        name = next(item["context"]["cluster"] for item in document["contexts"] if item["name"] == wanted)
        cluster = dict(next(item["cluster"] for item in document["clusters"] if item["name"] == name))
    except (KeyError, TypeError, StopIteration) as error:
        raise ConfigurationError(f"{kubeconfig} names no cluster that could be written into another kubeconfig") from error
    authority = cluster.pop("certificate-authority", None)
    if authority is not None:
        try:
            cluster["certificate-authority-data"] = base64.b64encode((kubeconfig.parent / authority).read_bytes()).decode()
        except OSError as error:
            raise ConfigurationError(f"cannot read the authority {authority} of {kubeconfig}: {error.strerror}") from error
    if _is_loopback(str(cluster.get("server", ""))):
        terminal.warn(
            f"the server in it is {cluster.get('server')}, which only this machine reaches: for other machines start the control "
            "plane with --listen ADDRESS:PORT"
        )
    return {
        "apiVersion": "v1", "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": user, "namespace": namespace}}],
        "current-context": name,
    }  # fmt: skip


def require_writable(path: Path) -> None:
    """Raises ConfigurationError when `write` could not write there: better before the token is made than after."""
    try:
        datadir.probe_writable(path)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}; name another file with --write-kubeconfig") from error


def write(path: Path, document: dict[str, Any]) -> None:
    """Write it, readable by its owner alone."""
    datadir.write_atomically(path, yaml.safe_dump(document, sort_keys=False).encode())


def _is_loopback(server: str) -> bool:
    host = urlsplit(server).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
