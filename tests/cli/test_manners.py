"""How the program behaves towards terminals, pipes, signals and shells, whatever the command."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

import swarmtask as package
from swarmtask.cli import datadir, dockerhost, tables
from swarmtask.cli.command import guard
from swarmtask.cli.dockerhost import DockerState
from swarmtask.cli.exits import ExitCode, combined, exit_code_of
from swarmtask.cli.options import parse_listen, parse_pairs
from swarmtask.errors import (
    AlreadyExists,
    ConfigurationError,
    Conflict,
    EngineRejected,
    EngineUnavailable,
    Expired,
    Forbidden,
    InsufficientStorage,
    InternalError,
    Invalid,
    NotFound,
    ServiceUnavailable,
    SwarmTaskError,
    Timeout,
    TooManyRequests,
    Unauthorized,
    WorkloadNotFound,
)
from swarmtask.settings import load_settings
from tests.cli.conftest import Swarmtask
from tests.cli.program import PROGRAM, environment
from tests.fakes.kube import FakeKube


def on_a_terminal(*arguments: str, **env: str) -> str:
    """What the program writes when stdout and stderr are a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stdin=follower, stdout=follower, stderr=follower, env={**environment(Path("/nonexistent")), **env}
    )
    os.close(follower)
    output = b""
    try:
        while select.select([leader], [], [], 60)[0]:
            try:
                chunk = os.read(leader, 65536)
            except OSError:  # EIO: the other side is closed
                break
            if not chunk:
                break
            output += chunk
    finally:
        os.close(leader)
        process.wait(60)
    return output.decode()


@pytest.mark.slow
def test_colour_only_on_a_terminal_and_never_with_no_color() -> None:
    arguments = ("get", "--kubeconfig", "/nonexistent")
    assert "\x1b[" in on_a_terminal(*arguments, TERM="xterm-256color")
    assert "\x1b[" not in on_a_terminal(*arguments, TERM="xterm-256color", NO_COLOR="1").replace("\x1b[1m", "").replace(
        "\x1b[0m", ""
    )
    piped = subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False,
        env=environment(Path("/nonexistent"), TERM="xterm-256color"),
    )  # fmt: skip
    assert piped.returncode == 3
    assert "\x1b" not in piped.stdout + piped.stderr


def test_version_needs_nothing_and_is_valid_json(swarmtask: Swarmtask) -> None:
    assert swarmtask("version").stdout == f"swarmtask {package.__version__}\n"
    assert json.loads(swarmtask("version", "-o", "json").stdout)["version"] == package.__version__


def test_kubeconfig_prints_the_path_alone(swarmtask: Swarmtask, data_dir: Path, tmp_path: Path) -> None:
    assert swarmtask("kubeconfig").stdout == f"{data_dir / 'kubeconfig'}\n"
    missing = swarmtask("kubeconfig", "--data-dir", str(tmp_path / "nowhere"))
    assert (missing.exit_code, missing.stdout) == (3, "")
    assert "swarmtask up" in missing.stderr


def test_the_order_of_kubeconfigs(
    swarmtask: Swarmtask, kube: FakeKube, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = data_dir / "kubeconfig", tmp_path / "other"
    other.write_text(own.read_text().replace("https://127.0.0.1:1", "https://other:1"))
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'missing'}{os.pathsep}{other}")

    def server(*arguments: str) -> str:
        return str(json.loads(swarmtask("status", "-o", "json", *arguments).stdout)["api"]["url"])

    assert server() == "https://127.0.0.1:1"  # the data directory's before KUBECONFIG
    assert server("--kubeconfig", str(other)) == "https://other:1"
    own.rename(tmp_path / "away")
    assert server() == "https://other:1"
    assert swarmtask("get", "--kubeconfig", str(tmp_path / "missing")).exit_code == 3
    wrong = swarmtask("get", "--context", "nowhere")
    assert wrong.exit_code == 6
    assert "swarmtask, other" in wrong.stderr


