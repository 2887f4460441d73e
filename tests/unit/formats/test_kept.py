"""What is kept of an object is all that its reader looks at, so that an API server says what files would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any

import pytest

from routerd.formats.compose import value_of
from routerd.formats.document import Source
from routerd.formats.kinds import BY_NAME, Object
from routerd.formats.objects import Loaded, read_object
from routerd.store.kubernetes.objects import slim

META = {
    "name": "x", "namespace": "a", "uid": "u", "creationTimestamp": "2026-01-02T03:04:05Z",
    "annotations": {
        "metallb.io/address-pool": "p", "lbipam.cilium.io/sharing-key": "k",
        "lbipam.cilium.io/sharing-cross-namespace": "b", "routerd.io/egress": "true",
    },
    "labels": {"kubernetes.io/service-name": "web"},
}  # fmt: skip
FILLED: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("", "Node"): {
        "spec": {
            "podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd01::/64"], "providerID": "aws:///z/i",
            "unschedulable": True,
            "taints": [
                {"key": "node.kubernetes.io/out-of-service", "value": "v", "effect": "NoExecute"},
                {"key": "down-soon", "effect": "NoSchedule"},
            ],
        },
        "status": {
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "allocatable": {"pods": "110"},
            "conditions": [
                {"type": "Ready", "status": "False", "message": "node is shutting down"},
                {"type": "NetworkUnavailable", "status": "True"},
            ],
        },
    },
    ("", "Namespace"): {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}},
    ("", "Pod"): {
        "spec": {"nodeName": "n", "hostNetwork": True},
        "status": {"phase": "Failed", "podIP": "10.1.0.2", "podIPs": [{"ip": "10.1.0.2"}, {"ip": "fd01::2"}]},
    },
    ("", "Service"): {
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd96::1"],
            "externalIPs": ["192.0.2.9"], "loadBalancerIP": "192.0.2.1", "loadBalancerClass": "routerd.io/bgp",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}], "selector": {"app": "web"},
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}},
    },
    ("discovery.k8s.io", "EndpointSlice"): {
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": ["10.1.0.2"], "nodeName": "n",
            "conditions": {"ready": False, "serving": True, "terminating": True},
        }],
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    },
}  # fmt: skip
KEYS = sorted(FILLED)


def read(raw: Mapping[str, Any]) -> Loaded:
    return read_object(value_of(raw, Source("", is_api=True)))


def filled(key: tuple[str, str]) -> dict[str, Any]:
    kind = BY_NAME[key]
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": META, **FILLED[key]}


def empty(found: Object) -> Iterator[str]:
    """Fields that say what an object says that does not mention them."""
    for each in fields(found):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if getattr(found, each.name) == default:
            yield each.name


def test_every_kind_of_the_cluster_is_here() -> None:
    assert {key for key, kind in BY_NAME.items() if kind.reader and kind.plural and not kind.custom} == set(KEYS)


@pytest.mark.parametrize("key", KEYS, ids=lambda key: str(key[1]))
def test_what_is_kept_of_an_object_reads_as_all_of_it(key: tuple[str, str]) -> None:
    whole = read(filled(key))
    assert read(slim(BY_NAME[key], filled(key))) == whole
    not_written = {"Node": {"interfaces", "interfaces_generation"}, "Service": {"unread_wishes"}}.get(key[1], set())
    assert {name for entry in whole.entries for name in empty(entry.object)} == not_written  # else it shows nothing
