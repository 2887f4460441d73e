"""The agent, bfd and the operator as processes: built from a configuration, run until they are cancelled.

It wires parts together and decides nothing. What an agent made stays in place when it ends.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import routerd
from bgp.inside.leaving import MARKER, host_goes_down
from routerd.agent import local
from routerd.agent.drain import Drains, Places
from routerd.agent.loop import Agent, Parts
from routerd.agent.plugins.attachments import Attachments
from routerd.agent.plugins.pod_addresses import PodAddressDesk
from routerd.agent.ports import PortDesk
from routerd.agent.presence import PodCounter, Presence
from routerd.agent.reconcile import Reconciler
from routerd.agent.settings import settings_of
from routerd.blocking import in_thread
from routerd.cluster.instances import takes_part
from routerd.config import Config, boot_guard
from routerd.config.cloud import CloudSettings
from routerd.daemon import preflight
from routerd.daemon.directories import made
from routerd.daemon.lifetime import ConfigSource
from routerd.errors import EnvironmentFault, StoreError
from routerd.formats.foreign.policies import AskCounter
from routerd.log import event
from routerd.model import Allocations, EgressAsk, Node, NodeReport, PodCount, Snapshot, Writer
from routerd.node.brake import Brake, Limits
from routerd.serve.api import ApiServer, agent_socket, answering, is_answering, operator_socket
from routerd.serve.notify import notify
from routerd.serve.plugin import PluginServer, ipam_socket, plugin_socket
from routerd.serve.vitals import Heart, Vitals, served
from routerd.store.embedded.store import FileStore
from routerd.store.interface import Store
from routerd.tell.health import Enabled, announced_services, node_health, of_pods
from routerd.tell.operator_status import OperatorStatus, operator_status

if TYPE_CHECKING:
    from bgp.path import SessionKey
    from bgp.speaker import Speaker
    from routerd.agent.egress import EgressRoom
    from routerd.agent.plugins.wiring import WiringRoom
    from routerd.agent.room import Room
    from routerd.agent.seats.bfd import BfdRoom
    from routerd.agent.seats.routes import RouteRoom
    from routerd.operator.clouds import Clouds
    from routerd.operator.loop import Operator
    from upstream.watch import Watcher

LOGGER = logging.getLogger("routerd.process")
COLLECT_PERIOD = 10.0  # seconds; the shortest timeout of an idle flow is longer
FIRST_TRIAL, LAST_TRIAL = 0.02, 1.0  # seconds between trials of port sets that have not been echoed; doubles
SURVEY_PERIOD = 30.0  # seconds; nobody tells when a CNI changes
SPARE_TRIAL = 60.0  # of those that are good by another way
PRESSED_PERIOD = 1.0  # seconds between rounds of collection while a pod nears its share of the tables, or ports end
PRESSED_LOOK = 0.1  # seconds between two looks whether that is so
UPSTREAM_LOST = "upstream-lost"  # in the run directory
YOUNG = 20_000  # objects after which the collector looks at those that are new

Task = Callable[[], Awaitable[None]]


def file_store(config: Config, on_change: Callable[[], None] = lambda: None, node: str = "") -> FileStore:
    """`node`: whose agent reads; "" = the operator does."""
    store = config.store
    return FileStore(
        store.manifests,
        store.allocations,
        node_report=store.node_report,
        node_reports=store.node_reports,
        service_cidrs=config.service_cidrs,
        on_change=on_change,
        node=node,
    )


@asynccontextmanager
async def opened_store(config: Config, on_change: Callable[[], None]) -> AsyncIterator[Store]:
    """An agent's store, whichever it is. EnvironmentFault if it cannot be reached by this configuration."""
    if config.store.kind == "files":
        yield file_store(config, on_change, config.node_name)
        return
    # Imported here: a node without Kubernetes needs neither the package nor its memory.
    from routerd.store.kubernetes.client import Client
    from routerd.store.kubernetes.store import KubernetesStore, Scope

    scope = Scope.of_agent(config.node_name, config.store.namespace, config.service_cidrs)
    client = Client(config.store.kubeconfig)
    await client.open()
    try:
        yield KubernetesStore(client, scope, on_change)
    finally:
        await client.close()


class Callback:
    """A callback that is known before what it calls."""

    def __init__(self) -> None:
        self.to: Callable[[], None] = lambda: None

    def __call__(self) -> None:
        self.to()


# --- the agent


