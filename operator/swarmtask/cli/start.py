"""The console script's first step: Ctrl-C while the program is still being read in ends it quietly, not with a traceback.

Called by the console script and by `python -m swarmtask`. Imports nothing at its top but what is there already.
"""

from __future__ import annotations

import signal


def start() -> None:
    """Run the program; never returns."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from swarmtask.cli.main import main  # noqa: PLC0415 - this import is what takes the time

    signal.signal(signal.SIGINT, before)
    main()
