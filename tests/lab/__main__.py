"""`python -m tests.lab up|down`: a laboratory for a person, behind `make lab` and `make lab-down`; found again by its label."""

import argparse
import contextlib
import sys

from tests.lab import images, tools
from tests.lab.cluster import Lab, sizes, sweep
from tests.lab.node import GIB, UNREACHABLE, LabError
from tests.lab.outer import OuterDocker, connect


def _describe(lab: Lab) -> str:
    rows = [f"{'NODE':<12}{'ADDRESS':<17}{'CPUS':<6}{'MEMORY':<9}{'STATE':<8}DOCKER_HOST"]
    for name in lab.nodes:
        node = lab.node(name)
        memory = f"{node.size.memory_bytes / GIB:.0f} GiB"
        rows.append(f"{name:<12}{node.address:<17}{node.size.cpus:<6}{memory:<9}{lab.swarm_state(name):<8}{node.docker_host}")
    return "\n".join(rows)


def _hints(lab: Lab, url: str) -> str:
    last = f"{lab.folder.name}-{lab.nodes[-1]}"
    return f"""
The Swarm manager is {lab.manager}; this machine is {lab.gateway} to the nodes.
Images on every node: {images.TASK_TAG}, {images.PYTHON_TAG}. No registry can be reached from there.
Run SwarmTask on it:
  DOCKER_HOST={lab.docker_host(lab.manager)} swarmtask up --engine swarm --data-dir .cache/lab/data
and in another terminal:
  export KUBECONFIG=$(swarmtask kubeconfig --data-dir .cache/lab/data)
  kubectl get swarmnodes
Faults (docs/laboratory.md), with DOCKER_HOST={url}:
  docker pause {last} (a closed lid), docker kill {last} (a power cut),
  docker network disconnect {lab.folder.name} {last} (a pulled cable). `make lab` mends them, `make lab-down` removes it all."""


def _up(outer: OuterDocker, count: int) -> None:
    sweep(outer.url)
    lab = Lab.find(outer.url)
    if lab is not None and not lab.folder.is_dir():  # the machine was started anew since: what the nodes share is gone
        sweep(outer.url, kept=True)
        lab = None
    if lab is None:
        lab = Lab(sizes(count), docker_url=outer.url, keep=True).start()
    else:
        if len(lab.nodes) != count:
            print(f"a laboratory of {len(lab.nodes)} runs already; `make lab-down` first for one of {count}", file=sys.stderr)
        for name in lab.nodes:
            lab.node(name).restore()
        lab.wait_ready()
    for tag in (images.TASK_TAG, images.PYTHON_TAG):
        try:
            lab.load_image(tag)
        except tools.Missing as missing:
            print(missing, file=sys.stderr)
    print(_describe(lab))
    print(_hints(lab, outer.url), file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a laboratory, or mend the one that runs")
    up.add_argument("--nodes", type=int, default=3, choices=range(1, 21), metavar="1-20")
    commands.add_parser("down", help="remove it")
    chosen = parser.parse_args()
    try:
        with contextlib.closing(connect()) as outer:
            if chosen.command == "up":
                _up(outer, chosen.nodes)
            else:
                gone = sweep(outer.url, kept=True)
                print(f"removed: {', '.join(gone)}" if gone else "no laboratory was running", file=sys.stderr)
    except (tools.Missing, LabError, *UNREACHABLE) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
