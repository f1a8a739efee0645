"""`swarmtask token` and `swarmtask secrets`: who may come in, and the key of what is stored encrypted.

A token is made here and shown once; the API gets its SHA-256. Its roles are bindings that belong to it, so that revoking it, which
is deleting it, takes them away too.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from swarmtask import wiring
from swarmtask.cli import datadir, kubeconfigs, tables, terminal
from swarmtask.cli.command import command
from swarmtask.cli.exits import ExitCode, combined, exit_code_of
from swarmtask.cli.options import AnswerOutput, ClientDataDir, Context, DataDir, Kubeconfig, Namespace
from swarmtask.cli.session import Session, Target, connect
from swarmtask.cli.tables import value_at
from swarmtask.clock import format_time, parse_time
from swarmtask.errors import SwarmTaskError
from swarmtask.kube import Object
from swarmtask.resources.kinds import ACCESS_TOKEN, CLUSTER_ROLE_BINDING, ROLE_BINDING, SECRETS_KEY_ROTATION, Kind
from swarmtask.settings import load_settings

TOKEN_BYTES = 32
_STOPPING_S = 2.0
_RBAC = "rbac.authorization.k8s.io"
_NODE_VIEWER = "system:swarmtask:node-viewer"
_DURATION = re.compile(r"([1-9][0-9]{0,6})(m|h|d)")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


class Role(StrEnum):
    """What the holder of a token may do."""

    VIEWER = "viewer"
    EDITOR = "editor"
    ADMIN = "admin"
    CLUSTER_ADMIN = "cluster-admin"
    NODE = "node"


class ListOutput(StrEnum):
    """How tokens are written to stdout."""

    TABLE = "table"
    JSON = "json"


_CLUSTER_ROLES = {Role.VIEWER: "view", Role.EDITOR: "edit", Role.ADMIN: "admin", Role.CLUSTER_ADMIN: "cluster-admin"}


def register(app: typer.Typer, panel: str) -> None:
    group = typer.Typer(
        help="Make, show and revoke the tokens with which people, nodes and programs come in.", no_args_is_help=True
    )
    command(group, "create", "Tokens")(create)
    command(group, "list", "Tokens")(list_)
    command(group, "revoke", "Tokens")(revoke)
    command(group, "rotate", "Tokens")(rotate)
    app.add_typer(group, name="token", rich_help_panel=panel)
    sealed = typer.Typer(help="The encryption of stored Secrets.", no_args_is_help=True)
    sealed.callback()(_secrets)
    command(sealed, "rotate-key", "Secrets")(rotate_key)
    app.add_typer(sealed, name="secrets", rich_help_panel=panel)


def _secrets() -> None:
    """The encryption of stored Secrets."""


# --- create ---


@dataclass(frozen=True, slots=True)
class _Wish:
    """A token that is to be made. `namespace` None: the whole cluster."""

    name: str
    role: Role
    user: str
    groups: tuple[str, ...]
    namespace: str | None
    expires: datetime | None

    @property
    def scope(self) -> str:
        """What it is good for, for a person."""
        if self.role is Role.NODE:
            return f"the agent of node {self.user.removeprefix('system:node:')}"
        return f"{self.role} in {'all namespaces' if self.namespace is None else f'namespace {self.namespace}'}"


async def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the token, and of its user.", show_default=False)],
    role: Annotated[Role, typer.Option("--role", help="What its holder may do.", show_default=False)],
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="User. (default: NAME)", show_default=False)] = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="In every namespace, and may see the nodes.")
    ] = False,
    node: Annotated[
        str | None, typer.Option("--node", metavar="NODE", help="SwarmNode of --role node. (default: NAME)", show_default=False)
    ] = None,
    expires: Annotated[str, typer.Option("--expires", metavar="TIME", help="30m, 12h, 90d or never.")] = "90d",
    kubeconfig_out: Annotated[
        Path | None,
        typer.Option(
            "--write-kubeconfig", metavar="FILE", help="Write a kubeconfig with the token; show it nowhere.", show_default=False
        ),
    ] = None,
    output: Annotated[AnswerOutput, typer.Option("--output", "-o", help="Format of the answer.")] = AnswerOutput.TEXT,
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Make a token and show it, once.

    Roles: viewer reads, editor also writes tasks, admin also queues, roles and bindings, each in one namespace or in all;
    cluster-admin may do everything; node is for `swarmtask node-agent` and may write what concerns its node alone.
    """
    _check_scope(role, namespace, user, node, all_namespaces=all_namespaces)
    async with connect(Target(data_dir, kubeconfig, context, namespace)) as session:
        wish = _wish(
            session, name, role, user or name, node or name, all_namespaces=all_namespaces, expires=_expiry(expires, session)
        )
        token = secrets.token_urlsafe(TOKEN_BYTES)
        document = None
        if kubeconfig_out is not None:
            document = kubeconfigs.with_token(session.kubeconfig, context, wish.user, token, session.namespace)
            kubeconfigs.require_writable(kubeconfig_out)
        made = await _make(session, wish, token)
        if document is not None and kubeconfig_out is not None:
            kubeconfigs.write(kubeconfig_out, document)
    until = f"until {format_time(wish.expires)}" if wish.expires is not None else "for ever"
    terminal.say(f"Token {name}: {wish.scope}, {until}. `swarmtask token revoke {name}` ends it.")
    if output is AnswerOutput.JSON:
        facts: dict[str, Any] = {
            "name": name, "user": wish.user, "groups": list(wish.groups), "role": str(role), "namespace": wish.namespace,
            "expires": value_at(made, ".spec.expirationTimestamp"),
        }  # fmt: skip
        facts |= {"kubeconfig": str(kubeconfig_out)} if kubeconfig_out is not None else {"token": token}
        terminal.emit(tables.to_json(facts))
    elif kubeconfig_out is None:
        terminal.say("It is shown this once:")
        terminal.emit(token)


