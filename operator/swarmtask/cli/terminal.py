"""What reaches the terminal: data on stdout, talk on stderr, and nothing that a server could use to steer the terminal.

Called by every command. Colour only on a terminal and never with NO_COLOR (rich decides both). Control characters in data that came
from a server are removed before they are shown (SECURITY, row 13).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import TYPE_CHECKING

from swarmtask.errors import SwarmTaskError

if TYPE_CHECKING:
    from rich.console import Console

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])?")
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,32}m")
_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")

PHASE_STYLES = {
    "Succeeded": "green", "Ready": "green",
    "Running": "cyan", "Starting": "cyan",
    "Backoff": "yellow", "Unknown": "yellow", "Draining": "yellow", "NotReady": "yellow",
    "Failed": "red", "Expired": "red", "Unreachable": "red", "Gone": "red",
    "Cancelled": "dim", "Pending": "dim",
}  # fmt: skip


def clean(text: str) -> str:
    """Text from a server, safe for a terminal; line breaks and tabs stay."""
    return _CONTROL.sub("", _ESCAPE_SEQUENCE.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def clean_line(text: str) -> str:
    """The same for a place where one line is expected: every run of white space becomes one blank."""
    return " ".join(clean(text).split())


def clean_log(text: str, *, colours: bool) -> str:
    """A task's own output for a terminal: colours may stay, everything else that steers a terminal goes."""
    if not colours:
        return clean(text)
    parts, position = [], 0
    for match in _COLOUR.finditer(text):
        parts += [clean(text[position : match.start()]), match.group()]
        position = match.end()
    parts.append(clean(text[position:]))
    return "".join(parts)


def is_unsafe(text: str) -> bool:
    """It holds a character that JSON and YAML allow raw and a terminal obeys."""
    return _UNSAFE.search(text) is not None


def escape_unsafe(text: str) -> str:
    """Already serialised JSON, or double-quoted YAML, with such characters written as escapes."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def open_closed_streams() -> None:
    """Put /dev/null where stdin, stdout or stderr was closed (`>&-`), before a socket or a file takes its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - open until the end


def stdout() -> Console:
    """Where data goes. Made anew each time: tests and pipes replace the stream."""
    from swarmtask.cli import console  # noqa: PLC0415 - see there

    return console.stdout()


def width() -> int:
    """How many characters fit into a line of stdout; 80 where it is no terminal and COLUMNS does not say otherwise."""
    return shutil.get_terminal_size().columns


def stderr() -> Console:
    """Where talk goes."""
    from swarmtask.cli import console  # noqa: PLC0415 - see there

    return console.stderr()


def emit(text: str) -> None:
    """Write data to stdout, as it is, and let a reader see it at once."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def say(text: str = "", style: str = "") -> None:
    """Tell the person something, on stderr. The text may hold server data: it is cleaned."""
    from swarmtask.cli.console import Text  # noqa: PLC0415 - see there

    stderr().print(Text(clean(text), style=style))


def warn(text: str) -> None:
    """Something is not as it should be, but the command goes on."""
    from swarmtask.cli.console import Text  # noqa: PLC0415 - see there

    stderr().print(Text.assemble(("Warning: ", "yellow"), clean(text)))


def complain(error: SwarmTaskError | str) -> None:
    """Say what went wrong and what to do, on stderr."""
    from swarmtask.cli.console import Text  # noqa: PLC0415 - see there

    message = error if isinstance(error, str) else error.message
    console = stderr()
    console.print(Text.assemble(("Error: ", "bold red"), clean(message)))
    if isinstance(error, SwarmTaskError):
        for cause in error.causes:
            if cause.field and cause.message not in message:
                console.print(Text(f"  {clean_line(cause.field)}: {clean_line(cause.message)}"))
        if error.retry_after_s:
            console.print(Text(f"  Try again in {error.retry_after_s} s.", style="dim"))