def check_agent(config: Config) -> None:
    """EnvironmentFault before anything is touched. Without egress, a cloud and routes it needs no privilege."""
    native = config.native_routing
    if config.cloud.provider != "none" or native.auto_direct_node_routes or native.learn:
        preflight.privileges((preflight.CAP_NET_ADMIN,))
    if config.egress.enabled:
        preflight.for_agent(config.egress.uplinks)
        if preflight.bpf_file_system(config.pin_dir):
            event(LOGGER, logging.WARNING, "bpffs-mounted", reason="pins last as long as this mount does")


async def agent(config: Config, source: ConfigSource) -> None:
    """`routerd agent`, until cancelled. EnvironmentFault if the machine lacks something."""
    check_agent(config)
    heart, on_store = Heart(), Callback()
    async with opened_store(config, on_store) as store:
        attachments = Attachments(config.node_name, store.snapshot, guards=config.egress.enabled)
        made(config.state_dir, source.path, "state-dir")
        memory, retention = config.state_dir / "pod-addresses.json", config.pod_addresses.retention
        of_cloud = partial(_has_cloud_pods, config.cloud)
        pod_addresses = PodAddressDesk(
            config.node_name, memory, retention=retention, of_pools=config.of_pod_pools, of_cloud=of_cloud,
            dual=config.cloud.rules.ipv6,
        )  # fmt: skip
        body, presence = _assembled(config, source, heart, store, attachments, pod_addresses)
        on_store.to = partial(_store_changed, pod_addresses, body)
        async with (
            ApiServer(agent_socket(config.run_dir), body.answer),
            PluginServer(plugin_socket(config.run_dir), attachments.answer),
            PluginServer(ipam_socket(config.run_dir), pod_addresses.answer),
        ):
            web = _web(config, body, heart)
            event(LOGGER, logging.INFO, "agent-started", node=config.node_name)
            try:
                await body.run()
            except asyncio.CancelledError:
                await _say_goodbye(config, presence)
                raise
            finally:
                web()


async def _say_goodbye(config: Config, presence: Presence) -> None:
    """Of a host that goes down the operator hears at once, so that its egress groups move while it still forwards.

    Behind an API server the Node says so (its kubelet, a taint): a report there is not written any more.
    """
    reason = await in_thread(host_goes_down, config.run_dir)
    if reason:
        event(LOGGER, logging.INFO, "host-goes-down", reason=reason)
        with suppress(StoreError, OSError):
            presence.say_goodbye()


def _assembled(
    config: Config,
    source: ConfigSource,
    heart: Heart,
    store: Store,
    attachments: Attachments,
    pod_addresses: PodAddressDesk,
) -> tuple[Agent, Presence]:
    from bgp.routers import Routers
    from bgp.speaker import Speaker
    from routerd.agent.rooms import Rooms, WithRouters, relay_socket
    from routerd.agent.seats.routes import RouteRoom

    made(config.run_dir, source.path, "run-dir")
    on_speaker, on_links = Callback(), Callback()
    speaker = Speaker(relay_socket(config.run_dir), on_change=on_speaker) if config.bgp.enabled else None
    egress = _egress_room(config) if config.egress.enabled else None
    if egress is None:
        boot_guard(config).unlink(missing_ok=True)  # there is nobody who would tell it of pods
    tasks: dict[str, Task] = {"store": store.run, "heart": heart.beat, "pod-addresses": pod_addresses.run}
    drains = _drains(config)
    ports = PortDesk(config.node_name, drains.changed.set)
    if egress is not None:
        ports.use = egress.port_use
    bfd_room = _bfd_room(config, speaker)
    if bfd_room is not None:
        tasks["bfd"] = partial(bfd_room.run, partial(_end_session, speaker))
    if speaker is not None:
        tasks["speaker"] = speaker.run
    upstream = _upstream(config)
    if upstream is not None:
        tasks["upstream"] = upstream.run
    routes = RouteRoom()
    routers = Routers() if speaker is not None else None
    rooms = Rooms(
        store, speaker, egress, config.egress.uplinks, bfd_room, upstream, config.bgp.password_dir,
        WithRouters(config.node_name, routers) if routers is not None else None, routes,
    )  # fmt: skip
    pod_addresses.snapshot = rooms.snapshot
    limits, wiring = config.bgp.brake, _wiring_room(config, pod_addresses)
    body = Agent(
        Parts(
            settings_of(config),
            rooms,
            Reconciler(speaker, _seats(bfd_room, egress, wiring, routes)),
            Brake(Limits(limits.enabled, limits.percent, limits.paths, limits.hold)),
            None if source.reloaded else rooms.carried,  # another configuration explains what it withdraws
            tasks,
            _ready,
            drains=drains,
            attachments=attachments,
            pod_addresses=lambda: pod_addresses.held,
            ports=ports,
        )
    )
    attachments.hurry, attachments.wake = body.hurry, body.wake
    if egress is not None:
        tasks |= _egress_tasks(egress, on_links, body.recheck, ports.reconsider)
    presence = Presence(
        store, lambda: _node_report(config), lambda: body.status, lambda: body.snapshot, drains,
        egress=config.egress.enabled, ports=lambda: ports.report, pods=_pods(config, pod_addresses),
        blocks=pod_addresses.block_report, asks=_asks(config),
    )  # fmt: skip
    tasks["report"] = presence.run
    on_speaker.to = body.refresh
    if bfd_room is not None:
        bfd_room.on_change, bfd_room.on_connect = body.refresh, body.recheck
        on_speaker.to = partial(_speaker_changed, bfd_room, body)
    if upstream is not None:
        upstream.serves, upstream.on_change = lambda: body.is_gateway, body.refresh
    if routers is not None:
        tasks["routers"], routers.on_change = rooms.find_routers, body.wake
    if speaker is not None:
        speaker.on_received = body.wake
    on_links.to, source.on_status = body.recheck, body.config_is
    enabled = Enabled(bgp=config.bgp.enabled, egress=config.egress.enabled)
    began = time.monotonic()
    store.report_pods(lambda: of_pods(body.status, body.snapshot))
    if config.store.metallb_status:
        store.report_services(lambda: announced_services(body.announcements, body.unannounced))
    store.report_health(lambda: node_health(body.status, body.snapshot, enabled, time.monotonic() - began))
    return body, presence


