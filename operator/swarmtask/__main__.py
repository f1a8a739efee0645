"""`python -m swarmtask` is the `swarmtask` command.

The two halves of the control plane are started this way and stay for weeks: they load their own commands alone, and not the Docker
SDK and the client libraries that the other commands need (16 MB of memory in the API server).
"""

import sys

SERVING = (["apiserver"], ["operator"])

if __name__ == "__main__":
    if sys.argv[1:2] in SERVING:
        from swarmtask.cli.serving import app
    else:
        from swarmtask.cli.main import app
    from swarmtask.cli.program import run

    run(app)
