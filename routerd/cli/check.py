"""`routerd check`: what is wrong with files before they are applied, in the words that status would use later.

`check_texts` is pure; `check_paths` reads the files, and which CNI this host has. Whether a peer can be reached is not
asked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cloud.plan import HOST_PODS
from egress.host.enforcement import Surroundings, first_packets, surroundings
from egress.host.survey import readable_traces
from egress.policy import Desired, egress_versions, unsupported
from eni.networkd import lacking
from routerd.cli.decided import Severity, decided
from routerd.cli.mistakes import mistakes
from routerd.cluster.instances import takes_part
from routerd.config import DEFAULT, Config, parse_config, read_config
from routerd.errors import InputError
from routerd.formats.closed import FailClosed
from routerd.formats.compose import documents, first_document, inner_source
from routerd.formats.convert.meaning import without_meaning
from routerd.formats.core import ClaimedDevices, expand_lists
from routerd.formats.document import Source, Value
from routerd.formats.foreign.policies import IN_PART, UNREADABLE, UNUSED
from routerd.formats.kinds import BY_NAME, OURS
from routerd.formats.legacy_bgp import Dialect, as_json, parse_document
from routerd.formats.objects import Loaded, bgp_text, read_object
from routerd.model import (
    GATEWAY_LABEL,
    EgressPolicy,
    Node,
    Peer,
    Pod,
    Refusal,
    Service,
    Snapshot,
)
from routerd.node.inside import Inside, strays
from routerd.node.pools import PoolIndex
from routerd.refs import PEER, Ref
from routerd.selectors import matches_any
from routerd.store.closed import is_policy
from routerd.store.embedded.disk import manifest_files, read_text
from routerd.store.merge import merge
from routerd.tell.limits import REDIRECTED, passed_by
from routerd.tell.networks import further_networks
from routerd.tell.why import OTHER_WAYS, selecting

_PLACE = re.compile(r"(?P<file>[^\n:]+):(?P<line>\d+)(?::(?P<column>\d+))?: (?P<rest>.*)", re.DOTALL)


NOBODY = Surroundings()


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake. An error would not be applied; a warning would, perhaps not as meant."""

    severity: Severity
    message: str
    file: str = ""
    line: int = 0  # 1-based; 0 = unknown
    column: int = 0  # 1-based; 0 = unknown
    key: str = ""

    def __str__(self) -> str:
        error = InputError(self.message, file=self.file, line=self.line, column=self.column, key=self.key)
        return f"{self.severity}: {error}"

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def check_dialect(text: str, dialect: Dialect) -> dict[str, object]:
    """One BGP document, or a ConfigMap that carries it, as the original parser decides: `{"ok": …}` or `{"error": …}`.

    The places in an error are those in `text`.
    """
    carried = _carried(text)
    if carried is None:
        return as_json(text, dialect)
    return as_json(carried.text, dialect, inner_source(carried, text.splitlines()))


def _carried(text: str) -> Value | None:
    """The BGP document in a ConfigMap, whatever its name; None if `text` is none, or does not parse."""
    try:
        document = first_document(text)
        if document is None or not document.is_mapping:
            return None
        kind = document.section.get("kind")
        if kind is None or not kind.is_scalar or kind.text != "ConfigMap":
            return None
        data = document.section.section("data")
    except InputError:
        return None
    found = (data.get(key) for key in ("config.yaml", "config")) if data else ()
    return next((value for value in found if value is not None and value.is_scalar), None)


def check_paths(paths: Sequence[Path]) -> list[Finding]:
    """Files, and directories with all manifests in them, taken together as one configuration."""
    texts, findings = texts_of(paths)
    return findings + check_texts(texts, surroundings(readable_traces()), lacking())


def texts_of(paths: Sequence[Path]) -> tuple[dict[str, str], list[Finding]]:
    """Texts by file name of files, and of all manifests in directories; and what cannot be read."""
    texts: dict[str, str] = {}
    findings: list[Finding] = []
    for path in paths:
        try:
            files = _manifests(path) if path.is_dir() else [path]
            if not files:
                findings.append(Finding("warning", "no manifest (*.yaml, *.yml, *.json) is in it", str(path)))
            texts |= {str(file): read_text(file) for file in files}
        except OSError as error:
            findings.append(Finding("error", f"cannot be read: {error.strerror}", str(path)))
        except InputError as error:
            findings.append(_of_error(error))
    return texts, findings


