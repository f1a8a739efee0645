"""Access tokens and ServiceAccount tokens over HTTP: who comes in with them, when they end, what is forged."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from swarmtask.apiserver import objects
from swarmtask.apiserver.access.accounts import AUDIENCE, CLAIM, ISSUER
from swarmtask.apiserver.access.signing import key_id
from swarmtask.clock import SystemClock, format_time
from tests.apiserver.access.people import RBAC, TASKS, TOKENS, bind, client, new_token, person, said, task, token_object
from tests.apiserver.server import RunningServer, http_client, running_api_server

WHOAMI = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCOUNT = "/api/v1/namespaces/default/serviceaccounts/bot"


class ShiftedClock(SystemClock):
    """The machine's clock, set forward by hand."""

    shift = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.shift


async def user_info(server: RunningServer, token: str) -> dict[str, Any] | int:
    """Who the server takes the bearer for; the status code where it lets nobody in."""
    async with client(server, token) as someone:
        response = await someone.post(WHOAMI, json={})
        return response.json()["status"]["userInfo"] if response.status_code == 201 else response.status_code


class TestAccessTokens:
    async def test_only_the_digest_is_stored(self, tmp_path: Path) -> None:
        async with running_api_server(tmp_path) as server, http_client(server) as api:
            token = await new_token(api, "vera", ("staff",))
            info = await user_info(server, token)
            assert isinstance(info, dict)
            assert (info["username"], info["groups"]) == ("vera", ["staff", "system:authenticated"])
            assert info["extra"] == {"access.swarmtask.io/token": ["vera"]}
            folder = server.kubeconfig.parent
        for path in folder.rglob("*"):
            assert not path.is_file() or token.encode() not in path.read_bytes(), path
        async with running_api_server(tmp_path) as server:
            assert await user_info(server, token) == info, "it survives a restart"

    async def test_revoked_at_once_and_in_the_middle_of_a_stream(self, server: RunningServer, api: httpx.AsyncClient) -> None:
        await bind(api, "vera", "view", "default")
        token = await new_token(api, "vera")
        async with client(server, token) as vera, vera.stream("GET", TASKS.format("default"), params={"watch": "1"}) as stream:
            assert (await api.post(TASKS.format("default"), json=task("one"))).status_code == 201
            lines = stream.aiter_lines()
            assert json.loads(await anext(lines))["type"] == "ADDED"
            assert (await api.delete(f"{TOKENS}/vera")).status_code == 200
            assert await user_info(server, token) == 401
            async with asyncio.timeout(10):
                assert [line async for line in lines] == []

    async def test_it_expires(self, tmp_path: Path) -> None:
        clock = ShiftedClock()
        async with running_api_server(tmp_path, clock=clock) as server, http_client(server) as api:
            token = await new_token(api, "vera", expires=format_time(datetime.now(UTC) + timedelta(hours=1)))
            assert isinstance(await user_info(server, token), dict)
            clock.shift = timedelta(hours=1, seconds=1)
            assert await user_info(server, token) == 401

    @pytest.mark.parametrize("spec", [
        {}, {"user": "u"}, {"user": "u", "digest": "abc"}, {"user": "u", "digest": "A" * 64}, {"user": "", "digest": "a" * 64},
        {"user": "u\n", "digest": "a" * 64}, {"user": "u", "digest": "a" * 64, "groups": [""]},
        {"user": "u", "digest": "a" * 64, "groups": ["a,b"]}, {"user": "u", "digest": "a" * 64, "expirationTimestamp": "tomorrow"},
        {"user": 7, "digest": "a" * 64}, {"user": "u", "digest": "a" * 64, "groups": "staff"},
    ])  # fmt: skip
    async def test_malformed_ones_are_refused(self, api: httpx.AsyncClient, spec: dict[str, Any]) -> None:
        body = {"apiVersion": "access.swarmtask.io/v1alpha1", "kind": "AccessToken", "metadata": {"name": "t"}, "spec": spec}
        assert (await api.post(TOKENS, json=body)).status_code in (400, 422)

    async def test_whose_it_is_cannot_change(self, api: httpx.AsyncClient) -> None:
        await new_token(api, "vera")
        merge = {"content-type": "application/merge-patch+json"}
        for change in ({"user": "x"}, {"groups": ["system:masters"]}, {"digest": "b" * 64}):
            refused = await api.patch(f"{TOKENS}/vera", content=json.dumps({"spec": change}), headers=merge)
            assert (refused.status_code, "is immutable" in refused.text) == (422, True)
        later = json.dumps({"spec": {"expirationTimestamp": "2099-01-01T00:00:00Z"}})
        assert (await api.patch(f"{TOKENS}/vera", content=later, headers=merge)).status_code == 200

    async def test_no_two_have_one_digest(self, api: httpx.AsyncClient) -> None:
        """Neither one after the other, nor at once, nor by server-side apply, nor while the first waits for its finalizers."""
        made = await asyncio.gather(*(api.post(TOKENS, json=token_object(f"t{at}", "tok", "vera")) for at in range(5)))
        assert sorted(response.status_code for response in made) == [201, 422, 422, 422, 422]
        (first,) = (response.json() for response in made if response.status_code == 201)
        refused = next(response for response in made if response.status_code == 422)
        assert refused.json()["details"]["causes"][0]["reason"] == "FieldValueDuplicate"
        assert "another AccessToken has this digest" in refused.text
        applied = {"content-type": "application/apply-patch+yaml"}
        again = token_object("again", "tok", "anna")
        assert (await api.patch(f"{TOKENS}/again?fieldManager=x", json=again, headers=applied)).status_code == 422
        assert (await api.post(TOKENS, json=again, params={"dryRun": "All"})).status_code == 422
        name = first["metadata"]["name"]
        assert (await api.post(TOKENS, json=token_object(name, "tok", "vera"))).status_code == 409
        merge = {"content-type": "application/merge-patch+json"}
        held = json.dumps({"metadata": {"finalizers": ["e.x/wait"]}})
        assert (await api.patch(f"{TOKENS}/{name}", content=held, headers=merge)).status_code == 200
        assert (await api.delete(f"{TOKENS}/{name}")).status_code == 200
        assert (await api.post(TOKENS, json=again)).status_code == 422
        free = json.dumps({"metadata": {"finalizers": None}})
        assert (await api.patch(f"{TOKENS}/{name}", content=free, headers=merge)).status_code == 200
        assert (await api.post(TOKENS, json=again)).status_code == 201

    @pytest.mark.parametrize("revoked", [False, True], ids=["none was revoked", "one was revoked and waits for its finalizers"])
    async def test_of_those_that_an_older_version_stored_one_stays_and_revoking_it_ends_the_digest(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revoked: bool
    ) -> None:
        with monkeypatch.context() as older:
            older.setattr(objects, "check_unused", lambda *_: None)
            async with running_api_server(tmp_path) as server, http_client(server) as api:
                for name, user in (("a", "vera"), ("b", "emil"), ("c", "vera")):
                    body = token_object(name, "tok", user)
                    body["metadata"]["finalizers"] = ["e.x/wait"] if name == "b" else []
                    assert (await api.post(TOKENS, json=body)).status_code == 201
                if revoked:
                    assert (await api.delete(f"{TOKENS}/b")).status_code == 200
                    assert await user_info(server, "tok") == 401
        async with running_api_server(tmp_path) as server, http_client(server) as api:
            left = [item["metadata"]["name"] for item in (await api.get(TOKENS)).json()["items"]]
            assert left == (["b"] if revoked else ["a"])
            if not revoked:
                info = await user_info(server, "tok")
                assert isinstance(info, dict)
                assert info["username"] == "vera"
                assert (await api.delete(f"{TOKENS}/a")).status_code == 200
            assert await user_info(server, "tok") == 401
        async with running_api_server(tmp_path) as server:
            assert await user_info(server, "tok") == 401, "it does not come back with a restart"

    async def test_a_node_cannot_be_made_a_master_by_name(self, server: RunningServer, api: httpx.AsyncClient) -> None:
        """Groups are what counts: a user who is only called as a node is none."""
        async with client(server, await new_token(api, "system:node:n1")) as pretender:
            assert (await pretender.get("/apis/swarmtask.io/v1alpha1/swarmnodes")).status_code == 403


