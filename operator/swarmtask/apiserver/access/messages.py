"""The kinds of access control as field tables: roles and bindings, token requests, access tokens.

Called by `builtins.py` (what is served) and `protobuf.py` (what can be decoded), through `builtin_kinds`. Tables only.
Source: Kubernetes API reference; the kinds of `access.swarmtask.io` are our own.
"""

from __future__ import annotations

from typing import Any, Final

from swarmtask.apiserver.shapes import METADATA, Field, Message


def _strings(name: str, number: int, description: str, **more: Any) -> Field:
    return Field(name, number, "string", description, many="list", **more)


# --- rbac.authorization.k8s.io/v1 ----------------------------------------------------------------------------------------

POLICY_RULE = Message("PolicyRule", "Verbs that may be used on some resources or paths.", (
    _strings("verbs", 1, "get, list, watch, create, update, patch, delete, deletecollection, ...; * means all.", required=True),
    _strings("apiGroups", 2, "API groups; the empty string is the core group, * means all."),
    _strings("resources", 3, "Plural names of kinds, with a subresource after a slash; * means all."),
    _strings("resourceNames", 4, "Names of single objects; empty means all."),
    _strings("nonResourceURLs", 5, "URL paths that are no resources; may end in *. For ClusterRoles only."),
))  # fmt: skip
SUBJECT = Message("Subject", "Who is meant.", (
    Field("kind", 1, "string", "User, Group or ServiceAccount.", required=True),
    Field("apiGroup", 2, "string", "rbac.authorization.k8s.io for users and groups, empty for ServiceAccounts."),
    Field("name", 3, "string", "Name.", required=True),
    Field("namespace", 4, "string", "Namespace of a ServiceAccount."),
))  # fmt: skip
ROLE_REF = Message("RoleRef", "The role that is given. Cannot change.", (
    Field("apiGroup", 1, "string", "rbac.authorization.k8s.io."),
    Field("kind", 2, "string", "Role or ClusterRole.", required=True),
    Field("name", 3, "string", "Name of the role.", required=True),
))  # fmt: skip
_EXPRESSION = Message("LabelSelectorRequirement", "One term of a selector.", (
    Field("key", 1, "string", "Label.", required=True),
    Field("operator", 2, "string", "In, NotIn, Exists or DoesNotExist.", required=True),
    _strings("values", 3, "Values."),
))  # fmt: skip
_SELECTOR = Message("LabelSelector", "Chooses objects by their labels.", (
    Field("matchLabels", 1, "string", "Labels that must have these values.", many="map"),
    Field("matchExpressions", 2, _EXPRESSION, "Terms that must hold.", many="list"),
))  # fmt: skip
AGGREGATION_RULE = Message("AggregationRule", "Which other ClusterRoles add their rules.", (
    Field("clusterRoleSelectors", 1, _SELECTOR, "A ClusterRole that one of them chooses adds its rules.", many="list"),
))  # fmt: skip
_RULES = (METADATA, Field("rules", 2, POLICY_RULE, "Rules.", many="list"))
ROLE = Message("Role", "What may be done in one namespace.", _RULES)
CLUSTER_ROLE = Message("ClusterRole", "What may be done in the cluster, or in a namespace that a RoleBinding names.", (
    *_RULES,
    Field("aggregationRule", 3, AGGREGATION_RULE, "Further ClusterRoles whose rules count too.", pointer=True),
))  # fmt: skip
_BINDING = (
    METADATA,
    Field("subjects", 2, SUBJECT, "Who has the role.", many="list"),
    Field("roleRef", 3, ROLE_REF, "The role.", required=True),
)
ROLE_BINDING = Message("RoleBinding", "Gives a role in one namespace.", _BINDING)
CLUSTER_ROLE_BINDING = Message("ClusterRoleBinding", "Gives a ClusterRole in the whole cluster.", _BINDING)

# --- authentication.k8s.io/v1 --------------------------------------------------------------------------------------------

BOUND_OBJECT = Message("BoundObjectReference", "The object with which a token ends.", (
    Field("kind", 1, "string", "Kind."),
    Field("apiVersion", 2, "string", "API version."),
    Field("name", 3, "string", "Name."),
    Field("uid", 4, "string", "UID."),
))  # fmt: skip
TOKEN_REQUEST = Message("TokenRequest", "A token for a ServiceAccount.", (
    METADATA,
    Field("spec", 2, Message("TokenRequestSpec", "Which token.", (
        _strings("audiences", 1, "Whom the token is meant for; empty means this server."),
        Field("boundObjectRef", 3, BOUND_OBJECT, "The token ends when this object is deleted.", pointer=True),
        Field("expirationSeconds", 4, "int64", "How long it shall be valid; one hour unless set.", pointer=True),
    )), "Which token.", required=True),
    Field("status", 3, Message("TokenRequestStatus", "The token.", (
        Field("token", 1, "string", "The token. It is told nowhere else."),
        Field("expirationTimestamp", 2, "Time", "When it ends."),
    )), "The token."),
))  # fmt: skip

# --- access.swarmtask.io/v1alpha1 ----------------------------------------------------------------------------------------

ACCESS_TOKEN = Message("AccessToken", "A bearer token, known by its SHA-256 alone. Deleting the object revokes it at once.", (
    METADATA,
    Field("spec", 2, Message("AccessTokenSpec", "Whose token it is, and until when.", (
        Field("user", 1, "string", "Name of the user. Cannot change.", required=True),
        _strings("groups", 2, "Groups of the user. Cannot change."),
        Field("digest", 3, "string", "SHA-256 of the token, 64 hexadecimal digits. Cannot change.", required=True),
        Field("expirationTimestamp", 4, "Time", "When it ends; never, where it is missing."),
        Field("description", 5, "string", "What it is for."),
    )), "Whose token it is.", required=True),
))  # fmt: skip
SECRETS_KEY_ROTATION = Message("SecretsKeyRotation", "Encrypts all stored Secrets with a new key. Not stored.", (
    METADATA,
    Field("status", 2, Message("SecretsKeyRotationStatus", "What was done.", (
        Field("keyID", 1, "string", "The new key."),
        Field("revisions", 2, "int64", "Stored revisions that were encrypted again."),
    )), "What was done."),
))  # fmt: skip

ACCESS_MESSAGES: Final[dict[tuple[str, str], Message]] = {
    ("rbac.authorization.k8s.io/v1", "Role"): ROLE,
    ("rbac.authorization.k8s.io/v1", "ClusterRole"): CLUSTER_ROLE,
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): ROLE_BINDING,
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"): CLUSTER_ROLE_BINDING,
    ("authentication.k8s.io/v1", "TokenRequest"): TOKEN_REQUEST,
    ("access.swarmtask.io/v1alpha1", "AccessToken"): ACCESS_TOKEN,
    ("access.swarmtask.io/v1alpha1", "SecretsKeyRotation"): SECRETS_KEY_ROTATION,
}
