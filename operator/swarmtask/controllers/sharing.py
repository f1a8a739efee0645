"""Parts of stored tasks that many tasks have in common, held once: ten thousand tasks of one kind have one spec in memory.

Called by `reading` for every task. A part that is alike is the same object, found by what it looks like on the wire; it goes when
nobody holds it any more. That is right because a model is never changed in place once it was read: who decides something makes
new parts (`lifecycle.draft`).

Measured with tasks of one kind (docs/performance.md): a task takes a quarter of the memory, and a third of the time to read. Of
what a task has for itself alone, half would be pydantic's notes of which fields were set, a set for each part: nobody asks for
them, so all objects of a model share one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, get_args
from weakref import WeakValueDictionary

import orjson

from swarmtask.resources.meta import Condition, Model
from swarmtask.resources.task import TaskSpec

Part = TypeVar("Part", bound=Model)

_KNOWN: WeakValueDictionary[tuple[type[Model], bytes], Model] = WeakValueDictionary()
DIGEST_BYTES = 16


def shared_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """A stored task with the parts that are shared as models already, for validation.

    Raises:
        ValidationError: one of them cannot be read. Its places do not begin at the task: read the task itself to say what is wrong.
    """
    shared = dict(body)
    if isinstance(spec := body.get("spec"), dict):
        shared["spec"] = _shared(TaskSpec, spec)
    status = body.get("status")
    if isinstance(status, dict) and isinstance(conditions := status.get("conditions"), list):
        shared["status"] = {**status, "conditions": [_shared(Condition, one) for one in conditions]}
    return shared


def lighten(model: Model) -> None:
    """Let go of the notes which fields of the model and its parts were set."""
    notes = _notes(type(model))
    if model.__pydantic_fields_set__ is notes:
        return
    object.__setattr__(model, "__pydantic_fields_set__", notes)
    for value in model.__dict__.values():
        if isinstance(value, Model):
            lighten(value)
        elif isinstance(value, list):
            for one in value:
                if isinstance(one, Model):
                    lighten(one)


def _shared(model: type[Part], raw: Any) -> Part:
    """The one object for a part that looks like this."""
    if not isinstance(raw, dict):
        return model.model_validate(raw)
    try:
        key = (model, hashlib.blake2b(orjson.dumps(raw), digest_size=DIGEST_BYTES).digest())
    except TypeError:  # not from the wire: nothing to recognise it by
        return model.model_validate(raw)
    known = _KNOWN.get(key)
    if known is None:
        filled = dict(raw)
        for name, part in _parts(model):
            if isinstance(inner := raw.get(name), dict):
                filled[name] = _shared(part, inner)
        known = model.model_validate(filled)
        lighten(known)
        _KNOWN[key] = known
    return known  # type: ignore[return-value]  # its class is in the key


@cache
def _parts(model: type[Model]) -> tuple[tuple[str, type[Model]], ...]:
    """The fields that hold one part: their names on the wire, and its model."""
    return tuple(_find_parts(model))


def _find_parts(model: type[Model]) -> Iterator[tuple[str, type[Model]]]:
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Model):
                yield field.alias or name, kind
                break


@cache
def _notes(model: type[Model]) -> set[str]:
    """As if all fields had been set."""
    return set(model.model_fields)
