"""Stories of addresses and gateways over time. Each step is an edit or a wait, then what the operator publishes."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from ipam.pool import Counts
from routerd.model import Advertisement, Allocations, Peer, PoolWays
from tests.models.operator_world import World


def lines(text: str) -> str:
    """A block of text without its indentation."""
    return "\n".join(line.strip() for line in text.strip().splitlines())


def test_pool_edited() -> None:
    """Widened, narrowed, renamed: nobody moves. What is stranded stays, and the pool says so, until it is drained."""
    world = World()
    world.pool("a", "192.0.2.8/29")
    world.service("web")
    world.service("db")
    two = lines("""
        d/db a 192.0.2.8
        d/web a 192.0.2.9
    """)
    assert world.decide() == two
    world.edit_pool("a", "192.0.2.0/24")
    assert world.decide() == two

    world.edit_pool("a", "192.0.2.8/32", "198.51.100.0/24")
    assert world.decide() == two + "\n" + (
        "! AddressPool/a AddressesStranded: new config not compatible with assigned IPs: "
        'svc/d/web cannot own ["192.0.2.9"] under new config; they keep them: restore the blocks, '
        "release the owners, or mark the pool disabled to move them"
    )
    world.edit_pool("a", "192.0.2.8/29")
    assert world.decide() == two

    world.pools.clear()
    world.pool("b", "192.0.2.0/24")
    assert world.decide() == two.replace(" a ", " b ")

    world.pool("c", "203.0.113.0/24")
    world.edit_pool("b", "192.0.2.8/32", disabled=True)
    assert world.decide() == lines("""
        d/db b 192.0.2.8
        d/web c 203.0.113.0
    """)


def test_a_pool_that_services_ask_for_is_split_renamed_and_deleted() -> None:
    """It is the pools that were edited, and no service: all keep what they have, and are told what they should ask."""
    world = World()
    world.pool("a", "192.0.2.0/28")
    world.service("one", requested_pool="a", ips="192.0.2.1")
    world.service("two", requested_pool="a", ips="192.0.2.9")
    world.decide()
    world.service("one", requested_pool="a")
    world.service("two", requested_pool="a")
    kept = lines("""
        d/one a 192.0.2.1
        d/two a 192.0.2.9
    """)
    assert world.decide() == kept
    world.edit_pool("a", "192.0.2.0/29")
    world.pool("b", "192.0.2.8/29")
    assert world.decide() == kept + "\n" + lines("""
        ! svc/d/two NotInPool: "192.0.2.9" lies in pool "b" now, not in "a" as requested: it is kept; request pool "b"
    """)
    world.service("two", requested_pool="b")
    assert world.decide() == kept.replace("two a", "two b")

    world.pools.clear()
    world.pool("z", "192.0.2.0/24")
    unknown = lines("""
        ! svc/d/one UnknownPool: unknown pool "a"
        ! svc/d/two UnknownPool: unknown pool "b"
    """)
    assert world.decide() == kept.replace("two a", "two b") + "\n" + unknown
    world.pools.clear()
    assert world.decide().startswith(kept.replace("two a", "two b"))
    world.pool("c", "203.0.113.0/24")
    world.service("two", requested_pool="c")
    assert "d/two c 203.0.113.0" in world.decide()


def test_a_pool_over_the_nodes_own_network_gives_what_is_nobodys() -> None:
    """Nodes, the ToR, the network's own addresses and a next hop are left out; asked for, they are refused by name."""
    world = World()
    world.pool("lan", "10.0.0.0/28")
    world.peers = (Peer(ip_address("10.0.0.1"), 64512, 64513),)
    world.node("n1", addresses=(ip_address("10.0.0.3"),))
    world.node("n2", addresses=(ip_address("10.0.0.4"),))
    world.report("n1", "10.0.0.3", "10.0.0.5", networks="10.0.0.0/29 10.0.0.9/32")
    for number in range(8):
        world.service(f"s{number}")
    assert world.decide() == lines("""
        d/s0 lan 10.0.0.2
        d/s1 lan 10.0.0.6
        d/s2 lan 10.0.0.8
        d/s3 lan 10.0.0.10
        d/s4 lan 10.0.0.11
        d/s5 lan 10.0.0.12
        d/s6 lan 10.0.0.13
        d/s7 lan 10.0.0.14
    """)
    assert world.last is not None
    assert world.last.counts["lan"] == Counts(total=16, free=1, used=8, cooling=0, reserved=7)
    for name, address in {"a": "10.0.0.1", "b": "10.0.0.4", "c": "10.0.0.5", "d": "10.0.0.7", "e": "10.0.0.9"}.items():
        world.service(name, ips=address)
    assert [line for line in world.decide().splitlines() if line.startswith("!")] == [
        f'! svc/d/{name} AddressTaken: "{address}" is {whose}: request another address'
        for name, address, whose in (
            ("a", "10.0.0.1", "the address of peer/10.0.0.1"),
            ("b", "10.0.0.4", "an address of node/n2"),
            ("c", "10.0.0.5", "on an interface of node/n1"),
            ("d", "10.0.0.7", "the broadcast address of the network 10.0.0.0/29 of node/n1"),
            ("e", "10.0.0.9", "a next hop of node/n1"),
        )
    ]


