"""What a node's configuration says about its desired state."""

from __future__ import annotations

from egress.policy import Watch
from routerd.config import Config, LivenessConfig
from routerd.config.cloud import CloudSettings
from routerd.node.checks import Rules
from routerd.node.desired import Settings
from routerd.node.rooms.wiring import PodsOfCloud


def settings_of(config: Config) -> Settings:
    announce = config.bgp.announce
    egress = announce.egress and config.egress.enabled  # without a datapath an egress address leads nowhere
    return Settings(
        node=config.node_name,
        rules=Rules(
            services=announce.loadbalancer,
            pod_cidrs=announce.pod_cidrs,
            pod_pools=config.of_pod_pools,
            egress_ips=egress,
            external_ips=announce.external_ips,
            cluster_ips=announce.cluster_ips,
            router_id=config.bgp.router_id,
        ),
        cluster_cidrs=config.cluster_cidrs,
        external_cidrs=config.egress.in_cluster,
        tunnel_port=config.egress.tunnel_port,
        transport=config.egress.transport,
        tunnel_packets=config.egress.tunnel_packets,
        network_policy=config.egress.network_policy,
        forward_mark=1 << config.egress.forward_mark_bit,
        flow_deadline=config.operator.flow_deadline,
        pods_of_cloud=_pods_of_cloud(config.cloud),
        cloud_networks=config.cloud.egress_networks,
        learn=config.native_routing.learn if config.bgp.enabled else (),
        announces=config.bgp.enabled,
        direct_routes=config.native_routing.auto_direct_node_routes,
        watch=_watch(config.egress.liveness),
    )


def _pods_of_cloud(cloud: CloudSettings) -> PodsOfCloud | None:
    if cloud.vpc is None:
        return None
    return PodsOfCloud(cloud.vpc, cloud.pod_metadata, None if cloud.external_snat else cloud.snat_exempt)


def _watch(liveness: LivenessConfig) -> Watch | None:
    return Watch(liveness.interval / 1e6, liveness.multiplier) if liveness.enabled else None
