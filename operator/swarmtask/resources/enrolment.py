"""How the agent of a node comes to a token of its own: names and bounds that API server, operator and agent agree on.

Every node of a swarm is given the same credential (user BOOTSTRAP_USER). With it an agent makes an AccessToken of its own node, and
nothing else: the API server sees that the node exists and that the token is bounded (`apiserver.access.guard`); the operator takes
tokens away whose node has left (`controllers.agents`). Constants alone: the agent, which must stay small, imports this too.
"""

from __future__ import annotations

from typing import Final

BOOTSTRAP_USER: Final = "system:swarmtask:node-bootstrap"
BOOTSTRAP_GROUP: Final = "system:swarmtask:node-bootstrappers"
NODE_GROUP: Final = "system:nodes"
NODE_USER_PREFIX: Final = "system:node:"
LABEL_ENGINE_NODE: Final = "access.swarmtask.io/engine-node"
"""On an AccessToken that was made with the shared credential: ENGINE.ID of the engine's node that it was made on. The token ends
when its SwarmNode is no longer that one."""
LABEL_BOOTSTRAP: Final = "access.swarmtask.io/bootstrap"
"""Value `true` on the AccessToken of the shared credential itself."""
TOKEN_LIFE_S: Final = 24 * 3600
"""What agents ask for; they ask again when a third of it is left."""
LONGEST_LIFE_S: Final = 7 * 24 * 3600
MOST_TOKENS: Final = 16
"""Of one node at a time, so that a stolen credential cannot fill the disk."""


def engine_node(engine: str, node_id: str) -> str:
    """The value of LABEL_ENGINE_NODE."""
    return f"{engine}.{node_id}"
