"""Install what tests need from outside Python, as far as this machine allows: `python -m tests.lab.setup`; `make test` runs it too.

As root on Debian or Ubuntu it installs packages; everybody gets kubectl and the images into the checkout's cache. What cannot be
had is named with what to do about it and is no failure here: tests that need it are skipped and counted. A second run does nothing.
"""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable

from tests.lab import cluster, images, outer, tools

# program -> the Debian package that brings it
_PACKAGES = {"debootstrap": "debootstrap", "iptables": "iptables", "dockerd": "docker.io"}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _needed() -> dict[str, str]:
    """Programs that are not here, with their packages. A Docker that answers needs no dockerd of ours."""
    found = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin:/sbin"
    lacking = {program: package for program, package in _PACKAGES.items() if shutil.which(program, path=found) is None}
    if "dockerd" in lacking and outer.answering():
        del lacking["dockerd"]
    return lacking


def _apt_knows(packages: list[str]) -> bool:
    policies = tools.run(["apt-cache", "policy", *packages], timeout_s=60)
    return policies.count("Candidate:") == len(packages) and "Candidate: (none)" not in policies


def install_packages() -> None:
    """Install by apt, as root, what `_needed` names; the package lists are renewed only if they do not know a package or its file.

    Raises:
        Missing: something is lacking and cannot be installed here.
    """
    lacking = _needed()
    if not lacking:
        return
    packages = sorted(set(lacking.values()))
    words = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise tools.Missing(words, "this machine has no apt", "Install them by the machine's own package manager.")
    if os.getuid() != 0:
        raise tools.Missing(words, "only root can install packages", f"Run `apt-get install {words}` as root.")
    _say(f"installing {words}")
    with tools.machine_lock("apt"):
        install = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", "install", "-y", "--no-install-recommends", *packages]
        if _apt_knows(packages):
            with contextlib.suppress(tools.Missing):  # lists older than the mirror: the second try has new ones
                tools.run(install, timeout_s=900)
                return
        tools.run(["apt-get", "-qq", "update"], timeout_s=300)
        tools.run(install, timeout_s=900)


def _package_lists() -> None:
    """kubectl and busybox come from packages that apt must know; a fresh machine's apt knows none."""
    if shutil.which("apt-get") and os.getuid() == 0 and not _apt_knows(["busybox-static", "kubernetes-client"]):
        tools.run(["apt-get", "-qq", "update"], timeout_s=300)


def _fetched() -> bool:
    return {"debian", "current"} <= tools.kubectl_binaries().keys() and tools.busybox_is_here()


def _laboratory_image() -> None:
    found = outer.connect()
    try:
        with contextlib.closing(found.client()) as client:
            cluster.sweep(found.url)
            images.node_image(client)
    finally:
        found.close()


def main() -> int:
    """Do all steps; a step that cannot be done is told and the others go on. Returns 0."""
    steps: list[tuple[str, Callable[[], object]]] = [("packages", install_packages)]
    if not _fetched():
        steps.append(("package lists", _package_lists))
    steps += [
        ("kubectl 1.20 (Debian)", tools.fetch_kubectl_debian),
        ("kubectl (current)", tools.fetch_kubectl_current),
        ("task image", lambda: images.image_tar(images.TASK_TAG)),
        ("Python image", lambda: images.image_tar(images.PYTHON_TAG)),
        ("laboratory node image", _laboratory_image),
    ]
    missing = []
    for name, step in steps:
        started = time.monotonic()
        try:
            step()
        except tools.Missing as error:
            missing.append(f"{name}: {error}")
        if (spent_s := time.monotonic() - started) > 5:
            _say(f"{name}: {spent_s:.0f} s")
    if missing:
        _say("Some tests will be skipped, for want of:\n  " + "\n  ".join(missing))
    else:
        _say("everything that the tests need is here")
    return 0


if __name__ == "__main__":
    sys.exit(main())
