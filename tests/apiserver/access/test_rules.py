"""Rules against requests, what one rule covers of another, and how roles add up; without a server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmtask.apiserver.access.bindings import Policy
from swarmtask.apiserver.access.requests import attributes_of, forbidden
from swarmtask.apiserver.access.rules import EVERYTHING, GRANT_LIMIT, Attributes, Rule, missing
from swarmtask.apiserver.access.users import User, service_account

RBAC = "rbac.authorization.k8s.io"


def rule(verbs: str, groups: str, resources: str, names: str = "") -> Rule:
    return Rule(
        tuple(verbs.split()),
        tuple("" if g == "core" else g for g in groups.split()),
        tuple(resources.split()),
        tuple(names.split()),
    )


class TestMatching:
    @pytest.mark.parametrize(("given_rule", "wanted", "allowed"), [
        (rule("get list", "core", "pods"), Attributes("get", "", "pods"), True),
        (rule("get list", "core", "pods"), Attributes("watch", "", "pods"), False),
        (rule("get", "core", "pods"), Attributes("get", "apps", "pods"), False),
        (rule("get", "core", "pods"), Attributes("get", "", "pods", "log"), False),
        (rule("get", "core", "pods/log"), Attributes("get", "", "pods", "log"), True),
        (rule("get", "core", "pods/log"), Attributes("get", "", "pods"), False),
        (rule("get", "core", "*/log"), Attributes("get", "", "pods", "log"), True),
        (rule("get", "core", "*/log"), Attributes("get", "", "pods", "exec"), False),
        (rule("get", "core", "*"), Attributes("get", "", "pods", "exec"), True),
        (rule("*", "*", "*"), Attributes("escalate", RBAC, "roles", name="x"), True),
        (rule("get", "core", "pods", "a b"), Attributes("get", "", "pods", name="b"), True),
        (rule("get", "core", "pods", "a b"), Attributes("get", "", "pods", name="c"), False),
        (rule("list", "core", "pods", "a"), Attributes("list", "", "pods"), False),
        (rule("get", "core", "pods"), Attributes("*", "", "pods"), False),
        (rule("*", "*", "*"), Attributes("get", path="/metrics"), False),
        (Rule(("get",), urls=("/metrics",)), Attributes("get", path="/metrics"), True),
        (Rule(("get",), urls=("/metrics",)), Attributes("get", path="/metrics/x"), False),
        (Rule(("get",), urls=("/apis/*",)), Attributes("get", path="/apis/x/v1"), True),
        (Rule(("get",), urls=("/apis/*",)), Attributes("get", path="/apisx"), False),
        (Rule(("get",), urls=("*",)), Attributes("post", path="/x"), False),
        (Rule(("*",), urls=("*",)), Attributes("post", path="/x"), True),
        (Rule(("*",), urls=("*",)), Attributes("get", "", "pods"), False),
    ])  # fmt: skip
    def test_a_rule(self, given_rule: Rule, wanted: Attributes, allowed: bool) -> None:
        assert given_rule.allows(wanted) is allowed


class TestCovering:
    @pytest.mark.parametrize(("held", "granted", "covered"), [
        ([rule("get list", "core", "pods")], rule("get", "core", "pods"), True),
        ([rule("get", "core", "pods")], rule("get list", "core", "pods"), False),
        ([rule("get", "core", "pods"), rule("list", "core", "pods")], rule("get list", "core", "pods"), True),
        ([rule("*", "core", "pods")], rule("get bind", "core", "pods"), True),
        ([rule("get", "core", "pods")], rule("*", "core", "pods"), False),
        ([rule("get", "core", "*")], rule("get", "core", "pods pods/log"), True),
        ([rule("get", "core", "pods")], rule("get", "core", "pods/log"), False),
        ([rule("get", "core", "*/log")], rule("get", "core", "pods/log"), True),
        ([rule("get", "core", "*/log")], rule("get", "core", "*"), False),
        ([rule("get", "core", "pods", "a")], rule("get", "core", "pods"), False),
        ([rule("get", "core", "pods", "a")], rule("get", "core", "pods", "a"), True),
        ([rule("get", "core", "pods", "a"), rule("get", "core", "pods", "b")], rule("get", "core", "pods", "a b"), True),
        ([rule("get", "core", "pods", "a")], rule("get", "core", "pods", "a b"), False),
        ([rule("get", "core", "pods")], rule("get", "core", "pods", "a"), True),
        ([Rule(("get",), urls=("/apis/*",))], Rule(("get",), urls=("/apis/x", "/apis/y/*")), True),
        ([Rule(("get",), urls=("/apis/*",))], Rule(("get",), urls=("*",)), False),
        (list(EVERYTHING), rule("*", "*", "*"), True),
        (list(EVERYTHING), Rule(("*",), urls=("*",)), True),
        ([rule("*", "*", "*")], Rule(("get",), urls=("/x",)), False),
        ([], rule("get", "core", "pods"), False),
    ])  # fmt: skip
    def test_what_is_missing(self, held: list[Rule], granted: Rule, covered: bool) -> None:
        assert (missing(held, [granted]) == []) is covered

    def test_only_what_is_missing_is_named(self) -> None:
        held = [rule("get", "core", "pods")]
        assert missing(held, [rule("get list", "core", "pods secrets")]) == [
            rule("get", "core", "secrets"), rule("list", "core", "pods"), rule("list", "core", "secrets"),
        ]  # fmt: skip

    def test_a_rule_with_absurdly_many_combinations_is_not_taken_apart(self) -> None:
        many = tuple(f"r{number}" for number in range(GRANT_LIMIT))
        huge = Rule(("get", "list"), ("",), many)
        assert missing([rule("get", "core", "*"), rule("list", "core", "*")], [huge]) == [huge]
        assert missing([rule("get list", "core", "*")], [huge]) == []
        half = Rule(("get",), ("",), many[: GRANT_LIMIT // 2 + 1])
        assert missing([], [half, half])[-1] == half, "the bound is for all rules of a grant together"

    words = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3).map(tuple)
    rules = st.builds(Rule, words, words, st.lists(st.sampled_from(["x", "y", "x/s", "*/s", "*"]), min_size=1).map(tuple),
                      st.lists(st.sampled_from(["n", "m"]), max_size=2).map(tuple))  # fmt: skip

    requests = st.builds(Attributes, verb=st.sampled_from("ab"), group=st.sampled_from("ab"), resource=st.sampled_from("xy"),
                         subresource=st.sampled_from(["", "s"]), name=st.sampled_from(["n", "m", "o", ""]))  # fmt: skip

    @pytest.mark.slow
    @given(st.lists(rules, max_size=3), rules, requests)
    def test_what_is_covered_allows_nothing_new(self, held: list[Rule], granted: Rule, wanted: Attributes) -> None:
        if not missing(held, [granted]) and granted.allows(wanted):
            assert any(own.allows(wanted) for own in held)


def role(name: str, rules: list[dict[str, Any]], namespace: str = "", **more: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {}), **more.pop("metadata", {})},
        "rules": rules,
        **more,
    }


def binding(name: str, role_kind: str, role_name: str, *subjects: tuple[str, ...], namespace: str = "") -> dict[str, Any]:
    named = [{"kind": kind, "name": who, **({"namespace": rest[0]} if rest else {})} for kind, who, *rest in subjects]
    return {
        "metadata": {"name": name, **({"namespace": namespace} if namespace else {})},
        "roleRef": {"apiGroup": RBAC, "kind": role_kind, "name": role_name}, "subjects": named,
    }  # fmt: skip


PODS = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}
SECRETS = {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}
GET_POD = Attributes("get", "", "pods", namespace="one", name="p")


class TestPolicy:
    def test_a_role_holds_in_its_namespace_alone(self) -> None:
        policy = Policy(
            roles=[role("r", [PODS], "one"), role("r", [SECRETS], "two")],
            role_bindings=[binding("b", "Role", "r", ("User", "anna"), namespace="one")],
        )
        anna = User("anna")
        assert policy.grants(anna, "one").source_of(GET_POD) == 'RBAC: allowed by RoleBinding "b/one" of Role "r" to User "anna"'
        assert policy.grants(anna, "two").rules == ()
        assert policy.grants(anna, "").rules == ()
        assert policy.grants(User("bert"), "one").rules == ()

    def test_a_cluster_role_holds_where_it_is_bound(self) -> None:
        policy = Policy(
            cluster_roles=[role("r", [PODS, {"verbs": ["get"], "nonResourceURLs": ["/metrics"]}])],
            role_bindings=[binding("b", "ClusterRole", "r", ("Group", "staff"), namespace="one")],
            cluster_role_bindings=[binding("c", "ClusterRole", "r", ("Group", "chiefs"))],
        )
        worker, chief = User("w", ("staff",)), User("c", ("chiefs",))
        assert policy.grants(worker, "one").source_of(GET_POD)
        assert policy.grants(worker, "two").source_of(GET_POD) is None
        assert policy.grants(worker, "one").source_of(Attributes("get", path="/metrics")) is None
        assert policy.grants(chief, "two").source_of(GET_POD)
        assert policy.grants(chief, "").source_of(Attributes("get", path="/metrics"))
        assert policy.namespaces_of(worker) == ["one"]

    def test_service_accounts(self) -> None:
        policy = Policy(
            cluster_roles=[role("r", [PODS])],
            role_bindings=[binding("b", "ClusterRole", "r", ("ServiceAccount", "bot", "two"), namespace="one")],
        )
        assert policy.grants(service_account("two", "bot", "u"), "one").source_of(GET_POD)
        assert policy.grants(service_account("one", "bot", "u"), "one").source_of(GET_POD) is None

    def test_a_binding_to_a_role_that_is_not_there_gives_nothing(self) -> None:
        policy = Policy(role_bindings=[binding("b", "Role", "r", ("User", "anna"), namespace="one")])
        assert policy.grants(User("anna"), "one").rules == ()

    def test_aggregation(self) -> None:
        chosen = {"labels": {"to": "edit", "x": "1"}}
        aggregate = {
            "clusterRoleSelectors": [{"matchLabels": {"to": "edit"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}]
        }
        policy = Policy(cluster_roles=[
            role("edit", [PODS], aggregationRule=aggregate), role("more", [SECRETS], metadata=chosen),
            role("other", [{**SECRETS, "verbs": ["delete"]}], metadata={"labels": {"to": "edit"}}),
        ])  # fmt: skip
        assert policy.rules_of(("", "edit")) == (Rule.of(PODS), Rule.of(SECRETS))

    def test_decisions_are_kept_without_mixing_up_names(self) -> None:
        policy = Policy(
            roles=[role("r", [{**PODS, "resourceNames": ["p"]}], "one")],
            role_bindings=[binding("b", "Role", "r", ("User", "anna"), namespace="one")],
        )
        grants = policy.grants(User("anna"), "one")
        for _ in range(2):
            assert grants.source_of(GET_POD)
            assert grants.source_of(Attributes("get", "", "pods", namespace="one", name="q")) is None


class TestRequests:
    @pytest.mark.parametrize(("method", "path", "query", "wanted"), [
        ("GET", "/api/v1/pods", {}, Attributes("list", "", "pods")),
        ("GET", "/api/v1/pods", {"watch": "true"}, Attributes("watch", "", "pods")),
        ("GET", "/api/v1/pods", {"watch": "0"}, Attributes("list", "", "pods")),
        ("GET", "/api/v1/namespaces/a/pods/p", {}, Attributes("get", "", "pods", "", "a", "p")),
        ("GET", "/api/v1/namespaces/a/pods/p", {"watch": "1"}, Attributes("get", "", "pods", "", "a", "p")),
        ("GET", "/api/v1/namespaces/a/pods/p/log", {}, Attributes("get", "", "pods", "log", "a", "p")),
        ("GET", "/api/v1/namespaces/a/pods", {"fieldSelector": "metadata.name=p,"}, Attributes("list", "", "pods", "", "a", "p")),
        ("GET", "/api/v1/namespaces/a/pods", {"fieldSelector": "metadata.name!=p"}, Attributes("list", "", "pods", "", "a")),
        ("GET", "/api/v1/namespaces/a/pods", {"fieldSelector": "x=y\\,metadata.name=p"}, Attributes("list", "", "pods", "", "a")),
        ("GET", "/api/v1/namespaces/a", {}, Attributes("get", "", "namespaces", "", "a", "a")),
        ("PUT", "/api/v1/namespaces/a/finalize", {}, Attributes("update", "", "namespaces", "finalize", "a", "a")),
        ("GET", "/api/v1/namespaces", {}, Attributes("list", "", "namespaces")),
        ("POST", "/apis/g.io/v1/namespaces/a/things", {}, Attributes("create", "g.io", "things", "", "a")),
        ("PUT", "/apis/g.io/v1/things/t/status", {}, Attributes("update", "g.io", "things", "status", "", "t")),
        ("PATCH", "/apis/g.io/v1/things/t", {}, Attributes("patch", "g.io", "things", "", "", "t")),
        ("DELETE", "/apis/g.io/v1/things/t", {}, Attributes("delete", "g.io", "things", "", "", "t")),
        ("DELETE", "/apis/g.io/v1/things", {}, Attributes("deletecollection", "g.io", "things")),
        ("HEAD", "/apis/g.io/v1/things", {}, Attributes("list", "g.io", "things")),
        ("GET", "/apis/g.io/v1", {}, Attributes("get", path="/apis/g.io/v1")),
        ("GET", "/api/v1", {}, Attributes("get", path="/api/v1")),
        ("POST", "/metrics", {}, Attributes("post", path="/metrics")),
    ])  # fmt: skip
    def test_attributes(self, method: str, path: str, query: dict[str, str], wanted: Attributes) -> None:
        assert attributes_of(method, path, path.strip("/").split("/"), query) == wanted

    @pytest.mark.parametrize(("wanted", "message"), [
        (Attributes("list", "", "pods", namespace="a"),
         'pods is forbidden: User "u" cannot list resource "pods" in API group "" in the namespace "a"'),
        (Attributes("get", "g.io", "things", "log", "", "t"),
         'things.g.io "t" is forbidden: User "u" cannot get resource "things/log" in API group "g.io" at the cluster scope'),
        (Attributes("get", path="/metrics"), 'forbidden: User "u" cannot get path "/metrics"'),
    ])  # fmt: skip
    def test_refusals_are_kubernetes_words(self, wanted: Attributes, message: str) -> None:
        assert forbidden(User("u"), wanted).message == message
