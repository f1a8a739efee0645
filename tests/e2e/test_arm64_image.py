"""The worker image for arm64, built from its Dockerfile and run: on a machine of another kind by QEMU's emulation.

Takes minutes, so it runs where it is asked for: `make image-arm64-check`. What emulation cannot show is how fast it is there, how
much memory it takes, and what the kernel, sensors and cgroups of such a machine say: system calls go to this machine's kernel.
"""

from __future__ import annotations

import contextlib
import json
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from tests.e2e.product import Product, wait_until
from tests.lab import emulation, images, worker
from tests.lab.outer import OuterDocker
from tests.lab.tools import any_kubectl, or_skip

pytestmark = [pytest.mark.docker, pytest.mark.long, pytest.mark.slow, pytest.mark.timeout(3600)]

SLOW_S = 300.0
"""How long a program may take that is emulated on a machine that does much else."""
STATE = "/var/lib/swarmtask/node-agent"
KUBECONFIG = "/etc/swarmtask/node-agent.kubeconfig"
NODE = "raspberry"

LOAD_ALL = """
import collections, importlib, pathlib, platform, sys
home, machines, failed = pathlib.Path("/opt/swarmtask"), collections.Counter(), []
found = [path for path in home.rglob("*.so") if not path.parent.name.endswith(".libs")]
for path in found:
    machines[int.from_bytes(path.read_bytes()[18:20], "little")] += 1
    name = ".".join((*path.relative_to(home).parts[:-1], path.name.partition(".")[0]))
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed.append(f"{name}: {error}")
for name in ("psutil", "pydantic", "cryptography.x509", "uvicorn", "numpy", "kopf", "swarmtask.cli.main"):
    importlib.import_module(name)
import json
print(json.dumps({"machine": platform.machine(), "count": len(found), "machines": machines, "failed": failed}))
"""


def note(what: str, value: object) -> None:
    """A figure for docs/joining.md (`pytest -s`)."""
    print(f"\nmeasured: {what}: {value}", flush=True)


@pytest.fixture(scope="module")
def client(outer_docker: OuterDocker) -> Iterator[docker.DockerClient]:
    """A dockerd that has the image and runs it."""
    with contextlib.closing(outer_docker.client(timeout_s=900)) as client, contextlib.ExitStack() as stack:
        with or_skip():
            note("run by", stack.enter_context(emulation.arm64()))
            images.image_tar(worker.ARM64.base)
            began = time.monotonic()
            stack.enter_context(worker.built(client, worker.ARM64, worker.ARM64_TAG))
        note("seconds that the build took", round(time.monotonic() - began))
        yield client


def once(client: docker.DockerClient, command: list[str], entrypoint: list[str] | None = None) -> str:
    """What a program of the image writes until it ends well; no network, the image's own user."""
    container = client.containers.create(
        worker.ARM64_TAG, command, entrypoint=entrypoint, network_mode="none", platform="linux/arm64"
    )
    try:
        container.start()
        code = container.wait(timeout=SLOW_S)["StatusCode"]
        output = container.logs(stream=False).decode(errors="replace")
        assert code == 0, output
        return output
    finally:
        container.remove(force=True, v=True)


def test_it_says_what_it_is(client):
    image = client.images.get(worker.ARM64_TAG).attrs
    config = image["Config"]
    assert (image["Os"], image["Architecture"]) == ("linux", "arm64")
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["swarmtask"]
    assert config["Healthcheck"]["Test"] == ["CMD", "swarmtask-agent-health", STATE]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    assert labels["title"] == "SwarmTask worker"
    assert (labels["version"], labels["revision"], labels["licenses"]) == ("0.0.0+test", "test", "Apache-2.0")
    note("bytes of the image", image["Size"])


def test_its_programs_run_as_a_user_without_rights(client):
    assert once(client, ["-c", "uname -m; id -u"], ["sh"]).split() == ["aarch64", "10001"]
    told = json.loads(once(client, ["version", "-o", "json"]))
    assert "aarch64" in told["platform"]
    assert told["python"].startswith("3.")
    assert "docker-registry" in once(client, ["--version"], ["docker-registry"])