def _manifests(directory: Path) -> list[Path]:
    """The manifests in a directory, without what the operator puts beside them by default."""
    return [file for file in manifest_files(directory) if file.name != "allocations.yaml"]


def check_texts(texts: Mapping[str, str], there: Surroundings = NOBODY, networkd: Sequence[str] = ()) -> list[Finding]:
    """Texts by file name. Every object's mistakes, then what does not fit together. `there`: what is on this host.

    `networkd`: what of its settings leaves others' routes to it.
    """
    findings: list[Finding] = []
    loaded: list[Loaded] = []
    config, configured = DEFAULT, ""
    for file, text in sorted(texts.items()):
        for part in _parts(text, file):
            if isinstance(part, InputError):
                findings.append(_of_error(part))
            elif isinstance(part, Config):
                config, configured = part, file
            else:
                loaded.append(part)
    snapshot = merge(loaded, allocations=None, service_cidrs=config.service_cidrs)
    taken = {entry.ref for part in loaded for entry in part.entries if not is_policy(entry, refused=True)}
    taken -= {policy.ref for policy in (snapshot.policies or {}).values() if policy.refused}
    elsewhere = set() if snapshot.pools else {UNUSED}  # pools are other files' matter
    findings += [_of_refusal(each, taken) for each in snapshot.refusals if each.reason not in elsewhere]
    findings += cross_check(snapshot) + _check_pods(snapshot, config) + _decided(snapshot, config)
    findings += _check_selected(snapshot, loaded)
    findings += _routeless(snapshot, config, configured)
    findings += _bypassed(config, there, configured) if configured else []
    findings += _undone(config, networkd, configured) if configured else []
    findings += _above_capacity(snapshot, config)
    return sorted(findings, key=lambda each: (each.file, each.line))


def _routeless(snapshot: Snapshot, config: Config, file: str) -> list[Finding]:
    """Routes to pods are wanted, and nothing says where these are."""
    nodes = (snapshot.nodes or {}).values()
    is_told = config.gives_blocks or any(node.pod_cidrs for node in nodes)
    if not config.native_routing.auto_direct_node_routes or not nodes or is_told:
        return []
    message = "auto-direct-node-routes routes nothing: no Node has spec.podCIDRs, and pod-cidrs gives none"
    return [Finding("warning", message, file)]


def _bypassed(config: Config, there: Surroundings, file: str) -> list[Finding]:
    """The CNI of this host, if it is a node and NetworkPolicies would be bypassed on it."""
    first = first_packets(Desired("", None, network_policy=config.egress.network_policy), there)
    return [Finding("warning", f"on this host: {first.message}", file)] if first.way == "refused" else []


def _above_capacity(snapshot: Snapshot, config: Config) -> list[Finding]:
    """What an instance type holds is the cloud's to say: `routerd show cloud` has it."""
    most, cloud = config.cloud.rules.marks.maximum, config.cloud
    found = (each for each in (snapshot.nodes or {}).values() if most and takes_part(each, cloud.nodes))
    message = (
        "Node {}: its kubelet takes {} pods, and cloud.addresses.max gives it {} addresses for them: lower maxPods"
    )
    return [
        Finding("warning", message.format(each.name, each.most_pods, most), each.origin.file, each.origin.line)
        for each in found
        if each.most_pods > most + HOST_PODS
    ]


def _undone(config: Config, networkd: Sequence[str], file: str) -> list[Finding]:
    """Rules and routes for pods that somebody takes away on this host."""
    if config.cloud.provider == "none" or not networkd:
        return []
    wanted = " and ".join(f"{key}=no" for key in networkd)
    message = f"on this host systemd-networkd takes away routes and rules that lead pods: set {wanted} in networkd.conf"
    return [Finding("warning", message, file)]


def _parts(text: str, file: str) -> list[Loaded | Config | InputError]:
    """Each object, or routerd's own configuration, and every mistake of it."""
    lines = text.split("\n")
    try:
        values = [value for document in documents(text, Source(file)) for value in expand_lists(document)]
    except InputError as error:
        return [error]
    return [part for value in values for part in _parts_of(value, lines, text, file)]


