"""Structured logging: set up once per process, used by every room through structlog or the standard library.

Called by `apiserver`, `operator` and `up` before anything logs. Text for people, one JSON object per line with `--log-json`; always
stderr. Control characters are escaped in both, so that logged server data can neither forge a line nor steer a terminal.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from swarmtask.cli.terminal import clean, clean_line

_NOISY = ("httpx", "httpx2", "httpcore", "httpcore2", "docker", "urllib3", "asyncio", "uvicorn", "kopf.activities")


def configure(level: str, *, json: bool, component: str) -> None:
    """Route structlog and the standard library to stderr.

    Args:
        level: debug | info | warning | error.
        json: one JSON object per line.
        component: said in every line, for example `operator`.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer: Processor = structlog.processors.JSONRenderer(serializer=_to_json) if json else _to_text
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _named(component), renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel("DEBUG" if level == "debug" else "WARNING")


def _named(component: str) -> Processor:
    def add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["component"] = component
        return event

    return add


def _to_json(value: Any, **_: Any) -> str:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


def _to_text(_: WrappedLogger, __: str, event: EventDict) -> str:
    """`12:34:56Z info operator: placed task=default/lint node=desk`; a traceback follows on lines of its own."""
    stamp = str(event.pop("timestamp", ""))[11:19]
    level = event.pop("level", "info")
    component = event.pop("component", "")
    logger = str(event.pop("logger", "")).removeprefix("swarmtask.")
    exception = event.pop("exception", None)
    message = clean_line(str(event.pop("event", "")))
    values = " ".join(f"{key}={_short(value)}" for key, value in sorted(event.items()) if not key.startswith("_"))
    line = f"{stamp}Z {level:<7} {component}[{logger}] {message}{' ' + values if values else ''}"
    return line if exception is None else line + "\n" + "\n".join("  " + clean(part) for part in str(exception).splitlines())


def _short(value: Any) -> str:
    text = clean_line(str(value))
    return f'"{text}"' if " " in text or not text else text
