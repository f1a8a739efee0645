"""What the pydantic models of our own kinds have against an object, beyond the schemas of their CRDs.

Called by admission, for objects that are valid by everything else. The rules themselves are in `resources/`; nothing about any one
kind is written here. Asking a model means making all its parts, so a part that many objects have alike, such as one that was filled
in by default, is made once and handed to the model as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

import orjson
from pydantic import ValidationError

from swarmtask.apiserver.faults import bad_value, required
from swarmtask.apiserver.model_silence import silence_of
from swarmtask.apiserver.types import ResourceType
from swarmtask.errors import Cause
from swarmtask.resources.kinds import OWN_KINDS
from swarmtask.resources.meta import Model

PARTS_LIMIT: Final = 256
"""Parts kept per model; then all are forgotten and made again as they are met."""
PART_BYTES: Final = 512
"""A longer part is hardly met again."""
_SUB_PATH = re.compile(r"^([a-z][A-Za-z0-9]*(?:\.[a-z][A-Za-z0-9]*)*): ")


@dataclass(slots=True)
class _Parts:
    """What can be handed to a model as it is.

    Attributes:
        alike: field -> its model, where it need not be given: what is left out is the same in all objects.
        other: field -> its parts, where it must be given.
        made: (field, JSON) -> a valid part. A part is valid or not whatever is beside it, and no rule changes it.
    """

    alike: Mapping[str, type[Model]]
    other: Mapping[str, _Parts]
    made: dict[tuple[str, bytes], Model] = field(default_factory=dict)

    @classmethod
    def of(cls, model: type[Model]) -> _Parts:
        alike: dict[str, type[Model]] = {}
        other: dict[str, _Parts] = {}
        for name, info in model.model_fields.items():
            if not _is_model(info.annotation) or info.metadata:
                continue
            if info.is_required():
                other[info.alias or name] = cls.of(info.annotation)
            else:
                alike[info.alias or name] = info.annotation
        return cls(alike, other)

    def put_into(self, value: Any) -> Any:
        """The value with parts in it that were made before; `value` itself is left as it is."""
        if type(value) is not dict:
            return value
        result = value.copy()
        for name, model in self.alike.items():
            if name in value and (part := self._made(name, model, value[name])) is not None:
                result[name] = part
        for name, parts in self.other.items():
            if name in value:
                result[name] = parts.put_into(value[name])
        return result

    def _made(self, name: str, model: type[Model], value: Any) -> Model | None:
        """The part made of a value; None: it is long, or not valid."""
        try:
            text = orjson.dumps(value)
        except TypeError:  # an integer beyond 64 bits
            return None
        part = self.made.get((name, text))
        if part is None and len(text) <= PART_BYTES:
            try:
                part = model.model_validate(value)
            except ValidationError:
                return None
            if len(self.made) >= PARTS_LIMIT:
                self.made.clear()
            self.made[name, text] = part
        return part


@dataclass(frozen=True, slots=True)
class _Asked:
    """The model of one kind. `spec`, `parts`, `silent`: of its field `spec`."""

    kind: str
    model: type[Model]
    spec: type[Model]
    parts: _Parts
    silent: Callable[[Any], bool]

    @classmethod
    def of(cls, kind: str, model: type[Model]) -> _Asked:
        spec = model.model_fields["spec"].annotation
        if not _is_model(spec):
            raise TypeError(f"the spec of {kind} is no model")
        return cls(kind, model, spec, _Parts.of(spec), silence_of(spec))

    def spec_holds(self, spec: Any) -> bool:
        """Whether the model has nothing against this spec, which its schema accepts. That is all that it can say something new of:
        the header and the metadata have been checked before, and the status is not asked about."""
        return self.silent(spec) or self.spec.__pydantic_validator__.isinstance_python(self.parts.put_into(spec))


def _is_model(annotation: Any) -> TypeGuard[type[Model]]:
    return isinstance(annotation, type) and issubclass(annotation, Model)


_ASKED: Final[Mapping[tuple[str, str, str], _Asked]] = {
    (kind.group, kind.version, kind.plural): _Asked.of(kind.kind, kind.model) for kind in OWN_KINDS if kind.model is not None
}


def model_causes(rt: ResourceType, obj: Mapping[str, Any]) -> list[Cause]:
    """What is wrong with an object that its schema accepts by the model of its kind; nothing where the kind has none."""
    asked = _ASKED.get((rt.group, rt.version, rt.plural))
    if asked is None or (rt.kind == asked.kind and "spec" in obj and asked.spec_holds(obj["spec"])):
        return []
    try:
        asked.model.model_validate({name: value for name, value in obj.items() if name != "status"})
    except ValidationError as error:
        return [_model_cause(item) for item in error.errors(include_url=False, include_context=False)]
    return []


def _model_cause(item: Any) -> Cause:
    path = ""
    for part in item["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    message = item["msg"].removeprefix("Value error, ")
    below = _SUB_PATH.match(message)
    if below:
        path = f"{path}.{below.group(1)}" if path else below.group(1)
        message = message[below.end() :]
    if item["type"] == "missing":
        return required(path)
    shown = item["input"] if isinstance(item["input"], str | int | float | bool) else _brief(item["input"])
    return bad_value(path, shown, message)


def _brief(value: Any) -> str:
    try:
        text = orjson.dumps(value).decode()
    except TypeError:
        text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
