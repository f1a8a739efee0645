"""`swarmtask backup` and `swarmtask restore`: a copy of everything that the API stores, and the way back (docs/backup.md).

A backup is made by the API server while it works; its keys are read from the data directory and never travel. A restore works on
the files of a control plane that is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarmtask import wiring
from swarmtask.cli import datadir, terminal
from swarmtask.cli.command import command
from swarmtask.cli.options import ClientDataDir, Context, DataDir, Kubeconfig
from swarmtask.cli.session import Target, find_kubeconfig
from swarmtask.clock import SystemClock
from swarmtask.errors import AlreadyExists, ConfigurationError, InsufficientStorage, NotFound
from swarmtask.settings import load_settings

if TYPE_CHECKING:
    from swarmtask.apiserver.backup import Facts
    from swarmtask.apiserver.restore import Restored

KEYS_SUFFIX = ".keys"
OUTPUT_SUFFIX = ".output"
_STOPPING_S = 2.0


def register(app: typer.Typer, panel: str) -> None:
    command(app, "backup", panel)(backup)
    command(app, "restore", panel)(restore)


# --- backup ---


async def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the backup goes.", show_default=False, dir_okay=False)],
    keys: Annotated[
        Path | None,
        typer.Option("--keys", metavar="KEYS", help="Where its keys go. (default: FILE.keys)", show_default=False, dir_okay=False),
    ] = None,
    without_keys: Annotated[
        bool, typer.Option("--without-keys", help="Write no keys; for later backups, or from another machine.")
    ] = False,
    with_output: Annotated[
        bool, typer.Option("--with-output", help="Write the output of tasks to FILE.output, too: up to 2 GiB.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    data_dir: ClientDataDir = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Save everything that the API stores, while it works. FILE and its keys are made as a whole or not at all.

    The values of Secrets in FILE are encrypted. KEYS holds the key to them, the certificate authority and the tokens of
    administrator and operator: whoever has it has the cluster. Keep the two apart, and keep both.
    """
    if without_keys and keys is not None:
        raise typer.BadParameter("goes with --keys, or alone", param_hint="--without-keys")
    keys = None if without_keys else keys or file.with_name(file.name + KEYS_SUFFIX)
    output = file.with_name(file.name + OUTPUT_SUFFIX) if with_output else None
    for path in (file, keys, output):
        if path is not None and not force:
            _refuse_existing(path)
    settings = Target(data_dir).settings()
    source = find_kubeconfig(settings, kubeconfig)
    folder = settings.data_dir.expanduser().absolute()
    with _new_file(file, force=force) as (partial, descriptor):
        await wiring.download_backup(source, context, lambda chunk: _write_all(descriptor, chunk))
        os.fsync(descriptor)
        facts = await asyncio.to_thread(wiring.read_backup, partial)
        if keys is not None:
            _write_keys(folder, keys, facts, force=force)
    _tell_backup(file, keys, facts)
    if output is not None:
        await _save_output(source, context, output, force=force)


async def _save_output(source: Path, context: str | None, output: Path, *, force: bool) -> None:
    """After the backup, so that there is some of every task in it."""
    with _new_file(output, force=force) as (partial, descriptor):
        await wiring.download_output(source, context, lambda chunk: _write_all(descriptor, chunk))
        os.fsync(descriptor)
        attempts, size = await asyncio.to_thread(wiring.check_output, partial), os.fstat(descriptor).st_size
    terminal.emit(f"{output}: output of {attempts} attempts, {size // 1024} kB, checked")


def _write_keys(data_dir: Path, keys: Path, facts: Facts, *, force: bool) -> None:
    try:
        content = wiring.pack_keys(data_dir)
    except (OSError, ConfigurationError) as error:
        raise ConfigurationError(
            f"the keys cannot be read: {error}. Run this on the machine of the control plane as its user, with --data-dir, or make "
            "a backup --without-keys"
        ) from error
    with _new_file(keys, force=force) as (partial, descriptor):
        _write_all(descriptor, content)
        os.fsync(descriptor)
        if not set(facts.keys) <= wiring.keys_for(partial):
            raise ConfigurationError(
                f"the keys in {data_dir} are not those of this backup: the key was changed meanwhile, or it is another control "
                "plane's directory. Run the backup again"
            )


