"""All settings: one model, one group per component.

Lives here: names, defaults, bounds and descriptions. Read from a YAML file (`--config`, `SWARMTASK_CONFIG`), then the environment
(`SWARMTASK_OPERATOR__SUBMIT_WAVE=50`), then command-line options, each overriding the one before. No other module reads the
environment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from swarmtask.errors import Cause, ConfigurationError

PREFIX = "SWARMTASK_"
DELIMITER = "__"
"""Between a group and its setting, in the name of a variable."""


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def _zone_of_environment() -> str:
    """What TZ names, where that is a zone of the database (it may also be a rule, which has no name)."""
    name = os.environ.get("TZ", "").removeprefix(":")
    return name if _is_zone(name) else ""


def _known_zone(name: str) -> str:
    if name and not _is_zone(name):
        raise ValueError(f"there is no time zone {name!r} here: write for example Europe/Berlin or UTC")
    return name


Positive = Annotated[float, Field(gt=0)]


class Group(BaseModel):
    model_config = ConfigDict(extra="forbid", defer_build=True)


class ApiServerSettings(Group):
    """The embedded API server."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=7443, description="Port; 0 lets the system choose.")
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(default=3 * 2**20, description="Larger requests are refused (413).")
    event_log_rows: Annotated[int, Field(ge=100)] = Field(
        default=20_000, description="Watch history kept on disk; older watchers get 410."
    )
    client_requests_per_second: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=500, description="Requests of one user in the long run, after a burst of five times as many; more get 429. 0: any."
    )
    client_watches: Annotated[int, Field(ge=1)] = Field(
        default=1000, description="Watches that one user may have open; more get 429."
    )
    client_connections: Annotated[int, Field(ge=1)] = Field(
        default=1500, description="Connections that one user may have open; where all are in use, more get 429."
    )
    event_ttl_s: Positive = Field(default=3600.0, description="Kubernetes Events are deleted after this.")
    bookmark_interval_s: Positive = Field(default=30.0, description="Between bookmarks on an idle watch.")
    attempt_log_bytes: Annotated[int, Field(ge=2**16)] = Field(
        default=10 * 2**20, description="Output kept of one attempt: a fifth from its beginning, the rest from its end."
    )
    attempt_logs_bytes: Annotated[int, Field(ge=2**20)] = Field(
        default=2 * 2**30, description="Output kept of all attempts together; those that finished first go first."
    )


class OperatorSettings(Group):
    """The control loops."""

    poll_interval_s: Positive = Field(
        default=1.0, description="Between full reads of an engine's workloads while attempts are live."
    )
    idle_poll_interval_s: Positive = Field(default=10.0, description="The same while nothing is live.")
    node_poll_interval_s: Positive = Field(default=1.0, description="Between reads of an engine's node list.")
    cycle_gap_s: Annotated[float, Field(ge=0)] = Field(
        default=0.05, description="Changes within this time share one scheduling cycle."
    )
    submit_wave: Annotated[int, Field(ge=1)] = Field(default=32, description="Workloads submitted to an engine in one wave.")
    wave_gap_s: Annotated[float, Field(ge=0)] = Field(
        default=0.15, description="Quiet gap between waves (Swarm debounces on changes)."
    )
    vanish_grace_s: Positive = Field(
        default=10.0, description="An attempt must be missing from the engine's list this long to count as lost."
    )
    orphan_grace_s: Positive = Field(default=30.0, description="An engine object without an owner is removed after this.")
    status_refresh_s: Positive = Field(
        default=1.0, description="At most one write of a queue position or waiting reason per task in this time."
    )
    infrastructure_loss_limit: Annotated[int, Field(ge=0)] = Field(
        default=20, description="Attempts lost through no fault of the task before it becomes a dead letter."
    )
    unreachable_s: Annotated[float, Field(ge=2.5, le=600)] = Field(
        default=4.5, description="A node whose agent has not renewed its Lease for so long is Unreachable."
    )
    fence_s: Annotated[float, Field(ge=5, le=3600)] = Field(
        default=20.0, description="An agent that cannot reach the API stops its attempts after this; told to the agents as it is."
    )
    fence_margin_s: Annotated[float, Field(ge=2, le=600)] = Field(
        default=10.0, description="An attempt on a lost node is replaced so long after its node must have stopped it."
    )
    keep_finished_workloads: Annotated[int, Field(ge=0)] = Field(
        default=200, description="Newest finished engine objects kept so that their logs can be read."
    )
    keep_array_members: Annotated[int, Field(ge=0)] = Field(
        default=20, description="Newest runs of each array that succeeded and are kept as tasks, with their output."
    )
    time_zone: Annotated[str, AfterValidator(_known_zone)] = Field(
        default_factory=_zone_of_environment,
        description="Time zone of quiet hours that name none, for example Europe/Berlin; the machine's own when empty.",
    )
    min_battery_percent: Annotated[int, Field(ge=0, le=100)] = Field(
        default=20, description="A node on battery with less charge takes no new attempts; a node may say otherwise."
    )
    label_nodes: bool = Field(
        default=True, description="Write what nodes have (CPU, memory, GPU, architecture) into their engines' node labels."
    )
    crash_point: str = Field(
        default="", description="For tests: the process ends at once where this is reached, for example after:write-status."
    )