def test_an_address_that_becomes_a_nodes_stays_with_its_service_and_both_are_told() -> None:
    world = World()
    world.pool("lan", "10.0.0.0/28")
    world.service("web")
    assert world.decide() == "d/web lan 10.0.0.0"
    world.node("n1", addresses=(ip_address("10.0.0.0"),))
    assert world.decide() == lines("""
        d/web lan 10.0.0.0
        ! svc/d/web AddressTaken: "10.0.0.0" is an address of node/n1: give one of the two another
    """)


def test_an_address_that_a_node_has_on_an_interface_because_it_was_given_is_no_nodes() -> None:
    """kube-proxy in IPVS mode puts VIPs on an interface of every node."""
    world = World()
    world.pool("a", "192.0.2.0/28")
    world.service("web")
    assert world.decide() == "d/web a 192.0.2.0"
    world.node("n1", reports="192.0.2.0")
    assert world.decide() == "d/web a 192.0.2.0"
    world.lose_file()
    world.allocations = Allocations()
    world.service("web", status="192.0.2.0")
    world.service("a")
    assert world.decide() == "d/a a 192.0.2.1\nd/web a 192.0.2.0"


def test_a_pool_in_what_the_cluster_gives_itself() -> None:
    world = World(service_cidrs=(ip_network("10.96.0.0/28"),))
    world.pool("p", "10.96.0.0/27")
    world.pool("q", "10.244.0.0/30")
    world.node("n1", pod_cidrs=(ip_network("10.244.0.0/16"),))
    world.service("web")
    world.service("asks", ips="10.244.0.1")
    world.service("wants", requested_pool="q")
    assert world.decide() == lines("""
        d/web p 10.96.0.16
        ! AddressPool/p PoolOverCluster: 10.96.0.0/28 is in the service CIDR 10.96.0.0/28: it is not given; \
take it out of the pool
        ! AddressPool/q PoolOverCluster: 10.244.0.0/30 is in the pod CIDR 10.244.0.0/16 of node/n1: it is not given; \
take it out of the pool
        ! svc/d/asks AddressTaken: "10.244.0.1" is in the pod CIDR 10.244.0.0/16 of node/n1: request another address
        ! svc/d/wants PoolExhausted: no available IPs in pool "q" for IPv4 IPFamily: add a block, or release \
addresses; 4 of its addresses are not given, as 10.244.0.0 is in the pod CIDR 10.244.0.0/16 of node/n1
    """)


def test_cluster_ips_pods_and_what_other_controllers_gave_are_not_given_again() -> None:
    world = World()
    world.pool("p", "10.0.0.0/29")
    world.service("a", cluster_ips=(ip_address("10.0.0.0"),))
    world.service("b", load_balancer_class="example.com/other", status="10.0.0.1")
    assert world.decide() == lines("""
        d/a p 10.0.0.2
        ! AddressPool/p PoolOverCluster: 10.0.0.0, the ClusterIP of svc/d/a, lies in the pool, and any of its other \
addresses may become one: take the service CIDR out of the pool, and name it in service-cidrs
    """)


