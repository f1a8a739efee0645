"""Logs: one line per event, in text or JSON, from structlog and the standard library, and nothing that forges a line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from swarmtask.cli import logsetup

EVIL = "name\n12:00:00Z info forged\x1b[2J\x9b"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def log_everything() -> None:
    structlog.get_logger("swarmtask.room").info("placed", task=EVIL, score=1.5)
    logging.getLogger("foreign").warning("said %s", EVIL)
    try:
        raise ValueError(EVIL)
    except ValueError:
        logging.getLogger("foreign").exception("failed")
    structlog.get_logger("swarmtask.room").debug("not shown")


def test_text_is_one_clean_line_per_event(capsys: pytest.CaptureFixture[str]) -> None:
    logsetup.configure("info", json=False, component="operator")
    log_everything()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not any(character in captured.err for character in "\x1b\x9b")
    lines = captured.err.splitlines()
    assert "operator[room] placed" in lines[0] and "score=1.5" in lines[0]
    assert "operator[foreign] said name" in lines[1]
    assert not any(line.startswith("12:00:00Z info forged") for line in lines)
    assert "not shown" not in captured.err
    assert any(line.startswith("  ") and "ValueError" in line for line in lines[3:])


def test_json_is_one_object_per_line(capsys: pytest.CaptureFixture[str]) -> None:
    logsetup.configure("info", json=True, component="apiserver")
    log_everything()
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [event["event"] for event in events] == ["placed", f"said {EVIL}", "failed"]
    assert events[0]["task"] == EVIL and events[0]["component"] == "apiserver" and events[0]["level"] == "info"
    assert "ValueError" in events[2]["exception"]
