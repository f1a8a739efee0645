"""The built-in kinds as field tables, grouped by API group: core, events, coordination, authorization, authentication;
those of access control are in `access.messages`.

Called by `builtins.py` (what is served) and `protobuf.py` (what can be decoded). Tables only. Source: Kubernetes API reference.
"""

from __future__ import annotations

from typing import Any, Final

from swarmtask.apiserver.access.messages import ACCESS_MESSAGES
from swarmtask.apiserver.projections.messages import RECEIVED_MESSAGES
from swarmtask.apiserver.shapes import LOCAL_OBJECT_REFERENCE, METADATA, OBJECT_REFERENCE, Field, Message


def _strings(name: str, number: int, description: str = "", **more: Any) -> Field:
    return Field(name, number, "string", description, many="list", **more)


# --- core/v1 -------------------------------------------------------------------------------------------------------------

NAMESPACE_CONDITION = Message("NamespaceCondition", "One fact about a namespace.", (
    Field("type", 1, "string", "Name of the fact.", required=True),
    Field("status", 2, "string", "True, False or Unknown.", required=True),
    Field("lastTransitionTime", 4, "Time", "When the status changed last."),
    Field("reason", 5, "string", "One word for machines."),
    Field("message", 6, "string", "A sentence for people."),
))  # fmt: skip
NAMESPACE = Message("Namespace", "A space in which names are unique.", (
    METADATA,
    Field("spec", 2, Message("NamespaceSpec", "What is wished of a namespace.", (
        _strings("finalizers", 1, "The namespace stays until this list is empty."),
    )), "What is wished."),
    Field("status", 3, Message("NamespaceStatus", "State of a namespace.", (
        Field("phase", 1, "string", "Active or Terminating."),
        Field("conditions", 2, NAMESPACE_CONDITION, "Facts about the deletion.", many="list", merge_key="type",
              list_type="map", list_keys=("type",)),
    )), "What is."),
))  # fmt: skip
SECRET = Message("Secret", "Sensitive values that tasks may be given.", (
    METADATA,
    Field("data", 2, "bytes", "Values, each in base64.", many="map"),
    Field("type", 3, "string", "What the values are for; Opaque unless set. Cannot change."),
    Field("stringData", 4, "string", "Values as plain text; moved into data when written, never read back.", many="map"),
    Field("immutable", 5, "bool", "True: the values cannot change any more.", pointer=True),
))  # fmt: skip
CONFIG_MAP = Message("ConfigMap", "Values that are not sensitive.", (
    METADATA,
    Field("data", 2, "string", "Values as UTF-8 text.", many="map"),
    Field("binaryData", 3, "bytes", "Values that are no text, each in base64.", many="map"),
    Field("immutable", 4, "bool", "True: the values cannot change any more.", pointer=True),
))  # fmt: skip
SERVICE_ACCOUNT = Message("ServiceAccount", "An identity for programs.", (
    METADATA,
    Field("secrets", 2, OBJECT_REFERENCE, "Secrets that the identity may use.", many="list", merge_key="name",
          list_type="map", list_keys=("name",)),
    Field("imagePullSecrets", 3, LOCAL_OBJECT_REFERENCE, "Secrets for pulling images.", many="list"),
    Field("automountServiceAccountToken", 4, "bool", "Whether workloads receive a token.", pointer=True),
))  # fmt: skip
EVENT_SOURCE = Message("EventSource", "Who reported an event.", (
    Field("component", 1, "string", "Program."),
    Field("host", 2, "string", "Node."),
))  # fmt: skip
EVENT_SERIES = Message("EventSeries", "How often an event was repeated.", (
    Field("count", 1, "int32", "Occurrences up to lastObservedTime."),
    Field("lastObservedTime", 2, "MicroTime", "Newest occurrence."),
))  # fmt: skip
EVENT = Message("Event", "Something that happened to an object.", (
    METADATA,
    Field("involvedObject", 2, OBJECT_REFERENCE, "The object that it happened to.", required=True, atomic=True),
    Field("reason", 3, "string", "One word for machines."),
    Field("message", 4, "string", "A sentence for people."),
    Field("source", 5, EVENT_SOURCE, "Who reported it."),
    Field("firstTimestamp", 6, "Time", "First occurrence."),
    Field("lastTimestamp", 7, "Time", "Newest occurrence."),
    Field("count", 8, "int32", "Occurrences."),
    Field("type", 9, "string", "Normal or Warning."),
    Field("eventTime", 10, "MicroTime", "When it was first seen."),
    Field("series", 11, EVENT_SERIES, "Repetitions.", pointer=True),
    Field("action", 12, "string", "What was done about it."),
    Field("related", 13, OBJECT_REFERENCE, "A second object that has to do with it.", pointer=True, atomic=True),
    Field("reportingComponent", 14, "string", "Program that reported it."),
    Field("reportingInstance", 15, "string", "Instance of that program."),
))  # fmt: skip

# --- events.k8s.io/v1 ----------------------------------------------------------------------------------------------------