@pytest.fixture
async def account(api: httpx.AsyncClient) -> str:
    """UID of the ServiceAccount `bot`."""
    made = await api.post("/api/v1/namespaces/default/serviceaccounts", json={"metadata": {"name": "bot"}})
    assert made.status_code == 201
    return str(made.json()["metadata"]["uid"])


async def account_token(api: httpx.AsyncClient, **spec: Any) -> str:
    response = await api.post(f"{ACCOUNT}/token", json={"spec": spec})
    assert response.status_code == 201, response.text
    return str(response.json()["status"]["token"])


class TestServiceAccounts:
    async def test_a_token_acts_as_its_account(self, server: RunningServer, api: httpx.AsyncClient, account: str) -> None:
        token = await account_token(api)
        info = await user_info(server, token)
        assert isinstance(info, dict)
        assert info["username"] == "system:serviceaccount:default:bot"
        assert info["groups"] == ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]
        assert info["uid"] == account
        await bind(api, "system:serviceaccount:default:bot", "view", "default")
        async with client(server, token) as bot:
            assert (await bot.get(TASKS.format("default"))).status_code == 200
            assert (await bot.post(TASKS.format("default"), json=task("x"))).status_code == 403

    async def test_it_ends_with_its_time(self, tmp_path: Path) -> None:
        clock = ShiftedClock()
        async with running_api_server(tmp_path, clock=clock) as server, http_client(server) as api:
            assert (await api.post("/api/v1/namespaces/default/serviceaccounts", json={"metadata": {"name": "bot"}})).is_success
            token = await account_token(api, expirationSeconds=600)
            assert isinstance(await user_info(server, token), dict)
            clock.shift = timedelta(seconds=601)
            assert await user_info(server, token) == 401

    async def test_it_ends_with_its_account_even_when_that_is_made_again(
        self, server: RunningServer, api: httpx.AsyncClient, account: str
    ) -> None:
        token = await account_token(api)
        assert (await api.delete(ACCOUNT)).status_code == 200
        assert await user_info(server, token) == 401
        assert (await api.post("/api/v1/namespaces/default/serviceaccounts", json={"metadata": {"name": "bot"}})).is_success
        assert await user_info(server, token) == 401

    async def test_it_ends_with_the_task_that_it_is_bound_to(
        self, server: RunningServer, api: httpx.AsyncClient, account: str
    ) -> None:
        uid = (await api.post(TASKS.format("default"), json=task("work"))).json()["metadata"]["uid"]
        reference = {"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmTask", "name": "work"}
        assert (
            await api.post(f"{ACCOUNT}/token", json={"spec": {"boundObjectRef": {**reference, "uid": "other"}}})
        ).status_code == 409
        assert (
            await api.post(f"{ACCOUNT}/token", json={"spec": {"boundObjectRef": {**reference, "name": "no"}}})
        ).status_code == 404
        token = await account_token(api, boundObjectRef={**reference, "uid": uid})
        info = await user_info(server, token)
        assert isinstance(info, dict)
        assert info["extra"]["swarmtask.io/bound-to"] == ["SwarmTask/work"]
        assert (await api.delete(f"{TASKS.format('default')}/work")).status_code == 200
        assert await user_info(server, token) == 401

    async def test_audiences(self, server: RunningServer, api: httpx.AsyncClient, account: str) -> None:
        token = await account_token(api, audiences=["gateway"])
        assert await user_info(server, token) == 401, "it is meant for somebody else"
        review = (await api.post(REVIEWS, json={"spec": {"token": token, "audiences": ["gateway", "x"]}})).json()["status"]
        assert (review["authenticated"], review["audiences"]) == (True, ["gateway"])
        assert (await api.post(REVIEWS, json={"spec": {"token": token}})).json()["status"]["authenticated"] is False

    @pytest.mark.parametrize("spec", [
        {"expirationSeconds": 5}, {"expirationSeconds": 10**9}, {"expirationSeconds": "1h"}, {"expirationSeconds": True},
        {"audiences": "x"}, {"audiences": [7]}, {"boundObjectRef": "x"}, {"boundObjectRef": {"kind": "X"}}, [],
    ])  # fmt: skip
    async def test_malformed_requests(self, api: httpx.AsyncClient, account: str, spec: Any) -> None:
        response = await api.post(f"{ACCOUNT}/token", json={"spec": spec or [1]})
        assert response.status_code in (400, 422), response.text

    @pytest.mark.slow
    async def test_other_methods(self, api: httpx.AsyncClient, account: str) -> None:
        assert (await api.get(f"{ACCOUNT}/token")).status_code == 405
        assert (await api.post("/api/v1/namespaces/default/serviceaccounts/none/token", json={})).status_code == 404

    async def test_nobody_asks_for_a_token_that_may_do_more_than_he(
        self, server: RunningServer, api: httpx.AsyncClient, account: str
    ) -> None:
        async with person(server, api, "emil", ("edit", "default")) as emil:
            assert (await emil.post(f"{ACCOUNT}/token", json={})).status_code == 201
            await bind(api, "system:serviceaccount:default:bot", "cluster-admin")
            refused = await emil.post(f"{ACCOUNT}/token", json={})
            assert refused.status_code == 403
            assert "may do more than he may" in refused.json()["message"]
        operator = (server.kubeconfig.parent / "operator.token").read_text().strip()
        async with client(server, operator) as someone:
            assert (await someone.post(f"{ACCOUNT}/token", json={})).status_code == 201


