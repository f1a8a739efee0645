"""What a node offers, by everybody's word together."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize(
    ("vendors", "engines", "offered"),
    [
        (["intel"], [{"gpuVendors": ["nvidia"]}], False),
        (["intel", "NVIDIA"], [{"gpuVendors": ["nvidia"]}], True),
        ([""], [{"gpuVendors": ["nvidia"]}], True),
        (["amd"], [{}], True),
        (["amd"], [{}, {"gpuVendors": ["nvidia"]}], False),
        (["amd"], [{"gpuVendors": []}], False),
        ([], [{"gpuVendors": ["nvidia"]}], True),
    ],
)
def test_gpus_that_nobody_can_be_given_are_no_capability_by_the_agent_s_word(
    vendors: list[str], engines: list[dict[str, object]], offered: bool
) -> None:
    status = {
        "gpus": [{"index": index, "vendor": vendor} for index, vendor in enumerate(vendors)],
        "engines": [{"name": f"e{number}", "id": "n"} | engine for number, engine in enumerate(engines)],
        "capabilities": ["docker", "gpu"],
    }
    node = SwarmNode.model_validate({"metadata": {"name": "n"}, "status": status})
    assert ("gpu" in capabilities_of(node)) == offered
    node.spec.capabilities = ["gpu"]
    assert "gpu" in capabilities_of(node), "a person knows"
