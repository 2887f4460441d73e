"""`routerd check` names whose an egress IP is already, before anybody gives it out."""

from __future__ import annotations

from pathlib import Path

import pytest

from routerd.cli.check import check_texts

DATA = Path(__file__).parents[1] / "data" / "egress-ips"
ELSEWHERE = "give the policy another egress IP"
TAKEN = {
    "10.244.3.5": "the address of pod/default/app-0",
    "10.244.3.99": "in the pod CIDR 10.244.3.0/24 of node/worker",
    "10.96.0.1": "the ClusterIP of svc/default/kubernetes",
    "10.0.0.1": "the address of peer/10.0.0.1",
    "10.0.0.21": "an address of node/worker",
    "203.0.113.80": "the load balancer's address of svc/default/cloudlb",
    "240.0.0.1": "in a reserved range (240.0.0.0/4)",
}


def found(address: str) -> list[str]:
    """What is said of the policy."""
    texts = {path.name: path.read_text().replace("ADDRESS", address) for path in DATA.iterdir()}
    said = map(str, check_texts(texts))
    return [line.replace("cluster.yaml:69: EgressPolicy/all: ", "") for line in said if "EgressPolicy/all" in line]


@pytest.mark.parametrize("address", TAKEN)
def test_an_egress_ip_that_is_somebodys_is_an_error(address: str) -> None:
    assert found(address) == [f"error: {address} is {TAKEN[address]}: {ELSEWHERE}"]


def test_one_that_a_service_has_asked_for_is_an_error_that_names_the_service() -> None:
    warning, error = found("192.0.2.5")
    assert warning == "warning: 192.0.2.5 lies in pool default, which may give it to a service"
    assert error.startswith("error: ") and error.endswith("svc/default/web")


def test_one_of_a_pool_for_services_is_warned_of() -> None:
    assert found("192.0.2.9") == ["warning: 192.0.2.9 lies in pool default, which may give it to a service"]


@pytest.mark.parametrize("address", ["10.168.60.100", "203.0.113.81"], ids=["nobody's", "an external IP of a service"])
def test_one_that_is_nobodys_is_fine(address: str) -> None:
    """An external IP is a user's word: by it nobody takes an egress IP from another team."""
    assert found(address) == []
