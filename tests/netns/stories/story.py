"""The demo's scenes: each does one thing, returns its evidence, and raises StoryFailed if a claim does not hold."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.netns.lab import cluster
from tests.netns.lab.capture import SourceWatch
from tests.netns.lab.daemons import Daemons, attached, resident
from tests.netns.lab.hosts import Answer, Host
from tests.netns.lab.kubeproxy import Backend, ServiceEntry, ruleset
from tests.netns.lab.lab import FW_ADDRESS, POD_NETWORK, TOR_ADDRESS, TOR_AS, Lab
from tests.netns.lab.stores import Files, Manifests
from tests.netns.lab.transcript import Row, StoryFailed
from tests.waiting import WaitTimeout

VIP_POOL = "192.0.2.0/24"  # of bgp-config-cilium-1.10.yaml
EGRESS_IP = "10.168.60.100"  # of egress-gateway-policy-cilium-v2.yaml
EGRESS_POOL = "10.168.61.0/28"  # of egress-two-gateways.yaml
OLD_DB, OLD_DB_NETWORK, OLD_EGRESS_IP = "192.168.33.13", "192.168.33.0/24", "192.168.33.100"  # of egress-nat-policy-…
TWO_GATEWAYS = "egress-two-gateways.yaml"
MIB = 1 << 20


@dataclass(slots=True)
class Story:
    """What scenes share. Times are monotonic seconds."""

    lab: Lab
    daemons: Daemons
    begin: float
    manifests: Manifests
    watch: SourceWatch | None = None
    vip: str = ""
    pool_ip: str = ""  # the egress IP that the operator took from the pool
    ready_in: dict[str, float] = field(default_factory=dict)  # node -> from start of its agent to ready
    edits: list[float] = field(default_factory=list)
    built_in: float = 0.0

    def summary(self) -> list[Row]:
        """The table's rows, of what has been reached."""
        rows: list[Row] = [Row("lab built", f"{self.built_in:.1f} s")]
        if self.ready_in:
            slowest = max(self.ready_in, key=lambda node: self.ready_in[node])
            what = f"agent start to session up, datapath attached ({slowest})"
            rows.append(Row(what, f"{self.ready_in[slowest]:.1f} s", "< 3 s", "note"))
        if self.edits:
            rows.append(Row("policy edited to effect, slower of two", f"{max(self.edits) * 1000:.0f} ms"))
        rows += memory(self.daemons)
        if self.watch is not None:
            verdict = self.watch.settle()
            rows.append(Row("packets seen at the ToR's links", f"{verdict.packets} packets"))
            rows.append(Row("packets the capture lost", f"{verdict.lost} packets", "= 0 packets", "claim"))
            leaks = f"{verdict.leaks.total()} packets"
            rows.append(Row("of selected pods, with another source", leaks, "= 0 packets", "claim"))
        return rows


def started(lab: Lab, daemons: Daemons | None = None, manifests: Manifests | None = None) -> Story:
    """The demo's cluster: operator, speakers and agents, sessions up, VIP and egress IPs announced and in use.

    `manifests`: by files unless said.
    """
    story = Story(lab, daemons or Daemons(lab), time.monotonic(), manifests or Files(lab))
    for scene in (build, write_manifests, sessions_up, tor_table, fetch_vip, egress_in_use):
        scene(story)
    return story


def memory(daemons: Daemons) -> list[Row]:
    """Resident memory, of the largest of each kind."""
    agents = {node: daemon.resident() for node, daemon in daemons.agents.items()}
    exabgp = {node: exabgp_memory(daemon.tree()) for node, daemon in daemons.speakers.items()}
    rows: list[Row] = []
    for what, sizes, bar in (("agent", agents, "< 120 MiB"), ("ExaBGP", exabgp, "< 60 MiB")):
        if any(sizes.values()):
            largest = max(sizes, key=lambda node: sizes[node])
            rows.append(Row(f"resident memory of {what} ({largest})", f"{sizes[largest] / MIB:.1f} MiB", bar))
    if daemons.operator is not None and daemons.operator.resident():
        rows.append(Row("resident memory of operator", f"{daemons.operator.resident() / MIB:.1f} MiB"))
    return rows


