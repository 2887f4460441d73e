"""What caps a pod's traffic by annotation, and is passed by. Pure.

Whoever gives the pod its device does it, and not routerd. Sources: Kubernetes, "Network Plugins", traffic shaping;
Kube-OVN, "Manage QoS".
"""

from __future__ import annotations

from routerd.model import Labels

_OF_SENT = ("kubernetes.io/egress-bandwidth", "ovn.kubernetes.io/egress_rate")
REDIRECTED = "does not limit what leaves with an egress IP: that is redirected past the queue of the pod's device"


def passed_by(annotations: Labels) -> tuple[str, ...]:
    """Those that cap what the pod sends."""
    return tuple(key for key in _OF_SENT if annotations.get(key, "").strip())
