"""How a command reaches the API: which settings, which kubeconfig, which namespace, one client.

Called by every command that talks to the control plane. Order of kubeconfigs: `--kubeconfig`, the data directory's, $KUBECONFIG.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from swarmtask import wiring
from swarmtask.cli import datadir
from swarmtask.clock import Clock, SystemClock
from swarmtask.errors import ConfigurationError, NotFound
from swarmtask.kube import ObjectApi
from swarmtask.settings import Settings, load_settings


@dataclass(frozen=True, slots=True)
class Target:
    """What the connection options of a command said; None means not given."""

    data_dir: Path | None = None
    kubeconfig: Path | None = None
    context: str | None = None
    namespace: str | None = None

    def settings(self) -> Settings:
        """Settings from $SWARMTASK_CONFIG, the environment and the options."""
        config = os.environ.get("SWARMTASK_CONFIG")
        return load_settings(Path(config) if config else None, data_dir=self.data_dir)


@dataclass(frozen=True, slots=True)
class Session:
    """An open connection and what belongs to it."""

    api: ObjectApi
    settings: Settings
    clock: Clock
    kubeconfig: Path
    namespace: str
    server: str

    async def cluster_id(self) -> str:
        return await wiring.cluster_id(self.api)


def find_kubeconfig(settings: Settings, explicit: Path | None) -> Path:
    """The kubeconfig file to use.

    Raises:
        NotFound: there is none; says how to get one.
    """
    if explicit is not None:
        if not explicit.expanduser().is_file():
            raise NotFound(f"there is no kubeconfig {explicit}")
        return explicit.expanduser().absolute()
    own = datadir.kubeconfig_path(settings.data_dir.expanduser().absolute())
    if own.is_file():
        return own
    for part in os.environ.get("KUBECONFIG", "").split(os.pathsep):
        if part and Path(part).is_file():
            return Path(part).absolute()
    raise NotFound(
        f"there is no control plane yet: {own} does not exist and KUBECONFIG names no file; "
        "start one with `swarmtask up`, or name its directory with --data-dir"
    )


@dataclass(frozen=True, slots=True)
class ContextInfo:
    """What a kubeconfig says of one context."""

    server: str
    namespace: str


def read_context(kubeconfig: Path, context: str | None) -> ContextInfo:
    """Server and namespace of the context that is asked for, or of the current one.

    Raises:
        ConfigurationError: the file is no kubeconfig, or has no such context.
    """
    try:
        document = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"cannot read the kubeconfig {kubeconfig}: {error}") from error
    if not isinstance(document, dict):
        raise ConfigurationError(f"{kubeconfig} is not a kubeconfig")
    name = context or document.get("current-context") or ""
    entry = _named(document, "contexts", "context", name)
    if entry is None:
        known = ", ".join(str(item.get("name")) for item in _items(document, "contexts"))
        raise ConfigurationError(f"{kubeconfig} has no context {name!r}; it has: {known or 'none'}")
    cluster = _named(document, "clusters", "cluster", str(entry.get("cluster", ""))) or {}
    return ContextInfo(server=str(cluster.get("server", "")), namespace=str(entry.get("namespace") or "default"))


def _named(document: dict[str, Any], section: str, key: str, name: str) -> dict[str, Any] | None:
    for item in _items(document, section):
        if item.get("name") == name and isinstance(item.get(key), dict):
            return dict(item[key])
    return None


def _items(document: dict[str, Any], section: str) -> list[dict[str, Any]]:
    """The entries of a section; whatever else stands there counts for nothing."""
    entries = document.get(section)
    return [item for item in entries if isinstance(item, dict)] if isinstance(entries, list) else []


@contextlib.asynccontextmanager
async def connect(target: Target) -> AsyncIterator[Session]:
    """Open a client for the target and close it again.

    Raises:
        NotFound: there is no kubeconfig. ConfigurationError: it is not usable.
    """
    settings = target.settings()
    kubeconfig = find_kubeconfig(settings, target.kubeconfig)
    info = read_context(kubeconfig, target.context)
    api = await wiring.kube_client(kubeconfig, target.context, for_person=True)
    try:
        yield Session(
            api=api, settings=settings, clock=SystemClock(), kubeconfig=kubeconfig,
            namespace=target.namespace or info.namespace, server=info.server,
        )  # fmt: skip
    finally:
        await api.aclose()
