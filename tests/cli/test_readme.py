"""The README's commands, run as a new user would: every line that begins with `$` in a `console` block, in order, in one shell.

A line below a command is output that must appear. The control plane is `swarmtask up --engine local`, in a directory of its own.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.program import PROGRAM, ROOT, environment, running_up
from tests.lab.tools import kubectl_binaries

README = ROOT / "README.md"
KUBECTL = kubectl_binaries().get("current")


@dataclass
class Step:
    """A command, and lines that its output must hold."""

    command: str
    expected: list[str]


def steps() -> list[Step]:
    found: list[Step] = []
    for block in re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Step(line[2:], []))
            elif line.strip():
                found[-1].expected.append(line.strip())
    return found


def test_the_readme_has_commands_to_run() -> None:
    commands = [step.command for step in steps()]
    assert len(commands) > 10
    assert any(command.startswith("kubectl apply") for command in commands)


@pytest.mark.kubectl
@pytest.mark.slow
@pytest.mark.skipif(KUBECTL is None, reason="[missing: kubectl (current)] `python -m tests.lab.setup` fetches it")
async def test_the_readme_leads_to_finished_tasks(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "kubectl").symlink_to(str(KUBECTL))
    shim = programs / "swarmtask"
    shim.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    shim.chmod(0o755)
    async with running_up(tmp_path) as up:
        # One shell for all, so that `export KUBECONFIG=...` holds for what follows; stops at the first failure.
        script = ["set -e"]
        for number, step in enumerate(steps()):
            script += [f"echo '@@ {number}'", step.command]
        env = environment(up.home, SWARMTASK_DATA_DIR=str(up.data_dir))
        env["PATH"] = f"{programs}:{env['PATH']}"
        result = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-c", "\n".join(script)],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        outputs = re.split(r"^@@ \d+\n", result.stdout, flags=re.MULTILINE)[1:]
        reached = steps()[len(outputs) - 1].command if outputs else "the beginning"
        assert result.returncode == 0, f"at `{reached}`:\n{result.stderr}\n{result.stdout}"
        for step, output in zip(steps(), outputs, strict=True):
            for line in step.expected:
                assert line in output, f"`{step.command}` did not say {line!r} but:\n{output}"
