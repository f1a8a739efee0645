"""Who a request comes from: users, their groups, and the names that mean something to the server.

Called by everything that authenticates or authorises. Values only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from swarmtask.resources.enrolment import NODE_GROUP, NODE_USER_PREFIX

MASTERS = "system:masters"
"""May do everything; no role can take that away."""
AUTHENTICATED = "system:authenticated"
ANONYMOUS = "system:anonymous"
OPERATORS = "system:swarmtask:operators"
NODES = NODE_GROUP
NODE_PREFIX = NODE_USER_PREFIX
SERVICE_ACCOUNTS = "system:serviceaccounts"
SERVICE_ACCOUNT_PREFIX = "system:serviceaccount:"


@dataclass(frozen=True, slots=True)
class User:
    """Who a request comes from. Compared by name and groups.

    Attributes:
        extra: what is told about the credential beyond that, for whoami and the audit log.
    """

    name: str
    groups: tuple[str, ...] = ()
    uid: str = field(default="", compare=False)
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False, hash=False)

    @property
    def is_master(self) -> bool:
        return MASTERS in self.groups

    @property
    def node(self) -> str:
        """The SwarmNode that this is the agent of; empty for everybody else."""
        return self.name.removeprefix(NODE_PREFIX) if NODES in self.groups and self.name.startswith(NODE_PREFIX) else ""

    def as_info(self) -> dict[str, Any]:
        """A `UserInfo`."""
        info: dict[str, Any] = {"username": self.name, "uid": self.uid or self.name, "groups": list(self.groups)}
        if self.extra:
            info["extra"] = {key: list(values) for key, values in self.extra.items()}
        return info


ADMINISTRATOR = User("swarmtask-admin", (MASTERS, AUTHENTICATED))
OPERATOR = User("system:swarmtask:operator", (OPERATORS, AUTHENTICATED))


def service_account_name(namespace: str, name: str) -> str:
    """The user name of a ServiceAccount."""
    return f"{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}"


def service_account_of(user: str) -> tuple[str, str] | None:
    """(namespace, name) of a ServiceAccount's user name; None for others."""
    if not user.startswith(SERVICE_ACCOUNT_PREFIX):
        return None
    namespace, colon, name = user.removeprefix(SERVICE_ACCOUNT_PREFIX).partition(":")
    return (namespace, name) if namespace and colon and name else None


def service_account(namespace: str, name: str, uid: str, extra: Mapping[str, tuple[str, ...]] | None = None) -> User:
    """The user that a ServiceAccount is."""
    groups = (SERVICE_ACCOUNTS, f"{SERVICE_ACCOUNTS}:{namespace}", AUTHENTICATED)
    return User(service_account_name(namespace, name), groups, uid, extra or {})
