"""What is left on a Swarm and its nodes: nothing may be, a minute after the last task is gone."""

from __future__ import annotations

import time

from tests.e2e.product import wait_until
from tests.lab.cluster import Lab

CLEAN_WITHIN_S = 60.0
_OF_DOCKER = {"bridge", "host", "none", "docker_gwbridge", "ingress"}


def left(lab: Lab) -> list[str]:
    """Everything on any node that a fresh Swarm does not have, as "node kind name"."""
    api = lab.manager_client().api
    found = [f"swarm service {item['Spec']['Name']}" for item in api.services()]
    found += [f"swarm secret {item['Spec']['Name']}" for item in api.secrets()]
    found += [f"swarm config {item['Spec']['Name']}" for item in api.configs()]
    for name in lab.nodes:
        api = lab.client(name).api
        found += [f"{name} container {item['Names'][0]}" for item in api.containers(all=True)]
        found += [f"{name} volume {item['Name']}" for item in api.volumes()["Volumes"] or ()]
        found += [f"{name} network {item['Name']}" for item in api.networks() if item["Name"] not in _OF_DOCKER]
    return found


def assert_nothing_is_left(lab: Lab) -> float:
    """Wait for it; returns how many seconds it took."""
    began = time.monotonic()
    wait_until("nothing is left on any node", lambda: not left(lab), CLEAN_WITHIN_S, lambda: str(left(lab)))
    return time.monotonic() - began