class TestForgery:
    """RFC 8725: what is tried on servers that read JWTs."""

    async def test_none_of_these_comes_in(self, server: RunningServer, api: httpx.AsyncClient, account: str) -> None:
        genuine = await account_token(api)
        pem = (server.kubeconfig.parent / "pki" / "accounts.key").read_bytes()
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        own_id = key_id(key.public_key())
        public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        claims = jwt.decode(genuine, options={"verify_signature": False})
        header, body, signature = genuine.split(".")
        stranger = ec.generate_private_key(ec.SECP256R1())

        def es256(changed: dict[str, Any], signer: ec.EllipticCurvePrivateKey = key, kid: str | None = own_id) -> str:
            return jwt.encode(changed, signer, algorithm="ES256", headers={"kid": kid} if kid else {})

        assert isinstance(await user_info(server, es256(claims)), dict), "the forger's tools work"
        none = _part({"alg": "none", "typ": "JWT", "kid": own_id})
        confused = _part({"alg": "HS256", "typ": "JWT", "kid": own_id})
        mac = hmac.new(public, f"{confused}.{body}".encode(), hashlib.sha256).digest()
        other = _part({**claims, "sub": "system:serviceaccount:kube-system:root"})
        past = int(datetime.now(UTC).timestamp()) - 100
        forged = {
            "alg none": f"{none}.{body}.",
            "alg None": f"{_part({'alg': 'nOnE', 'kid': own_id})}.{body}.",
            "alg none with the old signature": f"{none}.{body}.{signature}",
            "the public key as a secret": f"{confused}.{body}.{_b64(mac)}",
            "another body": f"{header}.{other}.{signature}",
            "another key": es256(claims, stranger),
            "another key with its own ID": es256(claims, stranger, key_id(stranger.public_key())),
            "no kid": es256(claims, kid=None),
            "a path as kid": es256(claims, kid="../../dev/null"),
            "another audience": es256({**claims, "aud": ["elsewhere"]}),
            "another issuer": es256({**claims, "iss": "https://elsewhere"}),
            "expired": es256({**claims, "exp": past}),
            "not yet": es256({**claims, "nbf": -past + 2 * int(datetime.now(UTC).timestamp()) + 1000}),
            "without a time": es256({name: value for name, value in claims.items() if name != "exp"}),
            "without an audience": es256({name: value for name, value in claims.items() if name != "aud"}),
            "another account's UID": es256({**claims, CLAIM: {**claims[CLAIM], "serviceaccount": {"name": "bot", "uid": "x"}}}),
            "cut off": genuine[:-4],
            "too long": genuine + "A" * 10_000,
            "rubbish": "a.b.c",
        }  # fmt: skip
        for what, token in forged.items():
            assert await user_info(server, token) == 401, what
        assert claims["iss"] == ISSUER and claims["aud"] == [AUDIENCE]


