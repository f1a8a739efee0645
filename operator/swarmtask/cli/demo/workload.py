"""What the demo runs: six analyses of a source tree, of different sizes and priorities, one of which fails at first.

Called by `demo.command`. Each is a plain script of the standard library in `scripts/`; this module only says how it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import swarmtask
from swarmtask.kube import Object
from swarmtask.resources.meta import API_VERSION

SCRIPTS = Path(__file__).parent / "scripts"
SECRET_NAME, SECRET_KEY = "demo-signing", "key"
SIGNING_TASK = "sign-sources"


@dataclass(frozen=True, slots=True)
class DemoTask:
    """One analysis.

    Attributes:
        fails_first: its first attempt must fail and a later one succeed.
    """

    name: str
    script: str
    priority: str
    cpu: str
    memory: str
    fails_first: bool = False


TASKS = (
    DemoTask("find-duplicates", "find_duplicates.py", "low", "1", "256Mi"),
    DemoTask("import-graph", "import_graph.py", "normal", "500m", "192Mi"),
    DemoTask("longest-functions", "longest_functions.py", "normal", "500m", "192Mi"),
    DemoTask("word-frequencies", "word_frequencies.py", "low", "250m", "96Mi"),
    DemoTask(SIGNING_TASK, "sign_sources.py", "normal", "100m", "64Mi", fails_first=True),
    DemoTask("count-lines", "count_lines.py", "high", "250m", "96Mi"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the attempts find things, and where they run.

    Attributes:
        image: a local image, or a name that the local engine ignores.
        python: the interpreter, as the attempt sees it; scripts, sources: likewise.
        node: only there, because only there the image is; empty means anywhere.
    """

    engine: str
    image: str
    python: str
    scripts: str
    sources: str
    node: str = ""


def find_sources() -> Path:
    """The sources to analyse: this repository's package, as it is installed or cloned."""
    return Path(swarmtask.__file__).parent


def manifests(place: Place) -> Sequence[Object]:
    """The SwarmTasks, in the order in which they are submitted."""
    return [_manifest(task, place) for task in TASKS]


def _manifest(task: DemoTask, place: Place) -> Object:
    container: Object = {
        "image": place.image,
        "command": [place.python, "-B", f"{place.scripts}/{task.script}", place.sources],
        "resources": {"requests": {"cpu": task.cpu, "memory": task.memory}},
    }
    if task.fails_first:
        reference = {"name": SECRET_NAME, "key": SECRET_KEY, "optional": True}
        container["env"] = [{"name": "SIGNING_KEY", "valueFrom": {"secretKeyRef": reference}}]
    return {
        "apiVersion": API_VERSION,
        "kind": "SwarmTask",
        "metadata": {"name": task.name, "labels": {"app": "demo"}},
        "spec": {
            "priorityClass": task.priority,
            "engine": place.engine,
            "container": container,
            "placement": {"nodeName": place.node},
            "backoffLimit": 5,
            "backoff": {"type": "linear", "initialSeconds": 1, "maxSeconds": 5},
            "startDeadlineSeconds": 60,
            "activeDeadlineSeconds": 60,
        },
    }
