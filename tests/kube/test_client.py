"""KubeClient without a server: what it sends, what it makes of answers, when it tries again."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import httpx2
import orjson
import pytest
import yaml

from swarmtask import errors
from swarmtask.kube import Connection, KubeClient, client
from swarmtask.resources.kinds import CONFIG_MAP, SECRET, SWARM_TASK

Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": {"token": "secret-token"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
                "current-context": "x",
            }
        )
    )
    return path


def make(kubeconfig: Path, handler: Handler, *, sparing: bool = False) -> KubeClient:
    connection = Connection.from_kubeconfig(kubeconfig)
    return KubeClient(connection, transport=httpx2.MockTransport(handler), rng=random.Random(1), sparing=sparing)


def answer(code: int, **body: object) -> httpx2.Response:
    return httpx2.Response(code, json=body)


async def test_requests_carry_the_token_and_the_field_manager(kubeconfig: Path) -> None:
    seen: list[httpx2.Request] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return answer(201, kind="ConfigMap")

    async with make(kubeconfig, handler) as kube:
        await kube.create(CONFIG_MAP, {"metadata": {"name": "a"}})
    assert seen[0].headers["Authorization"] == "Bearer secret-token"
    assert seen[0].url.path == "/api/v1/namespaces/team/configmaps"
    assert seen[0].url.params["fieldManager"] == "swarmtask-operator"


@pytest.mark.parametrize("type_", ["merge", "json", "strategic", "apply"])
async def test_patch_types_have_their_content_type(kubeconfig: Path, type_: client.PatchType) -> None:
    seen: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.headers["Content-Type"])
        return answer(200)

    async with make(kubeconfig, handler) as kube:
        await kube.patch(CONFIG_MAP, "a", {}, "default", type_=type_, force=True)
    assert seen == [client.PATCH_CONTENT_TYPES[type_]]


async def test_names_cannot_leave_their_place_in_the_url(kubeconfig: Path) -> None:
    paths: list[bytes] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        paths.append(request.url.raw_path)
        return answer(200)

    async with make(kubeconfig, handler) as kube:
        await kube.get(SECRET, "../../../version?x=1#", "a/b")
        with pytest.raises(errors.BadRequest):
            await kube.get(SECRET, "..", "default")
    assert paths == [b"/api/v1/namespaces/a%2Fb/secrets/..%2F..%2F..%2Fversion%3Fx%3D1%23"]


@pytest.mark.parametrize("cls", errors.BY_REASON.values(), ids=lambda cls: cls.__name__)
async def test_a_status_becomes_its_error(kubeconfig: Path, cls: type[errors.SwarmTaskError]) -> None:
    cause = {"field": "spec.x", "reason": "FieldValueInvalid", "message": "wrong"}
    body = {
        "kind": "Status", "reason": cls.reason, "code": cls.code, "message": "words",
        "details": {"name": "a", "causes": [cause], "retryAfterSeconds": 0},
    }  # fmt: skip
    async with make(kubeconfig, lambda _: httpx2.Response(cls.code, json=body)) as kube:
        with pytest.raises(cls) as caught:
            await kube.create(CONFIG_MAP, {"metadata": {"name": "a"}}, "default")
    assert str(caught.value) == "words"
    assert caught.value.details["name"] == "a"
    assert caught.value.causes == (errors.Cause("spec.x", "FieldValueInvalid", "wrong"),)


@pytest.mark.parametrize(
    ("code", "cls"), [(404, errors.NotFound), (409, errors.Conflict), (502, errors.ServiceUnavailable), (418, errors.BadRequest)]
)
async def test_an_answer_without_a_status_goes_by_its_code(kubeconfig: Path, code: int, cls: type[errors.SwarmTaskError]) -> None:
    async with make(kubeconfig, lambda _: httpx2.Response(code, text="<html>", headers={"Retry-After": "7"})) as kube:
        with pytest.raises(cls) as caught:
            await kube.delete(CONFIG_MAP, "a", "default")
    assert caught.value.retry_after_s == 7
    assert "<html>" in str(caught.value)


async def test_reads_are_repeated_and_writes_are_not(kubeconfig: Path) -> None:
    calls: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        calls.append(request.method)
        if calls == ["GET", "GET"]:
            return answer(200, kind="ConfigMap")
        return answer(503, kind="Status", reason="ServiceUnavailable", message="later")

    async with make(kubeconfig, handler) as kube:
        assert (await kube.get(CONFIG_MAP, "a", "default"))["kind"] == "ConfigMap"
        with pytest.raises(errors.ServiceUnavailable):
            await kube.patch(CONFIG_MAP, "a", {}, "default")
    assert calls == ["GET", "GET", "PATCH"]


async def test_not_found_is_final(kubeconfig: Path) -> None:
    calls: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        calls.append(request.method)
        return answer(404, kind="Status", reason="NotFound", message="no")

    async with make(kubeconfig, handler) as kube:
        with pytest.raises(errors.NotFound):
            await kube.get(CONFIG_MAP, "a", "default")
    assert calls == ["GET"]


@pytest.mark.parametrize("sparing", [False, True])
async def test_pages_are_joined(kubeconfig: Path, sparing: bool) -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        token = int(request.url.params.get("continue", "0"))
        metadata = {"resourceVersion": "7"} | ({"continue": str(token + 1)} if token < 2 else {})
        items = [{"metadata": {"name": f"a{token}", "managedFields": [{}]}}] if token != 1 else None
        return answer(200, metadata=metadata, items=items)

    async with make(kubeconfig, handler, sparing=sparing) as kube:
        listed = await kube.list(SWARM_TASK)
    assert [item["metadata"]["name"] for item in listed.items] == ["a0", "a2"]
    assert (len(listed.items), listed.items[1]["metadata"]["name"]) == (2, "a2")
    assert [item["metadata"]["name"] for item in listed.items] == ["a0", "a2"], "as often as one likes"
    assert {"managedFields" in item["metadata"] for item in listed.items} == {not sparing}
    assert {item["kind"] for item in listed.items} == {"SwarmTask"}
    assert listed.resource_version == "7"


async def test_a_sparing_client_leaves_out_who_wrote_what(kubeconfig: Path) -> None:
    def handler(_: httpx2.Request) -> httpx2.Response:
        return answer(200, metadata={"name": "a", "managedFields": [{}]})

    async with make(kubeconfig, handler, sparing=True) as kube:
        answers = [await kube.get(SWARM_TASK, "a", "default"), await kube.patch(SWARM_TASK, "a", {}, "default")]
        assert [answered["metadata"] for answered in answers] == [{"name": "a"}, {"name": "a"}]
        assert await kube.version() == {"metadata": {"name": "a"}}


async def test_a_list_that_expires_between_pages_starts_again_in_one_piece(kubeconfig: Path) -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        if "continue" in request.url.params:
            return answer(410, kind="Status", reason="Expired", message="too old")
        if "limit" in request.url.params:
            return answer(200, metadata={"resourceVersion": "7", "continue": "t"}, items=[{"metadata": {"name": "a"}}])
        return answer(200, metadata={"resourceVersion": "9"}, items=[{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}])

    async with make(kubeconfig, handler) as kube:
        listed = await kube.list(SWARM_TASK)
    assert [item["metadata"]["name"] for item in listed.items] == ["a", "b"]
    assert listed.resource_version == "9"


def lines(*events: dict[str, object]) -> httpx2.Response:
    return httpx2.Response(200, content=b"".join(orjson.dumps(event) + b"\n" for event in events))


async def test_a_watch_goes_on_where_it_was_cut(kubeconfig: Path) -> None:
    versions: list[str] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        versions.append(request.url.params["resourceVersion"])
        if len(versions) == 1:
            added = {"type": "ADDED", "object": {"metadata": {"name": "a", "resourceVersion": "11"}}}
            return lines(added, {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "20"}}})
        if len(versions) == 2:
            raise httpx2.ReadError("cut")
        if len(versions) == 3:
            return answer(503, kind="Status", reason="ServiceUnavailable", message="starting")
        return lines({"type": "MODIFIED", "object": {"metadata": {"name": "a", "resourceVersion": "21"}}})

    types = []
    async with make(kubeconfig, handler) as kube, aclosing(kube.watch(SWARM_TASK, resource_version="10")) as stream:
        async for event in stream:
            types.append(event.type)
            if event.type == "MODIFIED":
                break
    assert types == ["ADDED", "BOOKMARK", "MODIFIED"]
    assert versions == ["10", "20", "20", "20"]


@pytest.mark.parametrize(
    "response",
    [
        lines({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}),
        lines({"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Gone", "message": "too old"}}),
        httpx2.Response(410, json={"kind": "Status", "reason": "Expired", "message": "too old"}),
        httpx2.Response(
            504, json={"kind": "Status", "reason": "Timeout", "details": {"causes": [{"reason": "ResourceVersionTooLarge"}]}}
        ),
    ],
)
async def test_a_version_that_cannot_be_watched_is_expired(kubeconfig: Path, response: httpx2.Response) -> None:
    async with make(kubeconfig, lambda _: response) as kube:
        with pytest.raises(errors.Expired):
            await anext(kube.watch(SWARM_TASK, resource_version="10"))


async def test_a_watch_that_is_not_allowed_ends(kubeconfig: Path) -> None:
    async with make(kubeconfig, lambda _: answer(403, kind="Status", reason="Forbidden", message="no")) as kube:
        with pytest.raises(errors.Forbidden):
            await anext(kube.watch(SWARM_TASK, resource_version="10"))


async def test_a_server_that_is_not_there_is_named_with_what_starts_it(kubeconfig: Path) -> None:
    async with KubeClient.from_kubeconfig(kubeconfig) as kube:
        with pytest.raises(errors.ServiceUnavailable, match=r"https://127.0.0.1:1.*swarmtask up"):
            await kube.patch(CONFIG_MAP, "a", {}, "default")


async def test_an_answer_that_is_no_json_is_named(kubeconfig: Path) -> None:
    async with make(kubeconfig, lambda _: httpx2.Response(200, text="<html>")) as kube:
        with pytest.raises(errors.ServiceUnavailable, match="not JSON"):
            await kube.delete(CONFIG_MAP, "a", "default")


# --- kubeconfig files ---


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}]}, "not https"),
        (
            {"clusters": [{"name": "c", "cluster": {"server": "https://h", "insecure-skip-tls-verify": True}}]},
            "insecure-skip-tls-verify",
        ),
        ({"clusters": [{"name": "c", "cluster": {"server": "https://h", "certificate-authority-data": "AAAA"}}]}, "cannot be used"),
        ({"clusters": [{"name": "c", "cluster": {"server": "https://h", "certificate-authority": "/nowhere"}}]}, "cannot be used"),
        ({"clusters": [{"name": "other", "cluster": {"server": "https://h"}}]}, "incomplete"),
        ({"clusters": [{"cluster": 5}]}, "not a kubeconfig"),
        ({"current-context": None}, "no current context"),
        ({"current-context": "y"}, "known contexts: x"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_says_why(kubeconfig: Path, change: dict[str, object], words: str) -> None:
    kubeconfig.write_text(yaml.safe_dump(yaml.safe_load(kubeconfig.read_text()) | change))
    with pytest.raises(errors.ConfigurationError, match=words):
        KubeClient.from_kubeconfig(kubeconfig)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "just words"])
def test_a_file_that_is_no_kubeconfig_says_so(kubeconfig: Path, text: str) -> None:
    kubeconfig.write_text(text)
    with pytest.raises(errors.ConfigurationError, match="not a kubeconfig"):
        KubeClient.from_kubeconfig(kubeconfig)


def test_no_kubeconfig_at_all_says_what_starts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(errors.ConfigurationError, match="swarmtask up"):
        KubeClient.from_kubeconfig(None)


def test_the_first_file_that_knows_the_context_counts(kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.write_text(kubeconfig.read_text().replace("name: x", "name: y").replace("https://127.0.0.1:1", "https://second"))
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'missing'}:{kubeconfig}:{other}")
    assert Connection.from_kubeconfig(None, "y").server == "https://second"
    assert Connection.from_kubeconfig(None).server == "https://127.0.0.1:1"


def test_a_token_file_is_read_when_it_is_needed(kubeconfig: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    config = yaml.safe_load(kubeconfig.read_text()) | {"users": [{"name": "u", "user": {"tokenFile": str(token)}}]}
    kubeconfig.write_text(yaml.safe_dump(config))
    connection = Connection.from_kubeconfig(kubeconfig)
    assert connection.token == "one"
    token.write_text("two\n")
    assert connection.token == "two"


def test_outside_of_a_pod_there_is_no_service_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(errors.ConfigurationError, match="pod"):
        KubeClient.from_service_account()