def test_the_pool_of_an_egress_policy_is_renamed_split_and_deleted() -> None:
    world = World()
    world.node("g")
    world.pool("a", "198.51.100.0/29")
    world.policy("one", pool="a")
    world.policy("two", pool="a")
    group = lines("""
        group 1 198.51.100.0 EgressPolicy/one via g
        group 2 198.51.100.1 EgressPolicy/two via g
    """)
    assert world.decide() == group
    world.edit_pool("a", "198.51.100.0/32")
    world.pool("b", "198.51.100.1/32")
    assert world.decide().startswith(group)
    assert [each.pool for each in world.allocations.groups] == ["a", "a"]
    world.pools = {"z": replace(world.pools["a"], name="z", blocks=(ip_network("198.51.100.0/28"),))}
    assert world.decide().startswith(group)
    world.pools.clear()
    assert world.decide().startswith(group)
    world.policy("two", pool="z")
    world.pool("z", "203.0.113.8/32")
    assert "group 3 203.0.113.8 EgressPolicy/two via g" in world.decide()


def test_how_a_pool_is_announced_is_published_until_nobody_has_an_address_of_it() -> None:
    world = World()
    ways = (Advertisement(24, communities=("64512:1",)),)
    world.pool("a", "192.0.2.0/24", advertisements=ways)
    world.pool("lan", "198.51.100.0/24", protocol="layer2", advertisements=())
    world.pool("plain", "203.0.113.0/24")
    for pool in world.pools:
        world.service(f"of-{pool}", requested_pool=pool)
    world.decide()
    published = (PoolWays("a", advertisements=ways), PoolWays("lan", "layer2", ()))
    assert world.allocations.pools == published
    world.pools.clear()
    world.decide()
    assert world.allocations.pools == published
    del world.services["d/of-a"]
    world.decide()
    assert world.allocations.pools == published[1:]


def test_switching_on_avoid_buggy_ips_moves_nobody() -> None:
    world = World()
    world.pool("a", "192.0.2.0/24")
    world.service("web")
    assert world.decide() == "d/web a 192.0.2.0"
    world.edit_pool("a", avoid_buggy_ips=True)
    assert world.decide() == "d/web a 192.0.2.0"


def test_restart_does_not_move_vips() -> None:
    """With the ledger, or with what was published, or with the status of the services only."""
    world = World()
    world.pool("a", "192.0.2.0/24")
    world.node("g")
    world.service("one")
    world.service("two")
    world.policy("out", pool="a")
    world.decide()
    del world.services["d/one"]
    world.decide()
    before = world.decide(31)
    assert before == lines("""
        d/two a 192.0.2.2
        group 1 192.0.2.0 EgressPolicy/out via g
    """)
    generation = world.allocations.generation
    world.lose_file()
    world.service("a-new-one")
    assert world.decide() == "d/a-new-one a 192.0.2.1\n" + before
    assert world.allocations.generation == generation + 1

    fresh = World(services=dict(world.services), pools=dict(world.pools))
    fresh.service("two", status="192.0.2.2")
    fresh.service("a-new-one", status="192.0.2.1")
    fresh.service("early")
    assert fresh.decide() == lines("""
        d/a-new-one a 192.0.2.1
        d/early a 192.0.2.0
        d/two a 192.0.2.2
    """)


SHARED = lines("""
    d/new p 192.0.2.5
    d/old p 192.0.2.5
""")


def sharing() -> World:
    world = World()
    world.pool("p", "192.0.2.0/28")
    world.service("old", 80, sharing_key="k", ips="192.0.2.5")
    world.decide()
    world.service("new", 443, sharing_key="k", ips="192.0.2.5")
    assert world.decide(5) == SHARED
    for name, port in (("old", 80), ("new", 443)):
        world.service(name, port, sharing_key="k")
    assert world.decide(5) == SHARED
    return world


def test_of_two_services_that_share_the_one_that_was_edited_is_denied() -> None:
    """It keeps the address as it was granted, also while the operator restarts; the other one notices nothing."""
    world = sharing()
    world.service("old", 80, sharing_key="other")
    told = lines("""
        ! svc/d/old AddressInUse: can't change sharing key for "192.0.2.5", address also in use by d/new; \
it is kept as it was
    """).replace("by d/new", "by svc/d/new")
    assert world.decide() == f"{SHARED}\n{told}"
    assert world.decide(100) == f"{SHARED}\n{told}"
    world.service("third", 25, sharing_key="k", ips="192.0.2.5")
    assert world.decide() == f"{SHARED}\nd/third p 192.0.2.5\n{told.replace('svc/d/new', 'svc/d/new,svc/d/third')}"
    del world.services["d/third"], world.services["d/new"]
    assert world.decide() == "d/old p 192.0.2.5"
    world.service("new", 443, sharing_key="k")
    assert world.decide() == "d/new p 192.0.2.0\nd/old p 192.0.2.5"


