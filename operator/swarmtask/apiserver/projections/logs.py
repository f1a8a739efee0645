"""`kubectl logs`: which attempt's output is meant by a pod, and what is said where there is none.

Called by the handlers with the pod. The output itself, its parameters and its text are those of `swarmtasks/log` (`log_text`).

Source of the parameters: Kubernetes API reference, "read log of the specified Pod".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swarmtask.apiserver.log_text import LogTexts, wish_of
from swarmtask.apiserver.projections.pods import ANNOTATION_ENGINE, CONTAINER, LABEL_ATTEMPT, is_live
from swarmtask.apiserver.wire import Request, Response
from swarmtask.clock import Clock
from swarmtask.errors import BadRequest, NotFound


class PodLogs:
    """Answers GETs of `pods/NAME/log`."""

    def __init__(self, texts: LogTexts, clock: Clock) -> None:
        self._texts, self._clock = texts, clock

    def answer(self, request: Request, pod: Mapping[str, Any]) -> Response:
        """The log of a pod's attempt, or of the attempt before it (`previous`).

        Raises:
            BadRequest: the parameters make no sense, or there is no output yet. NotFound: none is kept. TooManyRequests.
        """
        container = request.query.get("container", "")
        if container not in ("", CONTAINER):
            raise BadRequest(f"container {container} is not valid: the container of every pod is {CONTAINER}")
        wish, previous, metadata = wish_of(request, self._clock.now()), request.flag("previous"), pod["metadata"]
        owner, number = metadata["ownerReferences"][0], int(metadata["labels"][LABEL_ATTEMPT]) - previous
        if number == 0:
            raise BadRequest(f'previous terminated container "{CONTAINER}" in pod "{metadata["name"]}" not found')
        try:
            return self._texts.answer(metadata["namespace"], owner["uid"], number, wish)
        except KeyError:
            instead = f"try `swarmtask logs {owner['name']} -n {metadata['namespace']}`"
            if is_live(pod) and not previous:
                raise BadRequest(f'container "{CONTAINER}" in pod "{metadata["name"]}" has no output yet; {instead}') from None
            engine = metadata["annotations"][ANNOTATION_ENGINE]
            raise NotFound(f"no output of attempt {number} is kept (engine {engine}): {instead}") from None
