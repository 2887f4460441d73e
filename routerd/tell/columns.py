"""What can be shown, and its columns. It imports nothing: the command line knows the words before it loads anything."""

from __future__ import annotations

COLUMNS: dict[str, tuple[str, ...]] = {
    "nodes": (
        "name",
        "ready",
        "state",
        "agent_silent_seconds",
        "addresses",
        "pod_cidrs",
        "gateway",
        "announces_services",
        "groups",
        "transport",
    ),
    "peers": (
        "peer",
        "address",
        "remote_as",
        "local_as",
        "local_address",
        "state",
        "bfd",
        "since_seconds",
        "paths",
        "flaps",
        "reason",
    ),
    "bfd": (
        "peer",
        "local_address",
        "state",
        "peer_state",
        "since_seconds",
        "interval_ms",
        "detection_ms",
        "flaps",
        "reason",
    ),
    "paths": ("peer", "prefix", "next_hop", "local_pref", "med", "prepend", "communities", "session", "owners"),
    "policies": ("policy", "destinations", "egress_ip", "group", "gateways", "pods_here", "reason"),
    "pools": ("pool", "protocol", "uses", "addresses", "used", "free", "disabled"),
    "nat": ("protocol", "pod", "remote", "egress_ip", "port", "group", "gateway", "idle_seconds"),
    "gateways": ("gateway", "by", "state", "round_trip_ms", "probes", "unanswered", "idle_seconds", "reason"),
    "port-sets": ("egress_ip", "ports", "size", "node", "state", "group"),
    "pod-cidrs": ("block", "node", "addresses"),
    "pod-addresses": ("address", "block", "state", "pod", "network", "interface", "container", "since_seconds"),
    "egress-ips": ("egress_ip", "policies", "pool", "group", "active_gateways", "gateways", "node_address"),
}
CLOUD = (  # of an operator
    "instance",
    "node",
    "interfaces",
    "addresses",
    "prefixes6",
    "leaving",
    "used",
    "waiting",
    "egress_ips",
    "reason",
)
STEPS = ("yes", "question", "reason", "detail")  # of `why`