def _egress_tasks(
    egress: EgressRoom, on_links: Callable[[], None], on_others: Callable[[], None], on_counted: Callable[[], None]
) -> dict[str, Task]:
    from egress.devices import watch

    return {
        "collect": lambda: collect_idle(egress, on_counted),
        "trials": lambda: try_port_sets(egress),
        "links": lambda: watch(on_links),
        "survey": lambda: look_around(egress, on_others),
    }


def _store_changed(pod_addresses: PodAddressDesk, body: Agent) -> None:
    pod_addresses.changed()
    body.wake()


def _has_cloud_pods(cloud: CloudSettings, node: Node) -> bool:
    return cloud.provider != "none" and takes_part(node, cloud.nodes)


def _pods(config: Config, desk: PodAddressDesk) -> Callable[[Snapshot], PodCount | None]:
    """Counted where somebody asks: each change of it is a write. For pods that get none no addresses are fetched."""
    counter, asks = PodCounter(config.node_name), config.cloud.provider != "none" or config.gives_blocks
    return lambda snapshot: counter.count(snapshot) if asks and not desk.hindrance() else None


def _asks(config: Config) -> Callable[[Snapshot], tuple[EgressAsk, ...] | None]:
    """None of a node that translates nothing."""
    counter = AskCounter(config.node_name)
    return lambda snapshot: counter.asks(snapshot.pods, snapshot.pools) if config.egress.enabled else ()


def _speaker_changed(bfd_room: BfdRoom, body: Agent) -> None:
    bfd_room.look()
    body.refresh()


def _bfd_room(config: Config, speaker: Speaker | None) -> BfdRoom | None:
    """For peers and for gateways; None where there can be neither."""
    from routerd.agent.seats.bfd import BfdRoom

    if speaker is None and not config.egress.enabled:
        return None
    return BfdRoom(config.run_dir, lambda: speaker.peers if speaker is not None else {})


def _upstream(config: Config) -> Watcher | None:
    """None where nothing is asked."""
    from upstream.watch import Watcher

    rules = config.egress.upstream_probe if config.egress.enabled else None
    marker = config.run_dir / UPSTREAM_LOST
    if rules is None:
        marker.unlink(missing_ok=True)
        return None
    return Watcher(rules, marker, partial(event, logging.getLogger("routerd.upstream")))


async def _end_session(speaker: Speaker | None, session: SessionKey) -> bool:
    from bgp.text import BFD_DOWN

    return speaker is not None and await speaker.end(session, BFD_DOWN)


def _seats(
    bfd_room: BfdRoom | None, egress: EgressRoom | None, wiring: WiringRoom | None, routes: RouteRoom
) -> list[Room]:
    """Gateways are probed once the programs are in place that give probes their way."""
    from routerd.agent.seats.bfd import ProbeRoom

    seats: list[Room] = [room for room in (bfd_room, egress) if room is not None]
    seats += [ProbeRoom(bfd_room)] if bfd_room is not None and egress is not None else []
    return [*seats, *([wiring] if wiring is not None else []), routes]


