"""What a node offers, by everybody's word together."""

from __future__ import annotations

from swarmtask.resources.node import SwarmNode, capabilities_of


def test_a_person_the_agent_and_labels_add_up() -> None:
    node = SwarmNode.model_validate(
        {
            "metadata": {
                "name": "laptop-1",
                "labels": {
                    "swarmtask.io/capability.coding": "true", "swarmtask.io/capability.gpu": "false",
                    "swarmtask.io/capabilityx": "true", "swarmtask.io/arch": "true",
                },
            },
            "spec": {"capabilities": ["browser", "docker"]},
            "status": {"capabilities": ["docker", "kvm"]},
        }
    )  # fmt: skip
    assert capabilities_of(node) == {"coding", "browser", "docker", "kvm"}
    assert capabilities_of(SwarmNode.model_validate({"metadata": {"name": "n"}})) == frozenset()
