"""`python -m swarmtask` is the `swarmtask` command."""

from swarmtask.cli.main import main

if __name__ == "__main__":
    main()
