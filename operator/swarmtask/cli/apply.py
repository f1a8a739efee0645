"""`swarmtask apply`: server-side apply of files, directories and stdin, one result line per object."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from swarmtask import wiring
from swarmtask.cli import terminal
from swarmtask.cli.command import command
from swarmtask.cli.documents import Document, read_documents
from swarmtask.cli.exits import ExitCode, combined, exit_code_of
from swarmtask.cli.kindnames import kind_of_document
from swarmtask.cli.options import ClientDataDir, Context, Kubeconfig, Namespace
from swarmtask.cli.session import Session, Target, connect
from swarmtask.cli.tables import reference
from swarmtask.errors import BadRequest, Conflict, NotFound, SwarmTaskError, TooManyRequests
from swarmtask.kube import Object
from swarmtask.resources.kinds import Kind

_SUFFIXES = (".yaml", ".yml", ".json")


def register(app: typer.Typer, panel: str) -> None:
    command(app, "apply", panel)(apply)


async def apply(
    filename: Annotated[
        list[str],
        typer.Option("--filename", "-f", metavar="FILE|DIR|-", help="What to apply; - reads stdin. May be given several times."),
    ],
    force_conflicts: Annotated[
        bool, typer.Option("--force-conflicts", help="Take over fields that something else has set.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Let the server check everything and store nothing.")] = False,
    namespace: Namespace = None,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Create or change objects from YAML or JSON files.

    Every object is tried, and gets a line of its own; the exit code is not 0 when any of them failed. Tasks for which a queue has
    no room now are not waited for: apply the same again later.
    """
    documents, codes = _read_all(filename)
    if not documents and not codes:
        names = ", ".join("stdin" if name == "-" else name for name in filename)
        raise BadRequest(f"nothing to apply: no object in {names}")
    if documents:
        async with connect(Target(data_dir, kubeconfig, context, namespace)) as session:
            errors = await _apply_all(session, documents, namespace, force=force_conflicts, dry_run=dry_run)
            codes += [exit_code_of(error) for error in errors]
    code = combined(codes)
    if code is not ExitCode.OK:
        raise typer.Exit(code)


def _read_all(names: list[str]) -> tuple[list[Document], list[ExitCode]]:
    documents: list[Document] = []
    codes: list[ExitCode] = []
    for name in names:
        try:
            for path in _files(name):
                text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
                documents += read_documents("stdin" if path == "-" else path, text)
        except SwarmTaskError as error:
            terminal.complain(error)
            codes.append(exit_code_of(error))
        except UnicodeDecodeError as error:
            terminal.complain(f"cannot read {name}: it is not UTF-8 text ({error.reason} at byte {error.start})")
            codes.append(ExitCode.REFUSED)
        except OSError as error:
            terminal.complain(f"cannot read {error.filename or name}: {error.strerror}")
            codes.append(ExitCode.REFUSED)
    return documents, codes


def _files(name: str) -> list[str]:
    if name == "-":
        return ["-"]
    path = Path(name)
    if path.is_dir():
        found = sorted(str(item) for item in path.iterdir() if item.suffix in _SUFFIXES and item.is_file())
        if not found:
            raise NotFound(f"the directory {name} holds no {', '.join(_SUFFIXES)} file")
        return found
    if not path.exists():
        raise NotFound(f"there is no file {name}")
    return [name]


async def _apply_all(
    session: Session, documents: list[Document], namespace: str | None, *, force: bool, dry_run: bool
) -> list[SwarmTaskError]:
    """Apply one object after the other and print the line of each; what failed, in the same order."""
    errors: list[SwarmTaskError] = []
    told: set[str] = set()
    for document in documents:
        try:
            kind, obj, scope = _check(document, session.namespace, namespace)
            verb = await _patch(session, kind, obj, scope, force=force, dry_run=dry_run)
        except SwarmTaskError as error:
            _tell(error if error.message.startswith(document.source) else _located(error, document), told)
            errors.append(error)
        else:
            terminal.emit(f"{reference(kind, obj)} {verb}{' (dry run)' if dry_run else ''}")
    not_now = sum(isinstance(error, TooManyRequests) for error in errors)
    if not_now:
        terminal.say(
            f"{len(documents) - len(errors)} of {len(documents)} objects were applied, {not_now} not accepted for now. "
            "Nothing is lost: apply the same again later, what is there already stays as it is."
        )
    return errors


def _tell(error: SwarmTaskError, told: set[str]) -> None:
    """Complain; why a queue has no room is said in full once, not for each of a thousand tasks. `told`: what was said so far."""
    why = error.causes[0].message if isinstance(error, TooManyRequests) and error.causes else ""
    if why and why in told:
        terminal.complain(error.message.replace(why, "as above"))
    else:
        terminal.complain(error)
        told.add(why)


def _check(document: Document, default_namespace: str, asked: str | None) -> tuple[Kind, Object, str | None]:
    value, source = document.value, document.source
    if not isinstance(value, dict) or not isinstance(value.get("metadata", {}), dict):
        raise BadRequest(f"{source}: an object with apiVersion, kind and metadata is expected")
    api_version, kind_name = str(value.get("apiVersion", "")), str(value.get("kind", ""))
    kind = kind_of_document(api_version, kind_name)
    if kind is None:
        if not api_version or not kind_name:
            raise BadRequest(f"{source}: apiVersion and kind are required")
        raise BadRequest(f"{source}: `swarmtask apply` does not know {api_version} {kind_name}: use kubectl apply")
    name = value.get("metadata", {}).get("name")
    if not isinstance(name, str) or not name:
        raise BadRequest(f"{source}: metadata.name is required")
    if not kind.namespaced:
        return kind, value, None
    own = value["metadata"].get("namespace")
    if own is not None and not isinstance(own, str):
        raise BadRequest(f"{source}: metadata.namespace must be text")
    for part in (name, own or default_namespace):
        if "/" in part:  # a name is one part of a URL; the server would answer that it knows no such resource
            raise BadRequest(f"{source}: {part!r} is not a name: it holds a slash")
    if own and asked and own != asked:
        raise BadRequest(f"{source}: the object is of namespace {own}, but -n {asked} was given: drop one of them")
    return kind, value, str(own or default_namespace)


async def _patch(session: Session, kind: Kind, obj: Object, scope: str | None, *, force: bool, dry_run: bool) -> str:
    name = str(obj["metadata"]["name"])
    try:
        before = (await session.api.get(kind, name, scope)).get("metadata", {}).get("resourceVersion")
    except NotFound:
        before = None
    after = await session.api.patch(
        kind, name, obj, scope, type_="apply", field_manager=wiring.CLI_FIELD_MANAGER, force=force, dry_run=dry_run
    )  # fmt: skip
    if before is None:
        return "created"
    return "unchanged" if after.get("metadata", {}).get("resourceVersion") == before else "configured"


def _located(error: SwarmTaskError, document: Document) -> SwarmTaskError:
    advice = ""
    if isinstance(error, Conflict):
        advice = "; --force-conflicts takes the fields over"
    return type(error)(
        f"{document.source}: {error.message}{advice}", details=error.details, causes=error.causes, retry_after_s=error.retry_after_s
    )
