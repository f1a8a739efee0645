"""`swarmtask apply` against the real API server, in this process: results per object, what is refused and how."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from typer.testing import CliRunner, Result

from swarmtask.cli.main import app
from tests.apiserver.server import running_api_server

Apply = Callable[..., "asyncio.Future[Result]"]


@pytest_asyncio.fixture
async def swarmtask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Apply]:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("SWARMTASK_CONFIG", raising=False)
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(running_api_server(tmp_path))

        def run(*arguments: str, input: str | None = None) -> asyncio.Future[Result]:
            # A command has an event loop of its own: it needs a thread of its own beside the server's loop.
            words = [*arguments, "--kubeconfig", str(server.kubeconfig)]
            return asyncio.ensure_future(asyncio.to_thread(CliRunner().invoke, app, words, input=input))

        yield run


def manifest(name: str, extra: str = "", image: str = "acme/lint") -> str:
    return (
        f"apiVersion: swarmtask.io/v1alpha1\nkind: SwarmTask\nmetadata: {{name: {name}}}\n"
        f"spec: {{container: {{image: {image}}}{extra}}}\n"
    )


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)


async def test_created_then_unchanged_then_configured(swarmtask: Apply) -> None:
    first = await swarmtask("apply", "-f", "-", input=manifest("lint"))
    assert (first.exit_code, first.stdout) == (0, "swarmtask.swarmtask.io/lint created\n"), first.stderr
    second = await swarmtask("apply", "-f", "-", input=manifest("lint"))
    assert second.stdout == "swarmtask.swarmtask.io/lint unchanged\n"
    third = await swarmtask("apply", "-f", "-", input=manifest("lint", ", priorityClass: high"))
    assert third.stdout == "swarmtask.swarmtask.io/lint configured\n"


def queue(spec: str) -> str:
    return f"apiVersion: swarmtask.io/v1alpha1\nkind: SwarmQueue\nmetadata: {{name: default}}\nspec: {spec}\n"


async def test_a_full_queue_refuses_the_rest_and_the_same_again_loses_nothing(swarmtask: Apply) -> None:
    await swarmtask("apply", "-f", "-", input=queue("{maxQueued: 2}"))
    tasks = "---\n".join(manifest(name) for name in ("a", "b", "c", "d"))
    result = await swarmtask("apply", "-f", "-", input=tasks)
    assert result.exit_code == 6
    assert result.stdout.splitlines() == [f"swarmtask.swarmtask.io/{name} created" for name in ("a", "b")]
    said = " ".join(result.stderr.split())
    assert said.count("the queue default is full") == 1
    assert 'document 3: swarmtasks.swarmtask.io "c" was not accepted: the queue' in said
    assert 'document 4: swarmtasks.swarmtask.io "d" was not accepted: as above' in said
    assert "Try again in 1 s." in said
    assert "2 of 4 objects were applied, 2 not accepted for now. Nothing is lost" in said
    await swarmtask("apply", "-f", "-", input=queue("{maxQueued: 4}"))
    again = await swarmtask("apply", "-f", "-", input=tasks)
    assert (again.exit_code, again.stderr) == (0, "")
    words = [line.split()[1] for line in again.stdout.splitlines()]
    assert words == ["unchanged", "unchanged", "created", "created"]


async def test_run_into_a_full_queue_says_what_to_do(swarmtask: Apply) -> None:
    await swarmtask("apply", "-f", "-", input=queue("{maxQueued: 0}"))
    result = await swarmtask("run", "acme/lint")
    assert (result.exit_code, result.stdout) == (6, "")
    assert "kubectl -n default edit swarmqueue default" in " ".join(result.stderr.split())
    assert "Try again in 1 s." in result.stderr


async def test_one_bad_object_does_not_stop_the_others(swarmtask: Apply, tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "a.yaml").write_text(
        manifest("first") + "---\n" + manifest("second", image="'{{evil}}'") + "---\n" + manifest("third")
    )
    (folder / "b.json").write_text(
        '{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "ConfigMap", '
        '"metadata": {"name": "cm"}, "data": {"a": "b"}}]}'
    )
    (folder / "ignored.txt").write_text("not a manifest")
    result = await swarmtask("apply", "-f", str(folder))
    assert result.exit_code == 6
    assert result.stdout.splitlines() == [
        "swarmtask.swarmtask.io/first created", "swarmtask.swarmtask.io/third created", "configmap/cm created",
    ]  # fmt: skip
    assert "a.yaml, document 2" in result.stderr and "spec.container.image" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", 6, "no object in stdin"),
        ("--- \n---\n", 6, "no object in stdin"),
        ("a: [", 6, "not valid YAML"),
        ("just a string", 6, "apiVersion, kind and metadata"),
        ("[1, 2]", 6, "apiVersion, kind and metadata"),
        ("kind: SwarmTask", 6, "apiVersion and kind are required"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: p}", 6, "use kubectl apply"),
        ("apiVersion: swarmtask.io/v1alpha1\nkind: SwarmTask\nmetadata: {}", 6, "metadata.name is required"),
        ("apiVersion: swarmtask.io/v1alpha1\nkind: SwarmTask\nmetadata: 7", 6, "metadata is expected"),
        (manifest("lint", ", priorty: 5"), 6, "priorty"),
        (manifest("Lint_"), 6, "Lint_"),
        ("!!python/object/apply:os.system ['true']", 6, "not valid YAML"),
        ("a: " + "[" * 100_000, 6, "nested more than 100 levels"),
        ("a: &a [*a]", 6, "contains itself"),
        (BOMB, 6, "aliases stand for more than"),
        (manifest("lint", ", backoffLimit: .nan"), 6, "spec.backoffLimit is nan"),
        (manifest("lint", ", backoffLimit: 99999999999999999999"), 6, "spec.backoffLimit is 9999"),
        (manifest("lint", image="!!binary aGk="), 6, "spec.container.image is bytes"),
        (manifest("lint", ", queue: !!set {a, b}"), 6, "spec.queue is set"),
        (manifest("lint", ", queue: a, queue: b"), 6, "the key 'queue' is given twice"),
        (manifest("lint", ", ? [a] : b"), 6, "not valid YAML"),
        (manifest("a/b"), 6, "holds a slash"),
        ("apiVersion: v1\nkind: List\nitems: 3", 6, "items of a List"),
    ],
)  # fmt: skip
async def test_what_cannot_be_applied_is_refused_with_its_reason(swarmtask: Apply, text: str, code: int, words: str) -> None:
    result = await swarmtask("apply", "-f", "-", input=text)
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


async def test_dates_and_numbers_are_read_as_kubectl_reads_them(swarmtask: Apply) -> None:
    text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: 2026-01-02}\ndata: {8080: a, true: b, when: 2026-01-02}\n"
    assert (await swarmtask("apply", "-f", "-", input=text)).stdout == "configmap/2026-01-02 created\n"
    merged = manifest("merged", ", backoff: {<<: *shared, type: linear}").replace(
        "metadata: {", "metadata: {annotations: {a: &shared {initialSeconds: 1}}, "
    )
    refused = await swarmtask("apply", "-f", "-", input=merged)
    assert "given twice" not in refused.stderr  # a merge key is no duplicate


async def test_what_is_no_text_is_refused_by_its_own_name(swarmtask: Apply, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "bad.yaml").write_bytes(b"a: \xff\xfe")
    result = await swarmtask("apply", "-f", str(tmp_path / "m"))
    assert result.exit_code == 6
    assert "not UTF-8" in result.stderr


async def test_files_that_are_not_there_are_exit_code_3(swarmtask: Apply, tmp_path: Path) -> None:
    assert (await swarmtask("apply", "-f", str(tmp_path / "missing.yaml"))).exit_code == 3
    (tmp_path / "empty").mkdir()
    assert (await swarmtask("apply", "-f", str(tmp_path / "empty"))).exit_code == 3


async def test_fields_that_somebody_else_has_set_are_a_conflict(swarmtask: Apply) -> None:
    created = await swarmtask("run", "acme/lint", "--name", "lint", "--priority", "high")
    assert created.exit_code == 0, created.stderr
    await swarmtask("apply", "-f", "-", input=manifest("lint"))
    # `run` and `apply` are the same person: no conflict. Another manager is: see below.
    text = manifest("lint", ", priorityClass: low")
    taken = await swarmtask("apply", "-f", "-", "--force-conflicts", input=text)
    assert taken.exit_code == 0, taken.stderr


async def test_a_dry_run_stores_nothing(swarmtask: Apply) -> None:
    result = await swarmtask("apply", "-f", "-", "--dry-run", input=manifest("lint"))
    assert result.stdout == "swarmtask.swarmtask.io/lint created (dry run)\n"
    assert (await swarmtask("get", "task", "lint")).exit_code == 3


@pytest.mark.slow
async def test_namespaces_must_agree(swarmtask: Apply) -> None:
    text = manifest("lint").replace("{name: lint}", "{name: lint, namespace: default}")
    assert (await swarmtask("apply", "-f", "-", "-n", "default", input=text)).exit_code == 0
    refused = await swarmtask("apply", "-f", "-", "-n", "elsewhere", input=text)
    assert refused.exit_code == 6
    assert "-n elsewhere" in refused.stderr