@pytest.mark.parametrize("content", ["", "[]", "a: [", "apiVersion: v1", "contexts: 7", "\x00"])
def test_a_broken_kubeconfig_is_refused_with_its_path(swarmtask: Swarmtask, kube: FakeKube, data_dir: Path, content: str) -> None:
    (data_dir / "kubeconfig").write_text(content)
    result = swarmtask("get")
    assert result.exit_code == 6, result.output
    assert str(data_dir / "kubeconfig") in result.stderr.replace("\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_is_generated(shell: str) -> None:
    result = subprocess.run(
        [*PROGRAM, "--show-completion", shell], capture_output=True, text=True, timeout=60, check=False,
        env=environment(Path("/nonexistent"), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "_SWARMTASK_COMPLETE" in result.stdout


@pytest.mark.slow
def test_completion_knows_commands_and_resources() -> None:
    def complete(words: str, index: int) -> str:
        return subprocess.run(
            [*PROGRAM], capture_output=True, text=True, timeout=60, check=False,
            env=environment(Path("/nonexistent"), _SWARMTASK_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(index)),
        ).stdout  # fmt: skip

    assert "status" in complete("swarmtask st", 1).split()
    assert complete("swarmtask get n", 2).split() == ["nodes"]


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    result = subprocess.run(
        ["sh", "-c", '"$@" | true; exit 0', "sh", *PROGRAM, "version", "-o", "json"],
        capture_output=True, text=True, timeout=60, check=False, env=environment(tmp_path),
    )  # fmt: skip
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr


@pytest.mark.slow
def test_a_defect_is_a_message_and_a_traceback_only_on_request(tmp_path: Path) -> None:
    program = [
        PROGRAM[0], "-c",
        "from swarmtask.cli import main, program\n"
        "@main.app.command('broken')\n"
        "def broken() -> None:\n    raise ZeroDivisionError('oh\\x1b[31m')\n"
        "import sys; sys.argv = ['swarmtask', 'broken']; program.run(main.app)",
    ]  # fmt: skip
    plain = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False, env=environment(tmp_path))
    assert plain.returncode == 1
    assert "defect of SwarmTask" in plain.stderr and "Traceback" not in plain.stderr and "\x1b" not in plain.stderr
    debug = subprocess.run(
        program, capture_output=True, text=True, timeout=60, check=False, env=environment(tmp_path, SWARMTASK_DEBUG="1")
    )
    assert "Traceback" in debug.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("x"), 3), (WorkloadNotFound("x"), 3), (Conflict("x"), 4), (AlreadyExists("x"), 4), (ServiceUnavailable("x"), 5),
        (Timeout("x"), 5), (EngineUnavailable("x"), 5), (Invalid("x"), 6), (Forbidden("x"), 6), (Unauthorized("x"), 6),
        (EngineRejected("x"), 6), (ConfigurationError("x"), 6), (TooManyRequests("x"), 6), (InsufficientStorage("x"), 6),
        (Expired("x"), 1), (InternalError("x"), 1),
    ],
)  # fmt: skip
def test_every_kind_of_error_has_its_exit_code(error: SwarmTaskError, code: int) -> None:
    assert exit_code_of(error) == code


def test_several_failures_share_a_code_only_when_they_agree() -> None:
    assert combined([]) is ExitCode.OK
    assert combined([ExitCode.OK, ExitCode.NOT_FOUND, ExitCode.NOT_FOUND]) is ExitCode.NOT_FOUND
    assert combined([ExitCode.REFUSED, ExitCode.NOT_FOUND]) is ExitCode.FAILED


def test_ctrl_c_is_exit_code_130() -> None:
    app = typer.Typer()

    async def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

    app.command()(guard(interrupted))
    assert CliRunner().invoke(app, []).exit_code == 130


@pytest.mark.parametrize("text", ["", "7443", "host:", ":1", "host:x", "host:65536", "host:-1", "host:٣"])
def test_addresses_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="HOST:PORT"):
        parse_listen(text)


