"""`swarmtask up`, `swarmtask apiserver` and `swarmtask operator` as a program of their own.

Called by `start`. The same commands as in `main`, without what the others import.
"""

from __future__ import annotations

from swarmtask.cli import serve, up
from swarmtask.cli.program import new_app

CONTROL_PLANE = "Control plane"

app = new_app()
up.register(app, CONTROL_PLANE)
serve.register(app, CONTROL_PLANE)
