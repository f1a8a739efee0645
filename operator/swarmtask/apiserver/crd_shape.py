"""The field table of CustomResourceDefinition. Called by `builtins.py` and `crd_rules.py`. Tables only; no wire numbers: clients
send CRDs as JSON. Source: Kubernetes API reference; descriptions are our own words.
"""

from __future__ import annotations

from typing import Any, Final

from swarmtask.apiserver.shapes import METADATA, Field, Message, schema_of


def _strings(name: str, description: str) -> Field:
    return Field(name, 0, "string", description, many="list")


_NAMES = Message("CustomResourceDefinitionNames", "Names by which the kind is addressed.", (
    Field("plural", 0, "string", "Name in URLs: lower case, plural.", required=True),
    Field("singular", 0, "string", "Name for one object; the kind in lower case unless set."),
    _strings("shortNames", "Abbreviations for the command line."),
    Field("kind", 0, "string", "Name in objects: CamelCase, singular.", required=True),
    Field("listKind", 0, "string", "Kind of a list; the kind with List appended unless set."),
    _strings("categories", "Groups of kinds that are listed together."),
))  # fmt: skip
_COLUMN = Message("CustomResourceColumnDefinition", "A column of `kubectl get`.", (
    Field("name", 0, "string", "Head of the column.", required=True),
    Field("type", 0, "string", "integer, number, string, boolean or date.", required=True),
    Field("format", 0, "string", "Format of the type."),
    Field("description", 0, "string", "What the column shows."),
    Field("priority", 0, "int32", "0 is always shown; a higher one with -o wide."),
    Field("jsonPath", 0, "string", "Path of the value.", required=True),
))  # fmt: skip
_SELECTABLE = Message("SelectableField", "A field that a field selector may name.", (
    Field("jsonPath", 0, "string", "Path of the field.", required=True),
))  # fmt: skip
_SCALE = Message("CustomResourceSubresourceScale", "Where the numbers of the scale subresource are.", (
    Field("specReplicasPath", 0, "string", "Path of the wished number.", required=True),
    Field("statusReplicasPath", 0, "string", "Path of the actual number.", required=True),
    Field("labelSelectorPath", 0, "string", "Path of the selector, as text.", pointer=True),
))  # fmt: skip
_SUBRESOURCES = Message("CustomResourceSubresources", "Which subresources are served.", (
    Field("status", 0, Message("CustomResourceSubresourceStatus", "Turns the status subresource on.", ()), "/status."),
    Field("scale", 0, _SCALE, "/scale."),
))  # fmt: skip
_VALIDATION = Message("CustomResourceValidation", "Holds the schema.", (
    Field("openAPIV3Schema", 0, "any", "A structural OpenAPI v3 schema.", pointer=True),
))  # fmt: skip
_VERSION = Message("CustomResourceDefinitionVersion", "One version of the kind.", (
    Field("name", 0, "string", "Name of the version, for example v1 or v1beta1.", required=True),
    Field("served", 0, "bool", "Whether clients can use it.", required=True),
    Field("storage", 0, "bool", "Whether objects are stored in it; true for exactly one.", required=True),
    Field("deprecated", 0, "bool", "Clients are warned."),
    Field("deprecationWarning", 0, "string", "Text of the warning.", pointer=True),
    Field("schema", 0, _VALIDATION, "Schema of the version."),
    Field("subresources", 0, _SUBRESOURCES, "Subresources of the version."),
    Field("additionalPrinterColumns", 0, _COLUMN, "Columns of `kubectl get`.", many="list"),
    Field("selectableFields", 0, _SELECTABLE, "Fields for field selectors.", many="list"),
))  # fmt: skip
_CONVERSION = Message("CustomResourceConversion", "How versions become each other.", (
    Field("strategy", 0, "string", "None: only apiVersion changes. Webhooks are not supported by this server.", required=True),
    Field("webhook", 0, "any", "Not supported by this server.", pointer=True),
))  # fmt: skip
_CONDITION = Message("CustomResourceDefinitionCondition", "One fact about the definition.", (
    Field("type", 0, "string", "NamesAccepted, Established or Terminating.", required=True),
    Field("status", 0, "string", "True, False or Unknown.", required=True),
    Field("observedGeneration", 0, "int64", "Generation that was looked at."),
    Field("lastTransitionTime", 0, "Time", "When the status changed last."),
    Field("reason", 0, "string", "One word for machines."),
    Field("message", 0, "string", "A sentence for people."),
))  # fmt: skip
CRD: Final = Message("CustomResourceDefinition", "Adds a kind to the API.", (
    METADATA,
    Field("spec", 0, Message("CustomResourceDefinitionSpec", "The wished kind.", (
        Field("group", 0, "string", "API group.", required=True),
        Field("names", 0, _NAMES, "Names of the kind.", required=True),
        Field("scope", 0, "string", "Namespaced or Cluster.", required=True),
        Field("versions", 0, _VERSION, "Versions of the kind.", many="list", required=True),
        Field("conversion", 0, _CONVERSION, "How versions become each other.", pointer=True),
        Field("preserveUnknownFields", 0, "bool", "Must be false."),
    )), "The wished kind.", required=True),
    Field("status", 0, Message("CustomResourceDefinitionStatus", "What is served.", (
        Field("conditions", 0, _CONDITION, "Facts.", many="list", list_type="map", list_keys=("type",)),
        Field("acceptedNames", 0, _NAMES, "Names in use."),
        _strings("storedVersions", "Versions in which objects may be stored."),
    )), "What is served."),
))  # fmt: skip
CRD_SCHEMA: Final[dict[str, Any]] = schema_of(CRD, ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"))
