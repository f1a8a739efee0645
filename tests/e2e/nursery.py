"""Operators that start in a moment: one process has read the program in, and forks for each of them.

Used by the test that lets operators die by the dozen: reading the program in takes longer than all that each does before it dies.
What runs is the same `main`, in a process group of its own. As a program (`python -m tests.e2e.nursery`): a line of JSON on stdin,
an operator's arguments, environment and log; on stdout its process ID, and when it has ended its exit status. One runs at a time.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from tests.e2e.product import Process, Product
from tests.lab.tools import ROOT


class Child:
    """As much of `subprocess.Popen` as `Process` asks for."""

    def __init__(self, nursery: subprocess.Popen[bytes], order: Mapping[str, object]) -> None:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        self._said: IO[bytes] = nursery.stdout
        self._status: int | None = None
        nursery.stdin.write(json.dumps(order).encode() + b"\n")
        nursery.stdin.flush()
        self.pid = self._number()

    def _number(self) -> int:
        line = self._said.readline()
        assert line, "the process that forks has ended"
        return int(line)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self._status is None:
            if not select.select([self._said], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("operator", timeout or 0)
            self._status = self._number()
        return self._status

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Forked(Process):
    """A process that was forked instead of started."""

    def __init__(
        self, name: str, args: Iterable[str], log: Path, env: Mapping[str, str], *, nursery: subprocess.Popen[bytes]
    ) -> None:
        self.name, self.log = name, log
        self._begin = log.stat().st_size if log.exists() else 0
        self._popen = Child(nursery, {"args": list(args), "log": str(log), "env": dict(env)})  # type: ignore[assignment]


@contextlib.contextmanager
def forking(product: Product) -> Iterator[None]:
    """The product's operators are forked while this lasts; the last one is stopped at its end."""
    env = product.env | {"PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.e2e.nursery"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=env, start_new_session=True
    ) as nursery:
        product.new_operator = lambda *what: Forked(*what, nursery=nursery)
        try:
            yield
        finally:
            product.new_operator = Process
            if product.operator is not None:
                product.operator.stop()
                product.operator = None
            nursery.kill()


def fork(args: list[str], log: str, env: dict[str, str]) -> int:
    """The process ID of one operator."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
        os.dup2(descriptor, target)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["swarmtask", *args]
    from swarmtask.cli.start import start

    status: object = 1
    try:
        start()
        status = 0
    except SystemExit as end:
        status = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))


def read_in() -> None:
    """Everything that an operator on a Swarm loads."""
    import kopf  # noqa: F401
    import uvloop  # noqa: F401

    import swarmtask.cli.serving
    import swarmtask.cli.session
    import swarmtask.controllers.operator
    import swarmtask.engines.swarm
    import swarmtask.kube  # noqa: F401


if __name__ == "__main__":
    read_in()
    gc.freeze()
    for line in sys.stdin.buffer:
        pid = fork(**json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