EVENTS_EVENT = Message("Event", "Something that happened to an object.", (
    METADATA,
    Field("eventTime", 2, "MicroTime", "When it was first seen."),
    Field("series", 3, EVENT_SERIES, "Repetitions.", pointer=True),
    Field("reportingController", 4, "string", "Program that reported it."),
    Field("reportingInstance", 5, "string", "Instance of that program."),
    Field("action", 6, "string", "What was done about it."),
    Field("reason", 7, "string", "One word for machines."),
    Field("regarding", 8, OBJECT_REFERENCE, "The object that it happened to.", atomic=True),
    Field("related", 9, OBJECT_REFERENCE, "A second object that has to do with it.", pointer=True, atomic=True),
    Field("note", 10, "string", "A sentence for people."),
    Field("type", 11, "string", "Normal or Warning."),
    Field("deprecatedSource", 12, EVENT_SOURCE, "Who reported it, in the old form."),
    Field("deprecatedFirstTimestamp", 13, "Time", "First occurrence, in the old form."),
    Field("deprecatedLastTimestamp", 14, "Time", "Newest occurrence, in the old form."),
    Field("deprecatedCount", 15, "int32", "Occurrences, in the old form."),
))  # fmt: skip

# --- coordination.k8s.io/v1 ----------------------------------------------------------------------------------------------

LEASE = Message("Lease", "A claim that expires unless it is renewed.", (
    METADATA,
    Field("spec", 2, Message("LeaseSpec", "Who holds the claim and for how long.", (
        Field("holderIdentity", 1, "string", "Who holds it.", pointer=True),
        Field("leaseDurationSeconds", 2, "int32", "Seconds after renewTime at which others may take it.", pointer=True),
        Field("acquireTime", 3, "MicroTime", "When the holder took it.", pointer=True),
        Field("renewTime", 4, "MicroTime", "When the holder renewed it last.", pointer=True),
        Field("leaseTransitions", 5, "int32", "How often it changed hands.", pointer=True),
        Field("strategy", 6, "string", "How a holder is chosen.", pointer=True),
        Field("preferredHolder", 7, "string", "Who should take it over.", pointer=True),
    )), "Who holds the claim."),
))  # fmt: skip

# --- authorization.k8s.io/v1 ---------------------------------------------------------------------------------------------

_REQUIREMENT = Message("SelectorRequirement", "One term of a selector.", (
    Field("key", 1, "string", "Left side.", required=True),
    Field("operator", 2, "string", "In, NotIn, Exists or DoesNotExist.", required=True),
    _strings("values", 3, "Right side."),
))  # fmt: skip
_SELECTOR = Message("SelectorAttributes", "A selector of the request.", (
    Field("rawSelector", 1, "string", "The text of the selector."),
    Field("requirements", 2, _REQUIREMENT, "The parsed selector.", many="list"),
))  # fmt: skip
RESOURCE_ATTRIBUTES = Message("ResourceAttributes", "The request that is asked about.", (
    Field("namespace", 1, "string", "Namespace; empty means all."),
    Field("verb", 2, "string", "get, list, watch, create, update, patch, delete, ...; * means all."),
    Field("group", 3, "string", "API group."),
    Field("version", 4, "string", "API version."),
    Field("resource", 5, "string", "Plural name of the kind."),
    Field("subresource", 6, "string", "Subresource."),
    Field("name", 7, "string", "Name of one object; empty means all."),
    Field("fieldSelector", 8, _SELECTOR, "Field selector of the request.", pointer=True),
    Field("labelSelector", 9, _SELECTOR, "Label selector of the request.", pointer=True),
))  # fmt: skip
NON_RESOURCE_ATTRIBUTES = Message("NonResourceAttributes", "A request for a path that is no resource.", (
    Field("path", 1, "string", "URL path."),
    Field("verb", 2, "string", "HTTP verb."),
))  # fmt: skip
EXTRA_VALUE = Message("ExtraValue", "Values of one extra attribute.", (_strings("items", 1),), list_wrapper=True)
_ACCESS_STATUS = Field("status", 3, Message("SubjectAccessReviewStatus", "The answer.", (
    Field("allowed", 1, "bool", "True: the request would be allowed."),
    Field("reason", 2, "string", "Why."),
    Field("evaluationError", 3, "string", "What went wrong while deciding."),
    Field("denied", 4, "bool", "True: the request would be denied whatever others say."),
)), "The answer.")  # fmt: skip
_ATTRIBUTES = (
    Field("resourceAttributes", 1, RESOURCE_ATTRIBUTES, "A request for a resource.", pointer=True),
    Field("nonResourceAttributes", 2, NON_RESOURCE_ATTRIBUTES, "A request for another path.", pointer=True),
)
SELF_SUBJECT_ACCESS_REVIEW = Message("SelfSubjectAccessReview", "May I do this?", (
    METADATA,
    Field("spec", 2, Message("SelfSubjectAccessReviewSpec", "The question.", _ATTRIBUTES), "The question.", required=True),
    _ACCESS_STATUS,
))  # fmt: skip
SUBJECT_ACCESS_REVIEW = Message("SubjectAccessReview", "May this user do this?", (
    METADATA,
    Field("spec", 2, Message("SubjectAccessReviewSpec", "The question.", (
        *_ATTRIBUTES,
        Field("user", 3, "string", "The user who is asked about."),
        _strings("groups", 4, "Groups of the user."),
        Field("extra", 5, EXTRA_VALUE, "Further attributes of the user.", many="map"),
        Field("uid", 6, "string", "UID of the user."),
    )), "The question.", required=True),
    _ACCESS_STATUS,
))  # fmt: skip
LOCAL_SUBJECT_ACCESS_REVIEW = Message(
    "LocalSubjectAccessReview", "May this user do this in this namespace?", SUBJECT_ACCESS_REVIEW.fields
)
_RESOURCE_RULE = Message("ResourceRule", "What may be done with resources.", (
    _strings("verbs", 1, "Verbs."), _strings("apiGroups", 2, "API groups."), _strings("resources", 3, "Plural names."),
    _strings("resourceNames", 4, "Names of objects; empty means all."),
))  # fmt: skip
_NON_RESOURCE_RULE = Message("NonResourceRule", "What may be done with other paths.", (
    _strings("verbs", 1, "Verbs."), _strings("nonResourceURLs", 2, "URL paths."),
))  # fmt: skip
SELF_SUBJECT_RULES_REVIEW = Message("SelfSubjectRulesReview", "What may I do?", (
    METADATA,
    Field("spec", 2, Message("SelfSubjectRulesReviewSpec", "The question.", (
        Field("namespace", 1, "string", "Namespace that is asked about."),
    )), "The question.", required=True),
    Field("status", 3, Message("SubjectRulesReviewStatus", "The answer.", (
        Field("resourceRules", 1, _RESOURCE_RULE, "Rules for resources.", many="list"),
        Field("nonResourceRules", 2, _NON_RESOURCE_RULE, "Rules for other paths.", many="list"),
        Field("incomplete", 3, "bool", "True: there may be more rules."),
        Field("evaluationError", 4, "string", "What went wrong while deciding."),
    )), "The answer."),
))  # fmt: skip