def exabgp_memory(pids: list[int]) -> int:
    """The largest of a speaker's processes: ExaBGP itself, its relay is small."""
    return max((resident(pid) for pid in pids), default=0)


def claim(holds: object, evidence: str) -> None:
    """Raises StoryFailed with `evidence` unless `holds`."""
    if not holds:
        raise StoryFailed(evidence)


# --- scenes ------------------------------------------------------------------------------------------------------


def build(story: Story) -> list[str]:
    lab = story.lab
    for name, node, labels in (
        ("snat-pod", "worker", {"app": "snat-pod"}), ("snat-gw", "gw1", {"app": "snat-pod"}),
        ("plain", "worker", {"app": "plain"}), ("plain-gw", "gw1", {"app": "plain"}),
        ("batch", "worker", {"app": "batch"}), ("web", "worker", {"app": "web"}),
    ):  # fmt: skip
        lab.add_pod(name, node, labels)
    lab.add_pod("dns", "gw2", {"app": "dns"}, namespace="kube-system").start_server(udp=53)
    lab.pod("web").start_server(http=8080)
    lab.add_neighbor("old-db", OLD_DB, OLD_DB_NETWORK).start_server(http=80)
    lab.node("gw2").ip(f"addr add {OLD_EGRESS_IP}/24 dev eth0")
    story.watch = lab.watch()
    story.watch.allow(EGRESS_IP, *(lab.pod(name).address for name in ("plain", "plain-gw")))
    story.watch.forbid(*(lab.pod(name).address for name in ("snat-pod", "snat-gw", "batch")))
    lab.fw.allow(EGRESS_IP)
    story.built_in = time.monotonic() - story.begin
    nodes = ", ".join(f"{node.label} {node.address}" for node in lab.nodes.values())
    return [
        f"ToR {TOR_ADDRESS} ({lab.tor.bgp.version()}, AS {TOR_AS}); nodes {nodes}; {len(lab.pods)} pods",
        f"fw {FW_ADDRESS} beyond the ToR answers {EGRESS_IP} only; every link of the ToR is captured",
    ]


def write_manifests(story: Story) -> list[str]:
    lab = story.lab
    slices = [
        cluster.endpoint_slice("web", "default", 8080, [lab.pod("web")]),
        cluster.endpoint_slice("dns", "kube-system", 53, [lab.pod("dns")], "UDP"),
    ]
    store = story.manifests.prepare()
    story.manifests.put("cluster.yaml", cluster.text(cluster.documents(lab, slices)))
    paths = sorted(cluster.MANIFESTS.glob("*.yaml"))
    for path in paths:
        story.manifests.put(path.name, path.read_text())
    names = [path.name for path in paths]
    return [store, f"cluster.yaml (nodes, namespaces, {len(lab.pods)} pods, endpoints)", ", ".join(names)]


def sessions_up(story: Story) -> list[str]:
    """Starts everything; the clock of each node runs from the start of its agent."""
    lab, daemons = story.lab, story.daemons
    daemons.start_operator()
    started: dict[str, float] = {}
    for node in lab.nodes:
        daemons.start_speaker(node)
        started[node] = time.monotonic()
        daemons.start_agent(node)

    def everyone_ready() -> bool:
        dead = daemons.dead()
        if dead:
            said = dead[0].log.read_text(errors="replace").strip().splitlines()[-1:]
            raise StoryFailed(f"{dead[0].role} of {dead[0].host.label} ended: {' '.join(said)}", vital=True)
        sessions = lab.tor.sessions()
        for node in lab.nodes:
            if node not in story.ready_in and sessions.get(node) == "Established" and hooked(lab, node):
                story.ready_in[node] = time.monotonic() - started[node]
        return len(story.ready_in) == len(lab.nodes)

    lab.wait(everyone_ready, "sessions up and datapath attached on every node")
    ready = ", ".join(f"{node} in {seconds:.1f} s" for node, seconds in story.ready_in.items())
    programs = sum(sum(attached(node).values()) for node in lab.nodes.values())
    return [f"Established at the ToR and attached: {ready}", f"{programs} eBPF programs on devices of the nodes"]


