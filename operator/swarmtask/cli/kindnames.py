"""Words for kinds on the command line (`tasks`, `st`, `swarmqueue`, ...) and kinds of documents in files.

Called by `get` and `apply`.
"""

from __future__ import annotations

import typer

from swarmtask.resources import kinds
from swarmtask.resources.kinds import Kind

_SHORT = {"tasks": kinds.SWARM_TASK, "nodes": kinds.SWARM_NODE, "queues": kinds.SWARM_QUEUE}

_APPLICABLE = (
    *kinds.OWN_KINDS, kinds.NAMESPACE, kinds.SECRET, kinds.CONFIG_MAP, kinds.SERVICE_ACCOUNT, kinds.LEASE,
    kinds.CUSTOM_RESOURCE_DEFINITION,
)  # fmt: skip


def words() -> list[str]:
    """What a person may type for a kind; for completion and for messages."""
    return list(_SHORT)


def kind_of_word(word: str) -> Kind:
    """Any usual spelling of one of our kinds.

    Raises:
        typer.BadParameter: no such kind; says which there are.
    """
    lowered = word.lower()
    for name, kind in _SHORT.items():
        if lowered in (name, name[:-1], kind.plural, kind.singular, kind.crd_name, *kind.short_names):
            return kind
    raise typer.BadParameter(
        f"{word!r} is not a resource; choose one of {', '.join(_SHORT)} (kubectl shows all others)", param_hint="RESOURCE"
    )


def kind_of_document(api_version: str, kind_name: str) -> Kind | None:
    """The kind of an object in a file, or None when `swarmtask apply` does not know it."""
    return next((kind for kind in _APPLICABLE if (kind.api_version, kind.kind) == (api_version, kind_name)), None)
