"""In which words nodes are told which image to start. Pure.

Called by `engine` for attempts and by `agents` for the node agent, with what this machine's Docker knows of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def pinned(found: Mapping[str, Any], image: str) -> str:
    """The image in a form that starts without asking a registry where a node has it already: by ID when no registry ever knew it,
    by digest when one did, else as it was given.

    Args:
        found: Docker's answer to `inspect` of the image.
    """
    digests: list[str] = found.get("RepoDigests") or []
    if not digests:
        return str(found["Id"])
    return next((one for one in digests if same_repository(one, image)), image)


def same_repository(digest: str, image: str) -> bool:
    """Whether `repo@sha256:...` is of the repository that `image` names."""
    repository = digest.partition("@")[0]
    head, slash, tail = image.rpartition("/")
    named = (head + slash + tail.partition(":")[0]).removeprefix("docker.io/").removeprefix("library/")
    return repository.removeprefix("docker.io/").removeprefix("library/") == named