def hooked(lab: Lab, node: str) -> bool:
    """Whether the device of every pod of the node bears a program."""
    devices = attached(lab.node(node))
    return all(devices.get(pod.device, 0) > 0 for pod in lab.pods.values() if pod.node.label == node)


def within(prefixes: Sequence[str], network: str) -> list[str]:
    """Addresses of the host routes among `prefixes` that lie in `network`."""
    net = ipaddress.IPv4Network(network)
    parsed = (ipaddress.ip_network(prefix) for prefix in prefixes)
    return [str(p[0]) for p in parsed if p.version == 4 and p.prefixlen == 32 and p[0] in net]


def tor_table(story: Story) -> list[str]:
    tor = story.lab.tor

    def complete() -> bool:
        routes = tor.kernel_routes()
        vips, pool = within([*routes], VIP_POOL), within([*routes], EGRESS_POOL)
        story.vip, story.pool_ip = (vips or [""])[0], (pool or [""])[0]
        everywhere = len(routes.get(f"{story.vip}/32", ())) == len(story.lab.nodes)
        alike = routes.get(f"{story.pool_ip}/32", []) == ["10.0.0.11", "10.0.0.12"]
        return bool(everywhere and alike and f"{EGRESS_IP}/32" in routes)

    try:
        story.lab.wait(complete, "VIP by every node, both egress IPs by all of their gateways")
    except WaitTimeout as timeout:
        raise StoryFailed(f"{timeout}\n" + "\n".join(table_lines(story)), vital=True) from timeout
    claim(tor.kernel_routes()[f"{EGRESS_IP}/32"] == ["10.0.0.11"], f"{EGRESS_IP} is not at gw1 alone")
    story.lab.fw.allow(story.pool_ip)
    if story.watch is not None:
        story.watch.allow(story.pool_ip)
    return table_lines(story)


def table_lines(story: Story) -> list[str]:
    """The ToR's table, one line per prefix; the paths not used are in brackets."""
    lines = []
    used = story.lab.tor.kernel_routes()
    for prefix, paths in sorted(story.lab.tor.routes().items()):
        hops = used.get(prefix, [])
        spare = [f"[{path.next_hop} local-pref {path.local_pref}]" for path in paths if path.next_hop not in hops]
        lines.append(f"{prefix:<20} via {', '.join([*hops, *spare])}")
    return lines


def fetch_vip(story: Story) -> list[str]:
    lab = story.lab
    web, dns = lab.pod("web"), lab.pod("dns")
    services = [
        ServiceEntry("web", "tcp", 80, (Backend(web.address, 8080, "worker"),), "10.96.0.20", story.vip),
        ServiceEntry("dns", "udp", 53, (Backend(dns.address, 53, "gw2"),), "10.96.0.10"),
    ]
    for node in lab.nodes.values():
        node.nft(ruleset(services, node.label, POD_NETWORK))
    answers = [lab.client.get(story.vip) for _ in range(6)]
    claim(all(answer.text.startswith("web saw") for answer in answers), f"{story.vip}: {answers[-1]}")
    by = ", ".join(sorted({answer.source for answer in answers}))
    return [f"client$ GET http://{story.vip}/ six times: six pages of the web pod, by nodes {by}"]