def test_who_takes_the_port_of_another_leaves_the_address() -> None:
    """Else it would get the other's traffic. It is served anew, or refused where it asks for that very address."""
    world = sharing()
    world.service("old", 443, sharing_key="k")
    assert world.decide() == "d/new p 192.0.2.5\nd/old p 192.0.2.0"

    world = sharing()
    world.service("old", 443, sharing_key="k", ips="192.0.2.5")
    assert world.decide() == lines("""
        d/new p 192.0.2.5
        ! svc/d/old PortInUse: port tcp/443 is already in use on "192.0.2.5"
    """)


def test_who_changes_its_pods_under_local_leaves_the_address() -> None:
    world = sharing()
    world.service("old", 80, sharing_key="k", external_traffic_policy="Local", selector={"app": "old"})
    assert world.decide() == "d/new p 192.0.2.5\nd/old p 192.0.2.0"


def test_who_is_left_alone_with_an_address_has_its_edit_at_once() -> None:
    """One is denied another key as the other is there, and the other leaves for its own edit."""
    world = sharing()
    world.service("new", 443)
    assert "svc/d/new AddressInUse" in world.decide()
    world.service("old", 443)
    assert world.decide() == "d/new p 192.0.2.5\nd/old p 192.0.2.0"
    assert [record.use for record in world.ledger.addresses] == [None, None]
    ledger = world.ledger
    world.decide()
    assert world.ledger == ledger


def test_services_that_exchange_their_ports_in_one_edit_stay() -> None:
    world = sharing()
    world.service("old", 443, sharing_key="k")
    world.service("new", 80, sharing_key="k")
    assert world.decide() == SHARED
    world.service("old", 443, sharing_key="z")
    world.service("new", 80, sharing_key="z")
    assert world.decide() == SHARED


def test_a_policy_whose_edit_is_refused_goes_on_sharing_what_it_had() -> None:
    world = World()
    world.node("g")
    world.service("web", ips="198.51.100.9")
    world.pool("p", "198.51.100.0/24", uses="loadbalancer")
    world.policy("a", "203.0.113.9")
    world.policy("b", "203.0.113.9")
    before = world.decide()
    world.policy("a", "198.51.100.9")
    assert before.splitlines()[1] in world.decide(5).splitlines()


def test_status_is_not_believed_against_the_ledger() -> None:
    world = World()
    world.pool("a", "192.0.2.0/24")
    world.service("web")
    world.decide()
    world.service("web", status="192.0.2.7")
    world.service("thief", status="192.0.2.0")
    assert world.decide() == lines("""
        d/thief a 192.0.2.1
        d/web a 192.0.2.0
    """)


def test_policy_removed_and_back_gets_the_same_address() -> None:
    """An egress IP stays with the policy's name until it is released; nobody else gets it before it has cooled down."""
    world = World()
    world.pool("a", "192.0.2.0/31")
    world.node("g")
    world.policy("out", pool="a")
    first = world.decide()
    assert first == "group 1 192.0.2.0 EgressPolicy/out via g"
    policy = world.policies.pop("EgressPolicy/out")
    assert world.decide() == "group 1 192.0.2.0  via g", "for what runs"
    world.policy("other", pool="a")
    world.policy("greedy", "192.0.2.0")
    assert world.decide(10**6) == lines("""
        group 2 192.0.2.1 EgressPolicy/other via g
        ! EgressPolicy/greedy AddressReserved: "192.0.2.0" is reserved for EgressPolicy/out; \
"routerd release 192.0.2.0" frees it
    """)
    del world.policies["EgressPolicy/greedy"]
    world.policies[policy.key] = policy
    assert "192.0.2.0 EgressPolicy/out via g" in world.decide()
    assert world.release("192.0.2.0") == 0, "in use"

    del world.policies[policy.key]
    world.decide()
    world.policy("third", pool="a")
    assert "! EgressPolicy/third PoolExhausted" in world.decide()
    assert world.release("EgressPolicy/out") == 1
    assert "! EgressPolicy/third PoolExhausted" in world.decide(3599), "flows may still have it"
    world.decide(1)
    assert "192.0.2.0 EgressPolicy/third via g" in world.decide()


