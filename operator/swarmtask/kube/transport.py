"""The HTTP transport: TLS, log-in, time-outs, and what goes wrong on the way to the API.

Called by the client only. It never retries.
"""

from __future__ import annotations

import socket
import ssl
from urllib.request import getproxies, proxy_bypass

import httpx2
from lightkube.config.client_adapter import ConnectionParams
from lightkube.config.models import User
from lightkube.core.exceptions import ConfigError

from swarmtask.errors import ConfigurationError, ServiceUnavailable, SwarmTaskError, Timeout
from swarmtask.kube.connection import Connection
from swarmtask.optional import without

with without("h2"):
    import httpcore2  # noqa: F401 - httpx2 does so with the first client; it would load HTTP/2, which nobody here speaks (1.3 MB)

CONNECT_S = 5.0
READ_S = 30.0
LIMITS = httpx2.Limits(max_connections=128, max_keepalive_connections=32, keepalive_expiry=4.0)
"""Idle connections are given up before the five seconds after which servers commonly close them."""
KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, option), seconds)
        for option, seconds in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
        if hasattr(socket, option)
    ),
]
"""A silent watch whose peer fell asleep is noticed after half a minute."""


def http_client(connection: Connection, transport: httpx2.AsyncBaseTransport | None) -> httpx2.AsyncClient:
    """An authenticated client whose TLS verification cannot be switched off."""
    config = connection.config
    try:
        url = httpx2.URL(connection.server)
    except httpx2.InvalidURL as error:
        raise ConfigurationError(f"{connection.source}: the server {connection.server!r} is not a URL: {error}") from error
    if url.scheme != "https":
        raise ConfigurationError(
            f"{connection.source}: the server is {connection.server}, which is not https; a token would travel in the clear"
        )
    if config.cluster.insecure:
        raise ConfigurationError(
            f"{connection.source} sets insecure-skip-tls-verify: remove it and give certificate-authority-data instead"
        )
    config = config._replace(user=config.user or User())
    proxy = _proxy(url)
    try:
        params = ConnectionParams(timeout=httpx2.Timeout(READ_S, connect=CONNECT_S), trust_env=False).httpx_params(config)
    except (OSError, ValueError, ConfigError) as error:  # ssl.SSLError is an OSError; base64 errors are ValueErrors
        raise ConfigurationError(f"the certificates or credentials in {connection.source} cannot be used: {error}") from error
    params["transport"] = transport or httpx2.AsyncHTTPTransport(
        verify=params["verify"], trust_env=False, limits=LIMITS, proxy=proxy, socket_options=KEEPALIVE
    )
    return httpx2.AsyncClient(**params)


def _proxy(url: httpx2.URL) -> str | None:
    """The environment's proxy, never for this very machine (as kubectl does)."""
    if url.host in {"localhost", "127.0.0.1", "::1"} or proxy_bypass(url.host):
        return None
    return getproxies().get("https")


def network_error(error: httpx2.HTTPError, connection: Connection) -> SwarmTaskError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ConfigurationError(
                f"the certificate of {connection.server} is not signed by the authority in {connection.source}: {cause}; "
                "take the kubeconfig that this server wrote"
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return ServiceUnavailable(
            f"cannot reach the Kubernetes API at {connection.server} ({connection.source}): {_words(error)}; "
            "`swarmtask up` starts it"
        )
    if isinstance(error, httpx2.TimeoutException):
        return Timeout(f"the Kubernetes API at {connection.server} did not answer in time ({_words(error)})")
    return ServiceUnavailable(f"the connection to the Kubernetes API at {connection.server} broke: {_words(error)}")


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