def egress_in_use(story: Story) -> list[str]:
    """Waits until every selected pod leaves with its egress IP: what comes before that is dropped, as it must be."""
    lab = story.lab
    addresses = {"snat-pod": EGRESS_IP, "snat-gw": EGRESS_IP, "batch": story.pool_ip}
    for name, address in addresses.items():
        pod = lab.pod(name)
        lab.wait(
            lambda pod=pod, address=address: pod.ask(FW_ADDRESS, timeout=0.3).source == address,
            f"{name} leaves with {address}",
        )
    return [f"{name} leaves with {address}" for name, address in addresses.items()]


def leaves_as(pod: Host, address: str, story: Story) -> str:
    """The pod fetches a page and asks by UDP; fw must see `address`; returns the evidence."""
    before = len(story.lab.fw.log_lines())
    answers = [pod.get(FW_ADDRESS), pod.ask(FW_ADDRESS)]
    evidence = f"{pod.label}$ GET http://{FW_ADDRESS}/: {answers[0]}; UDP: {answers[1]}"
    claim([answer.source for answer in answers] == [address, address], f"{evidence} (expected source {address})")
    logged = (" ".join(line.split()[:2]) for line in story.lab.fw.log_lines()[before:])
    return f"{pod.label} {pod.address} asks fw; fw's log: {', '.join(logged)}"


def selected_reach(story: Story) -> list[str]:
    pods = (story.lab.pod(name) for name in ("snat-pod", "snat-gw"))
    lines = [leaves_as(pod, EGRESS_IP, story) for pod in pods]
    claim(story.lab.pod("snat-pod").ping(FW_ADDRESS), "no answer to ping of snat-pod")
    return [*lines, "snat-pod$ ping fw: answered"]


def two_gateways(story: Story) -> list[str]:
    return [leaves_as(story.lab.pod("batch"), story.pool_ip, story)]


def old_policy(story: Story) -> list[str]:
    answer = story.lab.pod("plain").get(OLD_DB)
    claim(answer.source == OLD_EGRESS_IP, f"plain$ GET http://{OLD_DB}/: {answer}")
    return [f"plain$ GET http://{OLD_DB}/: {answer} (gw2's own, not announced)"]


def unselected_refused(story: Story) -> list[str]:
    fw = story.lab.fw
    lines = []
    for pod in (story.lab.pod("plain"), story.lab.pod("plain-gw")):
        before = fw.refused().get(pod.address, 0)
        answer = pod.get(FW_ADDRESS)
        count = fw.refused().get(pod.address, 0) - before
        claim(answer.refusal == "refused" and count == 1, f"{pod.label}$ GET http://{FW_ADDRESS}/: {answer}")
        lines.append(f"{pod.label}$ GET http://{FW_ADDRESS}/: {answer}; fw refused {count} SYN of {pod.address}")
    return lines


def cluster_untouched(story: Story) -> list[str]:
    pod, dns = story.lab.pod("snat-pod"), story.lab.pod("dns")
    answers = {f"pod {dns.address}": pod.ask(dns.address), "ClusterIP 10.96.0.10": pod.ask("10.96.0.10")}
    claim(
        all(answer.source == pod.address for answer in answers.values()),
        "; ".join(f"{target}: {answer}" for target, answer in answers.items()),
    )
    return [f"snat-pod asks dns at {' and '.join(answers)}: dns saw {pod.address}, its own"]


def nodes_ready(story: Story) -> list[str]:
    return [line for node in story.lab.nodes for line in node_ready(node, story)]


def node_ready(node: str, story: Story) -> list[str]:
    """Evidence that the node says it is ready: its agent, and the store where that has a place for it."""
    claim(story.daemons.is_ready(node), f"{node}: the agent is not ready")
    if story.manifests.node_status(node) is None:
        return [f"{node}: ready"]
    said: dict[str, Any] = {}

    def is_told() -> bool:
        said.update(story.manifests.node_status(node) or {})
        conditions = {each["type"]: each["status"] for each in said.get("conditions", ())}
        peers = [(each["address"], each["state"], each["paths"] > 0) for each in said.get("peers", ())]
        return set(conditions.values()) == {"True"} and peers == [(TOR_ADDRESS, "up", True)] and said["generation"] > 0

    try:
        story.lab.wait(is_told, f"RouterdNode {node} is ready")  # numbers alone wait for 10 s
    except WaitTimeout as timeout:
        raise StoryFailed(f"{timeout}: {said}") from timeout
    peers = ", ".join(f"{each['address']} {each['state']}, {each['paths']} paths" for each in said["peers"])
    return [f"RouterdNode {node}: {', '.join(each['type'] for each in said['conditions'])}; peer {peers}"]