def _check_scope(role: Role, namespace: str | None, user: str | None, node: str | None, *, all_namespaces: bool) -> None:
    if role in (Role.NODE, Role.CLUSTER_ADMIN) and (namespace or all_namespaces):
        raise typer.BadParameter(f"the role {role} is not for namespaces: leave out -n and -A", param_hint="--role")
    if namespace and all_namespaces:
        raise typer.BadParameter("-n names one namespace and -A all: give one of them", param_hint="-A")
    if role is Role.NODE and user:
        raise typer.BadParameter("the user of a node's token follows from --node", param_hint="--user")
    if node and role is not Role.NODE:
        raise typer.BadParameter("goes with --role node", param_hint="--node")


def _wish(
    session: Session, name: str, role: Role, user: str, node: str, *, all_namespaces: bool, expires: datetime | None
) -> _Wish:
    if role is Role.NODE:
        return _Wish(name, role, f"system:node:{node}", ("system:nodes",), None, expires)
    everywhere = all_namespaces or role is Role.CLUSTER_ADMIN
    return _Wish(name, role, user, (), None if everywhere else session.namespace, expires)


def _expiry(text: str, session: Session) -> datetime | None:
    if text == "never":
        return None
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no time: write 30m, 12h, 90d or never", param_hint="--expires")
    return session.clock.now() + timedelta(**{_UNITS[match.group(2)]: int(match.group(1))})


async def _make(session: Session, wish: _Wish, token: str) -> Object:
    """The token first, then what it may do: one that is cut off in between can do nothing, and nobody knows it."""
    spec: dict[str, Any] = {
        "user": wish.user, "groups": list(wish.groups), "digest": hashlib.sha256(token.encode()).hexdigest(),
        "description": wish.scope,
    }  # fmt: skip
    if wish.expires is not None:
        spec["expirationTimestamp"] = format_time(wish.expires)
    made = await session.api.create(ACCESS_TOKEN, _object(ACCESS_TOKEN, {"name": wish.name}) | {"spec": spec})
    try:
        for kind, body in _bindings(wish, str(made["metadata"]["uid"])):
            await session.api.create(kind, body, wish.namespace if kind.namespaced else None)
    except SwarmTaskError:
        await session.api.delete(ACCESS_TOKEN, wish.name, uid=str(made["metadata"]["uid"]))
        raise
    return made


