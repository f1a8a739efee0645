"""The server's certificate while the server runs: renewed before it ends, and taken into use without a restart.

Called by the server, as one task. New connections get the new certificate; those that are open go on with the old one. The same
happens when somebody has removed or replaced the files.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from pathlib import Path

import structlog

from swarmtask.apiserver import auth
from swarmtask.apiserver.issued import Issue, issue_here
from swarmtask.clock import Clock
from swarmtask.errors import ConfigurationError

log = structlog.get_logger(__name__)

LOOK_S = 60.0
GLANCE_S = 5.0
"""How soon an address that the machine has got is seen."""


class CertificateKeeper:
    """One per server. `context` serves with the files of `data_dir` already."""

    def __init__(self, context: ssl.SSLContext, data_dir: Path, host: str, clock: Clock, issue: Issue = issue_here) -> None:
        self._context, self._data_dir, self._host, self._clock, self._issue = context, data_dir, host, clock, issue
        self._serving = _content(*auth.server_certificate(data_dir, host, clock.now(), issue))
        self._addresses: frozenset[str] = frozenset()
        """Of the machine's interfaces, at the last glance."""

    async def run(self) -> None:
        """Look until cancelled. What fails (a full disk) is logged and tried again: the old certificate is good for weeks then."""
        while True:
            try:
                await self._wait()
                await self.look()
            except (ConfigurationError, OSError, ssl.SSLError) as error:
                log.error("the server's certificate cannot be renewed; the present one is kept", error=str(error))

    async def _wait(self) -> None:
        """Until it is time to look, or the machine has an address that it had not before: a network that comes, or that changes."""
        if not auth.listens_everywhere(self._host):
            await self._clock.sleep(LOOK_S)
            return
        until = self._clock.monotonic() + LOOK_S
        while self._clock.monotonic() < until:
            await self._clock.sleep(GLANCE_S)
            before, self._addresses = self._addresses, frozenset(await asyncio.to_thread(auth.interface_addresses))
            if not self._addresses <= before:
                return

    async def look(self) -> bool:
        """Renew the files if it is time, and serve with them if they have changed. Returns whether they had.

        Raises:
            ConfigurationError, OSError, ssl.SSLError: the present certificate goes on being served.
        """
        certificate, key = await asyncio.to_thread(
            auth.server_certificate, self._data_dir, self._host, self._clock.now(), self._issue
        )
        content = _content(certificate, key)
        if content == self._serving:
            return False
        # A pair that does not fit is refused before it is taken into use.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        self._context.load_cert_chain(certificate, key)
        self._serving = content
        log.info("serving with a new certificate", path=str(certificate))
        return True


def _content(certificate: Path, key: Path) -> bytes:
    return hashlib.sha256(certificate.read_bytes() + key.read_bytes()).digest()
