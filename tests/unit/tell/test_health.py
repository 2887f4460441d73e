"""An agent's status in the words of the Kubernetes API: what is told of a node, and what makes it unready."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from bfd.control import View as Watched
from bgp.path import SessionKey
from bgp.session import PeerStatus as Session
from egress.status import EgressStatus
from routerd.model import Peer, Peering, Refusal, Snapshot
from routerd.refs import Ref
from routerd.tell.drain import Departure
from routerd.tell.health import GRACE, Enabled, node_health, of_pods
from routerd.tell.status import AgentStatus, ConfigStatus, PeerStatus, Rounds
from routerd.tell.views import PeerView
from tests.models import cluster
from tests.models.cluster import TOR

STARTED = 1000.0
BOTH = Enabled(bgp=True, egress=True)
OTHER = ip_address("fd00::1")


def session(address: Any = TOR, *, up: bool = True, state: Any = "", error: str = "", name: str = "tor") -> PeerStatus:
    here = ip_address("10.0.0.11" if address.version == 4 else "fd00::11")
    view = PeerView(
        SessionKey(address, here), Session(state or ("up" if up else "down"), announced=2, last_reason=error)
    )
    return PeerStatus(name, view, 2, name)


WELL = AgentStatus(
    "a", "0.1.0", started=STARTED, rounds=Rounds().after(0.01), peers=(session(),), egress=EgressStatus(datapath=True),
    generation=7,
)  # fmt: skip


def health(
    status: AgentStatus = WELL, snapshot: Snapshot | None = None, enabled: Enabled = BOTH, age: float = 60.0
) -> dict[str, Any]:
    return node_health(status, snapshot or cluster.snapshot(), enabled, age)


def conditions(status: AgentStatus = WELL, **more: Any) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in health(status, **more)["conditions"]}


def message(kind: str, status: AgentStatus, **more: Any) -> str:
    return next(str(each["message"]) for each in health(status, **more)["conditions"] if each["type"] == kind)


def refused(name: str, reason: str) -> AgentStatus:
    return replace(WELL, refusals=(Refusal(Ref.parse(name), reason, f"why {reason}"),))


def test_a_node_that_leaves_is_well_and_says_so() -> None:
    assert "Drained" not in conditions()
    draining = replace(WELL, drain=Departure("draining", "Drained", "it is drained", ("the routers", "a peer")))
    found = conditions(draining)
    assert (found["Drained"], found["Ready"]) == (("False", "Drained"), ("True", "Ready"))
    assert message("Drained", draining) == "it is drained; waits for: the routers; a peer"
    assert conditions(replace(WELL, drain=Departure("drained", "Cordoned")))["Drained"] == ("True", "Cordoned")


def test_a_node_that_is_well() -> None:
    assert health() == {
        "generation": 7,
        "peers": [{"address": "10.0.0.1", "localAddress": "10.0.0.11", "name": "tor", "state": "up", "paths": 2}],
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Ready", "message": ""},
            {"type": "StoreSynced", "status": "True", "reason": "Synced", "message": ""},
            {"type": "DatapathAttached", "status": "True", "reason": "Attached", "message": ""},
            {"type": "BGPEstablished", "status": "True", "reason": "Established", "message": "1 of 1 sessions are up"},
        ],
    }


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (replace(WELL, missing=("pods",)), "StoreSynced", "NotSynced"),
        (refused("store/pods", "Stale"), "StoreSynced", "Stale"),
        (refused("ConfigMap/kube-system/bgp-config", "ConfigRefused"), "StoreSynced", "ConfigRefused"),
        (replace(WELL, egress=EgressStatus()), "DatapathAttached", "NotAttached"),
        (replace(WELL, rounds=WELL.rounds.after(0.1, error="egress: map full")), "DatapathAttached", "RoundFailed"),
        (replace(WELL, peers=(session(up=False),)), "BGPEstablished", "SessionDown"),
    ],
)
def test_what_is_wrong_shows_in_its_condition_and_in_ready_alone(status: AgentStatus, kind: str, reason: str) -> None:
    expected = {**conditions(), kind: ("False", reason), "Ready": ("False", reason)}
    assert conditions(status) == expected
    assert message("Ready", status) == message(kind, status) != ""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("node/a", "NoTunnelEndpoint"), ("uplink/eth9", "UplinkMissing"), ("path/2001:db8::1/128", "NoNextHop"),
        ("bgp", "WithdrawalHeld"), ("peer/tor", "DuplicatePeer"),
    ],
)  # fmt: skip
def test_a_refusal_of_the_node_itself_makes_it_unready(name: str, reason: str) -> None:
    found = conditions(refused(name, reason))
    assert found.pop("Ready") == ("False", reason)
    assert {status for status, _ in found.values()} == {"True"}
    assert message("Ready", refused(name, reason)) == f"{name}: why {reason}"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("svc/default/web", "NoLocalEndpoints"), ("EgressPolicy/web", "NoGroup"), ("AddressPool/x", "Conflicting"),
        ("egress/198.51.100.7", "NoGateway"), ("pod-address/10.1.11.2", "PodDeviceMissing"),
        ("RouterdNode/a", "ReportFailed"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_one_object_is_told_there(name: str, reason: str) -> None:
    assert health(refused(name, reason)) == health()


def test_a_warning_of_the_node_itself_is_told_and_leaves_it_ready() -> None:
    warned = refused("node/a", "ForwardingOff")
    assert conditions(warned) == conditions()
    assert message("Ready", warned) == "node/a: why ForwardingOff"


def test_what_a_configuration_says_of_a_peer_that_works_makes_no_node_unready() -> None:
    status = refused("peer/tor", "BFDNotSupported")
    assert health(status, cluster.snapshot(refusals=status.refusals)) == health()


def test_a_refused_configuration_file_makes_it_unready() -> None:
    status = replace(WELL, config=ConfigStatus(stale=True, error="routerd.yaml:3: unknown key"))
    assert conditions(status)["Ready"] == ("False", "ConfigurationRefused")
    assert message("Ready", status) == "routerd.yaml:3: unknown key"


def test_of_several_the_first_is_told_from_which_the_others_follow() -> None:
    status = replace(
        refused("node/a", "UnknownNode"),
        peers=(),
        egress=EgressStatus(),
        rounds=WELL.rounds.after(0.1),
        config=ConfigStatus(stale=True),
    )
    assert conditions(status)["Ready"] == ("False", "UnknownNode")
    assert conditions(status)["BGPEstablished"] == ("Unknown", "UnknownNode")
    missing = replace(status, missing=("nodes",), refusals=())
    assert conditions(missing)["Ready"] == ("False", "NotSynced")
    assert conditions(missing)["BGPEstablished"] == ("Unknown", "NotSynced")


def test_a_session_that_is_down_says_why_and_announces_nothing() -> None:
    down = session(OTHER, up=False, error="hold timer expired", name="spine")
    found = health(replace(WELL, peers=(down, session())))
    assert found["peers"] == [
        {"address": "10.0.0.1", "localAddress": "10.0.0.11", "name": "tor", "state": "up", "paths": 2},
        {
            "address": "fd00::1",
            "localAddress": "fd00::11",
            "name": "spine",
            "state": "down",
            "paths": 0,
            "message": "hold timer expired",
        },
    ]
    assert message("BGPEstablished", replace(WELL, peers=(down, session()))) == (
        "1 of 2 sessions are up; spine: hold timer expired"
    )


def test_bfd_of_a_peer_is_told_as_up_or_down() -> None:
    """Whoever goes between down and init each second writes nothing to the API server."""
    for state, told in (("up", "up"), ("init", "down"), ("down", "down")):
        watched = Watched(TOR, TOR, state, 5.0, 0, False, "up", 50_000, 150_000, "")
        up = session()
        found = health(replace(WELL, peers=(replace(up, view=replace(up.view, bfd=watched)),)))
        assert found["peers"] == [
            {"address": "10.0.0.1", "localAddress": "10.0.0.11", "name": "tor", "state": "up", "bfd": told, "paths": 2}
        ]


def test_an_error_of_the_past_is_not_told_of_a_session_that_is_up() -> None:
    assert health(replace(WELL, peers=(session(error="hold timer expired"),))) == health()


def test_without_a_speaker_no_session_is_known() -> None:
    gone = replace(refused("speaker", "NoSpeaker"), peers=(session(up=False, state="unknown"),))
    assert conditions(gone)["BGPEstablished"] == ("False", "NoSpeaker")
    assert health(gone)["peers"][0]["message"] == "no speaker is connected"


def test_a_peer_to_which_no_session_is_opened_is_told_too() -> None:
    peers = (Peer(TOR, 1, 1, name="tor"), Peer(OTHER, 1, 1, name="far"), Peer(TOR, 1, 1, name="again"))
    refusals = (
        Refusal(Ref.parse("peer/far"), "NoRoute", "no route"),
        Refusal(Ref.parse("peer/again"), "DuplicatePeer", "twice"),
    )
    status = replace(WELL, refusals=refusals)
    snapshot = cluster.snapshot(bgp=Peering(peers))
    assert health(status, snapshot)["peers"][1:] == [
        {"address": "fd00::1", "localAddress": "", "name": "far", "state": "refused", "paths": 0, "message": "no route"}
    ]
    assert conditions(status, snapshot=snapshot)["BGPEstablished"] == ("False", "NoRoute")


def test_a_node_without_peers_has_every_session_that_it_should() -> None:
    assert conditions(replace(WELL, peers=()))["BGPEstablished"] == ("True", "NoPeers")


def test_what_is_switched_off_is_not_told() -> None:
    only_bgp = health(replace(WELL, egress=EgressStatus()), enabled=Enabled(egress=False))
    assert [each["type"] for each in only_bgp["conditions"]] == ["Ready", "StoreSynced", "BGPEstablished"]
    assert only_bgp["conditions"][0]["status"] == "True"
    only_egress = health(replace(WELL, peers=()), enabled=Enabled(bgp=False))
    assert [each["type"] for each in only_egress["conditions"]] == ["Ready", "StoreSynced", "DatapathAttached"]
    assert "peers" not in only_egress


def test_for_a_moment_after_a_start_only_good_is_told() -> None:
    down = replace(WELL, peers=(session(up=False),))
    assert health(down, age=GRACE - 1) == {}
    assert health(WELL, age=0.5) == health()
    assert health(down, age=GRACE)["conditions"][0]["status"] == "False"


def test_a_generation_that_is_not_known_is_not_told() -> None:
    assert "generation" not in health(replace(WELL, generation=None))


def test_a_message_has_an_end() -> None:
    long = replace(WELL, peers=(session(up=False, error="x" * 5000),))
    assert len(health(long)["peers"][0]["message"]) == len(message("Ready", long)) == 1024


def test_a_pods_device_is_told_of_the_pod() -> None:
    """Of an address that is no pod's any more, and what is no device's, nothing is."""
    (pod,) = (cluster.snapshot().pods or {}).values()
    status = refused(f"pod-address/{pod.addresses[0]}", "DeviceUnhooked")
    former = replace(pod, name="job", finished=True)  # which had its address before
    snapshot = cluster.snapshot(pods={pod.key: pod, former.key: former})
    ((told, message),) = [(str(each.object), each.message) for each in of_pods(status, snapshot)]
    assert (told, message) == ("Pod/default/web-1", "why DeviceUnhooked")
    for name, reason in (("pod-address/10.9.9.9", "DeviceUnhooked"), ("pod-address/10.1.11.2", "PodDeviceMissing")):
        assert of_pods(refused(name, reason), cluster.snapshot()) == ()