def test_a_policy_that_changes_its_pool_can_come_back() -> None:
    world = World()
    world.pool("a", "192.0.2.0/24")
    world.pool("b", "198.51.100.0/24")
    world.node("g")
    world.policy("out", pool="a")
    world.decide()
    world.policy("out", pool="b")
    assert "198.51.100.0 EgressPolicy/out" in world.decide()
    world.service("web", requested_pool="a")
    world.policy("out", pool="a")
    assert world.decide(100) == lines("""
        d/web a 192.0.2.1
        group 1 192.0.2.0 EgressPolicy/out via g
        group 2 198.51.100.0  via g
    """)


def test_a_service_that_is_replaced_gets_its_address_back() -> None:
    world = World()
    world.pool("a", "192.0.2.0/24")
    world.service("a")
    world.service("web")
    before = world.decide()
    service = world.services.pop("d/web")
    world.decide(5)
    world.service("other")
    world.decide(5)
    world.services[service.key] = service
    assert world.decide(5) == before.replace("d/web", "d/other a 192.0.2.2\nd/web")


def test_gateway_node_not_ready() -> None:
    """Only the nodes behind the lost one move up; back again, it has its place."""
    world = World()
    for name in ("g1", "g2", "g3"):
        world.node(name)
    world.node("worker", None)
    world.policy("out", "198.51.100.7")
    assert world.decide() == "group 1 198.51.100.7 EgressPolicy/out via g1 g2 g3"
    world.node("g1", ready=False)
    assert world.decide() == "group 1 198.51.100.7 EgressPolicy/out via g2 g3"
    world.node("g2", unschedulable=True)
    assert world.decide() == "group 1 198.51.100.7 EgressPolicy/out via g2 g3"
    world.node("g2", network_unavailable=True)
    world.node("g3", "false")
    assert world.decide().splitlines() == [
        "group 1 198.51.100.7 EgressPolicy/out via g2",
        "! EgressPolicy/out NoGateway: no node with label routerd.io/egress-gateway is ready (g1, g2): until one is, "
        "g2 stays",
    ]
    world.node("g2", ready=False, fenced=True)
    group, refusal = world.decide().splitlines()
    assert group == "group 1 198.51.100.7 EgressPolicy/out via none"
    assert refusal.startswith(
        "! EgressPolicy/out NoGateway: no node with label routerd.io/egress-gateway is ready (g1, g2)"
    )
    world.node("g1")
    assert world.decide() == "group 1 198.51.100.7 EgressPolicy/out via g1"


def test_gateways_that_are_all_cut_off_from_the_api_server_stay() -> None:
    """Their nodes are not ready, and what they do goes on; one that is back is preferred."""
    world = World()
    for name in ("g1", "g2"):
        world.node(name)
    world.policy("out", "198.51.100.7")
    both = world.decide()
    for name in ("g1", "g2"):
        world.node(name, ready=False)
    assert world.decide().splitlines()[0] == both
    world.node("g2")
    assert world.decide() == "group 1 198.51.100.7 EgressPolicy/out via g2"


def test_a_gateway_that_drains_gives_its_groups_to_others() -> None:
    """Unless there is none: the last one keeps them. Undrained, it has its place back."""
    world = World()
    world.node("g1")
    world.node("g2")
    world.policy("out", "198.51.100.7")
    assert world.decide() == "group 1 198.51.100.7 EgressPolicy/out via g1 g2"
    world.node("g1", draining=True)
    only = "group 1 198.51.100.7 EgressPolicy/out via g2"
    assert world.decide() == only
    world.node("g2", draining=True)
    assert world.decide() == only, "g1 has left, and may be off at any moment"
    world.node("g2", ready=False, draining=True)
    assert world.decide() == "group 1 198.51.100.7 EgressPolicy/out via g1", "better than none"
    world.node("g1")
    world.node("g2")
    assert world.decide() == "group 1 198.51.100.7 EgressPolicy/out via g1 g2"


def test_the_node_that_holds_the_address_is_the_gateway() -> None:
    """A legacy egressSourceIP on a node's interface: that node alone, ready or not, whatever the labels say."""
    world = World()
    world.node("g1")
    world.node("owner", None, reports="192.168.33.100 192.168.33.12")
    world.policy("sample", "192.168.33.100")
    alone = "group 1 192.168.33.100 EgressPolicy/sample via owner node-address"
    assert world.decide() == alone
    world.node("owner", None, reports="192.168.33.100 192.168.33.12", ready=False)
    assert world.decide() == alone

    world.node("second", None, reports="192.168.33.100")
    assert world.decide() == alone, "it is on two nodes: the one that is the gateway stays"
    world.node("owner", None, reports="192.168.33.12")
    assert world.decide() == alone.replace("owner", "second")

    world.node("second", None)
    assert world.decide() == "group 1 192.168.33.100 EgressPolicy/sample via g1"