def _tell_backup(file: Path, keys: Path | None, facts: Facts) -> None:
    for name in facts.damaged:
        terminal.warn(f"the stored body of {name} is damaged on the server's disk: restart the server, which puts it aside.")
    terminal.emit(
        f"{file}: {facts.objects} objects, resourceVersion {facts.resource_version}, {file.stat().st_size // 1024} kB, checked"
    )
    if keys is not None:
        terminal.say(f"{keys}: the keys. Whoever has this file has the cluster: keep it apart from {file.name}, and keep both.")
    elif facts.keys:
        terminal.say(f"Without keys: to restore its Secrets, a keys file with the key {', '.join(facts.keys)} is needed.")


def _refuse_existing(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise AlreadyExists(f"{path} exists: name another file, or replace it with --force")


@contextlib.contextmanager
def _new_file(path: Path, *, force: bool) -> Iterator[tuple[Path, int]]:
    """(path, descriptor) of an unfinished file, which becomes `path` at the end; after an error nothing is left of it.

    Raises:
        InsufficientStorage: the disk is full. AlreadyExists: somebody has made `path` meanwhile.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error
    try:
        try:
            yield partial, descriptor
        finally:
            os.close(descriptor)
        _give_name(partial, path, force=force)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientStorage(f"the disk of {path} is full: nothing was left there. Free some space") from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def _give_name(partial: Path, path: Path, *, force: bool) -> None:
    if force:
        partial.replace(path)
    else:
        try:
            os.link(partial, path)  # unlike a rename, it replaces nothing
        except FileExistsError:
            raise AlreadyExists(f"{path} was made by somebody else meanwhile: name another file") from None
        except OSError:  # a file system without links
            _refuse_existing(path)
            partial.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


# --- restore ---


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup.", show_default=False, dir_okay=False)],
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys",
            metavar="KEYS",
            show_default=False,
            dir_okay=False,
            help="Its keys. (default: FILE.keys where it exists, else those of the data directory)",
        ),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Put a backup in the place of what the API stores. The control plane must be stopped; what it had is kept aside.

    Output of tasks comes from FILE.output where that exists.
    """
    for path in (file, keys):
        if path is not None and not path.is_file():
            raise NotFound(f"there is no file {path}")
    beside = file.with_name(file.name + KEYS_SUFFIX)
    keys = keys or (beside if beside.is_file() else None)
    output = file.with_name(file.name + OUTPUT_SUFFIX)
    folder = datadir.prepare(load_settings(None, data_dir=data_dir).data_dir)
    label = SystemClock().now().strftime("%Y%m%dT%H%M%SZ")
    with contextlib.ExitStack() as held:
        for component in ("up", "operator", "apiserver"):
            held.enter_context(datadir.hold(folder, component, patience_s=_STOPPING_S))
        done = wiring.restore_backup(file, folder, keys, output if output.is_file() else None, label)
    _tell_restore(file, done, folder)


def _tell_restore(file: Path, done: Restored, folder: Path) -> None:
    facts = done.facts
    terminal.emit(
        f"{folder}: restored {facts.objects} objects of {facts.created} from {file}, resourceVersion {done.resource_version}"
    )
    if done.output:
        terminal.say(f"Output of {done.output} attempts was put back.")
    for name in facts.damaged:
        terminal.warn(f"{name} is damaged in the backup: the server will name it and serve the others.")
    if done.aside is not None:
        terminal.say(f"What was there before is in {done.aside}: remove it when you are sure.")
    if done.new_authority:
        terminal.warn("there were no certificates to restore: new ones are made, and every kubeconfig and agent needs a new one.")
    terminal.say(
        "At the next start the operator asks the engines: attempts of restored tasks go on, or their outcome is taken, also of "
        "those that began after the backup; attempts of tasks that are not in it are stopped and removed."
    )
    if done.unfinished:
        terminal.warn(
            f"{done.unfinished} tasks that were accepted after the backup and had not ended are not in it. To submit them again, "
            f"once the control plane is up: swarmtask apply -f {done.aside}/unfinished-tasks.json"
        )
    elif done.unfinished is None:
        terminal.say("Tasks that were accepted after the backup are not in it: submit them again.")
