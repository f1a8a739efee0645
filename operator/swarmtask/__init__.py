"""SwarmTask: a desktop and spare laptops as one batch cluster, driven with kubectl."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("swarmtask")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0.0.0+source"

__all__ = ["__version__"]
