"""When the model of a kind can have nothing against a spec that its schema accepts, told without asking the model.

The schemas are made from the models, so the models know more only where they have rules in Python: a model's own (`Model.asks` says
of which fields) and those of single fields. A spec that says none of these fields needs no model to be made of it. That is so for
most tasks, and making one takes several times as long as this. Called by `model_rules`; runs on pydantic-core, as `acceptance`.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, PlainValidator, WrapValidator
from pydantic_core import SchemaValidator, core_schema

from swarmtask.resources.fields import SchemaKnows
from swarmtask.resources.meta import Model

_Core = core_schema.CoreSchema
_RULES: Final = (AfterValidator, BeforeValidator, PlainValidator, WrapValidator)
_EXACTLY: Final = {str: core_schema.str_schema(strict=True), int: core_schema.int_schema(strict=True)}


class _Nothing:
    """No JSON is an instance of this."""


_NEVER: Final = core_schema.is_instance_schema(_Nothing)
_NONE: Final = core_schema.none_schema()
_EMPTY_DICT: Final = core_schema.dict_schema(max_length=0, strict=True)
_EMPTY_LIST: Final = core_schema.list_schema(max_length=0, strict=True)
_EMPTY_STR: Final = core_schema.str_schema(max_length=0, strict=True)


def silence_of(model: type[Model]) -> Callable[[Any], bool]:
    """Whether nothing can be said against the JSON of a model, which its schema accepts. False says nothing."""
    return SchemaValidator(_of_model(model) or core_schema.any_schema()).isinstance_python


def _of_model(model: type[Model]) -> _Core | None:
    """None: nothing can ever be said."""
    rules = model.__pydantic_decorators__
    has_rules = bool(rules.model_validators or rules.field_validators or rules.validators or rules.root_validators)
    if has_rules and model.asks is None:
        return _NEVER
    fields: dict[str, core_schema.TypedDictField] = {}
    for name, info in model.model_fields.items():
        asked = has_rules and name in (model.asks or ())
        check = _unsaid(info.annotation) if asked else _of_type(info.annotation, tuple(info.metadata))
        if check is not None:
            fields[info.alias or name] = core_schema.typed_dict_field(check, required=False)
    return core_schema.typed_dict_schema(fields, extra_behavior="ignore") if fields else None


def _of_type(annotation: Any, metadata: tuple[Any, ...] = ()) -> _Core | None:
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _of_type(inner, (*metadata, *more))
    if any(isinstance(one, _RULES) for one in metadata):
        known = next((one for one in metadata if isinstance(one, SchemaKnows)), None)
        return _unsaid(annotation) if known is None else _EXACTLY[known.type]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        checks = [check for check in map(_of_type, arguments) if check is not None]
        if len(arguments) == 2 and type(None) in arguments:
            return core_schema.nullable_schema(checks[0]) if checks else None
        return _NEVER if checks else None
    if origin in (list, dict):
        check = _of_type(arguments[-1])
        if check is None:
            return None
        return core_schema.list_schema(check) if origin is list else core_schema.dict_schema(values_schema=check)
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return _of_model(annotation)
    return _EXACTLY[int] if annotation is int else None  # to a schema, 3.0 is an integer


def _unsaid(annotation: Any) -> _Core:
    """Not given, null or empty."""
    while (origin := get_origin(annotation)) in (Annotated, Union, types.UnionType):
        annotation = next((one for one in get_args(annotation) if one is not type(None)), annotation)
    kind = origin or annotation
    if kind is dict or (isinstance(kind, type) and issubclass(kind, Model)):
        return core_schema.nullable_schema(_EMPTY_DICT)
    if kind is list:
        return core_schema.nullable_schema(_EMPTY_LIST)
    return core_schema.nullable_schema(_EMPTY_STR) if kind is str else _NONE