def _soon(loop: asyncio.AbstractEventLoop, work: Callable[[], None]) -> None:
    loop.call_soon_threadsafe(work)


def _wiring_room(config: Config, desk: PodAddressDesk) -> WiringRoom | None:
    """None where pods have no addresses of a cloud."""
    if config.cloud.provider == "none":
        return None
    from routerd.agent.plugins.wiring import WiringRoom

    def takes_part() -> bool:
        here = (desk.snapshot().nodes or {}).get(config.node_name)
        return here is not None and _has_cloud_pods(config.cloud, here)

    room, loop = WiringRoom(takes_part), asyncio.get_running_loop()
    room.on_wired = lambda: _soon(loop, desk.changed)
    desk.wired, desk.hindrance = lambda: room.wired, room.hindrance
    return room


def _egress_room(config: Config) -> EgressRoom:
    """Imported here: a node without egress needs neither eBPF nor its memory."""
    from routerd.agent.egress import BootGuard, EgressRoom, open_datapath

    return EgressRoom(open_datapath(config), BootGuard(boot_guard(config)))


def settle_memory() -> None:
    """What start-up made stays: the collector need not walk it in every round. A round makes few values, some of them
    with an entry for every service; looked at after each 700 objects, as is usual, they would be looked at many times.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)


def _ready() -> None:
    settle_memory()
    event(LOGGER, logging.INFO, "ready")
    notify("READY=1")


def _web(config: Config, body: Agent, heart: Heart) -> Callable[[], None]:
    """Serves metrics if asked to; returns what ends it."""
    if config.metrics_listen is None:
        return lambda: None
    from routerd.serve.web import HttpServer, pages

    address, port = config.metrics_listen
    return HttpServer(address, port, pages(lambda: body.status, heart.is_beating)).close


def _drains(config: Config) -> Drains:
    run_dir = config.run_dir
    places = Places(config.state_dir / "drain.json", run_dir / MARKER, run_dir / "drained")
    return Drains(places, notice=config.drain.notice, cordoned=config.drain.cordoned, taints=config.drain.taints)


def _node_report(config: Config) -> NodeReport:
    is_tunnelled = not config.egress.enabled or config.egress.transport == "vxlan"
    addresses = local.interface_addresses()
    links = () if is_tunnelled else local.own_links(addresses)
    return NodeReport(config.node_name, addresses, local.own_networks(), links=links)


async def look_around(egress: EgressRoom, on_change: Callable[[], None]) -> None:
    """Looks again and again at what others have on the node: who enforces NetworkPolicies, who uses the mark."""
    while True:
        await asyncio.sleep(SURVEY_PERIOD)
        try:
            if await in_thread(egress.survey):
                on_change()
        except OSError as error:
            event(LOGGER, logging.WARNING, "survey-failed", reason=str(error), retry=SURVEY_PERIOD)


async def collect_idle(egress: EgressRoom, on_counted: Callable[[], None]) -> None:
    """Takes idle flows out of the datapath again and again, and sooner while a pod comes near its share or a group's
    ports end: then it takes a tenth of the time at most. Who asks for ports hears of it at once, as a count takes
    nothing from what is wanted.
    """
    clock = asyncio.get_running_loop().time
    last, took = clock(), 0.0
    while True:
        await asyncio.sleep(PRESSED_LOOK)
        pause, is_pressed = clock() - last, await in_thread(egress.is_pressed)
        if pause < COLLECT_PERIOD and (pause < max(PRESSED_PERIOD, 10 * took) or not is_pressed):
            if is_pressed:
                on_counted()
            continue
        last = clock()
        try:
            await in_thread(egress.collect)
            took = clock() - last
            on_counted()
        except OSError as error:
            event(LOGGER, logging.ERROR, "collect-failed", reason=str(error), retry=COLLECT_PERIOD)


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    """From another thread."""
    loop.call_soon_threadsafe(event.set)


async def try_port_sets(egress: EgressRoom) -> None:
    """Until each gateway has echoed each port set: at once when the datapath has new ones, then ever later.

    Gateways may read of a set a little after its node does.
    """
    changed = asyncio.Event()
    changed.set()  # an agent before us may have left some untried
    loop = asyncio.get_running_loop()
    egress.on_groups = partial(_wake, loop, changed)
    pause = FIRST_TRIAL
    while True:
        if changed.is_set():
            changed.clear()
            pause = FIRST_TRIAL
        try:
            needed, total = await in_thread(egress.try_port_sets)
        except OSError as error:
            event(LOGGER, logging.ERROR, "trials-failed", reason=str(error), retry=LAST_TRIAL)
            needed, total, pause = 1, 1, LAST_TRIAL
        with suppress(TimeoutError):
            async with asyncio.timeout(pause if total else None):
                await changed.wait()
        pause = min(2 * pause, LAST_TRIAL if needed else SPARE_TRIAL)


# --- bfd


async def bfd(config: Config, source: ConfigSource) -> None:
    """`routerd bfd`, until cancelled; then peers are asked to wait for the next one. EnvironmentFault: no run-dir."""
    from bfd.control import SOCKET
    from bfd.engine import Engine, be_realtime

    made(config.run_dir, source.path, "run-dir")
    if await in_thread(is_answering, config.run_dir / SOCKET):
        raise EnvironmentFault(
            f"another bfd process answers on {config.run_dir / SOCKET}: stop it first, or set run-dir"
        )
    realtime = be_realtime()
    if not realtime:
        reason = "no CAP_SYS_NICE: a busy host may delay packets, and peers may take it for dead"
        event(LOGGER, logging.WARNING, "bfd-not-realtime", reason=reason)
    engine = Engine(config.run_dir, partial(event, logging.getLogger("routerd.bfd")), realtime=realtime)
    event(LOGGER, logging.INFO, "bfd-started")
    gc.collect()
    gc.freeze()
    notify("READY=1")
    try:
        await engine.run()
    except OSError as error:
        raise EnvironmentFault(f"cannot listen on {config.run_dir / SOCKET}: {error.strerror}") from error


# --- the operator


@dataclass(slots=True)
class OperatorStore:
    """A store as the operator sees it: `on_change` may be called after it was made."""

    store: FileStore
    callbacks: list[Callable[[], None]] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
        return self.store.snapshot()

    def node_reports(self) -> Mapping[str, NodeReport] | None:
        return self.store.node_reports()

    def write_allocations(self, allocations: Allocations) -> None:
        self.store.write_allocations(allocations)

    def on_change(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    def changed(self) -> None:
        for callback in self.callbacks:
            callback()

    def status_of(self, body: Operator, clouds: Clouds | None) -> OperatorStatus:
        snapshot, reports = self.snapshot(), self.node_reports()
        return operator_status(
            routerd.__version__, snapshot, reports, body.rounds, body.last, active=True,
            refusals=clouds.refusals() if clouds is not None else (), cloud_calls=clouds.counts if clouds else None,
        )  # fmt: skip


async def operator(config: Config, source: ConfigSource) -> None:
    """`routerd operator`, until cancelled. StoreError if another one has the ledger."""
    if config.store.kind == "kubernetes":
        from routerd.operator.leader import candidate

        await candidate(config)
        return
    from routerd.cluster.agents import Agents, Patience
    from routerd.operator.clouds import clouds_of
    from routerd.operator.loop import Operator
    from routerd.operator.settings import assign_settings
    from routerd.store.embedded.ledger import SqliteLedger

    on_store = Callback()
    store = OperatorStore(file_store(config, on_store))
    on_store.to = store.changed
    made(config.operator.ledger.parent, source.path, "operator.ledger", "state-dir")
    ledger = SqliteLedger(config.operator.ledger, config.operator.retention)
    settings = replace(assign_settings(config), writer=Writer(config.node_name, ledger.id, ledger.lease))
    # Who reads only its own report cannot tell whether others have an agent.
    is_whole = config.store.node_reports != (str(config.store.node_report),)
    patience = Patience(config.operator.gateway_patience, config.operator.node_patience)
    body = Operator(store, ledger, settings, agents=Agents(assumed=not is_whole, patience=patience))
    clouds = clouds_of(config.cloud, body)
    tasks: list[asyncio.Task[None]] = []
    vitals = Vitals(lambda: store.status_of(body, clouds), lambda: tasks)
    event(LOGGER, logging.INFO, "operator-started", ledger=str(config.operator.ledger))
    try:
        async with answering(operator_socket(config.run_dir), body.answer):
            with served(config.operator.metrics_listen, vitals):
                notify("READY=1")
                async with asyncio.TaskGroup() as group:
                    tasks.append(group.create_task(store.store.run(), name="store"))
                    tasks.append(group.create_task(body.run(), name="operator"))
                    tasks.append(group.create_task(body.listen(), name="listener"))
                    if clouds is not None:
                        tasks.append(group.create_task(clouds.run(), name="clouds"))
                    group.create_task(vitals.beat(), name="heart")
    finally:
        ledger.close()