def test_addresses_and_environment_are_read() -> None:
    assert parse_listen("127.0.0.1:0") == ("127.0.0.1", 0)
    assert parse_listen("[::1]:7443") == ("::1", 7443)
    assert parse_pairs(["A=1", "B=", "A=x=y"], "--env") == {"A": "x=y", "B": ""}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (DockerState("20", "active", manager=False), "on its manager"),
        (DockerState("20", "locked", manager=False), "unlock"),
        (DockerState("20", "pending", manager=False), "docker swarm leave"),
        (DockerState("20", "error", manager=False), "docker swarm leave"),
    ],
)
def test_a_swarm_that_cannot_be_used_says_what_to_do(state: DockerState, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        dockerhost.require_usable(state)
    dockerhost.require_usable(DockerState("20", "active", manager=True))
    dockerhost.require_usable(DockerState("20", "inactive", manager=False))


def test_without_docker_join_is_unreachable_and_up_swarm_says_what_to_do(
    swarmtask: Swarmtask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWARMTASK_SWARM__DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    joined = swarmtask("join")
    assert (joined.exit_code, joined.stdout) == (5, "")
    up = swarmtask("up", "--engine", "swarm", "--data-dir", str(tmp_path / "up"))
    assert up.exit_code == 5
    assert "--engine local" in up.stderr


@pytest.mark.slow
def test_the_demo_succeeds_and_leaves_nothing(tmp_path: Path) -> None:
    result = subprocess.run(
        [*PROGRAM, "demo", "--engine", "local"], capture_output=True, text=True, timeout=200, check=False,
        env=environment(tmp_path, TMPDIR=str(tmp_path)),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "All 6 tasks succeeded" in result.stderr
    assert "files altogether" in result.stdout and "no cycle" in result.stdout
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - neither blocks for long nor needs Path objects


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_an_interrupted_demo_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, "demo", "--engine", "local", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=environment(tmp_path, TMPDIR=str(tmp_path)),
    )  # fmt: skip
    assert process.stderr is not None
    said = b""
    while b"Submitting" not in said:
        line = await asyncio.wait_for(process.stderr.readline(), 60)
        assert line, said
        said += line
    family = psutil.Process(process.pid).children(recursive=True)
    assert family
    process.send_signal(number)
    _, rest = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130, rest.decode()
    assert b"Traceback" not in rest
    _, alive = await asyncio.to_thread(psutil.wait_procs, family, 20)
    assert not alive
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - neither blocks for long nor needs Path objects


def run_in_shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script, "bash", *PROGRAM], capture_output=True, text=True, timeout=60, check=False,
        env=environment(folder, SWARMTASK_DATA_DIR=str(folder / "data")),
    )  # fmt: skip


@pytest.mark.slow
def test_a_closed_stdout_is_no_defect(tmp_path: Path) -> None:
    for redirection in (">&-", "<&- >&-", "2>&-", "<&- >&- 2>&-"):
        result = run_in_shell(f'"$@" version {redirection}', tmp_path)
        assert (result.returncode, result.stderr) == (0, ""), redirection
        missing = run_in_shell(f'"$@" get {redirection}', tmp_path)
        assert missing.returncode == 3, redirection
        assert "internal error" not in missing.stderr


def test_a_reader_that_goes_away_ends_a_table_with_141(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        with pytest.raises(typer.Exit) as end:
            guard(lambda: tables.print_lines([Text("a row")]))()
        monkeypatch.undo()
    assert end.value.exit_code == ExitCode.BROKEN_PIPE


@pytest.mark.parametrize(
    ("variable", "words"),
    [(("SWARMTASK_OPERATOR", "garbage"), "environment variable"), (("SWARMTASK_CONFIG", "{folder}/binary"), "cannot read")],
)
def test_settings_that_cannot_be_read_are_no_defect(
    swarmtask: Swarmtask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: tuple[str, str], words: str
) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    monkeypatch.setenv(variable[0], variable[1].format(folder=tmp_path))
    result = swarmtask("status")
    assert (result.exit_code, result.stdout) == (6, "")
    assert words in result.stderr


def test_an_empty_variable_means_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMTASK_DATA_DIR", "")
    assert load_settings().data_dir.name == "swarmtask"


def test_a_directory_with_other_things_is_never_made_private(tmp_path: Path) -> None:
    """`--data-dir /tmp` must not lock everybody else out of it."""
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ConfigurationError, match="other things"):
        datadir.prepare(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o755)
    assert datadir.prepare(empty).stat().st_mode & 0o777 == 0o700
    (empty / "kubeconfig").touch()
    empty.chmod(0o755)
    assert datadir.prepare(empty).stat().st_mode & 0o777 == 0o700


def test_up_refuses_a_place_where_no_ready_file_can_be_written(swarmtask: Swarmtask, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = swarmtask(
        "up", "--engine", "local", "--data-dir", str(tmp_path / "up"), "--ready-file", str(tmp_path / "file" / "ready")
    )
    assert result.exit_code == 6
    assert "--ready-file" in result.stderr


def test_a_pair_without_a_value_names_its_own_option(swarmtask: Swarmtask) -> None:
    assert "--label" in swarmtask("run", "image", "--label", "x").stderr


def test_an_interrupt_while_the_program_is_read_in_leaves_no_traceback(tmp_path: Path) -> None:
    script = (
        "import os, sys, importlib.abc\n"
        "class Interrupt(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'swarmtask.cli.apply': os.kill(os.getpid(), 2)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from swarmtask.cli.start import start\n"
        "start()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(tmp_path),
    )
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")