def test_everything_compiled_in_it_is_of_that_kind_and_loads(client):
    told = json.loads(once(client, ["-c", LOAD_ALL], ["python3"]).splitlines()[-1])
    note("compiled modules", told["count"])
    assert told["machine"] == "aarch64"
    assert told["failed"] == []
    assert set(told["machines"]) == {"183"}, "another number is another kind of machine (ELF's e_machine)"


def test_the_registry_in_it_serves(client):
    """Both configurations, as a program and over HTTP, inside the container's own network."""
    ask = textwrap.dedent("""
        import time, urllib.request
        for _ in range(600):
            try:
                print(urllib.request.urlopen("http://127.0.0.1:5000/v2/").status)
                break
            except OSError:
                time.sleep(0.5)
    """)
    for name in ("serve", "receive"):
        script = f"docker-registry serve /etc/swarmtask/registry-{name}.yml & exec python3 -c '{ask}'"
        assert once(client, ["-c", script], ["sh"]).split()[-1] == "200"


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    """An API that has a SwarmNode for the agent, and a credential of that node in `tmp_path/agent.kubeconfig`."""
    with or_skip():
        kubectl = any_kubectl()
    product = Product(tmp_path / "data", engine="local", kubectl=kubectl)
    try:
        product.data_dir.mkdir(mode=0o700)
        product.start_apiserver()
        product.apply({"apiVersion": "swarmtask.io/v1alpha1", "kind": "SwarmNode", "metadata": {"name": NODE}})
        kubeconfig = str(tmp_path / "agent.kubeconfig")
        product.swarmtask("token", "create", NODE, "--role", "node", "--write-kubeconfig", kubeconfig, timeout_s=SLOW_S)
        yield product
    finally:
        product.stop()


@contextlib.contextmanager
def agent(client: docker.DockerClient, kubeconfig: Path) -> Iterator[Container]:
    """The agent's container with what the operator's service gives it, but Docker's socket."""
    container = client.containers.create(
        worker.ARM64_TAG,
        [
            *("node-agent", "--kubeconfig", KUBECONFIG, "--node", NODE, "--state", STATE, "--disk", STATE),
            *("--proc", "/host/proc", "--cgroups", "/host/cgroup"),
        ],
        platform="linux/arm64", user="0:0", network_mode="host", read_only=True, cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        volumes=[f"{kubeconfig}:{KUBECONFIG}:ro", "/proc:/host/proc:ro", "/sys/fs/cgroup:/host/cgroup:ro"],
        tmpfs={STATE: "mode=0700", "/tmp": ""},
    )  # fmt: skip
    try:
        container.start()
        yield container
    finally:
        container.remove(force=True, v=True)


def test_the_agent_reports_renews_its_lease_and_is_healthy(client, product, tmp_path):
    began = time.monotonic()
    with agent(client, tmp_path / "agent.kubeconfig") as container:

        def detail() -> str:
            container.reload()
            return f"{container.attrs['State']} {container.logs(tail=30).decode(errors='replace')}"

        def lease() -> dict[str, Any]:
            done = product.kubectl("get", "lease", NODE, "-n", "kube-node-lease", "-o", "json", check=False)
            return dict(json.loads(done.stdout)["spec"]) if done.returncode == 0 else {}

        def healthy() -> bool:
            container.reload()
            return bool(container.attrs["State"]["Health"]["Status"] == "healthy")

        first = wait_until("a Lease", lease, SLOW_S, detail)
        note("seconds until the agent's first renewal", round(time.monotonic() - began, 1))
        status = wait_until("a report", lambda: (s := product.get("swarmnode", NODE)["status"]).get("usage") and s, SLOW_S, detail)
        assert first["holderIdentity"] == status["bootID"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert status["agentVersion"]
        wait_until("Docker's health check", healthy, SLOW_S, detail)
        note("seconds until Docker calls it healthy", round(time.monotonic() - began, 1))
        wait_until("one more renewal", lambda: lease()["renewTime"] > first["renewTime"], SLOW_S, detail)
        container.stop(timeout=60)
        container.reload()
        assert container.attrs["State"]["ExitCode"] == 0, detail()
