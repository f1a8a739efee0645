"""How long a silent node is waited for: never shorter than its engine needs to say that it is well."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from swarmtask import wiring
from swarmtask.cli.controlplane import ControlPlane
from swarmtask.clock import SystemClock
from swarmtask.controllers.leases import VOUCH_S, require_patience
from swarmtask.errors import ConfigurationError
from swarmtask.settings import OperatorSettings, Settings
from tests.fakes.kube import FakeKube

SHORT = OperatorSettings(fence_s=12, fence_margin_s=13)


def test_the_defaults_are_patient_enough() -> None:
    require_patience(OperatorSettings())


@pytest.mark.parametrize(("fence_s", "margin_s"), [(12, 13), (5, 5), (20, 5), (16.5, 8.5)])
def test_a_replacement_before_the_engine_can_vouch_is_refused_with_what_to_write(fence_s: float, margin_s: float) -> None:
    with pytest.raises(ConfigurationError, match=f"more than {VOUCH_S:g} s together") as caught:
        require_patience(OperatorSettings(fence_s=fence_s, fence_margin_s=margin_s))
    said = str(caught.value)
    assert f"operator.fence_s ({fence_s:g})" in said and f"operator.fence_margin_s ({margin_s:g})" in said
    # Either piece of advice alone is enough.
    more_margin, longer_fence = (float(number) for number in re.findall(r"to (\d+) or more", said))
    require_patience(OperatorSettings(fence_s=fence_s, fence_margin_s=more_margin))
    require_patience(OperatorSettings(fence_s=longer_fence, fence_margin_s=margin_s))


def test_a_hair_more_than_that_is_enough() -> None:
    require_patience(OperatorSettings(fence_s=VOUCH_S - 10, fence_margin_s=10.001))
    require_patience(OperatorSettings(fence_s=VOUCH_S, fence_margin_s=5))


def test_a_margin_in_which_an_agent_may_not_be_able_to_kill_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"operator\.fence_margin_s \(4\.9\) must be 5 s or more"):
        require_patience(OperatorSettings(fence_s=60, fence_margin_s=4.9))
    require_patience(OperatorSettings(fence_s=60, fence_margin_s=5))


async def test_neither_the_operator_nor_up_starts_with_it_on_a_swarm(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", operator=SHORT)
    with pytest.raises(ConfigurationError, match=r"fence_margin_s to 14 or more, or operator\.fence_s to 13 or more"):
        await wiring.operate(settings, SystemClock(), FakeKube(SystemClock()), ("swarm",), asyncio.Event(), asyncio.Event())
    with pytest.raises(ConfigurationError, match="fence_margin_s"):
        async with ControlPlane(settings, "swarm", SystemClock()).running():
            pass
    assert not settings.data_dir.exists(), "nothing was started"


def test_the_local_engine_loses_no_nodes(tmp_path: Path) -> None:
    wiring.require_sound(Settings(data_dir=tmp_path, operator=SHORT), ("local",))
