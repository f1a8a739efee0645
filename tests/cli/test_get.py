"""`swarmtask get` and `swarmtask status`: what is shown, in which form, and that a server cannot steer the terminal."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from swarmtask.cli import tables, terminal
from swarmtask.clock import format_time
from swarmtask.errors import Expired, ServiceUnavailable
from swarmtask.resources.kinds import SWARM_TASK
from tests.cli.conftest import Swarmtask
from tests.cli.tasks import add_node, add_queue, add_task
from tests.fakes.kube import FakeKube


def test_a_table_is_aligned_and_has_kubectls_columns(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "lint", "Running", nodeName="desk", attempt=1)
    add_task(kube, "a-task-with-a-long-name", "Queued", queuePosition=2)
    result = swarmtask("get", "tasks")
    assert result.exit_code == 0, result.stderr
    heading, *rows = result.stdout.splitlines()
    assert heading.split() == ["NAME", "PHASE", "QUEUE", "POSITION", "NODE", "ATTEMPT", "REASON", "AGE"]
    phase, node = heading.index("PHASE"), heading.index("NODE")
    by_name = {row.split()[0]: row for row in rows}
    assert by_name["lint"][phase:].startswith("Running")
    assert by_name["lint"][node:].startswith("desk")
    assert by_name["a-task-with-a-long-name"][phase:].startswith("Queued")
    assert result.stderr == ""


def test_wide_shows_more_columns(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "lint")
    heading, row = swarmtask("get", "tasks", "-o", "wide").stdout.splitlines()
    assert "IMAGE" in heading and "acme/lint:1" in row


@pytest.mark.parametrize("word", ["tasks", "task", "st", "swarmtasks", "swarmtask", "swarmtasks.swarmtask.io", "TASKS"])
def test_every_usual_spelling_of_a_kind_works(swarmtask: Swarmtask, kube: FakeKube, word: str) -> None:
    add_task(kube, "lint")
    assert swarmtask("get", word, "-o", "name").stdout == "swarmtask.swarmtask.io/lint\n"


def test_one_object_as_json_stands_alone_and_several_are_a_list(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "one")
    add_task(kube, "two")
    single = json.loads(swarmtask("get", "task", "one", "-o", "json").stdout)
    assert single["metadata"]["name"] == "one"
    assert "managedFields" not in single["metadata"]
    listing = json.loads(swarmtask("get", "tasks", "-o", "json").stdout)
    assert listing["kind"] == "List"
    assert {item["metadata"]["name"] for item in listing["items"]} == {"one", "two"}
    assert yaml.safe_load(swarmtask("get", "tasks", "-o", "yaml").stdout)["kind"] == "List"
    assert yaml.safe_load(swarmtask("get", "task/one", "-o", "yaml").stdout)["metadata"]["name"] == "one"


def test_nothing_found_is_said_on_stderr_and_json_stays_json(swarmtask: Swarmtask, kube: FakeKube) -> None:
    result = swarmtask("get", "tasks")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No swarmtasks found in namespace default." in result.stderr
    assert json.loads(swarmtask("get", "tasks", "-o", "json").stdout)["items"] == []


def test_namespaces_are_kept_apart(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "here")
    add_task(kube, "there", namespace="elsewhere")
    assert swarmtask("get", "tasks", "-o", "name").stdout.split() == ["swarmtask.swarmtask.io/here"]
    assert swarmtask("get", "tasks", "-n", "elsewhere", "-o", "name").stdout.split() == ["swarmtask.swarmtask.io/there"]
    assert swarmtask("get", "tasks", "--context", "other", "-o", "name").stdout.split() == ["swarmtask.swarmtask.io/there"]
    everything = swarmtask("get", "tasks", "-A").stdout
    assert everything.splitlines()[0].startswith("NAMESPACE")
    assert "elsewhere" in everything and "here" in everything


def test_a_selector_selects(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "lint")
    assert "lint" in swarmtask("get", "tasks", "-l", "app=test").stdout
    assert swarmtask("get", "tasks", "-l", "app=other").stdout == ""


def test_what_does_not_exist_is_exit_code_3(swarmtask: Swarmtask, kube: FakeKube) -> None:
    result = swarmtask("get", "task", "missing")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert "missing" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "pods"),
        ("get", "tasks", "one", "-l", "a=b"),
        ("get", "tasks", "one", "-A"),
        ("get", "tasks", "one", "two", "-w"),
        ("get", "tasks", "-o", "xml"),
        ("frobnicate",),
        ("cancel",),
        ("cancel", "one", "-l", "a=b"),
        ("run", "image", "--env", "novalue"),
        ("run", "image", "--priority", "urgent"),
        ("apply",),
        ("logs",),
    ],
)
def test_a_wrong_command_line_is_exit_code_2_and_says_why(swarmtask: Swarmtask, kube: FakeKube, arguments: tuple[str, ...]) -> None:
    result = swarmtask(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr


def test_an_unreachable_api_is_exit_code_5(swarmtask: Swarmtask, kube: FakeKube) -> None:
    kube.down = True
    result = swarmtask("get", "tasks")
    assert result.exit_code == 5
    assert result.stdout == ""
    assert "Error:" in result.stderr


def test_control_characters_of_the_server_never_reach_the_terminal(swarmtask: Swarmtask, kube: FakeKube) -> None:
    evil = "Bad\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\nforged   Succeeded\u202e"
    add_task(kube, "lint", "Failed", reason=evil)
    for output in ("table", "wide", "json", "yaml", "name"):
        result = swarmtask("get", "tasks", "-o", output)
        assert result.exit_code == 0
        assert not any(character in result.stdout for character in "\x1b\x07\x9b\u202e"), output
    table = swarmtask("get", "tasks").stdout.splitlines()
    assert len(table) == 2  # the line break in the reason made no row of its own
    assert json.loads(swarmtask("get", "task", "lint", "-o", "json").stdout)["status"]["reason"] == evil


def test_status_shows_everything_on_one_screen(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_node(kube)
    add_queue(kube)
    add_task(kube, "done", "Succeeded")
    waiting = {"type": "Scheduled", "status": "False", "reason": "NoNodeFits", "message": "0/1 nodes fit: 1 too little memory"}
    add_task(kube, "stuck", "Queued", conditions=[waiting])
    add_task(kube, "parked", "Pending", conditions=[waiting | {"message": ""}])
    kube.edit(SWARM_TASK, "parked", "default", {"spec": {"suspend": True}})
    result = swarmtask("status")
    assert result.exit_code == 0, result.stderr
    for text in (
        "Control plane",
        "https://127.0.0.1:1",
        "desk",
        "1500m of 4",
        "1.5Gi of 8Gi",
        "default",
        "1 Succeeded",
        "1 Queued",
    ):
        assert text in result.stdout, text
    assert "stuck waits: 0/1 nodes fit: 1 too little memory" in result.stdout
    assert "parked" not in result.stdout  # suspended: a wish, nothing that waits for room
    document = json.loads(swarmtask("status", "-o", "json").stdout)
    assert document["tasks"]["Succeeded"] == 1
    assert document["nodes"][0]["name"] == "desk"


def test_status_of_an_empty_installation_says_what_to_do(swarmtask: Swarmtask, kube: FakeKube) -> None:
    result = swarmtask("status")
    assert result.exit_code == 0
    assert "swarmtask run" in result.stdout


def test_a_watch_that_expires_starts_over_without_repeating_itself(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_task(kube, "lint", "Running")
    kube.fail("watch", lambda: Expired("that version is compacted"))
    kube.fail("watch", lambda: ServiceUnavailable("gone for good"))
    result = swarmtask("get", "tasks", "-w")
    assert result.exit_code == 5
    assert result.stdout.count("lint") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (3600, "60m"),
        (4 * 3600, "4h"),
        (30 * 3600, "30h"),
        (9 * 86400, "9d"),
    ],
)
def test_ages_read_like_kubectls(seconds: int, text: str) -> None:
    now = datetime(2026, 1, 31, tzinfo=UTC)
    assert tables.age(now - timedelta(seconds=seconds), now) == text


def test_a_table_widens_but_never_narrows_while_watching() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    table = tables.Table(SWARM_TASK, wide=False, namespaces=False, now=now)
    first = table.rows([{"metadata": {"name": "a"}, "status": {"phase": "Running"}}])
    second = table.rows([{"metadata": {"name": "a-much-longer-name"}, "status": {"phase": "Running"}}])
    third = table.rows([{"metadata": {"name": "b"}, "status": {"phase": "Running"}}])
    assert len(first) == 2
    assert len(second) == len(third) == 1
    assert second[0].plain.index("Running") == third[0].plain.index("Running") > first[1].plain.index("Running")


def test_colours_of_a_log_survive_only_where_they_may() -> None:
    text = "\x1b[31mred\x1b[0m \x1b]0;title\x07plain\r\nover\rwritten\x1b[2J\n"
    assert terminal.clean_log(text, colours=True) == "\x1b[31mred\x1b[0m plain\nover\nwritten\n"
    assert terminal.clean_log(text, colours=False) == "red plain\nover\nwritten\n"


def test_an_expired_task_and_an_estimate_are_shown(swarmtask: Swarmtask, kube: FakeKube) -> None:
    add_queue(kube, throughputPerMinute=1.5)
    add_task(kube, "late", "Expired", reason="QueueDeadline", message="not started within 60s of entering the queue")
    moment = tables.parse_time("2027-01-01T00:00:00Z")
    words = {"type": "Scheduled", "status": "False", "reason": "QueueFull", "message": "queue full", "lastTransitionTime": ""}
    add_task(kube, "waits", "Queued", queuePosition=1, estimatedStartTime=format_time(moment), conditions=[words])
    heading, late, waits = swarmtask("get", "tasks", "-o", "wide").stdout.splitlines()
    assert late.split()[:2] == ["late", "Expired"]
    assert "QueueDeadline" in late
    assert waits[heading.index("ESTIMATED-START") :] == "2027-01-01T00:00:00Z"
    screen = swarmtask("status").stdout
    assert "1 Expired" in screen
    assert "waits waits: queue full; may start in " in screen and "(2027-01-01T00:00:00Z)" in screen
    assert "1.5" in next(line for line in screen.splitlines() if line.split()[:1] == ["default"])
