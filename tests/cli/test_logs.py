"""`logs` where the API keeps output: what is asked for, what is shown, and the engine as what is left."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import pytest

from swarmtask.cli.logs import _from, _moment
from swarmtask.engines.base import Workload
from swarmtask.resources.task import attempt_id
from tests.cli.conftest import Swarmtask
from tests.cli.tasks import add_task, attempt
from tests.fakes.engine import FakeEngine, Outcome
from tests.fakes.kube import FakeKube

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def _swarm(number: int = 1, state: str = "Succeeded", **more: object) -> dict[str, object]:
    return attempt(number, state, **more) | {"engine": "swarm", "bootID": "boot-1"}


def test_the_api_is_read_and_no_engine_is_asked(swarmtask: Swarmtask, kube: FakeKube, engine: FakeEngine) -> None:
    """The fake engine is only there under the name `local`: asking another one fails the test."""
    raw = b"\x1b[31mred\x1b[0m \xff\x00 bytes\n"
    add_task(kube, "lint", "Succeeded", attempt=2, attempts=[_swarm(1, "Failed"), _swarm(2)])
    kube.texts = {("lint", "1"): b"first\n", ("lint", "2"): raw}
    assert swarmtask("logs", "lint").stdout_bytes == raw, "a pipe gets the bytes as they are"
    assert swarmtask("logs", "lint", "--attempt", "1").stdout == "first\n"
    assert kube.asked_texts == [{"attempt": "2", "waitSeconds": "3"}, {"attempt": "1", "waitSeconds": "3"}]


def test_options_become_parameters(swarmtask: Swarmtask, kube: FakeKube, engine: FakeEngine) -> None:
    add_task(kube, "lint", "Succeeded", attempt=1, attempts=[_swarm()])
    kube.texts = {("lint", "1"): b"x\n"}
    for options in (("--tail", "5", "--timestamps", "--since", "2026-01-02T00:00:00Z"), ("-f", "--tail", "0")):
        result = swarmtask("logs", "lint", *options)
        assert (result.exit_code, result.stdout) == (0, "x\n"), result.stderr
    assert kube.asked_texts == [
        {
            "attempt": "1", "tailLines": "5", "sinceTime": "2026-01-02T00:00:00.000000Z", "timestamps": "true", "waitSeconds": "3",
        },
        {"attempt": "1", "follow": "true", "tailLines": "0", "waitSeconds": "3"},
    ]  # fmt: skip


def test_a_terminal_gets_nothing_that_steers_it(
    swarmtask: Swarmtask, kube: FakeKube, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_task(kube, "lint", "Succeeded", attempt=1, attempts=[_swarm()])
    kube.texts = {("lint", "1"): b"a\x1b]0;title\x07b\x1b[2J\x00c\n"}
    monkeypatch.setattr("swarmtask.cli.logs.sys", _Terminal())
    assert swarmtask("logs", "lint").stdout == "abc\n"


class _Terminal:
    """`sys` whose stdout says that it is a terminal."""

    class _Stdout:
        def __getattr__(self, name: str) -> object:
            return getattr(sys.stdout, name)

        def isatty(self) -> bool:
            return True

    stdout = _Stdout()


@pytest.mark.parametrize("options", [(), ("-f",)])
def test_without_an_agent_the_engine_is_read_as_before(
    swarmtask: Swarmtask, kube: FakeKube, engine: FakeEngine, options: tuple[str, ...]
) -> None:
    add_task(kube, "lint", "Succeeded", attempt=1, attempts=[attempt(1, "Succeeded", bootID="boot-1")])
    uid = "00000000-0000-4000-8000-000000000001"
    engine.add_node("n1")
    engine.adopt(
        Workload(attempt_id(uid, 1), uid, "default", "lint", 1, "n1", "acme/lint:1"),
        Outcome(output=(b"from the engine\n",), duration_s=0.0, prepare_s=0.0),
    )
    result = swarmtask("logs", "lint", *options)
    assert (result.exit_code, result.stdout) == (0, "from the engine\n"), (result.stderr, result.exception)
    assert "waitSeconds" not in kube.asked_texts[0], "no agent sends what the local engine runs"


async def test_lines_of_an_engine_since_a_time() -> None:
    async def chunks():
        yield b"2026-01-01T00:00:00.5Z old\n2026-01-02T00:00:00.000000001Z ne"
        yield b"w\n[swarmtask: a note]\n2026-01-03T00:00:00Z newer\nrest"

    assert b"".join([chunk async for chunk in _from(chunks(), NOW, timestamps=False)]) == b"new\n[swarmtask: a note]\nnewer\nrest"
    stamped = b"".join([chunk async for chunk in _from(chunks(), NOW, timestamps=True)])
    assert stamped.startswith(b"2026-01-02T00:00:00.000000001Z new\n")


@pytest.mark.parametrize(("text", "moment"), [
    ("90s", "2026-01-01T23:58:30+00:00"), ("10m", "2026-01-01T23:50:00+00:00"), ("2h", "2026-01-01T22:00:00+00:00"),
    ("1d", "2026-01-01T00:00:00+00:00"), ("999999999d", "1970-01-01T00:00:00+00:00"),
    ("2026-01-01T12:00:00+02:00", "2026-01-01T10:00:00+00:00"),
])  # fmt: skip
def test_what_since_means(text: str, moment: str) -> None:
    assert _moment(text, NOW).isoformat() == moment


@pytest.mark.parametrize("text", ["", "yesterday", "10", "-5m", "2026-01-01", "2026-01-01T00:00:00", "5 m"])
def test_a_since_that_is_none_is_explained(swarmtask: Swarmtask, kube: FakeKube, engine: FakeEngine, text: str) -> None:
    add_task(kube, "lint", "Succeeded", attempt=1, attempts=[_swarm()])
    result = swarmtask("logs", "lint", f"--since={text}")
    assert result.exit_code == 2
    assert "10m" in result.stderr


def test_an_engine_that_has_nothing_either_says_it_is_gone(swarmtask: Swarmtask, kube: FakeKube, engine: FakeEngine) -> None:
    add_task(kube, "lint", "Succeeded", attempt=1, attempts=[attempt(1, "Succeeded")])
    result = swarmtask("logs", "lint")
    assert (result.exit_code, "is gone" in result.stderr) == (3, True)
