"""Who may do what, asked and tried by real kubectl programs: can-i, whoami, 401, 403, roles, tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.apiserver.access.people import token_object
from tests.conformance.conftest import TIMEOUT_S, Kubectl, Result

pytestmark = pytest.mark.kubectl

CONFIG = yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}})
Person = Callable[..., Result]


def as_user(kubectl: Kubectl, user: str, token: str) -> Person:
    """A kubectl with the token of somebody else, and without the administrator's."""
    config = yaml.safe_load(kubectl.server.kubeconfig.read_text())
    context = next(item["context"] for item in config["contexts"] if item["name"] == config["current-context"])
    next(item for item in config["users"] if item["name"] == context["user"])["user"] = {"token": token}
    path = kubectl.home / f"{user}.kubeconfig"
    path.write_text(yaml.safe_dump(config))

    def run(*arguments: str, stdin: str = "") -> Result:
        return kubectl.run(*arguments, stdin=stdin, env={"KUBECONFIG": str(path)})

    return run


def person(kubectl: Kubectl, *roles: str) -> tuple[str, Person]:
    """A user of this test's own, with ClusterRoles in its namespace."""
    user = f"{kubectl.namespace}-{kubectl.version}"
    token = f"{user}-{'x' * 40}"
    kubectl("create", "-f", "-", stdin=yaml.safe_dump(token_object(user, token, user)))
    for role in roles:
        kubectl("create", "rolebinding", f"{user}-{role}", f"--clusterrole={role}", f"--user={user}")
    return user, as_user(kubectl, user, token)


def test_the_administrator_may_do_everything(kubectl: Kubectl) -> None:
    for question in (("create", "swarmtasks"), ("*", "*"), ("get", "/metrics"), ("delete", "secrets", "--all-namespaces")):
        assert kubectl("auth", "can-i", *question).strip() == "yes"
    listed = kubectl("auth", "can-i", "--list")
    assert any(line.split() == ["*.*", "[]", "[]", "[*]"] for line in listed.splitlines()), listed


@pytest.mark.embedded  # people with access tokens
def test_a_viewer_asks_and_is_told_the_truth(kubectl: Kubectl) -> None:
    _, vera = person(kubectl, "view")
    for question, answer in ((("list", "swarmtasks.swarmtask.io"), "yes"), (("get", "configmaps/c"), "yes"),
                             (("create", "swarmtasks.swarmtask.io"), "no"), (("get", "secrets"), "no"),
                             (("list", "swarmtasks.swarmtask.io", "-n", "default"), "no"), (("get", "/api"), "yes"),
                             (("get", "/metrics"), "no"), (("*", "*"), "no")):  # fmt: skip
        result = vera("auth", "can-i", *question)
        assert (result.out.strip(), result.code) == (answer, 0 if answer == "yes" else 1), (question, result)
    listed = vera("auth", "can-i", "--list").out
    tasks = next(line for line in listed.splitlines() if line.startswith("swarmtasks.swarmtask.io "))
    assert tasks.split("[]")[-1].strip() == "[get list watch]"
    assert "selfsubjectaccessreviews.authorization.k8s.io" in listed
    assert "secrets" not in listed


@pytest.mark.embedded  # people with access tokens
def test_a_viewer_cannot_write(kubectl: Kubectl) -> None:
    user, vera = person(kubectl, "view")
    kubectl("apply", "-f", "-", stdin=CONFIG)
    assert json.loads(vera("get", "cm", "c", "-o", "json").out)["data"] == {"a": "1"}
    where = f'in API group "" in the namespace "{kubectl.namespace}"'
    refusals = [
        (("delete", "cm", "c"), "delete", 'configmaps "c"'), (("label", "cm", "c", "a=b"), "patch", 'configmaps "c"'),
        (("create", "configmap", "d"), "create", "configmaps"),
    ]  # fmt: skip
    for arguments, verb, what in refusals:
        result = vera(*arguments)
        expected = f'Error from server (Forbidden): {what} is forbidden: User "{user}" cannot {verb} resource "configmaps" {where}'
        assert result.code == 1
        # Newer programs put the command's own words between.
        assert expected.partition(": ")[2] in result.err.replace("failed to create configmap: ", ""), result
    refused = vera("get", "secrets")
    assert refused.err.strip() == (
        f'Error from server (Forbidden): secrets is forbidden: User "{user}" cannot list resource "secrets" {where}'
    )
    everywhere = vera("get", "swarmtasks", "-A")
    assert 'cannot list resource "swarmtasks" in API group "swarmtask.io" at the cluster scope' in everywhere.err


