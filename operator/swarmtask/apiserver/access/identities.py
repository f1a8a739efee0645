"""Who a request comes from: the administrator, the operator, an access token or a ServiceAccount.

Called by the application for each request, by TokenReview, and by the open streams (is that credential still good). Tokens are
looked for in the Authorization header alone.
"""

from __future__ import annotations

from swarmtask.apiserver.access.accounts import AUDIENCE, AccountTokens
from swarmtask.apiserver.access.tokens import AccessTokens, Login
from swarmtask.apiserver.auth import Authenticator, digest
from swarmtask.clock import Clock

TOKEN_LIMIT = 16_384


class Identities:
    """One per server."""

    def __init__(self, files: Authenticator, tokens: AccessTokens, accounts: AccountTokens | None, clock: Clock) -> None:
        self._files, self._tokens, self._accounts, self._clock = files, tokens, accounts, clock

    def authenticate(self, header: str) -> Login | None:
        """Who comes in with an Authorization header; None when it holds no valid bearer token."""
        scheme, _, token = header.partition(" ")
        return self.login(token.strip()) if scheme.lower() == "bearer" else None

    def login(self, token: str) -> Login | None:
        """Who comes in with a token."""
        if not token or len(token) > TOKEN_LIMIT:
            return None
        found = self._files.user_of(token)
        if found is not None:
            return Login(found)
        login = self._tokens.login(digest(token))
        if login is None and self._accounts is not None:
            login = self._accounts.login(token)
        return login if login is not None and self._good(login) else None

    def review(self, token: str, audiences: tuple[str, ...]) -> tuple[Login, list[str]] | None:
        """TokenReview: the login, and which of the audiences the token is meant for. No audiences: this server."""
        wanted = audiences or (AUDIENCE,)
        if AUDIENCE in wanted:
            login = self.login(token)
            if login is not None and (self._accounts is None or not self._accounts.audiences(token)):
                return login, [AUDIENCE]
        if self._accounts is None or len(token) > TOKEN_LIMIT:
            return None
        login = self._accounts.login(token, wanted)
        if login is None or not self._good(login):
            return None
        meant = self._accounts.audiences(token)
        return login, [audience for audience in wanted if audience in meant]

    def _good(self, login: Login) -> bool:
        return login.expires_at is None or self._clock.now() < login.expires_at
