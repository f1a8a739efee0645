"""The room of access control, put together: who comes in, what he may do, what is written down of it.

Called by the application alone: `enter` for each request before anything else of it is looked at, `record` after its answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from swarmtask.apiserver.access.accounts import AccountTokens
from swarmtask.apiserver.access.audit import AuditLog, Row
from swarmtask.apiserver.access.authorizer import Authorizer
from swarmtask.apiserver.access.guard import Guard
from swarmtask.apiserver.access.identities import Identities
from swarmtask.apiserver.access.requests import attributes_of, forbidden, impersonated
from swarmtask.apiserver.access.rules import Attributes
from swarmtask.apiserver.access.streams import OpenStream, OpenStreams
from swarmtask.apiserver.access.tokens import AccessTokens, Login
from swarmtask.apiserver.access.users import User
from swarmtask.apiserver.auth import Authenticator
from swarmtask.apiserver.store import Store
from swarmtask.apiserver.types import TypeRegistry
from swarmtask.apiserver.wire import Request, Response
from swarmtask.clock import Clock
from swarmtask.errors import Unauthorized

CUT_OFF = "CutOff"
"""The reason in the audit log of a request that the end of the server has cut off: whether it was carried out, the object tells."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})
_NOTHING_WRITTEN = frozenset({"authorization.k8s.io", "authentication.k8s.io"})
"""Groups whose kinds are questions: a POST of one changes nothing."""


@dataclass(slots=True)
class Visit:
    """One request on its way: what is known of it so far.

    Attributes:
        user: who it is made for; `login.user` may act for him.
        request: once he has been let in.
        held_bytes: of its body, counted by the `intake`.
        recorded: it stands in the audit log, if it belongs there.
    """

    method: str
    wanted: Attributes
    began: float
    source: str = ""
    agent: str = ""
    header: str = ""
    dry_run: bool = False
    login: Login | None = None
    user: User | None = None
    request: Request | None = None
    held_bytes: int = 0
    recorded: bool = False


class AccessRoom:
    """One per server."""

    def __init__(
        self,
        store: Store,
        registry: TypeRegistry,
        files: Authenticator,
        clock: Clock,
        *,
        accounts: AccountTokens | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        self._registry, self._audit, self._clock = registry, audit, clock
        self.accounts = accounts
        self.tokens = AccessTokens(store)
        self.authorizer = Authorizer(store)
        self.identities = Identities(files, self.tokens, accounts, clock)
        self.streams = OpenStreams(self.identities.authenticate, self.authorizer, clock)
        self.tokens.load()
        store.subscribe(self.tokens.on_commit)
        store.subscribe(self.authorizer.on_commit)
        self.tokens.subscribe(self.streams.check)
        self.authorizer.subscribe(self.streams.check)

    def arrive(self, method: str, path: str, segments: list[str], query: Mapping[str, str], source: str) -> Visit:
        """A request has come."""
        return Visit(
            method, attributes_of(method, path, segments, query), self._clock.monotonic(), source, dry_run=bool(query.get("dryRun"))
        )

    def enter(self, visit: Visit, headers: Mapping[str, str]) -> User:
        """Let a request in, or not.

        Raises:
            Unauthorized: no valid token. Forbidden: the user may not do this, or not act for that other user.
            BadRequest: the impersonation headers make no sense.
        """
        visit.agent, visit.header = headers.get("user-agent", ""), headers.get("authorization", "")
        visit.login = self.identities.authenticate(visit.header)
        if visit.login is None:
            raise Unauthorized("Unauthorized")
        visit.user = visit.login.user
        visit.user = impersonated(self.authorizer, visit.user, headers)
        if not self.authorizer.allows(visit.user, visit.wanted):
            raise forbidden(visit.user, visit.wanted)
        return visit.user

    def guard(self, user: User) -> Guard | None:
        """What looks at the objects that a user writes."""
        return None if user.is_master else Guard(user, self.authorizer, self._registry, self.tokens, self._clock)

    def watch_over(self, visit: Visit, response: Response) -> None:
        """End a stream when what it was opened with ends."""
        end = response.on_close
        if visit.login is None or visit.user is None or end is None or (visit.user.is_master and visit.login.expires_at is None):
            return
        over = self.streams.add(OpenStream(visit.login, visit.header, visit.user, visit.wanted, end))

        def close() -> None:
            over()
            end()

        response.on_close = close

    def record(self, visit: Visit, code: int, reason: str) -> None:
        """Write down a request that may have changed something, whatever came of it; once."""
        if self.note(visit, code, reason):
            self.flush()

    def flush(self) -> None:
        """Write down what was noted."""
        if self._audit is not None:
            self._audit.flush()

    def note(self, visit: Visit, code: int, reason: str) -> bool:
        """`record`, but for the writing: whether there is something to `flush` before the request is answered."""
        if self._audit is None or visit.method in READING or visit.recorded:
            return False
        visit.recorded = True
        wanted = visit.wanted
        if wanted.group in _NOTHING_WRITTEN:
            return False
        acting = visit.login.user if visit.login is not None and visit.login.user != visit.user else None
        took_s = self._clock.monotonic() - visit.began
        named = visit.request.named if visit.request is not None else ""
        self._audit.note(Row(visit.user, acting, wanted, code, reason, visit.source, visit.agent, visit.dry_run, took_s, named))
        return True