# --- authentication.k8s.io/v1 --------------------------------------------------------------------------------------------

USER_INFO = Message("UserInfo", "Who a request comes from.", (
    Field("username", 1, "string", "Name."),
    Field("uid", 2, "string", "UID."),
    _strings("groups", 3, "Groups."),
    Field("extra", 4, EXTRA_VALUE, "Further attributes.", many="map"),
))  # fmt: skip
SELF_SUBJECT_REVIEW = Message("SelfSubjectReview", "Who am I?", (
    METADATA,
    Field("status", 2, Message("SelfSubjectReviewStatus", "The answer.", (
        Field("userInfo", 1, USER_INFO, "Who the request comes from."),
    )), "The answer."),
))  # fmt: skip
TOKEN_REVIEW = Message("TokenReview", "Whose token is this?", (
    METADATA,
    Field("spec", 2, Message("TokenReviewSpec", "The question.", (
        Field("token", 1, "string", "The token."), _strings("audiences", 2, "Audiences that it should be meant for."),
    )), "The question.", required=True),
    Field("status", 3, Message("TokenReviewStatus", "The answer.", (
        Field("authenticated", 1, "bool", "True: the token is known."),
        Field("user", 2, USER_INFO, "Whose token it is."),
        Field("error", 3, "string", "Why it could not be checked."),
        _strings("audiences", 4, "Audiences that it is meant for."),
    )), "The answer."),
))  # fmt: skip

MESSAGES: Final[dict[tuple[str, str], Message]] = {
    ("v1", "Namespace"): NAMESPACE,
    ("v1", "Secret"): SECRET,
    ("v1", "ConfigMap"): CONFIG_MAP,
    ("v1", "ServiceAccount"): SERVICE_ACCOUNT,
    ("v1", "Event"): EVENT,
    ("events.k8s.io/v1", "Event"): EVENTS_EVENT,
    ("coordination.k8s.io/v1", "Lease"): LEASE,
    ("authorization.k8s.io/v1", "SelfSubjectAccessReview"): SELF_SUBJECT_ACCESS_REVIEW,
    ("authorization.k8s.io/v1", "SubjectAccessReview"): SUBJECT_ACCESS_REVIEW,
    ("authorization.k8s.io/v1", "LocalSubjectAccessReview"): LOCAL_SUBJECT_ACCESS_REVIEW,
    ("authorization.k8s.io/v1", "SelfSubjectRulesReview"): SELF_SUBJECT_RULES_REVIEW,
    ("authentication.k8s.io/v1", "SelfSubjectReview"): SELF_SUBJECT_REVIEW,
    ("authentication.k8s.io/v1", "TokenReview"): TOKEN_REVIEW,
    **ACCESS_MESSAGES,
    **RECEIVED_MESSAGES,
}
"""(apiVersion, kind) -> field table."""
