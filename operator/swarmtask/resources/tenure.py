"""A tenure: who decides for the cluster, as one that the API can check with every write.

Used by the client and by the API server; the operator's `controllers.tenure` takes one. Writes of a tenure name it in a header, and
a server that knows the header refuses them once the Lease names another holder: what a dead operator had sent can no longer
arrive after its successor has looked. Servers that do not know it (kube-apiserver) let such writes in, as they would have before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from swarmtask.errors import BadRequest

HEADER = "swarmtask-tenure"


@dataclass(frozen=True, slots=True)
class Tenure:
    """A Lease, and who must hold it for a write to be accepted. None of the three has a slash."""

    holder: str
    name: str = "swarmtask-operator"
    namespace: str = "kube-system"

    def __str__(self) -> str:
        """The header's value."""
        return f"{self.namespace}/{self.name}/{self.holder}"

    @classmethod
    def read(cls, text: str) -> Self:
        """From the header. Raises BadRequest."""
        parts = text.split("/")
        if len(parts) != 3 or not all(parts):
            raise BadRequest(f"the header {HEADER} must be NAMESPACE/LEASE/HOLDER, not {text[:100]!r}")
        namespace, name, holder = parts
        return cls(holder, name, namespace)

    def over(self) -> str:
        """Why a write is refused."""
        return f"the Lease {self.namespace}/{self.name} is not held by {self.holder}: another operator has begun"