class SwarmSettings(Group):
    """The Docker Swarm engine."""

    docker_host: str | None = Field(
        default=None, description="Docker endpoint; the environment's DOCKER_HOST or the local socket when empty."
    )
    timeout_s: Positive = Field(default=15.0, description="Longest wait for one call.")
    threads: Annotated[int, Field(ge=1, le=64)] = Field(default=8, description="Calls in flight at most.")
    capability_add: list[str] = Field(
        default_factory=list, description="Linux capabilities given back to containers; all are dropped otherwise."
    )
    pids_limit: Annotated[int, Field(ge=16)] = Field(default=4096, description="Processes per container.")


CapabilityName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-zA-Z0-9]([-a-zA-Z0-9_.]*[a-zA-Z0-9])?$")]
"""As `swarmtask.resources.fields.Capability`: a status with one that is none would be refused as a whole."""


class AgentSettings(Group):
    """The node agents that the operator puts on the nodes of a swarm."""

    deploy: bool | None = Field(
        default=None, description="Put a node agent on every node. Unset: `swarmtask up` does, `swarmtask operator` does not."
    )
    image: str = Field(default="swarmtask/worker:latest", min_length=1, description="Image of the agent, on this machine.")
    api_url: Annotated[str, Field(pattern=r"^(https://[^\s/]+)?$")] = Field(
        default="", description="Where nodes reach the API, https://HOST:PORT; this machine's address in the swarm when empty."
    )
    capabilities: Annotated[list[CapabilityName], Field(max_length=60)] = Field(
        default_factory=list, description="What every node offers, beside what is detected."
    )
    images_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=5000, description="Port at which nodes fetch images from this machine through the swarm; 0: they have them already."
    )
    images_publish: Annotated[str, Field(pattern="^(ingress|host)$")] = Field(
        default="ingress", description="ingress: every node reaches them at its own 127.0.0.1; host: this machine alone does."
    )


class LocalSettings(Group):
    """The local engine: attempts are child processes of this machine."""

    max_output_bytes: Annotated[int, Field(ge=4096)] = Field(default=8 * 2**20, description="Output kept per attempt.")


class Settings(BaseModel):
    """Everything that can be set."""

    model_config = ConfigDict(extra="ignore", validate_default=True, defer_build=True)

    data_dir: Path = Field(
        default_factory=lambda: Path.home() / ".local" / "share" / "swarmtask", description="Database, certificates, tokens, logs."
    )
    log_level: Annotated[str, Field(pattern="^(debug|info|warning|error)$")] = Field(
        default="info", description="debug|info|warning|error"
    )
    log_json: bool = Field(default=False, description="One JSON object per line instead of text.")
    apiserver: ApiServerSettings = Field(default_factory=ApiServerSettings)
    operator: OperatorSettings = Field(default_factory=OperatorSettings)
    swarm: SwarmSettings = Field(default_factory=SwarmSettings)
    agents: AgentSettings = Field(default_factory=AgentSettings)
    local: LocalSettings = Field(default_factory=LocalSettings)


def load_settings(config: Path | None = None, **overrides: Any) -> Settings:
    """Read settings from a YAML file and the environment; `overrides` (None values are ignored) win over both.

    Raises:
        ConfigurationError: the file or a value is wrong; names the setting.
    """
    values: dict[str, Any] = {}
    if config is not None:
        try:
            values = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigurationError(f"cannot read the settings file {config}: {error}") from error
        if not isinstance(values, dict):
            raise ConfigurationError(
                f"the settings file {config} must hold a mapping, for example 'operator: {{poll_interval_s: 1}}'"
            )
        unknown = sorted(set(values) - set(Settings.model_fields))
        if unknown:
            raise ConfigurationError(f"unknown settings in {config}: {', '.join(unknown)}")
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return Settings(**_merged(_merged(values, _from_environment()), given))
    except ValidationError as error:
        causes = [
            Cause(".".join(str(part) for part in item["loc"]), "FieldValueInvalid", item["msg"])
            for item in error.errors(include_url=False)
        ]
        raise ConfigurationError("; ".join(f"{cause.field}: {cause.message}" for cause in causes), causes=causes) from error


def _from_environment() -> dict[str, Any]:
    """What the environment sets. The library that reads it (2.4 MB in each process) is read in where there is something to read.

    Raises:
        ConfigurationError: a variable that must hold JSON does not.
    """
    named = {f"{PREFIX}{name}".lower() for name in Settings.model_fields}
    if not any(name.lower().partition(DELIMITER)[0] in named for name in os.environ):
        return {}
    from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, SettingsError  # noqa: PLC0415

    class FromEnvironment(Settings, BaseSettings):
        model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=DELIMITER, env_ignore_empty=True)

    try:
        return EnvSettingsSource(FromEnvironment)()
    except SettingsError as error:
        raise ConfigurationError(
            f"an environment variable is wrong: {error}; one setting each, for example SWARMTASK_OPERATOR__SUBMIT_WAVE=50"
        ) from error


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both; where they name the same setting, the one above counts."""
    result = dict(below)
    for name, value in above.items():
        known = result.get(name)
        result[name] = _merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return result
