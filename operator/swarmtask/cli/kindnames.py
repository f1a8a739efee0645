"""Words for kinds on the command line (`tasks`, `st/lint`, `swarmqueue`, ...) and kinds of documents in files.

Called by the commands that take a kind or the name of an object.
"""

from __future__ import annotations

import typer

from swarmtask.errors import Invalid
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
        if lowered in _spellings(name, kind):
            return kind
    raise typer.BadParameter(
        f"{word!r} is not a resource; choose one of {', '.join(_SHORT)} (kubectl shows all others)", param_hint="RESOURCE"
    )


def name_of(kind: Kind, text: str) -> str:
    """The name in `lint`, `st/lint` or `swarmtask.swarmtask.io/lint`, as `-o name` and the commands write it.

    Raises:
        Invalid: something else than this kind is before the slash. Above all a namespace, as in messages that speak of
            `team/lint`: the task `lint` of another namespace is a different one.
    """
    prefix, slash, name = text.rpartition("/")
    if not slash or any(prefix.lower() in _spellings(word, known) for word, known in _SHORT.items() if known is kind):
        return name
    raise Invalid(
        f"{text!r} is not the name of a {kind.kind}: write {name or 'NAME'}, or {kind.singular}/{name or 'NAME'}; "
        "another namespace is chosen with -n"
    )


def _spellings(word: str, kind: Kind) -> tuple[str, ...]:
    """Everything that a person may write for a kind. `word`: our own name of it, in the plural."""
    return word, word[:-1], kind.plural, kind.singular, kind.crd_name, f"{kind.singular}.{kind.group}", *kind.short_names


def kind_of_document(api_version: str, kind_name: str) -> Kind | None:
    """The kind of an object in a file, or None when `swarmtask apply` does not know it."""
    return next((kind for kind in _APPLICABLE if (kind.api_version, kind.kind) == (api_version, kind_name)), None)
