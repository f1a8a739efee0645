"""The API server as a process: settings, lock, certificates, socket, signals.

Called by the CLI (`run_api_server`), by the tests, and as `python -m swarmtask.apiserver.server`. Holds no API logic.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import structlog
import uvicorn
import uvloop
from structlog.typing import Processor

from swarmtask.apiserver import auth, switchover
from swarmtask.apiserver.access.audit import AuditLog
from swarmtask.apiserver.access.vault import Vault
from swarmtask.apiserver.app import Application
from swarmtask.apiserver.certificates import CertificateKeeper
from swarmtask.apiserver.door import Door
from swarmtask.apiserver.guests import use_all_files
from swarmtask.apiserver.heads import BoundedHeads, web_socket
from swarmtask.apiserver.issued import Issue, issue_here
from swarmtask.apiserver.places import AUDIT, DATABASE, KUBECONFIG, OPERATOR_KUBECONFIG, SECRETS_KEY, locked
from swarmtask.apiserver.private_files import prepare_data_dir, write_private
from swarmtask.apiserver.projections.exec import Shells
from swarmtask.clock import Clock, SystemClock
from swarmtask.errors import ConfigurationError, SwarmTaskError
from swarmtask.settings import ApiServerSettings, Settings, load_settings

log = structlog.get_logger(__name__)

GRACE_S = 0.5
"""So long after the word to stop, whoever has not gone is cut off: readers that take nothing, requests that hang, and idle
connections whose clients do not answer the end of TLS. Everything else takes milliseconds."""
LOOK_S = 0.01
HEADERS_S = 1.0
"""How often the Date header is renewed."""
WEB_SOCKET_BYTES = 2**20
"""Of one message. Only commands in attempts come over WebSockets, in pieces of a few kilobytes."""
YOUNG_OBJECTS = 5_000
"""So many more than at the last collection make the next one. Some dozens of requests that wait for a commit are half of it."""
_ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})


async def run_api_server(
    settings: Settings,
    *,
    clock: Clock,
    stop: asyncio.Event,
    on_ready: Callable[[str], None],
    shells: Shells | None = None,
    issue: Issue = issue_here,
) -> None:
    """Serve until `stop` is set.

    Args:
        shells: runs commands in containers of this machine; None: nothing does.
        issue: makes certificates and keys; a process that stays better has it done beside it.
        stop: set it to end: watches close within a second (`GRACE_S`), what is queued is committed.
        on_ready: called with the URL once the server answers and the kubeconfig is written.

    Raises:
        ConfigurationError: the address, the data directory, the certificates or the database cannot be used.
    """
    use_all_files()
    prepare_data_dir(settings.data_dir)
    with locked(settings.data_dir), _bound(settings.apiserver) as listener:
        port = listener.getsockname()[1]
        host = "127.0.0.1" if settings.apiserver.host in _ANY_ADDRESS else settings.apiserver.host
        url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        if switchover.finish(settings.data_dir):
            log.warning("a restore that was cut off has been finished", data_dir=str(settings.data_dir))
        credentials, authenticator = auth.prepare(settings.data_dir, settings.apiserver.host, clock.now(), issue)
        folder = settings.data_dir
        with contextlib.closing(AuditLog(folder / AUDIT, clock)) as audit:
            app = await Application.open(
                folder / DATABASE, settings.apiserver, authenticator, clock,
                vault=Vault(folder / SECRETS_KEY), signing_pem=credentials.signing_pem, audit=audit, shells=shells,
            )  # fmt: skip
            try:
                app.discovery.address = f"{host}:{port}"
                keep_kubeconfig(folder / OPERATOR_KUBECONFIG, auth.kubeconfig(url, credentials, operator=True).encode())
                keep_kubeconfig(folder / KUBECONFIG, auth.kubeconfig(url, credentials).encode())
                config = _uvicorn_config(app, credentials)
                keeper = CertificateKeeper(_ssl_of(config), folder, settings.apiserver.host, clock, issue)
                await _serve(app, config, listener, keeper=keeper, stop=stop, on_ready=lambda: on_ready(url))
            finally:
                await app.close()


def keep_kubeconfig(path: Path, content: bytes) -> None:
    """Write a kubeconfig where it does not say this already. Without room the server serves all the same: only it can make some."""
    try:
        if path.exists() and path.read_bytes() == content:
            path.chmod(0o600)  # a copy or a backup may have opened it
        else:
            write_private(path, content)
    except OSError as error:
        log.error(
            "this kubeconfig could not be written and may not fit this server: free some space and restart the control plane",
            path=str(path), error=str(error),
        )  # fmt: skip


def spare_collections() -> None:
    """For a process that only serves, as soon as it does: the garbage collector leaves alone what the start has made, which stays,
    and looks at what is young less often.

    Requests leave no cycles behind (`test_requests_leave_no_cycles`), so all that it finds in them is what is under way.
    """
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])


def _uvicorn_config(app: Application, credentials: auth.Credentials) -> uvicorn.Config:
    """TLS always: there is no way to serve without it, on any address."""
    config = uvicorn.Config(
        app, http=BoundedHeads, lifespan="off", log_config=None, access_log=False, server_header=False,
        proxy_headers=False,  # there is no proxy before it: whoever sends X-Forwarded-For would choose the source in the audit log
        ws=cast(Any, web_socket), ws_max_size=WEB_SOCKET_BYTES, ws_per_message_deflate=False,
        # No warnings: strangers would fill the log with them. No lines for WebSockets: they tell the command, secrets included.
        log_level="error",
        ssl_certfile=credentials.certificate, ssl_keyfile=credentials.key, timeout_keep_alive=75,
        backlog=1024,
    )  # fmt: skip
    config.load()
    return config


def _ssl_of(config: uvicorn.Config) -> ssl.SSLContext:
    if config.ssl is None:
        raise ConfigurationError("the server has no certificate: it does not start without TLS")
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config.ssl


async def _serve(
    app: Application,
    config: uvicorn.Config,
    listener: socket.socket,
    *,
    keeper: CertificateKeeper,
    stop: asyncio.Event,
    on_ready: Callable[[], None],
) -> None:
    server = _Server(config, app.door)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="uvicorn")
    started = asyncio.create_task(server.answering.wait())
    stopping = asyncio.create_task(stop.wait())
    keeping = asyncio.create_task(keeper.run(), name="certificates")
    try:
        await asyncio.wait({serving, started}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            on_ready()
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        app.end_watches()
        server.leave()
        started.cancel()
        stopping.cancel()
        keeping.cancel()
        await serving


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: `stop` ends it, wherever it comes from, and at once.

    uvicorn looks ten times a second whether it should end; this one is woken, and otherwise only keeps the Date header right.
    uvicorn waits for a client that does not read; this one leaves it behind.
    """

    def __init__(self, config: uvicorn.Config, door: Door) -> None:
        super().__init__(config)
        self._door = door
        self._admitting: list[asyncio.Task[None]] = []
        self.answering = asyncio.Event()
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Begin an orderly end."""
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # 0: the tick at which uvicorn refreshes its headers
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEADERS_S):
                    await self._leaving.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept on the sockets that were given; there are always some, and always TLS."""
        config, loop = self.config, asyncio.get_running_loop()
        context = _ssl_of(config)

        def protocol() -> BoundedHeads:
            return BoundedHeads(config=config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop)

        self.servers = []
        self._admitting = [
            loop.create_task(self._door.admit(listener, protocol, context, config.backlog), name="door")
            for listener in sockets or ()
        ]
        self.started = True
        self.answering.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let nobody in, let answers end, and cut off what has not ended after `GRACE_S`."""
        begun, state = time.monotonic(), self.server_state
        for admitting in self._admitting:
            admitting.cancel()
        await asyncio.gather(*self._admitting, return_exceptions=True)
        for listening in sockets or ():
            listening.close()
        for connection in list(state.connections):
            connection.shutdown()  # one that answers ends with its answer
        while state.connections and time.monotonic() - begun < GRACE_S:  # noqa: ASYNC110 - uvicorn tells nobody when one ends
            await asyncio.sleep(LOOK_S)
        slow = len(state.connections)
        for task in list(state.tasks):
            task.cancel()
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            await asyncio.wait(state.tasks)
        log.info("every connection is closed", seconds=round(time.monotonic() - begun, 3), cut_off=slow)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _bound(settings: ApiServerSettings) -> Iterator[socket.socket]:
    host = settings.host or "0.0.0.0"
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{settings.port}: {error}; choose another address with --listen (port 0: any free one)"
        ) from error
    with listener:
        yield listener


# --- as a process of its own ---------------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """`--data-dir D --listen HOST:PORT --ready-file F`. Exit code 1: could not start; the reason is on stderr."""
    parser = argparse.ArgumentParser(prog="swarmtask-apiserver", description="Serve the SwarmTask API.")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--listen", metavar="HOST:PORT")
    parser.add_argument("--ready-file", type=Path, help="gets the server's URL once it answers")
    parser.add_argument("--config", type=Path)
    arguments = parser.parse_args(argv)
    try:
        settings = load_settings(arguments.config, data_dir=arguments.data_dir)
        _configure_log(settings)
        if arguments.listen:
            settings.apiserver = _with_address(settings.apiserver, arguments.listen)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(settings, arguments.ready_file))
    except SwarmTaskError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return 1
    return 0


def _configure_log(settings: Settings) -> None:
    """To stderr. Tracebacks without the values of variables: those may be secrets."""
    final: list[Processor]
    if settings.log_json:
        final = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        final = [structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *final,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.log_level.upper()]),
    )


def _with_address(settings: ApiServerSettings, text: str) -> ApiServerSettings:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ConfigurationError(f"--listen {text!r}: write HOST:PORT, for example 127.0.0.1:0 for any free port")
    return settings.model_copy(update={"host": host.strip("[]"), "port": int(port)})


async def _run(settings: Settings, ready_file: Path | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

    def on_ready(url: str) -> None:
        spare_collections()
        log.info("api server ready", url=url, kubeconfig=str(settings.data_dir / KUBECONFIG))
        if ready_file is not None:
            write_private(ready_file, url.encode() + b"\n")

    await run_api_server(settings, clock=SystemClock(), stop=stop, on_ready=on_ready)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
