"""What a node's configuration says about its desired state."""

from __future__ import annotations

from routerd.config import Config
from routerd.node.announce import Rules
from routerd.node.desired import Settings


def settings_of(config: Config) -> Settings:
    announce = config.bgp.announce
    egress = announce.egress and config.egress.enabled  # without a datapath an egress address leads nowhere
    return Settings(
        node=config.node_name,
        rules=Rules(announce.loadbalancer, announce.pod_cidrs, egress, config.bgp.router_id),
        cluster_cidrs=config.cluster_cidrs,
        external_cidrs=config.egress.in_cluster,
        tunnel_port=config.egress.tunnel_port,
    )
