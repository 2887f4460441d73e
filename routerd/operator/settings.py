"""A configuration as the settings of decisions, for every process that decides."""

from __future__ import annotations

from ipam.round import Timers
from routerd.cluster.assign import AssignSettings
from routerd.cluster.port_sets import PortRules
from routerd.config import Config


def assign_settings(config: Config) -> AssignSettings:
    """Without the writer, whom its ledger tells."""
    options = config.operator
    return AssignSettings(
        Timers(cooldown=options.cooldown, retention=options.egress_retention),
        gateway_mode=options.gateway_mode,
        allowed_egress_ips=config.egress.allowed_addresses,
        port_rules=PortRules(deadline=options.flow_deadline, history=options.retention),
        cloud_networks=config.cloud.egress_networks,
        direct=config.egress.transport == "direct",
        pod_cidrs=config.pod_cidrs if config.gives_blocks else (),
        pod_pools=config.of_pod_pools,
    )
