"""The one async client of the Kubernetes API, used by the operator, the CLI and the tests.

It speaks to the embedded API server and to any cluster alike: nothing here knows which one it is. `ObjectApi` is the surface;
`KubeClient` is the implementation over lightkube's transport; the simulator and the controllers' tests use an in-memory one that
passes the same contract suite.
"""

from swarmtask.kube.api import Object, ObjectApi, ObjectList, PatchType, WatchEvent
from swarmtask.kube.client import KubeClient
from swarmtask.kube.connection import Connection

__all__ = ["Connection", "KubeClient", "Object", "ObjectApi", "ObjectList", "PatchType", "WatchEvent"]
