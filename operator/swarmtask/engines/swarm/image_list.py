"""One name for an image of several kinds of machine: a manifest list, written into a registry that has them all.

Run inside the registry's own container while it takes a push (`registry`), because only there it is sure to be reached at 127.0.0.1:

    python -m swarmtask.engines.swarm.image_list '{"registry": ..., "repository": ..., "tag": ..., "kinds": [...]}'

Prints the list's digest. Format: Docker's "Image Manifest V 2, Schema 2", section Manifest List.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import orjson

LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS = ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.manifest.v1+json")
TIMEOUT_S = 20.0


def join(client: httpx.Client, repository: str, tag: str, kinds: Sequence[Mapping[str, str]]) -> str:
    """Let `tag` name the list of these images, which the registry has.

    Args:
        kinds: of each its `digest`, `architecture` and, where it has one, `variant`.

    Returns:
        The list's digest.

    Raises:
        httpx.HTTPError: the registry does not answer, lacks one of them, or refuses the list.
    """
    manifests = []
    for kind in kinds:
        found = client.get(f"/v2/{repository}/manifests/{kind['digest']}", headers={"accept": ", ".join(MANIFESTS)})
        found.raise_for_status()
        platform = {"architecture": kind["architecture"], "os": "linux"}
        if kind.get("variant"):
            platform["variant"] = kind["variant"]
        manifests.append(
            {"mediaType": found.headers["content-type"], "size": len(found.content), "digest": kind["digest"], "platform": platform}
        )
    body = orjson.dumps({"schemaVersion": 2, "mediaType": LIST, "manifests": manifests})
    client.put(f"/v2/{repository}/manifests/{tag}", content=body, headers={"content-type": LIST}).raise_for_status()
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def main(argument: str) -> int:
    """The exit code."""
    asked: dict[str, Any] = orjson.loads(argument)
    try:
        with httpx.Client(base_url=asked["registry"], timeout=TIMEOUT_S, trust_env=False) as client:
            digest = join(client, asked["repository"], asked["tag"], asked["kinds"])
    except httpx.HTTPError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
