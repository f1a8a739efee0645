"""Where the API is, and as whom we speak to it: kubeconfig files and service accounts.

Called by the client, and by the kopf intake, which logs in by itself. Opens no connection.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from lightkube.config.kubeconfig import DEFAULT_KUBECONFIG, KubeConfig, SingleConfig
from lightkube.core.exceptions import ConfigError

from swarmtask.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the API is and who we are there, read from a kubeconfig or from a pod's service account.

    Attributes:
        config: one context of a kubeconfig, as lightkube reads it.
        source: where it was read from, for error messages.
    """

    config: SingleConfig
    source: str

    @property
    def server(self) -> str:
        return self.config.cluster.server.rstrip("/")

    @property
    def namespace(self) -> str:
        """The context's namespace, `default` when it names none."""
        return self.config.namespace

    @property
    def token(self) -> str | None:
        """The bearer token as it is now (a service account's token file is rotated by its cluster)."""
        user = self.config.user
        if user is None:
            return None
        if user.token_file is not None:
            try:
                return Path(self.config.abs_file(user.token_file)).read_text().strip()
            except OSError as error:
                raise ConfigurationError(f"cannot read the token file named in {self.source}: {error}") from error
        return user.token

    @property
    def ca_path(self) -> str | None:
        path = self.config.cluster.certificate_auth
        return str(self.config.abs_file(path)) if path else None

    @property
    def ca_data(self) -> str | None:
        """Base64 of the PEM, as a kubeconfig holds it; None where `ca_path` is set."""
        return None if self.ca_path else self.config.cluster.certificate_auth_data

    @property
    def ca_pem(self) -> str:
        """Certificates of the API's authority, PEM; empty: those that the machine trusts. Raises ConfigurationError."""
        try:
            if self.ca_path is not None:
                return Path(self.ca_path).read_text(encoding="utf-8")
            return base64.b64decode(self.ca_data or "", validate=True).decode()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cannot read the authority named in {self.source}: {error}") from error

    @property
    def client_certificate(self) -> tuple[str | None, str | None]:
        """(certificate, key) as paths; (None, None) when the user has none or holds them inline."""
        user = self.config.user
        if user is None or not user.client_cert or not user.client_key:
            return None, None
        return str(self.config.abs_file(user.client_cert)), str(self.config.abs_file(user.client_key))

    @property
    def client_certificate_data(self) -> tuple[str | None, str | None]:
        """(certificate, key) as base64 of PEM, where they are held inline."""
        user = self.config.user
        if user is None or not user.client_cert_data:
            return None, None
        return user.client_cert_data, user.client_key_data

    @classmethod
    def from_kubeconfig(cls, path: Path | None = None, context: str | None = None) -> Connection:
        """Read a kubeconfig.

        Args:
            path: None means the files of $KUBECONFIG, else ~/.kube/config. With several files the first that knows the
                context counts.
            context: None means the file's current context.

        Raises:
            ConfigurationError: no such file or context, or it cannot be used; says what to do.
        """
        paths = [path] if path is not None else _kubeconfig_paths()
        present = [candidate for candidate in paths if candidate.is_file()]
        if not present:
            names = ", ".join(str(candidate) for candidate in paths)
            raise ConfigurationError(
                f"there is no kubeconfig at {names}: start the control plane with `swarmtask up`, or name one with --kubeconfig"
            )
        configs = [(candidate, _read_kubeconfig(candidate)) for candidate in present]
        wanted = context or next((config.current_context for _, config in configs if config.current_context), None)
        if wanted is None:
            raise ConfigurationError(f"{present[0]} has no current context: choose one with `kubectl config use-context`")
        for candidate, config in configs:
            if wanted in config.contexts:
                try:
                    single = config.get(wanted)
                except (ConfigError, KeyError) as error:
                    raise ConfigurationError(f"context {wanted!r} of {candidate} is incomplete: {error}") from error
                if single is not None:
                    return cls(single, str(candidate))
        known = ", ".join(sorted({name for _, config in configs for name in config.contexts})) or "none"
        raise ConfigurationError(f"no context {wanted!r} in {', '.join(map(str, present))}; known contexts: {known}")

    @classmethod
    def from_service_account(cls) -> Connection:
        """What a pod is given. Raises ConfigurationError outside of a pod."""
        try:
            config = KubeConfig.from_service_account().get()
        except (ConfigError, OSError, KeyError) as error:
            raise ConfigurationError(f"this process does not run in a pod with a service account: {error}") from error
        if config is None:
            raise ConfigurationError("the pod's service account cannot be used")
        return cls(config, "the pod's service account")


def _kubeconfig_paths() -> list[Path]:
    named = [Path(part).expanduser() for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    return named or [Path(DEFAULT_KUBECONFIG).expanduser()]


def _read_kubeconfig(path: Path) -> KubeConfig:
    try:
        return KubeConfig.from_file(path)
    except (ConfigError, OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is not a kubeconfig: {type(error).__name__}: {error}") from error