def test_a_nodes_own_address_is_not_kept_for_a_policy_that_is_gone() -> None:
    world = World()
    world.node("owner", None, reports="192.168.33.100")
    world.policy("sample", "192.168.33.100")
    world.decide()
    world.policies.clear()
    world.policy("renamed", "192.168.33.100")
    assert world.decide() == "group 1 192.168.33.100 EgressPolicy/renamed via owner node-address"


def test_node_status_counts_until_the_node_has_reported() -> None:
    world = World()
    world.node("g")
    world.node("owner", None, reports=None, addresses=tuple(map(ip_address, ("10.0.0.9", "192.168.33.100"))))
    world.policy("sample", "192.168.33.100")
    assert "via owner node-address" in world.decide()


def test_a_legacy_address_waits_for_the_nodes_to_say_who_holds_it() -> None:
    """Else it would be announced from a labelled gateway for a moment, and then belong to the node that holds it."""
    world = World()
    world.node("g1", reports=None)
    world.node("owner", None, reports=None)
    world.policy("sample", "192.168.33.100")
    waiting = "waiting for the agents of {} to report which addresses they hold"
    assert world.decide() == lines(f"""
        group 1 192.168.33.100 EgressPolicy/sample via none
        ! EgressPolicy/sample AwaitingNodeReports: {waiting.format("g1, owner")}
    """)
    world.node("owner", None, reports="192.168.33.100")
    assert world.decide(1) == "group 1 192.168.33.100 EgressPolicy/sample via owner node-address"


def test_a_node_that_never_reports_does_not_hold_up_a_policy_for_good() -> None:
    world = World()
    world.node("g1")
    world.node("silent", None, reports=None)
    world.policy("sample", "192.168.33.100")
    assert "AwaitingNodeReports" in world.decide()
    assert world.last is not None
    assert world.last.next_due == world.now + 15
    assert world.decide(15) == "group 1 192.168.33.100 EgressPolicy/sample via g1"


def test_a_policy_does_not_wait_longer_for_nodes_when_the_clock_is_set_back() -> None:
    world = World(now=10_000.0)
    world.node("g1")
    world.node("silent", None, reports=None)
    world.policy("sample", "192.168.33.100")
    assert "AwaitingNodeReports" in world.decide()
    world.now -= 3600.0
    assert "AwaitingNodeReports" in world.decide()
    assert world.decide(15) == "group 1 192.168.33.100 EgressPolicy/sample via g1"


def test_the_clock_is_set_back() -> None:
    """What cools down waits for 30 s from now, not until the old time comes again."""
    world = World(now=10**9)
    world.pool("a", "192.0.2.0/32")
    world.service("one")
    world.decide()
    world.services.clear()
    world.decide()
    world.service("two")
    world.now = 500.0
    assert "PoolExhausted" in world.decide()
    assert world.decide(30) == "d/two a 192.0.2.0"


def test_a_retired_group_keeps_its_number_for_a_while() -> None:
    world = World()
    world.node("g1")
    world.node("g2")
    world.policy("out", "198.51.100.7")
    world.decide()
    policy = world.policies.pop("EgressPolicy/out")
    world.decide()
    world.node("g1", ready=False)
    world.policies[policy.key] = policy
    assert world.decide(50) == "group 1 198.51.100.7 EgressPolicy/out via g2"
    world.policies.clear()
    world.decide()
    world.decide(3600)
    world.decide()
    assert world.last is not None and world.last.next_due == world.now + 100, "nothing has run by it for so long"
    world.decide(100)
    assert world.ledger.groups == ()
    world.policies[policy.key] = policy
    assert world.decide() == "group 2 198.51.100.7 EgressPolicy/out via g2"


def test_who_asks_for_no_address_by_a_mistake_keeps_what_it_has_and_gets_no_other() -> None:
    world = World()
    world.pool("a", "192.0.2.0/28")
    world.service("web", ips="192.0.2.5")
    assert world.decide() == "d/web a 192.0.2.5"
    world.services["d/web"] = replace(world.services["d/web"], requested_ips=(), unread_wishes=True)
    world.service("new", unread_wishes=True)
    assert world.decide(10**6).splitlines()[0] == "d/web a 192.0.2.5"
    assert [each.service for each in world.allocations.services] == ["d/web"]