def _bindings(wish: _Wish, uid: str) -> list[tuple[Kind, Object]]:
    if wish.role is Role.NODE:
        return []
    roles = [_CLUSTER_ROLES[wish.role]]
    if wish.namespace is None and wish.role is not Role.CLUSTER_ADMIN:
        roles.append(_NODE_VIEWER)
    kind = CLUSTER_ROLE_BINDING if wish.namespace is None else ROLE_BINDING
    owner = {"apiVersion": ACCESS_TOKEN.api_version, "kind": ACCESS_TOKEN.kind, "name": wish.name, "uid": uid}
    return [
        (kind, _object(kind, {"name": f"token-{wish.name}-{role.rpartition(':')[2]}", "ownerReferences": [owner]}) | {
            "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": _RBAC, "kind": "User", "name": wish.user}],
        })
        for role in roles
    ]  # fmt: skip


def _object(kind: Kind, metadata: dict[str, Any]) -> Object:
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}


# --- list, revoke ---


async def list_(
    output: Annotated[ListOutput, typer.Option("--output", "-o", help="Format of the answer.")] = ListOutput.TABLE,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Show who has a token, for what, and until when. The tokens themselves are kept nowhere."""
    async with connect(Target(data_dir, kubeconfig, context)) as session:
        found = sorted((await session.api.list(ACCESS_TOKEN)).items, key=lambda item: str(item["metadata"]["name"]))
        now = session.clock.now()
    if output is ListOutput.JSON:
        terminal.emit(tables.to_json([_document(token, now) for token in found]))
    elif found:
        rows = [["NAME", "USER", "FOR", "EXPIRES", "AGE"]]
        for token in found:
            facts = _document(token, now)
            ends = "never" if facts["expires"] is None else f"expired {facts['expires']}" if facts["expired"] else facts["expires"]
            age = tables.age(parse_time(str(value_at(token, ".metadata.creationTimestamp"))), now)
            rows.append([facts["name"], facts["user"], facts["for"] or "-", ends, age])
        tables.print_lines(tables.plain_table(rows))
    else:
        terminal.say("No tokens yet but the administrator's own: `swarmtask token create` makes one.")


def _document(token: Object, now: datetime) -> dict[str, Any]:
    expires = value_at(token, ".spec.expirationTimestamp")
    return {
        "name": token["metadata"]["name"], "user": value_at(token, ".spec.user"), "groups": value_at(token, ".spec.groups") or [],
        "for": value_at(token, ".spec.description"), "expires": expires,
        "expired": expires is not None and parse_time(str(expires)) <= now,
    }  # fmt: skip


async def revoke(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", show_default=False)],
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """End tokens at once: their next request is refused, and their open streams are closed."""
    codes = []
    async with connect(Target(data_dir, kubeconfig, context)) as session:
        for name in dict.fromkeys(names):
            try:
                await session.api.delete(ACCESS_TOKEN, name)
            except SwarmTaskError as error:
                terminal.complain(error)
                codes.append(exit_code_of(error))
            else:
                terminal.emit(f"token {name} revoked")
    code = combined(codes)
    if code is not ExitCode.OK:
        raise typer.Exit(code)


def rotate(data_dir: DataDir = None) -> None:
    """Make the tokens of the administrator and of the operator anew. The control plane must be stopped.

    The old ones end, and with them every copy of its kubeconfig: the next start writes a new one. Other tokens stay as they are.
    """
    folder = datadir.prepare(load_settings(None, data_dir=data_dir).data_dir)
    with contextlib.ExitStack() as held:
        for component in ("up", "operator", "apiserver"):
            held.enter_context(datadir.hold(folder, component, patience_s=_STOPPING_S))
        wiring.renew_tokens(folder)
    terminal.emit(f"{folder}: the administrator and the operator have new tokens")
    terminal.say(f"The next start writes {datadir.kubeconfig_path(folder)}; copies of the present one are good for nothing then.")


# --- secrets ---


async def rotate_key(data_dir: ClientDataDir = None, kubeconfig: Kubeconfig = None, context: Context = None) -> None:
    """Encrypt all stored Secrets with a new key, while the server runs. The old key is forgotten.

    A backup of the database from before needs the key file from before.
    """
    async with connect(Target(data_dir, kubeconfig, context)) as session:
        done = await session.api.create(SECRETS_KEY_ROTATION, _object(SECRETS_KEY_ROTATION, {}))
    count = int(value_at(done, ".status.revisions") or 0)
    terminal.emit(f"key {value_at(done, '.status.keyID')}: {count} stored revisions of Secrets encrypted with it")
