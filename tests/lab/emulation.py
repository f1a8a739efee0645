"""arm64 programs on a machine of another kind: QEMU's user-mode emulation, which the kernel starts for them, in containers too.

Called by the tests of the worker image. The emulator is Debian's, unpacked into the cache and never installed. What this machine's
kernel is told lasts as long as the block that asked for it; what a killed run left is undone by the next one.
"""

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from tests.lab import tools

MOUNT_POINT = Path("/proc/sys/fs/binfmt_misc")
NAME = "swarmtask-test-arm64"
"""Of our entry, and of our mount: neither is anybody else's."""
_ARM64 = "7f454c460201010000000000000000000200b700"
"""How every arm64 program begins, as the kernel prints it of an entry: ELF, 64 bits, little-endian, a program, for that machine."""


def entry(line: str, program: Path) -> str:
    """Debian's line for the kernel under our name and with that program.

    It must have the flag F: the kernel then opens the emulator once, now, and containers need not have it.
    """
    _, _, kind, offset, magic, mask, _, flags = line.split(":")
    return ":".join(("", NAME, kind, offset, magic, mask, str(program), "".join(sorted({*flags, "F"}))))


def handler(folder: Path = MOUNT_POINT) -> str:
    """Name of an entry that lets arm64 programs run in containers as well; empty: there is none."""
    for path in sorted(folder.glob("*")):
        if path.name in {"register", "status"}:
            continue
        said = path.read_text().splitlines()
        flags = next((line.partition(":")[2] for line in said if line.startswith("flags:")), "")
        if "enabled" in said and f"magic {_ARM64}" in said and "F" in flags:
            return path.name
    return ""


@contextlib.contextmanager
def arm64() -> Iterator[str]:
    """The kernel runs arm64 programs while the block lasts. Gives what runs them, for people to read.

    Raises:
        Missing: this kernel, or this user, cannot have that.
    """
    if platform.machine() == "aarch64":
        yield "this machine"
        return
    if os.getuid() != 0:
        raise tools.Missing("binfmt_misc", "only root can tell the kernel what runs arm64 programs", "Run it as root.")
    with tools.machine_lock("binfmt"):
        _undo()
        present = handler()
        if present:  # somebody has set it up for good
            yield f"the kernel's entry {present}"
            return
        program, line = tools.qemu_aarch64()
        _mount()
        try:
            _register(entry(line, program))
            yield tools.run([str(program), "--version"], timeout_s=30, tool=str(program)).splitlines()[0]
        finally:
            _undo()


def _mount() -> None:
    if not MOUNT_POINT.exists():  # a module that nobody has needed yet
        tools.run(["modprobe", "binfmt_misc"], timeout_s=30, tool="binfmt_misc")
    if not (MOUNT_POINT / "register").exists():
        tools.run(["mount", "-t", "binfmt_misc", NAME, str(MOUNT_POINT)], timeout_s=30, tool="binfmt_misc")


def _register(text: str) -> None:
    try:
        (MOUNT_POINT / "register").write_text(text)
    except OSError as error:
        raise tools.Missing("binfmt_misc", f"the kernel refuses {text!r}: {error}", "Run it on a machine of your own.") from error
    if handler() != NAME:
        raise tools.Missing("binfmt_misc", f"the kernel took {text!r} and does not show it", "Report it.")


def _undo() -> None:
    """Remove our entry, and our mount where nobody else has an entry in it. Doing it again changes nothing."""
    with contextlib.suppress(FileNotFoundError):
        (MOUNT_POINT / NAME).write_text("-1")
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    ours = any(words[:2] == [NAME, str(MOUNT_POINT)] for words in mounts)
    if ours and {path.name for path in MOUNT_POINT.glob("*")} <= {"register", "status"}:
        tools.run(["umount", str(MOUNT_POINT)], timeout_s=30, tool="binfmt_misc")
