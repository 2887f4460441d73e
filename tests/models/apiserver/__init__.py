"""A small, strict double of a Kubernetes API server for tests. It never talks to anything but its clients."""

from .server import ApiServer

__all__ = ["ApiServer"]
