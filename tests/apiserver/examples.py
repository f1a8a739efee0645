"""One sound object of every kind that the server stores or answers, for tests that then damage it.

`PATHS` says where each is posted. `GADGET` is a definition that uses most of what definitions can say.
"""

from __future__ import annotations

from typing import Any

from tests.conformance.fleet import DEFINITION, GROUP, ship

GADGET = DEFINITION

NAMESPACE = "default"
PATHS = {
    "configmaps": "/api/v1/namespaces/default/configmaps",
    "secrets": "/api/v1/namespaces/default/secrets",
    "namespaces": "/api/v1/namespaces",
    "events": "/api/v1/namespaces/default/events",
    "newevents": "/apis/events.k8s.io/v1/namespaces/default/events",
    "leases": "/apis/coordination.k8s.io/v1/namespaces/default/leases",
    "crds": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "tasks": "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmtasks",
    "ships": f"/apis/{GROUP}/v1/namespaces/default/ships",
    "accounts": "/api/v1/namespaces/default/serviceaccounts",
    "roles": "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles",
    "clusterroles": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "rolebindings": "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings",
    "clusterrolebindings": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "accesstokens": "/apis/access.swarmtask.io/v1alpha1/accesstokens",
    "nodes": "/apis/swarmtask.io/v1alpha1/swarmnodes",
    "queues": "/apis/swarmtask.io/v1alpha1/namespaces/default/swarmqueues",
    "access": "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    "subject": "/apis/authorization.k8s.io/v1/subjectaccessreviews",
    "local": "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews",
    "rules": "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews",
    "whoami": "/apis/authentication.k8s.io/v1/selfsubjectreviews",
    "rotation": "/apis/access.swarmtask.io/v1alpha1/secretskeyrotations",
    "tokens": "/apis/authentication.k8s.io/v1/tokenreviews",
}
EXAMPLES: dict[str, dict[str, Any]] = {
    "configmaps": {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": {"a": "b"},
                   "binaryData": {"c": "eA=="}},
    "secrets": {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "data": {"a": "eA=="}, "stringData": {"b": "c"}},
    "namespaces": {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}, "spec": {"finalizers": ["kubernetes"]}},
    "events": {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "x"}, "involvedObject": {"kind": "SwarmTask", "name": "t"},
        "reason": "R", "message": "m", "type": "Normal", "series": {"count": 1, "lastObservedTime": "2024-01-01T00:00:00Z"},
    },
    "newevents": {
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "x"}, "regarding": {"kind": "SwarmTask"},
        "reason": "R", "note": "m", "type": "Normal", "eventTime": "2024-01-01T00:00:00.000000Z", "action": "A",
        "reportingController": "c", "reportingInstance": "i",
    },
    "leases": {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "x"},
               "spec": {"leaseDurationSeconds": 5}},
    "crds": {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "ws.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "ws", "kind": "W", "shortNames": ["w"]},
            "versions": [{
                "name": "v1", "served": True, "storage": True,
                "additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".a"}],
                "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"a": {"type": "string", "pattern": "a+", "default": "a"}}}},
            }],
        },
    },
    "tasks": {
        "apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask",
        "metadata": {
            "name": "x", "labels": {"a": "b"}, "finalizers": ["a.b/c"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "u"}],
        },
        "spec": {"container": {"image": "x", "env": [{"name": "A", "value": "1"}], "resources": {"limits": {"cpu": "2"}}}},
        "status": {"phase": "Queued", "attempts": [{"number": 1, "id": "i", "node": "n", "engine": "e"}]},
    },
    "ships": {
        **ship("x", size=3, crew=1, port="http", tags=["a", "b"], holds=[{"name": "h", "tons": 2}], limits={"a": "b"},
               order=["b", "a"], free={"x": {"y": 1}}, inner={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "i"}}),
        "status": {"crew": 1, "free": [1, None]},
    },
    "accounts": {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "x"}, "secrets": [{"name": "s"}]},
    "roles": {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "x"},
              "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"], "resourceNames": ["a"]}]},
    "clusterroles": {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "x"},
                     "rules": [{"nonResourceURLs": ["/x"], "verbs": ["get"]}]},
    "rolebindings": {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "x"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "x"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "u"}],
    },
    "clusterrolebindings": {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "x"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "x"},
        "subjects": [{"kind": "ServiceAccount", "name": "u", "namespace": "default"}],
    },
    "accesstokens": {"apiVersion": "access.swarmtask.io/v1alpha1", "kind": "AccessToken", "metadata": {"name": "x"},
                     "spec": {"user": "u", "groups": ["g"], "digest": "0" * 64}},
    "nodes": {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode", "metadata": {"name": "x"}, "spec": {}},
    "queues": {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmQueue", "metadata": {"name": "x"}, "spec": {}},
    "access": {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
               "spec": {"resourceAttributes": {"verb": "get"}}},
    "tokens": {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "x"}},
    "subject": {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
                "spec": {"user": "u", "groups": ["g"], "nonResourceAttributes": {"path": "/x", "verb": "get"}}},
    "local": {"apiVersion": "authorization.k8s.io/v1", "kind": "LocalSubjectAccessReview", "metadata": {"namespace": "default"},
              "spec": {"user": "u", "resourceAttributes": {"namespace": "default", "verb": "get", "resource": "pods"}}},
    "rules": {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": "default"}},
    "whoami": {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"},
    "rotation": {"apiVersion": "access.swarmtask.io/v1alpha1", "kind": "SecretsKeyRotation"},
}  # fmt: skip
TOKEN_REQUEST: dict[str, Any] = {
    "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
    "spec": {"audiences": ["a"], "expirationSeconds": 900, "boundObjectRef": {"apiVersion": "v1", "kind": "Secret", "name": "x"}},
}  # fmt: skip
