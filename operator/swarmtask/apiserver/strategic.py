"""Strategic merge patch for built-in kinds. Called by `patch.py` only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def strategic_merge(schema: Mapping[str, Any], current: Any, patch: Any) -> Any:
    """The patched object."""
    from swarmtask.apiserver.patch import merge  # noqa: PLC0415

    return merge(current, patch)