def _parts_of(value: Value, lines: list[str], text: str, file: str) -> Sequence[Loaded | Config | InputError]:
    try:
        if value.section.string("kind") == "Config" and value.section.string("apiVersion").startswith("routerd.io/"):
            return [parse_config(text, file)]
        if (inner := _inner_config(value, lines)) is not None:
            return mistakes(inner, read_config) or [read_config(inner)]
        loaded = read_object(value, lines)
    except InputError as error:
        return _all_mistakes(value, lines) or [error]
    told = [Refusal(each.ref, "Unread", text) for each in loaded.entries[:1] for text in without_meaning(value, loaded)]
    if not loaded.refusals:
        return [replace(loaded, refusals=tuple(told))]
    errors = _all_mistakes(value, lines)
    same = {str(error) for error in errors}
    left = [each for each in loaded.refusals if each.message not in same]
    return [replace(loaded, refusals=(*left, *told)), *errors]


def _inner_config(value: Value, lines: list[str]) -> Value | None:
    """routerd's configuration in a ConfigMap, as the install manifests have it. Raises InputError."""
    if value.section.string("kind") != "ConfigMap" or (data := value.section.section("data")) is None:
        return None
    text = data.get("routerd.yaml")
    return first_document(text.text, inner_source(text, lines)) if text is not None and text.is_scalar else None


def _all_mistakes(value: Value, lines: list[str]) -> list[InputError]:
    try:
        group, kind = value.section.string("apiVersion").rpartition("/")[0], value.section.string("kind")
        if (group, kind) == ("", "ConfigMap") and (found := bgp_text(value)) is not None:
            return _of_bgp(*found, lines)
    except InputError as error:
        return [error]
    if (group, kind) == (OURS, "Config"):
        return mistakes(value, read_config)
    reader = row.reader if (row := BY_NAME.get((group, kind))) is not None else None
    if not isinstance(reader, FailClosed):
        return mistakes(value, lambda changed: read_object(changed, lines))
    errors = mistakes(value, reader.read) + mistakes(value, reader.covered)
    return sorted({str(error): error for error in errors}.values(), key=lambda each: (each.line, each.column))


def _of_bgp(text: Value, dialect: Dialect, lines: list[str]) -> list[InputError]:
    """Of the BGP document in a ConfigMap."""
    document = first_document(text.text, inner_source(text, lines))
    return mistakes(document, lambda changed: parse_document(changed, dialect)) if document is not None else []


def _of_error(error: InputError) -> Finding:
    return Finding("error", error.message, error.file, error.line, error.column, error.key)


def _of_refusal(refusal: Refusal, taken: set[Ref]) -> Finding:
    """What is in force in spite of it is worth a warning only."""
    is_there = refusal.object in taken and refusal.reason != UNREADABLE  # a pod is, and what it sends is dropped
    is_applied = is_there or refusal.object.kind == PEER or refusal.severity != "error"
    is_second = refusal.reason in ("Duplicate", "Conflicting")
    severity: Severity = "warning" if is_applied and not is_second else "error"
    found = _placed(severity, refusal.message)
    is_asked = refusal.reason in (UNUSED, UNREADABLE, IN_PART)
    return replace(found, message=f"{refusal.object}: {found.message}") if is_asked else found


def _placed(severity: Severity, message: str) -> Finding:
    """A sentence that begins with its place."""
    match = _PLACE.fullmatch(message)
    if match is None:
        return Finding(severity, message)
    return Finding(severity, match["rest"], match["file"], int(match["line"]), int(match["column"] or 0))


# --- what does not fit together ----------------------------------------------------------------------------------


def cross_check(snapshot: Snapshot) -> list[Finding]:
    """Objects that name what is not there, or that can have no effect."""
    pools, nodes = PoolIndex(snapshot.pools or {}), list((snapshot.nodes or {}).values())
    found: list[Finding] = []
    for policy in (snapshot.policies or {}).values():
        if policy.refused:
            continue
        found += _check_fixed(policy, pools)
        found += _check_gateways(policy, nodes)
        found += _check_excluded(policy)
        found += _check_namespaces(policy)
        found += _check_families(policy)
    for peer in snapshot.bgp.peers if snapshot.bgp else ():
        found += _check_peer(peer, nodes)
    return found


def _check_pods(snapshot: Snapshot, config: Config) -> list[Finding]:
    """Pods that agents of other nodes may take for the world outside, as they see their own pods only."""
    pods = (snapshot.pods or {}).values()
    outside = strays(pods, snapshot, Inside(config.cluster_cidrs))
    if not outside or not snapshot.nodes or not snapshot.policies:
        return []
    message = (
        f"{len(outside)} addresses of pods, {outside[0]} among them, lie in no pod CIDR of a node: "
        "add their network to cluster-cidrs in the configuration of every node"
    )
    return [_at("warning", next(pod for pod in pods if outside[0] in pod.addresses), message)]


