"""Names of objects: what a refusal is about, who owns a path or an address. Text at the edges, a value inside.

The kinds of Kubernetes keep their names ("EgressPolicy"); the words below name what has none, or is named often.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

AGGREGATE = "aggregate"  # what is announced as a whole, and so needs a blackhole route
BFD = "bfd"  # the process that sends probes
BGP = "bgp"  # all of a node's sessions
EGRESS = "egress"  # an egress IP, or the group of that number
FILE = "file"  # a manifest
NODE = "node"
PATH = "path"  # a prefix
PEER = "peer"
POD = "pod"
POD_ADDRESS = "pod-address"  # of a pod of this node
SERVICE = "svc"
SPEAKER = "speaker"
STORE = "store"  # a resource of the API server


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """`str()` is what people read and documents hold: "svc/default/web", "EgressPolicy/web", "bgp"."""

    kind: str
    namespace: str = ""  # "" where the kind has none
    name: str = ""  # "" where there is only one

    def __str__(self) -> str:
        return "/".join(filter(None, (self.kind, self.namespace, self.name)))

    @property
    def key(self) -> str:
        """ "namespace/name", by which a snapshot holds what has a namespace; else the name."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @classmethod
    def parse(cls, text: str) -> Ref:
        """The value of a text that `str()` made. Names of Kubernetes hold no slash, those of paths and files do."""
        kind, _, rest = text.partition("/")
        if not kind or not rest:
            return cls(text)
        namespace, _, name = rest.partition("/")
        if namespace and name and (kind in (SERVICE, POD) or kind[:1].isupper()):
            return cls(kind, namespace, name)
        return cls(kind, "", rest)


@lru_cache(maxsize=1 << 17)  # asked for in every round for every service; 20 MB when full
def service_ref(key: str) -> Ref:
    """`key` is "namespace/name"."""
    namespace, _, name = key.partition("/")
    return Ref(SERVICE, namespace, name)
