"""The `swarmtask` program: the list of all commands.

Called by `start`. Every command registers itself from its own module.
"""

from __future__ import annotations

from swarmtask.cli import (
    apply,
    backups,
    demo,
    explain,
    get,
    images,
    info,
    logs,
    nodeagent,
    nodes,
    queues,
    run,
    serve,
    status,
    steer,
    tokens,
    up,
)
from swarmtask.cli.program import new_app

TASKS, NODES, CONTROL_PLANE, OTHER = "Tasks", "Nodes", "Control plane", "Other"

app = new_app()

up.register(app, CONTROL_PLANE)
status.register(app, CONTROL_PLANE)
info.register(app, CONTROL_PLANE)
serve.register(app, CONTROL_PLANE)
nodeagent.register(app, CONTROL_PLANE)
tokens.register(app, CONTROL_PLANE)
backups.register(app, CONTROL_PLANE)
run.register(app, TASKS)
apply.register(app, TASKS)
get.register(app, TASKS)
explain.register(app, TASKS)
logs.register(app, TASKS)
steer.register(app, TASKS)
queues.register(app, TASKS)
nodes.register(app, NODES)
images.register(app, NODES)
demo.register(app, OTHER)
info.register_version(app, OTHER)