def _check_selected(snapshot: Snapshot, loaded: Sequence[Loaded]) -> list[Finding]:
    """Of pods that a policy selects, what is asked for and does not go with it."""
    claimed = _claimed(loaded)
    pods = (pod for pod in (snapshot.pods or {}).values() if not pod.finished and not pod.host_network)
    said = ((pod, [*_beside_egress(pod, claimed.get(pod.key, ()))]) for pod in pods)
    return [_at("warning", pod, text) for pod, texts in said if texts and selecting(snapshot, pod) for text in texts]


def _beside_egress(pod: Pod, claimed: Sequence[str]) -> Iterator[str]:
    """More than one way out, or a cap."""
    if networks := (*further_networks(pod.annotations), *claimed):
        yield f"pod {pod.key} has other networks beside its first: {', '.join(networks)}; {OTHER_WAYS}"
    if caps := passed_by(pod.annotations):
        yield f"pod {pod.key}: {' and '.join(caps)} {REDIRECTED}"


def _claimed(loaded: Sequence[Loaded]) -> dict[str, list[str]]:
    """By pod: interfaces that are devices of its ResourceClaims."""
    claims = (each.object for part in loaded for each in part.entries if isinstance(each.object, ClaimedDevices))
    found: dict[str, list[str]] = {}
    for claim in claims:
        for pod in claim.pods:
            named = [f"{interface} (ResourceClaim {claim.name})" for interface in claim.interfaces]
            found.setdefault(f"{claim.namespace}/{pod}", []).extend(named)
    return found


def _decided(snapshot: Snapshot, config: Config) -> list[Finding]:
    return [
        Finding(each.severity, f"{each.refusal.object}: {each.refusal.message}", each.origin.file, each.origin.line)
        for each in decided(snapshot, config)
    ]


def _at(severity: Severity, thing: EgressPolicy | Service | Peer | Pod, message: str) -> Finding:
    return Finding(severity, message, thing.origin.file, thing.origin.line)


def _check_fixed(policy: EgressPolicy, pools: PoolIndex) -> list[Finding]:
    """A given address must not be handed out to a service as well."""
    found = []
    for address in policy.egress_ips if not policy.pool else ():
        holder = pools.holding(address)
        if holder is not None and "egress" not in holder.uses:
            message = f"{policy.key}: {address} lies in pool {holder.name}, which may give it to a service"
            found.append(_at("warning", policy, message))
    return found


def _check_gateways(policy: EgressPolicy, nodes: list[Node]) -> list[Finding]:
    if not nodes or (policy.service and policy.gateways is None):
        return []
    if policy.gateways is not None:
        if any(policy.gateways.matches(node.labels) for node in nodes):
            return []
        return [_at("error", policy, f"{policy.key}: no node matches its gateways' nodeSelector")]
    is_held = any(address in node.addresses for node in nodes for address in policy.egress_ips)
    if is_held or any(GATEWAY_LABEL in node.labels for node in nodes):
        return []
    message = f"{policy.key}: no node is labelled {GATEWAY_LABEL}; only a node that holds the egress IP can be gateway"
    return [_at("warning", policy, message)]


def _check_excluded(policy: EgressPolicy) -> list[Finding]:
    return [
        _at("warning", policy, f"{policy.key}: excluded {network} lies outside the destinations: no effect")
        for network in policy.excluded
        if not any(network.version == other.version and network.overlaps(other) for other in policy.destinations)
    ]


def _check_namespaces(policy: EgressPolicy) -> list[Finding]:
    """A policy is of the whole cluster: what is left out takes the pods of every team."""
    if policy.kind != "EgressPolicy" or all(each.namespaces is not None for each in policy.selections):
        return []
    message = "takes pods of every namespace: name them in a namespaceSelector; {} says that all are meant"
    return [_at("warning", policy, f"{policy.key}: {message}")]


def _check_families(policy: EgressPolicy) -> list[Finding]:
    """What no datapath translates is dropped: not wrong, but hardly what was meant."""
    lacking = unsupported(policy.destinations, policy.egress_ips)
    severity: Severity = "warning" if egress_versions(policy.destinations, policy.egress_ips) else "error"
    return [_at(severity, policy, f"{policy.key}: {lacking}")] if lacking else []


def _check_peer(peer: Peer, nodes: list[Node]) -> list[Finding]:
    if not nodes or any(matches_any(peer.node_selectors, node.labels) for node in nodes):
        return []
    return [_at("warning", peer, f"{peer.ref}: no node matches its node-selectors")]
