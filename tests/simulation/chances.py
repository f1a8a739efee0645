"""Which faults happen in a run, how often, and whether one strikes now.

Used by the flaky API, the flaky engine and the plan of a run. Every seed draws its own mixture: some kinds of faults are off, the
others are rare, common or heavy, because a run in which everything fails all the time never gets deep into anything.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final

PER_CALL: Final[Mapping[str, float]] = {
    "api.slow": 0.05, "api.late": 0.05, "api.error": 0.03, "api.conflict": 0.04, "api.lost": 0.03,
    "api.wire": 0.02,
    "watch.break": 0.01, "watch.expire": 0.01, "watch.late": 0.1, "watch.repeat": 0.05,
    "hint.drop": 0.3, "hint.late": 0.1, "hint.repeat": 0.1,
    "engine.slow": 0.1, "engine.late": 0.1, "engine.error": 0.05, "engine.lost": 0.05, "engine.wire": 0.03,
    "engine.ghost": 0.03,
}  # fmt: skip
"""Kind of fault -> how likely it strikes one call or one event, when it is common."""

PER_MINUTE: Final[Mapping[str, float]] = {
    "crash": 3, "crashpoint": 3, "stall": 1, "api.down": 1, "api.hold": 2, "api.expire": 1, "engine.down": 1,
    "node.lost": 3, "node.flap": 1, "node.leave": 0.4, "clock.jump": 1, "orphan": 1, "removed": 1,
    "person.task": 8, "person.node": 3, "person.queue": 3, "agent.lost": 1,
}  # fmt: skip
"""Kind of fault -> how often it happens in a minute, when it is common."""

KINDS: Final = (*PER_CALL, *PER_MINUTE)
OFF: Final[frozenset[str]] = frozenset()
"""Kinds that happen only when they are asked for, because the operator is known not to withstand them (docs/simulation.md)."""
LEVELS: Final = (0.0, 0.0, 0.3, 1.0, 2.0)


class Chances:
    """See the module.

    Args:
        weights: what a workload makes likelier (2.0) or rarer (0.5); by kind, or by its first word.
        without: kinds, or first words of kinds, that are off.

    Attributes:
        active: False ends all faults.
        struck: how often each kind has struck so far.
        allowed: kinds that nobody has switched off, whether this run drew them or not.
    """

    def __init__(self, rng: random.Random, weights: Mapping[str, float], without: Collection[str] = ()) -> None:
        self.rng = rng
        self.active = True
        self.struck: Counter[str] = Counter()
        self.rates: dict[str, float] = {}
        self.allowed: set[str] = set()
        for kind, rate in (PER_CALL | PER_MINUTE).items():
            group = kind.partition(".")[0]
            weight = weights.get(kind, weights.get(group, 1.0))
            level = rng.choice(LEVELS) * weight
            wanted = kind not in OFF or kind in weights
            if wanted and not {kind, group} & set(without):
                self.rates[kind] = level * rate
                if weight:
                    self.allowed.add(kind)

    def hit(self, kind: str) -> bool:
        """Does a fault of this kind strike now?"""
        rate = self.rates.get(kind, 0.0)
        strikes = self.active and rate > 0 and self.rng.random() < rate
        if strikes:
            self.struck[kind] += 1
        return strikes

    def delay_s(self) -> float:
        """How long something that is slow takes: mostly little, now and then much."""
        return self.rng.choice((0.0, 0.01, 0.05, self.rng.uniform(0, 1), self.rng.uniform(0, 6)))

    def __str__(self) -> str:
        return " ".join(f"{kind}={rate:g}" for kind, rate in self.rates.items() if rate) or "none"


assert not PER_CALL.keys() & PER_MINUTE.keys()
