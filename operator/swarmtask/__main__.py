"""`python -m swarmtask` is the `swarmtask` command."""

from swarmtask.cli.start import start

if __name__ == "__main__":
    start()
