"""A half of the control plane as a child of `up`: its orders, and the program that carries them out.

`ControlPlane` writes the orders, `start` runs the child. It stays for weeks, so it goes without the library of the command line
(1.8 MB in each child). The operator is read in while the API server starts, and waits for its supervisor's word.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from swarmtask import wiring
from swarmtask.cli import datadir, halves, logsetup
from swarmtask.cli.outcome import last_defence, outcome_of
from swarmtask.cli.supervise import BEGIN

SUPERVISED = "--supervised"


class Orders(BaseModel):
    """What a child is started with, beside the settings file and the environment, which it reads itself.

    Attributes:
        listen: (host, port), for the API server.
        engine: swarm or local, for the operator.
        agents: whether nodes get the node agent, for the operator; None: as set.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: Literal["apiserver", "operator"]
    data_dir: Path
    log_level: str
    log_json: bool
    config: Path | None = None
    listen: tuple[str, int] | None = None
    engine: str = ""
    agents: bool | None = None

    def argv(self) -> list[str]:
        """The command line of the child."""
        return [sys.executable, "-m", "swarmtask", self.part, SUPERVISED, self.model_dump_json(exclude_defaults=True)]

    @classmethod
    def of(cls, arguments: list[str]) -> Self | None:
        """What `argv` has behind the name of the program; None: these are no orders."""
        try:
            return cls.model_validate_json(arguments[2]) if len(arguments) == 3 and arguments[1] == SUPERVISED else None
        except ValidationError:
            return None


def run_child(orders: Orders) -> NoReturn:
    """Carry out the orders, and end the process."""
    with last_defence():
        sys.exit(outcome_of(lambda: _carry_out(orders)))


def _carry_out(orders: Orders) -> None:
    settings = halves.load(orders.config, orders.data_dir, log_level=orders.log_level, log_json=orders.log_json)
    logsetup.configure(settings.log_level, json=settings.log_json, component=orders.part)
    if orders.part == "apiserver":
        if orders.listen is not None:
            settings = halves.listening_on(settings, *orders.listen)
        halves.run_apiserver(settings, supervised=True)
        return
    wiring.load_operator(orders.engine)
    if _told_to_begin():
        kubeconfig = datadir.operator_kubeconfig_path(settings.data_dir)
        halves.run_operator(halves.with_agents(settings, orders.agents), kubeconfig, None, orders.engine, supervised=True)


def _told_to_begin() -> bool:
    """Wait for the supervisor's word: until the API answers there is nothing to operate on. False when it has gone instead."""
    descriptor, heard = sys.stdin.fileno(), b""
    while BEGIN not in heard:
        more = os.read(descriptor, len(BEGIN) - len(heard))
        if not more:
            return False
        heard += more
    return True