@pytest.mark.embedded  # people with access tokens
def test_an_editor_works_in_his_namespace(kubectl: Kubectl) -> None:
    _, emil = person(kubectl, "edit")
    assert emil("apply", "-f", "-", stdin=CONFIG).out.strip() == "configmap/c created"
    assert emil("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=CONFIG).code == 0
    assert emil("create", "secret", "generic", "s", "--from-literal=a=b").code == 0
    assert emil("delete", "cm", "c").code == 0
    for refused in (emil("create", "configmap", "d", "-n", "default"), emil("get", "ns"), emil("delete", "ns", kubectl.namespace),
                    emil("create", "rolebinding", "x", "--clusterrole=view", "--user=y"), emil("get", "clusterroles")):  # fmt: skip
        assert (refused.code, "forbidden: User" in refused.err) == (1, True), refused


@pytest.mark.embedded  # people with access tokens
def test_an_administrator_of_a_namespace_grants_what_he_has(kubectl: Kubectl) -> None:
    user, anton = person(kubectl, "admin")
    assert anton("create", "role", "readers", "--verb=get,list", "--resource=configmaps").code == 0
    assert anton("create", "rolebinding", "readers", "--role=readers", "--user=somebody").code == 0
    assert "readers   Role/readers" in anton("get", "rolebindings", "readers", "--no-headers").out
    refused = anton("create", "role", "lords", "--verb=*", "--resource=swarmnodes.swarmtask.io")
    assert (
        f'user "{user}" (groups=["system:authenticated"]) is attempting to grant RBAC permissions not currently held' in refused.err
    )
    assert anton("create", "rolebinding", "lords", "--clusterrole=cluster-admin", "--user=somebody").code == 1
    shown = anton("describe", "role", "readers")
    assert "configmaps" in shown.out and "[get list]" in shown.out, shown


@pytest.mark.embedded  # people with access tokens
def test_asking_for_others(kubectl: Kubectl) -> None:
    user, _ = person(kubectl, "view")
    assert kubectl("auth", "can-i", "list", "cm", "--as", user).strip() == "yes"
    asked = kubectl.run("auth", "can-i", "create", "cm", "--as", user)
    assert (asked.out.strip(), asked.code) == ("no", 1)
    assert f'forbidden: User "{user}" cannot create' in kubectl.fails("create", "configmap", "d", "--as", user)
    kubectl("create", "serviceaccount", "bot")
    account = f"system:serviceaccount:{kubectl.namespace}:bot"
    kubectl("create", "rolebinding", "bot", "--clusterrole=view", f"--serviceaccount={kubectl.namespace}:bot")
    assert kubectl("auth", "can-i", "list", "cm", "--as", account).strip() == "yes"


@pytest.mark.embedded  # people with access tokens
def test_who_am_i(kubectl: Kubectl) -> None:
    user, someone = person(kubectl)
    if kubectl.version == "current":
        assert user in someone("auth", "whoami").out
        assert "swarmtask-admin" in kubectl("auth", "whoami")
        return
    review = yaml.safe_dump({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})
    said = json.loads(someone("create", "-o", "json", "-f", "-", stdin=review).out)
    assert said["status"]["userInfo"]["username"] == user


def test_without_a_valid_token(kubectl: Kubectl) -> None:
    nobody = as_user(kubectl, "nobody", "wrong")
    result = nobody("get", "configmaps")
    assert result.code == 1
    assert result.err.strip().splitlines()[-1].startswith("error: You must be logged in to the server")


@pytest.mark.embedded  # people with access tokens
def test_a_revoked_token(kubectl: Kubectl) -> None:
    user, vera = person(kubectl, "view")
    assert vera("get", "cm").code == 0
    kubectl("delete", "accesstoken", user)
    assert "must be logged in" in vera("get", "cm").err
    assert user not in kubectl("get", "accesstokens", "--no-headers")


def test_tokens_of_service_accounts(kubectl: Kubectl) -> None:
    kubectl("create", "serviceaccount", "bot")
    kubectl("create", "rolebinding", "bot", "--clusterrole=edit", f"--serviceaccount={kubectl.namespace}:bot")
    if kubectl.version == "current":
        token = kubectl("create", "token", "bot", "--duration=20m").strip()
    else:  # this one has no such command
        body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}})
        path = f"/api/v1/namespaces/{kubectl.namespace}/serviceaccounts/bot/token"
        token = json.loads(kubectl("create", "--raw", path, "-f", "-", stdin=body))["status"]["token"]
    bot = as_user(kubectl, "bot", token)
    assert bot("apply", "-f", "-", stdin=CONFIG).out.strip() == "configmap/c created"
    assert bot("get", "cm", "-n", "default").code == 1
    kubectl("delete", "serviceaccount", "bot")
    deadline = time.monotonic() + TIMEOUT_S
    while not (said := bot("get", "cm").err):  # kube-apiserver believes a token for ten seconds
        assert time.monotonic() < deadline
    assert "must be logged in" in said


@pytest.mark.embedded  # the roles of another cluster know our kinds once somebody has aggregated them
def test_the_roles_of_the_start_know_our_kinds(kubectl: Kubectl) -> None:
    assert "swarmtasks.swarmtask.io" in kubectl("describe", "clusterrole", "view")


def test_what_there_is_from_the_start(kubectl: Kubectl, tmp_path: Path) -> None:
    names = kubectl("get", "clusterroles", "-o", "name").split()
    assert {"cluster-admin", "admin", "edit", "view", "system:discovery"} <= {name.rpartition("/")[2] for name in names}
    rules = [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": f"r-{kubectl.namespace}"}}
    file = tmp_path / "role.yaml"
    file.write_text(yaml.safe_dump({**role, "rules": rules}))
    assert "reconciled" in kubectl("auth", "reconcile", "-f", str(file))
    assert "configured" in kubectl("apply", "-f", str(file))
    assert "unchanged" in kubectl("apply", "-f", str(file))
