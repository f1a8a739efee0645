"""Every event in every situation: what comes of it. Pairs that the table does not name change nothing at all."""

from __future__ import annotations

import pytest

from tests.lifecycle.situations import EVENTS, SITUATIONS, outcome

# situation -> {phase/reason/state of a live attempt that differs from the phase: [events]}
TABLE: dict[str, dict[str, list[str]]] = {
    "new": {
        "Queued": ["reconcile", "twin failed", "twin cancelled"],
        "Pending/QueueNotFound": ["queue gone"],
        "Pending/Deduplicated": ["twin runs"],
        "Succeeded/Deduplicated": ["twin succeeded"],
        "Failed/InvalidObject": ["invalid"],
    },
    "suspended": {
        "Failed/InvalidObject": ["invalid"],
    },
    "without queue": {
        "Queued": ["reconcile", "twin failed", "twin cancelled"],
        "Pending/Deduplicated": ["twin runs"],
        "Succeeded/Deduplicated": ["twin succeeded"],
        "Failed/InvalidObject": ["invalid"],
    },
    "deduplicated": {
        "Queued": ["reconcile", "twin cancelled"],
        "Pending/QueueNotFound": ["queue gone"],
        "Succeeded/Deduplicated": ["twin succeeded"],
        "Failed/Deduplicated": ["twin failed"],
        "Failed/InvalidObject": ["invalid"],
    },
    "queued": {
        "Pending/QueueNotFound": ["queue gone"],
        "Pending/Deduplicated": ["twin runs"],
        "Succeeded/Deduplicated": ["twin succeeded"],
        "Starting": ["bound"],
        "Queued/NoNodeFits": ["unplaced"],
        "Failed/InvalidObject": ["invalid"],
    },
    "bound": {
        "Starting/Preempted/Stopping": ["preempt"],
        "Starting/Drained/Stopping": ["drain"],
        "Starting": ["pending", "preparing", "invalid"],
        "Starting/ImagePullFailed": ["pull fails"],
        "Running": ["running"],
        "Unknown/NodeUnreachable": ["unknown", "node silent"],
        "Succeeded/Completed": ["exit 0", "node told 0"],
        "Backoff/Error": ["exit 1"],
        "Backoff/WorkloadLost": ["exit lost", "stopped", "vanished"],
        "Backoff/OOMKilled": ["oom"],
        "Backoff/NodeRestarted": ["restarted"],
        "Backoff/EngineRejected": ["rejected", "refused"],
        "Backoff/NodeLost": ["node gone", "node lost"],
    },
    "preparing": {
        "Starting/Preempted/Stopping": ["preempt"],
        "Starting/Drained/Stopping": ["drain"],
        "Starting/ImagePullFailed": ["pull fails"],
        "Running": ["running"],
        "Unknown/NodeUnreachable": ["unknown", "node silent"],
        "Succeeded/Completed": ["exit 0", "node told 0"],
        "Backoff/Error": ["exit 1"],
        "Backoff/WorkloadLost": ["exit lost", "stopped", "vanished"],
        "Backoff/OOMKilled": ["oom"],
        "Backoff/NodeRestarted": ["restarted"],
        "Backoff/EngineRejected": ["rejected"],
        "Backoff/NodeLost": ["node gone", "node lost"],
        "Starting": ["invalid"],
    },
    "running": {
        "Running/Preempted/Stopping": ["preempt"],
        "Running/Drained/Stopping": ["drain"],
        "Unknown/NodeUnreachable": ["unknown", "node silent"],
        "Succeeded/Completed": ["exit 0", "node told 0"],
        "Backoff/Error": ["exit 1"],
        "Backoff/WorkloadLost": ["exit lost", "stopped", "vanished"],
        "Backoff/OOMKilled": ["oom"],
        "Backoff/NodeRestarted": ["restarted"],
        "Backoff/EngineRejected": ["rejected"],
        "Backoff/NodeLost": ["node gone", "node lost"],
        "Running": ["invalid"],
    },
    "unknown before start": {
        "Unknown/Preempted/Stopping": ["preempt"],
        "Starting": ["pending", "preparing"],
        "Starting/ImagePullFailed": ["pull fails"],
        "Running": ["running"],
        "Succeeded/Completed": ["exit 0", "node told 0"],
        "Backoff/Error": ["exit 1"],
        "Backoff/WorkloadLost": ["exit lost", "stopped", "vanished"],
        "Backoff/OOMKilled": ["oom"],
        "Backoff/NodeRestarted": ["restarted"],
        "Backoff/EngineRejected": ["rejected"],
        "Backoff/NodeLost": ["node gone", "node lost"],
        "Unknown/NodeUnreachable": ["invalid"],
    },
    "unknown": {
        "Unknown/Preempted/Stopping": ["preempt"],
        "Running": ["pending", "preparing", "pull fails", "running"],
        "Succeeded/Completed": ["exit 0", "node told 0"],
        "Backoff/Error": ["exit 1"],
        "Backoff/WorkloadLost": ["exit lost", "stopped", "vanished"],
        "Backoff/OOMKilled": ["oom"],
        "Backoff/NodeRestarted": ["restarted"],
        "Backoff/EngineRejected": ["rejected"],
        "Backoff/NodeLost": ["node gone", "node lost"],
        "Unknown/NodeUnreachable": ["invalid"],
    },
    "stopping for start deadline": {
        "Starting/StartDeadline/Stopping": ["pull fails", "invalid"],
        "Running/StartDeadline/Stopping": ["running"],
        "Unknown/StartDeadline/Stopping": ["unknown", "node silent"],
        "Backoff/StartDeadline": ["exit 0", "node told 0", "exit 1", "exit lost", "oom", "rejected", "stopped"],
        "Backoff/NodeRestarted": ["restarted"],
        "Backoff/WorkloadLost": ["vanished"],
        "Backoff/NodeLost": ["node gone", "node lost"],
    },
    "stopping for active deadline": {
        "Unknown/ActiveDeadline/Stopping": ["unknown", "node silent"],
        "Backoff/ActiveDeadline": ["exit 0", "node told 0", "exit 1", "exit lost", "oom", "rejected", "stopped", "vanished"],
        "Backoff/NodeRestarted": ["restarted"],
        "Backoff/NodeLost": ["node gone", "node lost"],
        "Running/ActiveDeadline/Stopping": ["invalid"],
    },
    "stopping for suspend": {
        "Unknown/Suspended/Stopping": ["unknown", "node silent"],
        "Pending/Suspended": [
            "exit 0",
            "node told 0",
            "exit 1",
            "exit lost",
            "oom",
            "restarted",
            "rejected",
            "stopped",
            "vanished",
            "node gone",
            "node lost",
        ],
        "Running/Suspended/Stopping": ["invalid"],
    },
    "stopping for preemption": {
        "Unknown/Preempted/Stopping": ["unknown", "node silent"],
        "Queued": [
            "exit 0",
            "node told 0",
            "exit 1",
            "exit lost",
            "oom",
            "restarted",
            "rejected",
            "stopped",
            "vanished",
            "node gone",
            "node lost",
        ],
        "Running/Preempted/Stopping": ["invalid"],
    },
    "stopping for drain": {
        "Unknown/Drained/Stopping": ["unknown", "node silent"],
        "Queued": [
            "exit 0",
            "node told 0",
            "exit 1",
            "exit lost",
            "oom",
            "restarted",
            "rejected",
            "stopped",
            "vanished",
            "node gone",
            "node lost",
        ],
        "Running/Drained/Stopping": ["invalid"],
    },
    "stopping for cancel": {
        "Unknown/Cancelled/Stopping": ["unknown", "node silent"],
        "Cancelled/Cancelled": [
            "exit 0",
            "node told 0",
            "exit 1",
            "exit lost",
            "oom",
            "restarted",
            "rejected",
            "stopped",
            "vanished",
            "node gone",
            "node lost",
        ],
        "Running/Cancelled/Stopping": ["invalid"],
    },
    "stopping for delete": {
        "Unknown/Deleted/Stopping": ["unknown", "node silent"],
        "Cancelled/Deleted": [
            "exit 0",
            "node told 0",
            "exit 1",
            "exit lost",
            "oom",
            "restarted",
            "rejected",
            "stopped",
            "vanished",
            "node gone",
            "node lost",
        ],
        "Running/Deleted/Stopping": ["invalid"],
    },
    "stopping unseen": {
        "Starting/Cancelled/Stopping": ["pending", "preparing", "pull fails", "invalid"],
        "Running/Cancelled/Stopping": ["running"],
        "Unknown/Cancelled/Stopping": ["unknown", "node silent"],
        "Cancelled/Cancelled": [
            "exit 0",
            "node told 0",
            "exit 1",
            "exit lost",
            "oom",
            "restarted",
            "rejected",
            "stopped",
            "vanished",
            "refused",
            "node gone",
            "node lost",
        ],
    },
    "stopping on a silent node": {
        "Running/Cancelled/Stopping": ["pending", "preparing", "pull fails", "running"],
        "Cancelled/Cancelled": [
            "exit 0",
            "node told 0",
            "exit 1",
            "exit lost",
            "oom",
            "restarted",
            "rejected",
            "stopped",
            "vanished",
            "node gone",
            "node lost",
        ],
        "Unknown/Cancelled/Stopping": ["invalid"],
    },
    "backoff": {
        "Failed/InvalidObject": ["invalid"],
    },
    "succeeded": {},
    "failed": {},
    "cancelled": {},
    "expired": {},
}


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("event", EVENTS)
def test_transition(situation: str, event: str) -> None:
    story = SITUATIONS[situation]()
    before = outcome(story)
    expected = next((result for result, events in TABLE[situation].items() if event in events), None)
    transition = story.tell(EVENTS[event](story))
    assert transition.changed == (expected is not None)
    assert outcome(story) == (expected or before)


def test_the_table_names_only_what_exists() -> None:
    assert set(TABLE) == set(SITUATIONS)
    named = [event for row in TABLE.values() for events in row.values() for event in events]
    assert set(named) <= set(EVENTS)
    for situation, row in TABLE.items():
        events = [event for group in row.values() for event in group]
        assert len(events) == len(set(events)), situation
