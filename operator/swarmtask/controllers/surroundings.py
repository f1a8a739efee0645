"""What every controller is given: the API, the settings, and the sources of time and chance.

Built once by the operator. Only values and ways out; no state, no decisions.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from swarmtask.clock import Clock
from swarmtask.controllers.announcements import Announcer
from swarmtask.controllers.waiting import Timers
from swarmtask.kube import ObjectApi
from swarmtask.settings import OperatorSettings


@dataclass(frozen=True, slots=True)
class Surroundings:
    """See the module.

    Attributes:
        delays: timers on monotonic time. deadlines: timers on wall time, in seconds since the epoch.
    """

    api: ObjectApi
    settings: OperatorSettings
    clock: Clock
    rng: random.Random
    delays: Timers
    deadlines: Timers
    announcer: Announcer
