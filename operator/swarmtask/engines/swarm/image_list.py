"""One name for an image of several kinds of machine: a manifest list, written into a registry that has them all.

Run inside the registry's own container while it takes a push (`registry`): only there it is sure to be reached at 127.0.0.1.

    python -m swarmtask.engines.swarm.image_list '{"registry": ..., "repository": ..., "tag": ..., "kinds": [...]}'

Prints the digest by which nodes ask. Format: Docker's "Image Manifest V 2, Schema 2", section Manifest List.
"""

from __future__ import annotations

import hashlib
import http
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
import orjson

LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS = ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.manifest.v1+json")
TIMEOUT_S = 20.0
Json = dict[str, Any]


def join(client: httpx2.Client, repository: str, tag: str, kinds: Sequence[Mapping[str, str]]) -> str:
    """Let `tag` name these images, which the registry has: their list, or the only one itself.

    A kind that is not among them stays in the list while one that is there is as it was: what a machine had of it may be gone
    meanwhile (`docker image prune -a`), and other machines run it.

    Args:
        kinds: of each its `digest`, `architecture` and, where it has one, `variant`.

    Returns:
        The digest of what `tag` names.

    Raises:
        httpx2.HTTPError: the registry does not answer, lacks one of them, or refuses the list.
    """
    manifests, bodies = [], []
    for kind in kinds:
        found = client.get(f"/v2/{repository}/manifests/{kind['digest']}", headers={"accept": ", ".join(MANIFESTS)})
        found.raise_for_status()
        platform = {"architecture": kind["architecture"], "os": "linux"}
        if kind.get("variant"):
            platform["variant"] = kind["variant"]
        manifests.append(
            {"mediaType": found.headers["content-type"], "size": len(found.content), "digest": kind["digest"], "platform": platform}
        )
        bodies.append(found.content)
    manifests += _others(client, repository, tag, manifests)
    if len(manifests) == 1:
        body, media_type = bodies[0], str(manifests[0]["mediaType"])
    else:
        body, media_type = orjson.dumps({"schemaVersion": 2, "mediaType": LIST, "manifests": manifests}), LIST
    client.put(f"/v2/{repository}/manifests/{tag}", content=body, headers={"content-type": media_type}).raise_for_status()
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def _others(client: httpx2.Client, repository: str, tag: str, given: Sequence[Json]) -> list[Json]:
    """What the tag's present list has for kinds of machine that were not given, if something that was given is in it, too."""
    found = client.get(f"/v2/{repository}/manifests/{tag}", headers={"accept": ", ".join((LIST, *MANIFESTS))})
    if found.status_code == http.HTTPStatus.NOT_FOUND:
        return []
    found.raise_for_status()
    present: list[Json] = found.json().get("manifests") or [] if found.headers["content-type"] == LIST else []
    if not {item["digest"] for item in present} & {item["digest"] for item in given}:
        return []
    kinds = {item["platform"]["architecture"] for item in given}
    return [item for item in present if item["platform"]["architecture"] not in kinds]


def main(argument: str) -> int:
    """The exit code."""
    asked: Json = orjson.loads(argument)
    try:
        with httpx2.Client(base_url=asked["registry"], timeout=TIMEOUT_S, trust_env=False) as client:
            digest = join(client, asked["repository"], asked["tag"], asked["kinds"])
    except httpx2.HTTPError as error:
        sys.stdout.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