def _b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _part(content: dict[str, Any]) -> str:
    return _b64(json.dumps(content).encode())


class TestReviews:
    async def test_may_i(self, server: RunningServer, api: httpx.AsyncClient) -> None:
        path = "/apis/authorization.k8s.io/v1/"
        async with person(server, api, "vera", ("view", "default")) as vera:

            async def may(**attributes: str) -> dict[str, Any]:
                body = {"spec": {"resourceAttributes": attributes}}
                answer: dict[str, Any] = (await vera.post(f"{path}selfsubjectaccessreviews", json=body)).json()["status"]
                return answer

            yes = await may(verb="list", group="swarmtask.io", resource="swarmtasks", namespace="default")
            assert yes == {
                "allowed": True,
                "reason": 'RBAC: allowed by RoleBinding "vera-view/default" of ClusterRole "view" to User "vera"',
            }
            assert await may(verb="list", group="swarmtask.io", resource="swarmtasks") == {"allowed": False}
            assert await may(verb="create", group="swarmtask.io", resource="swarmtasks", namespace="default") == {"allowed": False}
            rules = (await vera.post(f"{path}selfsubjectrulesreviews", json={"spec": {"namespace": "default"}})).json()["status"]
            assert any("swarmtasks" in rule["resources"] for rule in rules["resourceRules"])
            assert rules["incomplete"] is False
            assert (await vera.post(f"{path}subjectaccessreviews", json={"spec": {}})).status_code == 403
        question = {"resourceAttributes": {"verb": "get", "resource": "configmaps", "namespace": "default"}, "user": "vera"}
        assert (await api.post(f"{path}subjectaccessreviews", json={"spec": question})).json()["status"]["allowed"] is True
        local = f"{path}namespaces/default/localsubjectaccessreviews"
        assert (await api.post(local, json={"spec": question})).json()["status"]["allowed"] is True
        assert (await api.post(local.replace("default", "other"), json={"spec": question})).status_code == 422

    @pytest.mark.parametrize("spec", [
        {}, {"resourceAttributes": {}, "nonResourceAttributes": {}}, {"resourceAttributes": {"verb": 7}},
        {"resourceAttributes": "x"},
    ])  # fmt: skip
    async def test_malformed_questions(self, api: httpx.AsyncClient, spec: dict[str, Any]) -> None:
        response = await api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", json={"spec": spec})
        assert response.status_code in (400, 422), response.text


async def test_a_user_in_no_group_of_ours_is_not_a_master(server: RunningServer, api: httpx.AsyncClient) -> None:
    token = "short"
    assert (await api.post(TOKENS, json=token_object("weak", token, "weak"))).status_code == 201
    async with client(server, token) as weak:
        assert said(await weak.get(f"{RBAC}/clusterroles"))[0] == 403