def edit_policy(story: Story) -> list[str]:
    """Selects app=plain in the policy, and takes it back."""
    before = story.manifests.read(TWO_GATEWAYS)
    plain = story.lab.pod("plain")
    more = before.replace("  destinationCIDRs:", "  - podSelector: {matchLabels: {app: plain}}\n  destinationCIDRs:")
    taken = effect(story, more, lambda answer: answer.source == story.pool_ip, "plain leaves with the egress IP")
    assert story.watch is not None
    story.watch.forbid(plain.address)
    line = leaves_as(plain, story.pool_ip, story)
    story.watch.settle()
    story.watch.pardon(plain.address)
    back = effect(story, before, lambda answer: answer.refusal == "refused", "plain is refused again")
    story.edits = [taken, back]
    return [
        f"{TWO_GATEWAYS} now selects app=plain: in effect after {taken * 1000:.0f} ms",
        line,
        f"the edit taken back: plain is refused again after {back * 1000:.0f} ms",
    ]


def effect(story: Story, text: str, reached: Callable[[Answer], bool], what: str) -> float:
    """Replaces the policy and returns the seconds until plain's requests show it."""
    begin = time.monotonic()
    story.manifests.put(TWO_GATEWAYS, text)
    plain = story.lab.pod("plain")
    try:
        story.lab.wait(lambda: reached(plain.get(FW_ADDRESS, timeout=0.5)), what)
    except WaitTimeout as timeout:
        raise StoryFailed(str(timeout)) from timeout
    return time.monotonic() - begin


def no_leak(story: Story) -> list[str]:
    assert story.watch is not None
    verdict = story.watch.settle()
    pairs = "; ".join(f"{source} > {destination}: {n}" for (source, destination), n in verdict.leaks.items())
    claim(verdict.lost == 0, f"the capture lost {verdict.lost} packets")
    claim(not verdict.leaks, f"leaked: {pairs}")
    claim(not (leaks := story.lab.tap.settle()), f"leaked, by the tap: {'; '.join(map(str, leaks))}")
    ours = sum(n for (source, _), n in verdict.outside.items() if source in (EGRESS_IP, story.pool_ip))
    claim(ours, "the capture saw no packet of an egress IP")
    return [f"{verdict.packets} packets captured; {ours} out with an egress IP; 0 of selected pods with another source"]


Scene = Callable[[Story], Sequence[str]]
STORY: tuple[tuple[str, Scene], ...] = (
    ("Lab of network namespaces is up", build),
    ("Manifests as users bring them", write_manifests),
    ("routerd on every node: BGP sessions up, datapath attached", sessions_up),
    ("The ToR's table has the VIP and the egress IPs", tor_table),
    ("A client at the ToR fetches a page from the VIP", fetch_vip),
    ("Selected pods, on the worker and on a gateway, reach fw with the egress IP", selected_reach),
    ("A policy with two gateways, which both announce an address of a pool", two_gateways),
    ("A legacy policy whose egress IP is a node's own address", old_policy),
    ("Unselected pods keep their address, and fw refuses them", unselected_refused),
    ("In-cluster traffic of a selected pod is untouched, though its policy says 0.0.0.0/0", cluster_untouched),
    ("Every node says that it is ready", nodes_ready),
    ("A policy is edited and takes effect", edit_policy),
    ("Nothing of a selected pod has left with another source", no_leak),
)
