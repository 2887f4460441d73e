"""Devices of ResourceClaims that are network interfaces (dynamic resource allocation). Pure.

Source: resource.k8s.io/v1, `status.devices[].networkData` (Kubernetes 1.33).
"""

from __future__ import annotations

from dataclasses import dataclass

from routerd.formats.document import Value
from routerd.formats.meta import read_meta
from routerd.model import Origin


@dataclass(frozen=True, slots=True)
class ClaimedDevices:
    """Network interfaces that a ResourceClaim's devices are, and for which pods it is reserved."""

    namespace: str
    name: str
    pods: tuple[str, ...]  # names, in its namespace
    interfaces: tuple[str, ...]  # in the pods
    origin: Origin

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"


def read_resource_claim(value: Value) -> ClaimedDevices:
    meta = read_meta(value)
    status = value.section.section("status")
    users = [item.section for item in status.items("reservedFor")] if status else []
    devices = [item.section.section("networkData") for item in status.items("devices")] if status else []
    return ClaimedDevices(
        meta.namespace_or_default,
        meta.name,
        tuple(user.string("name") for user in users if user.string("resource") == "pods"),
        tuple(device.string("interfaceName") for device in devices if device and device.string("interfaceName")),
        meta.origin,
    )
