"""How long each node has been silent, by this operator's own clock, and only while it could hear.

Called by `leases`, which tells what it reads; knows no API and decides nothing about attempts. A node's Lease is a sign of life
when it has changed since it was read last, whatever time stands in it: clocks of laptops are wrong. Silence counts only while
complete reads of the Leases succeed one after another: when the API was away, or this process was stopped, no node can be blamed
for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from swarmtask.kube import Object
from swarmtask.lifecycle.loss import NO_AGENT, Hearing, NodeWord
from swarmtask.resources.fields import MOST_BOOT_ID

LONGEST_HOLD_S = 3600
"""No agent is told to fence later."""
UNREAD_S = 4.0
"""An agent that has made its Lease since the last complete read stops nothing for so long: no fence is shorter than 5 s."""
DEAF_S = 3.0
"""Complete reads that are farther apart than this leave a gap in which nothing could be heard."""


@dataclass
class _Lease:
    """What is remembered of one. Times are of the clock that stands still while nothing can be heard."""

    version: int
    mark: tuple[Any, Any]
    boot_id: str
    sign_at: float
    """Its last sign of life; before the first one, when this operator began to listen."""
    renewed_at: float
    """The same, whatever its engine says."""
    heard_since: float | None = None
    """When it was heard after a silence or for the first time; None: it has not been heard."""
    heard_s: float = 0.0
    """When it fell silent: for how long it had been heard before."""
    holds_s: float = 0.0
    exact: bool = False
    silent: bool = False
    vouched: bool = False


class Ears:
    """See the module.

    Args:
        unreachable_s: a node that was silent for so long is lost.
        vouch_s: a node that was silent for so long, and that its engine still reaches, has lost no more than its agent. Longer than
            an engine takes to see that a node is gone.
        missed: asked of a name that is new: was its agent given up for silent, with its engine vouching for the node?
    """

    def __init__(self, unreachable_s: float, vouch_s: float, missed: Callable[[str], bool] = lambda name: False) -> None:
        self._unreachable_s, self._vouch_s, self._missed = unreachable_s, vouch_s, missed
        self._leases: dict[str, _Lease] = {}
        self._deaf_s = 0.0
        self._listed_at: float | None = None
        self._read_at: float | None = None
        """When the newest complete read was asked for; before the first one, nobody knows which nodes have an agent."""

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def open(self) -> bool:
        """All Leases that there are were read at least once."""
        return self._read_at is not None

    @property
    def names(self) -> list[str]:
        return list(self._leases)

    # --- what is read; times are monotonic ---

    def read(self, lease: Object, now: float) -> bool:
        """One Lease, from a list or a watch. True when that is a sign of life. News that came late or twice is none."""
        metadata, spec = lease["metadata"], lease.get("spec") or {}
        name, version = metadata["name"], int(metadata["resourceVersion"])
        holder = str(spec.get("holderIdentity") or "")[:MOST_BOOT_ID]  # longer than any is; an attempt keeps it
        if holder == name:
            return False  # a kubelet's: where a node is one of Kubernetes as well, that is another daemon's word
        mark, at = (holder, spec.get("renewTime")), self._heard_clock(now)
        known = self._leases.get(name)
        if known is None:
            missed = self._missed(name)  # then it was silent long before this operator began
            began = float("-inf") if missed else at
            self._leases[name] = _Lease(version, mark, holder, at, began, holds_s=_holds_s(spec), vouched=missed)
            return False
        if version <= known.version:
            return False
        renewed = mark != known.mark
        known.version, known.mark, known.boot_id, known.holds_s = version, mark, holder, _holds_s(spec)
        if renewed:
            if known.heard_since is None or known.silent:
                known.heard_since = at
            known.sign_at = known.renewed_at = at
            known.exact, known.silent, known.vouched = True, False, False
        return renewed

    def opened(self, asked_at: float) -> None:
        """All Leases that there were then have been read."""
        self._read_at = asked_at if self._read_at is None else max(self._read_at, asked_at)

    def gone(self, name: str) -> None:
        """Its Lease was deleted: it has no agent any more."""
        self._leases.pop(name, None)

    def listed(self, leases: Collection[Object], asked_at: float) -> None:
        """A complete read that was asked for then, and shows nothing older than that moment."""
        self.opened(asked_at)
        if self._listed_at is not None and asked_at - self._listed_at > DEAF_S:
            self._deaf_s += asked_at - self._listed_at
            for lease in self._leases.values():
                lease.exact = False  # its own agent counts this time, too
                if not lease.silent:
                    lease.sign_at = lease.renewed_at = max(lease.sign_at, self._heard_clock(asked_at))
                    lease.heard_since = None
        self._listed_at = asked_at
        for obj in leases:
            self.read(obj, asked_at)
        for name in self._leases.keys() - {obj["metadata"]["name"] for obj in leases}:
            self.gone(name)
        for lease in self._leases.values():
            if self._silence_s(lease) >= self._unreachable_s and not lease.silent:
                lease.heard_s = 0.0 if lease.heard_since is None else lease.sign_at - lease.heard_since
                lease.silent, lease.vouched, lease.heard_since = True, False, None

    def vouch(self, name: str) -> bool:
        """Its engine reaches the node now. True when that is believed although its agent is silent: see `vouch_s`."""
        lease = self._leases.get(name)
        if lease is None or not (lease.vouched or (lease.silent and self._silence_s(lease) >= self._vouch_s)):
            return False
        if self._listed_at is not None:
            lease.sign_at = max(lease.sign_at, self._heard_clock(self._listed_at))
        lease.silent, lease.vouched = False, True
        return True

    # --- what follows ---

    def word(self, name: str, now: float) -> NodeWord:
        """What is known of a node now; of one without a Lease that it has no agent."""
        lease = self._leases.get(name)
        if lease is None:
            return NO_AGENT if self.open else NodeWord(Hearing.NEW)
        if lease.silent:
            return NodeWord(Hearing.SILENT, self._silence_s(lease), lease.exact, lease.boot_id, lease.holds_s, lease.heard_s)
        if lease.vouched:
            quiet_s = self._silence_s(lease) + lease.sign_at - lease.renewed_at
            return NodeWord(Hearing.VOUCHED, quiet_s, lease.exact, lease.boot_id, heard_s=lease.heard_s)
        deaf = self._listed_at is None or now - self._listed_at > DEAF_S
        if lease.heard_since is None or deaf:
            return NodeWord(Hearing.NEW, boot_id=lease.boot_id)
        return NodeWord(Hearing.HEARD, max(0.0, self._heard_clock(now) - lease.heard_since), boot_id=lease.boot_id)

    def fresh(self, now: float) -> bool:
        """No agent that nobody here knows of can have stopped anything yet."""
        return self._read_at is not None and now - self._read_at <= UNREAD_S

    def vouched(self, name: str) -> bool:
        """Its agent is silent, and its engine reaches it."""
        lease = self._leases.get(name)
        return lease is not None and lease.vouched

    def silent(self) -> Iterator[str]:
        """Nodes that are lost."""
        return (name for name, lease in self._leases.items() if lease.silent)

    def next_look_s(self, now: float, most_s: float) -> float:
        """Seconds until the next complete read is worth its while: at once when a node's silence is over its bound."""
        at = self._heard_clock(now)
        ahead = [lease.sign_at + self._unreachable_s - at for lease in self._leases.values() if not lease.silent]
        return max(0.05, min([most_s, *(moment for moment in ahead if moment > 0)]))

    def _silence_s(self, lease: _Lease) -> float:
        return 0.0 if self._listed_at is None else max(0.0, self._heard_clock(self._listed_at) - lease.sign_at)

    def _heard_clock(self, now: float) -> float:
        return now - self._deaf_s


def _holds_s(spec: Object) -> float:
    """What a Lease says of its duration; nobody can hold up the replacement of his work for ever by it."""
    told = spec.get("leaseDurationSeconds")
    return float(min(told, LONGEST_HOLD_S)) if isinstance(told, int) else 0.0
