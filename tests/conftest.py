"""Fixtures that every room's tests may use, and the count of what was skipped for want of a tool.

Nothing here touches Docker until a test asks for `outer_docker`, `lab` or `clean_lab`. Such a test carries the marker `docker` or
`lab` even if its author forgot it, so `pytest -m "not docker and not lab"` never touches Docker at all.
"""

import contextlib
import gc
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.lab import tools

if TYPE_CHECKING:
    from tests.lab.cluster import Lab
    from tests.lab.outer import OuterDocker

# Examples are a function of the test, and how long one takes is no failure: a run says the same again. Others are looked for with
# `pytest --hypothesis-profile=explore`.
settings.register_profile("house", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, print_blob=True)
settings.load_profile("house")

_E2E = Path(__file__).with_name("e2e")
_MARK_OF_FIXTURE = {"outer_docker": "docker", "lab": "lab", "clean_lab": "lab", "kubectl": "kubectl"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark by fixture and folder, before `-m` selects; what takes many minutes is left out unless `-m` names it."""
    for item in items:
        for fixture, mark in _MARK_OF_FIXTURE.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(mark)
        if item.path.is_relative_to(_E2E):
            item.add_marker("e2e")
    if "long" not in config.getoption("markexpr"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_collection_finish() -> None:
    """Thousands of tests stay until the end: looked at again with every full garbage collection they take a fifth of the time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest's own: below its list of skips
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """One line that says how much was not tested, and what to install for it."""
    yield
    reasons = (str(getattr(report, "longrepr", "")) for report in terminalreporter.stats.get("skipped", []))
    lacking = Counter(found[1] for reason in reasons if (found := re.search(r"\[missing: ([^\]]+)\]", reason)))
    for tool, count in sorted(lacking.items()):
        terminalreporter.write_line(f"skipped for want of {tool}: {count} (see `python -m tests.lab.setup`)", yellow=True)


@pytest.fixture(scope="session")
def outer_docker() -> Iterator["OuterDocker"]:
    """A real Docker: this machine's, or one started for the tests (as root). `.url` is a DOCKER_HOST, `.client()` talks to it."""
    from tests.lab import cluster, outer

    with tools.or_skip():
        found = outer.connect()
    with contextlib.closing(found):
        cluster.sweep(found.url)
        yield found


@pytest.fixture(scope="session")
def lab(outer_docker: "OuterDocker") -> Iterator["Lab"]:
    """The laboratory of three nodes that all tests share, with both test images loaded. Most tests want `clean_lab`."""
    from tests.lab import cluster, images

    with tools.or_skip():
        laboratory = cluster.Lab(docker_url=outer_docker.url).start()
    try:
        for tag in (images.TASK_TAG, images.PYTHON_TAG):
            with contextlib.suppress(tools.Missing):  # a test that runs the image will say that it is not there
                laboratory.load_image(tag)
        yield laboratory
    finally:
        laboratory.teardown()


@pytest.fixture
def clean_lab(lab: "Lab") -> Iterator["Lab"]:
    """The shared laboratory with all nodes ready, active, unlabelled and empty, before the test and after it."""
    lab.restore()
    yield lab
    lab.restore()


@pytest.fixture(params=["debian", "current"])
def kubectl(request: pytest.FixtureRequest) -> Path:
    """A real kubectl: Debian's old one and a current one, in turn."""
    with tools.or_skip():
        return tools.named_kubectl(request.param)
