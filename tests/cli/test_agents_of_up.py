"""When `swarmtask up` puts agents on nodes, and where the API listens for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmtask import wiring
from swarmtask.cli import dockerhost
from swarmtask.cli.halves import with_agents
from swarmtask.cli.up import ChosenEngine, is_loopback, prepare_agents
from swarmtask.errors import ConfigurationError
from swarmtask.settings import Settings, load_settings

SWARM, LOCAL = ChosenEngine("swarm", ""), ChosenEngine("local", "")


@pytest.fixture(autouse=True)
def image(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether this machine has the agent's image."""
    here = [True]
    monkeypatch.setattr(dockerhost, "has_image", lambda host, image: here[0])
    return here


def settings(tmp_path: Path, text: str = "") -> Settings:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return load_settings(path, data_dir=tmp_path)


async def test_agents_are_deployed_and_the_api_listens_for_them(tmp_path: Path) -> None:
    found = await prepare_agents(settings(tmp_path), SWARM, listen_given=False)
    assert (found.agents.deploy, found.apiserver.host) == (True, "0.0.0.0")


async def test_an_address_that_was_chosen_stays(tmp_path: Path) -> None:
    given = settings(tmp_path, "apiserver: {host: 192.168.1.10}")
    found = await prepare_agents(given, SWARM, listen_given=False)
    assert (found.agents.deploy, found.apiserver.host) == (True, "192.168.1.10")


async def test_nobody_opens_an_api_that_was_told_to_stay_here(tmp_path: Path) -> None:
    for given, listen_given in ((settings(tmp_path), True), (settings(tmp_path, "apiserver: {host: 127.0.0.1}"), False)):
        found = await prepare_agents(given, SWARM, listen_given=listen_given)
        assert (found.agents.deploy, found.apiserver.host) == (False, "127.0.0.1")
    known = settings(tmp_path, "agents: {api_url: 'https://desktop.lan:7443'}")
    found = await prepare_agents(known, SWARM, listen_given=True)
    assert (found.agents.deploy, found.apiserver.host) == (True, "127.0.0.1"), "somebody forwards it"


async def test_no_agents_is_no_agents(tmp_path: Path) -> None:
    found = await prepare_agents(with_agents(settings(tmp_path), False), SWARM, listen_given=False)
    assert (found.agents.deploy, found.apiserver.host) == (False, "127.0.0.1")
    assert not (await prepare_agents(settings(tmp_path), LOCAL, listen_given=False)).agents.deploy


async def test_what_was_asked_for_and_cannot_be_is_refused(tmp_path: Path, image: list[bool]) -> None:
    asked = settings(tmp_path, "agents: {deploy: true}")
    with pytest.raises(ConfigurationError, match="the engine is local"):
        await prepare_agents(asked, LOCAL, listen_given=False)
    with pytest.raises(ConfigurationError, match="--listen"):
        await prepare_agents(asked, SWARM, listen_given=True)
    image[0] = False
    with pytest.raises(ConfigurationError, match="make image"):
        await prepare_agents(asked, SWARM, listen_given=False)
    found = await prepare_agents(settings(tmp_path), SWARM, listen_given=False)
    assert (found.agents.deploy, found.apiserver.host) == (False, "127.0.0.1"), "and nothing is opened for nobody"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("desk", False)],
)
def test_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("server", "address", "url"),
    [
        ("https://127.0.0.1:7443", "192.168.1.10", "https://192.168.1.10:7443"),
        ("https://localhost:7443", "192.168.1.10", "https://192.168.1.10:7443"),
        ("https://[::1]:7443", "fd00::1", "https://[fd00::1]:7443"),
        ("https://127.0.0.1", "192.168.1.10", "https://192.168.1.10"),
        ("https://127.0.0.1:7443", "", "https://127.0.0.1:7443"),
        ("https://10.0.0.1:7443", "192.168.1.10", "https://10.0.0.1:7443"),
        ("https://desk.lan:7443", "192.168.1.10", "https://desk.lan:7443"),
    ],
)
def test_how_nodes_reach_the_api(server: str, address: str, url: str) -> None:
    assert wiring.reachable(server, address) == url
