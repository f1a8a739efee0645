"""What a person may not say of a node: refused with the field and how it is written."""

from __future__ import annotations

import httpx
import pytest

NODES = "/apis/swarmtask.io/v1alpha1/swarmnodes"


def node(**spec: object) -> dict[str, object]:
    return {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode", "metadata": {"name": "laptop"}, "spec": spec}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("quietHours", "25:00-07:00", "25:00 is no time of a day: write 00:00 to 24:00"),
        ("quietHours", "nights", "'nights' are no quiet hours: write for example 22:00-07:00"),
        ("quietHours", "22:00-07:00 Mars/Base", "there is no time zone 'Mars/Base' here"),
        ("quietHours", "22:00–07:00", "spec.quietHours"),
        ("quietHours", "22:00-07:00," * 11, "spec.quietHours"),
        ("minBatteryPercent", 101, "spec.minBatteryPercent"),
        ("drain", "yes", "spec.drain"),
    ],
)
async def test_it_is_refused_with_the_reason(api: httpx.AsyncClient, field: str, value: object, words: str) -> None:
    response = await api.post(NODES, json=node(**{field: value}))
    assert response.status_code == 422, response.text
    status = response.json()
    assert words in status["message"]
    assert [cause["field"] for cause in status["details"]["causes"]] == [f"spec.{field}"]
    assert (await api.get(NODES)).json()["items"] == []


async def test_what_is_right_is_kept_as_it_was_written(api: httpx.AsyncClient) -> None:
    text = " 22:00-07:00, Mon-Fri 09:00-17:30 Europe/Berlin"
    response = await api.post(NODES, json=node(quietHours=text, minBatteryPercent=30, drain=True))
    assert response.status_code == 201, response.text
    assert response.json()["spec"]["quietHours"] == text
